//! Attention of one query row, with the errors of the ways in which contracts reduce over positions.

use std::f64::consts::LOG2_E;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{OpContract, Order, RoundingPoint};

use super::kernels::dot;
use super::number::{Number, Products, Unit};

/// Weights `exp(score - max)` of the visible positions and one over their sum.
pub(super) struct SoftmaxRow<N> {
    pub(super) weights: Vec<N>,
    pub(super) inverse_sum: N,
}

/// What a softmax takes powers of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    E,
    /// Scores are multiplied by log2 e beforehand.
    Two,
}

/// Softmax of scores that are already scaled. Kernels that see the scores block by block correct their weights
/// `rescales` times.
pub(super) fn softmax<N: Number>(scores: &[N], base: Base, rescales: usize) -> SoftmaxRow<N> {
    let largest = scores.iter().fold(N::exact(f64::NEG_INFINITY), |largest, &score| largest.max(score));
    let weight = |score: &N| match base {
        Base::E => score.sub(largest).exp(),
        Base::Two => score.sub(largest).exp2(),
    };
    let weights: Vec<N> = scores.iter().map(|score| weight(score).rescaled(rescales)).collect();
    let inverse_sum = N::exact(1.0).div(N::sum(weights.iter().copied()));
    SoftmaxRow { weights, inverse_sum }
}

/// Sum of the positions' vectors, weighted by softmax of `scale * query . key`. The positions are the last ones up to
/// the one that `how` is for.
pub(super) fn attend<N: Number>(
    query: &[N],
    keys: &[&[N]],
    values: &[&[N]],
    scale: f32,
    how: Reduction,
) -> Vec<N> {
    let scale = match how.base {
        Base::E => N::exact(f64::from(scale)),
        Base::Two => N::exact(f64::from(scale)).mul(N::table(LOG2_E)),
    };
    let score = |key: &&[N]| dot(query, key, how.scores).mul(scale);
    let scores: Vec<N> = keys.iter().map(score).collect();
    let SoftmaxRow { mut weights, inverse_sum } = softmax(&scores, how.base, how.rescales);
    if let Some(split) = how.split {
        weights = split.apply(&weights, values, how.last);
    }
    (0..query.len())
        .map(|dim| {
            let terms = weights.iter().zip(values).map(|(&weight, value)| (weight, value[dim]));
            N::dot(terms, how.outputs).mul(inverse_sum)
        })
        .collect()
}

/// How a kernel reduces over positions.
#[derive(Clone, Copy)]
pub(super) struct Reduction {
    scores: Products,
    outputs: Products,
    base: Base,
    rescales: usize,
    split: Option<Split>,
    last: usize,
}

impl Reduction {
    /// For a row that sees positions from `first` to `last`.
    pub(super) fn over(contract: &OpContract, first: usize, last: usize) -> Reduction {
        const BLOCK: usize = 16;
        let scores = Products::of(contract);
        let touched = |size: usize| last / size.max(1) - first / size.max(1) + 1;
        let plain = Reduction { scores, outputs: scores, base: Base::E, rescales: 0, split: None, last };
        match contract.order {
            Order::Spans { positions } => {
                Reduction { rescales: touched(BLOCK) + 2 * touched(positions), ..plain }
            }
            Order::Sections { positions, spans } => {
                let joined = touched(positions).min(spans) + touched(positions.saturating_mul(spans));
                let split = contract.rounding.contains(&RoundingPoint::SoftmaxWeights).then(|| Split {
                    format: contract.query.activations,
                    scales: contract.query.cache.and_then(|cache| cache.scales),
                    span: positions.max(1),
                });
                let outputs = split.map_or(scores, |split| split.chains(scores));
                Reduction { outputs, base: Base::Two, rescales: 2 * joined, split, ..plain }
            }
            Order::Library => Reduction { rescales: last - first + 1, ..plain },
            Order::Elementwise | Order::Ascending | Order::Lanes { .. } | Order::Segments { .. } => plain,
        }
    }
}

/// How weights are split, see [`RoundingPoint::SoftmaxWeights`].
#[derive(Clone, Copy)]
struct Split {
    format: Format,
    scales: Option<Format>,
    /// Positions of a span.
    span: usize,
}

impl Split {
    /// Products with the values: one chain for each span, every step of which is done for both parts.
    fn chains(self, products: Products) -> Products {
        let unit = match products.unit {
            Unit::Matrix { depth, .. } => Unit::Matrix { depth: depth.div_ceil(2), chain: self.span },
            Unit::F32 => Unit::F32,
        };
        Products { unit, ..products }
    }

    /// Whether weights are multiples of a power of two that depends on the scales: not where bf16 has all exponents of these.
    fn is_normalised(self) -> bool {
        !(self.format == Format::Bf16 && self.scales == Some(Format::F16))
    }

    /// The weights of the positions up to `last`.
    fn apply<N: Number>(self, weights: &[N], values: &[&[N]], last: usize) -> Vec<N> {
        let first = (last + 1).saturating_sub(weights.len());
        let span = |index: usize| (first + index) / self.span - first / self.span;
        // The unit of a span is at most its largest weight, times the values' scales where these are part of it. All weights are
        // split times the values' scales, if there are some.
        let mut largest = vec![0.0_f64; span(weights.len().saturating_sub(1)) + 1];
        for (index, (weight, value)) in weights.iter().zip(values).enumerate() {
            let heaviest = &mut largest[span(index)];
            let scale = if self.is_normalised() { self.scale(value).1 } else { 1.0 };
            *heaviest = heaviest.max(weight.interval().1 * scale);
        }
        let units =
            values.iter().enumerate().map(|(index, value)| largest[span(index)] / self.scale(value).0);
        let split = |(&weight, unit): (&N, f64)| {
            // A unit over zero belongs to values that are all zero.
            if unit.is_finite() && unit > 0.0 { weight.split(self.format, unit) } else { weight }
        };
        weights.iter().zip(units).map(split).collect()
    }

    /// Bounds on the stored scale of a vector of the cache. Its largest value has the largest code, if the scale is not
    /// at an end of its range.
    fn scale<N: Number>(self, vector: &[N]) -> (f64, f64) {
        let Some(scales) = self.scales else { return (1.0, 1.0) };
        let largest = vector.iter().fold(0.0, |largest: f64, number| largest.max(number.value().abs()));
        let code = Format::F8E4M3.max_finite();
        // Intervals of what is computed before it is cached are far narrower than this.
        let slack = 1.0 + f64::from(f32::EPSILON).sqrt();
        (largest / code / slack, (largest / code * slack).max(scales.min_subnormal()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::number::{Bounded, Exact};
    use super::*;

    const SPLIT: Split = Split { format: Format::F16, scales: None, span: 64 };

    #[test]
    fn weights_of_a_span_share_their_unit() {
        // Positions 62 to 65 of two spans: in the second one the largest weight is tiny.
        let weights = [1.0, 1e-6, 1e-9, 1e-12].map(Bounded::exact);
        let value = [Bounded::exact(1.0)];
        let split = SPLIT.apply(&weights, &[&value[..]; 4], 65);
        let quantum = Format::F16.min_subnormal() / 2.0;
        let square = Format::F16.unit_roundoff().powi(2) / 2.0;
        for (number, (weight, unit)) in
            split.iter().zip([(1.0, 1.0), (1e-6, 1.0), (1e-9, 1e-9), (1e-12, 1e-9)])
        {
            let wanted = square * weight + quantum * unit;
            assert!((number.radius() - wanted).abs() <= 1e-7 * wanted, "{} {wanted}", number.radius());
        }
    }

    #[test]
    fn units_follow_the_scales_of_values() {
        let split = Split { scales: Some(Format::F32), ..SPLIT };
        let weights = [1.0, 1.0].map(Bounded::exact);
        let (large, small) = ([Bounded::exact(448.0)], [Bounded::exact(0.0448)]);
        let numbers = split.apply(&weights, &[&large[..], &small[..]], 1);
        // What is lost of the second weight is that of one 10,000 times as large.
        let lost = Format::F16.min_subnormal() / 2.0 * 1e4;
        assert!((numbers[1].radius() / lost - 1.0).abs() < 0.1, "{}", numbers[1].radius());
        assert!(numbers[0].radius() < 1e-6);
        let zero = [Exact::exact(0.0)];
        let weight = [Exact::exact(0.5)];
        assert_eq!(split.apply(&weight, &[&zero[..]], 0)[0].value(), 0.5);
    }
}
