//! Flash attention over the paged cache, for prefill and decode.
//!
//! The numeric contract ([`Order::Spans`](mantissa_numerics::contract::Order::Spans)), which depends on absolute
//! positions only, so that chunks of a prompt, batches, threads and instruction sets do not change a bit:
//! - a score is one chain of fused multiply-adds over the head's dimensions, then multiplied by the scale (and by the
//!   key's stored scale, where the cache has one);
//! - each span of [`SPAN`] positions has a softmax of its own: its largest visible score, the sum of `exp(score -
//!   largest)` in 16 chains (position modulo 16) and then as a tree, and for each dimension of the output one chain
//!   of fused multiply-adds over the span's visible positions, ascending (weights stay f32, and are multiplied by
//!   the value's stored scale, where the cache has one);
//! - spans are merged in ascending order, both sides scaled to the larger maximum (Dao et al., FlashAttention; Milakov
//!   and Gimelshein, Online normalizer calculation for softmax);
//! - the sum divides once, and the result is rounded once.
//!
//! Masked positions take part in nothing. Prefill takes tiles of some tokens with all query heads that share a key
//! head, and decodes each chunk of keys and values once per tile. A sequence with one row is split into its spans,
//! whose results are merged afterwards, so that long contexts use all threads.

mod scratch;
mod span;
mod tile;

use std::sync::PoisonError;

use mantissa_numerics::{E4M3, Element, Format};
use mantissa_ops::batch::Batch;
use mantissa_ops::op::{Heads, Mask};

use crate::cache::KvCache;
use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{Machine, OperandError, Storable, check_length, expect, typed};
use crate::simd::{SimdElement, dispatch};

pub use scratch::AttentionWorkspace;
use scratch::{Shape, TileScratch, partial_range};
use span::{Finish, MergeSpans, Tile, TileKernel};

/// Positions of a span.
pub const SPAN: usize = 512;

/// Positions decoded at a time; divides [`SPAN`].
const CHUNK: usize = 64;

/// Operands of [`attention`]; queries and outputs have one format.
#[derive(Debug)]
pub struct AttentionArgs<'a> {
    /// `[rows, heads.query * heads.dim]`.
    pub query: Elements<'a>,
    /// Keys and values, those of the batch's own rows included.
    pub cache: &'a KvCache,
    /// Layer of the cache.
    pub layer: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Which positions a query sees.
    pub mask: Mask,
    /// Positions and pages of the rows. [`Batch::check`] has accepted it.
    pub batch: &'a Batch<'a>,
    /// Memory, whose heads are those of the query.
    pub workspace: &'a mut AttentionWorkspace,
    /// `[rows, heads.query * heads.dim]`.
    pub out: ElementsMut<'a>,
}

/// One tile of query rows with one key head, or one span of it.
#[derive(Clone, Copy, Debug)]
struct Task {
    sequence: usize,
    /// First row in the batch.
    row: usize,
    tokens: usize,
    kv_head: usize,
    /// What is computed of it.
    part: Part,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// Everything.
    Whole,
    /// One span, to be merged: its number in the sequence, and its place among the partial results.
    Span { span: usize, slot: usize },
    /// The merging of spans whose partial results start at a place.
    Merged { spans: usize, slot: usize },
}

/// `out = softmax(scale * query . keys) values` for each row and query head; see the [module](self).
///
/// # Errors
/// [`OperandError`] where lengths, formats, heads or pages do not fit together; nothing is written.
pub fn attention(machine: Machine<'_>, args: AttentionArgs<'_>) -> Result<(), OperandError> {
    let AttentionArgs { query, cache, layer, scale, mask, batch, workspace, out } = args;
    let shape = workspace.shape();
    check(&shape, cache, layer, batch)?;
    check_length("queries of attention", batch.rows() * shape.heads.query_width(), query.len())?;
    check_length("output of attention", query.len(), out.len())?;
    let run = Run { machine, shape, cache, layer, scale, mask, batch };
    run.plan(workspace)?;
    typed!(ElementsMut, out, out => run.execute(expect("queries of attention", &query)?, workspace, out));
    Ok(())
}

fn check(shape: &Shape, cache: &KvCache, layer: usize, batch: &Batch<'_>) -> Result<(), OperandError> {
    let layout = cache.layout();
    check_length("heads of the cache", shape.heads.key_value, layout.heads)?;
    check_length("head dimension of the cache", shape.heads.dim, layout.head_dim)?;
    if layer >= layout.layers {
        let limit = layout.layers.saturating_sub(1);
        return Err(OperandError::Limit { operand: "layer", got: layer, limit });
    }
    cache.check_pages(batch)
}

/// A call, without what it writes.
#[derive(Clone, Copy)]
struct Run<'a> {
    machine: Machine<'a>,
    shape: Shape,
    cache: &'a KvCache,
    layer: usize,
    scale: f32,
    mask: Mask,
    batch: &'a Batch<'a>,
}

/// What the tasks of a call share.
struct Operands<'a, A> {
    query: &'a [A],
    out: Disjoint<'a, A>,
    partials: Disjoint<'a, f32>,
}

impl Run<'_> {
    /// Fills the lists of tasks and of merges.
    fn plan(&self, workspace: &mut AttentionWorkspace) -> Result<(), OperandError> {
        workspace.tasks.clear();
        workspace.merges.clear();
        let (mut slot, capacity) = (0, workspace.span_capacity());
        let (wanted, limit) = (self.task_count(), workspace.tasks.capacity());
        if wanted > limit {
            return Err(OperandError::Limit { operand: "rows of attention", got: wanted, limit });
        }
        for (sequence, rows) in self.batch.sequences.iter().map(|sequence| sequence.rows.clone()).enumerate()
        {
            let task = |row: usize, tokens: usize, kv_head: usize, part: Part| Task {
                sequence,
                row,
                tokens,
                kv_head,
                part,
            };
            let heads = 0..self.shape.heads.key_value;
            let spans = self.tile(&task(rows.start, 1, 0, Part::Whole)).spans();
            let split = rows.len() == 1 && spans.len() > 1 && self.machine.pool.threads() > 1;
            if split
                && slot + spans.len() <= capacity
                && workspace.merges.len() + heads.len() <= workspace.merges.capacity()
            {
                for (index, span) in spans.clone().enumerate() {
                    let part = Part::Span { span, slot: slot + index };
                    workspace.tasks.extend(heads.clone().map(|head| task(rows.start, 1, head, part)));
                }
                let part = Part::Merged { spans: spans.len(), slot };
                workspace.merges.extend(heads.map(|head| task(rows.start, 1, head, part)));
                slot += spans.len();
                continue;
            }
            // Later tiles see more: they come first, so that threads finish together.
            let step = self.shape.tile_tokens();
            for row in rows.clone().step_by(step).rev() {
                let tokens = step.min(rows.end - row);
                workspace.tasks.extend(heads.clone().map(|head| task(row, tokens, head, Part::Whole)));
            }
        }
        Ok(())
    }

    /// Most tasks that the batch can need, spans aside, which have their own limit.
    fn task_count(&self) -> usize {
        let step = self.shape.tile_tokens();
        let tiles: usize =
            self.batch.sequences.iter().map(|sequence| sequence.rows.len().div_ceil(step)).sum();
        tiles * self.shape.heads.key_value
    }

    fn tile(&self, task: &Task) -> Tile<'_> {
        Tile {
            layer: self.layer,
            kv_head: task.kv_head,
            block_table: self.batch.sequences[task.sequence].block_table,
            position: self.batch.positions[task.row] as usize,
            tokens: task.tokens,
            scale: self.scale,
            mask: self.mask,
        }
    }

    fn execute<A: Storable>(&self, query: &[A], workspace: &mut AttentionWorkspace, out: &mut [A]) {
        let AttentionWorkspace { threads, partials, tasks, merges, .. } = workspace;
        let partials = Disjoint::new(bytemuck::cast_slice_mut(partials));
        let operands = Operands { query, out: Disjoint::new(out), partials };
        for tasks in [&*tasks, &*merges] {
            self.machine.pool.run(tasks.len(), |task| {
                let mut buffer = threads[task.worker].lock().unwrap_or_else(PoisonError::into_inner);
                let mut scratch = TileScratch::split(&self.shape, &mut buffer);
                self.execute_task(&tasks[task.index], &operands, &mut scratch);
            });
        }
    }

    fn execute_task<A: Storable>(
        &self,
        task: &Task,
        operands: &Operands<'_, A>,
        scratch: &mut TileScratch<'_>,
    ) {
        match task.part {
            Part::Whole => {
                self.compute(task, operands.query, None, scratch);
                self.store(task, &operands.out, scratch);
            }
            Part::Span { span, slot } => {
                self.compute(task, operands.query, Some(span), scratch);
                // SAFETY: the place of each span and head belongs to one task.
                let records =
                    unsafe { operands.partials.range(partial_range(&self.shape, slot, task.kv_head)) };
                let padded = self.shape.padded();
                for (row, record) in records.chunks_exact_mut(self.shape.record()).enumerate() {
                    record[..padded].copy_from_slice(&scratch.part[row * padded..(row + 1) * padded]);
                    record[padded..padded + 2].copy_from_slice(&scratch.part_softmax[row]);
                }
            }
            Part::Merged { spans, slot } => {
                let group = self.shape.group();
                scratch.out[..group * self.shape.padded()].fill(0.0);
                scratch.softmax[..group].fill([f32::NEG_INFINITY, 0.0]);
                for slot in slot..slot + spans {
                    // SAFETY: the tasks that wrote the records have ended; this one alone uses them now.
                    let records =
                        unsafe { operands.partials.range(partial_range(&self.shape, slot, task.kv_head)) };
                    dispatch(
                        self.machine.tier,
                        MergeSpans { shape: self.shape, records, scratch: &mut *scratch },
                    );
                }
                self.store(task, &operands.out, scratch);
            }
        }
    }

    /// Runs a tile over one span or all that it sees.
    fn compute<A: Element>(
        &self,
        task: &Task,
        query: &[A],
        span: Option<usize>,
        scratch: &mut TileScratch<'_>,
    ) {
        let Heads { query: heads, dim, .. } = self.shape.heads;
        let group = self.shape.group();
        for token in 0..task.tokens {
            let source = ((task.row + token) * heads + task.kv_head * group) * dim;
            let rows = &mut scratch.query[token * group * dim..(token + 1) * group * dim];
            A::decode_into(&query[source..source + group * dim], rows);
        }
        match self.cache.format().format {
            Format::F16 => self.compute_cached::<half::f16>(task, span, scratch),
            Format::Bf16 => self.compute_cached::<half::bf16>(task, span, scratch),
            Format::F8E4M3 => self.compute_cached::<E4M3>(task, span, scratch),
            _ => self.compute_cached::<f32>(task, span, scratch),
        }
    }

    fn compute_cached<C: SimdElement>(
        &self,
        task: &Task,
        span: Option<usize>,
        scratch: &mut TileScratch<'_>,
    ) {
        let tile = self.tile(task);
        let spans = span.map_or(tile.spans(), |span| span..span + 1);
        let cache = self.cache.view::<C>();
        dispatch(self.machine.tier, TileKernel { cache, shape: self.shape, tile, spans, scratch });
    }

    /// Divides by the sums, and stores the rows of a task.
    fn store<A: Element>(&self, task: &Task, out: &Disjoint<'_, A>, scratch: &mut TileScratch<'_>) {
        let Heads { query: heads, dim, .. } = self.shape.heads;
        let (group, padded) = (self.shape.group(), self.shape.padded());
        let rows = task.tokens * group;
        dispatch(self.machine.tier, Finish { shape: self.shape, rows, scratch: &mut *scratch });
        for (row, values) in scratch.out[..rows * padded].chunks_exact(padded).enumerate() {
            let head = (task.row + row / group) * heads + task.kv_head * group + row % group;
            // SAFETY: each row and query head belongs to one task.
            let out = unsafe { out.range(head * dim..(head + 1) * dim) };
            A::encode_into(&values[..dim], out);
        }
    }
}
