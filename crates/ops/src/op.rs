//! The op vocabulary: one struct of arguments per kernel family.
//!
//! Ops name values and weights by id; shapes follow from the [`Program`](crate::Program). A value is a matrix
//! `[rows, width]` with one row per token of the batch (or per wanted output, for logits).

use mantissa_numerics::contract::Family;

use crate::program::{ValueId, WeightId};

/// Which positions a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All positions up to its own.
    Causal,
    /// Position `i` sees positions `j` with `i - window < j <= i`.
    SlidingWindow {
        /// Positions seen, its own included.
        window: usize,
    },
}

impl Mask {
    /// The first position that a query at `position` sees.
    pub fn first_visible(self, position: usize) -> usize {
        match self {
            Mask::Causal => 0,
            Mask::SlidingWindow { window } => (position + 1).saturating_sub(window),
        }
    }
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; query head `h` uses key head `h / (query / key_value)`.
    pub key_value: usize,
    /// Values per head.
    pub dim: usize,
}

impl Heads {
    /// Width of the query projection.
    pub fn query_width(self) -> usize {
        self.query * self.dim
    }

    /// Width of the key projection, and of the value projection.
    pub fn kv_width(self) -> usize {
        self.key_value * self.dim
    }
}

/// `out[t] = table[token[t]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `[vocabulary, hidden]`.
    pub table: WeightId,
    /// `[rows, hidden]`.
    pub out: ValueId,
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`, where `x` is `input`, or `input + residual` which is then also stored
/// (rounded once) in `residual`, and normalised from its unrounded sum.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// `[rows, width]`.
    pub input: ValueId,
    /// `[rows, width]`: read, and replaced by the sum.
    pub residual: Option<ValueId>,
    /// `[width]`.
    pub weight: WeightId,
    /// Added to the mean of squares.
    pub eps: f32,
    /// `[rows, width]`.
    pub out: ValueId,
}

/// Rotary position embedding of each head of `input`, halves convention.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `[rows, heads * head_dim]`.
    pub input: ValueId,
    /// Values per head; the rotary dimensions of the program's rope come first.
    pub head_dim: usize,
    /// `[rows, heads * head_dim]`.
    pub out: ValueId,
}

/// `out = softmax(scale * input)` along each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// `[rows, width]`.
    pub input: ValueId,
    /// Factor before the exponential.
    pub scale: f32,
    /// `[rows, width]`.
    pub out: ValueId,
}

/// Attention of a whole sequence over values, with the score matrix materialised in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Sdpa {
    /// `[rows, heads.query * heads.dim]`.
    pub query: ValueId,
    /// `[rows, heads.key_value * heads.dim]`.
    pub key: ValueId,
    /// `[rows, heads.key_value * heads.dim]`.
    pub value: ValueId,
    /// Heads.
    pub heads: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Which rows a row sees; rows of one sequence only.
    pub mask: Mask,
    /// `[rows, heads.query * heads.dim]`.
    pub out: ValueId,
}

/// `out = alpha * input * weight^T + bias + residual`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    /// `[rows, in]`.
    pub input: ValueId,
    /// `[out, in]`.
    pub weight: WeightId,
    /// `[out]`.
    pub bias: Option<WeightId>,
    /// Added before the one rounding; may be `out` itself.
    pub residual: Option<ValueId>,
    /// Factor of the product.
    pub alpha: f32,
    /// `[rows, out]`.
    pub out: ValueId,
}

/// Query, key and value projections, head norms, RoPE and the write of keys and values into the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Qkv {
    /// `[rows, hidden]`.
    pub input: ValueId,
    /// `[query + key + value rows, hidden]`.
    pub weight: WeightId,
    /// `[query + key + value rows]`.
    pub bias: Option<WeightId>,
    /// Norms over each query and key head, weights `[head_dim]`, before RoPE.
    pub head_norms: Option<HeadNorms>,
    /// Heads.
    pub heads: Heads,
    /// Layer of the cache written.
    pub layer: usize,
    /// `[rows, heads.query * heads.dim]`: the rotated queries.
    pub query: ValueId,
}

/// RMSNorm of each query head and each key head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorms {
    /// `[head_dim]`.
    pub query: WeightId,
    /// `[head_dim]`.
    pub key: WeightId,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Flash attention of the batch's queries over the paged cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// `[rows, heads.query * heads.dim]`.
    pub query: ValueId,
    /// Heads.
    pub heads: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Which positions a query sees.
    pub mask: Mask,
    /// Layer of the cache read.
    pub layer: usize,
    /// `[rows, heads.query * heads.dim]`.
    pub out: ValueId,
}

/// `out = silu(input * gate^T) * (input * up^T)`, rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct SwiGlu {
    /// `[rows, hidden]`.
    pub input: ValueId,
    /// `[2 * intermediate, hidden]`, gate rows first.
    pub weight: WeightId,
    /// `[rows, intermediate]`.
    pub out: ValueId,
}

/// SwiGLU, down projection and residual as one step; the intermediate is rounded once, to the activation format.
#[derive(Clone, Debug, PartialEq)]
pub struct Ffn {
    /// `[rows, hidden]`.
    pub input: ValueId,
    /// `[2 * intermediate, hidden]`, gate rows first.
    pub gate_up: WeightId,
    /// `[hidden, intermediate]`.
    pub down: WeightId,
    /// Added before the one rounding of the result; may be `out` itself.
    pub residual: Option<ValueId>,
    /// `[rows, hidden]`.
    pub out: ValueId,
}

/// `out = left + right`.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual {
    /// `[rows, width]`.
    pub left: ValueId,
    /// `[rows, width]`.
    pub right: ValueId,
    /// `[rows, width]`.
    pub out: ValueId,
}

/// `out = input[wanted rows] * weight^T` in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[rows, hidden]`.
    pub input: ValueId,
    /// `[vocabulary, hidden]`.
    pub weight: WeightId,
    /// `[outputs, vocabulary]`, f32 in every policy.
    pub out: ValueId,
}

/// One op of a program.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each variant is documented by the struct it holds")]
pub enum Op {
    Embedding(Embedding),
    RmsNorm(RmsNorm),
    Rope(Rope),
    Softmax(Softmax),
    Sdpa(Sdpa),
    Matmul(Matmul),
    Qkv(Qkv),
    Attention(Attention),
    SwiGlu(SwiGlu),
    Ffn(Ffn),
    Residual(Residual),
    Logits(Logits),
}

impl Op {
    /// The kernel family.
    pub fn family(&self) -> Family {
        match self {
            Op::Embedding(_) => Family::Embedding,
            Op::RmsNorm(_) => Family::RmsNorm,
            Op::Rope(_) => Family::Rope,
            Op::Softmax(_) => Family::Softmax,
            Op::Sdpa(_) => Family::Sdpa,
            Op::Matmul(_) => Family::Matmul,
            Op::Qkv(_) => Family::Qkv,
            Op::Attention(_) => Family::Attention,
            Op::SwiGlu(_) => Family::SwiGlu,
            Op::Ffn(_) => Family::Ffn,
            Op::Residual(_) => Family::Residual,
            Op::Logits(_) => Family::Logits,
        }
    }

    /// The value that the op writes.
    pub fn output(&self) -> ValueId {
        match self {
            Op::Embedding(op) => op.out,
            Op::RmsNorm(op) => op.out,
            Op::Rope(op) => op.out,
            Op::Softmax(op) => op.out,
            Op::Sdpa(op) => op.out,
            Op::Matmul(op) => op.out,
            Op::Qkv(op) => op.query,
            Op::Attention(op) => op.out,
            Op::SwiGlu(op) => op.out,
            Op::Ffn(op) => op.out,
            Op::Residual(op) => op.out,
            Op::Logits(op) => op.out,
        }
    }

    /// The values that the op reads.
    pub fn inputs(&self) -> Vec<ValueId> {
        match self {
            Op::Embedding(_) => vec![],
            Op::RmsNorm(op) => std::iter::once(op.input).chain(op.residual).collect(),
            Op::Rope(op) => vec![op.input],
            Op::Softmax(op) => vec![op.input],
            Op::Sdpa(op) => vec![op.query, op.key, op.value],
            Op::Matmul(op) => std::iter::once(op.input).chain(op.residual).collect(),
            Op::Qkv(op) => vec![op.input],
            Op::Attention(op) => vec![op.query],
            Op::SwiGlu(op) => vec![op.input],
            Op::Ffn(op) => std::iter::once(op.input).chain(op.residual).collect(),
            Op::Residual(op) => vec![op.left, op.right],
            Op::Logits(op) => vec![op.input],
        }
    }

    /// The weights that the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Embedding(op) => vec![op.table],
            Op::RmsNorm(op) => vec![op.weight],
            Op::Matmul(op) => std::iter::once(op.weight).chain(op.bias).collect(),
            Op::Qkv(op) => {
                let norms = op.head_norms.map(|norms| [norms.query, norms.key]);
                std::iter::once(op.weight).chain(op.bias).chain(norms.into_iter().flatten()).collect()
            }
            Op::SwiGlu(op) => vec![op.weight],
            Op::Ffn(op) => vec![op.gate_up, op.down],
            Op::Logits(op) => vec![op.weight],
            Op::Rope(_) | Op::Softmax(_) | Op::Sdpa(_) | Op::Attention(_) | Op::Residual(_) => vec![],
        }
    }
}
