//! Cases of the families that work on rows without a matrix: RMSNorm, RoPE, softmax, SDPA, residual.

use super::case::{Case, Draft, Run, Sequence, Setting};
use super::data::{Kind, Numbers};
use super::products::{ROWS, WIDTHS};
use crate::op::{Heads, Mask, Op, Residual, RmsNorm, Rope, Sdpa, Softmax};
use crate::program::{RopeSet, RopeSpec};

pub(super) fn rms_norm(setting: &Setting) -> Vec<Case> {
    let widths = WIDTHS.iter().chain(&[896]).enumerate();
    widths
        .map(|(index, &width)| {
            let stream = if index % 2 == 1 { Stream::Added } else { Stream::Alone };
            normed(setting, [ROWS[(index + 2) % 7], width], stream, [1e-6, 1e-5][index % 2])
        })
        .collect()
}

/// Whether the input of a norm is added to a residual first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// It is.
    Added,
    /// It is not.
    Alone,
}

pub(super) fn normed(setting: &Setting, [rows, width]: [usize; 2], stream: Stream, eps: f32) -> Case {
    let name = format!("{rows} rows of {width}, residual {}", stream == Stream::Added);
    let mut draft = Draft::new(setting, name, Run::rows(rows));
    draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan, Kind::OneInfinity];
    let input = draft.input("input", width);
    let residual = (stream == Stream::Added).then(|| draft.input("residual", width));
    let weight = draft.vector("weight", width);
    let out = draft.activation("out", width);
    draft.builder.step("norm", Op::RmsNorm(RmsNorm { input, residual, weight, eps, out }));
    draft.finish()
}

/// A rotary embedding with `sets` random frequency sets.
pub(super) fn rope_spec(numbers: &mut Numbers, rotary_dim: usize, sets: usize) -> RopeSpec {
    let set = |index: usize, numbers: &mut Numbers| {
        let base = 10_000.0 * (1.0 + numbers.below(50) as f64);
        let frequency = |i: usize| base.powf(-2.0 * i as f64 / rotary_dim as f64);
        RopeSet {
            inverse_frequencies: (0..rotary_dim / 2).map(frequency).collect(),
            attention_factor: [1.0, 1.190_238][index % 2],
        }
    };
    RopeSpec { rotary_dim, sets: (0..sets).map(|index| set(index, numbers)).collect(), long_beyond: None }
}

pub(super) fn rope(setting: &Setting) -> Vec<Case> {
    [(16, 16, 1), (24, 12, 2), (32, 32, 3), (64, 16, 2), (80, 80, 1), (128, 128, 2)]
        .into_iter()
        .enumerate()
        .map(|(index, (dim, rotary_dim, heads))| {
            rotated(setting, ROWS[index + 1], [heads, dim], |numbers| rope_spec(numbers, rotary_dim, 2))
        })
        .collect()
}

/// Heads, `[heads, dim]`, of two sequences: one at a distant position with the last of the frequency sets, the other at its
/// start with the first.
pub(super) fn rotated(
    setting: &Setting,
    rows: usize,
    [heads, head_dim]: [usize; 2],
    rope: impl FnOnce(&mut Numbers) -> RopeSpec,
) -> Case {
    let mut run = Run::rows(rows);
    let first = rows.div_ceil(2);
    run.positions = (0..first as u32).map(|row| 3000 + row).chain(0..(rows - first) as u32).collect();
    let name = format!("{rows} rows, {heads} heads of {head_dim}");
    let mut draft = Draft::new(setting, name, run);
    draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan];
    let rope = rope(&mut draft.numbers);
    let last = rope.sets.len().saturating_sub(1);
    let sequence = |rows, rope_set| Sequence { rows, table: Vec::new(), rope_set };
    draft.run.sequences = vec![sequence(0..first, last), sequence(first..rows, 0)];
    draft.run.sequences.retain(|sequence| !sequence.rows.is_empty());
    draft.builder.rope(rope);
    let input = draft.input("input", heads * head_dim);
    let out = draft.activation("out", heads * head_dim);
    draft.builder.step("rope", Op::Rope(Rope { input, head_dim, out }));
    draft.finish()
}

pub(super) fn softmax(setting: &Setting) -> Vec<Case> {
    let widths = WIDTHS.iter().chain(&[513]).enumerate();
    widths
        .map(|(index, &width)| {
            exponentials(setting, [ROWS[(index + 3) % 7], width], [1.0, 0.125, 3.0][index % 3])
        })
        .collect()
}

pub(super) fn exponentials(setting: &Setting, [rows, width]: [usize; 2], scale: f32) -> Case {
    let name = format!("{rows} rows of {width}, scale {scale}");
    let mut draft = Draft::new(setting, name, Run::rows(rows));
    draft.special = &[Kind::Subnormal, Kind::OneNan];
    let input = draft.input("input", width);
    if width > 2
        && let Some((_, numbers)) = draft.run.inputs.last_mut()
    {
        // Masked entries have no weight at all.
        numbers[1] = f32::NEG_INFINITY;
    }
    let out = draft.activation("out", width);
    draft.builder.step("softmax", Op::Softmax(Softmax { input, scale, out }));
    draft.finish()
}

pub(super) fn residual(setting: &Setting) -> Vec<Case> {
    let widths = WIDTHS.iter().enumerate();
    widths
        .map(|(index, &width)| {
            let sum = if index % 2 == 1 { Sum::InPlace } else { Sum::Elsewhere };
            summed(setting, [ROWS[(index + 4) % 7], width], sum)
        })
        .collect()
}

/// Where a sum is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// In the place of its left operand.
    InPlace,
    /// In a value of its own.
    Elsewhere,
}

pub(super) fn summed(setting: &Setting, [rows, width]: [usize; 2], sum: Sum) -> Case {
    let name = format!("{rows} rows of {width}, in place {}", sum == Sum::InPlace);
    let mut draft = Draft::new(setting, name, Run::rows(rows));
    draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan, Kind::OneInfinity];
    let left = draft.input("left", width);
    let right = draft.input("right", width);
    let out = if sum == Sum::InPlace { left } else { draft.activation("out", width) };
    draft.builder.step("residual", Op::Residual(Residual { left, right, out }));
    draft.finish()
}

/// Heads and masks that attention is tried with: multi-head, grouped-query, multi-query; every kind of width.
pub(super) const ATTENTION: [(Heads, Mask); 7] = [
    (Heads { query: 2, key_value: 2, dim: 16 }, Mask::Causal),
    (Heads { query: 4, key_value: 2, dim: 24 }, Mask::SlidingWindow { window: 5 }),
    (Heads { query: 3, key_value: 1, dim: 32 }, Mask::SlidingWindow { window: 16 }),
    (Heads { query: 6, key_value: 2, dim: 64 }, Mask::Causal),
    (Heads { query: 1, key_value: 1, dim: 80 }, Mask::SlidingWindow { window: 1 }),
    (Heads { query: 2, key_value: 1, dim: 128 }, Mask::SlidingWindow { window: 33 }),
    (Heads { query: 7, key_value: 1, dim: 16 }, Mask::Causal),
];

pub(super) fn sdpa(setting: &Setting) -> Vec<Case> {
    let lengths: [&[usize]; 7] = [&[1], &[2, 5], &[17, 1, 3], &[33], &[16, 2], &[40, 1], &[1, 1, 5]];
    let shapes = ATTENTION.into_iter().zip(lengths);
    shapes.map(|((heads, mask), lengths)| attended(setting, heads, mask, lengths)).collect()
}

/// Materialised attention within sequences of these lengths.
pub(super) fn attended(setting: &Setting, heads: Heads, mask: Mask, lengths: &[usize]) -> Case {
    let name = format!("sequences of {lengths:?}, {heads:?}, {mask:?}");
    let mut run = Run::rows(lengths.iter().sum());
    run.sequences.clear();
    run.positions.clear();
    for &length in lengths {
        let start = run.positions.len();
        run.positions.extend(0..length as u32);
        run.sequences.push(Sequence { rows: start..start + length, table: Vec::new(), rope_set: 0 });
    }
    let mut draft = Draft::new(setting, name, run);
    let query = draft.input("query", heads.query_width());
    let key = draft.input("key", heads.kv_width());
    let value = draft.input("value", heads.kv_width());
    let out = draft.activation("out", heads.query_width());
    let scale = 1.0 / (heads.dim as f32).sqrt();
    draft.builder.step("sdpa", Op::Sdpa(Sdpa { query, key, value, heads, scale, mask, out }));
    draft.finish()
}
