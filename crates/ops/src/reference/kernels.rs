//! Every op, as its definition reads.

use mantissa_numerics::contract::{OpContract, RoundingPoint};

use super::attention::{Base, Reduction, SoftmaxRow, attend, softmax};
use super::cache::{Side, Slot};
use super::number::{Number, Products};
use super::session::ReferenceSession;
use crate::batch::{Batch, SequenceRows};
use crate::op::{
    Attention, Embedding, Ffn, Heads, Logits, Matmul, Op, Qkv, Residual, RmsNorm, Rope, Sdpa, Softmax, SwiGlu,
};
use crate::plan::Step;
use crate::program::{RopeSpec, WeightId};

pub(super) fn dot<N: Number>(left: &[N], right: &[N], products: Products) -> N {
    N::dot(left.iter().copied().zip(right.iter().copied()), products)
}

/// `x / sqrt(mean(x^2) + eps) * weight`, unrounded.
fn rms_norm<N: Number>(x: &[N], weight: &[f32], eps: f32) -> Vec<N> {
    let squares = dot(x, x, Products::F32);
    let mean = squares.div(N::exact(x.len() as f64));
    let inverse = N::exact(1.0).div(mean.add(N::exact(f64::from(eps))).sqrt());
    x.iter().zip(weight).map(|(x, &weight)| x.mul(inverse).mul(N::exact(f64::from(weight)))).collect()
}

/// Rotates one head at a position: dimensions `i` and `i + rotary_dim / 2` by the angle `position * frequency[i]`.
fn rotate<N: Number>(head: &mut [N], rope: &RopeSpec, set: usize, position: u32) {
    let Some(set) = rope.sets.get(set) else { return };
    let half = rope.rotary_dim / 2;
    for (i, frequency) in set.inverse_frequencies.iter().take(half).enumerate() {
        let angle = f64::from(position) * frequency;
        let cos = N::table(angle.cos() * set.attention_factor);
        let sin = N::table(angle.sin() * set.attention_factor);
        let (first, second) = (head[i], head[i + half]);
        head[i] = first.mul(cos).sub(second.mul(sin));
        head[i + half] = second.mul(cos).add(first.mul(sin));
    }
}

/// The sequence of a row; [`Batch::check`] has seen that every row has one.
fn rows_of<'a>(batch: &'a Batch<'_>) -> impl Iterator<Item = (usize, &'a SequenceRows<'a>)> {
    batch.sequences.iter().flat_map(|sequence| sequence.rows.clone().map(move |row| (row, sequence)))
}

impl<N: Number> ReferenceSession<N> {
    pub(super) fn execute(&mut self, step: &Step, batch: &Batch<'_>) {
        let contract = &step.contract;
        match &step.op {
            Op::Embedding(op) => self.embedding(op, batch),
            Op::RmsNorm(op) => self.rms_norm(op, batch),
            Op::Rope(op) => self.rope(op, batch),
            Op::Softmax(op) => self.softmax(op, batch),
            Op::Sdpa(op) => self.sdpa(op, contract, batch),
            Op::Matmul(op) => self.matmul(op, contract, batch),
            Op::Qkv(op) => self.qkv(op, contract, batch),
            Op::Attention(op) => self.attention(op, contract, batch),
            Op::SwiGlu(op) => self.swiglu(op, contract, batch),
            Op::Ffn(op) => self.ffn(op, contract, batch),
            Op::Residual(op) => self.residual(op, batch),
            Op::Logits(op) => self.logits_of(op, contract, batch),
        }
    }

    /// Products of `input` with every row of a weight.
    fn product(&self, input: &[N], weight: WeightId, products: Products) -> Vec<N> {
        (0..self.plan_ref().program.weight(weight).rows)
            .map(|row| N::dot(self.weight_row(weight, row).zip(input.iter().copied()), products))
            .collect()
    }

    fn embedding(&mut self, op: &Embedding, batch: &Batch<'_>) {
        for (row, &token) in batch.tokens.iter().enumerate() {
            let found: Vec<N> = self.weight_row(op.table, token as usize).collect();
            self.store(op.out, row, &found);
        }
    }

    fn rms_norm(&mut self, op: &RmsNorm, batch: &Batch<'_>) {
        for row in 0..batch.rows() {
            let mut x = self.row(op.input, row).to_vec();
            if let Some(residual) = op.residual {
                x = sum(&x, self.row(residual, row));
                self.store(residual, row, &x);
            }
            let normalised = rms_norm(&x, self.weight(op.weight), op.eps);
            self.store(op.out, row, &normalised);
        }
    }

    fn rope(&mut self, op: &Rope, batch: &Batch<'_>) {
        let plan = self.plan_arc();
        for (row, sequence) in rows_of(batch) {
            let mut heads = self.row(op.input, row).to_vec();
            if let Some(rope) = &plan.program.rope {
                for head in heads.chunks_exact_mut(op.head_dim) {
                    rotate(head, rope, sequence.rope_set, batch.positions[row]);
                }
            }
            self.store(op.out, row, &heads);
        }
    }

    fn softmax(&mut self, op: &Softmax, batch: &Batch<'_>) {
        for row in 0..batch.rows() {
            let scale = N::exact(f64::from(op.scale));
            let scores: Vec<N> = self.row(op.input, row).iter().map(|x| x.mul(scale)).collect();
            let SoftmaxRow { weights, inverse_sum } = softmax(&scores, Base::E, 0);
            let out: Vec<N> = weights.iter().map(|weight| weight.mul(inverse_sum)).collect();
            self.store(op.out, row, &out);
        }
    }

    fn sdpa(&mut self, op: &Sdpa, contract: &OpContract, batch: &Batch<'_>) {
        let Heads { query, key_value, dim } = op.heads;
        for sequence in batch.sequences {
            let mut outputs = Vec::new();
            for row in sequence.rows.clone() {
                let within = row - sequence.rows.start;
                let visible = sequence.rows.start + op.mask.first_visible(within)..row + 1;
                let how = Reduction::over(contract, 0, within);
                let mut out = Vec::with_capacity(query * dim);
                for head in 0..query {
                    let kv = head / (query / key_value);
                    let part = |value, row| &self.row(value, row)[kv * dim..(kv + 1) * dim];
                    let keys: Vec<&[N]> = visible.clone().map(|row| part(op.key, row)).collect();
                    let values: Vec<&[N]> = visible.clone().map(|row| part(op.value, row)).collect();
                    let query_head = &self.row(op.query, row)[head * dim..(head + 1) * dim];
                    out.extend(attend(query_head, &keys, &values, op.scale, how));
                }
                outputs.push(out);
            }
            // Stored last: the result may replace one of the operands.
            for (row, out) in sequence.rows.clone().zip(outputs) {
                self.store(op.out, row, &out);
            }
        }
    }

    fn matmul(&mut self, op: &Matmul, contract: &OpContract, batch: &Batch<'_>) {
        for row in 0..batch.rows() {
            let mut out = self.product(self.row(op.input, row), op.weight, Products::of(contract));
            if op.alpha != 1.0 {
                let alpha = N::exact(f64::from(op.alpha));
                out.iter_mut().for_each(|number| *number = number.mul(alpha));
            }
            self.add_bias(&mut out, op.bias);
            if let Some(residual) = op.residual {
                out = sum(&out, self.row(residual, row));
            }
            self.store(op.out, row, &out);
        }
    }

    fn add_bias(&self, out: &mut [N], bias: Option<WeightId>) {
        let Some(bias) = bias else { return };
        for (number, &bias) in out.iter_mut().zip(self.weight(bias)) {
            *number = number.add(N::exact(f64::from(bias)));
        }
    }

    fn qkv(&mut self, op: &Qkv, contract: &OpContract, batch: &Batch<'_>) {
        let plan = self.plan_arc();
        let Heads { query, key_value, dim } = op.heads;
        let page_size = self.limits_ref().page_size;
        for (row, sequence) in rows_of(batch) {
            let mut out = self.product(self.row(op.input, row), op.weight, Products::of(contract));
            self.add_bias(&mut out, op.bias);
            for (index, head) in out.chunks_exact_mut(dim).take(query + key_value).enumerate() {
                if let Some(norms) = op.head_norms {
                    let weight = if index < query { norms.query } else { norms.key };
                    head.copy_from_slice(&rms_norm(head, self.weight(weight), norms.eps));
                }
                if let Some(rope) = &plan.program.rope {
                    rotate(head, rope, sequence.rope_set, batch.positions[row]);
                }
            }
            let (queries, cached) = out.split_at(query * dim);
            self.store(op.query, row, queries);
            let position = batch.positions[row] as usize;
            let page = sequence.block_table[position / page_size];
            let offset = position % page_size;
            let Some(cache) = self.cache_mut() else { continue };
            for (index, vector) in cached.chunks_exact(dim).enumerate() {
                let side = if index < key_value { Side::Key } else { Side::Value };
                let slot = Slot { layer: op.layer, side, page, offset, head: index % key_value };
                cache.write(slot, vector);
            }
        }
    }

    fn attention(&mut self, op: &Attention, contract: &OpContract, batch: &Batch<'_>) {
        for (row, sequence) in rows_of(batch) {
            let position = batch.positions[row] as usize;
            let out = self.attention_row(op, contract, sequence, Place { row, position });
            self.store(op.out, row, &out);
        }
    }

    fn attention_row(
        &self,
        op: &Attention,
        contract: &OpContract,
        sequence: &SequenceRows<'_>,
        at: Place,
    ) -> Vec<N> {
        let Heads { query, key_value, dim } = op.heads;
        let Some(cache) = self.cache() else { return vec![N::exact(f64::NAN); query * dim] };
        let page_size = self.limits_ref().page_size;
        let first = op.mask.first_visible(at.position);
        let read = |side, head, position: usize| {
            let (page, offset) = (sequence.block_table[position / page_size], position % page_size);
            cache.read(Slot { layer: op.layer, side, page, offset, head })
        };
        // Blocks before the first visible position may be visited too, and change nothing but the bound.
        let how = Reduction::over(contract, 0, at.position);
        let mut out = Vec::with_capacity(query * dim);
        for head in 0..query {
            let kv = head / (query / key_value);
            let keys: Vec<&[N]> =
                (first..=at.position).map(|position| read(Side::Key, kv, position)).collect();
            let values: Vec<&[N]> =
                (first..=at.position).map(|position| read(Side::Value, kv, position)).collect();
            let query_head = &self.row(op.query, at.row)[head * dim..(head + 1) * dim];
            out.extend(attend(query_head, &keys, &values, op.scale, how));
        }
        out
    }

    fn gated(&self, input: &[N], weight: WeightId, contract: &OpContract) -> Vec<N> {
        let both = self.product(input, weight, Products::of(contract));
        let (gates, ups) = both.split_at(both.len() / 2);
        let stored = contract.query.activations;
        gates.iter().zip(ups).map(|(gate, &up)| gate.silu(stored).mul(up)).collect()
    }

    fn swiglu(&mut self, op: &SwiGlu, contract: &OpContract, batch: &Batch<'_>) {
        for row in 0..batch.rows() {
            let out = self.gated(self.row(op.input, row), op.weight, contract);
            self.store(op.out, row, &out);
        }
    }

    fn ffn(&mut self, op: &Ffn, contract: &OpContract, batch: &Batch<'_>) {
        for row in 0..batch.rows() {
            let mut intermediate = self.gated(self.row(op.input, row), op.gate_up, contract);
            if contract.rounding.contains(&RoundingPoint::Intermediate) {
                let format = contract.query.activations;
                intermediate.iter_mut().for_each(|number| *number = number.round(format));
            }
            let mut out = self.product(&intermediate, op.down, Products::of(contract));
            if let Some(residual) = op.residual {
                out = sum(&out, self.row(residual, row));
            }
            self.store(op.out, row, &out);
        }
    }

    fn residual(&mut self, op: &Residual, batch: &Batch<'_>) {
        for row in 0..batch.rows() {
            let out = sum(self.row(op.left, row), self.row(op.right, row));
            self.store(op.out, row, &out);
        }
    }

    fn logits_of(&mut self, op: &Logits, contract: &OpContract, batch: &Batch<'_>) {
        for (index, &row) in batch.outputs.iter().enumerate() {
            let out = self.product(self.row(op.input, row as usize), op.weight, Products::of(contract));
            self.store(op.out, index, &out);
        }
    }
}

/// A query row and its position.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    position: usize,
}

fn sum<N: Number>(left: &[N], right: &[N]) -> Vec<N> {
    left.iter().zip(right).map(|(left, &right)| left.add(right)).collect()
}
