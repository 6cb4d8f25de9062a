//! Error bounds computed from formats and reduction lengths.
//!
//! The bounds are the standard ones of rounding error analysis (Higham, *Accuracy and Stability of Numerical
//! Algorithms*, chapters 2 to 4), with the terms for subnormal results that textbooks leave out. They hold for every
//! order of summation, so one bound serves every kernel of a contract.

use crate::format::{Format, power_of_two};

/// Error of the vector `exp`, and of what is built on it, in units in the last place of f32: the polynomial after
/// range reduction stays within two.
pub const TRANSCENDENTAL_ULPS: f64 = 2.0;

/// `n * u / (1 - n * u)`: the relative error that `roundings` roundings can build up, infinite where the analysis
/// says nothing any more.
pub fn gamma(roundings: usize, format: Format) -> f64 {
    let nu = roundings as f64 * format.unit_roundoff();
    if nu < 1.0 { nu / (1.0 - nu) } else { f64::INFINITY }
}

/// Bound on |computed - exact| of a sum of `length` products kept in `accumulate`, where `abs_sum` is the exact sum
/// of the magnitudes of the products. Products are exact or fused into the addition.
pub fn dot_bound(length: usize, accumulate: Format, abs_sum: f64) -> f64 {
    gamma(length, accumulate) * abs_sum + length as f64 * accumulate.min_subnormal() / 2.0
}

/// Bound on |computed - exact| of a chain of `steps` steps of a GPU's matrix unit with an f32 accumulator, where
/// `abs_sum` is the exact sum of the magnitudes of all its products.
///
/// A step of 16 adds 17 terms, the accumulator among them: products are exact, terms are aligned to the largest and
/// cut off at least one bit below its 24, and so is the sum (Fasi, Higham, Mikaitis and Pranesh, *Numerical behavior of
/// NVIDIA tensor cores*, 2021). Each of 17 terms loses less than one unit of roundoff of the largest, the sum less than
/// two: together less than 20 of what the step adds up, which no step's accumulator and products exceed.
pub fn matrix_unit_bound(steps: usize, abs_sum: f64) -> f64 {
    const LOST: f64 = 20.0;
    let own = steps as f64 * LOST;
    own * (Format::F32.unit_roundoff() * abs_sum + Format::F32.min_subnormal())
}

/// Bound on the error of rounding a value of the given magnitude once to nearest, unless it overflows.
pub fn rounding_bound(format: Format, magnitude: f64) -> f64 {
    format.unit_roundoff() * magnitude.abs() + format.min_subnormal() / 2.0
}

/// Bound on the error of taking a value of the given magnitude as the sum of two numbers: the nearest, and the nearest to
/// what is left. That is at most half a unit in the last place, whose own half unit, one binade down, is half of the
/// square of the unit roundoff.
pub fn split_bound(format: Format, magnitude: f64) -> f64 {
    format.unit_roundoff().powi(2) / 2.0 * magnitude.abs() + format.min_subnormal() / 2.0
}

/// Distance between the neighbours of `value` in `format`: the weight of the last mantissa bit. Beyond the range
/// that of the largest finite value; NaN for NaN.
pub fn ulp(format: Format, value: f64) -> f64 {
    if value.is_nan() {
        return f64::NAN;
    }
    let magnitude = value.abs().clamp(format.min_normal(), format.max_finite());
    // Every normal value of a format is normal in f64, where the exponent field gives the logarithm.
    let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
    power_of_two(exponent - format.mantissa_bits() as i32)
}

/// How many codes of `format` lie between two codes, with -0 and +0 in the same place and infinity next to the
/// largest finite value; `None` if either is NaN.
pub fn ulp_distance(format: Format, a: u32, b: u32) -> Option<u32> {
    let place = |code: u32| {
        let sign = code >> (format.bits() - 1) & 1;
        let magnitude = code & ((1 << (format.bits() - 1)) - 1);
        let last = format.max_finite_code() + u32::from(format.has_infinity());
        (magnitude <= last).then(|| if sign == 1 { -i64::from(magnitude) } else { i64::from(magnitude) })
    };
    let distance = place(a)?.abs_diff(place(b)?);
    // At most twice the largest magnitude, 2^31 - 1.
    u32::try_from(distance).ok()
}

/// [`ulp_distance`] of two f32 values.
pub fn ulp_distance_f32(a: f32, b: f32) -> Option<u32> {
    ulp_distance(Format::F32, a.to_bits(), b.to_bits())
}

/// How far a computed value may lie from the exact one: `absolute + relative * |exact|`, and where it may overflow.
///
/// Built in the order in which the kernel works. An f32 sum of `n` products stored in bf16:
///
/// ```
/// use mantissa_numerics::{Format, tolerance::Tolerance};
///
/// let (n, abs_sum) = (4096, 812.5);
/// let tolerance = Tolerance::sum(n, Format::F32, abs_sum).stored_as(Format::Bf16);
/// assert!(tolerance.accepts(100.5, 100.3));
/// assert!(!tolerance.accepts(101.0, 100.3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    absolute: f64,
    relative: f64,
    /// The format of the last rounding.
    stored: Option<Format>,
}

impl Tolerance {
    /// Equal values only.
    pub const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0, stored: None };

    /// An error of at most `absolute + relative * |exact|`, from an analysis of the caller's.
    pub const fn new(absolute: f64, relative: f64) -> Tolerance {
        Tolerance { absolute, relative, stored: None }
    }

    /// A sum of `length` products; see [`dot_bound`].
    pub fn sum(length: usize, accumulate: Format, abs_sum: f64) -> Tolerance {
        Tolerance::new(dot_bound(length, accumulate, abs_sum), 0.0)
    }

    /// A chain of `operations` multiplications, divisions or square roots in `format`.
    pub fn operations(operations: usize, format: Format) -> Tolerance {
        Tolerance::new(operations as f64 * format.min_subnormal() / 2.0, gamma(operations, format))
    }

    /// `evaluations` chained evaluations of `exp` and its like in f32; see [`TRANSCENDENTAL_ULPS`].
    pub fn transcendental(evaluations: usize) -> Tolerance {
        let ulps = evaluations as f64 * TRANSCENDENTAL_ULPS;
        // One unit in the last place is at most twice the unit roundoff times the value.
        Tolerance::new(ulps * Format::F32.min_subnormal(), ulps * 2.0 * Format::F32.unit_roundoff())
    }

    /// Both errors, one on top of the other.
    #[must_use]
    pub fn plus(self, other: Tolerance) -> Tolerance {
        let relative = self.relative + other.relative + self.relative * other.relative;
        let absolute = self.absolute + other.absolute + other.relative * self.absolute;
        Tolerance { absolute, relative, stored: other.stored.or(self.stored) }
    }

    /// The error after multiplication by an exact factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Tolerance {
        Tolerance { absolute: self.absolute * factor.abs(), ..self }
    }

    /// Rounds the result once to `format`.
    #[must_use]
    pub fn stored_as(self, format: Format) -> Tolerance {
        let rounding = Tolerance {
            absolute: format.min_subnormal() / 2.0,
            relative: format.unit_roundoff(),
            stored: Some(format),
        };
        self.plus(rounding)
    }

    /// The largest allowed |computed - exact|, overflow apart.
    pub fn bound(&self, exact: f64) -> f64 {
        self.absolute + self.relative * exact.abs()
    }

    /// Whether `computed` may stand for `exact`. NaN stands for nothing. Where the stored format ends, infinity or
    /// the saturated value stands for what may have rounded beyond the end.
    pub fn accepts(&self, computed: f64, exact: f64) -> bool {
        if computed == exact {
            return true;
        }
        if exact.is_infinite() || computed.is_nan() || exact.is_nan() {
            return false;
        }
        let Some(format) = self.stored else {
            return (computed - exact).abs() <= self.bound(exact);
        };
        let max = format.max_finite();
        if computed.is_infinite() {
            let may_overflow = exact.abs() + self.bound(exact) >= max + ulp(format, max) / 2.0;
            return format.has_infinity() && may_overflow && computed.signum() == exact.signum();
        }
        let reachable = if format.has_infinity() { exact } else { exact.clamp(-max, max) };
        (computed - reachable).abs() <= self.bound(reachable)
    }
}

/// The tolerance of a value computed as an f32 sum of `length` products and rounded once to `output`.
pub fn bound_for(length: usize, abs_sum: f64, output: Format) -> Tolerance {
    Tolerance::sum(length, Format::F32, abs_sum).stored_as(output)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::convert::{Overflow, Rounding, decode, encode};

    #[test]
    fn ulps_are_distances_between_neighbours() {
        assert_eq!(ulp(Format::F32, 1.0), f64::from(f32::EPSILON));
        assert_eq!(ulp(Format::Bf16, -3.0), 2f64.powi(-6));
        assert_eq!(ulp(Format::F16, 0.0), 2f64.powi(-24));
        assert_eq!(ulp(Format::F8E4M3, 1e9), 32.0);
        assert!(ulp(Format::F16, f64::NAN).is_nan());
        for format in [Format::F16, Format::Bf16, Format::F8E4M3, Format::F8E5M2, Format::F4E2M1] {
            for code in 0..format.max_finite_code() {
                let value = f64::from(decode(code, format));
                assert_eq!(
                    f64::from(decode(code + 1, format)) - value,
                    ulp(format, value),
                    "{format} {code:#x}"
                );
            }
        }
    }

    #[test]
    fn distances_cross_zero_and_refuse_nan() {
        assert_eq!(ulp_distance_f32(0.0, -0.0), Some(0));
        assert_eq!(ulp_distance_f32(f32::from_bits(2), -f32::from_bits(3)), Some(5));
        assert_eq!(ulp_distance_f32(f32::MAX, f32::INFINITY), Some(1));
        assert_eq!(ulp_distance_f32(f32::NEG_INFINITY, f32::INFINITY), Some(2 * 0x7f80_0000));
        assert_eq!(ulp_distance_f32(1.0, f32::NAN), None);
        assert_eq!(ulp_distance(Format::F8E4M3, 0x7f, 0), None);
        assert_eq!(ulp_distance(Format::F8E4M3, 0x7e, 0xfe), Some(0xfc));
        assert_eq!(ulp_distance(Format::F4E2M1, 0x7, 0xf), Some(14));
    }

    #[test]
    fn bounds_are_infinite_where_the_analysis_ends() {
        assert_eq!(gamma(1 << 24, Format::F32), f64::INFINITY);
        assert_eq!(gamma(0, Format::F32), 0.0);
        assert!(gamma(100, Format::F32) > 100.0 * Format::F32.unit_roundoff());
    }

    #[test]
    fn overflow_is_accepted_only_where_it_can_happen() {
        let half = Tolerance::EXACT.stored_as(Format::F16);
        assert!(half.accepts(f64::INFINITY, 65520.0));
        assert!(!half.accepts(f64::INFINITY, 60000.0));
        assert!(!half.accepts(f64::NEG_INFINITY, 70000.0));
        assert!(!half.accepts(65504.0, 80000.0));
        let e4m3 = Tolerance::EXACT.stored_as(Format::F8E4M3);
        assert!(e4m3.accepts(448.0, 80000.0));
        assert!(!e4m3.accepts(f64::INFINITY, 80000.0));
        assert!(!e4m3.accepts(f64::NAN, f64::NAN));
        assert!(Tolerance::EXACT.accepts(f64::INFINITY, f64::INFINITY));
        assert!(!Tolerance::EXACT.accepts(1.0, f64::INFINITY));
    }

    #[test]
    fn composition_keeps_the_larger_terms() {
        let both = Tolerance::new(1.0, 0.5).plus(Tolerance::new(2.0, 0.25));
        assert_eq!(both, Tolerance::new(3.25, 0.875));
        assert_eq!(Tolerance::new(1.0, 0.5).times(-2.0), Tolerance::new(2.0, 0.5));
    }

    proptest! {
        #[test]
        fn one_rounding_stays_within_its_bound(value in proptest::num::f64::NORMAL, exponent in -160..130_i32) {
            // Spread over the range of f32 and a little beyond, where random bits would nearly always overflow.
            let value = value.signum() * (1.0 + value.abs().log2().rem_euclid(1.0)) * 2f64.powi(exponent);
            for format in Format::ALL {
                let code = encode(value, format, Rounding::NearestEven, Overflow::Infinity).expect("no NaN");
                let stored = f64::from(decode(code, format));
                prop_assert!(Tolerance::EXACT.stored_as(format).accepts(stored, value), "{} to {}", value, format);
                if value.abs() <= format.max_finite() {
                    prop_assert!((stored - value).abs() <= rounding_bound(format, value));
                    prop_assert!((stored - value).abs() <= ulp(format, value) / 2.0);
                }
            }
        }

        #[test]
        fn f32_sums_stay_within_their_bound(
            pairs in proptest::collection::vec((-1e3_f32..1e3, -1e3_f32..1e3), 1..300),
        ) {
            let (mut sum, mut exact, mut magnitudes) = (0_f32, 0_f64, 0_f64);
            for &(a, b) in &pairs {
                sum = a.mul_add(b, sum);
                exact += f64::from(a) * f64::from(b);
                magnitudes += (f64::from(a) * f64::from(b)).abs();
            }
            for output in [Format::F32, Format::F16, Format::Bf16] {
                let tolerance = bound_for(pairs.len(), magnitudes, output);
                let code = encode(f64::from(sum), output, Rounding::NearestEven, Overflow::Infinity).expect("no NaN");
                prop_assert!(tolerance.accepts(f64::from(decode(code, output)), exact));
            }
        }
    }
}
