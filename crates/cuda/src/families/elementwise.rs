//! Sums of activations: `kernels/elementwise.cu`.

use mantissa_numerics::Format;

use super::rows_of_blocks;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Arguments of the kernel; strides in values. The sum may replace a summand.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub left: u64,
    pub right: u64,
    pub out: u64,
    pub width: u32,
    pub left_stride: u32,
    pub right_stride: u32,
    pub out_stride: u32,
}

/// The kernel for activations of a format.
pub fn spec(activations: Format) -> KernelSpec {
    let aliases = vec![Alias::format("A", activations)];
    KernelSpec { file: SourceFile::Elementwise, entry: "add", aliases }
}

/// The launch for `rows` rows of `width` values.
pub fn launch_shape(rows: usize, width: usize) -> Launch {
    rows_of_blocks(rows, width, 128 * 4, 128)
}
