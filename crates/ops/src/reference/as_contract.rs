//! Sums in f32 in exactly the order that a contract states, for comparison bit by bit.

use mantissa_numerics::contract::Merge;

/// `sum_k left[k] * right[k]` as [`Order::Ascending`](mantissa_numerics::contract::Order::Ascending) with
/// [`Compute::F32Fma`](mantissa_numerics::contract::Compute::F32Fma) forms it: one chain of fused multiply-adds from
/// zero, ascending.
pub fn dot_ascending(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).fold(0.0, |sum, (&left, &right)| left.mul_add(right, sum))
}

/// `sum_k left[k] * right[k]` as [`Order::Segments`](mantissa_numerics::contract::Order::Segments) with
/// [`Compute::F32Fma`](mantissa_numerics::contract::Compute::F32Fma) forms it: [`dot_ascending`] of each segment, the
/// results added in ascending order.
pub fn dot_segments(left: &[f32], right: &[f32], length: usize) -> f32 {
    let segments = left.chunks(length).zip(right.chunks(length));
    segments.map(|(left, right)| dot_ascending(left, right)).fold(0.0, |sum, segment| sum + segment)
}

/// `sum_k left[k] * right[k]` as [`Order::Lanes`](mantissa_numerics::contract::Order::Lanes) with
/// [`Compute::F32Fma`](mantissa_numerics::contract::Compute::F32Fma) forms it: chains of fused multiply-adds from zero,
/// then added up as the order says.
pub fn dot_lanes(left: &[f32], right: &[f32], shape: Lanes) -> f32 {
    let mut lanes = vec![0.0_f32; shape.lanes];
    for (index, (left, &right)) in left.iter().zip(right).enumerate() {
        let lane = &mut lanes[index / shape.group % shape.lanes];
        *lane = left.mul_add(right, *lane);
    }
    if shape.merge == Merge::Ascending {
        return lanes.iter().fold(0.0, |sum, lane| sum + lane);
    }
    let mut half = shape.lanes / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The numbers of [`Order::Lanes`](mantissa_numerics::contract::Order::Lanes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    /// Chains; a power of two where they are merged as a tree.
    pub lanes: usize,
    /// Neighbouring indices of one chain.
    pub group: usize,
    /// How the chains are added up.
    pub merge: Merge,
}

/// One row of RMSNorm as its contract forms it, before the rounding to storage:
/// `(x * (1 / sqrt(sum / n + eps))) * weight`, every operation rounded to f32, the sum by [`dot_lanes`].
pub fn rms_norm_lanes(x: &[f32], weight: &[f32], eps: f32, lanes: Lanes) -> Vec<f32> {
    let mean = dot_lanes(x, x, lanes) / x.len() as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| (x * inverse) * weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIXTEEN: Lanes = Lanes { lanes: 16, group: 1, merge: Merge::Tree };

    #[test]
    fn orders_are_those_of_the_contracts() {
        // 2^24 + 1 is not an f32: the order decides whether the ones survive.
        let mut terms = vec![16_777_216.0_f32];
        terms.extend([1.0; 16]);
        let ones = vec![1.0; 17];
        assert_eq!(dot_ascending(&terms, &ones), 16_777_216.0);
        terms.reverse();
        assert_eq!(dot_ascending(&terms, &ones), 16_777_232.0);

        // 4096^2 = 2^24 sits in chain 0; the other fifteen chains are added before they meet it, chain 8 excepted.
        let mut squares = vec![4096.0_f32];
        squares.extend([1.0; 15]);
        assert_eq!(dot_lanes(&squares, &squares, SIXTEEN), 16_777_230.0);
        // In groups of two, 2^24 shares its chain with a one that it swallows.
        assert_eq!(dot_lanes(&squares, &squares, Lanes { group: 2, lanes: 8, ..SIXTEEN }), 16_777_230.0);
        assert_eq!(dot_lanes(&squares, &squares, Lanes { lanes: 1, ..SIXTEEN }), 16_777_216.0);

        // Ascending, the first chain swallows all others.
        let ascending = Lanes { merge: Merge::Ascending, ..SIXTEEN };
        assert_eq!(dot_lanes(&squares, &squares, ascending), 16_777_216.0);

        // The first segment swallows its ones, the second keeps its own.
        let terms: Vec<f32> = squares.iter().map(|x| x * x).collect();
        assert_eq!(dot_segments(&terms, &ones, 8), 16_777_224.0);
    }

    #[test]
    fn a_constant_row_is_normalised_to_its_weights() {
        let normalised = rms_norm_lanes(&[2.0; 48], &[0.5; 48], 0.0, SIXTEEN);
        assert_eq!(normalised, [0.5; 48]);
    }
}
