//! Token lookup: `kernels/embedding.cu`.

use mantissa_numerics::Format;

use super::batch::BatchView;
use super::rows_of_blocks;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Arguments of the kernel; strides in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub batch: BatchView,
    pub table: u64,
    pub out: u64,
    pub width: u32,
    pub table_stride: u32,
    pub out_stride: u32,
    pub unused: u32,
}

/// The kernel for a table and activations of these formats.
pub fn spec(table: Format, activations: Format) -> KernelSpec {
    let aliases = vec![Alias::format("W", table), Alias::format("A", activations)];
    KernelSpec { file: SourceFile::Embedding, entry: "embedding", aliases }
}

/// The launch for `rows` tokens of `width` values.
pub fn launch_shape(rows: usize, width: usize) -> Launch {
    rows_of_blocks(rows, width, 128 * 4, 128)
}
