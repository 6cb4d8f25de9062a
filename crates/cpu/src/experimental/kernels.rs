//! The experimental kernels themselves.

use std::time::Instant;

use mantissa_numerics::Element;

use crate::elements::{Elements, ElementsMut};
use crate::isa::Tier;
use crate::matmul::{Matmul, MatmulError, MatmulScratch, matmul};
use crate::norm::{RmsNormArgs, rms_norm};
use crate::operands::{Machine, OperandError, check_length, typed};
use crate::pool::Pool;

/// As [`rms_norm`], but the normalised values are rounded to storage before they are multiplied by the weight, as in several
/// well-known models' code: two roundings where the contract has one.
pub(super) fn wrong_rms_norm(machine: Machine<'_>, args: RmsNormArgs<'_>) -> Result<(), OperandError> {
    let RmsNormArgs { input, residual, weight, eps, out } = args;
    let weight: Vec<f32> = typed!(Elements, weight, weight => weight.iter().map(|w| w.to_f32()).collect());
    check_length("output of rms_norm", input.len(), out.len())?;
    let ones = vec![1.0; weight.len()];
    let weightless = |out| RmsNormArgs { input, residual, weight: Elements::F32(&ones), eps, out };
    match out {
        ElementsMut::F32(out) => {
            rms_norm(machine, weightless(ElementsMut::F32(&mut *out)))?;
            scale(out, &weight);
        }
        ElementsMut::F16(out) => {
            rms_norm(machine, weightless(ElementsMut::F16(&mut *out)))?;
            scale(out, &weight);
        }
        ElementsMut::Bf16(out) => {
            rms_norm(machine, weightless(ElementsMut::Bf16(&mut *out)))?;
            scale(out, &weight);
        }
    }
    Ok(())
}

/// Multiplies each row by the weight.
fn scale<A: Element>(rows: &mut [A], weight: &[f32]) {
    for row in rows.chunks_mut(weight.len()) {
        for (value, weight) in row.iter_mut().zip(weight) {
            *value = A::from_f32(value.to_f32() * weight);
        }
    }
}

/// As [`matmul`], bit for bit, but a tenth of its time passes before it returns.
pub(super) fn slow_matmul(
    pool: &Pool,
    tier: Tier,
    scratch: &mut MatmulScratch,
    product: Matmul<'_>,
) -> Result<(), MatmulError> {
    let started = Instant::now();
    matmul(pool, tier, scratch, product)?;
    let slow = started.elapsed().mul_f64(1.1);
    while started.elapsed() < slow {
        std::hint::spin_loop();
    }
    Ok(())
}
