//! Builds programs the way an architecture reads: top to bottom, by tensor names.

use crate::op::{Attention, Embedding, Ffn, HeadNorms, Heads, Logits, Mask, Matmul, Op, Qkv, RmsNorm};
use crate::program::{
    CacheSpec, HiddenPoint, Program, ProgramStep, RopeSpec, ValueId, ValueRole, ValueSpec, WeightId,
    WeightKind, WeightPart, WeightSpec,
};

/// Collects values, weights and steps.
#[derive(Debug)]
pub struct ProgramBuilder {
    program: Program,
}

/// Head norms of a [`ProgramBuilder::qkv`] step, by tensor name.
#[derive(Clone, Debug)]
pub struct HeadNormTensors {
    /// `[head_dim]`.
    pub query: String,
    /// `[head_dim]`.
    pub key: String,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Arguments of [`ProgramBuilder::qkv`].
#[derive(Clone, Debug)]
pub struct QkvArgs {
    /// Query, key and value rows, in this order, from one or several tensors.
    pub weights: Vec<WeightPart>,
    /// Query, key and value biases, in this order.
    pub biases: Option<Vec<WeightPart>>,
    /// Norms of the heads.
    pub head_norms: Option<HeadNormTensors>,
    /// Heads.
    pub heads: Heads,
    /// Layer of the cache.
    pub layer: usize,
}

/// Arguments of [`ProgramBuilder::attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// Heads.
    pub heads: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Which positions a query sees.
    pub mask: Mask,
    /// Layer of the cache.
    pub layer: usize,
}

/// Arguments of [`ProgramBuilder::ffn_into`].
#[derive(Clone, Debug)]
pub struct FfnArgs {
    /// Gate rows, then up rows.
    pub gate_up: Vec<WeightPart>,
    /// `[hidden, intermediate]`.
    pub down: String,
    /// Intermediate features.
    pub intermediate: usize,
}

impl ProgramBuilder {
    /// A program without steps.
    pub fn new(name: impl Into<String>, max_context: usize) -> ProgramBuilder {
        ProgramBuilder {
            program: Program {
                name: name.into(),
                values: Vec::new(),
                weights: Vec::new(),
                steps: Vec::new(),
                cache: None,
                rope: None,
                hidden: Vec::new(),
                max_context,
            },
        }
    }

    /// Gives the program a KV cache.
    pub fn cache(&mut self, cache: CacheSpec) {
        self.program.cache = Some(cache);
    }

    /// Gives the program a rotary embedding.
    pub fn rope(&mut self, rope: RopeSpec) {
        self.program.rope = Some(rope);
    }

    /// A value that a step writes, or that is written from outside.
    pub fn value(&mut self, name: impl Into<String>, width: usize, role: ValueRole) -> ValueId {
        self.program.values.push(ValueSpec { name: name.into(), width, role });
        ValueId(self.program.values.len() - 1)
    }

    /// A matrix of stacked parts.
    pub fn matrix(&mut self, name: impl Into<String>, parts: Vec<WeightPart>, columns: usize) -> WeightId {
        self.weight(name, parts, columns, WeightKind::Matrix)
    }

    /// A norm's weight or a bias of stacked parts.
    pub fn vector(&mut self, name: impl Into<String>, parts: Vec<WeightPart>) -> WeightId {
        self.weight(name, parts, 1, WeightKind::Vector)
    }

    /// A weight of any kind. The same parts of the same kind are one weight, so that tied matrices are held once.
    pub fn weight(
        &mut self,
        name: impl Into<String>,
        parts: Vec<WeightPart>,
        columns: usize,
        kind: WeightKind,
    ) -> WeightId {
        let known =
            |weight: &WeightSpec| weight.parts == parts && weight.kind == kind && weight.columns == columns;
        if let Some(index) = self.program.weights.iter().position(known) {
            return WeightId(index);
        }
        let rows = parts.iter().map(|part| part.rows.len()).sum();
        self.program.weights.push(WeightSpec { name: name.into(), rows, columns, kind, parts });
        WeightId(self.program.weights.len() - 1)
    }

    /// A step.
    pub fn step(&mut self, name: impl Into<String>, op: Op) {
        self.program.steps.push(ProgramStep { name: name.into(), op });
    }

    fn width(&self, value: ValueId) -> usize {
        self.program.value(value).width
    }

    /// Looks tokens up; the result is the residual stream.
    pub fn embedding(&mut self, tensor: &str, vocabulary: usize, hidden: usize) -> ValueId {
        let table = self.matrix(tensor, vec![WeightPart::whole(tensor, vocabulary)], hidden);
        let out = self.value("residual", hidden, ValueRole::Activation);
        self.step("embedding", Op::Embedding(Embedding { table, out }));
        self.hidden_point("embedding", out);
        out
    }

    /// Marks the residual stream as complete after the last step.
    pub fn hidden_point(&mut self, name: impl Into<String>, value: ValueId) {
        let step = self.program.steps.len() - 1;
        self.program.hidden.push(HiddenPoint { name: name.into(), step, value });
    }

    /// RMSNorm of a value.
    pub fn rms_norm(&mut self, step: &str, tensor: &str, input: ValueId, eps: f32) -> ValueId {
        let width = self.width(input);
        let weight = self.vector(tensor, vec![WeightPart::whole(tensor, width)]);
        let out = self.reused("normalised", width);
        self.step(step, Op::RmsNorm(RmsNorm { input, residual: None, weight, eps, out }));
        out
    }

    /// Query, key and value projections; the result holds the queries.
    pub fn qkv(&mut self, step: &str, input: ValueId, args: QkvArgs) -> ValueId {
        let columns = self.width(input);
        let weight = self.matrix(format!("{step}.weight"), args.weights, columns);
        let bias = args.biases.map(|parts| self.vector(format!("{step}.bias"), parts));
        let head_norms = args.head_norms.map(|norms| HeadNorms {
            query: self.vector(&norms.query, vec![WeightPart::whole(&norms.query, args.heads.dim)]),
            key: self.vector(&norms.key, vec![WeightPart::whole(&norms.key, args.heads.dim)]),
            eps: norms.eps,
        });
        let query = self.reused("query", args.heads.query_width());
        let op = Qkv { input, weight, bias, head_norms, heads: args.heads, layer: args.layer, query };
        self.step(step, Op::Qkv(op));
        query
    }

    /// Attention of the queries over the cache.
    pub fn attention(&mut self, step: &str, query: ValueId, args: AttentionArgs) -> ValueId {
        let AttentionArgs { heads, scale, mask, layer } = args;
        let out = self.reused("attended", heads.query_width());
        self.step(step, Op::Attention(Attention { query, heads, scale, mask, layer, out }));
        out
    }

    /// `residual += input * tensor^T`.
    pub fn project_into(&mut self, step: &str, tensor: &str, input: ValueId, residual: ValueId) {
        let (rows, columns) = (self.width(residual), self.width(input));
        let weight = self.matrix(tensor, vec![WeightPart::whole(tensor, rows)], columns);
        let op = Matmul { input, weight, bias: None, residual: Some(residual), alpha: 1.0, out: residual };
        self.step(step, Op::Matmul(op));
    }

    /// `residual += down(silu(gate(input)) * up(input))`.
    pub fn ffn_into(&mut self, step: &str, input: ValueId, residual: ValueId, args: FfnArgs) {
        let hidden = self.width(input);
        let gate_up = self.weight(format!("{step}.gate_up"), args.gate_up, hidden, WeightKind::GateUp);
        let down = self.matrix(&args.down, vec![WeightPart::whole(&args.down, hidden)], args.intermediate);
        let op = Ffn { input, gate_up, down, residual: Some(residual), out: residual };
        self.step(step, Op::Ffn(op));
    }

    /// Logits of the wanted rows.
    pub fn logits(&mut self, tensor: &str, input: ValueId, vocabulary: usize) -> ValueId {
        let weight = self.matrix(tensor, vec![WeightPart::whole(tensor, vocabulary)], self.width(input));
        let out = self.value("logits", vocabulary, ValueRole::Logits);
        self.step("logits", Op::Logits(Logits { input, weight, out }));
        out
    }

    /// The program.
    pub fn finish(self) -> Program {
        self.program
    }

    /// A temporary that every layer writes anew under the same name: one buffer serves all.
    fn reused(&mut self, name: &str, width: usize) -> ValueId {
        let known = |value: &ValueSpec| value.name == name && value.width == width;
        match self.program.values.iter().position(known) {
            Some(index) => ValueId(index),
            None => self.value(name, width, ValueRole::Activation),
        }
    }
}
