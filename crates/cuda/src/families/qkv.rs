//! What follows the projection of queries, keys and values: `kernels/qkv.cu`, and with the projection itself
//! `kernels/product_small_qkv.cuh` for few rows, on Hopper `kernels/product_wgmma_qkv.cuh` for many.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::{self, Heads};
use mantissa_ops::program::RopeSpec;

use super::batch::BatchView;
use super::cache::{self, CacheLayer};
use super::products::{
    self, Capabilities, Epilogue, Preferences, Product, ProductArgs, Shape, SmallMatrix, Variant,
};
use super::wgmma;
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

/// The kernel for queries and a cache of these formats, and heads of `dim` values.
pub fn spec(activations: Format, cache: CacheFormat, dim: usize) -> KernelSpec {
    let mut aliases = cache::aliases(activations, cache);
    aliases.push(Alias::count("MINE", dim.div_ceil(32) as u32));
    KernelSpec { file: SourceFile::Qkv, entry: "qkv_epilogue", aliases }
}

/// The launch for `rows` rows: a warp for each query, key and value head.
pub fn launch_shape(heads: Heads, rows: usize) -> Launch {
    let vectors = heads.query + 2 * heads.key_value;
    Launch { grid: [rows as u32, vectors.div_ceil(WARPS) as u32, 1], block: 32 * WARPS as u32, shared: 0 }
}

/// Arguments of the projection that finishes its outputs itself; strides in values. The product's output are the queries, and
/// its features pairs for few rows, all outputs for many.
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

/// A projection that finishes its outputs itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Format of the weights.
    pub weights: Format,
    /// Format of the activations.
    pub activations: Format,
    /// Format of the cache.
    pub cache: CacheFormat,
    /// Heads.
    pub heads: Heads,
    /// Columns of the weights.
    pub columns: usize,
}

/// The kernel of a fused projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedVariant {
    /// For few rows.
    Few(SmallMatrix),
    /// For many rows on Hopper, with arguments that describe matrices for this tile.
    Many(wgmma::Tile),
}

/// Whether the projection can finish its outputs: pairs of whole heads rotate, and no number needs its head's others, as it
/// does for a norm or a scale of the cache.
pub fn can_fuse(op: &op::Qkv, rope: Option<&RopeSpec>, cache: CacheFormat) -> bool {
    let dim = op.heads.dim;
    let turned = rope.is_some_and(|rope| rope.rotary_dim == dim && dim.is_multiple_of(16));
    turned && op.head_norms.is_none() && cache.scales.is_none()
}

impl Fused {
    /// The product as a variant sees it, and its shape for a number of rows. For few rows it is like SwiGLU's: an output is of
    /// two rows of the weights, a pair.
    pub fn product(self, variant: FusedVariant, rows: usize) -> (Product, Shape) {
        match variant {
            FusedVariant::Few(_) => self.pairs(rows),
            FusedVariant::Many(_) => self.outputs(rows),
        }
    }

    fn pairs(self, rows: usize) -> (Product, Shape) {
        let (product, shape) = self.outputs(rows);
        let product = Product { epilogue: Epilogue::SwiGlu, ..product };
        (product, Shape { features: shape.features / 2, ..shape })
    }

    fn outputs(self, rows: usize) -> (Product, Shape) {
        let Fused { weights, activations, heads, columns, .. } = self;
        let features = (heads.query + 2 * heads.key_value) * heads.dim;
        (Product { weights, activations, epilogue: Epilogue::Plain }, Shape { rows, features, columns })
    }

    /// The kernel for a number of rows, where there is one.
    pub fn choose(self, rows: usize, device: Capabilities, preferences: Preferences) -> Option<FusedVariant> {
        let (product, shape) = self.pairs(rows);
        match products::choose(product, shape, device, preferences) {
            Variant::SmallMatrix(small) => Some(FusedVariant::Few(small)),
            // What it gathers in shared memory takes two bytes a number.
            Variant::Wgmma(_) if self.cache.format.bits() == 16 => {
                let (product, shape) = self.outputs(rows);
                wgmma::choose_qkv(product, shape, self.heads.dim, device).map(FusedVariant::Many)
            }
            Variant::Wgmma(_) | Variant::SmallFma { .. } | Variant::Gemm { .. } => None,
        }
    }

    /// The kernel.
    pub fn spec(self, variant: FusedVariant) -> KernelSpec {
        let (product, shape) = self.product(variant, 0);
        let (file, KernelSpec { mut aliases, entry, .. }) = match variant {
            FusedVariant::Few(small) => {
                let variant = Variant::SmallMatrix(small);
                (SourceFile::ProductMmaQkv, products::spec(product, variant, shape.columns))
            }
            FusedVariant::Many(tile) => (SourceFile::ProductWgmmaQkv, wgmma::spec(product, tile)),
        };
        let activations = Alias::format("A", product.activations);
        let of_cache = cache::aliases(product.activations, self.cache).into_iter();
        aliases.extend(of_cache.filter(|alias| *alias != activations));
        aliases.push(Alias::count("DIM", self.heads.dim as u32));
        KernelSpec { file, entry, aliases }
    }

    /// The launch for a number of rows.
    pub fn launch_shape(self, variant: FusedVariant, rows: usize, device: Capabilities) -> Launch {
        let (product, shape) = self.product(variant, rows);
        match variant {
            FusedVariant::Few(small) => {
                products::launch_shape(product, Variant::SmallMatrix(small), shape, device)
            }
            FusedVariant::Many(tile) => wgmma::qkv_launch(product, tile, shape, device),
        }
    }
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
