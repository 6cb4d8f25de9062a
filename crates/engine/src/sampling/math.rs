//! Exponential, logarithm and sums of exponentials that give the same bits on every platform.
//!
//! Built from additions, multiplications, divisions and bit moves alone. The loop over logits has a fixed number of
//! independent lanes, so that the compiler can use vector registers without reordering anything.

use std::f64::consts::{LN_2, LOG2_E};

/// Logits per entry of [`Softmax::block_sums`].
pub(super) const BLOCK: usize = 1024;
/// Independent partial sums; divides [`BLOCK`].
const LANES: usize = 8;

/// e^x for x up to 700, with a relative error under 1e-15; 0 for x under -708 (where normal numbers end) and for
/// minus infinity.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, whose first dropped term is below 2e-16.
#[inline]
pub(super) fn exp(x: f64) -> f64 {
    // Adding 1.5 * 2^52 leaves the nearest integer in the low bits of the significand.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts; the first has so few bits that its product with n is exact.
    const LN2_HIGH: f64 = f64::from_bits(LN_2.to_bits() & !0x1f_ffff);
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const SMALLEST: f64 = -708.0;

    let bounded = if x > SMALLEST { x } else { SMALLEST };
    let shifted = bounded * LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = INVERSE_FACTORIAL[12];
    for &coefficient in INVERSE_FACTORIAL[..12].iter().rev() {
        series = series * r + coefficient;
    }
    let power_of_two = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    if x > SMALLEST { series * power_of_two } else { 0.0 }
}

/// 1 / n! for n from 0 to 12.
const INVERSE_FACTORIAL: [f64; 13] = {
    let mut table = [1.0; 13];
    let mut factorial = 1.0;
    let mut n = 1;
    while n < table.len() {
        factorial *= n as f64;
        table[n] = 1.0 / factorial;
        n += 1;
    }
    table
};

/// Natural logarithm of a positive normal number between e^-700 and e^700, with an absolute error near 1e-15.
///
/// Halley's iteration on [`exp`]: each step cubes the error, which starts below 0.06.
pub(super) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as f64 - 1023.0;
    let significand = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    let mut y = (exponent + (significand - 1.0)) * LN_2;
    for _ in 0..3 {
        let e = exp(y);
        y += 2.0 * (x - e) / (x + e);
    }
    y
}

/// Unnormalised probabilities of a row of logits: e^((logit - max) / temperature), hence 1 for the largest.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    max: f64,
    inverse_temperature: f64,
    /// Smaller weights count as 0 (min-p).
    floor: f64,
}

impl Softmax {
    /// `max` is the finite largest logit, `temperature` is positive, `floor` is in 0..=1.
    pub(super) fn new(max: f32, temperature: f32, floor: f32) -> Self {
        Self {
            max: f64::from(max),
            inverse_temperature: 1.0 / f64::from(temperature),
            floor: f64::from(floor),
        }
    }

    #[inline]
    pub(super) fn weight(&self, logit: f32) -> f64 {
        let weight = exp((f64::from(logit) - self.max) * self.inverse_temperature);
        if weight >= self.floor { weight } else { 0.0 }
    }

    /// Replaces `sums` by the sum of weights of each run of [`BLOCK`] logits, and returns the sum of all.
    pub(super) fn block_sums(&self, logits: &[f32], sums: &mut Vec<f64>) -> f64 {
        sums.clear();
        sums.extend(logits.chunks(BLOCK).map(|block| self.sum_block(block)));
        sums.iter().sum()
    }

    /// Sum of the weights of all logits.
    pub(super) fn sum(&self, logits: &[f32]) -> f64 {
        logits.chunks(BLOCK).map(|block| self.sum_block(block)).sum()
    }

    fn sum_block(&self, block: &[f32]) -> f64 {
        let (lanes, rest) = block.as_chunks::<LANES>();
        let mut partial = [0.0; LANES];
        for chunk in lanes {
            for (sum, &logit) in partial.iter_mut().zip(chunk) {
                *sum += self.weight(logit);
            }
        }
        let tail: f64 = rest.iter().map(|&logit| self.weight(logit)).sum();
        partial.iter().sum::<f64>() + tail
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
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e300), 0.0);
        assert!(exp(-707.9) > 0.0);
    }

    #[test]
    fn recorded_bits_hold_on_every_platform() {
        let cases = [
            (-1.0, 0x3fd7_8b56_362c_ef38),
            (-0.5, 0x3fe3_68b2_fc6f_960a),
            (-20.25, 0x3e1b_93de_1e27_ca3b),
            (3.0, 0x4034_15e5_bf6f_b106),
        ];
        for (x, bits) in cases {
            assert_eq!(exp(x).to_bits(), bits, "exp({x})");
        }
        assert_eq!(ln(151_936.0).to_bits(), 0x4027_dcc8_2aef_e0d0);
    }

    proptest! {
        #[test]
        fn exponential_is_close_to_the_library(x in -707.0f64..30.0) {
            let (ours, theirs) = (exp(x), x.exp());
            prop_assert!((ours - theirs).abs() <= 1e-15 * theirs, "{x}: {ours} {theirs}");
        }

        #[test]
        fn logarithm_is_close_to_the_library(x in 1.0f64..1e9) {
            prop_assert!((ln(x) - x.ln()).abs() <= 1e-14, "{x}: {} {}", ln(x), x.ln());
        }

        #[test]
        fn sums_agree_with_a_plain_loop(logits in prop::collection::vec(-30.0f32..30.0, 1..3000)) {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let softmax = Softmax::new(max, 0.7, 0.0);
            let plain: f64 = logits.iter().map(|&l| softmax.weight(l)).sum();
            let mut sums = Vec::new();
            let total = softmax.block_sums(&logits, &mut sums);
            prop_assert_eq!(sums.len(), logits.len().div_ceil(BLOCK));
            prop_assert_eq!(total, softmax.sum(&logits));
            prop_assert!((total - plain).abs() <= 1e-13 * plain);
        }
    }
}
