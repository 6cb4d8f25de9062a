//! Slices of activations with their format known at run time.

use half::{bf16, f16};
use mantissa_numerics::Format;

/// Bytes that are no slice of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElementsError {
    /// A format in which activations are not stored.
    #[error("activations cannot be {0}; they can be f32, f16, bf16")]
    Format(Format),
    /// A start or a length that is no multiple of the size of a value.
    #[error("{bytes} bytes at this address are no whole aligned values of {format}")]
    Misaligned {
        /// The format.
        format: Format,
        /// Bytes given.
        bytes: usize,
    },
}

/// Values to read.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each variant is the format that it holds")]
pub enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Values to write.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant is the format that it holds")]
pub enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

impl<'a> Elements<'a> {
    /// The values in `bytes`.
    ///
    /// # Errors
    /// [`ElementsError`] for another format, or bytes that are not aligned values.
    pub fn from_bytes(format: Format, bytes: &'a [u8]) -> Result<Elements<'a>, ElementsError> {
        let misaligned = |_| ElementsError::Misaligned { format, bytes: bytes.len() };
        match format {
            Format::F32 => bytemuck::try_cast_slice(bytes).map(Elements::F32).map_err(misaligned),
            Format::F16 => bytemuck::try_cast_slice(bytes).map(Elements::F16).map_err(misaligned),
            Format::Bf16 => bytemuck::try_cast_slice(bytes).map(Elements::Bf16).map_err(misaligned),
            _ => Err(ElementsError::Format(format)),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(values) => values.len(),
            Elements::F16(values) => values.len(),
            Elements::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their format.
    pub fn format(&self) -> Format {
        match self {
            Elements::F32(_) => Format::F32,
            Elements::F16(_) => Format::F16,
            Elements::Bf16(_) => Format::Bf16,
        }
    }
}

impl<'a> ElementsMut<'a> {
    /// The values in `bytes`.
    ///
    /// # Errors
    /// [`ElementsError`] for another format, or bytes that are not aligned values.
    pub fn from_bytes(format: Format, bytes: &'a mut [u8]) -> Result<ElementsMut<'a>, ElementsError> {
        let misaligned = ElementsError::Misaligned { format, bytes: bytes.len() };
        match format {
            Format::F32 => bytemuck::try_cast_slice_mut(bytes).map(ElementsMut::F32).map_err(|_| misaligned),
            Format::F16 => bytemuck::try_cast_slice_mut(bytes).map(ElementsMut::F16).map_err(|_| misaligned),
            Format::Bf16 => {
                bytemuck::try_cast_slice_mut(bytes).map(ElementsMut::Bf16).map_err(|_| misaligned)
            }
            _ => Err(ElementsError::Format(format)),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            ElementsMut::F32(values) => values.len(),
            ElementsMut::F16(values) => values.len(),
            ElementsMut::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their format.
    pub fn format(&self) -> Format {
        match self {
            ElementsMut::F32(_) => Format::F32,
            ElementsMut::F16(_) => Format::F16,
            ElementsMut::Bf16(_) => Format::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_values_of_their_format_only() {
        let mut bytes = [0_u32; 3];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
        for (format, count) in [(Format::F32, 3), (Format::F16, 6), (Format::Bf16, 6)] {
            let values = Elements::from_bytes(format, bytes).unwrap();
            assert_eq!((values.format(), values.len(), values.is_empty()), (format, count, false));
            let values = ElementsMut::from_bytes(format, bytes).unwrap();
            assert_eq!((values.format(), values.len(), values.is_empty()), (format, count, false));
        }
        let error = Elements::from_bytes(Format::F32, &bytes[1..5]).unwrap_err();
        assert_eq!(error, ElementsError::Misaligned { format: Format::F32, bytes: 4 });
        assert!(ElementsMut::from_bytes(Format::F16, &mut bytes[..3]).is_err());
        let error = Elements::from_bytes(Format::F8E4M3, bytes).unwrap_err();
        assert_eq!(error.to_string(), "activations cannot be f8e4m3; they can be f32, f16, bf16");
    }
}
