//! Products with weights: `kernels/product_*.cu`. Matmul, the projections of qkv, SwiGLU, both halves of the FFN, and
//! logits.
//!
//! Two formats decide the unit and with it the contract ([`compute`]); number of rows, shape and device only decide
//! the [`Variant`], which never changes a bit of the result.

mod small_matrix;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Compute, Merge, Order};

use super::wgmma;
use crate::compile::Arch;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};
use crate::preferences::preference;

pub use self::small_matrix::{Input, SmallMatrix};

/// Columns of a segment of the tensor-core products.
pub const SEGMENT: usize = 256;

/// Arguments of the kernels; strides in values. `wanted`, `bias` and `residual` may be null.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernels' file says what they are")]
pub struct ProductArgs {
    pub weights: u64,
    pub input: u64,
    pub wanted: u64,
    pub bias: u64,
    pub residual: u64,
    pub out: u64,
    pub weight_stride: u64,
    pub input_stride: u64,
    pub residual_stride: u64,
    pub out_stride: u64,
    pub features: u32,
    pub columns: u32,
    pub rows: u32,
    pub alpha: f32,
}

/// What becomes of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `alpha * sum + bias + residual`, rounded once to the format of activations.
    Store,
    /// `silu(gate) * up`, rounded once to the format of activations; the weights have two rows for each output.
    SwiGlu,
    /// Stored in f32: logits, and what the qkv epilogue goes on with.
    Plain,
}

/// What a product multiplies, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Format of the weights.
    pub weights: Format,
    /// Format of the activations.
    pub activations: Format,
    /// What becomes of the sums.
    pub epilogue: Epilogue,
}

/// The sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result: half the rows of the weights for SwiGLU, all of them otherwise.
    pub features: usize,
    /// Columns of the weights.
    pub columns: usize,
}

/// What the choice asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Compute capability.
    pub arch: Arch,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block can have.
    pub shared_per_block: u32,
}

preference! {
    /// Whose kernels a user wants.
    MatmulBackend: "matmul backend";
    /// Our own: they give one row the same bits in every batch.
    Auto = "auto",
    /// NVIDIA's library for more rows than the variants for few, where it multiplies the formats.
    CublasLt = "cublaslt",
    /// Our own.
    Own = "own",
}

preference! {
    /// Which kind of variant a user wants.
    VariantPreference: "matmul variant";
    /// By the number of rows.
    Auto = "auto",
    /// Always the one for few rows.
    SmallN = "smalln",
    /// Always the tiled one.
    Gemm = "gemm",
}

/// Preferences about products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preferences {
    /// Whose kernels.
    pub backend: MatmulBackend,
    /// The kind of variant.
    pub variant: VariantPreference,
    /// Most rows for which [`VariantPreference::Auto`] takes the variant for few rows; by the shape where none are given.
    pub small_n_max: Option<usize>,
}

impl Default for Preferences {
    fn default() -> Preferences {
        Preferences { backend: MatmulBackend::Auto, variant: VariantPreference::Auto, small_n_max: None }
    }
}

/// Rows of the result that one pass over the weights serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the numbers are the names")]
pub enum Bucket {
    One,
    Two,
    Four,
    Eight,
    Sixteen,
}

impl Bucket {
    /// Rows.
    pub const fn rows(self) -> u32 {
        match self {
            Bucket::One => 1,
            Bucket::Two => 2,
            Bucket::Four => 4,
            Bucket::Eight => 8,
            Bucket::Sixteen => 16,
        }
    }

    /// The smallest of `choices`, which ascend, that holds `rows`, or the last one.
    fn holding(rows: usize, choices: &[Bucket]) -> Bucket {
        let fits = choices.iter().find(|bucket| bucket.rows() as usize >= rows);
        fits.or(choices.last()).copied().unwrap_or(Bucket::Eight)
    }
}

/// A kernel that computes a product. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Weights stream once past up to a bucket of rows, on the matrix units.
    SmallMatrix(SmallMatrix),
    /// Weights stream once past up to a bucket of rows, on the FMA units.
    SmallFma {
        /// Rows of the result per pass.
        bucket: Bucket,
        /// Rows of the weights that a warp computes together.
        weight_rows: u32,
    },
    /// Square tiles through shared memory.
    Gemm {
        /// Side of a tile.
        tile: u32,
        /// Tiles of shared memory in flight; of no account for FMA.
        stages: u32,
    },
    /// Tiles that Hopper's copy engine brings to its asynchronous tensor cores. It has arguments of its own.
    Wgmma(wgmma::Tile),
}

/// The arithmetic unit of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Matrix,
    Fma,
}

impl Product {
    fn unit(self) -> Unit {
        match (self.weights, self.activations) {
            (Format::F16, Format::F16) | (Format::Bf16, Format::Bf16) => Unit::Matrix,
            _ => Unit::Fma,
        }
    }

    /// Rows of the weights for each output.
    pub(crate) const fn parts(self) -> u32 {
        match self.epilogue {
            Epilogue::SwiGlu => 2,
            Epilogue::Store | Epilogue::Plain => 1,
        }
    }
}

/// How products of these formats are formed and in which order they are added.
///
/// Matrix units: segments of [`SEGMENT`] columns, each in steps of sixteen neighbouring columns.
///
/// FMA: 32 chains over groups of as many columns as 16 bytes of a weight row hold, added ascending.
pub fn compute(weights: Format, activations: Format) -> (Compute, Order) {
    match (Product { weights, activations, epilogue: Epilogue::Plain }).unit() {
        Unit::Matrix => (Compute::MatrixUnits { depth: 16 }, Order::Segments { length: SEGMENT }),
        Unit::Fma => {
            let group = 128 / weights.bits() as usize;
            (Compute::F32Fma, Order::Lanes { lanes: 32, group, merge: Merge::Ascending })
        }
    }
}

/// The variant for a product of this shape on this device.
pub fn choose(product: Product, shape: Shape, device: Capabilities, preferences: Preferences) -> Variant {
    let small = match preferences.variant {
        VariantPreference::Auto => match preferences.small_n_max {
            Some(most) => shape.rows <= most,
            None => is_for_few(product, shape, device),
        },
        VariantPreference::SmallN => true,
        VariantPreference::Gemm => false,
    };
    let few = match (small, product.unit()) {
        (true, Unit::Matrix) => SmallMatrix::choose(product, shape, device).map(Variant::SmallMatrix),
        (true, Unit::Fma) => Some(small_fma(product, shape, device)),
        (false, _) => None,
    };
    few.unwrap_or_else(|| match product.unit() {
        Unit::Matrix if wgmma::serves(device) => Variant::Wgmma(wgmma::choose(product, shape, device)),
        Unit::Matrix | Unit::Fma => gemm(product, shape, device),
    })
}

/// Most rows for the variants for few where tiles have not been compared with them.
pub(super) const FEW: usize = 32;
/// The same on the FMA units, whose tiles go through the columns one after the other.
const FEW_BY_FMA: usize = 64;

/// Whether the variant for few rows is the faster one, as measured on an H200; docs/performance.md has the times.
fn is_for_few(product: Product, shape: Shape, device: Capabilities) -> bool {
    let rows = shape.rows;
    let pass = Bucket::Sixteen.rows() as usize;
    match product.unit() {
        Unit::Fma => rows <= FEW_BY_FMA,
        Unit::Matrix if !wgmma::serves(device) => rows <= FEW,
        Unit::Matrix if rows <= pass => true,
        // Nanoseconds: 4,000 and 300 a pass and megabyte of weights, against 2,400, 2.9 a column and 220 a megabyte.
        Unit::Matrix => {
            let kilobytes = product.parts() as usize * shape.features * shape.columns * 2 / 1000;
            let few = 1_600_000 + (300 * rows.div_ceil(pass) - 220) * kilobytes;
            few <= 2_900 * shape.columns
        }
    }
}

/// Every variant that products of up to `shape.rows` rows use: what is to be compiled before the first run.
pub fn variants(
    product: Product,
    shape: Shape,
    device: Capabilities,
    preferences: Preferences,
) -> Vec<Variant> {
    let mut all = Vec::new();
    for rows in 1..=shape.rows {
        let variant = choose(product, Shape { rows, ..shape }, device, preferences);
        if !all.contains(&variant) {
            all.push(variant);
        }
    }
    all
}

/// Whether rows of 16-bit values end within 16 bytes.
fn ragged(columns: usize) -> bool {
    !columns.is_multiple_of(8)
}

fn small_fma(product: Product, shape: Shape, device: Capabilities) -> Variant {
    let bucket = Bucket::holding(shape.rows, &[Bucket::One, Bucket::Two, Bucket::Four, Bucket::Eight]);
    // The more rows of the weights a warp has, the fewer times it reads an activation, and the fewer warps there are: the
    // most with which there are so many blocks for each multiprocessor. Measured on an H200; docs/performance.md has the times.
    let (most, least, blocks_each) = match (product.weights, bucket) {
        (Format::F32, Bucket::One) => (2, 1, 8),
        (Format::F32, Bucket::Two | Bucket::Four) => (2, 1, 2),
        (_, Bucket::One) => (2, 1, 1),
        (_, Bucket::Two | Bucket::Four | Bucket::Eight | Bucket::Sixteen) => (4, 2, 1),
    };
    let with = |weight_rows| Variant::SmallFma { bucket, weight_rows };
    let [features, passes, _] = launch_shape(product, with(most), shape, device).grid;
    let chosen = if features * passes >= blocks_each * device.multiprocessors { most } else { least };
    // An output needs all of its parts.
    with(chosen.max(product.parts()))
}

fn gemm(product: Product, shape: Shape, device: Capabilities) -> Variant {
    let tiles =
        |side: usize| shape.features.div_ceil(side / product.parts() as usize) * shape.rows.div_ceil(side);
    let tile = if tiles(128) >= device.multiprocessors as usize { 128 } else { 64 };
    let stages = if tile == 64 || device.shared_per_block >= 4 * stage_bytes(tile) { 4 } else { 3 };
    Variant::Gemm { tile, stages }
}

/// Bytes of one stage of the tensor-core tiles: 64 columns of both operands.
const fn stage_bytes(tile: u32) -> u32 {
    2 * tile * 64 * 2
}

/// Warps of a block of the FMA kernel for few rows.
const FMA_WARPS: u32 = 4;

/// The aliases of `product.cuh` for products over `columns` columns.
pub(super) fn aliases(product: Product, columns: usize) -> Vec<Alias> {
    let epilogue = match product.epilogue {
        Epilogue::Store => 0,
        Epilogue::SwiGlu => 1,
        Epilogue::Plain => 2,
    };
    vec![
        Alias::format("W", product.weights),
        Alias::format("A", product.activations),
        Alias::count("EPILOGUE", epilogue),
        Alias::count("RAGGED", u32::from(ragged(columns))),
    ]
}

/// The kernel of a variant for products over `columns` columns.
pub fn spec(product: Product, variant: Variant, columns: usize) -> KernelSpec {
    let mut aliases = aliases(product, columns);
    let mut count = |name, count| aliases.push(Alias::count(name, count));
    let (file, entry) = match (variant, product.unit()) {
        (Variant::SmallMatrix(small), _) => {
            small.aliases().into_iter().for_each(|(name, value)| count(name, value));
            (SourceFile::ProductMmaSmall, "product_small")
        }
        (Variant::SmallFma { bucket, weight_rows }, _) => {
            count("ROWS", weight_rows);
            count("TOKENS", bucket.rows());
            count("WARPS", FMA_WARPS);
            (SourceFile::ProductFmaSmall, "product_small")
        }
        (Variant::Gemm { tile, stages }, Unit::Matrix) => {
            count("FEATURE_TILE", tile);
            count("TOKEN_TILE", tile);
            count("WARP_FEATURES", tile / 2);
            count("WARP_TOKENS", 32);
            count("STAGES", stages);
            (SourceFile::ProductMmaGemm, "product_gemm")
        }
        (Variant::Gemm { tile, .. }, Unit::Fma) => {
            count("TILE", tile);
            (SourceFile::ProductFmaGemm, "product_gemm")
        }
        (Variant::Wgmma(tile), _) => return wgmma::spec(product, tile),
    };
    KernelSpec { file, entry, aliases }
}

/// The launch of a variant. A shape without rows has a grid without blocks.
pub fn launch_shape(product: Product, variant: Variant, shape: Shape, device: Capabilities) -> Launch {
    let blocks = |values: usize, each: u32| values.div_ceil(each as usize) as u32;
    let parts = product.parts();
    match (variant, product.unit()) {
        (Variant::SmallMatrix(small), _) => small.launch_shape(product, shape, device),
        (Variant::SmallFma { bucket, weight_rows }, _) => {
            let features = FMA_WARPS * weight_rows / parts;
            let grid = [blocks(shape.features, features), blocks(shape.rows, bucket.rows()), 1];
            Launch { grid, block: FMA_WARPS * 32, shared: 0 }
        }
        (Variant::Gemm { tile, stages }, unit) => {
            let grid = [blocks(shape.rows, tile), blocks(shape.features, tile / parts), 1];
            match unit {
                // Warps of `tile / 2` by 32.
                Unit::Matrix => {
                    Launch { grid, block: tile / 32 * 2 * 32, shared: stages * stage_bytes(tile) }
                }
                Unit::Fma => Launch { grid, block: 256, shared: 0 },
            }
        }
        (Variant::Wgmma(tile), _) => wgmma::launch_shape(product, tile, shape, device),
    }
}

#[cfg(test)]
mod tests;
