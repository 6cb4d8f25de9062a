//! Attention of many query rows of a sequence, in tiles: `kernels/attention_prefill_wgmma.cu` and
//! `kernels/attention_prefill_mma.cu` on the tensor cores, `kernels/attention_prefill.cu` on the CUDA cores.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::Heads;

use super::attention::{self, SPAN, Unit};
use super::cache;
use super::deal;
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
    /// On Hopper's tensor cores, by blocks that stay.
    Warpgroups(GroupTiling),
}

/// Tiles for the tensor cores, a block each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixTiling {
    /// Rows of a tile, 16 a warp.
    rows: usize,
    /// Spans that shared memory has room for: with two, one is loaded while the other is computed.
    stages: usize,
}

/// Tiles for warpgroups that multiply while another one copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTiling {
    /// Those that multiply, 64 rows of a tile each.
    groups: usize,
    /// Blocks at a time.
    multiprocessors: usize,
}

/// Values of a panel, in which the kernels for the tensor cores divide vectors.
const PANEL: usize = 64;

impl MatrixTiling {
    /// Rows and stages, from the fastest to what fits the least shared memory.
    const SHAPES: [(usize, usize); 3] = [(128, 2), (64, 2), (64, 1)];

    /// What `kernels/attention_tile.cuh` has in shared memory; its sum is checked when that is compiled.
    fn shared(self, cache: CacheFormat, dim: usize) -> usize {
        let MatrixTiling { rows, stages } = self;
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

impl GroupTiling {
    /// Rows of a warpgroup.
    const ROWS: usize = 64;
    /// Spans of keys and values that shared memory has room for.
    const STAGES: usize = 6;
    /// Numbers of warpgroups, and the nanoseconds that an H200 takes for a span of their tiles.
    const SHAPES: [(usize, usize); 3] = [(3, 1_280), (2, 950), (1, 680)];
    /// What it takes for a tile besides.
    const TILE_NANOSECONDS: usize = 1_500;

    fn rows(self) -> usize {
        self.groups * Self::ROWS
    }

    /// What `kernels/attention_prefill_wgmma.cu` has in shared memory; its sum is checked when that is compiled.
    fn shared(self, cache: CacheFormat) -> usize {
        // Two tiles of queries of 16 bits; outputs before the current section, and their softmax.
        let rows = self.rows() * (2 * PANEL * 2 + PANEL * 4 + 8);
        // Keys and values, and a scale of each.
        let stages = Self::STAGES * 2 * SPAN * (PANEL * 2 + 4);
        let barriers = 8 * (2 * Self::STAGES + 4);
        let work = 2 * (4 * 4 + 4);
        let codes = if cache.format.bytes() == 1 { 2 * 2 * SPAN * PANEL } else { 0 };
        (rows + stages + barriers + work).next_multiple_of(16) + codes
    }

    /// Estimates the nanoseconds that each tile of so many spans takes.
    fn times(self, spans: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
        let span =
            Self::SHAPES.iter().find(|(groups, _)| *groups == self.groups).map_or(0, |(_, time)| *time);
        spans.map(move |spans| spans * span + Self::TILE_NANOSECONDS)
    }

    /// Estimates the nanoseconds that all of them take.
    fn nanoseconds(self, heads: Heads, spans: impl Iterator<Item = usize>) -> usize {
        let (most, sum) = self.times(spans).fold((0, 0), |(most, sum), time| (time.max(most), sum + time));
        most.max(sum * heads.key_value / self.multiprocessors.max(1))
    }
}

impl Tiling {
    /// The tiling for a unit, a cache and heads on a device, the largest of its [`sizes`](Tiling::sizes); `None` where
    /// tiles do not fit, or do not have room for one token.
    pub fn choose(unit: Unit, cache: CacheFormat, heads: Heads, device: Capabilities) -> Option<Tiling> {
        let fits = |tiling: &Tiling| {
            let shared = tiling.shared(cache, heads.dim);
            attention::group(heads) <= tiling.rows() && shared <= device.shared_per_block as usize
        };
        let multiprocessors = device.multiprocessors as usize;
        let grouped = |(groups, _)| Tiling::Warpgroups(GroupTiling { groups, multiprocessors });
        let grouped = GroupTiling::SHAPES.map(grouped);
        let matrix = |(rows, stages)| Tiling::Matrix(MatrixTiling { rows, stages });
        let stay = wgmma::serves(device) && heads.dim == PANEL && grouped.iter().all(fits);
        match unit {
            Unit::Fma => Some(Tiling::Fma).filter(fits),
            Unit::Matrix if stay => grouped.into_iter().next(),
            Unit::Matrix => MatrixTiling::SHAPES.map(matrix).into_iter().find(fits),
        }
    }

    /// Those among which the rows of a batch decide.
    pub fn sizes(self) -> Vec<Tiling> {
        match self {
            Tiling::Warpgroups(tiling) => {
                let sized = |(groups, _)| Tiling::Warpgroups(GroupTiling { groups, ..tiling });
                GroupTiling::SHAPES.map(sized).to_vec()
            }
            Tiling::Fma | Tiling::Matrix(_) => vec![self],
        }
    }

    /// Estimates how long tiles of so many spans take, compared with those of the other sizes.
    pub fn nanoseconds(self, heads: Heads, spans: impl Iterator<Item = usize>) -> usize {
        match self {
            Tiling::Warpgroups(tiling) => tiling.nanoseconds(heads, spans),
            Tiling::Fma | Tiling::Matrix(_) => 0,
        }
    }

    /// The order in which blocks are to get tiles of so many spans, of which those with the most come first.
    pub fn order(self, heads: Heads, spans: impl ExactSizeIterator<Item = usize>) -> Vec<usize> {
        match self {
            // Otherwise the key heads of a tile, which are neighbours, are not always in one round.
            Tiling::Warpgroups(tiling) if tiling.multiprocessors.is_multiple_of(heads.key_value) => {
                let times: Vec<usize> = tiling.times(spans).collect();
                deal::order(&times, tiling.multiprocessors / heads.key_value)
            }
            _ => (0..spans.len()).collect(),
        }
    }

    fn rows(self) -> usize {
        match self {
            Tiling::Fma => 64,
            Tiling::Matrix(tiling) => tiling.rows,
            Tiling::Warpgroups(tiling) => tiling.rows(),
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
            Tiling::Warpgroups(tiling) => tiling.shared(cache),
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
        let rows = Alias::count("ROWS", self.rows() as u32);
        let shared = Alias::count("SHARED", self.shared(cache, heads.dim) as u32);
        match self {
            Tiling::Fma => {
                KernelSpec { file: SourceFile::AttentionPrefill, entry: "attention_prefill", aliases }
            }
            Tiling::Matrix(MatrixTiling { stages, .. }) => {
                aliases.extend([rows, Alias::count("STAGES", stages as u32), shared]);
                KernelSpec { file: SourceFile::AttentionPrefillMma, entry: "attention_prefill_mma", aliases }
            }
            Tiling::Warpgroups(_) => {
                aliases.extend([rows, shared]);
                let file = SourceFile::AttentionPrefillWgmma;
                KernelSpec { file, entry: "attention_prefill_wgmma", aliases }
            }
        }
    }

    /// The launch for a number of tiles. Key heads of a tile are neighbours, so that tiles start in the order of their
    /// list.
    pub fn launch(self, cache: CacheFormat, heads: Heads, tiles: usize) -> Launch {
        let shared = self.shared(cache, heads.dim) as u32;
        let items = tiles * heads.key_value;
        match self {
            Tiling::Fma => {
                let block = if heads.dim <= 64 { 128 } else { 256 };
                Launch { grid: [tiles as u32, heads.key_value as u32, 1], block, shared }
            }
            Tiling::Matrix(tiling) => {
                Launch { grid: [items as u32, 1, 1], block: tiling.threads() as u32, shared }
            }
            Tiling::Warpgroups(GroupTiling { groups, multiprocessors }) => {
                // One more warpgroup copies.
                let block = 128 * (groups as u32 + 1);
                Launch { grid: [items.min(multiprocessors) as u32, 1, 1], block, shared }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Arch;

    const QWEN: Heads = Heads { query: 14, key_value: 2, dim: 64 };
    const WIDE: Heads = Heads { query: 32, key_value: 8, dim: 128 };

    const BF16: CacheFormat = CacheFormat::plain(Format::Bf16);
    const E4M3: CacheFormat = CacheFormat::plain(Format::F8E4M3);

    const H200: Capabilities =
        Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block: 232_448 };
    const A100: Capabilities =
        Capabilities { arch: Arch { major: 8, minor: 0 }, multiprocessors: 108, shared_per_block: 166_912 };
    const SMALL: Capabilities =
        Capabilities { arch: Arch { major: 8, minor: 9 }, multiprocessors: 76, shared_per_block: 101_376 };

    fn choose(cache: CacheFormat, heads: Heads, device: Capabilities) -> Option<Tiling> {
        Tiling::choose(Unit::Matrix, cache, heads, device)
    }

    fn matrix(rows: usize, stages: usize) -> Option<Tiling> {
        Some(Tiling::Matrix(MatrixTiling { rows, stages }))
    }

    fn groups(groups: usize) -> Tiling {
        Tiling::Warpgroups(GroupTiling { groups, multiprocessors: 132 })
    }

    #[test]
    fn tiles_are_the_largest_that_fit() {
        for cache in [BF16, E4M3] {
            assert_eq!(choose(cache, QWEN, SMALL), matrix(128, 2));
            assert_eq!(choose(cache, WIDE, H200), matrix(128, 2));
            assert_eq!(choose(cache, WIDE, SMALL), matrix(64, 1));
        }
        assert_eq!(choose(BF16, WIDE, A100), matrix(128, 2));
        assert_eq!(choose(E4M3, WIDE, A100), matrix(64, 2));
        let widest = Heads { dim: 256, ..WIDE };
        assert_eq!(choose(BF16, widest, H200), matrix(64, 2));
        assert_eq!(choose(E4M3, widest, H200), matrix(64, 1));
        assert_eq!(choose(BF16, widest, SMALL), None);
        let many = Heads { query: 100, key_value: 1, dim: 64 };
        assert_eq!(choose(BF16, Heads { dim: 128, ..many }, SMALL), None);
        assert_eq!(Tiling::choose(Unit::Fma, BF16, many, H200), None);
    }

    #[test]
    fn hopper_multiplies_heads_of_one_panel_by_blocks_that_stay() {
        for cache in [BF16, E4M3] {
            assert_eq!(choose(cache, QWEN, H200), Some(groups(3)));
            assert_eq!(choose(cache, QWEN, A100), matrix(128, 2));
            assert_eq!(choose(cache, Heads { dim: 56, ..QWEN }, H200), matrix(128, 2));
        }
        // A token's heads do not fit the smallest of these tiles.
        let many = Heads { query: 100, key_value: 1, dim: 64 };
        assert_eq!(choose(BF16, many, H200), matrix(128, 2));
        assert_eq!(groups(3).sizes(), [groups(3), groups(2), groups(1)]);
        assert_eq!(Tiling::Fma.sizes(), [Tiling::Fma]);
    }

    #[test]
    fn launches_cover_every_head_of_every_tile() {
        let tiling = choose(BF16, QWEN, A100).expect("fits");
        assert_eq!(tiling.tokens(QWEN), 18);
        assert_eq!(tiling.launch(BF16, QWEN, 5), Launch { grid: [10, 1, 1], block: 256, shared: 84_480 });
        assert_eq!(tiling.launch(E4M3, QWEN, 5).shared, 84_480 + (8 << 10));
        let fma = Tiling::choose(Unit::Fma, BF16, QWEN, H200).expect("fits");
        assert_eq!(fma.tokens(QWEN), 9);
        assert_eq!(fma.launch(BF16, QWEN, 5).grid, [5, 2, 1]);
        assert_eq!(groups(3).tokens(QWEN), 27);
        assert_eq!(groups(3).launch(BF16, QWEN, 5), Launch { grid: [10, 1, 1], block: 512, shared: 201_392 });
        assert_eq!(groups(1).launch(E4M3, QWEN, 200).grid, [132, 1, 1]);
    }

    #[test]
    fn sizes_of_tiles_follow_how_much_there_is() {
        let fastest = |heads: Heads, tokens: usize| {
            let time = |tiling: &Tiling| {
                let ends = (tiling.tokens(heads)..=tokens).step_by(tiling.tokens(heads));
                tiling.nanoseconds(heads, ends.map(|end| end.div_ceil(SPAN)))
            };
            groups(3).sizes().into_iter().min_by_key(time).expect("sizes")
        };
        assert_eq!(fastest(QWEN, 512), groups(1));
        assert_eq!(fastest(QWEN, 1_024), groups(1));
        assert_eq!(fastest(QWEN, 2_048), groups(2));
        assert_eq!(fastest(QWEN, 4_096), groups(3));
        let llama = Heads { query: 32, key_value: 8, dim: 64 };
        assert_eq!(fastest(llama, 1_024), groups(2));
        assert_eq!(fastest(llama, 8_192), groups(3));
    }
}
