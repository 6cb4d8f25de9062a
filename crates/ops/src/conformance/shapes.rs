//! Cases at the shapes of a model.
//!
//! Reductions are as long as the model's; of outputs only slices are computed where the reference would take too long, and
//! of the intermediate values of an FFN with many rows. The name of a case says what it has.

use mantissa_numerics::contract::Family;

use super::cached::{Bias, Layout, Projected, RopeSource, exact_attention, projection};
use super::case::{Case, Setting};
use super::data::Kind;
use super::products::{Added, Extras, Tokens, feed_forward, gated, head, looked_up, product};
use super::rows::{Stream, Sum, attended, exponentials, normed, rope_spec, rotated, summed};
use super::{judge_cache, tied};
use crate::backend::Backend;
use crate::op::{Heads, Mask, Op, Qkv};
use crate::program::{Program, RopeSpec};

/// Rows of a batch: a token, a few, a short prompt, and one beyond the tiles of any kernel.
const ROWS: [usize; 4] = [1, 5, 17, 130];

/// Products that the reference computes for one case at most, where it can be cut.
const PRODUCTS: usize = 1 << 24;

/// The longest row of a softmax that is tried.
const LONGEST_ROW: usize = 4096;

/// The sizes of a decoder that its kernels see.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Values between the two products of an FFN.
    pub intermediate: usize,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Heads of attention.
    pub heads: Heads,
    /// What attention sees.
    pub mask: Mask,
    /// Rotary frequencies, where there are some.
    pub rope: Option<RopeSpec>,
    /// Added to the mean of squares by norms.
    pub norm_eps: f32,
    /// The same of norms over heads, where there are some.
    pub head_norm_eps: Option<f32>,
    /// Whether the projections add a bias.
    bias: Bias,
    /// Tokens that the model was made for.
    pub context: usize,
}

impl Shapes {
    /// Those of a program; nothing where it lacks one of a decoder's parts.
    pub fn of(program: &Program) -> Option<Shapes> {
        let ops = || program.steps.iter().map(|step| &step.op);
        let Qkv { heads, bias, head_norms, .. } = ops().find_map(|op| match op {
            Op::Qkv(op) => Some(op.clone()),
            _ => None,
        })?;
        let rows = |weight| program.weight(weight).rows;
        let (vocabulary, hidden) = ops().find_map(|op| match op {
            Op::Embedding(op) => Some((rows(op.table), program.value(op.out).width)),
            _ => None,
        })?;
        let intermediate = ops().find_map(|op| match op {
            Op::Ffn(op) => Some(rows(op.gate_up) / 2),
            Op::SwiGlu(op) => Some(rows(op.weight) / 2),
            _ => None,
        })?;
        let mask = ops().find_map(|op| match op {
            Op::Attention(op) => Some(op.mask),
            _ => None,
        })?;
        let norm_eps = ops().find_map(|op| match op {
            Op::RmsNorm(op) => Some(op.eps),
            _ => None,
        })?;
        Some(Shapes {
            hidden,
            intermediate,
            vocabulary,
            heads,
            mask,
            rope: program.rope.clone(),
            norm_eps,
            head_norm_eps: head_norms.map(|norms| norms.eps),
            bias: if bias.is_some() { Bias::Added } else { Bias::None },
            context: program.max_context,
        })
    }

    /// The cases of a contract.
    pub(super) fn cases(&self, backend: &dyn Backend, setting: &Setting) -> Vec<Case> {
        let Shapes { hidden, intermediate, vocabulary, heads, norm_eps, .. } = *self;
        let rows = || ROWS.into_iter();
        match setting.contract.query.family {
            Family::Embedding => {
                let vocabulary = slice(vocabulary, hidden);
                let table = tied(backend, setting);
                let kinds = &[Kind::Ordinary];
                rows()
                    .map(|rows| looked_up(setting, rows, Tokens { vocabulary, hidden, table, kinds }))
                    .collect()
            }
            Family::RmsNorm => rows()
                .zip([Stream::Alone, Stream::Added].into_iter().cycle())
                .map(|(rows, stream)| normed(setting, [rows, hidden], stream, norm_eps))
                .collect(),
            Family::Rope => rows().map(|rows| self.rotation(setting, rows)).collect(),
            Family::Softmax => {
                let width = self.context.min(LONGEST_ROW);
                let scale = 1.0 / (heads.dim as f32).sqrt();
                rows().map(|rows| exponentials(setting, [rows, width], scale)).collect()
            }
            Family::Sdpa => vec![attended(setting, heads, self.mask, &[33, 2])],
            Family::Matmul => rows()
                .zip([Added::Nothing, Added::InPlace].into_iter().cycle())
                .map(|(rows, residual)| {
                    // The projection behind attention.
                    let columns = heads.query_width();
                    let shape = [slice(hidden, rows * columns), columns];
                    product(setting, rows, shape, Extras { residual, ..Extras::NONE })
                })
                .collect(),
            Family::Qkv => self.projections(backend, setting),
            Family::Attention => self.attention(setting),
            Family::SwiGlu => rows()
                .map(|rows| gated(setting, rows, [hidden, slice(intermediate, 2 * rows * hidden)]))
                .collect(),
            Family::Ffn => rows()
                .zip([Added::Separate, Added::InPlace].into_iter().cycle())
                .map(|(rows, added)| {
                    let through = slice(intermediate, 3 * rows * hidden);
                    feed_forward(setting, rows, [hidden, through], added)
                })
                .collect(),
            Family::Residual => rows()
                .zip([Sum::Elsewhere, Sum::InPlace].into_iter().cycle())
                .map(|(rows, sum)| summed(setting, [rows, hidden], sum))
                .collect(),
            Family::Logits => rows()
                .map(|rows| {
                    let outputs = (0..rows as u32).collect();
                    head(setting, rows, [hidden, slice(vocabulary, rows * hidden)], outputs)
                })
                .collect(),
        }
    }

    fn rotation(&self, setting: &Setting, rows: usize) -> Case {
        let Heads { query, dim, .. } = self.heads;
        rotated(setting, rows, [query, dim], |numbers| {
            self.rope.clone().unwrap_or_else(|| rope_spec(numbers, dim, 1))
        })
    }

    fn projections(&self, backend: &dyn Backend, setting: &Setting) -> Vec<Case> {
        let widths = self.heads.query_width() + 2 * self.heads.kv_width();
        let long = (PRODUCTS / (self.hidden * widths)).clamp(8, 130);
        [&[long][..], &[3, 7]]
            .into_iter()
            .map(|lengths| {
                let of = Projected {
                    hidden: self.hidden,
                    heads: self.heads,
                    mask: self.mask,
                    lengths,
                    page_size: 16,
                    rope: self.rope.as_ref().map(RopeSource::Given),
                    bias: self.bias,
                    head_norm_eps: self.head_norm_eps,
                };
                projection(setting, judge_cache(backend, setting), &of)
            })
            .collect()
    }

    /// As long a context as the reference goes through in reasonable time, and two short ones.
    fn attention(&self, setting: &Setting) -> Vec<Case> {
        let long = (PRODUCTS / self.heads.query_width()).isqrt().min(self.context);
        let layout =
            |name, lengths| Layout { name, heads: self.heads, mask: self.mask, page_size: 16, lengths };
        vec![
            exact_attention(setting, &layout("one sequence", &[long])),
            exact_attention(setting, &layout("two sequences", &[33, 20.min(self.context)])),
        ]
    }
}

/// As many of `outputs` as can be had for the [`PRODUCTS`], where each takes so many; 32 at least.
fn slice(outputs: usize, each: usize) -> usize {
    outputs.min((PRODUCTS / each.max(1)).max(32) / 32 * 32)
}
