//! From sums to stored values: everything in f32, one rounding at the end.

use half::{bf16, f16};

use super::{Epilogue, ResidualValues};
use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::pack::PANEL;
use crate::simd::{LANES, Simd, SimdElement, silu};

/// Writes the blocks of one output, from any number of threads.
pub(super) struct Writer<'a> {
    operation: Operation<'a>,
    target: Target<'a>,
    /// Values of an output row.
    width: usize,
}

/// What to do with the sums.
enum Operation<'a> {
    Store { alpha: f32, bias: Option<&'a [f32]>, residual: Option<Source<'a>> },
    SwiGlu,
}

/// A residual.
struct Source<'a> {
    beta: f32,
    /// None where it is the output.
    values: Option<Elements<'a>>,
}

/// The output.
enum Target<'a> {
    F32(Disjoint<'a, f32>),
    F16(Disjoint<'a, f16>),
    Bf16(Disjoint<'a, bf16>),
}

impl<'a> Target<'a> {
    fn new(out: &'a mut ElementsMut<'_>) -> Target<'a> {
        match out {
            ElementsMut::F32(out) => Target::F32(Disjoint::new(out)),
            ElementsMut::F16(out) => Target::F16(Disjoint::new(out)),
            ElementsMut::Bf16(out) => Target::Bf16(Disjoint::new(out)),
        }
    }
}

impl<'a> Writer<'a> {
    /// A writer for weights of `outputs` rows. The lengths have been checked.
    pub(super) fn new(epilogue: &'a mut Epilogue<'_>, outputs: usize) -> Writer<'a> {
        match epilogue {
            Epilogue::F32 { out } => Writer {
                operation: Operation::Store { alpha: 1.0, bias: None, residual: None },
                target: Target::F32(Disjoint::new(out)),
                width: outputs,
            },
            Epilogue::Store { out, alpha, bias, residual } => {
                let residual = residual.map(|residual| Source {
                    beta: residual.beta,
                    values: match residual.values {
                        ResidualValues::InPlace => None,
                        ResidualValues::Separate(values) => Some(values),
                    },
                });
                let operation = Operation::Store { alpha: *alpha, bias: *bias, residual };
                Writer { operation, target: Target::new(out), width: outputs }
            }
            Epilogue::SwiGlu { out } => {
                Writer { operation: Operation::SwiGlu, target: Target::new(out), width: outputs / 2 }
            }
        }
    }

    /// Writes one panel's sums, `[rows][PANEL]`, to the rows from `first` on.
    ///
    /// # Safety
    /// No two threads write the same panel and row at the same time.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, simd: S, panel: usize, first: usize, sums: &[f32]) {
        let (rows, _) = sums.as_chunks::<PANEL>();
        for (row, sums) in (first..).zip(rows) {
            let (low, high) = sums.split_at(LANES);
            let vectors = [f32::load_partial(simd, low), f32::load_partial(simd, high)];
            match &self.operation {
                Operation::SwiGlu => {
                    let value = simd.mul(silu(simd, vectors[0]), vectors[1]);
                    // SAFETY: as the caller promises.
                    unsafe { self.store(simd, row, panel * LANES, value, None) }
                }
                Operation::Store { alpha, bias, residual } => {
                    for (half, sum) in vectors.into_iter().enumerate() {
                        let column = panel * PANEL + half * LANES;
                        let value = match bias.and_then(|bias| bias.get(column..)) {
                            Some(bias) => simd.fma(sum, simd.splat(*alpha), f32::load_partial(simd, bias)),
                            None => simd.mul(sum, simd.splat(*alpha)),
                        };
                        // SAFETY: as the caller promises.
                        unsafe { self.store(simd, row, column, value, residual.as_ref()) }
                    }
                }
            }
        }
    }

    /// Adds the residual and stores sixteen values, or those that the row still has.
    ///
    /// # Safety
    /// As [`Writer::write`].
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        value: S::F32,
        residual: Option<&Source<'_>>,
    ) {
        if column >= self.width {
            return;
        }
        let start = row * self.width + column;
        let end = start + LANES.min(self.width - column);
        macro_rules! store {
            ($variant:ident, $element:ty, $out:expr) => {{
                // SAFETY: this thread alone writes these columns of these rows, as the caller promises.
                let out = unsafe { $out.range(start..end) };
                let value = match residual {
                    None => value,
                    Some(Source { beta, values }) => {
                        let earlier = match values {
                            Some(Elements::$variant(values)) => values.get(start..end).unwrap_or_default(),
                            _ => &*out,
                        };
                        let earlier = <$element>::load_partial(simd, earlier);
                        simd.fma(earlier, simd.splat(*beta), value)
                    }
                };
                <$element>::store_partial(simd, value, out);
            }};
        }
        match &self.target {
            Target::F32(out) => store!(F32, f32, out),
            Target::F16(out) => store!(F16, f16, out),
            Target::Bf16(out) => store!(Bf16, bf16, out),
        }
    }
}
