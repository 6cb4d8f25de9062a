//! Cases of the families that multiply by weights: matmul, SwiGLU, FFN, logits.

use mantissa_numerics::Format;

use super::case::{Case, Draft, Expected, Run, Setting};
use super::data::Kind;
use crate::op::{Embedding, Ffn, Logits, Matmul, Op, SwiGlu};
use crate::program::{ValueId, ValueRole, WeightKind, WeightPart};
use crate::source::RowOrder;

/// Numbers of rows on both sides of the borders of the usual tiles.
pub(super) const ROWS: [usize; 7] = [1, 2, 3, 5, 16, 17, 33];

/// Widths, likewise.
pub(super) const WIDTHS: [usize; 9] = [1, 8, 16, 17, 48, 63, 64, 96, 130];

/// A width that differs from `WIDTHS[index]`.
fn other_width(index: usize) -> usize {
    WIDTHS[(3 * index + 4) % WIDTHS.len()]
}

const SPECIAL: &[Kind] = &[Kind::Large, Kind::Subnormal, Kind::OneNan, Kind::OneInfinity];

pub(super) fn matmul(setting: &Setting) -> Vec<Case> {
    let mut cases = Vec::new();
    for (index, &columns) in WIDTHS.iter().enumerate() {
        let extras = Extras {
            bias: if index % 2 == 1 { Added::Separate } else { Added::Nothing },
            residual: [Added::Nothing, Added::Separate, Added::InPlace][index % 3],
            alpha: [1.0, 0.5, 1.0, -1.25][index % 4],
        };
        cases.push(product(setting, ROWS[index % 7], [other_width(index), columns], extras));
    }
    for (rows, shape) in [(33, [96, 130]), (5, [130, 63]), (1, [64, 896]), (2, [1, 17])] {
        cases.push(product(setting, rows, shape, Extras::NONE));
    }
    cases.push(stacked(setting));
    cases.push(ones(setting, 32_768, 1.0));
    cases.push(ones(setting, 131_072, 0.25));
    cases
}

/// Values that are added to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// None.
    Nothing,
    /// Some of their own.
    Separate,
    /// Those that the result replaces.
    InPlace,
}

impl Added {
    fn name(self) -> &'static str {
        match self {
            Added::Nothing => "none",
            Added::Separate => "separate",
            Added::InPlace => "in place",
        }
    }
}

impl Draft<'_> {
    /// A residual and the result that it is added to.
    fn added(&mut self, added: Added, width: usize) -> (Option<ValueId>, ValueId) {
        let residual = (added != Added::Nothing).then(|| self.input("residual", width));
        match residual {
            Some(residual) if added == Added::InPlace => (Some(residual), residual),
            _ => (residual, self.activation("out", width)),
        }
    }
}

/// What a product does beside multiplying.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extras {
    /// A bias, never in place.
    pub(super) bias: Added,
    pub(super) residual: Added,
    pub(super) alpha: f32,
}

impl Extras {
    pub(super) const NONE: Extras = Extras { bias: Added::Nothing, residual: Added::Nothing, alpha: 1.0 };
}

/// A product of `rows` rows with a matrix, `[out, columns]`.
pub(super) fn product(setting: &Setting, rows: usize, [out, columns]: [usize; 2], extras: Extras) -> Case {
    let Extras { bias, residual, alpha } = extras;
    let name = format!(
        "{rows} rows, {columns} to {out}, bias {}, residual {}, alpha {alpha}",
        bias.name(),
        residual.name()
    );
    let mut draft = Draft::new(setting, name, Run::rows(rows));
    draft.special = SPECIAL;
    let input = draft.input("input", columns);
    let weight = draft.matrix("weight", out, columns);
    let bias = (bias != Added::Nothing).then(|| draft.vector("bias", out));
    let (residual, out) = draft.added(residual, out);
    draft.builder.step("matmul", Op::Matmul(Matmul { input, weight, bias, residual, alpha, out }));
    draft.finish()
}

/// A weight of two tensors: a range of rows of one stored in f32, and all of another whose rotary pairs are
/// interleaved.
fn stacked(setting: &Setting) -> Case {
    let mut draft = Draft::new(setting, "stacked parts".into(), Run::rows(3));
    let input = draft.input("input", 40);
    draft.tensor("first", &[12, 40], Format::F32);
    draft.tensor("second", &[16, 40], Format::Bf16);
    draft.source.set_order("second", RowOrder::RopePairs { heads: 2 });
    let first = WeightPart { tensor: "first".into(), tensor_rows: 12, rows: 3..10 };
    let weight = draft.builder.matrix("weight", vec![first, WeightPart::whole("second", 16)], 40);
    let out = draft.activation("out", 23);
    draft
        .builder
        .step("matmul", Op::Matmul(Matmul { input, weight, bias: None, residual: None, alpha: 1.0, out }));
    draft.finish()
}

/// A product of ones, whose sum every format must reach: partial sums beyond 65,504 never become infinite, and
/// none of 32,768 ones is lost.
fn ones(setting: &Setting, columns: usize, alpha: f32) -> Case {
    let mut draft = Draft::new(setting, format!("{columns} ones, alpha {alpha}"), Run::rows(2));
    let input = draft.activation("input", columns);
    draft.run.inputs.push((input, vec![1.0; 2 * columns]));
    draft.source.add("ones", &[3, columns], setting.policy.weights(), &vec![1.0; 3 * columns]);
    let weight = draft.builder.matrix("ones", vec![WeightPart::whole("ones", 3)], columns);
    let out = draft.activation("out", 3);
    draft
        .builder
        .step("matmul", Op::Matmul(Matmul { input, weight, bias: None, residual: None, alpha, out }));
    let mut case = draft.finish();
    case.expected.push(Expected { value: out, number: 32_768.0 });
    case
}

pub(super) fn swiglu(setting: &Setting) -> Vec<Case> {
    let mut cases: Vec<Case> = WIDTHS
        .iter()
        .enumerate()
        .map(|(index, &columns)| gated(setting, ROWS[(index + 3) % 7], [columns, other_width(index)]))
        .collect();
    cases.push(one_tensor_gate_up(setting));
    cases
}

/// SwiGLU of `rows` rows, from `columns` to `intermediate`.
pub(super) fn gated(setting: &Setting, rows: usize, [columns, intermediate]: [usize; 2]) -> Case {
    let name = format!("{rows} rows, {columns} to {intermediate}");
    let mut draft = Draft::new(setting, name, Run::rows(rows));
    draft.special = &[Kind::Large, Kind::Subnormal, Kind::OneNan];
    let input = draft.input("input", columns);
    let weight = draft.gate_up(intermediate, columns);
    let out = draft.activation("out", intermediate);
    draft.builder.step("swiglu", Op::SwiGlu(SwiGlu { input, weight, out }));
    draft.finish()
}

/// Gate and up rows as two ranges of one tensor.
fn one_tensor_gate_up(setting: &Setting) -> Case {
    let mut draft = Draft::new(setting, "gate and up in one tensor".into(), Run::rows(5));
    let input = draft.input("input", 24);
    draft.tensor("both", &[50, 24], Format::F32);
    let part = |rows| WeightPart { tensor: "both".into(), tensor_rows: 50, rows };
    let weight = draft.builder.weight("gate_up", vec![part(0..25), part(25..50)], 24, WeightKind::GateUp);
    let out = draft.activation("out", 25);
    draft.builder.step("swiglu", Op::SwiGlu(SwiGlu { input, weight, out }));
    draft.finish()
}

pub(super) fn ffn(setting: &Setting) -> Vec<Case> {
    WIDTHS
        .iter()
        .enumerate()
        .map(|(index, &hidden)| {
            let residual = [Added::Nothing, Added::Separate, Added::InPlace][index % 3];
            feed_forward(setting, ROWS[(index + 5) % 7], [hidden, other_width(index)], residual)
        })
        .collect()
}

/// FFN of `rows` rows of `hidden`, through `intermediate`.
pub(super) fn feed_forward(
    setting: &Setting,
    rows: usize,
    [hidden, intermediate]: [usize; 2],
    added: Added,
) -> Case {
    let name = format!("{rows} rows, {hidden} through {intermediate}, residual {}", added.name());
    let mut draft = Draft::new(setting, name, Run::rows(rows));
    draft.special = &[Kind::Subnormal, Kind::OneNan];
    let input = draft.input("input", hidden);
    let gate_up = draft.gate_up(intermediate, hidden);
    let down = draft.matrix("down", hidden, intermediate);
    let (residual, out) = draft.added(added, hidden);
    draft.builder.step("ffn", Op::Ffn(Ffn { input, gate_up, down, residual, out }));
    draft.finish()
}

pub(super) fn logits(setting: &Setting) -> Vec<Case> {
    let mut cases: Vec<Case> = WIDTHS
        .iter()
        .enumerate()
        .map(|(index, &hidden)| {
            let rows = ROWS[index % 7];
            // Every row, the last one, or every second one.
            let outputs = match index % 3 {
                0 => (0..rows as u32).collect(),
                1 => vec![rows as u32 - 1],
                _ => (0..rows as u32).step_by(2).collect(),
            };
            head(setting, rows, [hidden, other_width(index)], outputs)
        })
        .collect();
    cases.push(many_ones(setting));
    cases
}

/// Logits of some of `rows` rows, from `hidden` to `vocabulary`.
pub(super) fn head(
    setting: &Setting,
    rows: usize,
    [hidden, vocabulary]: [usize; 2],
    outputs: Vec<u32>,
) -> Case {
    let name = format!("{} of {rows} rows, {hidden} to {vocabulary}", outputs.len());
    let mut draft = Draft::new(setting, name, Run { outputs, ..Run::rows(rows) });
    draft.special = SPECIAL;
    let input = draft.input("input", hidden);
    let weight = draft.matrix("weight", vocabulary, hidden);
    let out = draft.builder.value("logits", vocabulary, ValueRole::Logits);
    draft.builder.step("logits", Op::Logits(Logits { input, weight, out }));
    draft.finish()
}

/// Logits of 131,072 products of ones: f32 whatever the policy stores.
fn many_ones(setting: &Setting) -> Case {
    let columns = 131_072;
    let mut run = Run::rows(1);
    run.outputs = vec![0];
    let mut draft = Draft::new(setting, format!("{columns} ones"), run);
    let input = draft.activation("input", columns);
    draft.run.inputs.push((input, vec![1.0; columns]));
    draft.source.add("ones", &[2, columns], setting.policy.weights(), &vec![1.0; 2 * columns]);
    let weight = draft.builder.matrix("ones", vec![WeightPart::whole("ones", 2)], columns);
    let out = draft.builder.value("logits", 2, ValueRole::Logits);
    draft.builder.step("logits", Op::Logits(Logits { input, weight, out }));
    let mut case = draft.finish();
    case.expected.push(Expected { value: out, number: 131_072.0 });
    case
}

/// Whether the logits share the table of an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// They do.
    Tied,
    /// There are none.
    Alone,
}

/// Token lookup in a table that, where the backend has the contract for it, the logits share.
pub(super) fn embedding(setting: &Setting, table: Table) -> Vec<Case> {
    const VOCABULARY: usize = 37;
    const KINDS: [Kind; 5] = [Kind::Ordinary, Kind::Subnormal, Kind::Ordinary, Kind::Large, Kind::Ordinary];
    WIDTHS
        .iter()
        .enumerate()
        .map(|(index, &hidden)| {
            let rows = ROWS[(index + 1) % 7];
            looked_up(setting, rows, Tokens { vocabulary: VOCABULARY, hidden, table, kinds: &KINDS })
        })
        .collect()
}

/// A table of an embedding.
pub(super) struct Tokens {
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) table: Table,
    /// Those of its rows, in turn.
    pub(super) kinds: &'static [Kind],
}

/// Some rows of a table.
pub(super) fn looked_up(setting: &Setting, rows: usize, tokens: Tokens) -> Case {
    let Tokens { vocabulary, hidden, table, kinds } = tokens;
    let tied = table == Table::Tied;
    let mut draft = Draft::new(setting, format!("{rows} rows of {hidden}, tied {tied}"), Run::rows(rows));
    draft.run.tokens = (0..rows).map(|_| draft.numbers.below(vocabulary) as u32).collect();
    let weights = setting.policy.weights();
    let mut numbers = Vec::new();
    for token in 0..vocabulary {
        numbers.extend(draft.numbers.stored(kinds[token % kinds.len()], weights, hidden));
    }
    draft.source.add("table", &[vocabulary, hidden], weights, &numbers);
    let table = draft.builder.matrix("table", vec![WeightPart::whole("table", vocabulary)], hidden);
    let out = draft.activation("out", hidden);
    draft.builder.step("embedding", Op::Embedding(Embedding { table, out }));
    if tied {
        draft.run.outputs = vec![rows as u32 - 1];
        let logits = draft.builder.value("logits", vocabulary, ValueRole::Logits);
        draft.builder.step("logits", Op::Logits(Logits { input: out, weight: table, out: logits }));
    }
    draft.finish()
}
