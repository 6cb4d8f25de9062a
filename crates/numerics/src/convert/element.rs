//! Formats as Rust types: what generic kernels and loaders are written over.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::decode;
use crate::format::Format;

/// A number of one format: decoded exactly, encoded with one rounding to nearest even.
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// The format of the type.
    const FORMAT: Format;

    /// The exact value.
    fn to_f32(self) -> f32;

    /// Rounds to nearest even. Overflow becomes infinity, or the largest finite value where the format has no
    /// infinities; NaN stays NaN.
    fn from_f32(value: f32) -> Self;

    /// Decodes as many values as both slices hold.
    fn decode_into(source: &[Self], destination: &mut [f32]) {
        for (out, value) in destination.iter_mut().zip(source) {
            *out = value.to_f32();
        }
    }

    /// Encodes as many values as both slices hold.
    fn encode_into(source: &[f32], destination: &mut [Self]) {
        for (out, &value) in destination.iter_mut().zip(source) {
            *out = Self::from_f32(value);
        }
    }
}

impl Element for f32 {
    const FORMAT: Format = Format::F32;

    #[inline]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Element for f16 {
    const FORMAT: Format = Format::F16;

    #[inline]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline]
    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }

    // The slice conversions of `half` use F16C or the fp16 instructions of Arm where there are any.
    fn decode_into(source: &[f16], destination: &mut [f32]) {
        let count = source.len().min(destination.len());
        source[..count].convert_to_f32_slice(&mut destination[..count]);
    }

    fn encode_into(source: &[f32], destination: &mut [f16]) {
        let count = source.len().min(destination.len());
        destination[..count].convert_from_f32_slice(&source[..count]);
    }
}

impl Element for bf16 {
    const FORMAT: Format = Format::Bf16;

    #[inline]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Selects instead of branches, so that loops over it vectorise.
    #[inline]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let quiet = bits | 0x0040_0000;
        let kept = if value.is_nan() { quiet } else { rounded };
        bf16::from_bits((kept >> 16) as u16)
    }
}

/// An 8-bit float with 4 exponent and 3 mantissa bits, no infinities, NaN where both are all ones (OCP E4M3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct E4M3(
    /// The code.
    pub u8,
);

static E4M3_VALUES: [f32; 256] = code_table(Format::F8E4M3);

/// The value of every 8-bit code.
pub(super) const fn code_table(format: Format) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decode(code as u32, format);
        code += 1;
    }
    table
}

impl Element for E4M3 {
    const FORMAT: Format = Format::F8E4M3;

    #[inline]
    fn to_f32(self) -> f32 {
        E4M3_VALUES[usize::from(self.0)]
    }

    // Selects instead of branches, so that loops over it vectorise.
    #[inline]
    fn from_f32(value: f32) -> E4M3 {
        const MIN_NORMAL: u32 = (127 - 6) << 23;
        const REBIAS: u32 = (127 - 7) << 3;
        const DROPPED: u32 = 23 - 3;
        // One unit in the last place of 2^14 is 2^-9, the smallest subnormal: adding rounds to its multiples.
        const SUBNORMAL_GRID: f32 = 16384.0;
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let normal =
            magnitude.wrapping_add((1 << (DROPPED - 1)) - 1 + ((magnitude >> DROPPED) & 1)) >> DROPPED;
        let subnormal = (f32::from_bits(magnitude) + SUBNORMAL_GRID).to_bits();
        let code = if magnitude < MIN_NORMAL {
            subnormal.wrapping_sub(SUBNORMAL_GRID.to_bits())
        } else {
            normal.wrapping_sub(REBIAS)
        };
        let saturated = code.min(0x7e);
        let code = if value.is_nan() { 0x7f } else { saturated };
        E4M3(((bits >> 24) & 0x80) as u8 | code as u8)
    }
}
