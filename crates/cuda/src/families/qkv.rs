//! What follows the projection of queries, keys and values: `kernels/qkv.cu`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::Heads;

use super::batch::BatchView;
use super::cache::{self, CacheLayer};
use crate::kernel::{KernelSpec, Launch, SourceFile};

/// Values of a head, at most.
pub const MAX_DIM: usize = 256;

/// Warps of a block: heads that it finishes.
const WARPS: usize = 4;

/// Arguments of the kernel; strides in values. Null addresses stand for what there is not. Cosines and sines are f32,
/// `[set][context][pairs]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub batch: BatchView,
    pub cache: CacheLayer,
    pub products: u64,
    pub bias: u64,
    pub query_norm: u64,
    pub key_norm: u64,
    pub cos: u64,
    pub sin: u64,
    pub query: u64,
    pub product_stride: u32,
    pub query_stride: u32,
    pub query_heads: u32,
    pub key_heads: u32,
    pub dim: u32,
    pub pairs: u32,
    pub context: u32,
    pub eps: f32,
}

/// The kernel for queries and a cache of these formats.
pub fn spec(activations: Format, cache: CacheFormat) -> KernelSpec {
    KernelSpec { file: SourceFile::Qkv, entry: "qkv_epilogue", aliases: cache::aliases(activations, cache) }
}

/// The launch for `rows` rows: a warp for each query, key and value head.
pub fn launch_shape(heads: Heads, rows: usize) -> Launch {
    let vectors = heads.query + 2 * heads.key_value;
    Launch { grid: [rows as u32, vectors.div_ceil(WARPS) as u32, 1], block: 32 * WARPS as u32, shared: 0 }
}
