//! Flash attention over the paged cache: what multiplies, and which rows go to which kernel.
//!
//! Single rows of a sequence are spread over blocks by their positions, see [`single`](super::single); longer runs of rows
//! are cut into [`tiles`](super::tiles). Both give the same bits, so that which rows go where is a matter of speed.

use std::ops::Range;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, Compute, Order, RoundingPoint};
use mantissa_ops::batch::{Batch, Limits};
use mantissa_ops::op::{Heads, Mask};

use super::batch::BatchView;
use super::cache::CacheLayer;
use super::products::Capabilities;
use super::single::Single;
use super::tiles::{Tile, Tiling};
use crate::kernel::KernelSpec;

/// Positions of a span.
pub const SPAN: usize = 64;

/// Spans of a section, on the tensor cores.
pub const SECTION: usize = 8;

/// Arguments of all kernels; strides in values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "kernels/cache.cuh says what they are")]
pub struct Args {
    pub batch: BatchView,
    pub cache: CacheLayer,
    pub query: u64,
    pub out: u64,
    pub parts: u64,
    pub part_softmax: u64,
    pub rows: u64,
    pub tiles: u64,
    pub query_stride: u32,
    pub out_stride: u32,
    pub query_heads: u32,
    pub group: u32,
    pub window: u32,
    pub records: u32,
    pub scale: f32,
    pub items: u32,
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The tensor cores: queries of 16 bits, and a cache of the same format or one that converts to it exactly.
    Matrix,
    /// The CUDA cores, in f32.
    Fma,
}

/// What multiplies queries of a format with a cache: part of the contract.
pub fn unit(activations: Format, cache: CacheFormat) -> Unit {
    match (activations, cache.format) {
        (Format::F16, Format::F16 | Format::F8E4M3) | (Format::Bf16, Format::Bf16 | Format::F8E4M3) => {
            Unit::Matrix
        }
        _ => Unit::Fma,
    }
}

/// How a unit multiplies and adds.
///
/// On the CUDA cores: spans, merged ascending. Within a span a score is one ascending chain over the head's dimensions, the
/// sum of weights is 16 chains (position modulo 16) and a tree, and an output is one ascending chain. On the tensor cores:
/// as `kernels/attention_mma.cuh` says.
pub fn compute(unit: Unit) -> (Compute, Order) {
    match unit {
        Unit::Matrix => {
            (Compute::MatrixUnits { depth: 16 }, Order::Sections { positions: SPAN, spans: SECTION })
        }
        Unit::Fma => (Compute::F32Fma, Order::Spans { positions: SPAN }),
    }
}

/// Where a unit rounds.
pub fn rounding(unit: Unit) -> &'static [RoundingPoint] {
    match unit {
        Unit::Matrix => &[RoundingPoint::SoftmaxWeights, RoundingPoint::Output],
        Unit::Fma => &[RoundingPoint::Output],
    }
}

/// Query heads of each key head.
pub(crate) fn group(heads: Heads) -> usize {
    heads.query.checked_div(heads.key_value).unwrap_or(0)
}

/// Heads for which there is no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no attention kernel for {} query heads, {} key heads of {} values: a head may have up to 256 values, a multiple of 8, \
     that fit the device's shared memory of {shared} bytes a block, and, where the tensor cores do not multiply, a key head \
     up to 64 query heads",
    heads.query, heads.key_value, heads.dim
)]
pub struct UnsupportedHeads {
    /// The heads.
    pub heads: Heads,
    /// Bytes of shared memory that a block of the device can have.
    pub shared: u32,
}

/// Which kernels a plan's attention uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Single rows by their own kernel, others in tiles.
    RowsAndTiles(Single, Tiling),
    /// Every row by the kernel of single rows: tiles do not fit the device's shared memory.
    Rows(Single),
    /// Every row in tiles: the kernel of single rows does not serve the heads.
    Tiles(Tiling),
}

impl Route {
    /// How it computes single rows, if it does.
    pub fn single(self) -> Option<Single> {
        match self {
            Route::RowsAndTiles(single, _) | Route::Rows(single) => Some(single),
            Route::Tiles(_) => None,
        }
    }

    /// How it cuts rows into tiles, if it does.
    pub fn tiling(self) -> Option<Tiling> {
        match self {
            Route::RowsAndTiles(_, tiling) | Route::Tiles(tiling) => Some(tiling),
            Route::Rows(_) => None,
        }
    }
}

/// Chooses the kernels for queries of a format, heads and a cache on a device.
///
/// # Errors
/// [`UnsupportedHeads`] where no kernel fits.
pub fn route(
    activations: Format,
    cache: CacheFormat,
    heads: Heads,
    device: Capabilities,
) -> Result<Route, UnsupportedHeads> {
    let possible = group(heads) > 0 && heads.dim > 0 && heads.dim.is_multiple_of(8) && heads.dim <= 256;
    let unit = unit(activations, cache);
    let single = Single::choose(unit, cache, heads, device).filter(|_| possible);
    let tiling = Tiling::choose(unit, cache, heads, device).filter(|_| possible);
    match (single, tiling) {
        (Some(single), Some(tiling)) => Ok(Route::RowsAndTiles(single, tiling)),
        (Some(single), None) => Ok(Route::Rows(single)),
        (None, Some(tiling)) => Ok(Route::Tiles(tiling)),
        (None, None) => Err(UnsupportedHeads { heads, shared: device.shared_per_block }),
    }
}

/// The kernels of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specs {
    /// The kernel of single rows, and the one that merges their records.
    pub rows: Option<(KernelSpec, KernelSpec)>,
    /// The kernels of tiles, one for each size among which the rows of a batch decide.
    pub tiles: Vec<KernelSpec>,
}

fn sizes(route: Route) -> Vec<Tiling> {
    route.tiling().map_or_else(Vec::new, Tiling::sizes)
}

/// The kernels for queries and a cache of these formats.
pub fn specs(activations: Format, cache: CacheFormat, heads: Heads, route: Route) -> Specs {
    Specs {
        rows: route.single().map(|single| single.specs(activations, cache, heads)),
        tiles: sizes(route).into_iter().map(|tiling| tiling.spec(activations, cache, heads)).collect(),
    }
}

/// Which rows of a batch go to which kernel. The lists are uploaded with the batch and serve all layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows on their own.
    pub rows: Vec<u32>,
    /// Tiles, in the order in which blocks get them: those that see the most first, but where blocks stay only as far as all
    /// of these get about as much.
    pub tiles: Vec<Tile>,
    /// How rows were cut into them.
    pub tiling: Option<Tiling>,
    /// The most spans of all positions up to its own that any of the rows on their own has, as the next power of two, so
    /// that launches stay the same from one token to the next.
    pub span_bucket: usize,
}

impl Work {
    /// Divides the rows of a batch from `first` on.
    pub fn divide(batch: &Batch<'_>, first: usize, heads: Heads, route: Route) -> Work {
        let mut work = Work::default();
        let mut runs = Vec::new();
        for sequence in batch.sequences {
            let rows = sequence.rows.start.max(first)..sequence.rows.end;
            let single = match route {
                Route::RowsAndTiles(..) => rows.len() == 1,
                Route::Rows(_) => true,
                Route::Tiles(_) => false,
            };
            if single {
                work.rows.extend(rows.map(|row| row as u32));
            } else if !rows.is_empty() {
                runs.push(rows);
            }
        }
        let position = |row: usize| batch.positions.get(row).map_or(0, |&at| at as usize);
        let spans = |row: &u32| position(*row as usize) / SPAN + 1;
        work.span_bucket = work.rows.iter().map(spans).max().map_or(0, usize::next_power_of_two);
        let ends = |tile: Tile| spans(&(tile.first_row + tile.tokens - 1));
        let time = |tiling: &Tiling| tiling.nanoseconds(heads, cut(&runs, tiling.tokens(heads)).map(ends));
        work.tiling = sizes(route).into_iter().min_by_key(time).filter(|_| !runs.is_empty());
        work.tiles = work.tiling.map_or_else(Vec::new, |tiling| cut(&runs, tiling.tokens(heads)).collect());
        work.tiles.sort_by_key(|tile| std::cmp::Reverse(position(tile.first_row as usize)));
        if let Some(tiling) = work.tiling {
            let order = tiling.order(heads, work.tiles.iter().copied().map(ends));
            work.tiles = order.into_iter().map(|index| work.tiles[index]).collect();
        }
        work
    }
}

/// Cuts runs of rows into tiles of at most so many tokens.
fn cut(runs: &[Range<usize>], tokens: usize) -> impl Iterator<Item = Tile> {
    let tile = move |run: &Range<usize>, first: usize| Tile {
        first_row: first as u32,
        tokens: tokens.min(run.end - first) as u32,
    };
    runs.iter().flat_map(move |run| run.clone().step_by(tokens).map(move |first| tile(run, first)))
}

/// Bytes of the records of single rows that suffice for every batch of a session: outputs and softmaxes.
pub fn scratch_bytes(heads: Heads, limits: &Limits, mask: Mask, route: Route) -> (usize, usize) {
    let (rows, single) = match route {
        Route::RowsAndTiles(single, _) => (limits.sequences.min(limits.rows), single),
        Route::Rows(single) => (limits.rows, single),
        Route::Tiles(_) => return (0, 0),
    };
    let spans = limits.context.div_ceil(SPAN);
    let records = single.records(spans.checked_next_power_of_two().unwrap_or(spans), mask);
    single.scratch_bytes(heads, rows, records)
}

#[cfg(test)]
mod tests {
    use mantissa_ops::batch::SequenceRows;

    use super::*;
    use crate::compile::Arch;

    const QWEN: Heads = Heads { query: 14, key_value: 2, dim: 64 };
    const BF16: CacheFormat = CacheFormat::plain(Format::Bf16);
    const BOTH: Route = Route::RowsAndTiles(Single::Fma, Tiling::Fma);
    const TILES: Route = Route::Tiles(Tiling::Fma);
    const ROWS: Route = Route::Rows(Single::Fma);

    fn device(shared_per_block: u32) -> Capabilities {
        Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block }
    }

    fn batch_of<'a>(sequences: &'a [SequenceRows<'a>], positions: &'a [u32]) -> Batch<'a> {
        Batch { tokens: positions, positions, sequences, outputs: &[] }
    }

    #[test]
    fn routes_follow_heads_and_shared_memory() {
        // f16 with bf16: not for the tensor cores.
        let fma = |heads, shared| route(Format::F16, BF16, heads, device(shared));
        assert_eq!(fma(QWEN, 101_376), Ok(BOTH));
        let wide = Heads { dim: 256, ..QWEN };
        assert_eq!(fma(wide, 101_376), Ok(ROWS));
        assert_eq!(fma(wide, 232_448), Ok(BOTH));
        let many = Heads { query: 64, key_value: 2, dim: 128 };
        assert_eq!(fma(many, 101_376), Ok(TILES));
        for heads in [Heads { dim: 20, ..QWEN }, Heads { dim: 320, ..QWEN }, Heads { query: 0, ..QWEN }] {
            assert_eq!(fma(heads, 232_448), Err(UnsupportedHeads { heads, shared: 232_448 }));
        }
        let too_many = Heads { query: 130, key_value: 1, dim: 64 };
        assert!(fma(too_many, 232_448).is_err());
        // The tensor cores take any number of query heads, sixteen a block.
        assert!(matches!(route(Format::Bf16, BF16, too_many, device(232_448)), Ok(Route::Rows(_))));
        for activations in [Format::F32, Format::F16, Format::Bf16] {
            for cache in [Format::F32, Format::F16, Format::F8E4M3] {
                for dim in (8..=256).step_by(8) {
                    let heads = Heads { query: 4, key_value: 4, dim };
                    let route = route(activations, CacheFormat::plain(cache), heads, device(101_376));
                    assert!(route.is_ok(), "{activations} {cache} {dim}");
                }
            }
        }
    }

    #[test]
    fn specs_are_those_of_the_route() {
        let both = specs(Format::F16, BF16, QWEN, BOTH);
        let (decode, merge) = both.rows.expect("rows");
        assert_eq!(
            decode.to_string(),
            "attention_decode.attention_decode[A=f16,C=bf16,S=f32,SCALED=0,DIM=64,GROUP=7]"
        );
        assert_eq!(
            merge.to_string(),
            "attention_merge.attention_merge[A=f16,C=bf16,S=f32,SCALED=0,DIM=64,RECORD=64]"
        );
        assert_eq!(both.tiles.len(), 1);
        assert_eq!(specs(Format::F16, BF16, QWEN, TILES).rows, None);
        assert_eq!(specs(Format::F16, BF16, QWEN, ROWS).tiles, []);
    }

    #[test]
    fn every_row_has_work_once() {
        let table = [0, 1, 2, 3, 4, 5, 6, 7];
        let sequence = |rows: std::ops::Range<usize>| SequenceRows { rows, block_table: &table, rope_set: 0 };
        let sequences = [sequence(0..20), sequence(20..21), sequence(21..23)];
        let positions: Vec<u32> = (100..120).chain([500]).chain([7, 8]).collect();
        let batch = batch_of(&sequences, &positions);
        for route in [BOTH, ROWS, TILES] {
            let work = Work::divide(&batch, 0, QWEN, route);
            let mut rows = work.rows.clone();
            for tile in &work.tiles {
                assert!(tile.tokens * 7 <= 64);
                rows.extend(tile.first_row..tile.first_row + tile.tokens);
            }
            rows.sort_unstable();
            assert_eq!(rows, (0..23).collect::<Vec<u32>>(), "{route:?}");
        }
        let work = Work::divide(&batch, 0, QWEN, BOTH);
        assert_eq!(work.rows, [20]);
        assert_eq!(work.tiles[0], Tile { first_row: 18, tokens: 2 });
        assert_eq!(work.span_bucket, 8);
    }

    #[test]
    fn a_batch_decides_the_size_of_its_tiles() {
        let route = route(Format::Bf16, BF16, QWEN, device(232_448)).expect("heads of a model");
        let tokens = |rows: usize| {
            let positions: Vec<u32> = (0..rows as u32).collect();
            let sequences = [SequenceRows { rows: 0..rows, block_table: &[], rope_set: 0 }];
            let work = Work::divide(&batch_of(&sequences, &positions), 0, QWEN, route);
            let longest = work.tiles.iter().take(66).map(|tile| tile.first_row).min();
            assert!(work.tiles.iter().skip(66).all(|tile| Some(tile.first_row) < longest));
            assert_eq!(work.tiles.iter().map(|tile| tile.tokens as usize).sum::<usize>(), rows);
            let most = work.tiles.iter().map(|tile| tile.tokens as usize).max();
            assert_eq!(most, work.tiling.map(|tiling| tiling.tokens(QWEN)));
            most
        };
        assert_eq!(tokens(500), Some(9));
        assert_eq!(tokens(2_048), Some(18));
        assert_eq!(tokens(8_192), Some(27));
        let single = SequenceRows { rows: 0..1, block_table: &[], rope_set: 0 };
        assert_eq!(Work::divide(&batch_of(&[single], &[7]), 0, QWEN, route).tiling, None);
    }

    #[test]
    fn records_fit_their_scratch() {
        let matrix = Single::Matrix { warps: 8, blocks: 132 };
        for (context, sequences) in [(64, 1), (4096, 8), (131_072, 64)] {
            let limits = Limits { rows: 512, outputs: 1, sequences, pages: 1, page_size: 16, context };
            for mask in [Mask::Causal, Mask::SlidingWindow { window: 1000 }] {
                for (single, rows) in [(Single::Fma, limits.rows), (matrix, sequences)] {
                    let route = match single {
                        Single::Fma => Route::Rows(single),
                        Single::Matrix { .. } => Route::RowsAndTiles(single, Tiling::Fma),
                    };
                    let scratch = scratch_bytes(QWEN, &limits, mask, route);
                    for spans in (0..=11).map(|power| 1 << power).filter(|spans| spans * SPAN <= context) {
                        let records = single.records(spans, mask);
                        let rows = single.rows_at_once(QWEN, records).min(rows);
                        assert!(rows * QWEN.query * records * QWEN.dim * 4 <= scratch.0);
                        assert!(rows * QWEN.query * records * 8 <= scratch.1);
                    }
                }
            }
        }
        let limits = Limits { rows: 8, outputs: 1, sequences: 8, pages: 1, page_size: 16, context: 4096 };
        assert_eq!(scratch_bytes(QWEN, &limits, Mask::Causal, TILES), (0, 0));
    }
}
