//! What is to be known of a step beside how long it took: who computes it, on what, and how.

use mantissa::ops::cost::RunShape;
use mantissa::ops::op::Mask;
use mantissa::ops::{Op, Plan, Session, Step, ValueId, WeightLayout};
use serde::Serialize;

use mantissa::numerics::contract::{Compute, OpContract, Subnormals};

/// The storage formats of a step's operands and the format of its sums, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dtypes {
    /// Of weights, where it has any.
    pub weights: Option<String>,
    /// Of activations read.
    pub activations: String,
    /// Of the KV cache, where it reads or writes it; with its scales.
    pub cache: Option<String>,
    /// Of sums.
    pub accumulate: String,
    /// Of the result.
    pub output: String,
}

/// A step with everything that its time depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Label {
    /// Name of the backend.
    pub backend: String,
    /// The kernel, or the kernels, with their specialisation.
    pub kernel: String,
    /// Storage formats.
    pub dtypes: Dtypes,
    /// The contract in short: operands, result, how products are formed, and the order of sums.
    pub contract: String,
    /// The operands, as [`shape`] has them; the first and the last, where runs differ.
    pub shape: String,
    /// How operands lie in memory.
    pub strides: String,
    /// What else decides what is computed.
    pub flags: Vec<String>,
}

impl Label {
    /// That of a step of a session's plan, without kernel and shape, which depend on the batch.
    pub fn of(session: &dyn Session, step: &Step) -> Label {
        let query = &step.contract.query;
        Label {
            backend: session.plan().backend.name.clone(),
            kernel: String::new(),
            dtypes: Dtypes {
                weights: query.weights.map(|format| format.to_string()),
                activations: query.activations.to_string(),
                cache: query.cache.map(|format| format.to_string()),
                accumulate: query.accumulate.to_string(),
                output: step.contract.output.to_string(),
            },
            contract: step.contract.to_string(),
            shape: String::new(),
            strides: strides(session, &step.op),
            flags: flags(&step.op, &step.contract),
        }
    }

    /// In one line.
    pub fn text(&self) -> String {
        let parts = [&self.backend, &self.kernel, &self.contract, &self.shape, &self.strides];
        let mut text: Vec<&str> = parts.into_iter().map(String::as_str).collect();
        text.extend(self.flags.iter().map(String::as_str));
        text.retain(|part| !part.is_empty());
        text.join(", ")
    }
}

/// Operands of an op: `[rows, columns]` of the input, the weights, and what else decides its size.
pub fn shape(plan: &Plan, op: &Op, shape: &RunShape) -> String {
    let program = &plan.program;
    let rows = if matches!(op, Op::Logits(_)) { shape.outputs } else { shape.rows() };
    let weights = op.weights().into_iter().map(|id| program.weight(id)).filter(|weight| weight.columns > 1);
    let weights: Vec<String> =
        weights.map(|weight| format!("[{}, {}]", weight.rows, weight.columns)).collect();
    match op {
        Op::Attention(op) => {
            let context = shape.sequences.first().map_or(0, |sequence| sequence.context);
            let heads = op.heads;
            format!("[{rows}, {} x {}] over {context} x {}", heads.query, heads.dim, heads.key_value)
        }
        Op::Embedding(_) => format!("{rows} of {}", weights.join(" ")),
        _ => {
            let width = op.inputs().first().map_or(0, |&id| program.value(id).width);
            std::iter::once(format!("[{rows}, {width}]")).chain(weights).collect::<Vec<_>>().join(" x ")
        }
    }
}

/// Row strides of the values and the layouts of the matrices, in values.
fn strides(session: &dyn Session, op: &Op) -> String {
    let program = &session.plan().program;
    let row = |id: ValueId| {
        let (width, stride) = (program.value(id).width, session.row_stride(id));
        if width == stride { stride.to_string() } else { format!("{stride} ({width} padded)") }
    };
    let inputs: Vec<String> = op.inputs().into_iter().map(row).collect();
    let rows = match inputs.as_slice() {
        [] => format!("rows > {}", row(op.output())),
        inputs => format!("rows {} > {}", inputs.join(" + "), row(op.output())),
    };
    let matrices = op.weights().into_iter().filter(|&id| program.weight(id).columns > 1);
    let layouts = matrices.map(|id| match session.weight_layout(id) {
        WeightLayout::Rows { stride } => format!("weights {stride}"),
        WeightLayout::Panels { rows } => format!("weights in panels of {rows}"),
    });
    let mut parts: Vec<String> = std::iter::once(rows).chain(layouts).collect();
    parts.dedup();
    parts.join(", ")
}

fn flags(op: &Op, contract: &OpContract) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |text: &str| flags.push(text.to_owned());
    match op {
        Op::Attention(op) => mask(op.mask, &mut flag),
        Op::Sdpa(op) => mask(op.mask, &mut flag),
        Op::Qkv(op) => {
            op.bias.iter().for_each(|_| flag("bias"));
            op.head_norms.iter().for_each(|_| flag("head norms"));
            flag("rope");
        }
        Op::Matmul(op) => {
            op.bias.iter().for_each(|_| flag("bias"));
            op.residual.iter().for_each(|_| flag("residual"));
            if op.alpha != 1.0 {
                flag(&format!("alpha {}", op.alpha));
            }
        }
        Op::Ffn(op) => op.residual.iter().for_each(|_| flag("residual")),
        Op::RmsNorm(op) => op.residual.iter().for_each(|_| flag("residual")),
        Op::Embedding(_) | Op::Rope(_) | Op::Softmax(_) | Op::SwiGlu(_) => {}
        Op::Residual(_) | Op::Logits(_) => {}
    }
    if !matches!(contract.compute, Compute::None) && contract.subnormals == Subnormals::FlushedInProducts {
        flag("flush to zero");
    }
    flags
}

fn mask(mask: Mask, flag: &mut impl FnMut(&str)) {
    match mask {
        Mask::Causal => flag("causal"),
        Mask::SlidingWindow { window } => flag(&format!("window {window}")),
    }
}
