//! Attention of single query rows: `kernels/attention_decode_mma.cu` on the tensor cores, `kernels/attention_decode.cu` on
//! the CUDA cores, and `kernels/attention_merge.cu`.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::{Heads, Mask};

use super::attention::{self, SECTION, SPAN, Unit};
use super::cache;
use super::products::Capabilities;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Query heads of one key head that the kernel for the CUDA cores can serve: they have registers each.
const MAX_FMA_GROUP: usize = 16;

/// Bytes of records at most, where one row does not need more.
const RECORD_BUDGET: usize = 64 << 20;

/// Rows of a launch, at most: the limit of a grid's third dimension.
const MAX_ROWS: usize = 65_535;

/// How single rows are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single {
    /// On the CUDA cores: a block for each span, whose result is a record.
    Fma,
    /// On the tensor cores: a block for each section, whose result is a record; or, where there are more sections than the
    /// device works on at a time, for every so many of them.
    Matrix {
        /// Warps of a block, each of which has the vectors of a span in shared memory.
        warps: usize,
        /// Blocks that have room in the shared memory of all multiprocessors at a time.
        blocks: usize,
    },
}

/// The launches for a number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launches {
    /// Attention.
    pub decode: Launch,
    /// Merges records, where there are any.
    pub merge: Option<Launch>,
}

impl Single {
    /// The kernel for a unit, heads and a cache on a device; `None` where there is none, or it does not fit.
    pub fn choose(unit: Unit, cache: CacheFormat, heads: Heads, device: Capabilities) -> Option<Single> {
        let shared = device.shared_per_block as usize;
        match unit {
            Unit::Fma => {
                // The kernel has static shared memory as well.
                let needed = fma_shared(heads.dim, cache.format) + fma_static_shared(heads);
                (attention::group(heads) <= MAX_FMA_GROUP && needed <= shared).then_some(Single::Fma)
            }
            Unit::Matrix => [8, 4, 2, 1].into_iter().find_map(|warps| {
                let each = shared / matrix_shared(warps, heads, cache);
                let blocks = each * device.multiprocessors as usize;
                (each > 0).then_some(Single::Matrix { warps, blocks })
            }),
        }
    }

    /// Spans of a record.
    fn record_spans(self) -> usize {
        match self {
            Single::Fma => 1,
            Single::Matrix { .. } => SECTION,
        }
    }

    /// The most records of a row that has `spans` spans of positions up to its own.
    pub fn records(self, spans: usize, mask: Mask) -> usize {
        let all = spans.div_ceil(self.record_spans());
        match mask {
            Mask::Causal => all,
            // A window that starts within a record touches one more.
            Mask::SlidingWindow { window } => {
                all.min(window.div_ceil(self.record_spans() * SPAN).saturating_add(1))
            }
        }
    }

    /// The kernel of single rows, and the one that merges their records.
    pub fn specs(self, activations: Format, cache: CacheFormat, heads: Heads) -> (KernelSpec, KernelSpec) {
        let aliases = |more: &[(&'static str, usize)]| {
            let mut aliases = cache::aliases(activations, cache);
            aliases.push(Alias::count("DIM", heads.dim as u32));
            aliases.extend(more.iter().map(|&(name, count)| Alias::count(name, count as u32)));
            aliases
        };
        let group = ("GROUP", attention::group(heads));
        let decode = match self {
            Single::Fma => KernelSpec {
                file: SourceFile::AttentionDecode,
                entry: "attention_decode",
                aliases: aliases(&[group]),
            },
            Single::Matrix { warps, .. } => {
                let shared = matrix_shared(warps, heads, cache);
                KernelSpec {
                    file: SourceFile::AttentionDecodeMma,
                    entry: "attention_decode_mma",
                    aliases: aliases(&[group, ("WARPS", warps), ("SHARED", shared)]),
                }
            }
        };
        let merge = KernelSpec {
            file: SourceFile::AttentionMerge,
            entry: "attention_merge",
            aliases: aliases(&[("RECORD", self.record_spans() * SPAN)]),
        };
        (decode, merge)
    }

    /// The launches for rows that have `records` records at most.
    pub fn launches(self, heads: Heads, cache: CacheFormat, rows: usize, records: usize) -> Launches {
        let merge = Launch { grid: [heads.query as u32, rows as u32, 1], block: 128, shared: 0 };
        let (across, decode) = match self {
            Single::Fma => {
                let shared = fma_shared(heads.dim, cache.format) as u32;
                let grid = [records as u32, heads.key_value as u32, rows as u32];
                (records, Launch { grid, block: 128, shared })
            }
            Single::Matrix { warps, blocks } => {
                let tiles = heads.key_value * attention::group(heads).div_ceil(matrix_heads(heads));
                // As many sections a block as it takes for all blocks to run at the same time.
                let each = (rows * tiles * records).div_ceil(blocks.max(1)).clamp(1, records.max(1));
                let across = records.div_ceil(each);
                let shared = matrix_shared(warps, heads, cache) as u32;
                let grid = [across as u32, tiles as u32, rows as u32];
                (across, Launch { grid, block: 32 * warps as u32, shared })
            }
        };
        Launches { decode, merge: (across > 1).then_some(merge) }
    }

    /// Rows that one launch takes: as many as there is room for their records. Further ones go to further launches, whose
    /// `rows` address starts later.
    pub fn rows_at_once(self, heads: Heads, records: usize) -> usize {
        let (outputs, softmax) = record_bytes(heads, records);
        (RECORD_BUDGET / outputs.saturating_add(softmax).max(1)).clamp(1, MAX_ROWS)
    }

    /// Bytes of outputs and of softmaxes that suffice for every batch with up to `rows` single rows of at most `records`
    /// records.
    pub fn scratch_bytes(self, heads: Heads, rows: usize, records: usize) -> (usize, usize) {
        // Fewer records allow more rows at once, but never more bytes than the budget or one row's.
        let (outputs, softmax) = record_bytes(heads, records);
        let bound = |bytes: usize| bytes.saturating_mul(rows).min(bytes.max(RECORD_BUDGET));
        (bound(outputs), bound(softmax))
    }
}

/// Bytes of the records of one row: outputs, and (largest score, sum) pairs.
fn record_bytes(heads: Heads, records: usize) -> (usize, usize) {
    let records = heads.query.saturating_mul(records);
    (records.saturating_mul(heads.dim * size_of::<f32>()), records.saturating_mul(2 * size_of::<f32>()))
}

fn packs(dim: usize, format: Format) -> usize {
    (dim * format.bytes()).div_ceil(16)
}

/// Dynamic shared memory on the CUDA cores: keys, and beside them values where both fit 64 KiB.
fn fma_shared(dim: usize, format: Format) -> usize {
    let values = packs(dim, format);
    let keys = values | 1;
    let together = SPAN * (keys + values) * 16;
    if together <= 64 << 10 { together } else { SPAN * keys * 16 }
}

fn fma_static_shared(heads: Heads) -> usize {
    (attention::group(heads) * (heads.dim + SPAN + 2) + 3 * SPAN) * size_of::<f32>()
}

/// Query heads of a block on the tensor cores: the rows of a matrix step at most, and half of them where heads are wide.
fn matrix_heads(heads: Heads) -> usize {
    attention::group(heads).clamp(1, if heads.dim > 128 { 8 } else { 16 })
}

/// The size of `Shared` of `kernels/attention_decode_mma.cu`, which is checked when that is compiled.
fn matrix_shared(warps: usize, heads: Heads, cache: CacheFormat) -> usize {
    const FLOAT: usize = size_of::<f32>();
    let dim = heads.dim.next_multiple_of(16);
    let scales = if cache.scales.is_some() { 2 * SPAN * FLOAT } else { 2 * 4 * FLOAT };
    let packs = packs(dim, cache.format);
    // Vectors that are not whole lines of banks start an odd number of packs apart.
    let row = if packs.is_multiple_of(8) || packs == 4 { packs } else { packs | 1 };
    let staged = 2 * SPAN * row * 16 + scales;
    let of_head = (SECTION + 1) * (dim + 4) * FLOAT + (6 * SECTION + heads.dim) * FLOAT;
    let all = warps * staged + matrix_heads(heads) * of_head;
    all.next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Arch;

    const QWEN: Heads = Heads { query: 14, key_value: 2, dim: 64 };
    const BF16: CacheFormat = CacheFormat::plain(Format::Bf16);
    const H200: Capabilities =
        Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block: 232_448 };

    #[test]
    fn warps_follow_shared_memory() {
        let small = Capabilities {
            arch: Arch { major: 8, minor: 9 },
            multiprocessors: 76,
            shared_per_block: 101_376,
        };
        let choose = |heads, cache, device| Single::choose(Unit::Matrix, cache, heads, device);
        assert_eq!(choose(QWEN, BF16, H200), Some(Single::Matrix { warps: 8, blocks: 132 }));
        assert_eq!(choose(QWEN, BF16, small), Some(Single::Matrix { warps: 4, blocks: 76 }));
        let e4m3 = CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) };
        assert_eq!(choose(QWEN, e4m3, H200), Some(Single::Matrix { warps: 8, blocks: 264 }));
        let wide = Heads { query: 32, key_value: 2, dim: 256 };
        assert_eq!(choose(wide, BF16, H200), Some(Single::Matrix { warps: 2, blocks: 132 }));
        assert_eq!(choose(wide, BF16, small), None);
        let many = Heads { query: 34, key_value: 2, dim: 64 };
        assert_eq!(Single::choose(Unit::Fma, BF16, many, H200), None);
    }

    #[test]
    fn records_are_spans_or_sections() {
        let matrix = Single::Matrix { warps: 8, blocks: 132 };
        let window = Mask::SlidingWindow { window: 64 };
        for (single, spans, causal, windowed) in [
            (Single::Fma, 8, 8, 2),
            (matrix, 8, 1, 1),
            (matrix, 9, 2, 2),
            (matrix, 64, 8, 2),
            (matrix, 0, 0, 0),
        ] {
            assert_eq!(single.records(spans, Mask::Causal), causal);
            assert_eq!(single.records(spans, window), windowed);
        }
    }

    #[test]
    fn sections_are_spread_over_the_device() {
        let single = Single::Matrix { warps: 8, blocks: 132 };
        let across = |heads, rows, records| {
            let Launches { decode, merge } = single.launches(heads, BF16, rows, records);
            assert_eq!(merge.is_some(), decode.grid[0] > 1);
            decode.grid
        };
        assert_eq!(across(QWEN, 1, 1), [1, 2, 1]);
        assert_eq!(across(QWEN, 1, 64), [64, 2, 1]);
        // 32 key heads of rows with 4 sections are as many blocks as run at a time.
        assert_eq!(across(QWEN, 16, 4), [4, 2, 16]);
        assert_eq!(across(QWEN, 128, 4), [1, 2, 128]);
        let llama = Heads { query: 32, key_value: 8, dim: 64 };
        assert_eq!(across(llama, 1, 64), [16, 8, 1]);
        let many = Heads { query: 34, key_value: 2, dim: 64 };
        assert_eq!(across(many, 1, 1), [1, 4, 1]);
    }
}
