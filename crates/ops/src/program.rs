//! A model as data: values, weights and the steps between them.

use std::ops::Range;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, ContractQuery, Family};
use mantissa_numerics::policy::PrecisionPolicy;

use crate::op::{Heads, Op};

/// A value of a program: an index into [`Program::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// A weight of a program: an index into [`Program::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// What a value is, which decides its format and its number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueRole {
    /// One row per token, in the policy's activation format.
    Activation,
    /// One row per wanted output, f32 in every policy.
    Logits,
}

/// Rows of the values of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunRows {
    /// One per token.
    pub tokens: usize,
    /// One per wanted output.
    pub outputs: usize,
}

impl RunRows {
    /// Those of a value.
    pub fn of(self, role: ValueRole) -> usize {
        match role {
            ValueRole::Activation => self.tokens,
            ValueRole::Logits => self.outputs,
        }
    }
}

/// A value: `[rows, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueSpec {
    /// Name in tables and errors.
    pub name: String,
    /// Values per row.
    pub width: usize,
    /// What it is.
    pub role: ValueRole,
}

/// A range of rows of a checkpoint's tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPart {
    /// Canonical name of the tensor.
    pub tensor: String,
    /// Rows of the whole tensor, which its shape is checked against.
    pub tensor_rows: usize,
    /// Rows taken.
    pub rows: Range<usize>,
}

impl WeightPart {
    /// All rows of a tensor.
    pub fn whole(tensor: impl Into<String>, rows: usize) -> WeightPart {
        WeightPart { tensor: tensor.into(), tensor_rows: rows, rows: 0..rows }
    }
}

/// What kind of operand a weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// `[rows, columns]`, parts stacked along the rows.
    Matrix,
    /// A matrix whose first half of rows are gates and whose second half are ups, used by SwiGLU.
    GateUp,
    /// `[rows]`: a norm's weight or a bias.
    Vector,
}

/// A weight, made of one or more tensors of the checkpoint, in the policy's weight format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name in tables and errors.
    pub name: String,
    /// Output features, or the length of a vector.
    pub rows: usize,
    /// Input features; 1 for a vector.
    pub columns: usize,
    /// What it is.
    pub kind: WeightKind,
    /// Where it comes from.
    pub parts: Vec<WeightPart>,
}

impl WeightSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The KV cache that a program reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheSpec {
    /// Layers with a cache of their own.
    pub layers: usize,
    /// Heads; the cache holds `key_value` of them.
    pub heads: Heads,
}

impl CacheSpec {
    /// Bytes of one token in all layers, keys, values and scales.
    pub fn bytes_per_token(&self, format: CacheFormat) -> usize {
        2 * self.layers * self.heads.key_value * format.vector_bytes(self.heads.dim)
    }
}

/// One set of rotary frequencies, computed in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSet {
    /// Angle per position of each rotary pair, `rotary_dim / 2` of them.
    pub inverse_frequencies: Vec<f64>,
    /// Factor of cosine and sine.
    pub attention_factor: f64,
}

/// The rotary embedding of a program. Dimensions `i` and `i + rotary_dim / 2` of a head form a pair; the rest pass.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Dimensions of a head that rotate.
    pub rotary_dim: usize,
    /// Frequency sets; a sequence names the one it uses. Longrope has two (short, long), all others one.
    pub sets: Vec<RopeSet>,
    /// Sequences longer than this many tokens use set 1 at all their positions.
    pub long_beyond: Option<usize>,
}

impl RopeSpec {
    /// The frequency set for a sequence of `length` tokens.
    pub fn set_for(&self, length: usize) -> usize {
        usize::from(self.long_beyond.is_some_and(|limit| length > limit))
    }
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramStep {
    /// Name in tables and errors, such as `layers.3.attention`.
    pub name: String,
    /// The op.
    pub op: Op,
}

/// A point where the residual stream is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenPoint {
    /// `embedding`, or `layers.N`.
    pub name: String,
    /// The step after which the value is complete.
    pub step: usize,
    /// The residual stream.
    pub value: ValueId,
}

/// A model as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Name of the model's architecture.
    pub name: String,
    /// Values, by [`ValueId`].
    pub values: Vec<ValueSpec>,
    /// Weights, by [`WeightId`].
    pub weights: Vec<WeightSpec>,
    /// Steps, in order.
    pub steps: Vec<ProgramStep>,
    /// The KV cache, where there is one.
    pub cache: Option<CacheSpec>,
    /// The rotary embedding, where there is one.
    pub rope: Option<RopeSpec>,
    /// Where the residual stream can be observed.
    pub hidden: Vec<HiddenPoint>,
    /// Tokens that the model was made for.
    pub max_context: usize,
}

impl Program {
    /// A value's description.
    pub fn value(&self, id: ValueId) -> &ValueSpec {
        &self.values[id.0]
    }

    /// A weight's description.
    pub fn weight(&self, id: WeightId) -> &WeightSpec {
        &self.weights[id.0]
    }

    /// The value that holds the logits, where the program computes them.
    pub fn logits(&self) -> Option<ValueId> {
        self.values.iter().position(|value| value.role == ValueRole::Logits).map(ValueId)
    }

    /// The first of the steps at the end that compute every row from its own numbers and the cache alone, where they end with
    /// the logits: what they make of a row matters only where its logits are wanted.
    pub fn own_rows_from(&self) -> Option<usize> {
        let by_row = |step: &ProgramStep| match step.op {
            Op::RmsNorm(_) | Op::Softmax(_) | Op::Matmul(_) | Op::Attention(_) => true,
            Op::SwiGlu(_) | Op::Ffn(_) | Op::Residual(_) | Op::Logits(_) => true,
            Op::Embedding(_) | Op::Rope(_) | Op::Sdpa(_) | Op::Qkv(_) => false,
        };
        let last = self.steps.last().filter(|step| matches!(step.op, Op::Logits(_)));
        last.and_then(|_| self.steps.iter().rposition(|step| !by_row(step))).map(|mixing| mixing + 1)
    }

    /// What a step asks for under a policy.
    pub fn query(&self, op: &Op, policy: &PrecisionPolicy) -> ContractQuery {
        let family = op.family();
        query_for(family, policy)
    }

    /// Format of a value under a policy.
    pub fn value_format(&self, id: ValueId, policy: &PrecisionPolicy) -> Format {
        match self.value(id).role {
            ValueRole::Activation => policy.activations(),
            ValueRole::Logits => Format::F32,
        }
    }

    /// Number of weight values, tied ones once.
    pub fn parameters(&self) -> usize {
        self.weights.iter().map(WeightSpec::len).sum()
    }
}

/// How a policy stores the KV cache.
pub fn cache_format(policy: &PrecisionPolicy) -> CacheFormat {
    match policy.kv_cache() {
        Format::F8E4M3 => CacheFormat { format: Format::F8E4M3, scales: Some(policy.scales()) },
        format => CacheFormat::plain(format),
    }
}

/// What a family is asked for under a policy.
pub fn query_for(family: Family, policy: &PrecisionPolicy) -> ContractQuery {
    ContractQuery {
        family,
        weights: family.has_weights().then_some(policy.weights()),
        activations: policy.activations(),
        cache: family.has_cache().then(|| cache_format(policy)),
        accumulate: policy.accumulation(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{AttentionArgs, ProgramBuilder, QkvArgs};
    use crate::op::Mask;

    #[test]
    fn rows_are_on_their_own_behind_the_last_keys_and_values() {
        let heads = Heads { query: 2, key_value: 1, dim: 8 };
        let mut builder = ProgramBuilder::new("two layers", 64);
        builder.cache(CacheSpec { layers: 2, heads });
        let stream = builder.embedding("table", 100, 16);
        for layer in 0..2 {
            let weights = vec![WeightPart::whole("qkv", 32)];
            let args = QkvArgs { weights, biases: None, head_norms: None, heads, layer };
            let query = builder.qkv("qkv", stream, args);
            let args = AttentionArgs { heads, scale: 1.0, mask: Mask::Causal, layer };
            let attended = builder.attention("attention", query, args);
            builder.project_into("out", "out", attended, stream);
        }
        builder.logits("head", stream, 100);
        let mut program = builder.finish();
        let first = program.own_rows_from().expect("it ends with logits");
        assert!(matches!(&program.steps[first - 1].op, Op::Qkv(op) if op.layer == 1));
        assert_eq!(program.steps.len() - first, 3);
        program.steps.pop();
        assert_eq!(program.own_rows_from(), None);
    }
}
