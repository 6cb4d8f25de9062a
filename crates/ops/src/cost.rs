//! Bytes and operations of a step: what a perfect machine would have to move and multiply.

use mantissa_numerics::Format;
use mantissa_numerics::policy::PrecisionPolicy;

use crate::op::{Heads, Mask, Op};
use crate::program::{CacheSpec, Program, ValueId, WeightId, cache_format};

/// The rows of one sequence and the tokens that its cache holds afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceShape {
    /// Rows in the batch.
    pub rows: usize,
    /// Tokens in the cache after the run, the rows included.
    pub context: usize,
}

/// The shape of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunShape {
    /// Sequences of the batch.
    pub sequences: Vec<SequenceShape>,
    /// Rows whose logits are wanted.
    pub outputs: usize,
}

impl RunShape {
    /// One sequence whose last row's logits are wanted.
    pub fn single(rows: usize, context: usize) -> RunShape {
        RunShape { sequences: vec![SequenceShape { rows, context }], outputs: 1 }
    }

    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.rows).sum()
    }
}

/// What a step moves and computes, each operand counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights read.
    pub weights: u64,
    /// Bytes of activations read and written.
    pub activations: u64,
    /// Bytes of the cache read.
    pub cache_read: u64,
    /// Bytes of the cache written.
    pub cache_written: u64,
    /// Multiplications and additions.
    pub operations: u64,
}

impl Cost {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.weights + self.activations + self.cache_read + self.cache_written
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            weights: self.weights + other.weights,
            activations: self.activations + other.activations,
            cache_read: self.cache_read + other.cache_read,
            cache_written: self.cache_written + other.cache_written,
            operations: self.operations + other.operations,
        }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), std::ops::Add::add)
    }
}

fn format_bytes(format: Format, values: usize) -> u64 {
    values as u64 * u64::from(format.bits()) / 8
}

/// Pairs of a query and a visible position, and the positions that any query sees.
fn attention_pairs(sequence: SequenceShape, mask: Mask) -> (u64, u64) {
    let first_row = sequence.context - sequence.rows;
    let pairs = (first_row..sequence.context)
        .map(|position| (position + 1 - mask.first_visible(position)) as u64)
        .sum();
    (pairs, (sequence.context - mask.first_visible(first_row)) as u64)
}

/// Cost of one op of a program under a policy.
pub fn op_cost(program: &Program, policy: &PrecisionPolicy, op: &Op, shape: &RunShape) -> Cost {
    let rows = shape.rows();
    let rows_of = |id: ValueId| match program.value(id).role {
        crate::program::ValueRole::Activation => rows,
        crate::program::ValueRole::Logits => shape.outputs,
    };
    let value =
        |id: ValueId| format_bytes(program.value_format(id, policy), rows_of(id) * program.value(id).width);
    let weight = |id: WeightId| format_bytes(policy.weights(), program.weight(id).len());
    let product = |id: WeightId, rows: usize| 2 * (rows * program.weight(id).len()) as u64;

    let mut cost = Cost {
        weights: op.weights().into_iter().map(weight).sum(),
        activations: op.inputs().into_iter().chain([op.output()]).map(value).sum(),
        ..Cost::default()
    };
    match op {
        Op::Embedding(op) => {
            // Only the looked-up rows are read, not the table.
            cost.weights = format_bytes(policy.weights(), rows * program.weight(op.table).columns);
        }
        Op::RmsNorm(op) => {
            cost.operations = 4 * (rows * program.value(op.out).width) as u64;
            if let Some(residual) = op.residual {
                cost.activations += value(residual);
            }
        }
        Op::Rope(op) => cost.operations = 3 * (rows * program.value(op.out).width) as u64,
        Op::Softmax(op) => cost.operations = 4 * (rows * program.value(op.out).width) as u64,
        Op::Residual(op) => cost.operations = (rows * program.value(op.out).width) as u64,
        Op::Matmul(op) => cost.operations = product(op.weight, rows),
        Op::Logits(op) => {
            cost.operations = product(op.weight, shape.outputs);
            cost.activations -= value(op.input);
            let width = program.value(op.input).width;
            cost.activations += format_bytes(policy.activations(), shape.outputs * width);
        }
        Op::SwiGlu(op) => cost.operations = product(op.weight, rows),
        Op::Ffn(op) => cost.operations = product(op.gate_up, rows) + product(op.down, rows),
        Op::Qkv(op) => {
            cost.operations = product(op.weight, rows);
            cost.cache_written = rows as u64 * layer_bytes(op.heads, policy);
        }
        Op::Sdpa(op) => {
            cost.operations = attention_operations(shape, op.heads, op.mask);
            cost.activations += shape
                .sequences
                .iter()
                .map(|sequence| 2 * 4 * (op.heads.query * sequence.rows * sequence.rows) as u64)
                .sum::<u64>();
        }
        Op::Attention(op) => {
            cost.operations = attention_operations(shape, op.heads, op.mask);
            let positions: u64 =
                shape.sequences.iter().map(|&sequence| attention_pairs(sequence, op.mask).1).sum();
            cost.cache_read = positions * layer_bytes(op.heads, policy);
        }
    }
    cost
}

/// Bytes of one token's keys and values in one layer.
fn layer_bytes(heads: Heads, policy: &PrecisionPolicy) -> u64 {
    CacheSpec { layers: 1, heads }.bytes_per_token(cache_format(policy)) as u64
}

fn attention_operations(shape: &RunShape, heads: Heads, mask: Mask) -> u64 {
    let pairs: u64 = shape.sequences.iter().map(|&sequence| attention_pairs(sequence, mask).0).sum();
    4 * pairs * heads.query_width() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causal_and_windowed_pairs() {
        let prefill = SequenceShape { rows: 4, context: 6 };
        assert_eq!(attention_pairs(prefill, Mask::Causal), (3 + 4 + 5 + 6, 6));
        // Positions 2..6 with a window of 3 see 3 each; the earliest position seen is 0.
        assert_eq!(attention_pairs(prefill, Mask::SlidingWindow { window: 3 }), (12, 6));
        assert_eq!(
            attention_pairs(SequenceShape { rows: 1, context: 6 }, Mask::SlidingWindow { window: 3 }),
            (3, 3)
        );
    }
}
