//! Block storage as data: what a group of quantised values is made of, and how many bytes it takes.
//!
//! The layouts of the GGUF types are those of ggml's `block_*` structures; MXFP4 is that of the OCP microscaling
//! specification. Nothing here computes with them: the descriptions serve to name a type and to count its bytes.

use crate::format::Format;

/// How one value of a block is coded, before scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A float.
    Float(Format),
    /// A two's complement integer.
    Signed {
        /// Bits of a code.
        bits: u32,
    },
    /// An unsigned integer from which `zero_point` is subtracted.
    Unsigned {
        /// Bits of a code.
        bits: u32,
        /// The code that stands for zero.
        zero_point: u32,
    },
}

impl Code {
    /// Bits of one code.
    pub const fn bits(self) -> usize {
        match self {
            Code::Float(format) => format.bits() as usize,
            Code::Signed { bits } | Code::Unsigned { bits, .. } => bits as usize,
        }
    }
}

/// How a scale or a minimum is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// A float.
    Float(Format),
    /// E8M0: a power of two, see [`e8m0_to_f32`](crate::convert::e8m0_to_f32).
    PowerOfTwo,
    /// An integer, which a scale of the whole block multiplies.
    Integer(Code),
}

impl Scale {
    /// Bits of one scale.
    pub const fn bits(self) -> usize {
        match self {
            Scale::Float(format) => format.bits() as usize,
            Scale::PowerOfTwo => 8,
            Scale::Integer(code) => code.bits(),
        }
    }
}

/// What goes with a group of codes: the value is `scale * code`, less `minimum` where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scaling {
    /// Factor of every code.
    pub scale: Scale,
    /// Offset of every value. Q4_1 and Q5_1 add it, the K-quants subtract it.
    pub minimum: Option<Scale>,
}

impl Scaling {
    const fn bits(self) -> usize {
        let minimum = match self.minimum {
            Some(minimum) => minimum.bits(),
            None => 0,
        };
        self.scale.bits() + minimum
    }
}

/// A storage format in which groups of values share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockFormat {
    /// The name: that of ggml where it has the type.
    pub name: &'static str,
    /// The type number in a GGUF file, where it has one.
    pub gguf_type: Option<u32>,
    /// Values in a block.
    pub values: usize,
    /// How a value is coded.
    pub code: Code,
    /// The scaling of the whole block.
    pub block: Scaling,
    /// Groups of a block with a scaling of their own, relative to the block's; zero where there is none.
    pub groups: usize,
    /// The scaling of one group.
    pub group: Option<Scaling>,
}

/// A scale without minimum.
const fn scaled(scale: Scale) -> Scaling {
    Scaling { scale, minimum: None }
}

/// A scale and a minimum of the same kind.
const fn affine(scale: Scale) -> Scaling {
    Scaling { scale, minimum: Some(scale) }
}

const HALF: Scale = Scale::Float(Format::F16);

const fn unsigned(bits: u32, zero_point: u32) -> Code {
    Code::Unsigned { bits, zero_point }
}

const fn integer(bits: u32, zero_point: u32) -> Scale {
    Scale::Integer(unsigned(bits, zero_point))
}

/// A GGUF type whose blocks of 32 have one scaling.
const fn simple(name: &'static str, gguf_type: u32, code: Code, block: Scaling) -> BlockFormat {
    BlockFormat { name, gguf_type: Some(gguf_type), values: 32, code, block, groups: 0, group: None }
}

/// A GGUF type whose blocks of 256 have groups.
const fn k_quant(
    name: &'static str,
    gguf_type: u32,
    code: Code,
    block: Scaling,
    groups: usize,
    group: Scaling,
) -> BlockFormat {
    BlockFormat { name, gguf_type: Some(gguf_type), values: 256, code, block, groups, group: Some(group) }
}

/// FP4 in groups with one float scale each.
const fn fp4(name: &'static str, values: usize, scale: Format) -> BlockFormat {
    let code = Code::Float(Format::F4E2M1);
    BlockFormat {
        name,
        gguf_type: None,
        values,
        code,
        block: scaled(Scale::Float(scale)),
        groups: 0,
        group: None,
    }
}

impl BlockFormat {
    /// Every block format that has a description: GGUF types by number, then FP4 groups.
    pub const ALL: &'static [BlockFormat] = &[
        simple("Q4_0", 2, unsigned(4, 8), scaled(HALF)),
        simple("Q4_1", 3, unsigned(4, 0), affine(HALF)),
        simple("Q5_0", 6, unsigned(5, 16), scaled(HALF)),
        simple("Q5_1", 7, unsigned(5, 0), affine(HALF)),
        simple("Q8_0", 8, Code::Signed { bits: 8 }, scaled(HALF)),
        k_quant("Q2_K", 10, unsigned(2, 0), affine(HALF), 16, affine(integer(4, 0))),
        k_quant("Q3_K", 11, unsigned(3, 4), scaled(HALF), 16, scaled(integer(6, 32))),
        k_quant("Q4_K", 12, unsigned(4, 0), affine(HALF), 8, affine(integer(6, 0))),
        k_quant("Q5_K", 13, unsigned(5, 0), affine(HALF), 8, affine(integer(6, 0))),
        k_quant(
            "Q6_K",
            14,
            unsigned(6, 32),
            scaled(HALF),
            16,
            scaled(Scale::Integer(Code::Signed { bits: 8 })),
        ),
        simple("MXFP4", 39, Code::Float(Format::F4E2M1), scaled(Scale::PowerOfTwo)),
        fp4("FP4_32_F16", 32, Format::F16),
        fp4("FP4_64_F16", 64, Format::F16),
        fp4("FP4_128_F16", 128, Format::F16),
        fp4("FP4_32_F32", 32, Format::F32),
        fp4("FP4_64_F32", 64, Format::F32),
        fp4("FP4_128_F32", 128, Format::F32),
    ];

    /// The format with a type number of GGUF.
    pub fn from_gguf_type(gguf_type: u32) -> Option<&'static BlockFormat> {
        BlockFormat::ALL.iter().find(|block| block.gguf_type == Some(gguf_type))
    }

    /// The format with a name, compared exactly.
    pub fn from_name(name: &str) -> Option<&'static BlockFormat> {
        BlockFormat::ALL.iter().find(|block| block.name == name)
    }

    /// Bytes of one block, scales included.
    pub const fn bytes(&self) -> usize {
        let group = match self.group {
            Some(group) => group.bits(),
            None => 0,
        };
        (self.values * self.code.bits() + self.block.bits() + self.groups * group) / 8
    }

    /// Bytes of `count` values; `None` unless they fill whole blocks and the bytes can be counted.
    pub const fn bytes_for(&self, count: usize) -> Option<usize> {
        if !count.is_multiple_of(self.values) {
            return None;
        }
        (count / self.values).checked_mul(self.bytes())
    }

    /// Bits a value, scales included.
    pub const fn bits_per_value(&self) -> f64 {
        (self.bytes() * 8) as f64 / self.values as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_the_sizes_of_ggml() {
        let rows = [
            ("Q4_0", 2, 32, 18),
            ("Q4_1", 3, 32, 20),
            ("Q5_0", 6, 32, 22),
            ("Q5_1", 7, 32, 24),
            ("Q8_0", 8, 32, 34),
            ("Q2_K", 10, 256, 84),
            ("Q3_K", 11, 256, 110),
            ("Q4_K", 12, 256, 144),
            ("Q5_K", 13, 256, 176),
            ("Q6_K", 14, 256, 210),
            ("MXFP4", 39, 32, 17),
        ];
        for (name, gguf_type, values, bytes) in rows {
            let block = BlockFormat::from_gguf_type(gguf_type).expect("a known type");
            assert_eq!((block.name, block.values, block.bytes()), (name, values, bytes));
            assert_eq!(BlockFormat::from_name(name), Some(block));
        }
        assert_eq!(BlockFormat::ALL.iter().filter(|block| block.gguf_type.is_some()).count(), rows.len());
        assert_eq!(BlockFormat::from_gguf_type(0), None);
    }

    #[test]
    fn bits_fill_whole_bytes_and_groups_fill_blocks() {
        for block in BlockFormat::ALL {
            let bits = block.values * block.code.bits()
                + block.block.bits()
                + block.groups * block.group.map_or(0, Scaling::bits);
            assert_eq!(bits, 8 * block.bytes(), "{}", block.name);
            assert_eq!(block.group.is_some(), block.groups > 0);
            assert!(block.groups == 0 || block.values.is_multiple_of(block.groups));
        }
    }

    #[test]
    fn bytes_of_fp4_groups_include_the_scale() {
        let bytes = |name| BlockFormat::from_name(name).expect("a known name").bytes_for(256);
        assert_eq!(bytes("FP4_32_F16"), Some(8 * 18));
        assert_eq!(bytes("FP4_64_F32"), Some(4 * 36));
        assert_eq!(bytes("FP4_128_F16"), Some(2 * 66));
        let mx = BlockFormat::from_name("MXFP4").expect("a known name");
        assert_eq!(mx.bits_per_value(), 4.25);
        assert_eq!(mx.bytes_for(33), None);
        assert_eq!(mx.bytes_for(0), Some(0));
        assert_eq!(mx.bytes_for(usize::MAX - 31), Some((usize::MAX / 32) * 17));
        let q8 = BlockFormat::from_name("Q8_0").expect("a known name");
        assert_eq!(q8.bytes_for(usize::MAX - 31), None);
    }
}
