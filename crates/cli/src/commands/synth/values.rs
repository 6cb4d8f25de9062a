//! Random values of a checkpoint: a function of seed, tensor and position alone, so that they do not depend on who
//! computes them, and tensors do not depend on how many others there are.

use anyhow::Result;
use mantissa::numerics::{Format, encode_slice};

/// Standard deviation of matrices, as transformers initialises them. With norms before every projection, activations
/// then stay far below f16's largest value in every shape.
const MATRIX_DEVIATION: f64 = 0.02;
/// Standard deviation of matrices in models narrower than 625, times the root of the hidden size: with less, layers
/// would add next to nothing to the embedding, and a model with tied embeddings would repeat its last token for ever.
const NARROW_DEVIATION: f64 = 0.5;
/// Standard deviation of biases.
const BIAS_DEVIATION: f64 = 0.02;
/// Standard deviation of the weights of norms around 1.
const NORM_DEVIATION: f64 = 0.05;

/// Values whose bits one hash gives.
const PER_HASH: usize = 4;
/// Quantiles of the normal distribution from which values are drawn: as many as 16 bits can choose among.
const QUANTILES: usize = 1 << 16;

/// What a tensor is, which decides the distribution of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix.
    Matrix,
    /// The weights of a norm.
    Norm,
    /// A bias.
    Bias,
}

impl Role {
    /// What a tensor of this name is.
    pub fn of(tensor: &str) -> Role {
        if tensor.ends_with(".bias") {
            Role::Bias
        } else if tensor.ends_with("norm.weight") {
            Role::Norm
        } else {
            Role::Matrix
        }
    }
}

/// The quantiles of each role's distribution, encoded.
pub struct Values {
    format: Format,
    seed: u64,
    matrix: Vec<u8>,
    norm: Vec<u8>,
    bias: Vec<u8>,
}

impl Values {
    /// Tables for `format` and a model of this hidden size: one rounding from the f64 quantile's f32 value.
    pub fn new(format: Format, seed: u64, hidden: usize) -> Result<Values> {
        let normal = normal_quantiles();
        let table = |mean: f64, deviation: f64| -> Result<Vec<u8>> {
            let values: Vec<f32> = normal.iter().map(|x| (mean + deviation * x) as f32).collect();
            let mut bytes = vec![0; values.len() * format.bytes()];
            encode_slice(&values, format, &mut bytes)?;
            Ok(bytes)
        };
        Ok(Values {
            format,
            seed,
            matrix: table(0.0, MATRIX_DEVIATION.max(NARROW_DEVIATION / (hidden as f64).sqrt()))?,
            norm: table(1.0, NORM_DEVIATION)?,
            bias: table(0.0, BIAS_DEVIATION)?,
        })
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Fills `out` with the values of `tensor` from value `first` on, which must be a multiple of [`ALIGNMENT`].
    pub fn fill(&self, tensor: &str, first: usize, out: &mut [u8]) {
        let table = match Role::of(tensor) {
            Role::Matrix => &self.matrix,
            Role::Norm => &self.norm,
            Role::Bias => &self.bias,
        };
        let stream = Stream { key: mix(self.seed ^ hash(tensor)), first: first / PER_HASH };
        match self.format.bytes() {
            2 => stream.draw::<2>(table, out),
            _ => stream.draw::<4>(table, out),
        }
    }
}

/// Blocks of a tensor begin at multiples of this many values.
pub const ALIGNMENT: usize = PER_HASH;

/// The hashes of a tensor from one position on.
struct Stream {
    key: u64,
    first: usize,
}

impl Stream {
    /// Draws values of `SIZE` bytes.
    fn draw<const SIZE: usize>(&self, table: &[u8], out: &mut [u8]) {
        let (table, _) = table.as_chunks::<SIZE>();
        for (index, group) in out.chunks_mut(PER_HASH * SIZE).enumerate() {
            let mut bits = mix(self.key.wrapping_add((self.first + index) as u64));
            for value in group.chunks_exact_mut(SIZE) {
                value.copy_from_slice(&table[bits as usize % QUANTILES]);
                bits >>= u64::BITS as usize / PER_HASH;
            }
        }
    }
}

/// The mixing function of SplitMix64 (Steele, Lea and Flood 2014): neighbouring numbers become unrelated ones.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a of a name.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The standard normal distribution's quantiles at (i + 1/2) / [`QUANTILES`]: none is zero.
fn normal_quantiles() -> Vec<f64> {
    let half = QUANTILES / 2;
    let mut upper = Vec::with_capacity(half);
    let mut x = 0.0_f64;
    for i in 0..half {
        // The area from 0 to x that is wanted; Newton's method starts from the neighbour.
        let wanted = (i as f64 + 0.5) / QUANTILES as f64;
        for _ in 0..4 {
            let (area, density) = area_and_density(x);
            x += (wanted - area) / density;
        }
        upper.push(x);
    }
    upper.iter().rev().map(|x| -x).chain(upper.iter().copied()).collect()
}

/// The normal density at `x` and the area below it from 0 to `x`, by the series
/// density * (x + x^3/3 + x^5/(3*5) + ...) of Marsaglia 2004, "Evaluating the Normal Distribution".
fn area_and_density(x: f64) -> (f64, f64) {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let (mut term, mut sum, mut divisor) = (x, x, 1.0);
    while term > sum * f64::EPSILON {
        divisor += 2.0;
        term *= x * x / divisor;
        sum += term;
    }
    (density * sum, density)
}

#[cfg(test)]
mod tests {
    use mantissa::numerics::decode_slice;

    use super::*;

    fn drawn(values: &Values, tensor: &str, first: usize, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; count * values.format().bytes()];
        values.fill(tensor, first, &mut bytes);
        let mut numbers = vec![0.0; count];
        decode_slice(&bytes, values.format(), &mut numbers).unwrap();
        numbers
    }

    #[test]
    fn quantiles_are_those_of_tables() {
        let quantiles = normal_quantiles();
        assert_eq!(quantiles.len(), QUANTILES);
        assert!(quantiles.windows(2).all(|pair| pair[0] < pair[1]));
        // Quantiles of 0.975 and 0.999: their neighbours in the table lie on both sides.
        for (probability, wanted) in [(0.975, 1.959_963_984_540_054), (0.999, 3.090_232_306_167_813)] {
            let index = (probability * QUANTILES as f64 - 0.5) as usize;
            assert!(quantiles[index] <= wanted && wanted <= quantiles[index + 1], "{probability}");
        }
    }

    #[test]
    fn values_have_the_moments_of_their_role() {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let values = Values::new(format, 1, 896).unwrap();
            for (tensor, mean, deviation) in [
                ("a.weight", 0.0, 0.02),
                ("layers.0.input_layernorm.weight", 1.0, 0.05),
                ("q.bias", 0.0, 0.02),
            ] {
                let numbers = drawn(&values, tensor, 0, 200_000);
                let count = numbers.len() as f64;
                let average = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
                let variance = numbers.iter().map(|&x| (f64::from(x) - average).powi(2)).sum::<f64>() / count;
                assert!(
                    (average - mean).abs() < 5.0 * deviation / count.sqrt(),
                    "{format} {tensor}: {average}"
                );
                assert!((variance.sqrt() / deviation - 1.0).abs() < 0.01, "{format} {tensor}: {variance}");
                assert!(numbers.iter().all(|x| *x != 0.0 && x.is_finite()));
            }
        }
    }

    #[test]
    fn parts_are_parts_of_the_whole_and_seeds_and_tensors_differ() {
        let values = Values::new(Format::F32, 7, 896).unwrap();
        let whole = drawn(&values, "a.weight", 0, 103);
        assert_eq!(whole[40..], drawn(&values, "a.weight", 40, 63));
        assert_ne!(whole, drawn(&values, "b.weight", 0, 103));
        assert_ne!(whole, drawn(&Values::new(Format::F32, 8, 896).unwrap(), "a.weight", 0, 103));
    }
}
