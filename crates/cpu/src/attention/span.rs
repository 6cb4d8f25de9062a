//! Attention of a tile of query rows over the positions that they see, span by span.

use std::ops::Range;

use super::scratch::{SCORE_STRIDE, Shape, TileScratch};
use super::tile::{Product, Start};
use super::{CHUNK, SPAN};
use crate::cache::{BLOCK, BlockScales, CacheView, PageHead};
use crate::simd::{Kernel, LANES, Simd, SimdElement, exp};
use mantissa_ops::op::Mask;

/// Query rows of one sequence and one key head: consecutive tokens, for each of which the query heads of the group.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub layer: usize,
    pub kv_head: usize,
    pub block_table: &'a [u32],
    /// Position of the first token.
    pub position: usize,
    pub tokens: usize,
    pub scale: f32,
    pub mask: Mask,
}

impl Tile<'_> {
    /// The positions that a token of the tile sees.
    fn visible(&self, token: usize) -> Range<usize> {
        let position = self.position + token;
        self.mask.first_visible(position)..position + 1
    }

    /// The positions that any token of the tile sees.
    fn any_visible(&self) -> Range<usize> {
        self.mask.first_visible(self.position)..self.position + self.tokens
    }

    /// The spans with positions that any token sees.
    pub(super) fn spans(&self) -> Range<usize> {
        let Range { start, end } = self.any_visible();
        start / SPAN..end.div_ceil(SPAN)
    }

    fn page_head(&self, page_size: usize, position: usize) -> PageHead {
        PageHead { layer: self.layer, page: self.block_table[position / page_size], head: self.kv_head }
    }
}

fn intersect(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Attention of a tile over some spans: unnormalised outputs, largest scores and sums are left in the scratch.
pub(super) struct TileKernel<'a, 's, C> {
    pub cache: CacheView<'a, C>,
    pub shape: Shape,
    pub tile: Tile<'a>,
    pub spans: Range<usize>,
    pub scratch: &'a mut TileScratch<'s>,
}

impl<C: SimdElement> Kernel for TileKernel<'_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let rows = self.rows();
        self.scratch.out[..rows * self.shape.padded()].fill(0.0);
        self.scratch.softmax[..rows].fill([f32::NEG_INFINITY, 0.0]);
        for span in self.spans.clone() {
            let span = span * SPAN..(span + 1) * SPAN;
            simd.vectorize(Scores(&mut self, &span));
            simd.vectorize(Weights(&mut self, &span));
            simd.vectorize(Outputs(&mut self, &span));
            simd.vectorize(Merge(&mut self, &span));
        }
    }
}

impl<C: SimdElement> TileKernel<'_, '_, C> {
    fn rows(&self) -> usize {
        self.tile.tokens * self.shape.group()
    }

    /// Chunks of the span, aligned, with the positions in them that any token sees.
    fn chunks(&self, span: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<C> {
        let visible = intersect(span, &self.tile.any_visible());
        let first = visible.start / CHUNK;
        let count = visible.end.div_ceil(CHUNK).saturating_sub(first);
        (first..first + count).map(move |chunk| intersect(&visible, &(chunk * CHUNK..(chunk + 1) * CHUNK)))
    }

    /// The tokens that see any of these positions.
    fn tokens_that_see(&self, positions: &Range<usize>) -> Range<usize> {
        let sees = |token: usize| !intersect(&self.tile.visible(token), positions).is_empty();
        let first = (0..self.tile.tokens).position(sees).unwrap_or(0);
        let count = (first..self.tile.tokens).take_while(|&token| sees(token)).count();
        first..first + count
    }
}

/// `query . key` of a span, into `scores[row][position - span.start]`, for whole blocks.
struct Scores<'k, 'a, 's, C>(&'k mut TileKernel<'a, 's, C>, &'k Range<usize>);

impl<C: SimdElement> Kernel for Scores<'_, '_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Scores(kernel, span) = self;
        let (dim, group) = (kernel.shape.heads.dim, kernel.shape.group());
        let page_size = kernel.cache.layout().page_size;
        for positions in kernel.chunks(span) {
            let blocks = positions.start / BLOCK..positions.end.div_ceil(BLOCK);
            let scratch = &mut *kernel.scratch;
            for (block, decoded) in blocks.clone().zip(scratch.chunk.chunks_exact_mut(dim)) {
                let at = kernel.tile.page_head(page_size, block * BLOCK);
                let within = block * BLOCK % page_size / BLOCK;
                for (key, decoded) in kernel.cache.key_block(at, within).iter().zip(decoded) {
                    simd.store(C::load(simd, key), decoded);
                }
                if let BlockScales::Lanes(scales) = kernel.cache.key_scales(simd, at, within) {
                    let start = block * BLOCK - span.start;
                    f32::store_partial(simd, scales, &mut scratch.key_scales[start..start + BLOCK]);
                }
            }
            let tokens = kernel.tokens_that_see(&positions);
            let (first, rows) = (tokens.start * group, tokens.len() * group);
            let scratch = &mut *kernel.scratch;
            let product = Product {
                a: &scratch.query[first * dim..],
                a_stride: dim,
                rows,
                b: scratch.chunk,
                b_stride: dim,
                vectors: blocks.len(),
                depth: dim,
                c: &mut scratch.scores[first * SCORE_STRIDE + blocks.start * BLOCK - span.start..],
                c_stride: SCORE_STRIDE,
                start: Start::Zero,
            };
            product.run(simd);
        }
    }
}

/// Softmax of each row over the span's visible positions: scores become weights, those of masked positions in the
/// same blocks zero.
struct Weights<'k, 'a, 's, C>(&'k mut TileKernel<'a, 's, C>, &'k Range<usize>);

impl<C: SimdElement> Kernel for Weights<'_, '_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Weights(kernel, span) = self;
        let group = kernel.shape.group();
        let page_size = kernel.cache.layout().page_size;
        let scaled = kernel.cache.is_scaled();
        if scaled {
            let visible = intersect(span, &kernel.tile.any_visible());
            for block in visible.start / BLOCK..visible.end.div_ceil(BLOCK) {
                let at = kernel.tile.page_head(page_size, block * BLOCK);
                let within = block * BLOCK % page_size / BLOCK;
                if let BlockScales::Lanes(scales) = kernel.cache.value_scales(simd, at, within) {
                    let start = block * BLOCK - span.start;
                    let out = &mut kernel.scratch.value_scales[start..start + BLOCK];
                    f32::store_partial(simd, scales, out);
                }
            }
        }
        let scratch = &mut *kernel.scratch;
        for row in 0..kernel.tile.tokens * group {
            let visible = intersect(span, &kernel.tile.visible(row / group));
            if visible.is_empty() {
                continue;
            }
            let visible = visible.start - span.start..visible.end - span.start;
            let scores = &mut scratch.scores[row * SCORE_STRIDE..][..SPAN];
            let scales = scaled.then_some((&*scratch.key_scales, &*scratch.value_scales));
            scratch.part_softmax[row] = weights(simd, scores, &visible, kernel.tile.scale, scales);
        }
    }
}

/// Weights of one row of a span; returns the largest score and the sum of the weights.
///
/// Scores are multiplied by `scale`, then by the key's stored scale. Weights are summed in 16 chains (position
/// modulo 16) and then as a tree; only then each is multiplied by the value's stored scale.
#[inline(always)]
fn weights<S: Simd>(
    simd: S,
    scores: &mut [f32],
    visible: &Range<usize>,
    scale: f32,
    scales: Option<(&[f32], &[f32])>,
) -> [f32; 2] {
    let (zero, lowest) = (simd.zero(), simd.splat(f32::NEG_INFINITY));
    let scale = simd.splat(scale);
    let blocks = visible.start / BLOCK * BLOCK..visible.end;
    let mut largest = lowest;
    for start in blocks.clone().step_by(BLOCK) {
        let scores = &mut scores[start..start + BLOCK];
        let mut score = simd.mul(f32::load_partial(simd, scores), scale);
        if let Some((keys, _)) = scales {
            score = simd.mul(score, f32::load_partial(simd, &keys[start..start + BLOCK]));
        }
        let score = only(simd, start, visible, score, lowest);
        f32::store_partial(simd, score, scores);
        // A NaN loses here and appears in the sum.
        largest = simd.max(score, largest);
    }
    let largest = simd.reduce_max(largest);
    // If every score is minus infinity, so are the differences; other spans may have the weight.
    let shift = simd.splat(finite_or_zero(largest));
    let mut sum = zero;
    for start in blocks.step_by(BLOCK) {
        let scores = &mut scores[start..start + BLOCK];
        let mut weight = exp(simd, simd.sub(f32::load_partial(simd, scores), shift));
        sum = simd.add(sum, weight);
        if let Some((_, values)) = scales {
            let scaled = simd.mul(weight, f32::load_partial(simd, &values[start..start + BLOCK]));
            weight = only(simd, start, visible, scaled, zero);
        }
        f32::store_partial(simd, weight, scores);
    }
    [largest, simd.reduce_add(sum)]
}

/// The lanes of the block at `start` that are visible, and `other` in the others.
#[inline(always)]
fn only<S: Simd>(simd: S, start: usize, visible: &Range<usize>, lanes: S::F32, other: S::F32) -> S::F32 {
    let (before, until) = (visible.start.saturating_sub(start), (visible.end - start).min(LANES));
    simd.select_first(before, other, simd.select_first(until, lanes, other))
}

/// Zero in place of minus infinity.
fn finite_or_zero(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// Weights times values of a span, into `part`.
struct Outputs<'k, 'a, 's, C>(&'k mut TileKernel<'a, 's, C>, &'k Range<usize>);

impl<C: SimdElement> Kernel for Outputs<'_, '_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Outputs(kernel, span) = self;
        let padded = kernel.shape.padded();
        let page_size = kernel.cache.layout().page_size;
        kernel.scratch.part[..kernel.tile.tokens * kernel.shape.group() * padded].fill(0.0);
        for positions in kernel.chunks(span) {
            for position in positions.clone() {
                let at = kernel.tile.page_head(page_size, position);
                let value = kernel.cache.value(at, position % page_size);
                let panels = kernel.scratch.chunk.chunks_exact_mut(CHUNK);
                for (value, panel) in value.chunks(LANES).zip(panels) {
                    simd.store(C::load_partial(simd, value), &mut panel[position - positions.start]);
                }
            }
            let tokens = kernel.tokens_that_see(&positions);
            let whole = |token: usize| intersect(&positions, &kernel.tile.visible(token)) == positions;
            // Where some see only part, few tokens at a time, so that most positions are visible to all of them.
            let step = if tokens.clone().all(whole) { tokens.len() } else { 12 / kernel.shape.group() };
            for first in tokens.clone().step_by(step.max(1)) {
                let tokens = first..(first + step.max(1)).min(tokens.end);
                add_values(simd, kernel, span, &positions, tokens);
            }
        }
    }
}

/// Adds the values of a chunk to some tokens' outputs: all tokens at once over the positions that all see, one
/// token at a time before and after them. Positions that a token does not see are not touched.
#[inline(always)]
fn add_values<S: Simd, C: SimdElement>(
    simd: S,
    kernel: &mut TileKernel<'_, '_, C>,
    span: &Range<usize>,
    chunk: &Range<usize>,
    tokens: Range<usize>,
) {
    let tile = kernel.tile;
    let visible = |token: usize| intersect(chunk, &tile.visible(token));
    // Both ends ascend with the token.
    let common = intersect(&visible(tokens.end - 1), &visible(tokens.start));
    let (shape, scratch) = (kernel.shape, &mut *kernel.scratch);
    let mut add = |tokens: Range<usize>, positions: Range<usize>| {
        if positions.is_empty() {
            return;
        }
        let (first, rows) = (tokens.start * shape.group(), tokens.len() * shape.group());
        let product = Product {
            a: &scratch.scores[first * SCORE_STRIDE + positions.start - span.start..],
            a_stride: SCORE_STRIDE,
            rows,
            b: &scratch.chunk[positions.start - chunk.start..],
            b_stride: CHUNK,
            vectors: shape.vectors(),
            depth: positions.len(),
            c: &mut scratch.part[first * shape.padded()..],
            c_stride: shape.padded(),
            start: Start::Stored,
        };
        product.run(simd);
    };
    if common.is_empty() {
        return tokens.for_each(|token| add(token..token + 1, visible(token)));
    }
    for token in tokens.clone() {
        add(token..token + 1, visible(token).start..common.start);
    }
    add(tokens.clone(), common.clone());
    for token in tokens {
        add(token..token + 1, common.end..visible(token).end);
    }
}

/// Joins the span's results with those of the spans before it.
struct Merge<'k, 'a, 's, C>(&'k mut TileKernel<'a, 's, C>, &'k Range<usize>);

impl<C: SimdElement> Kernel for Merge<'_, '_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Merge(kernel, span) = self;
        let (padded, group) = (kernel.shape.padded(), kernel.shape.group());
        let scratch = &mut *kernel.scratch;
        for row in 0..kernel.tile.tokens * group {
            if intersect(span, &kernel.tile.visible(row / group)).is_empty() {
                continue;
            }
            let values = row * padded..(row + 1) * padded;
            let part = Partial { out: &scratch.part[values.clone()], softmax: scratch.part_softmax[row] };
            merge(simd, &mut scratch.out[values], &mut scratch.softmax[row], &part);
        }
    }
}

/// Result of one row over one span.
pub(super) struct Partial<'a> {
    /// Sum of the weighted values.
    pub out: &'a [f32],
    /// Largest score and sum of the weights.
    pub softmax: [f32; 2],
}

/// Joins a partial result to what came before: both are scaled to the larger of the two largest scores.
#[inline(always)]
pub(super) fn merge<S: Simd>(simd: S, out: &mut [f32], softmax: &mut [f32; 2], part: &Partial<'_>) {
    let ([before, sum], [largest, part_sum]) = (*softmax, part.softmax);
    let joined = if largest > before { largest } else { before };
    let shift = simd.splat(finite_or_zero(joined));
    let old = exp(simd, simd.sub(simd.splat(before), shift));
    let new = exp(simd, simd.sub(simd.splat(largest), shift));
    for (out, part) in out.chunks_mut(LANES).zip(part.out.chunks(LANES)) {
        let kept = simd.mul(f32::load_partial(simd, out), old);
        f32::store_partial(simd, simd.fma(f32::load_partial(simd, part), new, kept), out);
    }
    let kept = simd.mul(simd.splat(sum), old);
    let mut sums = [0.0; LANES];
    simd.store(simd.fma(simd.splat(part_sum), new, kept), &mut sums);
    *softmax = [joined, sums[0]];
}

/// Merges the records of one span, one per query head of the group, into the scratch.
pub(super) struct MergeSpans<'a, 's> {
    pub shape: Shape,
    pub records: &'a [f32],
    pub scratch: &'a mut TileScratch<'s>,
}

impl Kernel for MergeSpans<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let MergeSpans { shape, records, scratch } = self;
        let outs = scratch.out.chunks_exact_mut(shape.padded()).zip(scratch.softmax.iter_mut());
        for ((out, softmax), record) in outs.zip(records.chunks_exact(shape.record())) {
            let (part, rest) = record.split_at(shape.padded());
            merge(simd, out, softmax, &Partial { out: part, softmax: [rest[0], rest[1]] });
        }
    }
}

/// Divides outputs by the sums of their weights.
pub(super) struct Finish<'a, 's> {
    pub shape: Shape,
    pub rows: usize,
    pub scratch: &'a mut TileScratch<'s>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Finish { shape, rows, scratch } = self;
        let outs = scratch.out.chunks_exact_mut(shape.padded()).zip(scratch.softmax.iter());
        for (out, [_, sum]) in outs.take(rows) {
            let sum = simd.splat(*sum);
            for out in out.chunks_mut(LANES) {
                let quotient = simd.div(f32::load_partial(simd, out), sum);
                f32::store_partial(simd, quotient, out);
            }
        }
    }
}
