//! The projection of queries, keys and values.

use mantissa_numerics::Format;
use mantissa_ops::{Op, Step, WeightId, op};

use super::{Runner, StepError, Target};
use crate::cache::KvCache;
use crate::families::products::Epilogue;
use crate::families::{qkv, wgmma};
use crate::select::{Formats, keys_and_values_of};
use crate::tables::RopeTables;
use crate::values::row_stride;

impl Runner<'_> {
    pub(super) fn qkv(&self, op: &op::Qkv) -> Result<(), StepError> {
        let kv = self.cache.ok_or(StepError::Missing("KV cache"))?;
        let formats = Formats::of_plan(self.plan);
        let fused = formats.fused_qkv(&self.plan.program, op, self.rows.tokens, self.chooser);
        if let Some((fused, variant)) = fused {
            return self.fused_qkv(op, kv, fused, variant, 0);
        }
        let products = self.scratch.floats.address();
        let stride = row_stride(self.weights.get(op.weight).rows, Format::F32);
        let query = self.place(op.query);
        let target = Target { address: products, stride, ..self.store(op.query, Epilogue::Plain) };
        self.product(op.weight, self.all_rows(op.input), target)?;
        let address = |id: WeightId| self.weights.get(id).address();
        let norms = op.head_norms;
        let args = qkv::Args {
            batch: self.uploaded.view(),
            cache: kv.layer(op.layer),
            products,
            bias: op.bias.map_or(0, address),
            query_norm: norms.map_or(0, |norms| address(norms.query)),
            key_norm: norms.map_or(0, |norms| address(norms.key)),
            cos: self.tables.map_or(0, RopeTables::cos),
            sin: self.tables.map_or(0, RopeTables::sin),
            query: query.address,
            product_stride: stride as u32,
            query_stride: query.stride,
            query_heads: op.heads.query as u32,
            key_heads: op.heads.key_value as u32,
            dim: op.heads.dim as u32,
            pairs: self.tables.map_or(0, |tables| tables.pairs),
            context: self.tables.map_or(0, |tables| tables.context),
            eps: norms.map_or(0.0, |norms| norms.eps),
        };
        let spec = qkv::spec(self.activations(), kv.format, op.heads.dim);
        self.launch(&spec, qkv::launch_shape(op.heads, self.rows.tokens), &args)
    }

    /// A step of whose rows the keys and values alone are needed: no more where one kernel computes them.
    pub fn keys_and_values(&self, step: &Step) -> Result<(), StepError> {
        let Op::Qkv(op) = &step.op else { return self.step(step) };
        let kv = self.cache.ok_or(StepError::Missing("KV cache"))?;
        let (alone, formats) = (keys_and_values_of(op), Formats::of_plan(self.plan));
        match formats.fused_qkv(&self.plan.program, &alone, self.rows.tokens, self.chooser) {
            Some((fused, variant)) => self.fused_qkv(&alone, kv, fused, variant, op.heads.query_width()),
            None => self.step(step),
        }
    }

    /// The projection and what follows it, by one kernel, behind so many rows of the weights.
    fn fused_qkv(
        &self,
        op: &op::Qkv,
        kv: &KvCache,
        fused: qkv::Fused,
        variant: qkv::FusedVariant,
        skipped: usize,
    ) -> Result<(), StepError> {
        let tables = self.tables.ok_or(StepError::Missing("rotary embedding"))?;
        let input = self.all_rows(op.input);
        let (product, shape) = fused.product(variant, input.rows);
        let target = Target { bias: op.bias, ..self.store(op.query, product.epilogue) };
        let mut product_args = self.product_args(op.weight, shape.features, &input, &target);
        product_args.weights +=
            skipped as u64 * product_args.weight_stride * self.plan.policy.weights().bytes() as u64;
        product_args.bias += op.bias.map_or(0, |_| (skipped * size_of::<f32>()) as u64);
        let args = qkv::FusedArgs {
            product: product_args,
            batch: self.uploaded.view(),
            cache: kv.layer(op.layer),
            cos: tables.cos(),
            sin: tables.sin(),
            query_heads: op.heads.query as u32,
            key_heads: op.heads.key_value as u32,
            context: tables.context,
            unused: 0,
        };
        let launch = fused.launch_shape(variant, input.rows, self.chooser.device());
        let spec = fused.spec(variant);
        match variant {
            qkv::FusedVariant::Few(_) => self.launch(&spec, launch, &args),
            qkv::FusedVariant::Many(tile) => {
                self.launch(&spec, launch, &wgmma::qkv_args(product, tile, &args)?)
            }
        }
    }
}
