//! Scalar number formats.

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

impl Format {
    /// Bits of one value.
    pub const fn bits(self) -> u32 {
        match self {
            Format::F32 => 32,
            Format::F16 | Format::Bf16 => 16,
            Format::F8E4M3 | Format::F8E5M2 => 8,
            Format::F4E2M1 => 4,
        }
    }
}
