//! Cases of the families that touch the paged cache: the fused projections and flash attention.

use mantissa_numerics::Format;

use super::case::{Case, Draft, Judged, Run, Sequence, Setting};
use super::data::{Kind, Numbers};
use super::products::{ROWS, WIDTHS};
use super::rows::{ATTENTION, rope_spec};
use crate::op::{Attention, HeadNorms, Heads, Mask, Op, Qkv};
use crate::program::{CacheSpec, RopeSpec, ValueId, WeightPart};

/// Tokens per page, case by case.
const PAGES: [usize; 7] = [64, 16, 32, 16, 32, 16, 16];

/// Pages of the sequences of a case, in random order, with further ones that no sequence owns.
struct Paging {
    page_size: usize,
    pages: usize,
    tables: Vec<Vec<u32>>,
}

impl Paging {
    fn new(numbers: &mut Numbers, page_size: usize, lengths: &[usize]) -> Paging {
        const SPARE: usize = 2;
        let needed: Vec<usize> = lengths.iter().map(|length| length.div_ceil(page_size)).collect();
        let pages = needed.iter().sum::<usize>() + SPARE;
        let mut free = numbers.shuffled(pages);
        let mut tables: Vec<Vec<u32>> = needed.iter().map(|&count| free.drain(..count).collect()).collect();
        // A table may be longer than its sequence: what lies behind must not be looked at.
        if let (Some(table), Some(&spare)) = (tables.first_mut(), free.first()) {
            table.push(spare);
        }
        Paging { page_size, pages, tables }
    }

    /// A run over `rows[sequence]` positions of each sequence; no rows, no part in it.
    fn run(&self, positions: &[std::ops::Range<usize>]) -> Run {
        let mut run = Run::rows(0);
        run.sequences.clear();
        for (index, range) in positions.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            let start = run.positions.len();
            run.positions.extend(range.clone().map(|position| position as u32));
            let rows = start..run.positions.len();
            run.sequences.push(Sequence { rows, table: self.tables[index].clone(), rope_set: index % 2 });
        }
        run.tokens = vec![0; run.positions.len()];
        run
    }

    /// Writes NaN into every slot of every page.
    fn poison(&self, input: ValueId, width: usize, format: Format) -> Run {
        let rows = self.pages * self.page_size;
        let numbers = Numbers::seeded("poison").stored(Kind::Poison, format, rows * width);
        Run {
            inputs: vec![(input, numbers)],
            tokens: vec![0; rows],
            positions: (0..rows as u32).map(|row| row % self.page_size as u32).collect(),
            sequences: (0..self.pages)
                .map(|page| Sequence {
                    rows: page * self.page_size..(page + 1) * self.page_size,
                    table: vec![page as u32],
                    rope_set: 0,
                })
                .collect(),
            outputs: Vec::new(),
            judged: Judged::No,
        }
    }
}

/// The runs of a case: everything but the last tokens at once, then a chunk of one sequence beside single tokens of
/// the others, then a token of each.
fn schedule(lengths: &[usize]) -> Vec<Vec<std::ops::Range<usize>>> {
    const CHUNK: usize = 5;
    let mut done: Vec<usize> =
        lengths.iter().map(|&length| length.saturating_sub(CHUNK + 2).max(1)).collect();
    let mut runs = vec![done.iter().map(|&end| 0..end).collect()];
    for step in 0..3 {
        let next = |(index, (&start, &length)): (usize, (&usize, &usize))| {
            let rows = if step == 0 && index == 0 { CHUNK } else { 1 };
            start..(start + rows).min(length)
        };
        let ranges: Vec<_> = done.iter().zip(lengths).enumerate().map(next).collect();
        done = ranges.iter().map(|range| range.end).collect();
        if ranges.iter().any(|range| !range.is_empty()) {
            runs.push(ranges);
        }
    }
    runs
}

/// Where attention is tried.
pub(super) struct Layout<'a> {
    pub(super) name: &'a str,
    pub(super) heads: Heads,
    pub(super) mask: Mask,
    pub(super) page_size: usize,
    pub(super) lengths: &'a [usize],
}

fn attention_step(heads: Heads, mask: Mask, query: ValueId, out: ValueId) -> Op {
    let scale = 1.0 / (heads.dim as f32).sqrt();
    Op::Attention(Attention { query, heads, scale, mask, layer: 1, out })
}

/// Input features of [`exact_attention`]: a prime, so that no two heads see them in the same order.
const SELECTED: usize = 53;

/// Attention over keys and values that are known exactly: every row of the projection selects one input feature.
pub(super) fn exact_attention(setting: &Setting, layout: &Layout<'_>) -> Case {
    let Layout { name, heads, mask, page_size, lengths } = *layout;
    let width = heads.query_width() + 2 * heads.kv_width();
    let mut draft =
        Draft::new(setting, format!("{name}: {heads:?}, {mask:?}, pages of {page_size}"), Run::rows(0));
    draft.builder.cache(CacheSpec { layers: 2, heads });
    let input = draft.activation("input", SELECTED);
    let mut selection = vec![0.0; width * SELECTED];
    for (row, numbers) in selection.chunks_mut(SELECTED).enumerate() {
        numbers[(7 * row + 3 * (row / heads.dim)) % SELECTED] = 1.0;
    }
    draft.source.add("selection", &[width, SELECTED], setting.policy.weights(), &selection);
    let weight = draft.builder.matrix("selection", vec![WeightPart::whole("selection", width)], SELECTED);
    let query = draft.activation("query", heads.query_width());
    let out = draft.activation("out", heads.query_width());
    let qkv = Qkv { input, weight, bias: None, head_norms: None, heads, layer: 1, query };
    draft.builder.step("qkv", Op::Qkv(qkv));
    draft.builder.step("attention", attention_step(heads, mask, query, out));
    let paging = Paging::new(&mut draft.numbers, page_size, lengths);
    with_schedule(draft, &paging, Stream { input, width: SELECTED, lengths })
}

/// The input rows of a case with a cache.
struct Stream<'a> {
    input: ValueId,
    width: usize,
    lengths: &'a [usize],
}

/// Fills the runs: poison first, then the schedule with fresh numbers.
fn with_schedule(mut draft: Draft<'_>, paging: &Paging, stream: Stream<'_>) -> Case {
    let Stream { input, width, lengths } = stream;
    let format = draft.activations();
    let mut runs = vec![paging.poison(input, width, format)];
    for ranges in schedule(lengths) {
        let mut run = paging.run(&ranges);
        let numbers = draft.numbers.stored(Kind::Ordinary, format, run.tokens.len() * width);
        run.inputs.push((input, numbers));
        runs.push(run);
    }
    let (pages, page_size) = (paging.pages, paging.page_size);
    let mut case = Case { pages, page_size, runs, ..draft.finish() };
    let last = case.program.rope.as_ref().map_or(0, |rope| rope.sets.len().saturating_sub(1));
    let sequences = case.runs.iter_mut().flat_map(|run| &mut run.sequences);
    sequences.for_each(|sequence| sequence.rope_set = sequence.rope_set.min(last));
    case
}

pub(super) fn attention(setting: &Setting) -> Vec<Case> {
    let lengths: [&[usize]; 7] =
        [&[1], &[20, 33, 2], &[17, 50], &[70, 16, 1], &[40, 9], &[36, 35], &[15, 16, 17, 31, 32]];
    let mut cases: Vec<Case> = ATTENTION
        .into_iter()
        .zip(lengths)
        .enumerate()
        .map(|(index, ((heads, mask), lengths))| {
            let page_size = PAGES[index];
            exact_attention(setting, &Layout { name: "short", heads, mask, page_size, lengths })
        })
        .collect();
    let heads = Heads { query: 2, key_value: 1, dim: 16 };
    let long =
        Layout { name: "across spans", heads, mask: Mask::Causal, page_size: 64, lengths: &[600, 514] };
    cases.push(exact_attention(setting, &long));
    let window = Mask::SlidingWindow { window: 40 };
    cases.push(exact_attention(
        setting,
        &Layout { name: "a window across spans", mask: window, page_size: 16, lengths: &[1050, 514], ..long },
    ));
    cases.push(forgotten_nan(setting));
    cases
}

/// NaN keys and values that slide out of the window: rows that see them are NaN, later ones know nothing of them.
fn forgotten_nan(setting: &Setting) -> Case {
    let heads = Heads { query: 2, key_value: 2, dim: 16 };
    let mask = Mask::SlidingWindow { window: 4 };
    let layout = Layout { name: "NaN leaves the window", heads, mask, page_size: 16, lengths: &[40] };
    let mut case = exact_attention(setting, &layout);
    if let Some((_, numbers)) = case.runs.get_mut(1).and_then(|run| run.inputs.first_mut()) {
        numbers[3 * SELECTED..6 * SELECTED].fill(f32::NAN);
    }
    case
}

pub(super) fn qkv(setting: &Setting, judge_cache: JudgeCache) -> Vec<Case> {
    let lengths: [&[usize]; 7] = [&[1], &[3, 18], &[5], &[17, 2], &[1, 1], &[20, 1, 4], &[33]];
    ATTENTION
        .into_iter()
        .zip(lengths)
        .enumerate()
        .map(|(index, of)| projected(setting, judge_cache, index, of))
        .collect()
}

/// Whether attention follows the projection, so that what it wrote into the cache is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JudgeCache {
    /// It does.
    ByAttention,
    /// The backend has no attention for these formats.
    Not,
}

/// What a projection is tried with.
pub(super) struct Projected<'a> {
    pub(super) hidden: usize,
    pub(super) heads: Heads,
    pub(super) mask: Mask,
    pub(super) lengths: &'a [usize],
    pub(super) page_size: usize,
    pub(super) rope: Option<RopeSource<'a>>,
    pub(super) bias: Bias,
    /// Added to the mean of squares of head norms, where there are some.
    pub(super) head_norm_eps: Option<f32>,
}

/// Where rotary frequencies come from.
pub(super) enum RopeSource<'a> {
    /// Two random sets that rotate so many dimensions.
    Random(usize),
    /// A model's.
    Given(&'a RopeSpec),
}

/// Whether a bias is added to a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    /// It is.
    Added,
    /// There is none.
    None,
}

/// A random projection with bias, head norms and RoPE in turn.
fn projected(
    setting: &Setting,
    judge_cache: JudgeCache,
    index: usize,
    of: ((Heads, Mask), &[usize]),
) -> Case {
    let ((heads, mask), lengths) = of;
    let rope = (index != 3).then(|| RopeSource::Random([heads.dim, heads.dim / 2][index % 2]));
    let of = Projected {
        hidden: WIDTHS[(2 * index + 1) % 9].max(ROWS[index]),
        heads,
        mask,
        lengths,
        page_size: PAGES[index],
        rope,
        bias: if index % 2 == 1 { Bias::Added } else { Bias::None },
        head_norm_eps: (index % 3 == 2).then_some(1e-6),
    };
    projection(setting, judge_cache, &of)
}

/// A projection into the cache, and attention over it where that can be judged.
pub(super) fn projection(setting: &Setting, judge_cache: JudgeCache, of: &Projected<'_>) -> Case {
    let Projected { hidden, heads, mask, lengths, page_size, .. } = *of;
    let width = heads.query_width() + 2 * heads.kv_width();
    let name = format!("{hidden} to {heads:?}, sequences of {lengths:?}");
    let mut draft = Draft::new(setting, name, Run::rows(0));
    draft.builder.cache(CacheSpec { layers: 2, heads });
    let rope = of.rope.as_ref().map(|rope| match rope {
        RopeSource::Random(rotary_dim) => rope_spec(&mut draft.numbers, *rotary_dim, 2),
        RopeSource::Given(rope) => (*rope).clone(),
    });
    if let Some(rope) = rope {
        draft.builder.rope(rope);
    }
    let input = draft.input("input", hidden);
    let weight = draft.matrix("weight", width, hidden);
    let bias = (of.bias == Bias::Added).then(|| draft.vector("bias", width));
    let head_norms = of.head_norm_eps.map(|eps| HeadNorms {
        query: draft.vector("query norm", heads.dim),
        key: draft.vector("key norm", heads.dim),
        eps,
    });
    let query = draft.activation("query", heads.query_width());
    draft.builder.step("qkv", Op::Qkv(Qkv { input, weight, bias, head_norms, heads, layer: 1, query }));
    if judge_cache == JudgeCache::ByAttention {
        let out = draft.activation("out", heads.query_width());
        draft.builder.step("attention", attention_step(heads, mask, query, out));
    }
    let paging = Paging::new(&mut draft.numbers, page_size, lengths);
    with_schedule(draft, &paging, Stream { input, width: hidden, lengths })
}
