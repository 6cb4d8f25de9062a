//! What follows the projection of queries, keys and values: `kernels/qkv.cu`, and for few rows the projection itself,
//! `kernels/product_small_qkv.cuh`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::{self, Heads};
use mantissa_ops::program::RopeSpec;

use super::batch::BatchView;
use super::cache::{self, CacheLayer};
use super::products::{self, Epilogue, Product, ProductArgs, Shape, SmallMatrix, Variant};
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

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

/// Arguments of the projection that finishes its outputs itself; strides in values. The product's features are pairs, and its
/// output the queries.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct FusedArgs {
    pub product: ProductArgs,
    pub batch: BatchView,
    pub cache: CacheLayer,
    pub cos: u64,
    pub sin: u64,
    pub query_heads: u32,
    pub key_heads: u32,
    pub context: u32,
    pub unused: u32,
}

/// Whether the projection can finish its outputs: pairs of whole heads rotate, and no number needs its head's others, as it
/// does for a norm or a scale of the cache.
pub fn can_fuse(op: &op::Qkv, rope: Option<&RopeSpec>, cache: CacheFormat) -> bool {
    let dim = op.heads.dim;
    let turned = rope.is_some_and(|rope| rope.rotary_dim == dim && dim.is_multiple_of(16));
    turned && op.head_norms.is_none() && cache.scales.is_none()
}

/// The product of the fused projection: like SwiGLU's, an output is of two rows of the weights.
pub fn fused_product(weights: Format, activations: Format) -> Product {
    Product { weights, activations, epilogue: Epilogue::SwiGlu }
}

/// Its shape for `rows` rows and as many columns as the input has.
pub fn fused_shape(heads: Heads, rows: usize, columns: usize) -> Shape {
    Shape { rows, features: (heads.query + 2 * heads.key_value) * heads.dim / 2, columns }
}

/// The kernel of the fused projection.
pub fn fused_spec(
    product: Product,
    small: SmallMatrix,
    columns: usize,
    dim: usize,
    cache: CacheFormat,
) -> KernelSpec {
    let KernelSpec { mut aliases, entry, .. } = products::spec(product, Variant::SmallMatrix(small), columns);
    let activations = Alias::format("A", product.activations);
    aliases
        .extend(cache::aliases(product.activations, cache).into_iter().filter(|alias| *alias != activations));
    aliases.push(Alias::count("DIM", dim as u32));
    KernelSpec { file: SourceFile::ProductMmaQkv, entry, aliases }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_arguments_follow_those_of_the_product() {
        assert_eq!((size_of::<FusedArgs>(), align_of::<FusedArgs>()), (208, 8));
        assert_eq!(std::mem::offset_of!(FusedArgs, batch), size_of::<ProductArgs>());
        assert_eq!(std::mem::offset_of!(FusedArgs, cos), 176);
    }
}
