//! The three arithmetics in which the reference evaluates a program.
//!
//! The interpreter is written once, over [`Number`]:
//! - [`Exact`]: f64, nothing is rounded. The truth.
//! - [`Rounded`]: f64 between, rounded where the contract rounds. What a perfect kernel stores.
//! - [`Bounded`]: as [`Rounded`], together with the interval in which every kernel that follows the contract must
//!   end: a running error analysis of f32 arithmetic.

use std::fmt::Debug;
use std::marker::PhantomData;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, Compute, OpContract, Order, Subnormals};
use mantissa_numerics::convert::{self, Overflow};

pub use super::bounded::Bounded;

/// `value` rounded once to the nearest number of `format`, as kernels store it; beyond the range of a format with
/// infinities it becomes infinite.
pub fn round_to(value: f64, format: Format) -> f64 {
    match convert::encode(value, format, convert::Rounding::NearestEven, Overflow::Infinity) {
        Ok(bits) => f64::from(convert::decode(bits, format)),
        // Only E2M1 has no NaN, and no value or cache is stored in it.
        Err(_) => f64::NAN,
    }
}

/// A number of the reference interpreter. Operations are those of f32 kernels; what an implementation makes of
/// their rounding is its own matter.
pub trait Number: Copy + Debug + Send + Sync + 'static {
    /// A stored number, known exactly.
    fn exact(value: f64) -> Self;
    /// A number computed in f64 and kept in an f32 table.
    fn table(value: f64) -> Self;
    /// The number.
    fn value(self) -> f64;
    /// Smallest and largest value that a kernel may have in its place.
    fn interval(self) -> (f64, f64);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The exponential.
    fn exp(self) -> Self;
    /// The power of two.
    fn exp2(self) -> Self;
    /// `self / (1 + exp(-self))`, to be multiplied and rounded to `stored`.
    fn silu(self, stored: Format) -> Self;
    /// The larger one; NaN if either is.
    fn max(self, other: Self) -> Self;
    /// The sum of the products, in any order; `products` says how they are formed.
    fn dot(terms: impl Iterator<Item = (Self, Self)>, products: Products) -> Self;
    /// The sum, in any order.
    fn sum(terms: impl Iterator<Item = Self>) -> Self;
    /// A weight of an online softmax that was corrected `times` times for a new maximum.
    fn rescaled(self, times: usize) -> Self;
    /// Rounded to storage.
    fn round(self, format: Format) -> Self;
    /// Rounded to the sum of two numbers of `format`, both times `unit`: the nearest, and the nearest to what is left.
    fn split(self, format: Format, unit: f64) -> Self;
    /// One head's vector as the cache returns it: rounded to its format, with one stored scale for 8-bit formats.
    fn through_cache(vector: &mut [Self], cache: CacheFormat);
}

/// What the error of a sum of products depends on beside its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Products {
    /// Who forms them.
    pub unit: Unit,
    /// What happens to tiny operands and results.
    pub subnormals: Subnormals,
}

/// Who forms products and sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// f32 arithmetic: each product and sum rounded at most once, in any order.
    F32,
    /// A matrix unit; the results of chains are added in f32.
    Matrix {
        /// Products of one step.
        depth: usize,
        /// Products of one chain.
        chain: usize,
    },
}

impl Products {
    /// f32 arithmetic that keeps subnormals.
    pub const F32: Products = Products { unit: Unit::F32, subnormals: Subnormals::Kept };

    /// What a contract says.
    pub fn of(contract: &OpContract) -> Products {
        let unit = match (contract.compute, contract.order) {
            (Compute::MatrixUnits { depth }, Order::Segments { length }) => {
                Unit::Matrix { depth, chain: length }
            }
            (Compute::MatrixUnits { depth }, _) => Unit::Matrix { depth, chain: usize::MAX },
            _ => Unit::F32,
        };
        Products { unit, subnormals: contract.subnormals }
    }
}

/// What happens to a number of [`Plain`] where a contract rounds.
pub trait Rule: Copy + Debug + Send + Sync + 'static {
    /// The number as stored in `format`.
    fn round(value: f64, format: Format) -> f64;
    /// A vector as stored in and read back from a cache.
    fn through_cache(vector: &mut [f64], cache: CacheFormat);
}

/// Rounds nothing.
#[derive(Clone, Copy, Debug)]
pub struct Never;

/// Rounds to the nearest number of the format.
#[derive(Clone, Copy, Debug)]
pub struct AtRoundingPoints;

impl Rule for Never {
    fn round(value: f64, _format: Format) -> f64 {
        value
    }

    fn through_cache(_vector: &mut [f64], _cache: CacheFormat) {}
}

impl Rule for AtRoundingPoints {
    fn round(value: f64, format: Format) -> f64 {
        round_to(value, format)
    }

    fn through_cache(vector: &mut [f64], cache: CacheFormat) {
        let scale = match cache.scales {
            None => 1.0,
            Some(format) => cache_scale(vector.iter().copied(), cache.format, format),
        };
        for value in vector {
            *value = if scale == 0.0 { *value } else { round_to(*value / scale, cache.format) * scale };
        }
    }
}

/// The stored scale of a cached vector: its largest magnitude over the format's, rounded; zero only for a vector of
/// zeros, infinite only for one with an infinity. NaNs do not count.
pub fn cache_scale(vector: impl Iterator<Item = f64>, format: Format, scales: Format) -> f64 {
    let largest = vector.fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let scale = round_to(largest / format.max_finite(), scales);
    if scale == 0.0 && largest > 0.0 {
        return scales.min_subnormal();
    }
    if scale.is_infinite() && largest.is_finite() {
        return scales.max_finite();
    }
    scale
}

/// An f64 that follows one [`Rule`] where contracts round.
#[derive(Clone, Copy)]
pub struct Plain<R>(f64, PhantomData<R>);

/// The truth: nothing is rounded.
pub type Exact = Plain<Never>;

/// f64 with the contract's rounding points.
pub type Rounded = Plain<AtRoundingPoints>;

impl<R> Plain<R> {
    const fn new(value: f64) -> Plain<R> {
        Plain(value, PhantomData)
    }
}

impl<R> Debug for Plain<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<R: Rule> Number for Plain<R> {
    fn exact(value: f64) -> Self {
        Plain::new(value)
    }

    fn table(value: f64) -> Self {
        Plain::new(R::round(value, Format::F32))
    }

    fn value(self) -> f64 {
        self.0
    }

    fn interval(self) -> (f64, f64) {
        (self.0, self.0)
    }

    fn add(self, other: Self) -> Self {
        Plain::new(self.0 + other.0)
    }

    fn sub(self, other: Self) -> Self {
        Plain::new(self.0 - other.0)
    }

    fn mul(self, other: Self) -> Self {
        Plain::new(self.0 * other.0)
    }

    fn div(self, other: Self) -> Self {
        Plain::new(self.0 / other.0)
    }

    fn sqrt(self) -> Self {
        Plain::new(self.0.sqrt())
    }

    fn exp(self) -> Self {
        Plain::new(self.0.exp())
    }

    fn exp2(self) -> Self {
        Plain::new(self.0.exp2())
    }

    fn silu(self, _stored: Format) -> Self {
        Plain::new(silu(self.0))
    }

    fn max(self, other: Self) -> Self {
        Plain::new(max_or_nan(self.0, other.0))
    }

    fn dot(terms: impl Iterator<Item = (Self, Self)>, _products: Products) -> Self {
        Plain::new(terms.map(|(left, right)| left.0 * right.0).sum())
    }

    fn sum(terms: impl Iterator<Item = Self>) -> Self {
        Plain::new(terms.map(|term| term.0).sum())
    }

    fn rescaled(self, _times: usize) -> Self {
        self
    }

    fn round(self, format: Format) -> Self {
        Plain::new(R::round(self.0, format))
    }

    fn split(self, format: Format, unit: f64) -> Self {
        let high = R::round(self.0 / unit, format);
        Plain::new((high + R::round(self.0 / unit - high, format)) * unit)
    }

    fn through_cache(vector: &mut [Self], cache: CacheFormat) {
        let mut values: Vec<f64> = vector.iter().map(|number| number.0).collect();
        R::through_cache(&mut values, cache);
        for (number, value) in vector.iter_mut().zip(values) {
            number.0 = value;
        }
    }
}

pub(super) fn silu(value: f64) -> f64 {
    value / (1.0 + (-value).exp())
}

pub(super) fn max_or_nan(left: f64, right: f64) -> f64 {
    if left.is_nan() || right.is_nan() { f64::NAN } else { left.max(right) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_honest() {
        let scale = |values: &[f64], scales| cache_scale(values.iter().copied(), Format::F8E4M3, scales);
        assert_eq!(scale(&[0.0, -0.0], Format::F16), 0.0);
        assert_eq!(scale(&[448.0, -896.0], Format::F16), 2.0);
        assert_eq!(scale(&[1e-9], Format::F16), Format::F16.min_subnormal());
        assert_eq!(scale(&[1e30], Format::F16), Format::F16.max_finite());
        assert_eq!(scale(&[f64::INFINITY], Format::F16), f64::INFINITY);
        assert_eq!(scale(&[f64::NAN, 448.0], Format::F32), 1.0);
    }

    #[test]
    fn a_vector_through_the_cache_keeps_its_largest_value() {
        let cache = CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) };
        let mut vector = [3.5, -7.0, 0.1, 0.0].map(Rounded::exact);
        Rounded::through_cache(&mut vector, cache);
        assert_eq!(vector[0].value(), 3.5);
        assert_eq!(vector[1].value(), -7.0);
        assert!((vector[2].value() - 0.1).abs() <= 0.1 * Format::F8E4M3.unit_roundoff());
        assert_eq!(vector[3].value(), 0.0);
        let mut exact = [0.1].map(Exact::exact);
        Exact::through_cache(&mut exact, cache);
        assert_eq!(exact[0].value(), 0.1);
    }
}
