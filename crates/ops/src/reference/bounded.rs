//! What the contract says, with the interval in which every kernel that follows it must end.
//!
//! A kernel computes in f32 with any order of sums, and rounds at the contract's rounding points. Every operation
//! here carries the errors of its operands forward and adds its own, by the standard model of floating-point
//! arithmetic (Higham, Accuracy and Stability of Numerical Algorithms, chapters 2 and 3).

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, Subnormals};
use mantissa_numerics::tolerance;

use super::number::{Number, Products, Unit, cache_scale, max_or_nan, round_to, silu};

/// A number as f64 arithmetic with the contract's rounding points gives it, and the interval of what a kernel may
/// hold in its place.
#[derive(Clone, Copy, Debug)]
pub struct Bounded {
    value: f64,
    low: f64,
    high: f64,
}

/// Largest error of one f32 rounding of a number of this magnitude.
fn rounding(magnitude: f64) -> f64 {
    tolerance::rounding_bound(Format::F32, magnitude)
}

impl Bounded {
    fn around(value: f64, radius: f64) -> Bounded {
        // An infinity or NaN is demanded of the kernel as it is.
        if value.is_finite() {
            Bounded { value, low: value - radius, high: value + radius }
        } else {
            Bounded { value, low: value, high: value }
        }
    }

    /// The result of one f32 operation: the operands' errors carried forward, then one rounding.
    fn computed(value: f64, carried: f64) -> Bounded {
        Bounded::around(value, carried + rounding(value.abs() + carried))
    }

    /// Largest distance of a kernel's number from this one.
    pub fn radius(self) -> f64 {
        if self.value.is_finite() { self.distance() } else { 0.0 }
    }

    /// The radius of a finite number.
    fn distance(self) -> f64 {
        (self.high - self.value).max(self.value - self.low)
    }
}

/// Error of a product from the errors of its factors. Without meaning where one of them is not finite, but then the
/// product is not either, and has no error.
fn product_error(left: Bounded, right: Bounded) -> f64 {
    let (a, b) = (left.distance(), right.distance());
    left.value.abs() * b + right.value.abs() * a + a * b
}

impl Number for Bounded {
    fn exact(value: f64) -> Bounded {
        Bounded::around(value, 0.0)
    }

    fn table(value: f64) -> Bounded {
        Bounded::computed(value, 0.0)
    }

    fn value(self) -> f64 {
        self.value
    }

    fn interval(self) -> (f64, f64) {
        (self.low, self.high)
    }

    fn add(self, other: Bounded) -> Bounded {
        Bounded::computed(self.value + other.value, self.radius() + other.radius())
    }

    fn sub(self, other: Bounded) -> Bounded {
        Bounded::computed(self.value - other.value, self.radius() + other.radius())
    }

    fn mul(self, other: Bounded) -> Bounded {
        Bounded::computed(self.value * other.value, product_error(self, other))
    }

    fn div(self, other: Bounded) -> Bounded {
        let (numerator, denominator) = (self.value.abs(), other.value.abs());
        let carried = (numerator * other.radius() + denominator * self.radius())
            / (denominator * (denominator - other.radius()).max(0.0));
        // No error over zero is none.
        let carried = if carried.is_nan() { 0.0 } else { carried };
        Bounded::computed(self.value / other.value, carried)
    }

    fn sqrt(self) -> Bounded {
        let root = self.value.sqrt();
        let below = root - (self.value - self.radius()).max(0.0).sqrt();
        let above = (self.value + self.radius()).sqrt() - root;
        Bounded::computed(root, below.max(above))
    }

    fn exp(self) -> Bounded {
        let value = self.value.exp();
        let carried = value * self.radius().exp_m1();
        Bounded::around(value, carried + exp_error(value + carried))
    }

    fn exp2(self) -> Bounded {
        let value = self.value.exp2();
        let carried = value * (self.radius() * std::f64::consts::LN_2).exp_m1();
        Bounded::around(value, carried + exp_error(value + carried))
    }

    fn silu(self, stored: Format) -> Bounded {
        let value = silu(self.value);
        // The slope of silu is below 1.1 everywhere; negation, sum, quotient and product round once each.
        let carried = 1.1 * self.radius();
        let magnitude = value.abs() + carried;
        // Before a rounding to 16 bits kernels may take exp(-x) as a power of two whose exponent, x times log2 e, is off by a
        // rounding and by that of the constant.
        let exponent = if stored.bits() == 16 { 2.0 * (-self.low).max(0.0) } else { 0.0 };
        let own = exp_error(magnitude) + (4.0 + exponent) * rounding(magnitude);
        // Where exp(-x) overflows in f32, the kernel's result is zero and the true one below |x| * min_normal.
        let lost = self.value.abs() * Format::F32.min_normal();
        Bounded::around(value, carried + own + lost)
    }

    fn max(self, other: Bounded) -> Bounded {
        Bounded::around(max_or_nan(self.value, other.value), self.radius().max(other.radius()))
    }

    fn dot(terms: impl Iterator<Item = (Bounded, Bounded)>, products: Products) -> Bounded {
        let tiny = Format::F32.min_normal();
        let (mut value, mut magnitude, mut carried, mut length) = (0.0, 0.0, 0.0, 0_usize);
        let mut chains = Chains::default();
        for (left, right) in terms {
            let product = left.value * right.value;
            let error = product_error(left, right);
            value += product;
            magnitude += product.abs() + error;
            carried += error;
            length += 1;
            chains.add(products.unit, product.abs() + error);
            if products.subnormals == Subnormals::FlushedInProducts {
                let flushed = left.value.abs() < tiny || right.value.abs() < tiny;
                carried += if flushed { product.abs() } else { 0.0 };
                // The product and the sum so far may each be flushed.
                carried += 2.0 * tiny;
            }
        }
        let own = match products.unit {
            Unit::F32 => tolerance::dot_bound(length, Format::F32, magnitude),
            Unit::Matrix { depth, .. } => chains.bound(depth),
        };
        Bounded::around(value, carried + own)
    }

    fn sum(terms: impl Iterator<Item = Bounded>) -> Bounded {
        Bounded::dot(terms.map(|term| (term, Bounded::exact(1.0))), Products::F32)
    }

    fn rescaled(self, times: usize) -> Bounded {
        // Each correction multiplies by an exponential: its error and one rounding.
        let magnitude = self.value.abs() + self.radius();
        let own = times as f64 * (exp_error(magnitude) + rounding(magnitude));
        Bounded::around(self.value, self.radius() + own)
    }

    fn round(self, format: Format) -> Bounded {
        // Rounding is monotone, so the ends of the interval bound what is stored.
        let [value, low, high] = [self.value, self.low, self.high].map(|end| round_to(end, format));
        Bounded { value, low, high }
    }

    fn split(self, format: Format, unit: f64) -> Bounded {
        let lost = tolerance::split_bound(format, (self.value.abs() + self.radius()) / unit) * unit;
        Bounded::around(self.value, self.radius() + lost)
    }

    fn through_cache(vector: &mut [Bounded], cache: CacheFormat) {
        let Some(scales) = cache.scales else {
            return vector.iter_mut().for_each(|number| *number = number.round(cache.format));
        };
        let scale = ScaleRange::of(vector, cache.format, scales);
        for number in vector {
            *number = scale.stored(*number, cache.format);
        }
    }
}

/// The chains of a matrix unit that a sum of products consists of, and the f32 additions that join them.
#[derive(Clone, Copy, Debug, Default)]
struct Chains {
    /// Products of the chain that is being added up, and the sum of their magnitudes.
    length: usize,
    magnitude: f64,
    /// The same of all chains before it.
    joined: f64,
    own: f64,
}

impl Chains {
    fn add(&mut self, unit: Unit, magnitude: f64) {
        let Unit::Matrix { depth, chain } = unit else { return };
        if self.length == chain {
            self.own = self.bound(depth);
            self.joined += self.magnitude;
            (self.length, self.magnitude) = (0, 0.0);
        }
        self.length += 1;
        self.magnitude += magnitude;
    }

    /// Error of everything added so far, the current chain joined to those before it.
    fn bound(&self, depth: usize) -> f64 {
        let own = self.own + tolerance::matrix_unit_bound(self.length.div_ceil(depth), self.magnitude);
        own + rounding(self.joined + self.magnitude + own)
    }
}

/// The stored scale of a cached vector, and the scales that rounding errors of its values may lead to.
#[derive(Clone, Copy, Debug)]
struct ScaleRange {
    value: f64,
    low: f64,
    high: f64,
}

impl ScaleRange {
    fn of(vector: &[Bounded], format: Format, scales: Format) -> ScaleRange {
        let value = cache_scale(vector.iter().map(|number| number.value), format, scales);
        let largest = |magnitude: fn(&Bounded) -> f64| vector.iter().map(magnitude).fold(0.0, f64::max);
        // The quotient by the format's largest value is rounded to f32 before it is stored.
        let below = largest(|number| number.value.abs() - number.radius());
        let above = largest(|number| number.value.abs() + number.radius());
        let low = cache_scale(std::iter::once(below - rounding(below)), format, scales);
        let high = cache_scale(std::iter::once(above + rounding(above)), format, scales);
        ScaleRange { value, low: low.min(value), high: high.max(value) }
    }

    fn stored(self, number: Bounded, format: Format) -> Bounded {
        if self.value == 0.0 {
            // All values are zero; what rounding errors a kernel has in their place it may store with a scale.
            return Bounded { value: number.value, low: 2.0 * number.low, high: 2.0 * number.high };
        }
        if !self.value.is_finite() || !number.value.is_finite() {
            return Bounded::exact(round_to(number.value / self.value, format) * self.value);
        }
        // A smaller scale enlarges the stored code and diminishes what it stands for: take the worst of both.
        let end = |value: f64, enlarged: f64, diminished: f64, direction: f64| {
            let quotient = value / enlarged;
            round_to(quotient + direction * rounding(quotient), format) * diminished
        };
        let low = if number.low < 0.0 { (self.low, self.high) } else { (self.high, self.low) };
        let high = if number.high < 0.0 { (self.high, self.low) } else { (self.low, self.high) };
        let value = round_to(number.value / self.value, format) * self.value;
        let low = end(number.low, low.0, low.1, -1.0);
        let high = end(number.high, high.0, high.1, 1.0);
        // The product with the scale, when it is read.
        Bounded { value, low: low - rounding(low), high: high + rounding(high) }
    }
}

/// Error of the kernels' exponential at a result of this magnitude; results below the normal range may be lost.
fn exp_error(magnitude: f64) -> f64 {
    tolerance::TRANSCENDENTAL_ULPS * 2.0 * Format::F32.unit_roundoff() * magnitude + Format::F32.min_normal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::number::Rounded;

    fn holds(number: Bounded, computed: f32) {
        let (low, high) = number.interval();
        assert!((low..=high).contains(&f64::from(computed)), "{computed} is not in {low}..{high}");
    }

    #[test]
    fn f32_arithmetic_stays_inside_and_bf16_does_not() {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for i in 0..200_u32 {
            left.push((f64::from(i) * 0.37).sin() as f32);
            right.push((f64::from(i) * 0.91).cos() as f32);
        }
        let number = |x: &f32| Bounded::exact(f64::from(*x));
        let terms = || left.iter().map(number).zip(right.iter().map(number));
        let dot = Bounded::dot(terms(), Products::F32);
        let chain = left.iter().zip(&right).fold(0.0_f32, |sum, (a, b)| a.mul_add(*b, sum));
        holds(dot, chain);
        let narrow = left
            .iter()
            .zip(&right)
            .fold(0.0_f64, |sum, (a, b)| round_to(sum + f64::from(a * b), Format::Bf16));
        let (low, high) = dot.interval();
        assert!(!(low..=high).contains(&narrow));
        holds(dot.silu(Format::F32), chain / (1.0 + (-chain).exp()));
        holds(dot.exp().sqrt().div(number(&3.0)), chain.exp().sqrt() / 3.0);
    }

    #[test]
    fn before_16_bits_silu_may_round_the_exponent_of_its_power_of_two() {
        let inside = |x: f32, stored: Format| {
            let exponent = x * -std::f32::consts::LOG2_E;
            let computed = x / (1.0 + f64::from(exponent).exp2() as f32);
            let (low, high) = Bounded::exact(f64::from(x)).silu(stored).interval();
            (low..=high).contains(&f64::from(computed))
        };
        let numbers: Vec<f32> = (-8000..8000).map(|x| x as f32 / 100.0).collect();
        assert!(numbers.iter().all(|&x| inside(x, Format::Bf16) && inside(x, Format::F16)));
        // What is stored in f32 takes more exact ones.
        assert!(numbers.iter().any(|&x| !inside(x, Format::F32)));
    }

    /// A step of a matrix unit: exact products, all terms cut off 25 bits below the largest, the sum at 24.
    fn matrix_step(accumulator: f32, terms: &[(f32, f32)]) -> f32 {
        let mut all: Vec<f64> = terms.iter().map(|(a, b)| f64::from(*a) * f64::from(*b)).collect();
        all.push(f64::from(accumulator));
        let largest = all.iter().fold(0.0_f64, |largest, term| largest.max(term.abs()));
        let cut = |value: f64, bits: i32, magnitude: f64| {
            let unit = 2.0_f64.powi(magnitude.log2().floor() as i32 + 1 - bits);
            (value / unit).trunc() * unit
        };
        let sum: f64 = all.iter().map(|&term| cut(term, 25, largest)).sum();
        cut(sum, 24, sum.abs()) as f32
    }

    #[test]
    fn matrix_units_stay_inside_their_bound() {
        let unit = Unit::Matrix { depth: 16, chain: 512 };
        let products = Products { unit, subnormals: Subnormals::Kept };
        // Cutting off always errs to the same side where all terms are positive.
        let positive = |i: u32, k: f64| round_to(0.5 + (f64::from(i) * k).sin().abs(), Format::Bf16) as f32;
        let pairs: Vec<(f32, f32)> = (0..1300).map(|i| (positive(i, 0.37), positive(i, 0.91))).collect();
        let chain = |pairs: &[(f32, f32)]| pairs.chunks(16).fold(0.0, matrix_step);
        let computed = pairs.chunks(512).map(chain).fold(0.0_f32, |sum, segment| sum + segment);
        let number = |x: f32| Bounded::exact(f64::from(x));
        let terms = || pairs.iter().map(|&(a, b)| (number(a), number(b)));
        holds(Bounded::dot(terms(), products), computed);
        // Short chains: the bound is below that of one chain of roundings.
        let by_units = Bounded::dot(terms(), products).radius();
        let by_f32 = Bounded::dot(terms(), Products::F32).radius();
        assert!(by_units < by_f32, "{by_units} {by_f32}");
    }

    #[test]
    fn two_parts_stay_inside_their_bound_and_one_does_not() {
        for format in [Format::F16, Format::Bf16] {
            let mut outside = 0;
            for i in 1..3000_u32 {
                let (unit, value) =
                    (2.0_f64.powi(i as i32 % 7), (f64::from(i) * 0.37).sin().powi(1 + i as i32 % 3));
                let (low, high) = Bounded::exact(value).split(format, unit).interval();
                let both = Rounded::exact(value).split(format, unit).value();
                assert!((low..=high).contains(&both), "{both} is not in {low}..{high}");
                let one = round_to(value / unit, format) * unit;
                outside += u32::from(!(low..=high).contains(&one));
            }
            assert!(outside > 2500, "{format}: {outside}");
        }
    }

    #[test]
    fn rounding_admits_one_value_away_from_ties() {
        let number = Bounded::computed(1.003, 0.0).round(Format::Bf16);
        assert_eq!((number.value(), number.interval()), (1.0, (1.0, 1.0)));
        let tie = Bounded::computed(1.0 + 1.0 / 256.0, 0.0).round(Format::Bf16);
        assert_eq!(tie.interval(), (1.0, 1.0078125));
    }

    #[test]
    fn infinities_and_nan_are_demanded() {
        let infinite = Bounded::exact(1e30).mul(Bounded::exact(1e30)).round(Format::F16);
        assert_eq!(infinite.interval(), (f64::INFINITY, f64::INFINITY));
        assert!(Bounded::exact(f64::NAN).add(Bounded::exact(1.0)).interval().0.is_nan());
    }

    #[test]
    fn exact_vectors_have_exact_scales() {
        let cache = CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) };
        let source = [3.3, -7.1, 0.02, 0.0, 5.0];
        let mut bounded = source.map(Bounded::exact);
        let mut rounded = source.map(Rounded::exact);
        Bounded::through_cache(&mut bounded, cache);
        Rounded::through_cache(&mut rounded, cache);
        for (bounded, rounded) in bounded.iter().zip(rounded) {
            assert_eq!(bounded.value(), rounded.value());
            assert!(bounded.radius() <= 2.0 * rounding(bounded.value()));
        }
    }
}
