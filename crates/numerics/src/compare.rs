//! Comparison of two slices that explains itself.
//!
//! NaN never passes unnoticed: a comparison with NaN on one side fails, and with NaN on both sides it fails unless the
//! caller said that NaN is expected.

use std::fmt;

use crate::{Element, Format, tolerance, tolerance::Tolerance};

/// What NaN on both sides means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NanRule {
    /// A mismatch like any other.
    Refused,
    /// Expected: NaN where the reference has NaN is right.
    Expected,
}

/// What a passed comparison saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Values compared.
    pub values: usize,
    /// Largest |got - wanted| of finite values.
    pub max_error: f64,
    /// Largest share of the allowed error that was used: close to 1 is tight, beyond 1 occurs only at overflow.
    pub max_share: f64,
}

/// One pair of values that do not agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Flat index.
    pub index: usize,
    /// The computed value.
    pub got: f64,
    /// The reference.
    pub wanted: f64,
    /// The error that was allowed.
    pub allowed: f64,
    /// |got - wanted| in units in the last place of the stored format at `wanted`.
    pub ulps: f64,
}

/// Two slices that do not agree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mismatch {
    /// Different numbers of values, or a shape that does not hold them.
    #[error("lengths differ: got {got} values, wanted {wanted}, and the shape {shape:?} holds {held}")]
    Length {
        /// Computed values.
        got: usize,
        /// Reference values.
        wanted: usize,
        /// The shape given.
        shape: Vec<usize>,
        /// Its number of values; `usize::MAX` where the product overflows.
        held: usize,
    },
    /// Values that differ.
    #[error("{0}")]
    Values(Box<ValueMismatch>),
}

/// Where and by how much two slices differ.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueMismatch {
    /// Rows first, as in the comparison.
    pub shape: Vec<usize>,
    /// Format of the computed values.
    pub format: Format,
    /// Values compared.
    pub values: usize,
    /// Values that differ.
    pub mismatches: usize,
    /// The first of them.
    pub first: Difference,
    /// The one with the largest finite error; the first one where no error is finite.
    pub worst: Difference,
    /// NaNs among the computed values.
    pub nan_got: usize,
    /// NaNs in the reference.
    pub nan_wanted: usize,
}

impl ValueMismatch {
    fn describe(&self, f: &mut fmt::Formatter<'_>, difference: &Difference) -> fmt::Result {
        let Difference { index, got, wanted, allowed, ulps } = difference;
        write!(f, "{:?} (index {index}): got {got:e}, wanted {wanted:e}", coordinates(*index, &self.shape))?;
        let error = (got - wanted).abs();
        if error.is_finite() {
            write!(f, ", off by {error:.3e} = {ulps:.1} ulp of {}, allowed {allowed:.3e}", self.format)?;
        }
        Ok(())
    }
}

impl fmt::Display for ValueMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} values differ; first at ", self.mismatches, self.values)?;
        self.describe(f, &self.first)?;
        if self.worst.index != self.first.index {
            write!(f, "; worst at ")?;
            self.describe(f, &self.worst)?;
        }
        write!(f, "; NaN: {} computed, {} in the reference", self.nan_got, self.nan_wanted)
    }
}

/// The coordinates of a flat index, rows first.
pub fn coordinates(index: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = index;
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let coordinate = rest % size.max(1);
            rest /= size.max(1);
            coordinate
        })
        .collect();
    place.reverse();
    place
}

/// What is compared: a shape for coordinates, the format whose ulps are reported, and the meaning of NaN.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// Rows first; its product is the number of values.
    pub shape: &'a [usize],
    /// Format in which the computed values were stored.
    pub format: Format,
    /// What NaN on both sides means.
    pub nan: NanRule,
}

impl Comparison<'_> {
    /// Compares computed values with the exact ones; `tolerance` says for each flat index how far they may differ.
    ///
    /// # Errors
    /// [`Mismatch`] with the first and the worst pair.
    pub fn within(
        &self,
        got: &[f32],
        wanted: &[f64],
        tolerance: impl Fn(usize) -> Tolerance,
    ) -> Result<Agreement, Mismatch> {
        self.check_lengths(got.len(), wanted.len())?;
        self.scan(got.iter().zip(wanted).enumerate().map(|(index, (&got, &wanted))| {
            let (got, tolerance) = (f64::from(got), tolerance(index));
            Pair { got, wanted, allowed: tolerance.bound(wanted), agrees: tolerance.accepts(got, wanted) }
        }))
    }

    /// Compares bit patterns: -0 is not +0. With [`NanRule::Expected`] any NaN stands for any other.
    ///
    /// # Errors
    /// [`Mismatch`] with the first and the worst pair.
    pub fn bits<T: Element>(&self, got: &[T], wanted: &[T]) -> Result<Agreement, Mismatch> {
        self.check_lengths(got.len(), wanted.len())?;
        self.scan(got.iter().zip(wanted).map(|(got, wanted)| Pair {
            got: f64::from(got.to_f32()),
            wanted: f64::from(wanted.to_f32()),
            allowed: 0.0,
            agrees: bytemuck::bytes_of(got) == bytemuck::bytes_of(wanted),
        }))
    }

    fn check_lengths(&self, got: usize, wanted: usize) -> Result<(), Mismatch> {
        let held = self.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if got == wanted && held == Some(got) {
            return Ok(());
        }
        Err(Mismatch::Length { got, wanted, shape: self.shape.to_vec(), held: held.unwrap_or(usize::MAX) })
    }

    fn scan(&self, pairs: impl Iterator<Item = Pair>) -> Result<Agreement, Mismatch> {
        let mut agreement = Agreement::default();
        let (mut mismatches, mut nan_got, mut nan_wanted) = (0, 0, 0);
        let mut extremes: Option<(Difference, Difference)> = None;
        for (index, pair) in pairs.enumerate() {
            let Pair { got, wanted, allowed, .. } = pair;
            agreement.values += 1;
            nan_got += usize::from(got.is_nan());
            nan_wanted += usize::from(wanted.is_nan());
            let error = (got - wanted).abs();
            if error.is_finite() && error > 0.0 {
                agreement.max_error = agreement.max_error.max(error);
                agreement.max_share = agreement.max_share.max(error / allowed);
            }
            if self.agrees(&pair) {
                continue;
            }
            mismatches += 1;
            let ulps = error / tolerance::ulp(self.format, wanted);
            let difference = Difference { index, got, wanted, allowed, ulps };
            let (first, worst) = extremes.unwrap_or((difference, difference));
            let worst_error = (worst.got - worst.wanted).abs();
            let worse = error.is_finite() && (error > worst_error || !worst_error.is_finite());
            extremes = Some((first, if worse { difference } else { worst }));
        }
        match extremes {
            None => Ok(agreement),
            Some((first, worst)) => Err(Mismatch::Values(Box::new(ValueMismatch {
                shape: self.shape.to_vec(),
                format: self.format,
                values: agreement.values,
                mismatches,
                first,
                worst,
                nan_got,
                nan_wanted,
            }))),
        }
    }

    fn agrees(&self, pair: &Pair) -> bool {
        match (pair.got.is_nan(), pair.wanted.is_nan()) {
            (false, false) => pair.agrees,
            (true, true) => self.nan == NanRule::Expected,
            _ => false,
        }
    }
}

/// One pair of values and the verdict on them, NaN apart.
struct Pair {
    got: f64,
    wanted: f64,
    allowed: f64,
    agrees: bool,
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    const SHAPE: Comparison<'_> = Comparison { shape: &[2, 3], format: Format::F32, nan: NanRule::Refused };

    fn refusal(result: Result<Agreement, Mismatch>) -> String {
        result.expect_err("must differ").to_string()
    }

    #[test]
    fn a_mismatch_is_told_with_place_values_and_ulps() {
        let got = [0.0, 1.0, 2.0, 3.0, 4.5, 9.0];
        let wanted = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let text = refusal(SHAPE.within(&got, &wanted, |_| Tolerance::new(0.25, 0.0)));
        assert_eq!(
            text,
            "2 of 6 values differ; first at [1, 1] (index 4): got 4.5e0, wanted 4e0, off by 5.000e-1 = 1048576.0 ulp \
             of f32, allowed 2.500e-1; worst at [1, 2] (index 5): got 9e0, wanted 5e0, off by 4.000e0 = 8388608.0 ulp \
             of f32, allowed 2.500e-1; NaN: 0 computed, 0 in the reference"
        );
        let agreement =
            SHAPE.within(&got, &wanted, |index| Tolerance::new(index as f64, 0.0)).expect("wide enough");
        assert_eq!(agreement, Agreement { values: 6, max_error: 4.0, max_share: 0.8 });
    }

    #[test]
    fn nan_passes_only_on_both_sides_and_only_if_expected() {
        let expected = Comparison { nan: NanRule::Expected, ..SHAPE };
        let zeros = [0.0_f32; 6];
        let mut one = zeros;
        one[3] = f32::NAN;
        for comparison in [SHAPE, expected] {
            let text = refusal(comparison.bits(&one, &zeros));
            assert!(
                text.contains("[1, 0]") && text.contains("NaN: 1 computed, 0 in the reference"),
                "{text}"
            );
            assert!(comparison.bits(&zeros, &one).is_err());
            assert!(comparison.within(&one, &[0.0; 6], |_| Tolerance::new(f64::INFINITY, 0.0)).is_err());
        }
        assert!(SHAPE.bits(&one, &one).is_err());
        assert!(expected.bits(&one, &one).is_ok());
        let other = one.map(|x| if x.is_nan() { f32::from_bits(0x7fc0_0001) } else { x });
        assert!(expected.bits(&one, &other).is_ok());
    }

    #[test]
    fn bits_tell_zeros_apart() {
        let shape = Comparison { shape: &[2], format: Format::Bf16, nan: NanRule::Refused };
        let values = [bf16::ONE, bf16::ZERO];
        assert!(shape.bits(&values, &values).is_ok());
        assert!(shape.bits(&values, &[bf16::ONE, bf16::NEG_ZERO]).is_err());
    }

    #[test]
    fn lengths_and_shape_must_agree() {
        let text = refusal(SHAPE.bits(&[0.0_f32; 5], &[0.0; 6]));
        assert_eq!(text, "lengths differ: got 5 values, wanted 6, and the shape [2, 3] holds 6");
        assert!(SHAPE.bits(&[0.0_f32; 5], &[0.0; 5]).is_err());
        let absurd = Comparison { shape: &[usize::MAX, 2], ..SHAPE };
        assert!(absurd.bits::<f32>(&[], &[]).is_err());
    }
}
