//! Sums of activations.

use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{Machine, OperandError, Storable, check_length, expect, expect_mut, typed};
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};

/// Values that one task adds.
const STEP: usize = 1 << 14;

/// Operands of [`add`], all of one length and format.
#[derive(Debug)]
pub struct AddArgs<'a> {
    /// One summand.
    pub left: Elements<'a>,
    /// The other.
    pub right: Elements<'a>,
    /// Their sum.
    pub out: ElementsMut<'a>,
}

/// `out = left + right` in f32, rounded once.
///
/// # Errors
/// [`OperandError`] where lengths or formats differ.
pub fn add(machine: Machine<'_>, args: AddArgs<'_>) -> Result<(), OperandError> {
    let AddArgs { left, right, out } = args;
    typed!(Elements, left, left => run(machine, Some(left), &right, out))
}

/// `sum = sum + right` in f32, rounded once: [`add`] for a result that replaces a summand.
///
/// # Errors
/// [`OperandError`] where lengths or formats differ.
pub fn add_assign(
    machine: Machine<'_>,
    sum: ElementsMut<'_>,
    right: Elements<'_>,
) -> Result<(), OperandError> {
    typed!(Elements, right, typed => run(machine, none_like(typed), &right, sum))
}

/// No slice, of the type of another.
fn none_like<A>(_: &[A]) -> Option<&[A]> {
    None
}

/// Adds to `left`, or to `out` itself where there is no `left`.
fn run<A: Storable>(
    machine: Machine<'_>,
    left: Option<&[A]>,
    right: &Elements<'_>,
    out: ElementsMut<'_>,
) -> Result<(), OperandError> {
    let right = expect::<A>("right summand", right)?;
    let out = expect_mut::<A>("sum", out)?;
    check_length("sum", right.len(), out.len())?;
    if let Some(left) = left {
        check_length("left summand", right.len(), left.len())?;
    }
    let out = Disjoint::new(out);
    machine.pool.run(right.len().div_ceil(STEP), |task| {
        let range = task.index * STEP..((task.index + 1) * STEP).min(right.len());
        // SAFETY: ranges of different tasks do not overlap.
        let out = unsafe { out.range(range.clone()) };
        let left = left.map(|left| &left[range.clone()]);
        dispatch(machine.tier, Sum { left, right: &right[range], out });
    });
    Ok(())
}

struct Sum<'a, A> {
    left: Option<&'a [A]>,
    right: &'a [A],
    out: &'a mut [A],
}

impl<A: SimdElement> Kernel for Sum<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Sum { left, right, out } = self;
        for (index, (right, out)) in right.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
            let left = match left {
                Some(left) => A::load_partial(simd, &left[index * LANES..][..right.len()]),
                None => A::load_partial(simd, out),
            };
            A::store_partial(simd, simd.add(left, A::load_partial(simd, right)), out);
        }
    }
}
