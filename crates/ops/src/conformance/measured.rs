//! What is measured of results beside the verdict.

use mantissa_numerics::{Format, tolerance};

use crate::reference::number::{Bounded, Number};

/// How far results lie from what the reference has in their place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Numbers compared.
    pub numbers: usize,
    /// Largest distance of a finite number from the contract's own result in f64, in units in the last place of the format
    /// that it is stored in: those of the result or of its row's root mean square, whichever is larger, for what terms that
    /// cancel leave says nothing in units of its own.
    pub max_ulps: f64,
    /// Largest share of the distance that the contract allows; beyond 1 it is exceeded.
    pub bound_used: f64,
    /// Largest relative error of a row, as Euclidean norms, against f64 in which only inputs and weights are rounded; nothing
    /// where it was not measured, or no row is finite and of normal numbers.
    pub relative_error: Option<f64>,
}

impl Measured {
    /// Takes a row in.
    pub(super) fn take(&mut self, got: &[f32], wanted: &[Bounded], format: Format) {
        let finite = || wanted.iter().map(|wanted| wanted.value()).filter(|value| value.is_finite());
        let mean = (finite().map(|value| value * value).sum::<f64>() / finite().count().max(1) as f64).sqrt();
        for (&got, wanted) in got.iter().zip(wanted) {
            self.numbers += 1;
            let (got, value, (low, high)) = (f64::from(got), wanted.value(), wanted.interval());
            let error = (got - value).abs();
            if !error.is_finite() || error == 0.0 {
                continue;
            }
            self.max_ulps = self.max_ulps.max(error / tolerance::ulp(format, value.abs().max(mean)));
            let allowed = if got < value { value - low } else { high - value };
            self.bound_used = self.bound_used.max(error / allowed);
        }
    }

    /// What was measured of further results taken in.
    pub fn merge(&mut self, other: &Measured) {
        self.numbers += other.numbers;
        self.max_ulps = self.max_ulps.max(other.max_ulps);
        self.bound_used = self.bound_used.max(other.bound_used);
        self.relative_error = self.relative_error.into_iter().chain(other.relative_error).reduce(f64::max);
    }
}

/// The relative error of a row. Rows that are not finite have none, and of subnormal numbers it would say nothing: bounds
/// judge both.
pub(super) fn relative_error(got: &[f32], wanted: &[f64], format: Format) -> Option<f64> {
    let norm = |squares: f64| squares.sqrt();
    let wanted_norm = norm(wanted.iter().map(|x| x * x).sum());
    let error = norm(got.iter().zip(wanted).map(|(&got, wanted)| (f64::from(got) - wanted).powi(2)).sum());
    let normal = wanted_norm > format.min_normal() * (wanted.len() as f64).sqrt();
    (normal && wanted_norm.is_finite() && error.is_finite()).then(|| error / wanted_norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_all_numbers_counts() {
        let wanted = |value: f64| Bounded::exact(value).add(Bounded::exact(0.0)).round(Format::Bf16);
        let mut measured = Measured::default();
        measured.take(&[1.0], &[wanted(1.0)], Format::Bf16);
        assert_eq!(measured, Measured { numbers: 1, ..Measured::default() });
        measured.take(&[1.015_625], &[wanted(1.0)], Format::Bf16);
        assert_eq!((measured.max_ulps, measured.bound_used), (2.0, f64::INFINITY));
        // Beside numbers of 64, whose unit is 0.5, an error of 1/64 is small, however small the number itself.
        let row = [64.0, 64.0, 0.0].map(wanted);
        let mut beside = Measured::default();
        beside.take(&[64.0, 64.0, 0.015_625], &row, Format::Bf16);
        assert_eq!(beside.max_ulps, 0.062_5);
        let mut other = Measured { numbers: 3, relative_error: Some(0.5), ..Measured::default() };
        other.merge(&measured);
        assert_eq!(other, Measured { numbers: 5, relative_error: Some(0.5), ..measured });
    }

    #[test]
    fn rows_without_a_meaningful_relative_error_have_none() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 5.0], Format::F32), Some(1.0 / 34f64.sqrt()));
        assert_eq!(relative_error(&[f32::INFINITY], &[1e6], Format::F16), None);
        assert_eq!(relative_error(&[f32::NAN], &[f64::NAN], Format::F16), None);
        assert_eq!(relative_error(&[6e-8], &[7e-8], Format::F16), None);
    }
}
