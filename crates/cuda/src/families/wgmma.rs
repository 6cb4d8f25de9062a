//! Tensor-core products of many rows on Hopper: `kernels/product_wgmma.cu`. The projection of queries, keys and values with
//! what follows it is one of them ([`qkv_args`]).
//!
//! Same order of sums as the other tensor-core products, so that the choice between them never shows. `wgmma` exists on
//! compute capability 9.0 alone.

use super::products::{self, Capabilities, Epilogue, Product, ProductArgs, Shape};
use super::qkv::FusedArgs;
use crate::compile::Arch;
use crate::error::CudaError;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};
use crate::tensor_map::{BoxWidth, CopyBox, Matrix, TensorMap};

/// Columns of a stage.
const DEPTH: usize = 64;
/// Rows of the input that a warpgroup multiplies.
const GROUP_ROWS: usize = 64;
/// Bytes of a barrier.
const BARRIER: usize = 8;

/// Arguments of the kernel. `product` says again what the maps do not; its `wanted` is null.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub weights: TensorMap,
    pub input: TensorMap,
    pub residual: TensorMap,
    pub out: TensorMap,
    pub product: ProductArgs,
}

/// Arguments of the kernel that finishes the projection of queries, keys and values.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct QkvArgs {
    pub weights: TensorMap,
    pub input: TensorMap,
    pub fused: FusedArgs,
}

/// What a block computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Warpgroups, each with 64 rows of the input.
    pub groups: u32,
    /// Rows of the weights.
    pub weight_rows: u32,
    /// Stages of shared memory in flight: as many as there is room for.
    pub stages: u32,
    /// Blocks of a cluster, which copy an operand for each other, weights or a lone tile's input: one or two.
    pub cluster: u32,
    /// Whether it is the only one of its block, which has room for the sums of two segments then.
    pub lone: bool,
}

/// What half a tile takes of the time of a whole one, in percent: one warpgroup multiplies, and all weights are copied.
const HALF_PERCENT: usize = 70;
/// What the widest tiles take more, in percent, where residuals are brought to them: few registers are left for these.
const RESIDUAL_PERCENT: usize = 7;
/// Rows of the weights from which on a tile is one of the widest.
const WIDEST: u32 = 160;

/// Stages of each multiprocessor from which on clusters of two blocks are faster: they start later, and read the L2 less.
const CLUSTERED_STAGES: usize = 128;

/// Rows of the weights up to which a third set of sums fits registers.
const MOST_LONE: u32 = 128;
/// Stages from which on tiles that are their blocks' only ones are faster as such, by clusters of two.
const LONE_STAGES: usize = 64;

/// A tile to choose, whatever there is room for in shared memory.
#[derive(Clone, Copy, Debug)]
struct Size {
    groups: u32,
    weight_rows: u32,
    /// What an H200 takes for a stage of it when all multiprocessors are at work.
    nanoseconds: usize,
}

/// The larger a tile is, the less it reads of shared memory for each product; the sums of larger ones do not fit registers.
/// Widths between powers of two are for products whose outputs they divide among all multiprocessors.
const SIZES: [Size; 6] = [
    Size { groups: 2, weight_rows: 192, nanoseconds: 580 },
    Size { groups: 2, weight_rows: 160, nanoseconds: 495 },
    Size { groups: 2, weight_rows: 128, nanoseconds: 410 },
    Size { groups: 2, weight_rows: 112, nanoseconds: 385 },
    Size { groups: 1, weight_rows: 128, nanoseconds: 235 },
    Size { groups: 1, weight_rows: 64, nanoseconds: 175 },
];

/// One more for projections whose outputs the kernel finishes, of eights of pairs, so that it may begin in the middle of a head:
/// 1,152 outputs of 2,048 rows are 128 of it for 132 multiprocessors, and 96 of the next wider one.
const EIGHTS: Size = Size { groups: 2, weight_rows: 144, nanoseconds: 445 };
/// Values of the heads for which it is.
const EIGHTS_DIM: usize = 64;
/// Rows of a half head that are copied together then.
const EIGHT: usize = 8;

impl Tile {
    /// Rows of the input.
    pub const fn rows(self) -> usize {
        self.groups as usize * GROUP_ROWS
    }

    /// Outputs for each row of the input.
    pub(crate) const fn features(self, product: Product) -> usize {
        (self.weight_rows / product.parts()) as usize
    }

    fn tiles(self, product: Product, shape: Shape) -> usize {
        shape.rows.div_ceil(self.rows()) * shape.features.div_ceil(self.features(product))
    }

    /// Rows of the boxes in which weights are copied: gates and ups each for itself, and by each block of a cluster its own.
    const fn weight_box(self, product: Product) -> usize {
        let boxes = if product.parts() == 2 || self.cluster == 2 && !self.lone { 2 } else { 1 };
        self.weight_rows as usize / boxes
    }

    /// The boxes in which a warpgroup stores its outputs, and how many it stores at a time.
    const fn boxes(self, product: Product) -> (BoxWidth, usize) {
        let bytes = self.features(product) * out_bytes(product) / rounds(product);
        let width = match bytes {
            _ if bytes.is_multiple_of(128) => BoxWidth::Bytes128,
            _ if bytes.is_multiple_of(64) => BoxWidth::Bytes64,
            _ => BoxWidth::Plain(bytes),
        };
        (width, bytes / width.bytes())
    }

    /// Bytes of shared memory: stages and their barriers.
    fn stage_bytes(self) -> usize {
        self.stages as usize * ((self.rows() + self.weight_rows as usize) * DEPTH * 2 + 2 * BARRIER)
    }

    /// With outputs and the barriers of residuals.
    fn shared(self, product: Product) -> usize {
        let (width, boxes) = self.boxes(product);
        self.stage_bytes() + self.groups as usize * (boxes * GROUP_ROWS * width.bytes() + BARRIER)
    }

    /// With what the end of the projection keeps: outputs, whose rows are padded by 16 bytes, two words for each row, a bias
    /// for each output, and two barriers.
    fn qkv_shared(self) -> usize {
        let features = self.weight_rows as usize;
        self.stage_bytes() + self.rows() * (features * 2 + 16 + 8) + features * 4 + 2 * BARRIER
    }

    /// A warpgroup beside those that multiply has the warps that copy.
    const fn threads(self) -> u32 {
        (self.groups + 1) * 128
    }
}

const fn out_bytes(product: Product) -> usize {
    match product.epilogue {
        Epilogue::Store | Epilogue::SwiGlu => 2,
        Epilogue::Plain => 4,
    }
}

/// How many times a warpgroup stores outputs of a tile: sums in f32 go in two halves.
const fn rounds(product: Product) -> usize {
    match product.epilogue {
        Epilogue::Store | Epilogue::SwiGlu => 1,
        Epilogue::Plain => 2,
    }
}

/// Whether a device has the instructions.
pub(super) fn serves(device: Capabilities) -> bool {
    device.arch == Arch { major: 9, minor: 0 }
}

/// Tiles that are left when all multiprocessors have as many, and how they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Whole(usize),
    /// In halves, of one warpgroup each.
    Halved(usize),
}

impl Left {
    fn of(tiles: usize, tile: Tile, device: Capabilities) -> Left {
        let multiprocessors = device.multiprocessors as usize;
        match tiles % multiprocessors {
            left if tile.groups == 2 && 2 * left <= multiprocessors => Left::Halved(left),
            left => Left::Whole(left),
        }
    }
}

impl Size {
    const fn tile(self, stages: u32) -> Tile {
        Tile { groups: self.groups, weight_rows: self.weight_rows, stages, cluster: 1, lone: false }
    }

    /// Blocks of a cluster: two where there are pairs of tiles with the same weights and enough to do for each.
    fn cluster(self, product: Product, shape: Shape, device: Capabilities) -> u32 {
        let tile = self.tile(0);
        let multiprocessors = device.multiprocessors as usize;
        let pairs = shape.rows.div_ceil(tile.rows()).is_multiple_of(2) && multiprocessors.is_multiple_of(2);
        let stages = tile.tiles(product, shape) / multiprocessors * shape.columns.div_ceil(DEPTH);
        if tile.groups == 2 && pairs && stages >= CLUSTERED_STAGES { 2 } else { 1 }
    }

    /// Whether blocks have one long tile each, with pairs that have the same input.
    fn is_lone(self, product: Product, shape: Shape, device: Capabilities) -> bool {
        let tile = self.tile(0);
        let pairs = shape.features.div_ceil(tile.features(product)).is_multiple_of(2);
        let long = shape.columns.div_ceil(DEPTH) >= LONE_STAGES;
        let room = tile.groups == 2 && tile.weight_rows <= MOST_LONE && product.epilogue == Epilogue::Store;
        self.is_one_each(product, shape, device) && pairs && long && room
    }

    /// Whether blocks have one whole tile each.
    fn is_one_each(self, product: Product, shape: Shape, device: Capabilities) -> bool {
        let tile = self.tile(0);
        let tiles = tile.tiles(product, shape);
        tiles <= device.multiprocessors as usize && Left::of(tiles, tile, device) == Left::Whole(tiles)
    }

    /// The tile with as many stages as there is room for, where `shared` says how much shared memory a tile takes. Two fit
    /// every device that has the instructions.
    fn staged(self, device: Capabilities, shared: impl Fn(Tile) -> usize) -> Tile {
        let fits = |stages: &u32| shared(self.tile(*stages)) <= device.shared_per_block as usize;
        self.tile((3..).take_while(fits).last().unwrap_or(2))
    }

    /// Whether stages of a segment share the pairs of whole heads evenly.
    fn turns(self, dim: usize) -> bool {
        let rows = self.weight_rows as usize;
        rows.is_multiple_of(dim) && rows.is_multiple_of(DEPTH)
    }

    /// The expected time of a product: that of a stage, for as many tiles as one multiprocessor gets.
    fn time(self, product: Product, shape: Shape, device: Capabilities) -> usize {
        let nanoseconds = match product.epilogue {
            Epilogue::Store if self.weight_rows >= WIDEST => {
                self.nanoseconds * (100 + RESIDUAL_PERCENT) / 100
            }
            Epilogue::Store | Epilogue::SwiGlu | Epilogue::Plain => self.nanoseconds,
        };
        let tile = self.tile(0);
        let tiles = tile.tiles(product, shape);
        let rounds = tiles / device.multiprocessors as usize;
        let last = match Left::of(tiles, tile, device) {
            Left::Whole(0) | Left::Halved(0) => 0,
            Left::Whole(_) => nanoseconds,
            Left::Halved(_) => nanoseconds * HALF_PERCENT / 100,
        };
        rounds * nanoseconds + last
    }
}

/// The tile that is expected to take the least time.
pub(super) fn choose(product: Product, shape: Shape, device: Capabilities) -> Tile {
    let [first, others @ ..] = SIZES;
    let time = |size: Size| size.time(product, shape, device);
    let quickest =
        others.into_iter().fold(first, |best, other| if time(other) < time(best) { other } else { best });
    let lone = quickest.is_lone(product, shape, device);
    let cluster = if lone { 2 } else { quickest.cluster(product, shape, device) };
    Tile { cluster, lone, ..quickest.staged(device, |tile| tile.shared(product)) }
}

/// The tile for a projection of queries, keys and values whose outputs the kernel finishes, if one is of whole heads; one of
/// eights of pairs where that is faster for blocks with one tile each.
pub fn choose_qkv(product: Product, shape: Shape, dim: usize, device: Capabilities) -> Option<Tile> {
    let whole = SIZES.into_iter().filter(|size| size.turns(dim));
    let eights = EIGHTS.is_one_each(product, shape, device) && dim == EIGHTS_DIM;
    let all = whole.chain(eights.then_some(EIGHTS));
    let quickest = all.min_by_key(|size| size.time(product, shape, device));
    quickest.filter(|_| serves(device)).map(|size| {
        let cluster = size.cluster(product, shape, device);
        Tile { cluster, ..size.staged(device, Tile::qkv_shared) }
    })
}

/// The kernel of a tile.
pub fn spec(product: Product, tile: Tile) -> KernelSpec {
    // The copy engine sees to the ends of rows.
    let mut aliases = products::aliases(product, DEPTH);
    aliases.extend([
        Alias::count("GROUPS", tile.groups),
        Alias::count("WEIGHT_ROWS", tile.weight_rows),
        Alias::count("STAGES", tile.stages),
        Alias::count("CLUSTER", tile.cluster),
        Alias::count("LONE", tile.lone.into()),
    ]);
    let entry = if tile.cluster == 1 { "product_wgmma" } else { "product_wgmma_clusters" };
    KernelSpec { file: SourceFile::ProductWgmma, entry, aliases }
}

/// The launch: one block on each multiprocessor, which computes one tile after another, and for fewer tiles one for each of
/// them or of their halves.
pub fn launch_shape(product: Product, tile: Tile, shape: Shape, device: Capabilities) -> Launch {
    let tiles = tile.tiles(product, shape);
    let blocks = match Left::of(tiles, tile, device) {
        Left::Halved(left) if left == tiles => 2 * tiles,
        _ => tiles.min(device.multiprocessors as usize),
    };
    Launch { grid: [blocks as u32, 1, 1], block: tile.threads(), shared: tile.shared(product) as u32 }
}

/// That of a projection whose outputs the kernel finishes.
pub(crate) fn qkv_launch(product: Product, tile: Tile, shape: Shape, device: Capabilities) -> Launch {
    Launch { shared: tile.qkv_shared() as u32, ..launch_shape(product, tile, shape, device) }
}

/// The arguments for those that the other kernels take.
///
/// # Errors
/// Where the driver cannot describe the matrices.
pub fn args(product: Product, tile: Tile, args: &ProductArgs) -> Result<Args, CudaError> {
    let (rows, columns) = (args.rows as usize, args.features as usize);
    let result = |address, stride: u64| {
        let value_bytes = out_bytes(product);
        Matrix { address, rows, columns, stride: stride as usize * value_bytes, value_bytes }
    };
    let stored = CopyBox { rows: GROUP_ROWS, width: tile.boxes(product).0 };
    let residual = match args.residual {
        0 => TensorMap::NONE,
        address => TensorMap::new(result(address, args.residual_stride), stored)?,
    };
    let [weights, input] = operands(product, tile, args)?;
    let out = TensorMap::new(result(args.out, args.out_stride), stored)?;
    Ok(Args { weights, input, residual, out, product: *args })
}

/// The arguments of the kernel that finishes the projection of queries, keys and values.
///
/// # Errors
/// As [`args`].
pub fn qkv_args(product: Product, tile: Tile, fused: &FusedArgs) -> Result<QkvArgs, CudaError> {
    let [mut weights, input] = operands(product, tile, &fused.product)?;
    let heads = fused.query_heads + 2 * fused.key_heads;
    let dim = fused.product.features / heads;
    if !tile.weight_rows.is_multiple_of(dim) {
        let piece = CopyBox { rows: EIGHT, width: BoxWidth::Bytes128 };
        weights = TensorMap::of_halves(weight_matrix(product, &fused.product), piece, dim as usize)?;
    }
    Ok(QkvArgs { weights, input, fused: *fused })
}

fn weight_matrix(product: Product, args: &ProductArgs) -> Matrix {
    let (rows, columns) = (args.features as usize * product.parts() as usize, args.columns as usize);
    Matrix { address: args.weights, rows, columns, stride: args.weight_stride as usize * 2, value_bytes: 2 }
}

/// The weights and the input, in boxes of the columns of a stage.
fn operands(product: Product, tile: Tile, args: &ProductArgs) -> Result<[TensorMap; 2], CudaError> {
    let weights = weight_matrix(product, args);
    let (rows, stride) = (args.rows as usize, args.input_stride as usize * 2);
    let input = Matrix { address: args.input, rows, stride, ..weights };
    let boxed = |matrix, rows| TensorMap::new(matrix, CopyBox { rows, width: BoxWidth::Bytes128 });
    // What each warpgroup multiplies is copied for itself.
    Ok([boxed(weights, tile.weight_box(product))?, boxed(input, GROUP_ROWS)?])
}

#[cfg(test)]
mod tests;
