//! Sums in f32 in exactly the order that a contract states, for comparison bit by bit.

/// `sum_k left[k] * right[k]` as [`Order::Ascending`](mantissa_numerics::contract::Order::Ascending) with
/// [`Compute::F32Fma`](mantissa_numerics::contract::Compute::F32Fma) forms it: one chain of fused multiply-adds from
/// zero, ascending.
pub fn dot_ascending(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).fold(0.0, |sum, (&left, &right)| left.mul_add(right, sum))
}

/// The sum of squares as [`Order::Lanes16`](mantissa_numerics::contract::Order::Lanes16) forms it: chain `i` takes
/// the elements whose index is `i` modulo 16, by fused multiply-add; then the chains are summed as a tree, where
/// each level adds the upper half to the lower.
pub fn sum_of_squares_lanes16(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (index, &x) in x.iter().enumerate() {
        lanes[index % 16] = x.mul_add(x, lanes[index % 16]);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// One row of RMSNorm as its contract forms it, before the rounding to storage:
/// `(x * (1 / sqrt(sum / n + eps))) * weight`, every operation rounded to f32, the sum by
/// [`sum_of_squares_lanes16`].
pub fn rms_norm_lanes16(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = sum_of_squares_lanes16(x) / x.len() as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| (x * inverse) * weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(sum_of_squares_lanes16(&squares), 16_777_230.0);
    }

    #[test]
    fn a_constant_row_is_normalised_to_its_weights() {
        let normalised = rms_norm_lanes16(&[2.0; 48], &[0.5; 48], 0.0);
        assert_eq!(normalised, [0.5; 48]);
    }
}
