//! Views: bytes with the storage format, shape and strides that give them meaning.

use mantissa_numerics::Format;

/// How a session keeps a weight of `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Row after row, of so many values each; those beyond the columns are padding.
    Rows {
        /// Values between the beginnings of two rows.
        stride: usize,
    },
    /// So many rows side by side for each column, panel after panel.
    Panels {
        /// Rows of a panel.
        rows: usize,
    },
}

/// A read-only strided view of stored numbers. The format travels with the bytes; nothing reads them as another.
#[derive(Clone, Debug, PartialEq)]
pub struct View<'a> {
    format: Format,
    shape: Vec<usize>,
    strides: Vec<usize>,
    bytes: &'a [u8],
}

/// A view that cannot be formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Shape and format ask for another number of bytes.
    #[error("shape {shape:?} of {format} needs {wanted} bytes, but {got} are there")]
    Length {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The format asked for.
        format: Format,
        /// Bytes needed.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
    /// The number of bytes does not fit the address space, or the format has no whole number of bytes a value.
    #[error("shape {shape:?} of {format} has no size in bytes on this machine")]
    Size {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The format asked for.
        format: Format,
    },
    /// A range beyond the dimension.
    #[error("rows {start}..{end} of a view with {rows} rows")]
    Rows {
        /// First row.
        start: usize,
        /// One past the last row.
        end: usize,
        /// Rows of the view.
        rows: usize,
    },
}

/// Bytes of `shape` values of a format of whole bytes, or nothing where that overflows.
pub fn byte_length(format: Format, shape: &[usize]) -> Option<usize> {
    if !format.bits().is_multiple_of(8) {
        return None;
    }
    shape.iter().try_fold(format.bits() as usize / 8, |product, &dim| product.checked_mul(dim))
}

impl<'a> View<'a> {
    /// A row-major view without gaps.
    ///
    /// # Errors
    /// [`ViewError::Length`] and [`ViewError::Size`] where the bytes are not exactly those of the shape.
    pub fn contiguous(format: Format, shape: &[usize], bytes: &'a [u8]) -> Result<View<'a>, ViewError> {
        let Some(wanted) = byte_length(format, shape) else {
            return Err(ViewError::Size { shape: shape.to_vec(), format });
        };
        if wanted != bytes.len() {
            return Err(ViewError::Length { shape: shape.to_vec(), format, wanted, got: bytes.len() });
        }
        let mut strides = vec![1_usize; shape.len()];
        for axis in (1..shape.len()).rev() {
            // Only a shape without values can have strides beyond the address space; nothing is read through them.
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
        }
        Ok(View { format, shape: shape.to_vec(), strides, bytes })
    }

    /// Storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Distance between neighbours along each dimension, in values.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the view holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the values lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dim != 1 && stride != expected {
                return false;
            }
            expected *= dim;
        }
        true
    }

    /// The bytes, where the view is contiguous.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        self.is_contiguous().then_some(self.bytes)
    }

    /// The view with its last two dimensions exchanged; no value moves.
    pub fn transposed(mut self) -> View<'a> {
        let rank = self.shape.len();
        if rank >= 2 {
            self.shape.swap(rank - 1, rank - 2);
            self.strides.swap(rank - 1, rank - 2);
        }
        self
    }

    /// Rows `start..end` of the first dimension of a contiguous view.
    ///
    /// # Errors
    /// [`ViewError::Rows`] where the range lies outside or the view is not contiguous.
    pub fn rows(&self, start: usize, end: usize) -> Result<View<'a>, ViewError> {
        let rows = self.shape.first().copied().unwrap_or(0);
        if start > end || end > rows || !self.is_contiguous() {
            return Err(ViewError::Rows { start, end, rows });
        }
        let row_bytes = self.bytes.len().checked_div(rows).unwrap_or(0);
        let mut shape = self.shape.clone();
        shape[0] = end - start;
        View::contiguous(self.format, &shape, &self.bytes[start * row_bytes..end * row_bytes])
    }

    /// Byte offset of the value at `index`, or nothing where the index lies outside.
    pub fn offset(&self, index: &[usize]) -> Option<usize> {
        if index.len() != self.shape.len() || index.iter().zip(&self.shape).any(|(i, dim)| i >= dim) {
            return None;
        }
        let values: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
        Some(values * (self.format.bits() as usize / 8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_exactly_as_long_as_its_shape() {
        let bytes = [0_u8; 24];
        assert!(View::contiguous(Format::F32, &[2, 3], &bytes).is_ok());
        let error = View::contiguous(Format::F16, &[2, 3], &bytes).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 3] of f16 needs 12 bytes, but 24 are there");
        assert!(matches!(
            View::contiguous(Format::F32, &[usize::MAX, 3], &bytes),
            Err(ViewError::Size { .. })
        ));
    }

    #[test]
    fn a_transpose_moves_nothing() {
        let bytes: Vec<u8> = (0..12).collect();
        let view = View::contiguous(Format::F16, &[2, 3], &bytes).unwrap();
        let turned = view.clone().transposed();
        assert_eq!(turned.shape(), &[3, 2]);
        assert!(!turned.is_contiguous());
        assert_eq!(turned.offset(&[2, 1]), view.offset(&[1, 2]));
        assert_eq!(turned.offset(&[0, 2]), None);
        assert_eq!(view.rows(1, 2).unwrap().as_bytes(), Some(&bytes[6..]));
    }
}
