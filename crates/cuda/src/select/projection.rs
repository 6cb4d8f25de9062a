//! The projection of queries, keys and values by one kernel.

use mantissa_ops::op::{self, Heads};
use mantissa_ops::{Op, Program};

use super::product::tiles_reuse;
use super::{Chooser, Formats};
use crate::families::library;
use crate::families::products::VariantPreference;
use crate::families::qkv::{self, Fused, FusedVariant};
use crate::kernel::KernelSpec;

/// The kernels of a projection for several numbers of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FusedKernels {
    /// Each number of rows is served by one of them.
    Always(Vec<KernelSpec>),
    /// Some are, if there are any.
    Sometimes(Vec<KernelSpec>),
}

impl FusedKernels {
    pub fn kernels(self) -> Vec<KernelSpec> {
        match self {
            FusedKernels::Always(kernels) | FusedKernels::Sometimes(kernels) => kernels,
        }
    }
}

impl Formats {
    /// The projection and its kernel for a number of rows, where one does all of it.
    pub fn fused_qkv(
        self,
        program: &Program,
        op: &op::Qkv,
        rows: usize,
        chooser: &Chooser,
    ) -> Option<(Fused, FusedVariant)> {
        let Formats { weights, activations, cache } = self;
        if !qkv::can_fuse(op, program.rope.as_ref(), cache) {
            return None;
        }
        let columns = program.weight(op.weight).columns;
        let fused = Fused { weights, activations, cache, heads: op.heads, columns };
        let variant = fused.choose(rows, chooser.device, chooser.preferences)?;
        let (product, _) = fused.product(variant, rows);
        let library = library::serves_rows(product, rows, chooser.preferences);
        (!library).then_some((fused, variant))
    }

    /// The kernels for all numbers of rows up to `most`.
    pub fn fused_qkv_kernels(
        self,
        program: &Program,
        op: &op::Qkv,
        most: usize,
        chooser: &Chooser,
    ) -> FusedKernels {
        let (mut found, mut each) = (Vec::new(), true);
        for rows in 1..=most {
            match self.fused_qkv(program, op, rows, chooser) {
                Some(fused) if found.contains(&fused) => {}
                Some(fused) => found.push(fused),
                None => each = false,
            }
        }
        let kernels = found.into_iter().map(|(fused, variant)| fused.spec(variant)).collect();
        if each { FusedKernels::Always(kernels) } else { FusedKernels::Sometimes(kernels) }
    }
}

/// The last projection of a program, of which rows that no wanted logits depend on leave keys and values alone.
pub(crate) fn last_projection(program: &Program) -> Option<&op::Qkv> {
    match &program.steps.get(program.own_rows_from()?.checked_sub(1)?)?.op {
        Op::Qkv(op) => Some(op),
        _ => None,
    }
}

/// The keys and values of a projection as one of their own.
pub(crate) fn keys_and_values_of(op: &op::Qkv) -> op::Qkv {
    op::Qkv { heads: Heads { query: 0, ..op.heads }, ..op.clone() }
}

/// Why a kernel does all of a projection, where that is not why one was chosen for the product alone.
pub(super) fn why(variant: FusedVariant, rows: usize, chooser: &Chooser) -> Option<String> {
    match (variant, chooser.preferences.variant) {
        (FusedVariant::Many(tile), VariantPreference::Auto) => Some(tiles_reuse(rows, tile)),
        _ => None,
    }
}
