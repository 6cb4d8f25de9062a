//! Conversions between formats, bit for bit.
//!
//! [`encode`] and [`decode`] are written from the definition of the formats in integer arithmetic: they are the
//! oracle of every faster conversion. [`mod@slice`] converts whole tensors at memory speed and counts what was lost;
//! the conversion of one [`Element`] sits between the two.

mod element;
pub mod slice;

pub use element::{E4M3, Element};
pub use slice::{ConversionStats, ConvertError, convert_slice, decode_slice, encode_slice};

use crate::format::{Format, Specials};

/// Direction of rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To the nearest value, ties to the even code. What every kernel does.
    NearestEven,
    /// To the nearest value that is not larger in magnitude.
    TowardZero,
}

/// What becomes of a finite value that rounds beyond the largest finite one.
///
/// Formats without infinities (E4M3, E2M1) saturate in either case, infinities included. In the others an infinity
/// stays an infinity in either case, so that saturation never hides one that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// Infinity, as IEEE 754 says.
    Infinity,
    /// The largest finite value, with the sign kept.
    Saturate,
}

/// The format has no code for NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NaN has no code in {0}; use a format that has one, or remove the NaN first")]
pub struct NanNotRepresentable(pub Format);

const F64_MANTISSA_BITS: u32 = 52;
const F64_EXPONENT_MASK: u64 = 0x7ff;

/// Rounds `value` once to `format` and returns its code in the low bits.
///
/// An f32 source widens to f64 without loss (`f64::from`), so there is one rounding in either case. The sign of zero
/// is kept; NaN becomes a quiet NaN with the sign and as much of the payload as fits.
///
/// # Errors
/// [`NanNotRepresentable`] for NaN to E2M1.
pub const fn encode(
    value: f64,
    format: Format,
    rounding: Rounding,
    overflow: Overflow,
) -> Result<u32, NanNotRepresentable> {
    let bits = value.to_bits();
    let mantissa_bits = format.mantissa_bits();
    let sign = ((bits >> 63) as u32) << (format.bits() - 1);
    let exponent_field = (bits >> F64_MANTISSA_BITS) & F64_EXPONENT_MASK;
    let fraction = bits & ((1 << F64_MANTISSA_BITS) - 1);

    if exponent_field == F64_EXPONENT_MASK {
        if fraction == 0 {
            return Ok(sign | infinity_or_max(format));
        }
        return match format.specials() {
            Specials::Ieee => {
                let quiet = 1 << (mantissa_bits - 1);
                let payload = (fraction >> (F64_MANTISSA_BITS - mantissa_bits)) as u32;
                Ok(sign | infinity_or_max(format) | quiet | payload)
            }
            Specials::NanOnly => Ok(sign | (format.max_finite_code() + 1)),
            Specials::None => Err(NanNotRepresentable(format)),
        };
    }

    // value = significand * 2^(exponent - 52), subnormal or not.
    let (significand, exponent) = if exponent_field == 0 {
        (fraction, -1022)
    } else {
        (fraction | (1 << F64_MANTISSA_BITS), exponent_field as i32 - 1023)
    };
    let min_exponent = format.min_exponent();
    let scale = if exponent > min_exponent { exponent } else { min_exponent };
    let dropped = F64_MANTISSA_BITS - mantissa_bits + (scale - exponent) as u32;
    // Beyond 63 dropped bits the 53 of the significand are below half a unit all the same.
    let dropped = if dropped > 63 { 63 } else { dropped };
    let kept = significand >> dropped;
    let rest = significand & ((1 << dropped) - 1);
    let half = 1 << (dropped - 1);
    let up = match rounding {
        Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
        Rounding::TowardZero => false,
    };
    // The hidden bit of `kept` adds one to the exponent field; a carry out of the mantissa does the same.
    let code = (((scale - min_exponent) as u64) << mantissa_bits) + kept + up as u64;
    let max_code = format.max_finite_code();
    if code <= max_code as u64 {
        return Ok(sign | code as u32);
    }
    match (rounding, overflow) {
        (Rounding::NearestEven, Overflow::Infinity) => Ok(sign | infinity_or_max(format)),
        (Rounding::TowardZero, _) | (_, Overflow::Saturate) => Ok(sign | max_code),
    }
}

/// The code of infinity, or of the largest finite value where there is none.
const fn infinity_or_max(format: Format) -> u32 {
    match format.specials() {
        Specials::Ieee => format.max_finite_code() + 1,
        Specials::NanOnly | Specials::None => format.max_finite_code(),
    }
}

/// The value of the code in the low bits of `bits`; higher bits are ignored. Exact: every format is a subset of f32.
/// NaN becomes a quiet NaN with sign and payload kept.
pub const fn decode(bits: u32, format: Format) -> f32 {
    const F32_MANTISSA_BITS: u32 = 23;
    const F32_INFINITY: u32 = 0x7f80_0000;
    const F32_QUIET: u32 = 0x0040_0000;
    let mantissa_bits = format.mantissa_bits();
    let widen = F32_MANTISSA_BITS - mantissa_bits;
    let sign = ((bits >> (format.bits() - 1)) & 1) << 31;
    let code = bits & ((1 << (format.bits() - 1)) - 1);
    let mantissa = code & ((1 << mantissa_bits) - 1);
    let exponent_field = code >> mantissa_bits;

    if code > format.max_finite_code() {
        let nan = match format.specials() {
            Specials::Ieee if mantissa == 0 => 0,
            _ => F32_QUIET | (mantissa << widen),
        };
        return f32::from_bits(sign | F32_INFINITY | nan);
    }
    if exponent_field > 0 {
        let exponent = (exponent_field as i32 - format.bias() + 127) as u32;
        return f32::from_bits(sign | (exponent << F32_MANTISSA_BITS) | (mantissa << widen));
    }
    if mantissa == 0 {
        return f32::from_bits(sign);
    }
    // A subnormal: shift its leading one to the place of the hidden bit, unless f32 is that narrow too.
    let shift = mantissa.leading_zeros() - (31 - F32_MANTISSA_BITS);
    let exponent =
        format.min_exponent() - mantissa_bits as i32 + F32_MANTISSA_BITS as i32 - shift as i32 + 127;
    if exponent < 1 {
        return f32::from_bits(sign | (mantissa << widen));
    }
    let hidden = 1 << F32_MANTISSA_BITS;
    f32::from_bits(sign | ((exponent as u32) << F32_MANTISSA_BITS) | ((mantissa << shift) & (hidden - 1)))
}

/// The value of an E8M0 scale: 2^(code - 127), and NaN for 255 (OCP microscaling specification).
pub const fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        // 2^-127 is subnormal in f32.
        0 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits((code as u32) << 23),
    }
}
