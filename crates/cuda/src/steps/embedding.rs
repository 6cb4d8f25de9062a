//! The start of a program: rows of a table, and the norm behind them.

use mantissa_ops::op;

use super::{Runner, StepError};
use crate::families::{embedding, norm};
use crate::select::NormedEmbedding;

impl Runner<'_> {
    pub(super) fn embedding(&self, op: &op::Embedding) -> Result<(), StepError> {
        let (table, out) = (self.weights.get(op.table), self.place(op.out));
        let spec = embedding::spec(self.plan.policy.weights(), self.activations());
        let args = embedding::Args {
            batch: self.uploaded.view(),
            table: table.address(),
            out: out.address,
            width: out.width,
            table_stride: table.stride as u32,
            out_stride: out.stride,
            unused: 0,
        };
        self.launch(&spec, embedding::launch_shape(self.rows.tokens, out.width as usize), &args)
    }

    /// An embedding and the norm behind it, by one kernel.
    pub fn normed_embedding(&self, together: &NormedEmbedding<'_>) -> Result<(), StepError> {
        let NormedEmbedding { embedding, norm: op, spec } = together;
        let table = self.weights.get(embedding.table);
        let (stream, out) = (self.place(embedding.out), self.place(op.out));
        let args = norm::EmbeddedArgs {
            batch: self.uploaded.view(),
            table: table.address(),
            stream: stream.address,
            weight: self.weights.get(op.weight).address(),
            out: out.address,
            width: out.width,
            table_stride: table.stride as u32,
            stream_stride: stream.stride,
            out_stride: out.stride,
            eps: op.eps,
            rows: self.rows.tokens as u32,
        };
        self.launch(spec, norm::embedded_launch(self.rows.tokens), &args)
    }
}
