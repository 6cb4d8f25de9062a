//! Programs in the form that the token kernel runs: the layers of a decoder, one like the other.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::{self, Heads, Mask};
use mantissa_ops::program::ProgramStep;
use mantissa_ops::{Op, Program, ValueId};

use crate::families::attention::group;

/// Values of a head.
pub const DIM: usize = 64;
/// Query heads of a key head, at most.
const MOST_GROUP: usize = 8;

/// The steps of a decoder, as the token kernel goes through them.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "they are the program's")]
pub struct Chain<'a> {
    pub embedding: &'a op::Embedding,
    pub layers: Vec<Layer<'a>>,
    pub last_norm: &'a op::RmsNorm,
    pub logits: &'a op::Logits,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "they are the program's")]
pub struct Layer<'a> {
    pub attention_norm: &'a op::RmsNorm,
    pub qkv: &'a op::Qkv,
    pub attention: &'a op::Attention,
    pub output: &'a op::Matmul,
    pub ffn_norm: &'a op::RmsNorm,
    pub ffn: &'a op::Ffn,
}

/// Why a program is not for the token kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A step that it does not know, or not in this place.
    #[error("it has no {wanted} where step {step} stands")]
    Order {
        /// What belongs there.
        wanted: &'static str,
        /// What is there.
        step: String,
    },
    /// A step that it knows, in another form.
    #[error("step {step}: {reason}")]
    Form {
        /// The step.
        step: String,
        /// What it cannot do.
        reason: &'static str,
    },
    /// The program ends too early.
    #[error("the program has no {wanted}")]
    Missing {
        /// What is missing.
        wanted: &'static str,
    },
    /// A size that is not for it.
    #[error("{what} has size {size}, but must have {wanted}")]
    Size {
        /// What has the size.
        what: &'static str,
        /// The size.
        size: usize,
        /// What would do.
        wanted: String,
    },
    /// A device that it was not made for.
    #[error("it was made for devices of compute capability 9.0")]
    Device,
    /// Other kernels are asked for.
    #[error("other kernels are preferred: {preference}")]
    Preferred {
        /// Which preference asks for them.
        preference: &'static str,
    },
    /// Formats that it does not multiply.
    #[error("weights in {weights}, activations in {activations} and a cache in {cache}")]
    Formats {
        /// Of the weights.
        weights: Format,
        /// Of the activations.
        activations: Format,
        /// Of the cache.
        cache: CacheFormat,
    },
}

/// The steps that are left of a program.
struct Steps<'a> {
    left: std::slice::Iter<'a, ProgramStep>,
    /// The one that was taken last.
    step: &'a str,
}

/// Takes the next step as an op of one kind.
macro_rules! take {
    ($steps:ident, $kind:ident, $wanted:literal) => {
        match $steps.left.next() {
            Some(ProgramStep { op: Op::$kind(op), name }) => {
                $steps.step = name;
                op
            }
            Some(step) => return Err(Refusal::Order { wanted: $wanted, step: step.name.clone() }),
            None => return Err(Refusal::Missing { wanted: $wanted }),
        }
    };
}

impl<'a> Steps<'a> {
    /// Refuses the step that was taken last where a rule does not hold: each comes with what it means not to.
    fn demand(&self, rules: &[(bool, &'static str)]) -> Result<(), Refusal> {
        let broken = rules.iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |&(_, reason)| Err(Refusal::Form { step: self.step.to_owned(), reason }))
    }

    /// Takes a norm of the residual stream.
    fn norm(&mut self, stream: ValueId) -> Result<&'a op::RmsNorm, Refusal> {
        let norm = take!(self, RmsNorm, "norm");
        self.demand(&[
            (norm.input == stream, "it does not norm the residual stream"),
            (norm.residual.is_none(), "it adds a residual"),
        ])?;
        Ok(norm)
    }

    /// Takes what follows the norm in front of a layer.
    fn layer(
        &mut self,
        program: &Program,
        stream: ValueId,
        attention_norm: &'a op::RmsNorm,
    ) -> Result<Layer<'a>, Refusal> {
        let qkv = take!(self, Qkv, "projection of queries, keys and values");
        let rotary = program.rope.as_ref().map(|rope| rope.rotary_dim);
        self.demand(&[
            (qkv.input == attention_norm.out, "its input is not what was normed"),
            (qkv.heads.dim == DIM, "heads have other than 64 values"),
            (group(qkv.heads) <= MOST_GROUP, "more than eight query heads share a key head"),
            (qkv.head_norms.is_none(), "heads have norms"),
            (rotary == Some(qkv.heads.dim), "a part of each head rotates, or none"),
        ])?;
        let attention = take!(self, Attention, "attention");
        self.demand(&[
            (attention.query == qkv.query, "its queries are not those of the projection"),
            (
                attention.heads == qkv.heads && attention.layer == qkv.layer,
                "its cache is not that of the projection",
            ),
            (attention.mask == Mask::Causal, "it sees a window"),
        ])?;
        let output = take!(self, Matmul, "projection of what was attended");
        self.demand(&[
            (output.input == attention.out, "its input is not what was attended"),
            (
                output.out == stream && output.residual == Some(stream),
                "it does not add to the residual stream",
            ),
            (output.bias.is_none() && output.alpha == 1.0, "it has a bias or a factor"),
        ])?;
        let ffn_norm = self.norm(stream)?;
        let ffn = take!(self, Ffn, "feed-forward layer");
        self.demand(&[
            (ffn.input == ffn_norm.out, "its input is not what was normed"),
            (ffn.out == stream && ffn.residual == Some(stream), "it does not add to the residual stream"),
        ])?;
        Ok(Layer { attention_norm, qkv, attention, output, ffn_norm, ffn })
    }
}

impl<'a> Chain<'a> {
    /// Goes through a program.
    ///
    /// # Errors
    /// [`Refusal`] names the first step that is not as the token kernel wants it.
    pub fn of(program: &'a Program) -> Result<Chain<'a>, Refusal> {
        if program.cache.is_none() {
            return Err(Refusal::Missing { wanted: "KV cache" });
        }
        let mut steps = Steps { left: program.steps.iter(), step: "" };
        let embedding = take!(steps, Embedding, "embedding");
        let stream = embedding.out;
        let mut layers: Vec<Layer<'a>> = Vec::new();
        loop {
            let norm = steps.norm(stream)?;
            if matches!(steps.left.as_slice().first().map(|step| &step.op), Some(Op::Logits(_))) {
                let logits = take!(steps, Logits, "logits");
                steps.demand(&[
                    (logits.input == norm.out, "its input is not what was normed"),
                    (!layers.is_empty(), "no layer is in front of it"),
                    (
                        layers.first().is_none_or(|layer| layer.ffn_norm.eps == norm.eps),
                        "the norm in front of it adds another number than those of layers",
                    ),
                ])?;
                return match steps.left.next() {
                    Some(step) => Err(Refusal::Order { wanted: "end", step: step.name.clone() }),
                    None => Ok(Chain { embedding, layers, last_norm: norm, logits }),
                };
            }
            let layer = steps.layer(program, stream, norm)?;
            let alike = layers.first().is_none_or(|first| sizes(program, first) == sizes(program, &layer));
            let eps = layer.attention_norm.eps == layer.ffn_norm.eps;
            steps.demand(&[
                (alike, "its layer has other sizes than the first"),
                (eps, "the norms of its layer add different numbers"),
            ])?;
            layers.push(layer);
        }
    }

    /// Heads of every layer.
    pub fn heads(&self) -> Heads {
        self.layers[0].qkv.heads
    }
}

/// What all layers have in common: heads, values between the halves of the feed-forward layer, and numbers.
fn sizes(program: &Program, layer: &Layer<'_>) -> (Heads, usize, [f32; 3]) {
    let inner = program.weight(layer.ffn.down).columns;
    (layer.qkv.heads, inner, [layer.attention.scale, layer.attention_norm.eps, layer.ffn_norm.eps])
}
