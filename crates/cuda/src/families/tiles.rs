//! Attention of many query rows of a sequence, in tiles: `kernels/attention_prefill_mma.cu` on the tensor cores,
//! `kernels/attention_prefill.cu` on the CUDA cores.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::Heads;

use super::attention::{self, SPAN, Unit};
use super::cache;
use super::products::Capabilities;
use super::wgmma;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Query rows of one sequence that a block works on: consecutive tokens with all query heads of one key head.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Tile {
    /// Its first row in the batch.
    pub first_row: u32,
    /// Rows of the batch, as many as the tiling has room for at most.
    pub tokens: u32,
}

/// How rows are cut into tiles, and which kernel computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiling {
    /// On the CUDA cores.
    Fma,
    /// On the tensor cores.
    Matrix(MatrixTiling),
}

/// Tiles for the tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixTiling {
    /// Rows of a tile, 16 a warp.
    rows: usize,
    /// Spans that shared memory has room for: with two, one is loaded while the other is computed.
    stages: usize,
    /// Multiprocessors, where each works on two tiles at a time; else zero.
    pairing: usize,
}

/// Values of a panel, in which the kernel for the tensor cores divides vectors.
const PANEL: usize = 64;

impl MatrixTiling {
    /// Rows and stages, from the fastest to what fits the least shared memory.
    const SHAPES: [(usize, usize); 3] = [(128, 2), (64, 2), (64, 1)];

    /// What `kernels/attention_tile.cuh` has in shared memory; its sum is checked when that is compiled.
    fn shared(self, cache: CacheFormat, dim: usize) -> usize {
        let MatrixTiling { rows, stages, .. } = self;
        let panels = dim.div_ceil(PANEL);
        // Queries of 16 bits, keys and values of the stages, outputs before the current section.
        let vectors = panels * PANEL * (2 * rows + stages * 2 * 2 * SPAN + 4 * rows);
        let softmax = 8 * rows;
        let codes = match cache.format.bytes() {
            1 => 2 * 16 * (SPAN * dim.div_ceil(16)).next_multiple_of(self.threads()),
            _ => 0,
        };
        vectors + softmax + 2 * SPAN * 3 * size_of::<f32>() + codes
    }

    /// A thread has two rows, of which four threads share one.
    fn threads(self) -> usize {
        2 * self.rows
    }
}

impl Tiling {
    /// The tiling for a unit, a cache and heads on a device; `None` where tiles do not fit, or do not have room for one
    /// token.
    pub fn choose(unit: Unit, cache: CacheFormat, heads: Heads, device: Capabilities) -> Option<Tiling> {
        let fits = |tiling: &Tiling| {
            let shared = tiling.shared(cache, heads.dim);
            attention::group(heads) <= tiling.rows() && shared <= device.shared_per_block as usize
        };
        // With warpgroups, heads of one panel leave registers for two blocks.
        let pairs = wgmma::serves(device) && heads.dim <= PANEL;
        let pairing = if pairs { device.multiprocessors as usize } else { 0 };
        let matrix = |(rows, stages)| Tiling::Matrix(MatrixTiling { rows, stages, pairing });
        match unit {
            Unit::Fma => Some(Tiling::Fma).filter(fits),
            Unit::Matrix => MatrixTiling::SHAPES.map(matrix).into_iter().find(fits),
        }
    }

    /// Arranges tiles that are sorted by how much they see, the most first, so that multiprocessors end together.
    pub fn arrange(self, heads: Heads, tiles: &mut [Tile]) {
        let Tiling::Matrix(MatrixTiling { pairing, .. }) = self else { return };
        // Blocks go to multiprocessors in turn: the second to each is the longer, the shorter its first is.
        let first = tiles.len().min(pairing / heads.key_value.max(1));
        let both = tiles.len().min(2 * first);
        tiles[first..both].reverse();
    }

    fn rows(self) -> usize {
        match self {
            Tiling::Fma => 64,
            Tiling::Matrix(tiling) => tiling.rows,
        }
    }

    fn shared(self, cache: CacheFormat, dim: usize) -> usize {
        match self {
            Tiling::Fma => {
                let wide = dim.next_multiple_of(64) + 4;
                let floats = (self.rows() + SPAN) * wide + self.rows() * (SPAN + 4);
                (floats + 2 * self.rows() + 3 * SPAN) * size_of::<f32>()
            }
            Tiling::Matrix(tiling) => tiling.shared(cache, dim),
        }
    }

    /// Tokens of a tile.
    pub fn tokens(self, heads: Heads) -> usize {
        (self.rows() / attention::group(heads).max(1)).max(1)
    }

    /// The kernel for queries and a cache of these formats.
    pub fn spec(self, activations: Format, cache: CacheFormat, heads: Heads) -> KernelSpec {
        let mut aliases = cache::aliases(activations, cache);
        aliases.push(Alias::count("DIM", heads.dim as u32));
        match self {
            Tiling::Fma => {
                KernelSpec { file: SourceFile::AttentionPrefill, entry: "attention_prefill", aliases }
            }
            Tiling::Matrix(MatrixTiling { rows, stages, .. }) => {
                aliases.push(Alias::count("ROWS", rows as u32));
                aliases.push(Alias::count("STAGES", stages as u32));
                aliases.push(Alias::count("SHARED", self.shared(cache, heads.dim) as u32));
                KernelSpec { file: SourceFile::AttentionPrefillMma, entry: "attention_prefill_mma", aliases }
            }
        }
    }

    /// The launch for a number of tiles. Key heads of a tile are neighbours, so that tiles start in the order of their
    /// list.
    pub fn launch(self, cache: CacheFormat, heads: Heads, tiles: usize) -> Launch {
        let shared = self.shared(cache, heads.dim) as u32;
        match self {
            Tiling::Fma => {
                let block = if heads.dim <= 64 { 128 } else { 256 };
                Launch { grid: [tiles as u32, heads.key_value as u32, 1], block, shared }
            }
            Tiling::Matrix(tiling) => {
                let blocks = tiles * heads.key_value;
                Launch { grid: [blocks as u32, 1, 1], block: tiling.threads() as u32, shared }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Arch;

    const QWEN: Heads = Heads { query: 14, key_value: 2, dim: 64 };

    const BF16: CacheFormat = CacheFormat::plain(Format::Bf16);
    const E4M3: CacheFormat = CacheFormat::plain(Format::F8E4M3);

    const H200: Capabilities =
        Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block: 232_448 };
    const A100: Capabilities =
        Capabilities { arch: Arch { major: 8, minor: 0 }, multiprocessors: 108, shared_per_block: 166_912 };
    const SMALL: Capabilities =
        Capabilities { arch: Arch { major: 8, minor: 9 }, multiprocessors: 76, shared_per_block: 101_376 };

    fn matrix(cache: CacheFormat, heads: Heads, device: Capabilities) -> Option<(usize, usize)> {
        match Tiling::choose(Unit::Matrix, cache, heads, device)? {
            Tiling::Matrix(MatrixTiling { rows, stages, .. }) => Some((rows, stages)),
            Tiling::Fma => panic!("not what was asked for"),
        }
    }

    #[test]
    fn tiles_are_the_largest_that_fit() {
        let wide = Heads { query: 32, key_value: 8, dim: 128 };
        for cache in [BF16, E4M3] {
            assert_eq!(matrix(cache, QWEN, SMALL), Some((128, 2)));
            assert_eq!(matrix(cache, wide, H200), Some((128, 2)));
            assert_eq!(matrix(cache, wide, SMALL), Some((64, 1)));
        }
        assert_eq!(matrix(BF16, wide, A100), Some((128, 2)));
        assert_eq!(matrix(E4M3, wide, A100), Some((64, 2)));
        let widest = Heads { dim: 256, ..wide };
        assert_eq!(matrix(BF16, widest, H200), Some((64, 2)));
        assert_eq!(matrix(E4M3, widest, H200), Some((64, 1)));
        assert_eq!(matrix(BF16, widest, SMALL), None);
        let many = Heads { query: 100, key_value: 1, dim: 64 };
        assert_eq!(matrix(BF16, many, H200), Some((128, 2)));
        assert_eq!(matrix(BF16, Heads { dim: 128, ..many }, SMALL), None);
        assert_eq!(Tiling::choose(Unit::Fma, BF16, many, H200), None);
    }

    #[test]
    fn launches_cover_every_head_of_every_tile() {
        let tiling = Tiling::choose(Unit::Matrix, BF16, QWEN, H200).expect("fits");
        assert_eq!(tiling.tokens(QWEN), 18);
        assert_eq!(tiling.launch(BF16, QWEN, 5), Launch { grid: [10, 1, 1], block: 256, shared: 84_480 });
        assert_eq!(tiling.launch(E4M3, QWEN, 5).shared, 84_480 + (8 << 10));
        let fma = Tiling::choose(Unit::Fma, BF16, QWEN, H200).expect("fits");
        assert_eq!(fma.tokens(QWEN), 9);
        assert_eq!(fma.launch(BF16, QWEN, 5).grid, [5, 2, 1]);
    }

    #[test]
    fn long_tiles_share_multiprocessors_with_short_ones() {
        let arranged = |device, count: u32| {
            let tiling = Tiling::choose(Unit::Matrix, BF16, QWEN, device).expect("fits");
            let mut tiles: Vec<Tile> = (0..count).map(|first_row| Tile { first_row, tokens: 1 }).collect();
            tiling.arrange(QWEN, &mut tiles);
            tiles.into_iter().map(|tile| tile.first_row).collect::<Vec<_>>()
        };
        assert_eq!(arranged(H200, 60), (0..60).collect::<Vec<_>>());
        assert_eq!(arranged(H200, 100), (0..66).chain((66..100).rev()).collect::<Vec<_>>());
        assert_eq!(arranged(H200, 200), (0..66).chain((66..132).rev()).chain(132..200).collect::<Vec<_>>());
        assert_eq!(arranged(A100, 200), (0..200).collect::<Vec<_>>());
    }
}
