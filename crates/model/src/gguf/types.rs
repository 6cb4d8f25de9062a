//! Tensor types of ggml: ids, names and block sizes, as `ggml.h` and `gguf-py` number them.

use mantissa_numerics::Format;

/// How ggml stores the values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    id: u32,
    name: &'static str,
    block_values: u64,
    block_bytes: u64,
}

/// `(id, name, values of a block, bytes of a block)`. Ids that are left out were removed from ggml.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

impl GgmlType {
    /// The type that ggml numbers `id`, or nothing where the id is unknown or was removed.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        let &(id, name, block_values, block_bytes) = TYPES.iter().find(|row| row.0 == id)?;
        Some(GgmlType { id, name, block_values, block_bytes })
    }

    /// The number in the file.
    pub fn id(self) -> u32 {
        self.id
    }

    /// The name that ggml's tools print, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Consecutive values of a row that are stored together; 1 for plain numbers.
    pub fn block_values(self) -> u64 {
        self.block_values
    }

    /// Bytes of one such block.
    pub fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// The scalar format, where the values are plain floating-point numbers that Mantissa reads.
    pub fn format(self) -> Option<Format> {
        match self.name {
            "F32" => Some(Format::F32),
            "F16" => Some(Format::F16),
            "BF16" => Some(Format::Bf16),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_round_trip() {
        for &(id, name, _, _) in TYPES {
            let found = GgmlType::from_id(id).expect("listed");
            assert_eq!((found.id(), found.name()), (id, name));
        }
        assert_eq!(GgmlType::from_id(4), None);
        assert_eq!(GgmlType::from_id(u32::MAX), None);
    }

    #[test]
    fn scalar_formats_have_the_size_of_their_block() {
        for &(id, ..) in TYPES {
            let found = GgmlType::from_id(id).expect("listed");
            if let Some(format) = found.format() {
                assert_eq!(found.block_values(), 1);
                assert_eq!(found.block_bytes() * 8, u64::from(format.bits()));
            }
        }
        assert_eq!(GgmlType::from_id(30).and_then(GgmlType::format), Some(Format::Bf16));
    }
}
