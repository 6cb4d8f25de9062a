//! Rotary position embedding on its own: `kernels/rope.cu`.

use mantissa_numerics::Format;

use super::batch::BatchView;
use super::rows_of_blocks;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Arguments of the kernel; strides in values. Cosines and sines are f32, `[set][context][pairs]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub batch: BatchView,
    pub input: u64,
    pub out: u64,
    pub cos: u64,
    pub sin: u64,
    pub width: u32,
    pub head_dim: u32,
    pub pairs: u32,
    pub context: u32,
    pub input_stride: u32,
    pub out_stride: u32,
}

/// The kernel for activations of a format.
pub fn spec(activations: Format) -> KernelSpec {
    let aliases = vec![Alias::format("A", activations)];
    KernelSpec { file: SourceFile::Rope, entry: "rope", aliases }
}

/// The launch for `rows` rows of `width` values.
pub fn launch_shape(rows: usize, width: usize) -> Launch {
    rows_of_blocks(rows, width, 128, 128)
}
