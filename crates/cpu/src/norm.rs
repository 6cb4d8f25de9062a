//! RMSNorm, alone or after a residual addition.

use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{
    Machine, OperandError, Storable, check_length, expect_mut, rows_of, rows_per_task, typed,
};

use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};

/// Operands of [`rms_norm`]; activations all have one format.
#[derive(Debug)]
pub struct RmsNormArgs<'a> {
    /// `[rows, width]`.
    pub input: Elements<'a>,
    /// `[rows, width]`: added to the input, and replaced by the sum.
    pub residual: Option<ElementsMut<'a>>,
    /// `[width]`, which tells the width.
    pub weight: Elements<'a>,
    /// Added to the mean of squares.
    pub eps: f32,
    /// `[rows, width]`.
    pub out: ElementsMut<'a>,
}

/// `out = x / sqrt(mean(x^2) + eps) * weight` for each row, where `x` is the input or its f32 sum with the residual.
///
/// Squares are summed in 16 interleaved chains of fused multiply-adds (index modulo 16), then as the tree of
/// [`Simd::reduce_add`]. Everything is f32 until the one rounding of each stored value; the sum stored in the
/// residual is rounded, the sum that is normalised is not (Zhang and Sennrich, Root Mean Square Layer Normalization).
///
/// # Errors
/// [`OperandError`] where lengths or formats do not fit together.
pub fn rms_norm(machine: Machine<'_>, args: RmsNormArgs<'_>) -> Result<(), OperandError> {
    let RmsNormArgs { input, residual, weight, eps, out } = args;
    typed!(Elements, input, input => typed!(Elements, weight, weight => {
        run(machine, Typed { input, weight, eps }, residual, out)
    }))
}

/// Operands that are only read.
#[derive(Clone, Copy)]
struct Typed<'a, A, W> {
    input: &'a [A],
    weight: &'a [W],
    eps: f32,
}

fn run<A: Storable, W: Storable>(
    machine: Machine<'_>,
    operands: Typed<'_, A, W>,
    residual: Option<ElementsMut<'_>>,
    out: ElementsMut<'_>,
) -> Result<(), OperandError> {
    let Typed { input, weight, eps } = operands;
    let width = weight.len();
    let rows = rows_of("input of rms_norm", input.len(), width)?;
    let out = expect_mut::<A>("output of rms_norm", out)?;
    check_length("output of rms_norm", input.len(), out.len())?;
    let residual = residual.map(|residual| expect_mut::<A>("residual of rms_norm", residual)).transpose()?;
    if let Some(residual) = &residual {
        check_length("residual of rms_norm", input.len(), residual.len())?;
    }
    let (out, residual) = (Disjoint::new(out), residual.map(Disjoint::new));
    let step = rows_per_task(width);
    machine.pool.run(rows.div_ceil(step), |task| {
        for row in task.index * step..((task.index + 1) * step).min(rows) {
            let range = row * width..(row + 1) * width;
            // SAFETY: each row belongs to one task.
            let (out, residual) = unsafe {
                (out.range(range.clone()), residual.as_ref().map(|residual| residual.range(range.clone())))
            };
            dispatch(machine.tier, Row { input: &input[range], residual, weight, eps, out });
        }
    });
    Ok(())
}

/// One row.
struct Row<'a, A, W> {
    input: &'a [A],
    residual: Option<&'a mut [A]>,
    weight: &'a [W],
    eps: f32,
    out: &'a mut [A],
}

impl<A: SimdElement, W: SimdElement> Kernel for Row<'_, A, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Row { input, residual, weight, eps, out } = self;
        let Some(residual) = residual else {
            let squares = sum_of_squares(simd, input);
            return scale_into(simd, input, inverse_rms(simd, squares, input.len(), eps), weight, out);
        };
        let mut squares = simd.zero();
        for (x, r) in input.chunks(LANES).zip(residual.chunks(LANES)) {
            let sum = simd.add(A::load_partial(simd, x), A::load_partial(simd, r));
            squares = simd.fma(sum, sum, squares);
        }
        let inverse = simd.splat(inverse_rms(simd, squares, input.len(), eps));
        // The sums are formed again, with the same bits, rather than kept.
        let rows = input.chunks(LANES).zip(residual.chunks_mut(LANES)).zip(weight.chunks(LANES));
        for (((x, r), w), out) in rows.zip(out.chunks_mut(LANES)) {
            let sum = simd.add(A::load_partial(simd, x), A::load_partial(simd, r));
            A::store_partial(simd, sum, r);
            let scaled = simd.mul(simd.mul(sum, inverse), W::load_partial(simd, w));
            A::store_partial(simd, scaled, out);
        }
    }
}

/// Squares summed in 16 interleaved chains.
#[inline(always)]
fn sum_of_squares<S: Simd, A: SimdElement>(simd: S, values: &[A]) -> S::F32 {
    let mut squares = simd.zero();
    for x in values.chunks(LANES) {
        let x = A::load_partial(simd, x);
        squares = simd.fma(x, x, squares);
    }
    squares
}

/// `1 / sqrt(sum / width + eps)`, each operation rounded.
#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, squares: S::F32, width: usize, eps: f32) -> f32 {
    let mean = simd.reduce_add(squares) / width as f32;
    1.0 / (mean + eps).sqrt()
}

/// `out = (values * inverse) * weight`.
#[inline(always)]
fn scale_into<S: Simd, A: SimdElement, W: SimdElement>(
    simd: S,
    values: &[A],
    inverse: f32,
    weight: &[W],
    out: &mut [A],
) {
    let inverse = simd.splat(inverse);
    for ((x, w), out) in values.chunks(LANES).zip(weight.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        let scaled = simd.mul(simd.mul(A::load_partial(simd, x), inverse), W::load_partial(simd, w));
        A::store_partial(simd, scaled, out);
    }
}

/// Normalises one head of f32 values in place, as [`rms_norm`] would before it rounds.
#[inline(always)]
pub(crate) fn norm_head<S: Simd, W: SimdElement>(simd: S, head: &mut [f32], weight: &[W], eps: f32) {
    let squares = sum_of_squares(simd, head);
    let inverse = simd.splat(inverse_rms(simd, squares, head.len(), eps));
    for (x, w) in head.chunks_mut(LANES).zip(weight.chunks(LANES)) {
        let scaled = simd.mul(simd.mul(f32::load_partial(simd, x), inverse), W::load_partial(simd, w));
        f32::store_partial(simd, scaled, x);
    }
}
