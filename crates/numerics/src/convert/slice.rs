//! Conversion of whole tensors, with a count of what was lost.
//!
//! Bytes are little endian and may be unaligned, as in a memory-mapped file. E2M1 values are packed two to a byte,
//! the first in the low half.

use half::{bf16, f16};

use super::{E4M3, Element, NanNotRepresentable, Overflow, Rounding, decode, element::code_table, encode};
use crate::format::Format;

/// Values converted at a time: three f32 buffers of this length stay in the first-level cache. Even, so that two
/// packed E2M1 values never straddle blocks.
const BLOCK: usize = 1024;

/// What a conversion did to the values. Mergeable, so that parts can be converted in parallel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConversionStats {
    /// Values converted.
    pub values: u64,
    /// Largest |converted - original| / |original| over the values that neither overflowed nor became zero.
    pub max_relative_error: f64,
    /// Finite values beyond the range: they became infinite, or saturated.
    pub overflowed: u64,
    /// Non-zero values that became zero.
    pub flushed_to_zero: u64,
    /// NaNs in the source.
    pub nan: u64,
    /// Infinities in the source.
    pub inf: u64,
}

impl ConversionStats {
    /// Adds the counts of `other` and keeps the larger error.
    pub fn merge(&mut self, other: &ConversionStats) {
        self.values += other.values;
        self.max_relative_error = self.max_relative_error.max(other.max_relative_error);
        self.overflowed += other.overflowed;
        self.flushed_to_zero += other.flushed_to_zero;
        self.nan += other.nan;
        self.inf += other.inf;
    }

    /// Whether every value was kept exactly.
    pub fn is_exact(&self) -> bool {
        self.max_relative_error == 0.0 && self.overflowed == 0 && self.flushed_to_zero == 0
    }
}

/// Why a slice was not converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The byte lengths do not belong to the same number of values.
    #[error("{count} values in {format} take {wanted} bytes, got {got}")]
    Length {
        /// Number of values, as the other slice tells.
        count: usize,
        /// Format of the slice with the wrong length.
        format: Format,
        /// Bytes it should have.
        wanted: usize,
        /// Bytes it has.
        got: usize,
    },
    /// More values than the address space holds bytes for.
    #[error("{count} values in {format} take more bytes than can be addressed")]
    TooLong {
        /// Number of values.
        count: usize,
        /// Their format.
        format: Format,
    },
    /// A NaN met a format without one.
    #[error(transparent)]
    Nan(#[from] NanNotRepresentable),
}

fn check_length(bytes: usize, format: Format, count: usize) -> Result<(), ConvertError> {
    match format.bytes_for(count) {
        None => Err(ConvertError::TooLong { count, format }),
        Some(wanted) if wanted != bytes => Err(ConvertError::Length { count, format, wanted, got: bytes }),
        Some(_) => Ok(()),
    }
}

/// Decodes `destination.len()` values exactly.
///
/// # Errors
/// [`ConvertError::Length`] unless `source` holds exactly that many.
pub fn decode_slice(source: &[u8], format: Format, destination: &mut [f32]) -> Result<(), ConvertError> {
    static E5M2_VALUES: [f32; 256] = code_table(Format::F8E5M2);
    check_length(source.len(), format, destination.len())?;
    match format {
        Format::F32 => bytemuck::cast_slice_mut(destination).copy_from_slice(source),
        Format::F16 => decode_elements::<f16>(source, destination),
        Format::Bf16 => decode_elements::<bf16>(source, destination),
        Format::F8E4M3 => decode_elements::<E4M3>(source, destination),
        Format::F8E5M2 => {
            for (out, &code) in destination.iter_mut().zip(source) {
                *out = E5M2_VALUES[usize::from(code)];
            }
        }
        Format::F4E2M1 => {
            for (pair, &byte) in destination.chunks_mut(2).zip(source) {
                for (out, code) in pair.iter_mut().zip([byte & 15, byte >> 4]) {
                    *out = decode(u32::from(code), format);
                }
            }
        }
    }
    Ok(())
}

fn decode_elements<T: Element>(source: &[u8], destination: &mut [f32]) {
    if let Ok(source) = bytemuck::try_cast_slice::<u8, T>(source) {
        return T::decode_into(source, destination);
    }
    let mut block = [T::zeroed(); BLOCK];
    for (bytes, out) in source.chunks(BLOCK * size_of::<T>()).zip(destination.chunks_mut(BLOCK)) {
        let block = &mut block[..out.len()];
        bytemuck::cast_slice_mut(block).copy_from_slice(bytes);
        T::decode_into(block, out);
    }
}

/// Encodes every value of `source`, rounding to nearest even. Overflow becomes infinity, or saturates where the
/// format has no infinities.
///
/// # Errors
/// [`ConvertError::Length`] unless `destination` holds exactly that many; [`ConvertError::Nan`] for a NaN to E2M1,
/// with the destination partly written.
pub fn encode_slice(source: &[f32], format: Format, destination: &mut [u8]) -> Result<(), ConvertError> {
    check_length(destination.len(), format, source.len())?;
    match format {
        Format::F32 => destination.copy_from_slice(bytemuck::cast_slice(source)),
        Format::F16 => encode_elements::<f16>(source, destination),
        Format::Bf16 => encode_elements::<bf16>(source, destination),
        Format::F8E4M3 => encode_elements::<E4M3>(source, destination),
        Format::F8E5M2 => {
            for (out, &value) in destination.iter_mut().zip(source) {
                *out = encode_small(value, format)?;
            }
        }
        Format::F4E2M1 => {
            for (out, pair) in destination.iter_mut().zip(source.chunks(2)) {
                let mut byte = 0;
                for (place, &value) in pair.iter().enumerate() {
                    byte |= encode_small(value, format)? << (4 * place);
                }
                *out = byte;
            }
        }
    }
    Ok(())
}

/// [`encode`] for formats of at most eight bits.
fn encode_small(value: f32, format: Format) -> Result<u8, NanNotRepresentable> {
    Ok(encode(f64::from(value), format, Rounding::NearestEven, Overflow::Infinity)? as u8)
}

fn encode_elements<T: Element>(source: &[f32], destination: &mut [u8]) {
    if let Ok(destination) = bytemuck::try_cast_slice_mut::<u8, T>(destination) {
        return T::encode_into(source, destination);
    }
    let mut block = [T::zeroed(); BLOCK];
    for (values, bytes) in source.chunks(BLOCK).zip(destination.chunks_mut(BLOCK * size_of::<T>())) {
        let block = &mut block[..values.len()];
        T::encode_into(values, block);
        bytes.copy_from_slice(bytemuck::cast_slice(block));
    }
}

/// Converts values from one format to another with one rounding to nearest even, and says what was lost.
///
/// The number of values follows from the length of the slice whose format fills whole bytes; with E2M1 on both sides
/// every half byte counts.
///
/// # Errors
/// [`ConvertError::Length`] where the slices disagree about the number of values; [`ConvertError::Nan`] for a NaN to
/// E2M1, with the destination partly written.
pub fn convert_slice(
    source: &[u8],
    source_format: Format,
    destination: &mut [u8],
    destination_format: Format,
    overflow: Overflow,
) -> Result<ConversionStats, ConvertError> {
    let count = match (source_format, destination_format) {
        (Format::F4E2M1, Format::F4E2M1) => source.len().saturating_mul(2),
        (Format::F4E2M1, _) => destination.len() / destination_format.bytes(),
        _ => source.len() / source_format.bytes(),
    };
    check_length(source.len(), source_format, count)?;
    check_length(destination.len(), destination_format, count)?;

    let conversion = Conversion::new(source_format, destination_format, overflow);
    let mut stats = ConversionStats::default();
    let source_block = source_format.bytes_for(BLOCK).unwrap_or(BLOCK);
    let destination_block = destination_format.bytes_for(BLOCK).unwrap_or(BLOCK);
    let blocks = source.chunks(source_block).zip(destination.chunks_mut(destination_block));
    for (block, (bytes, out)) in blocks.enumerate() {
        let values = BLOCK.min(count - block * BLOCK);
        stats.merge(&conversion.run(bytes, out, values)?);
    }
    Ok(stats)
}

/// One pair of formats.
struct Conversion {
    from: Format,
    to: Format,
    overflow: Overflow,
    /// Smallest magnitude that rounds beyond the range of `to`; infinity where no f32 does.
    first_overflow: f32,
}

impl Conversion {
    fn new(from: Format, to: Format, overflow: Overflow) -> Conversion {
        Conversion { from, to, overflow, first_overflow: first_overflow(to) }
    }

    /// Converts one block of at most [`BLOCK`] values.
    fn run(
        &self,
        source: &[u8],
        destination: &mut [u8],
        values: usize,
    ) -> Result<ConversionStats, ConvertError> {
        let mut original = [0.0; BLOCK];
        let original = &mut original[..values];
        decode_slice(source, self.from, original)?;
        if self.from == self.to {
            destination.copy_from_slice(source);
            return Ok(count_specials(original));
        }
        if self.to.represents(self.from) {
            encode_slice(original, self.to, destination)?;
            return Ok(count_specials(original));
        }
        match self.overflow {
            Overflow::Saturate if self.to.has_infinity() => {
                let mut clamped = [0.0; BLOCK];
                let clamped = &mut clamped[..values];
                clamp_finite(original, self.to.max_finite() as f32, clamped);
                encode_slice(clamped, self.to, destination)?;
            }
            _ => encode_slice(original, self.to, destination)?,
        }
        let mut converted = [0.0; BLOCK];
        let converted = &mut converted[..values];
        decode_slice(destination, self.to, converted)?;
        Ok(self.compare(original, converted))
    }

    /// Counts what was lost. Magnitudes are compared as signed integers, which have the order of the values: such a
    /// loop has no branches and vectorises on every machine. Counters wrap, which a block cannot make them do, so
    /// that overflow checks do not prevent it either.
    fn compare(&self, original: &[f32], converted: &[f32]) -> ConversionStats {
        let first_overflow = magnitude_bits(self.first_overflow);
        let (mut overflowed, mut flushed, mut worst) = (0_i32, 0_i32, 0_i32);
        for (&x, &y) in original.iter().zip(converted) {
            let magnitude = magnitude_bits(x);
            let over = (magnitude >= first_overflow) & (magnitude < INFINITY_BITS);
            let flush = (magnitude_bits(y) == 0) & (magnitude != 0);
            overflowed = overflowed.wrapping_add(i32::from(over));
            flushed = flushed.wrapping_add(i32::from(flush));
            let kept = (magnitude != 0) & (magnitude < first_overflow) & !flush;
            let error = magnitude_bits((y - x) / x);
            worst = worst.max(if kept { error } else { 0 });
        }
        ConversionStats {
            max_relative_error: f64::from(f32::from_bits(worst.unsigned_abs())),
            overflowed: u64::from(overflowed.unsigned_abs()),
            flushed_to_zero: u64::from(flushed.unsigned_abs()),
            ..count_specials(original)
        }
    }
}

const INFINITY_BITS: i32 = 0x7f80_0000;

/// The bits of the magnitude, in the order of magnitudes; NaN beyond infinity.
#[inline]
fn magnitude_bits(value: f32) -> i32 {
    (value.to_bits() & 0x7fff_ffff) as i32
}

/// The smallest f32 whose magnitude rounds beyond the largest finite value of `format`.
fn first_overflow(format: Format) -> f32 {
    if format == Format::F32 {
        return f32::INFINITY;
    }
    // Halfway to the value that would follow. A tie goes to the even code.
    let quantum = format.max_finite() - f64::from(decode(format.max_finite_code() - 1, format));
    let halfway = (format.max_finite() + quantum / 2.0) as f32;
    if format.max_finite_code() & 1 == 1 { halfway } else { halfway.next_up() }
}

fn clamp_finite(source: &[f32], limit: f32, destination: &mut [f32]) {
    for (out, &value) in destination.iter_mut().zip(source) {
        *out = if value.abs() < f32::INFINITY { value.clamp(-limit, limit) } else { value };
    }
}

fn count_specials(values: &[f32]) -> ConversionStats {
    let (mut nan, mut inf) = (0_i32, 0_i32);
    for &value in values {
        nan = nan.wrapping_add(i32::from(magnitude_bits(value) > INFINITY_BITS));
        inf = inf.wrapping_add(i32::from(magnitude_bits(value) == INFINITY_BITS));
    }
    ConversionStats {
        values: values.len() as u64,
        nan: u64::from(nan.unsigned_abs()),
        inf: u64::from(inf.unsigned_abs()),
        ..ConversionStats::default()
    }
}
