//! Exponential, logarithm and sums of exponentials that give the same bits on every platform.
//!
//! Built from additions, multiplications, divisions and bit moves alone. The loop over logits has a fixed number of
//! independent lanes, so that the compiler can use vector registers without reordering anything.

use std::f64::consts::LN_2;

/// Logits per entry of [`Softmax::block_sums`].
pub const BLOCK: usize = 1024;
/// Independent partial sums; divides [`BLOCK`].
pub const LANES: usize = 16;

/// e^x for x up to 0, with a relative error under 2e-7; 0 for x under -87 (where normal numbers end) and for minus
/// infinity.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, whose first dropped term is below 6e-9.
#[inline]
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the significand.
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const SMALLEST: f32 = -87.0;

    let bounded = if x > SMALLEST { x } else { SMALLEST };
    let shifted = bounded * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = INVERSE_FACTORIAL[7];
    for &coefficient in INVERSE_FACTORIAL[..7].iter().rev() {
        series = series * r + coefficient;
    }
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > SMALLEST { series * power_of_two } else { 0.0 }
}

/// 1 / n! for n from 0 to 7.
const INVERSE_FACTORIAL: [f32; 8] =
    [1.0, 1.0, 1.0 / 2.0, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];

/// Natural logarithm of a positive normal number, with an error near that of f64.
///
/// x = 2^n m with m from 3/4 to 3/2; ln m = 2 artanh((m - 1) / (m + 1)) by its Taylor series, whose first dropped
/// term is below 1e-17.
pub fn ln(x: f64) -> f64 {
    const BIAS: u64 = 1023;
    let bits = x.to_bits();
    let mut n = (bits >> 52 & 0x7ff) as f64 - BIAS as f64;
    let mut m = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | BIAS << 52);
    if m >= 1.5 {
        m *= 0.5;
        n += 1.0;
    }
    let s = (m - 1.0) / (m + 1.0);
    let mut series = 0.0;
    for odd in (0..12).rev().map(|k| f64::from(2 * k + 1)) {
        series = series * (s * s) + 1.0 / odd;
    }
    n * LN_2 + 2.0 * s * series
}

/// What differences to the largest logit are multiplied by. Bounded, as infinity times the 0 of the largest logit would
/// be NaN.
pub fn inverse(temperature: f32) -> f32 {
    (1.0 / temperature).min(f32::MAX)
}

/// Unnormalised probabilities of a row of logits: e^((logit - max) / temperature), hence exactly 1 for the largest.
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    max: f32,
    inverse_temperature: f32,
    /// Smaller weights count as 0 (min-p).
    floor: f32,
}

impl Softmax {
    /// `max` is the finite largest logit, `temperature` is positive, `floor` is in 0..=1.
    pub fn new(max: f32, temperature: f32, floor: f32) -> Self {
        Self { max, inverse_temperature: inverse(temperature), floor }
    }

    /// The weight of a logit of the row.
    #[inline]
    pub fn weight(&self, logit: f32) -> f32 {
        let weight = exp((logit - self.max) * self.inverse_temperature);
        if weight >= self.floor { weight } else { 0.0 }
    }

    /// Replaces `sums` by the sum of weights of each run of [`BLOCK`] logits, and returns the sum of all.
    pub fn block_sums(&self, logits: &[f32], sums: &mut Vec<f64>) -> f64 {
        sums.clear();
        sums.extend(logits.chunks(BLOCK).map(|block| self.sum_block(block)));
        sums.iter().sum()
    }

    /// At most [`BLOCK`] logits.
    fn sum_block(&self, block: &[f32]) -> f64 {
        // Weights first, then sums: two loops that the compiler turns into vector code, where it fails with one.
        let mut weights = [0.0; BLOCK];
        for (weight, &logit) in weights.iter_mut().zip(block) {
            *weight = self.weight(logit);
        }
        let mut partial = [0.0; LANES];
        for chunk in weights.as_chunks::<LANES>().0 {
            for (sum, &weight) in partial.iter_mut().zip(chunk) {
                *sum += f64::from(weight);
            }
        }
        partial.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponential_of_zero_is_exactly_one_and_of_minus_infinity_zero() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(-86.99) > f32::MIN_POSITIVE);
    }

    #[test]
    fn recorded_bits_hold_on_every_platform() {
        let cases = [(-1.0, 0x3ebc_5ab2), (-0.5, 0x3f1b_4598), (-20.3, 0x30d1_dc79), (-86.9, 0x00c6_0f89)];
        for (x, bits) in cases {
            assert_eq!(exp(x).to_bits(), bits, "exp({x})");
        }
        assert_eq!(ln(151_936.0).to_bits(), 0x4027_dcc8_2aef_e0d0);
    }

    #[test]
    fn logarithm_of_powers_of_two() {
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(8.0), 3.0 * LN_2);
        assert_eq!(ln(0.25), -2.0 * LN_2);
    }

    proptest! {
        #[test]
        fn exponential_is_close_to_the_truth(x in prop_oneof![-87.0f32..0.0, -1.0f32..0.0]) {
            let (ours, truth) = (f64::from(exp(x)), f64::from(x).exp());
            prop_assert!((ours - truth).abs() <= 2e-7 * truth, "{x}: {ours} {truth}");
        }

        #[test]
        fn logarithm_is_close_to_the_library(x in 1e-9f64..1e9) {
            prop_assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "{x}: {} {}", ln(x), x.ln());
        }

        #[test]
        fn sums_agree_with_a_plain_loop(logits in prop::collection::vec(-30.0f32..30.0, 1..3000)) {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let softmax = Softmax::new(max, 0.7, 0.0);
            let plain: f64 = logits.iter().map(|&l| f64::from(softmax.weight(l))).sum();
            let mut sums = Vec::new();
            let total = softmax.block_sums(&logits, &mut sums);
            prop_assert_eq!(sums.len(), logits.len().div_ceil(BLOCK));
            prop_assert!((total - plain).abs() <= 1e-13 * plain);
        }
    }
}
