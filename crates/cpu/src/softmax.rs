//! Softmax along rows.

use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{
    Machine, OperandError, Storable, check_length, expect_mut, rows_of, rows_per_task, typed,
};
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch, exp};

/// Operands of [`softmax`]; input and output have one format.
#[derive(Debug)]
pub struct SoftmaxArgs<'a> {
    /// `[rows, width]`.
    pub input: Elements<'a>,
    /// Values per row.
    pub width: usize,
    /// Factor before the exponential.
    pub scale: f32,
    /// `[rows, width]`.
    pub out: ElementsMut<'a>,
}

/// `out = softmax(scale * input)` along each row: in f32, exponentials of the distances from the largest, their sum
/// in 16 interleaved chains (index modulo 16) and then as the tree of [`Simd::reduce_add`], a division, one rounding.
///
/// # Errors
/// [`OperandError`] where lengths or formats do not fit together.
pub fn softmax(machine: Machine<'_>, args: SoftmaxArgs<'_>) -> Result<(), OperandError> {
    let SoftmaxArgs { input, width, scale, out } = args;
    typed!(Elements, input, input => run(machine, input, Shape { width, scale }, out))
}

#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    scale: f32,
}

fn run<A: Storable>(
    machine: Machine<'_>,
    input: &[A],
    shape: Shape,
    out: ElementsMut<'_>,
) -> Result<(), OperandError> {
    let Shape { width, scale } = shape;
    let rows = rows_of("input of softmax", input.len(), width)?;
    let out = expect_mut::<A>("output of softmax", out)?;
    check_length("output of softmax", input.len(), out.len())?;
    let out = Disjoint::new(out);
    let step = rows_per_task(width);
    machine.pool.run(rows.div_ceil(step), |task| {
        for row in task.index * step..((task.index + 1) * step).min(rows) {
            let range = row * width..(row + 1) * width;
            // SAFETY: each row belongs to one task.
            let out = unsafe { out.range(range.clone()) };
            dispatch(machine.tier, Row { input: &input[range], scale, out });
        }
    });
    Ok(())
}

/// One row, into another slice.
pub(crate) struct Row<'a, A> {
    pub input: &'a [A],
    pub scale: f32,
    pub out: &'a mut [A],
}

impl<A: SimdElement> Kernel for Row<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Row { input, scale, out } = self;
        let scale = simd.splat(scale);
        let lowest = simd.splat(f32::NEG_INFINITY);
        let mut largest = lowest;
        for x in input.chunks(LANES) {
            let score = simd.mul(A::load_partial(simd, x), scale);
            // A NaN loses here and appears in the sum.
            largest = simd.max(simd.select_first(x.len(), score, lowest), largest);
        }
        let largest = simd.splat(simd.reduce_max(largest));
        let mut sum = simd.zero();
        for x in input.chunks(LANES) {
            let score = simd.mul(A::load_partial(simd, x), scale);
            let weight = exp(simd, simd.sub(score, largest));
            sum = simd.add(sum, simd.select_first(x.len(), weight, simd.zero()));
        }
        let sum = simd.splat(simd.reduce_add(sum));
        // The exponentials are formed again, with the same bits, rather than kept.
        for (x, out) in input.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let score = simd.mul(A::load_partial(simd, x), scale);
            let weight = exp(simd, simd.sub(score, largest));
            A::store_partial(simd, simd.div(weight, sum), out);
        }
    }
}
