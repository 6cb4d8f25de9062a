//! Scalar number formats: sizes, ranges, precision, and what each ecosystem calls them.
//!
//! Sources: IEEE 754-2019 for binary32 and binary16, the OCP 8-bit floating point specification for E4M3 and E5M2,
//! the OCP microscaling specification for E2M1.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A scalar storage format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of binary32.
    Bf16,
    /// 8 bits, 4 of exponent, 3 of mantissa, no infinities (OCP E4M3, "fn").
    F8E4M3,
    /// 8 bits, 5 of exponent, 2 of mantissa (OCP E5M2).
    F8E5M2,
    /// 4 bits, 2 of exponent, 1 of mantissa (OCP E2M1).
    F4E2M1,
}

/// Which codes of a format are not finite numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Specials {
    /// The largest exponent is reserved: mantissa zero is infinity, any other NaN.
    Ieee,
    /// Exponent and mantissa all ones is NaN; there is no infinity.
    NanOnly,
    /// Every code is a finite number.
    None,
}

/// A place where formats have names of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ecosystem {
    /// The `dtype` of a safetensors header.
    Safetensors,
    /// The ggml type name in GGUF tools.
    Gguf,
    /// NumPy; everything beyond `float32` and `float16` is registered by the `ml_dtypes` package.
    NumPy,
    /// PyTorch, without the `torch.` prefix, as `config.json` writes it.
    PyTorch,
    /// CUDA C++ type.
    Cuda,
    /// Metal shading language type.
    Metal,
    /// WebGPU shading language type.
    Wgsl,
}

impl Ecosystem {
    /// Every ecosystem.
    pub const ALL: [Ecosystem; 7] = [
        Ecosystem::Safetensors,
        Ecosystem::Gguf,
        Ecosystem::NumPy,
        Ecosystem::PyTorch,
        Ecosystem::Cuda,
        Ecosystem::Metal,
        Ecosystem::Wgsl,
    ];
}

impl Format {
    /// Every format, widest first.
    pub const ALL: [Format; 6] =
        [Format::F32, Format::F16, Format::Bf16, Format::F8E4M3, Format::F8E5M2, Format::F4E2M1];

    /// The name in policies, tables and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::F8E4M3 => "f8e4m3",
            Format::F8E5M2 => "f8e5m2",
            Format::F4E2M1 => "f4e2m1",
        }
    }

    /// The name in another ecosystem; `None` where it has no such type.
    pub const fn name_in(self, ecosystem: Ecosystem) -> Option<&'static str> {
        let names: [Option<&'static str>; 6] = match ecosystem {
            Ecosystem::Safetensors => {
                [Some("F32"), Some("F16"), Some("BF16"), Some("F8_E4M3"), Some("F8_E5M2"), Some("F4")]
            }
            Ecosystem::Gguf => [Some("F32"), Some("F16"), Some("BF16"), None, None, None],
            Ecosystem::NumPy => [
                Some("float32"),
                Some("float16"),
                Some("bfloat16"),
                Some("float8_e4m3fn"),
                Some("float8_e5m2"),
                Some("float4_e2m1fn"),
            ],
            Ecosystem::PyTorch => [
                Some("float32"),
                Some("float16"),
                Some("bfloat16"),
                Some("float8_e4m3fn"),
                Some("float8_e5m2"),
                Some("float4_e2m1fn_x2"),
            ],
            Ecosystem::Cuda => [
                Some("float"),
                Some("__half"),
                Some("__nv_bfloat16"),
                Some("__nv_fp8_e4m3"),
                Some("__nv_fp8_e5m2"),
                Some("__nv_fp4_e2m1"),
            ],
            Ecosystem::Metal => [Some("float"), Some("half"), Some("bfloat"), None, None, None],
            Ecosystem::Wgsl => [Some("f32"), Some("f16"), None, None, None, None],
        };
        names[self.index()]
    }

    /// The format that `ecosystem` calls `name`, compared exactly.
    pub fn from_name_in(ecosystem: Ecosystem, name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name_in(ecosystem) == Some(name))
    }

    /// Position in [`Format::ALL`].
    const fn index(self) -> usize {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Bf16 => 2,
            Format::F8E4M3 => 3,
            Format::F8E5M2 => 4,
            Format::F4E2M1 => 5,
        }
    }

    /// Bits of one value.
    pub const fn bits(self) -> u32 {
        match self {
            Format::F32 => 32,
            Format::F16 | Format::Bf16 => 16,
            Format::F8E4M3 | Format::F8E5M2 => 8,
            Format::F4E2M1 => 4,
        }
    }

    /// Bytes that hold one value on its own. E2M1 takes one; two of them share a byte in a slice, so lengths of
    /// slices come from [`Format::bytes_for`].
    pub const fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// Bytes of `count` values stored without gaps, rounded up to whole bytes; `None` on overflow.
    pub const fn bytes_for(self, count: usize) -> Option<usize> {
        match self {
            Format::F4E2M1 => Some(count.div_ceil(2)),
            _ => count.checked_mul(self.bytes()),
        }
    }

    /// Bits of the exponent field.
    pub const fn exponent_bits(self) -> u32 {
        match self {
            Format::F32 | Format::Bf16 => 8,
            Format::F16 | Format::F8E5M2 => 5,
            Format::F8E4M3 => 4,
            Format::F4E2M1 => 2,
        }
    }

    /// Stored bits of the significand, without the hidden one.
    pub const fn mantissa_bits(self) -> u32 {
        self.bits() - 1 - self.exponent_bits()
    }

    /// What is subtracted from the exponent field.
    pub(crate) const fn bias(self) -> i32 {
        (1 << (self.exponent_bits() - 1)) - 1
    }

    /// Exponent of the smallest normal value.
    pub(crate) const fn min_exponent(self) -> i32 {
        1 - self.bias()
    }

    pub(crate) const fn specials(self) -> Specials {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::F8E5M2 => Specials::Ieee,
            Format::F8E4M3 => Specials::NanOnly,
            Format::F4E2M1 => Specials::None,
        }
    }

    /// The code of the largest finite value. Codes of non-negative values are in the order of the values.
    pub(crate) const fn max_finite_code(self) -> u32 {
        let ones = (1 << (self.bits() - 1)) - 1;
        match self.specials() {
            Specials::Ieee => ones - (1 << self.mantissa_bits()),
            Specials::NanOnly => ones - 1,
            Specials::None => ones,
        }
    }

    /// The largest finite value.
    pub const fn max_finite(self) -> f64 {
        let code = self.max_finite_code();
        let hidden = 1 << self.mantissa_bits();
        let significand = (code & (hidden - 1)) | hidden;
        let exponent = (code >> self.mantissa_bits()) as i32 - self.bias();
        significand as f64 * power_of_two(exponent - self.mantissa_bits() as i32)
    }

    /// The smallest positive normal value.
    pub const fn min_normal(self) -> f64 {
        power_of_two(self.min_exponent())
    }

    /// The smallest positive value, which is also the distance between neighbours below [`Format::min_normal`].
    pub const fn min_subnormal(self) -> f64 {
        power_of_two(self.min_exponent() - self.mantissa_bits() as i32)
    }

    /// Largest relative error of rounding to nearest a value in the normal range: 2^-p, where p counts the
    /// significand bits with the hidden one.
    pub const fn unit_roundoff(self) -> f64 {
        power_of_two(-(self.mantissa_bits() as i32) - 1)
    }

    /// Whether infinities have a code.
    pub const fn has_infinity(self) -> bool {
        matches!(self.specials(), Specials::Ieee)
    }

    /// Whether NaN has a code.
    pub const fn has_nan(self) -> bool {
        !matches!(self.specials(), Specials::None)
    }

    /// Whether every value of `other`, infinities and NaN included, is a value of `self`: converting `other` to
    /// `self` then loses nothing.
    pub const fn represents(self, other: Format) -> bool {
        self.mantissa_bits() >= other.mantissa_bits()
            && self.min_subnormal() <= other.min_subnormal()
            && self.max_finite() >= other.max_finite()
            && (self.has_infinity() || !other.has_infinity())
            && (self.has_nan() || !other.has_nan())
    }
}

/// 2^exponent, for exponents of normal f64 values.
pub(crate) const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format \"{0}\"; the formats are {names}", names = join_names(&Format::ALL))]
pub struct UnknownFormat(pub String);

/// The names of `formats`, separated by commas.
pub(crate) fn join_names(formats: &[Format]) -> String {
    formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        Format::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Format, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_specifications() {
        let row = |f: Format| (f.max_finite(), f.min_normal(), f.min_subnormal(), f.unit_roundoff());
        assert_eq!(
            row(Format::F32),
            (f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE), 2f64.powi(-149), 2f64.powi(-24))
        );
        assert_eq!(row(Format::F16), (65504.0, 2f64.powi(-14), 2f64.powi(-24), 2f64.powi(-11)));
        assert_eq!(
            row(Format::Bf16),
            (f64::from(half::bf16::MAX), 2f64.powi(-126), 2f64.powi(-133), 2f64.powi(-8))
        );
        assert_eq!(row(Format::F8E4M3), (448.0, 2f64.powi(-6), 2f64.powi(-9), 2f64.powi(-4)));
        assert_eq!(row(Format::F8E5M2), (57344.0, 2f64.powi(-14), 2f64.powi(-16), 2f64.powi(-3)));
        assert_eq!(row(Format::F4E2M1), (6.0, 1.0, 0.5, 0.25));
    }

    #[test]
    fn sizes_and_fields_add_up() {
        for format in Format::ALL {
            assert_eq!(1 + format.exponent_bits() + format.mantissa_bits(), format.bits(), "{format}");
        }
        assert_eq!(Format::F4E2M1.bytes_for(5), Some(3));
        assert_eq!(Format::F16.bytes_for(5), Some(10));
        assert_eq!(Format::F32.bytes_for(usize::MAX / 2), None);
        assert_eq!(Format::F4E2M1.bytes_for(usize::MAX), Some(usize::MAX / 2 + 1));
    }

    #[test]
    fn names_round_trip_everywhere() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            let json = serde_json::to_string(&format).expect("a string");
            assert_eq!(json, format!("\"{format}\""));
            assert_eq!(serde_json::from_str::<Format>(&json).expect("a name"), format);
            for ecosystem in Ecosystem::ALL {
                if let Some(name) = format.name_in(ecosystem) {
                    assert_eq!(Format::from_name_in(ecosystem, name), Some(format));
                }
            }
        }
        assert_eq!(Format::Bf16.name_in(Ecosystem::Metal), Some("bfloat"));
        assert_eq!(Format::Bf16.name_in(Ecosystem::Wgsl), None);
        let error = "fp16".parse::<Format>().expect_err("no such name");
        assert_eq!(
            error.to_string(),
            "unknown format \"fp16\"; the formats are f32, f16, bf16, f8e4m3, f8e5m2, f4e2m1"
        );
    }

    #[test]
    fn representability_is_a_partial_order() {
        for format in Format::ALL {
            assert!(format.represents(format));
            assert!(Format::F32.represents(format));
        }
        assert!(!Format::F16.represents(Format::Bf16));
        assert!(!Format::Bf16.represents(Format::F16));
        assert!(Format::F16.represents(Format::F8E5M2));
        assert!(Format::Bf16.represents(Format::F8E4M3));
        assert!(!Format::F8E4M3.represents(Format::F8E5M2));
        assert!(Format::F8E4M3.represents(Format::F4E2M1));
    }
}
