//! Functions on top of the primitives: the same bits on every tier because they are the same operations.

use super::Simd;

/// Beyond these the result is infinity and zero, whatever the argument.
const EXP_HIGH: f32 = 89.0;
const EXP_LOW: f32 = -104.0;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has trailing zeros, so that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 * 2^23: adding it leaves an integer in the low bits, rounded to nearest even.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// `e^x` within 2 units in the last place; exactly 0 at minus infinity, infinity at overflow, NaN at NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite), a polynomial for `e^r`, then scaling by `2^n`.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    // The bounds come first, so that NaN, the second operand, passes.
    let x = simd.min(simd.splat(EXP_HIGH), simd.max(simd.splat(EXP_LOW), x));
    let magic = simd.splat(ROUND_MAGIC);
    let n = simd.sub(simd.fma(x, simd.splat(LOG2_E), magic), magic);
    let r = simd.fma(n, simd.splat(-LN2_HIGH), x);
    let r = simd.fma(n, simd.splat(-LN2_LOW), r);
    // Taylor coefficients: at |r| <= 0.347 the first one left out, r^7 / 5040, is below 2^-23.
    let mut sum = simd.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = simd.fma(sum, r, simd.splat(coefficient));
    }
    simd.scale_exponent(sum, n)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.zero(), x))))
}

/// `x / (1 + e^-x)`, without overflow of the exponential: for negative `x` as `x e^x / (1 + e^x)`.
/// NaN at minus infinity, as the quotient says.
#[inline(always)]
pub fn silu<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let zero = simd.zero();
    let decay = exp(simd, simd.min(simd.sub(zero, x), x));
    // One of the two terms is zero.
    let numerator = simd.fma(simd.min(zero, x), decay, simd.max(zero, x));
    simd.div(numerator, simd.add(simd.splat(1.0), decay))
}
