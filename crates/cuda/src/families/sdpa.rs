//! Materialised attention over values: `kernels/sdpa.cu`.

use mantissa_numerics::Format;
use mantissa_ops::op::Heads;

use super::batch::BatchView;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Arguments of the kernel; strides in values. `window` is [`super::cache::window`] of the mask.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub batch: BatchView,
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub out: u64,
    pub scores: u64,
    pub rows: u32,
    pub query_heads: u32,
    pub group: u32,
    pub dim: u32,
    pub query_stride: u32,
    pub key_stride: u32,
    pub value_stride: u32,
    pub out_stride: u32,
    pub score_stride: u32,
    pub window: u32,
    pub scale: f32,
    pub unused: u32,
}

/// The kernel for activations of a format.
pub fn spec(activations: Format) -> KernelSpec {
    let aliases = vec![Alias::format("A", activations)];
    KernelSpec { file: SourceFile::Sdpa, entry: "sdpa", aliases }
}

/// Blocks at most: each has scores of its own.
const BLOCKS: usize = 1024;

/// Floats of scores that batches of up to `rows` rows need; `score_stride` is `rows`.
pub fn scratch_floats(heads: Heads, rows: usize) -> usize {
    rows.saturating_mul(heads.query).min(BLOCKS).saturating_mul(rows)
}

/// The launch for `rows` rows.
pub fn launch_shape(heads: Heads, rows: usize) -> Launch {
    let blocks = rows.saturating_mul(heads.query).min(BLOCKS);
    Launch { grid: [blocks as u32, 1, 1], block: 256, shared: 0 }
}
