//! Flash attention over the paged cache: `kernels/attention_{decode,merge}.cu`, and those of [`tiles`](super::tiles).
//!
//! Single rows of a sequence are split into their spans, one block for each span and key head, whose results a second
//! kernel merges; longer runs of rows are cut into tiles. Both give the same bits, so that which rows go where is a matter
//! of speed.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, Order};
use mantissa_ops::batch::{Batch, Limits};
use mantissa_ops::op::{Heads, Mask};

use super::batch::BatchView;
use super::cache::{self, CacheLayer};
use super::tiles::{Tile, Tiling};
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Positions of a span.
pub const SPAN: usize = 64;

/// The order of attention's sums: spans, merged ascending. Within a span a score is one ascending chain over the head's
/// dimensions, the sum of weights is 16 chains (position modulo 16) and a tree, and an output is one ascending chain.
pub const ORDER: Order = Order::Spans { positions: SPAN };

/// Query heads of one key head that the kernel of single rows can serve: they have registers each.
const MAX_DECODE_GROUP: usize = 16;

/// Bytes of partial results at most, where one row does not need more.
const PARTS_BUDGET: usize = 64 << 20;

/// Rows of a launch of the kernels of single rows, at most: the limit of a grid's third dimension.
const MAX_ROWS: usize = 65_535;

/// Arguments of the three kernels; strides in values.
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
    pub spans: u32,
    pub scale: f32,
    pub unused: u32,
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

/// Query heads of each key head.
pub(super) fn group(heads: Heads) -> usize {
    heads.query.checked_div(heads.key_value).unwrap_or(0)
}

/// Heads for which there is no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no attention kernel for {} query heads, {} key heads of {} values: a head may have up to 256 values, a multiple of \
     8, and a key head up to 64 query heads, or 16 where heads of that width do not fit the device's shared memory of \
     {shared} bytes a block",
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
    RowsAndTiles(Tiling),
    /// Every row by the kernel of single rows: tiles do not fit the device's shared memory.
    Rows,
    /// Every row in tiles: there are too many query heads for the kernel of single rows.
    Tiles(Tiling),
}

impl Route {
    /// How it cuts rows into tiles, if it does.
    pub fn tiling(self) -> Option<Tiling> {
        match self {
            Route::RowsAndTiles(tiling) | Route::Tiles(tiling) => Some(tiling),
            Route::Rows => None,
        }
    }
}

/// Chooses the kernels for queries of a format, heads and a cache on a device whose blocks can have `shared` bytes of
/// shared memory.
///
/// # Errors
/// [`UnsupportedHeads`] where no kernel fits.
pub fn route(
    activations: Format,
    cache: CacheFormat,
    heads: Heads,
    shared: u32,
) -> Result<Route, UnsupportedHeads> {
    let group = group(heads);
    let possible = group > 0 && heads.dim > 0 && heads.dim.is_multiple_of(8) && heads.dim <= 256;
    // The kernel of single rows has static shared memory as well.
    let rows = group <= MAX_DECODE_GROUP
        && decode_shared(heads.dim, cache.format) + decode_static_shared(heads) <= shared as usize;
    let tiling = Tiling::choose(unit(activations, cache), heads, shared).filter(|_| possible);
    match (possible && rows, tiling) {
        (true, Some(tiling)) => Ok(Route::RowsAndTiles(tiling)),
        (true, None) => Ok(Route::Rows),
        (false, Some(tiling)) => Ok(Route::Tiles(tiling)),
        (false, None) => Err(UnsupportedHeads { heads, shared }),
    }
}

/// The kernels of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specs {
    /// The kernel of single rows, and the one that merges their spans.
    pub rows: Option<(KernelSpec, KernelSpec)>,
    /// The kernel of tiles.
    pub tiles: Option<KernelSpec>,
}

/// The kernels for queries and a cache of these formats.
pub fn specs(activations: Format, cache: CacheFormat, heads: Heads, route: Route) -> Specs {
    let group = (heads.query / heads.key_value.max(1)) as u32;
    let aliases = || {
        let mut aliases = cache::aliases(activations, cache);
        aliases.push(Alias::count("DIM", heads.dim as u32));
        aliases
    };
    let rows = || {
        let mut of_group = aliases();
        of_group.push(Alias::count("GROUP", group));
        let decode =
            KernelSpec { file: SourceFile::AttentionDecode, entry: "attention_decode", aliases: of_group };
        let merge =
            KernelSpec { file: SourceFile::AttentionMerge, entry: "attention_merge", aliases: aliases() };
        (decode, merge)
    };
    let by_rows = !matches!(route, Route::Tiles(_));
    let tiles = route.tiling().map(|tiling| tiling.spec(activations, cache, heads));
    Specs { rows: by_rows.then(rows), tiles }
}

/// Which rows of a batch go to which kernel. The lists are uploaded with the batch and serve all layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows on their own.
    pub rows: Vec<u32>,
    /// Tiles, those that see most first, so that blocks end together.
    pub tiles: Vec<Tile>,
    /// The most spans of all positions up to its own that any of the rows on their own has, as the next power of two, so
    /// that launches stay the same from one token to the next.
    pub span_bucket: usize,
}

impl Work {
    /// Divides a batch.
    pub fn divide(batch: &Batch<'_>, heads: Heads, route: Route) -> Work {
        let step = route.tiling().map_or(1, |tiling| tiling.tokens(heads));
        let mut work = Work::default();
        for sequence in batch.sequences {
            let rows = sequence.rows.clone();
            let single = match route {
                Route::RowsAndTiles(_) => rows.len() == 1,
                Route::Rows => true,
                Route::Tiles(_) => false,
            };
            if single {
                work.rows.extend(rows.map(|row| row as u32));
                continue;
            }
            for first in rows.clone().step_by(step) {
                let tokens = step.min(rows.end - first) as u32;
                work.tiles.push(Tile { first_row: first as u32, tokens });
            }
        }
        let spans = |row: &u32| batch.positions.get(*row as usize).map_or(0, |&at| at as usize / SPAN + 1);
        work.span_bucket = work.rows.iter().map(spans).max().map_or(0, usize::next_power_of_two);
        work.tiles.sort_by_key(|tile| {
            std::cmp::Reverse(batch.positions.get(tile.first_row as usize).copied().unwrap_or(0))
        });
        work
    }

    /// Spans that launches for the rows on their own are made for.
    pub fn spans(&self, mask: Mask) -> usize {
        within_window(self.span_bucket, mask)
    }
}

/// The most spans that launches of a session are made for.
pub fn most_spans(limits: &Limits, mask: Mask) -> usize {
    let all = limits.context.div_ceil(SPAN);
    within_window(all.checked_next_power_of_two().unwrap_or(all), mask)
}

/// The spans that a mask leaves of `all`.
fn within_window(all: usize, mask: Mask) -> usize {
    match mask {
        Mask::Causal => all,
        // A window that starts within a span touches one more.
        Mask::SlidingWindow { window } => all.min(window.div_ceil(SPAN).saturating_add(1)),
    }
}

/// Bytes of partial results of one row with `spans` spans: outputs, and (largest score, sum) pairs.
fn part_bytes(heads: Heads, spans: usize) -> (usize, usize) {
    let records = heads.query.saturating_mul(spans);
    (records.saturating_mul(heads.dim * size_of::<f32>()), records.saturating_mul(2 * size_of::<f32>()))
}

/// Rows on their own that one launch takes: as many as the partial results have room for. Further ones go to further
/// launches, whose `rows` address starts later.
pub fn rows_at_once(heads: Heads, spans: usize) -> usize {
    let (outputs, softmax) = part_bytes(heads, spans);
    (PARTS_BUDGET / outputs.saturating_add(softmax).max(1)).clamp(1, MAX_ROWS)
}

/// Bytes of `parts` and of `part_softmax` that suffice for every batch of a session.
pub fn scratch_bytes(heads: Heads, limits: &Limits, mask: Mask, route: Route) -> (usize, usize) {
    let rows = match route {
        Route::RowsAndTiles(_) => limits.sequences.min(limits.rows),
        Route::Rows => limits.rows,
        Route::Tiles(_) => return (0, 0),
    };
    // Fewer spans allow more rows at once, but never more bytes than the budget or one row's.
    let (outputs, softmax) = part_bytes(heads, most_spans(limits, mask));
    let bound = |bytes: usize| bytes.saturating_mul(rows).min(bytes.max(PARTS_BUDGET));
    (bound(outputs), bound(softmax))
}

fn packs(dim: usize, format: Format) -> usize {
    (dim * format.bytes()).div_ceil(16)
}

/// Dynamic shared memory of the kernel of single rows: keys, and beside them values where both fit 64 KiB.
fn decode_shared(dim: usize, format: Format) -> usize {
    let values = packs(dim, format);
    let keys = values | 1;
    let together = SPAN * (keys + values) * 16;
    if together <= 64 << 10 { together } else { SPAN * keys * 16 }
}

fn decode_static_shared(heads: Heads) -> usize {
    let group = heads.query / heads.key_value.max(1);
    (group * (heads.dim + SPAN + 2) + 3 * SPAN) * size_of::<f32>()
}

/// The launch of the kernel of single rows, for `rows` of them and `spans` spans at most.
pub fn decode_launch(heads: Heads, cache: CacheFormat, rows: usize, spans: usize) -> Launch {
    let shared = decode_shared(heads.dim, cache.format) as u32;
    Launch { grid: [spans as u32, heads.key_value as u32, rows as u32], block: 128, shared }
}

/// The launch that merges the spans of the same rows; not needed where no row has more than one.
pub fn merge_launch(heads: Heads, rows: usize) -> Launch {
    Launch { grid: [heads.query as u32, rows as u32, 1], block: 128, shared: 0 }
}

#[cfg(test)]
mod tests {
    use mantissa_ops::batch::SequenceRows;

    use super::*;

    const QWEN: Heads = Heads { query: 14, key_value: 2, dim: 64 };
    const BF16: CacheFormat = CacheFormat::plain(Format::Bf16);
    const BOTH: Route = Route::RowsAndTiles(Tiling::Fma);
    const TILES: Route = Route::Tiles(Tiling::Fma);

    fn batch_of<'a>(sequences: &'a [SequenceRows<'a>], positions: &'a [u32]) -> Batch<'a> {
        Batch { tokens: positions, positions, sequences, outputs: &[] }
    }

    #[test]
    fn routes_follow_heads_and_shared_memory() {
        // f16 with bf16: not for the tensor cores.
        let fma = |heads, shared| route(Format::F16, BF16, heads, shared);
        assert_eq!(fma(QWEN, 101_376), Ok(BOTH));
        let wide = Heads { dim: 256, ..QWEN };
        assert_eq!(fma(wide, 101_376), Ok(Route::Rows));
        assert_eq!(fma(wide, 232_448), Ok(BOTH));
        let many = Heads { query: 64, key_value: 2, dim: 128 };
        assert_eq!(fma(many, 101_376), Ok(TILES));
        for heads in [Heads { dim: 20, ..QWEN }, Heads { dim: 320, ..QWEN }, Heads { query: 0, ..QWEN }] {
            assert_eq!(fma(heads, 232_448), Err(UnsupportedHeads { heads, shared: 232_448 }));
        }
        let too_many = Heads { query: 130, key_value: 1, dim: 64 };
        for activations in [Format::F16, Format::Bf16] {
            assert!(route(activations, BF16, too_many, 232_448).is_err());
        }
        for activations in [Format::F32, Format::F16, Format::Bf16] {
            for cache in [Format::F32, Format::F16, Format::F8E4M3] {
                for dim in (8..=256).step_by(8) {
                    let heads = Heads { query: 4, key_value: 4, dim };
                    let route = route(activations, CacheFormat::plain(cache), heads, 101_376);
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
        assert_eq!(merge.to_string(), "attention_merge.attention_merge[A=f16,C=bf16,S=f32,SCALED=0,DIM=64]");
        assert!(both.tiles.is_some());
        assert_eq!(specs(Format::F16, BF16, QWEN, TILES).rows, None);
        assert_eq!(specs(Format::F16, BF16, QWEN, Route::Rows).tiles, None);
    }

    #[test]
    fn every_row_has_work_once() {
        let table = [0, 1, 2, 3, 4, 5, 6, 7];
        let sequence = |rows: std::ops::Range<usize>| SequenceRows { rows, block_table: &table, rope_set: 0 };
        let sequences = [sequence(0..20), sequence(20..21), sequence(21..23)];
        let positions: Vec<u32> = (100..120).chain([500]).chain([7, 8]).collect();
        let batch = batch_of(&sequences, &positions);
        for route in [BOTH, Route::Rows, TILES] {
            let work = Work::divide(&batch, QWEN, route);
            let mut rows = work.rows.clone();
            for tile in &work.tiles {
                assert!(tile.tokens * 7 <= 64);
                rows.extend(tile.first_row..tile.first_row + tile.tokens);
            }
            rows.sort_unstable();
            assert_eq!(rows, (0..23).collect::<Vec<u32>>(), "{route:?}");
        }
        let work = Work::divide(&batch, QWEN, BOTH);
        assert_eq!(work.rows, [20]);
        assert_eq!(work.tiles[0], Tile { first_row: 18, tokens: 2 });
        assert_eq!(work.span_bucket, 8);
        assert_eq!(work.spans(Mask::Causal), 500 / 64 + 1);
        assert_eq!(work.spans(Mask::SlidingWindow { window: 64 }), 2);
        assert_eq!(Work::default().spans(Mask::Causal), 0);
    }

    #[test]
    fn partial_results_fit_their_scratch() {
        for (context, sequences) in [(64, 1), (4096, 8), (131_072, 64)] {
            let limits = Limits { rows: 512, outputs: 1, sequences, pages: 1, page_size: 16, context };
            for mask in [Mask::Causal, Mask::SlidingWindow { window: 1000 }] {
                for route in [BOTH, Route::Rows] {
                    let (outputs, softmax) = scratch_bytes(QWEN, &limits, mask, route);
                    let most = most_spans(&limits, mask);
                    let rows = if route == Route::Rows { limits.rows } else { sequences };
                    for spans in [1, most.div_ceil(2), most] {
                        let rows = rows_at_once(QWEN, spans).min(rows);
                        assert!(rows * part_bytes(QWEN, spans).0 <= outputs);
                        assert!(rows * part_bytes(QWEN, spans).1 <= softmax);
                    }
                }
            }
        }
        let limits = Limits { rows: 8, outputs: 1, sequences: 8, pages: 1, page_size: 16, context: 4096 };
        assert_eq!(scratch_bytes(QWEN, &limits, Mask::Causal, TILES), (0, 0));
    }
}
