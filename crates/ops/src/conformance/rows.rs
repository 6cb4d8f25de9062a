//! Cases of the families that work on rows without a matrix: RMSNorm, RoPE, softmax, SDPA, residual.

use super::case::{Case, Draft, Run, Sequence, Setting};
use super::data::{Kind, Numbers};
use super::products::{ROWS, WIDTHS};
use crate::op::{Heads, Mask, Op, Residual, RmsNorm, Rope, Sdpa, Softmax};
use crate::program::{RopeSet, RopeSpec};

pub(super) fn rms_norm(setting: &Setting) -> Vec<Case> {
    WIDTHS
        .iter()
        .chain(&[896])
        .enumerate()
        .map(|(index, &width)| {
            let rows = ROWS[(index + 2) % 7];
            let name = format!("{rows} rows of {width}, residual {}", index % 2 == 1);
            let mut draft = Draft::new(setting, name, Run::rows(rows));
            draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan, Kind::OneInfinity];
            let input = draft.input("input", width);
            let residual = (index % 2 == 1).then(|| draft.input("residual", width));
            let weight = draft.vector("weight", width);
            let out = draft.activation("out", width);
            let eps = [1e-6, 1e-5][index % 2];
            draft.builder.step("norm", Op::RmsNorm(RmsNorm { input, residual, weight, eps, out }));
            draft.finish()
        })
        .collect()
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
        .map(|(index, (head_dim, rotary_dim, heads))| {
            let rows = ROWS[index + 1];
            let mut run = Run::rows(rows);
            let first = rows.div_ceil(2);
            run.sequences = vec![
                Sequence { rows: 0..first, table: Vec::new(), rope_set: 1 },
                Sequence { rows: first..rows, table: Vec::new(), rope_set: 0 },
            ];
            // The first sequence is at a distant position, the second at its start.
            run.positions = (0..first as u32).map(|row| 3000 + row).chain(0..(rows - first) as u32).collect();
            let name = format!("{rows} rows, {heads} heads of {head_dim}, {rotary_dim} of it rotated");
            let mut draft = Draft::new(setting, name, run);
            draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan];
            let rope = rope_spec(&mut draft.numbers, rotary_dim, 2);
            draft.builder.rope(rope);
            let input = draft.input("input", heads * head_dim);
            let out = draft.activation("out", heads * head_dim);
            draft.builder.step("rope", Op::Rope(Rope { input, head_dim, out }));
            draft.finish()
        })
        .collect()
}

pub(super) fn softmax(setting: &Setting) -> Vec<Case> {
    WIDTHS
        .iter()
        .chain(&[513])
        .enumerate()
        .map(|(index, &width)| {
            let rows = ROWS[(index + 3) % 7];
            let scale = [1.0, 0.125, 3.0][index % 3];
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
        })
        .collect()
}

pub(super) fn residual(setting: &Setting) -> Vec<Case> {
    WIDTHS
        .iter()
        .enumerate()
        .map(|(index, &width)| {
            let rows = ROWS[(index + 4) % 7];
            let name = format!("{rows} rows of {width}, in place {}", index % 2 == 1);
            let mut draft = Draft::new(setting, name, Run::rows(rows));
            draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan, Kind::OneInfinity];
            let left = draft.input("left", width);
            let right = draft.input("right", width);
            let out = if index % 2 == 1 { left } else { draft.activation("out", width) };
            draft.builder.step("residual", Op::Residual(Residual { left, right, out }));
            draft.finish()
        })
        .collect()
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
    ATTENTION
        .into_iter()
        .zip(lengths)
        .map(|((heads, mask), lengths)| {
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
        })
        .collect()
}
