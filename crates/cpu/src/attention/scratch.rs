//! Memory of attention: what each thread needs for a tile, and partial results of spans.

use std::ops::Range;
use std::sync::Mutex;

use mantissa_ops::batch::Limits;
use mantissa_ops::op::Heads;

use super::{CHUNK, SPAN, Task};
use crate::aligned::{AlignedBuffer, OutOfMemory};
use crate::pool::Pool;
use crate::simd::LANES;

/// Query rows (tokens times query heads of one key head) that a tile aims at.
const TILE_ROWS: usize = 96;

/// Distance of rows of scores: not a power of two, which would put all rows in the same cache sets.
pub(super) const SCORE_STRIDE: usize = SPAN + LANES;

/// Allocated once; passed to every call of [`attention`](super::attention).
#[derive(Debug)]
pub struct AttentionWorkspace {
    pub(super) threads: Vec<Mutex<AlignedBuffer>>,
    /// One record per span, key head and query head of the group; see [`Shape::record`].
    pub(super) partials: AlignedBuffer,
    pub(super) tasks: Vec<Task>,
    pub(super) merges: Vec<Task>,
    shape: Shape,
}

/// Sizes that depend on the heads alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub heads: Heads,
}

impl Shape {
    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    /// Vectors of a head, the last one filled up with zeros.
    pub(super) fn vectors(&self) -> usize {
        self.heads.dim.div_ceil(LANES)
    }

    /// Values of a head, filled up to whole vectors.
    pub(super) fn padded(&self) -> usize {
        self.vectors() * LANES
    }

    /// Tokens of a tile.
    pub(super) fn tile_tokens(&self) -> usize {
        (TILE_ROWS / self.group()).max(1)
    }

    /// Rows of a tile.
    fn tile_rows(&self) -> usize {
        self.tile_tokens() * self.group()
    }

    /// Values of a partial result: the unnormalised output, then largest score and sum.
    pub(super) fn record(&self) -> usize {
        self.padded() + LANES
    }

    /// Values of the partial results of one span, all heads.
    pub(super) fn span_record(&self) -> usize {
        self.heads.query * self.record()
    }

    /// Values of each part of a thread's scratch, in the order of the fields of [`TileScratch`].
    fn parts(&self) -> [usize; 8] {
        let rows = self.tile_rows();
        let statistics = rows.next_multiple_of(LANES);
        [
            rows * self.heads.dim.next_multiple_of(LANES),
            rows * SCORE_STRIDE,
            rows * self.padded(),
            rows * self.padded(),
            2 * statistics,
            2 * statistics,
            CHUNK * self.padded(),
            2 * SPAN,
        ]
    }
}

/// A thread's scratch for one tile.
pub(super) struct TileScratch<'a> {
    /// `[rows][dim]`.
    pub query: &'a mut [f32],
    /// `[rows][SCORE_STRIDE]`, of which `SPAN` count: scores, then weights.
    pub scores: &'a mut [f32],
    /// `[rows][padded]`: output of the span at hand.
    pub part: &'a mut [f32],
    /// `[rows][padded]`: output of the spans so far.
    pub out: &'a mut [f32],
    /// `[rows][2]`: largest score and sum of weights of the span at hand.
    pub part_softmax: &'a mut [[f32; 2]],
    /// `[rows][2]`: those of the spans so far.
    pub softmax: &'a mut [[f32; 2]],
    /// Decoded keys, `[block][dim]` vectors, or values, `[vector][CHUNK]` vectors.
    pub chunk: &'a mut [[f32; LANES]],
    /// Scales of the span's keys.
    pub key_scales: &'a mut [f32],
    /// Scales of the span's values.
    pub value_scales: &'a mut [f32],
}

impl<'a> TileScratch<'a> {
    /// The parts of a thread's buffer.
    pub(super) fn split(shape: &Shape, buffer: &'a mut [u8]) -> TileScratch<'a> {
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(buffer);
        let mut parts = shape.parts().map(|length| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(length);
            rest = tail;
            part
        });
        let [query, scores, part, out, part_softmax, softmax, chunk, scales] =
            parts.each_mut().map(std::mem::take);
        let (key_scales, value_scales) = scales.split_at_mut(SPAN);
        TileScratch {
            query,
            scores,
            part,
            out,
            part_softmax: part_softmax.as_chunks_mut().0,
            softmax: softmax.as_chunks_mut().0,
            chunk: chunk.as_chunks_mut().0,
            key_scales,
            value_scales,
        }
    }
}

impl AttentionWorkspace {
    /// Memory for batches within `limits`.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(heads: Heads, limits: &Limits, pool: &Pool) -> Result<AttentionWorkspace, OutOfMemory> {
        let huge = OutOfMemory { bytes: usize::MAX };
        let shape = Shape { heads };
        if crate::operands::check_heads(heads).is_err() {
            return Err(huge);
        }
        let thread_bytes = shape.parts().iter().sum::<usize>() * size_of::<f32>();
        let mut threads = Vec::new();
        for _ in 0..pool.threads() {
            threads.push(Mutex::new(AlignedBuffer::zeroed(thread_bytes)?));
        }
        // Contexts of all sequences together, unless they share pages; those that do not fit are not split.
        let cached = limits.pages.saturating_mul(limits.page_size).div_ceil(SPAN);
        let longest = limits.context.div_ceil(SPAN).saturating_mul(limits.sequences);
        let spans = longest.min(cached.saturating_add(limits.sequences));
        let bytes = spans.checked_mul(shape.span_record() * size_of::<f32>()).ok_or(huge)?;
        let partials = AlignedBuffer::zeroed(bytes)?;
        let tiles = limits.rows.div_ceil(shape.tile_tokens()).saturating_add(limits.sequences);
        let count = tiles.saturating_add(spans).checked_mul(heads.key_value).ok_or(huge)?;
        Ok(AttentionWorkspace {
            threads,
            partials,
            tasks: list(count)?,
            merges: list(limits.sequences.saturating_mul(heads.key_value))?,
            shape,
        })
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Spans whose partial results fit.
    pub(super) fn span_capacity(&self) -> usize {
        self.partials.len() / (self.shape.span_record() * size_of::<f32>())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let threads = self.threads.len() * self.shape.parts().iter().sum::<usize>() * size_of::<f32>();
        threads + self.partials.len() + (self.tasks.capacity() + self.merges.capacity()) * size_of::<Task>()
    }
}

fn list(count: usize) -> Result<Vec<Task>, OutOfMemory> {
    let mut list = Vec::new();
    let bytes = count.saturating_mul(size_of::<Task>());
    list.try_reserve_exact(count).map_err(|_| OutOfMemory { bytes })?;
    Ok(list)
}

/// Values of the partial results of a key head in a span.
pub(super) fn partial_range(shape: &Shape, span: usize, kv_head: usize) -> Range<usize> {
    let head_records = shape.group() * shape.record();
    let start = span * shape.span_record() + kv_head * head_records;
    start..start + head_records
}
