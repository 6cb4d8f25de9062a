//! The embedding and the norm behind it, where one kernel computes both.

use mantissa_ops::program::ProgramStep;
use mantissa_ops::{Op, Program, op};

use super::Formats;
use crate::families::norm;
use crate::kernel::KernelSpec;

/// The first steps of a program, and the kernel that computes both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NormedEmbedding<'a> {
    pub embedding: &'a op::Embedding,
    pub norm: &'a op::RmsNorm,
    pub spec: KernelSpec,
}

impl NormedEmbedding<'_> {
    /// How many those are.
    pub const STEPS: usize = 2;

    /// Those of a program whose norm is alone, of all rows, and of a table in the format of activations, if it fits the kernel.
    pub fn of(program: &Program, formats: Formats) -> Option<NormedEmbedding<'_>> {
        let [ProgramStep { op: Op::Embedding(embedding), .. }, ProgramStep { op: Op::RmsNorm(norm), .. }, ..] =
            &program.steps[..]
        else {
            return None;
        };
        let behind = norm.input == embedding.out && norm.residual.is_none();
        let of_all = program.own_rows_from().is_none_or(|first| first >= NormedEmbedding::STEPS);
        let spec = norm::embedded_spec(formats.activations, program.value(norm.out).width)?;
        let fits = behind && of_all && formats.weights == formats.activations;
        fits.then_some(NormedEmbedding { embedding, norm, spec })
    }

    /// Why it computes a step, if it does.
    pub fn why(&self, op: &Op) -> Option<&'static str> {
        match op {
            Op::Embedding(op) if op == self.embedding => Some("with the norm behind it"),
            Op::RmsNorm(op) if op == self.norm => Some("with the embedding before it"),
            _ => None,
        }
    }
}
