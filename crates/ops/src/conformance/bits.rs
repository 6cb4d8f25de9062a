//! Results whose bits follow from the contract: plain products and RMSNorm in the order
//! stated, sums.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Compute, Order};
use mantissa_numerics::convert::slice::decode_slice;

use super::case::{Case, Run, Setting};
use crate::backend::{LoadReport, OverflowRule};
use crate::load::load_weight;
use crate::op::{Logits, Matmul, Op, Residual, RmsNorm};
use crate::program::{ValueId, WeightId};
use crate::reference::as_contract::{Lanes, dot_ascending, dot_lanes, dot_segments, rms_norm_lanes};
use crate::reference::number::round_to;

/// Results of a run with all their numbers, where the contract of a case's only step determines every bit.
pub(super) fn expected(setting: &Setting, case: &Case, run: &Run) -> Option<Vec<(ValueId, Vec<f32>)>> {
    let [step] = case.program.steps.as_slice() else { return None };
    let contract = &setting.contract;
    let known = Known { setting, case, run };
    match (&step.op, contract.compute, contract.order) {
        (Op::Matmul(op), Compute::F32Fma, order) => known.matmul(op, order),
        (Op::Logits(op), Compute::F32Fma, order) => known.logits(op, order),
        (Op::RmsNorm(op), Compute::F32Fma, Order::Lanes { lanes, group, merge }) => {
            known.rms_norm(op, Lanes { lanes, group, merge })
        }
        (Op::Residual(op), Compute::None, Order::Elementwise) => known.residual(op),
        _ => None,
    }
}

/// A sum of products in an order that is stated, or nothing.
fn dot(left: &[f32], right: &[f32], order: Order) -> Option<f32> {
    match order {
        Order::Ascending => Some(dot_ascending(left, right)),
        Order::Lanes { lanes, group, merge } => Some(dot_lanes(left, right, Lanes { lanes, group, merge })),
        Order::Segments { length } => Some(dot_segments(left, right, length)),
        Order::Elementwise | Order::Spans { .. } | Order::Sections { .. } | Order::Library => None,
    }
}

struct Known<'a> {
    setting: &'a Setting,
    case: &'a Case,
    run: &'a Run,
}

type Row = Vec<f32>;

impl Known<'_> {
    fn rows(&self, value: ValueId) -> Option<Vec<Row>> {
        let (_, numbers) = self.run.inputs.iter().find(|(known, _)| *known == value)?;
        let width = self.case.program.value(value).width;
        Some(numbers.chunks(width).map(<[f32]>::to_vec).collect())
    }

    fn weight(&self, id: WeightId) -> Option<Vec<Row>> {
        let spec = self.case.program.weight(id);
        let format = self.setting.policy.weights();
        let mut report = LoadReport::default();
        let bytes = load_weight(spec, format, &self.case.source, OverflowRule::Refuse, &mut report).ok()?;
        let mut numbers = vec![0.0; spec.len()];
        decode_slice(&bytes, format, &mut numbers).ok()?;
        Some(numbers.chunks(spec.columns).map(<[f32]>::to_vec).collect())
    }

    fn stored(&self, value: ValueId, numbers: impl IntoIterator<Item = f32>) -> (ValueId, Vec<f32>) {
        let format = self.case.program.value_format(value, &self.setting.policy);
        let store = |number: f32| {
            if format == Format::F32 { number } else { round_to(f64::from(number), format) as f32 }
        };
        (value, numbers.into_iter().map(store).collect())
    }

    /// Plain products only: the order of bias, alpha and residual is not part of the contract.
    fn matmul(&self, op: &Matmul, order: Order) -> Option<Vec<(ValueId, Vec<f32>)>> {
        if op.bias.is_some() || op.residual.is_some() || op.alpha != 1.0 {
            return None;
        }
        let (rows, weight) = (self.rows(op.input)?, self.weight(op.weight)?);
        let products = rows.iter().flat_map(|row| weight.iter().map(|weight| dot(weight, row, order)));
        Some(vec![self.stored(op.out, products.collect::<Option<Row>>()?)])
    }

    fn logits(&self, op: &Logits, order: Order) -> Option<Vec<(ValueId, Vec<f32>)>> {
        let (rows, weight) = (self.rows(op.input)?, self.weight(op.weight)?);
        let wanted = self.run.outputs.iter().map(|&row| &rows[row as usize]);
        let products = wanted.flat_map(|row| weight.iter().map(|weight| dot(weight, row, order)));
        Some(vec![self.stored(op.out, products.collect::<Option<Row>>()?)])
    }

    fn rms_norm(&self, op: &RmsNorm, lanes: Lanes) -> Option<Vec<(ValueId, Vec<f32>)>> {
        let mut rows = self.rows(op.input)?;
        let mut known = Vec::new();
        if let Some(residual) = op.residual {
            for (row, other) in rows.iter_mut().zip(self.rows(residual)?) {
                row.iter_mut().zip(other).for_each(|(x, other)| *x += other);
            }
            known.push(self.stored(residual, rows.iter().flatten().copied()));
        }
        let weight: Row = self.weight(op.weight)?.into_iter().flatten().collect();
        let normalised = rows.iter().flat_map(|row| rms_norm_lanes(row, &weight, op.eps, lanes));
        known.push(self.stored(op.out, normalised));
        Some(known)
    }

    fn residual(&self, op: &Residual) -> Option<Vec<(ValueId, Vec<f32>)>> {
        let (left, right) = (self.rows(op.left)?, self.rows(op.right)?);
        let sums = left.iter().flatten().zip(right.iter().flatten()).map(|(left, right)| left + right);
        Some(vec![self.stored(op.out, sums)])
    }
}
