//! Descriptions of matrices in device memory for the copy engine of Hopper and later GPUs.

use std::ptr;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUtensorMapL2promotion as Fetch};

use crate::device::driver_error;
use crate::error::CudaError;

/// What the copy engine knows of a matrix: where it is, and the boxes in which it is copied to and from shared memory.
/// A kernel takes it within its parameter.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TensorMap {
    words: [u64; 16],
}

/// A matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// A multiple of 16.
    pub address: u64,
    /// Rows.
    pub rows: usize,
    /// Values of a row; those beyond the last are read as zero and not written.
    pub columns: usize,
    /// Bytes from one row to the next: a multiple of 16.
    pub stride: usize,
    /// Bytes of a value: one, two or four.
    pub value_bytes: usize,
}

/// What one copy moves. Shared memory holds its rows one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyBox {
    /// Rows, at most 256.
    pub rows: usize,
    /// Bytes of a row.
    pub width: BoxWidth,
}

/// Bytes of a box's row. Packs of 16 bytes may be permuted such that eight rows of one column of packs lie in different
/// banks of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxWidth {
    /// Pack `p` of row `r` lies at `p ^ (r / 2 % 4)`.
    Bytes64,
    /// Pack `p` of row `r` lies at `p ^ (r % 8)`.
    Bytes128,
    /// So many, a multiple of 16, of at most 256 values; not permuted.
    Plain(usize),
}

impl BoxWidth {
    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            BoxWidth::Bytes64 => 64,
            BoxWidth::Bytes128 => 128,
            BoxWidth::Plain(bytes) => bytes,
        }
    }
}

impl TensorMap {
    /// In the place of a matrix that is not there. No kernel may use it.
    pub const NONE: TensorMap = TensorMap { words: [0; 16] };

    /// Describes a matrix of bit patterns: the copy engine does no arithmetic with them.
    ///
    /// # Errors
    /// Where the driver refuses the sizes, or knows no tensor maps.
    pub fn new(matrix: Matrix, piece: CopyBox) -> Result<TensorMap, CudaError> {
        let sizes = [matrix.columns as u64, matrix.rows as u64];
        let lengths = [(piece.width.bytes() / matrix.value_bytes) as u32, piece.rows as u32];
        let fetch = Fetch::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
        encode(matrix, Dimensions { sizes, strides: [matrix.stride as u64], lengths, fetch }, piece.width)
    }

    /// Describes a matrix whose rows are those of heads: a copy moves `piece.rows` rows from a place in the first half of a head
    /// on, and behind them as many from the same place in its second half on.
    ///
    /// # Errors
    /// As [`TensorMap::new`].
    pub fn of_halves(matrix: Matrix, piece: CopyBox, head: usize) -> Result<TensorMap, CudaError> {
        let sizes = [matrix.columns, head / 2, 2, matrix.rows / head].map(|size| size as u64);
        let strides = [1, head / 2, head].map(|rows| (rows * matrix.stride) as u64);
        let lengths = [(piece.width.bytes() / matrix.value_bytes) as u32, piece.rows as u32, 2, 1];
        let fetch = Fetch::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
        encode(matrix, Dimensions { sizes, strides, lengths, fetch }, piece.width)
    }

    /// Describes a matrix whose columns are cut into panels of `piece.width`, a whole number of them: a copy moves `panels`
    /// panels of `piece.rows` rows, one after another. Neighbouring panels are copied together, so that memory is fetched in
    /// larger pieces.
    ///
    /// # Errors
    /// As [`TensorMap::new`].
    pub fn of_panels(matrix: Matrix, piece: CopyBox, panels: usize) -> Result<TensorMap, CudaError> {
        let width = piece.width.bytes() / matrix.value_bytes;
        let sizes = [width as u64, matrix.rows as u64, (matrix.columns / width) as u64];
        let strides = [matrix.stride as u64, piece.width.bytes() as u64];
        let lengths = [width as u32, piece.rows as u32, panels as u32];
        let fetch = Fetch::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        encode(matrix, Dimensions { sizes, strides, lengths, fetch }, piece.width)
    }
}

/// Values along each dimension, bytes from one to the next along all but the first, values of a box, and the bytes that are
/// fetched from memory together.
struct Dimensions<const DIMS: usize, const STRIDES: usize> {
    sizes: [u64; DIMS],
    strides: [u64; STRIDES],
    lengths: [u32; DIMS],
    fetch: Fetch,
}

fn encode<const DIMS: usize, const STRIDES: usize>(
    matrix: Matrix,
    dimensions: Dimensions<DIMS, STRIDES>,
    width: BoxWidth,
) -> Result<TensorMap, CudaError> {
    const { assert!(STRIDES + 1 == DIMS, "values of a row follow one another") };
    let format = match matrix.value_bytes {
        1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
    };
    let swizzle = match width {
        BoxWidth::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        BoxWidth::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        BoxWidth::Plain(_) => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let steps = [1; DIMS];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the map is written and the arrays are read before this returns, as many numbers of each as there are
    // dimensions and one less of the strides; the matrix is not looked at.
    let made = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            format,
            DIMS as u32,
            ptr::with_exposed_provenance_mut(matrix.address as usize),
            dimensions.sizes.as_ptr(),
            dimensions.strides.as_ptr(),
            dimensions.lengths.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            dimensions.fetch,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match made {
        sys::CUresult::CUDA_SUCCESS => Ok(TensorMap { words: map.opaque }),
        error => Err(driver_error("describing a matrix to the copy engine", DriverError(error))),
    }
}
