//! The projection of queries, keys and values by one kernel, for few rows.

use mantissa_ops::{Program, op};

use super::{Chooser, Formats};
use crate::families::library;
use crate::families::products::{self, Shape, Variant};
use crate::families::qkv;
use crate::kernel::{KernelSpec, Launch};

impl Formats {
    /// The kernel for a number of rows, and its launch, where one does all of it.
    pub fn fused_qkv(
        self,
        program: &Program,
        op: &op::Qkv,
        rows: usize,
        chooser: &Chooser,
    ) -> Option<(KernelSpec, Launch)> {
        let product = qkv::fused_product(self.weights, self.activations);
        let library = library::serves_rows(product, rows, chooser.preferences);
        if library || !qkv::can_fuse(op, program.rope.as_ref(), self.cache) {
            return None;
        }
        let shape = qkv::fused_shape(op.heads, rows, program.weight(op.weight).columns);
        let variant = products::choose(product, shape, chooser.device, chooser.preferences);
        let spec = self.fused_spec(op, variant, shape)?;
        Some((spec, products::launch_shape(product, variant, shape, chooser.device)))
    }

    /// The kernels for all numbers of rows up to `most`.
    pub fn fused_qkv_kernels(
        self,
        program: &Program,
        op: &op::Qkv,
        most: usize,
        chooser: &Chooser,
    ) -> Vec<KernelSpec> {
        if !qkv::can_fuse(op, program.rope.as_ref(), self.cache) {
            return vec![];
        }
        let product = qkv::fused_product(self.weights, self.activations);
        let shape = qkv::fused_shape(op.heads, most, program.weight(op.weight).columns);
        let variants = products::variants(product, shape, chooser.device, chooser.preferences);
        variants.into_iter().filter_map(|variant| self.fused_spec(op, variant, shape)).collect()
    }

    fn fused_spec(self, op: &op::Qkv, variant: Variant, shape: Shape) -> Option<KernelSpec> {
        let Variant::SmallMatrix(small) = variant else { return None };
        let product = qkv::fused_product(self.weights, self.activations);
        Some(qkv::fused_spec(product, small, shape.columns, op.heads.dim, self.cache))
    }
}
