//! Weights for kernels that are measured by themselves.

use std::collections::HashMap;

use mantissa::numerics::Format;
use mantissa::numerics::convert::slice::encode_slice;
use mantissa::ops::{SourceError, TensorSource, View};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Tensors of random numbers, all of which begin with the same ones: only where they end up after loading matters to a
/// kernel's speed.
#[derive(Debug)]
pub struct RandomSource {
    format: Format,
    shapes: HashMap<String, Vec<usize>>,
    bytes: Vec<u8>,
}

impl RandomSource {
    /// A source without tensors.
    pub fn new(format: Format) -> RandomSource {
        RandomSource { format, shapes: HashMap::new(), bytes: Vec::new() }
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// Where the format cannot be written.
    pub fn add(&mut self, name: &str, shape: &[usize]) -> Result<(), SourceError> {
        let length: usize = shape.iter().product();
        let bytes = length * self.format.bytes();
        if bytes > self.bytes.len() {
            let mut stored = vec![0; bytes];
            encode_slice(&random(length), self.format, &mut stored)
                .map_err(|error| SourceError { message: format!("tensor {name}: {error}") })?;
            self.bytes = stored;
        }
        self.shapes.insert(name.to_owned(), shape.to_vec());
        Ok(())
    }
}

impl TensorSource for RandomSource {
    fn tensor(&self, name: &str) -> Result<View<'_>, SourceError> {
        let failed = |message: String| SourceError { message: format!("tensor {name}: {message}") };
        let shape = self.shapes.get(name).ok_or_else(|| failed("there is none".to_owned()))?;
        let bytes = shape.iter().product::<usize>() * self.format.bytes();
        View::contiguous(self.format, shape, &self.bytes[..bytes]).map_err(|error| failed(error.to_string()))
    }
}

/// Numbers of both signs, exact in every format, whose sums of many products stay far from the end of any: from 1/64 to 1,
/// none of them zero.
pub fn random(count: usize) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(count as u64);
    let one = |_| {
        let bits = generator.next_u32();
        let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
        // Three bits below the leading one are exact even in E4M3.
        let significand = 1.0 + f32::from((bits >> 8) as u8 & 7) / 8.0;
        sign * significand * 0.5_f32.powi(1 + (bits >> 16) as i32 % 6)
    };
    (0..count).map(one).collect()
}
