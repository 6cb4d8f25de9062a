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
        let tiles = tile.tiles(product, shape);
        let each =
            tiles <= device.multiprocessors as usize && Left::of(tiles, tile, device) == Left::Whole(tiles);
        let pairs = shape.features.div_ceil(tile.features(product)).is_multiple_of(2);
        let long = shape.columns.div_ceil(DEPTH) >= LONE_STAGES;
        let room = tile.groups == 2 && tile.weight_rows <= MOST_LONE && product.epilogue == Epilogue::Store;
        each && pairs && long && room
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

/// The tile for a projection of queries, keys and values whose outputs the kernel finishes, if one is of whole heads.
pub fn choose_qkv(product: Product, shape: Shape, dim: usize, device: Capabilities) -> Option<Tile> {
    let whole = SIZES.into_iter().filter(|size| size.turns(dim));
    let quickest = whole.min_by_key(|size| size.time(product, shape, device));
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
    let [weights, input] = operands(product, tile, &fused.product)?;
    Ok(QkvArgs { weights, input, fused: *fused })
}

/// The weights and the input, in boxes of the columns of a stage.
fn operands(product: Product, tile: Tile, args: &ProductArgs) -> Result<[TensorMap; 2], CudaError> {
    let operand = |address, rows, stride: u64, box_rows| {
        let columns = args.columns as usize;
        let matrix = Matrix { address, rows, columns, stride: stride as usize * 2, value_bytes: 2 };
        TensorMap::new(matrix, CopyBox { rows: box_rows, width: BoxWidth::Bytes128 })
    };
    let weight_rows = args.features as usize * product.parts() as usize;
    Ok([
        operand(args.weights, weight_rows, args.weight_stride, tile.weight_box(product))?,
        // What each warpgroup multiplies is copied for itself.
        operand(args.input, args.rows as usize, args.input_stride, GROUP_ROWS)?,
    ])
}

#[cfg(test)]
mod tests {
    use mantissa_numerics::Format;

    use super::*;

    const H200: Capabilities =
        Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block: 232_448 };
    const EPILOGUES: [Epilogue; 3] = [Epilogue::Store, Epilogue::SwiGlu, Epilogue::Plain];

    fn product(epilogue: Epilogue) -> Product {
        Product { weights: Format::Bf16, activations: Format::Bf16, epilogue }
    }

    #[test]
    fn arguments_are_laid_out_as_the_kernel_declares_them() {
        assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
        assert_eq!((size_of::<Args>(), align_of::<Args>()), (640, 64));
        assert_eq!(std::mem::offset_of!(Args, product), 512);
        assert_eq!((size_of::<QkvArgs>(), align_of::<QkvArgs>()), (512, 64));
        assert_eq!(std::mem::offset_of!(QkvArgs, fused), 256);
    }

    #[test]
    fn every_tile_fits_shared_memory_and_the_limits_of_the_copy_engine() {
        for (size, product) in
            SIZES.into_iter().flat_map(|size| EPILOGUES.map(|epilogue| (size, product(epilogue))))
        {
            let tile = size.staged(H200, |tile| tile.shared(product));
            let more = Tile { stages: tile.stages + 1, ..tile };
            assert!(tile.shared(product) <= H200.shared_per_block as usize, "{tile:?} {product:?}");
            assert!(more.shared(product) > H200.shared_per_block as usize, "{tile:?} {product:?}");
            assert!(tile.stages >= 4 && tile.rows() <= 256 && tile.weight_rows <= 256);
            // Gates and ups each fill whole groups of eight permuted rows.
            assert!(tile.features(product).is_multiple_of(8));
            let (width, boxes) = tile.boxes(product);
            assert_eq!(boxes * rounds(product) * width.bytes(), tile.features(product) * out_bytes(product));
            assert!(width.bytes().is_multiple_of(16) && width.bytes() <= 256, "{tile:?} {product:?}");
        }
    }

    #[test]
    fn boxes_of_outputs() {
        let boxes = |weight_rows, epilogue| {
            Tile { groups: 2, weight_rows, stages: 4, cluster: 1, lone: false }.boxes(product(epilogue))
        };
        assert_eq!(boxes(192, Epilogue::Store), (BoxWidth::Bytes128, 3));
        assert_eq!(boxes(192, Epilogue::SwiGlu), (BoxWidth::Bytes64, 3));
        assert_eq!(boxes(192, Epilogue::Plain), (BoxWidth::Bytes128, 3));
        assert_eq!(boxes(112, Epilogue::Store), (BoxWidth::Plain(224), 1));
        assert_eq!(boxes(112, Epilogue::SwiGlu), (BoxWidth::Plain(112), 1));
        assert_eq!(boxes(160, Epilogue::SwiGlu), (BoxWidth::Plain(160), 1));
    }

    #[test]
    fn tiles_of_the_products_of_qwen_and_llama() {
        let choice = |epilogue, [rows, features, columns]: [usize; 3]| {
            let tile = choose(product(epilogue), Shape { rows, features, columns }, H200);
            [tile.rows(), tile.weight_rows as usize]
        };
        use Epilogue::{Plain, Store, SwiGlu};
        assert_eq!(choice(Plain, [512, 1152, 896]), [64, 128]);
        assert_eq!(choice(Store, [512, 896, 896]), [64, 64]);
        assert_eq!(choice(SwiGlu, [512, 4864, 896]), [128, 160]);
        assert_eq!(choice(SwiGlu, [2048, 4864, 896]), [128, 160]);
        assert_eq!(choice(SwiGlu, [8192, 4864, 896]), [128, 192]);
        assert_eq!(choice(Store, [2048, 896, 4864]), [128, 112]);
        assert_eq!(choice(Store, [1536, 896, 4864]), [128, 112]);
        assert_eq!(choice(Store, [3072, 896, 4864]), [128, 192]);
        assert_eq!(choice(Store, [8192, 896, 4864]), [128, 128]);
        assert_eq!(choice(Plain, [2048, 1152, 896]), [128, 160]);
        assert_eq!(choice(SwiGlu, [8192, 8192, 2048]), [128, 192]);
        assert_eq!(choice(Store, [8192, 2048, 2048]), [128, 128]);
    }

    #[test]
    fn long_products_of_pairs_of_tiles_take_clusters() {
        let cluster = |epilogue, [rows, features, columns]: [usize; 3]| {
            choose(product(epilogue), Shape { rows, features, columns }, H200).cluster
        };
        use Epilogue::{Store, SwiGlu};
        assert_eq!(cluster(SwiGlu, [8192, 4864, 896]), 2);
        assert_eq!(cluster(SwiGlu, [8064, 4864, 896]), 1, "63 tiles of tokens");
        assert_eq!(cluster(Store, [8192, 896, 4864]), 2);
        assert_eq!(cluster(Store, [8192, 896, 896]), 1);
        assert_eq!(cluster(Store, [2176, 896, 4864]), 1);
        assert_eq!(cluster(Store, [2048, 2048, 8192]), 2);
        assert_eq!(cluster(SwiGlu, [2048, 4864, 896]), 1);
        assert_eq!(cluster(SwiGlu, [2048, 8192, 2048]), 2);
        let shape = Shape { rows: 8192, features: 3072, columns: 2048 };
        let cluster = |shape| choose_qkv(product(Epilogue::Plain), shape, 64, H200).map(|tile| tile.cluster);
        assert_eq!([cluster(shape), cluster(Shape { rows: 2048, ..shape })], [Some(2), Some(1)]);
    }

    #[test]
    fn long_tiles_that_are_alone_share_their_input() {
        let chosen = |epilogue, [rows, features, columns]: [usize; 3]| {
            let tile = choose(product(epilogue), Shape { rows, features, columns }, H200);
            (tile.lone, tile.cluster)
        };
        use Epilogue::{Plain, Store};
        assert_eq!(chosen(Store, [2048, 896, 4864]), (true, 2));
        assert_eq!(chosen(Store, [1500, 896, 4864]), (true, 2));
        assert_eq!(chosen(Store, [1024, 2048, 8192]), (true, 2));
        assert_eq!(chosen(Plain, [2048, 896, 4864]), (false, 1));
        assert_eq!(chosen(Store, [2048, 896, 896]), (false, 1), "short");
        assert_eq!(chosen(Store, [2176, 896, 4864]), (false, 1), "136 tiles");
        assert_eq!(chosen(Store, [2048, 784, 4864]), (false, 1), "seven tiles of weights");
        assert_eq!(chosen(Store, [512, 896, 4864]), (false, 1), "halves");
    }

    #[test]
    fn projections_take_tiles_of_whole_heads() {
        let choice = |rows, dim| {
            let shape = Shape { rows, features: 24 * dim, columns: 2048 };
            choose_qkv(product(Epilogue::Plain), shape, dim, H200).map(|tile| tile.weight_rows)
        };
        assert_eq!([512, 8192].map(|rows| choice(rows, 64)), [Some(128), Some(192)]);
        assert_eq!([512, 8192].map(|rows| choice(rows, 128)), [Some(128), Some(128)]);
        assert_eq!([96, 80].map(|dim| choice(8192, dim)), [Some(192), None]);
        let stages = SIZES.map(|size| size.staged(H200, Tile::qkv_shared).stages);
        assert_eq!(stages, [4, 5, 5, 6, 8, 13]);
        // Stages of a segment could not share the pairs of such heads.
        assert_eq!(choice(2048, 56), None);
        let other = Capabilities { arch: Arch { major: 10, minor: 0 }, ..H200 };
        let shape = Shape { rows: 512, features: 1152, columns: 896 };
        assert_eq!(choose_qkv(product(Epilogue::Plain), shape, 64, other), None);
    }

    #[test]
    fn a_launch_has_a_block_for_each_tile_or_each_multiprocessor() {
        for epilogue in EPILOGUES {
            let product = product(epilogue);
            for rows in [0, 1, 33, 129, 4096] {
                for features in [8, 896, 128_256] {
                    let shape = Shape { rows, features, columns: 896 };
                    let tile = choose(product, shape, H200);
                    let launch = launch_shape(product, tile, shape, H200);
                    let [blocks, 1, 1] = launch.grid else { panic!("{launch:?}") };
                    let tiles = rows.div_ceil(tile.rows()) * features.div_ceil(tile.features(product));
                    let halved = tile.groups == 2 && tiles <= 66;
                    assert_eq!(blocks as usize, if halved { 2 * tiles } else { tiles.min(132) });
                    assert!(launch.block == 256 || launch.block == 384);
                }
            }
        }
    }
}
