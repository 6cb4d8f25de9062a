//! Seeded numbers and checkpoints in memory.

use std::collections::HashMap;

use mantissa_numerics::Format;
use mantissa_numerics::convert::slice::{decode_slice, encode_slice};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::reference::number::round_to;
use crate::source::{RowOrder, SourceError, TensorSource};
use crate::view::View;

/// What a row of numbers is made of. Nothing is ever zero unless it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both signs, magnitudes from 1/8 to 2.
    Ordinary,
    /// Magnitudes whose products and squares stay finite in f32, but come close to the end of f16.
    Large,
    /// Subnormals of the format.
    Subnormal,
    /// Ordinary numbers with one NaN among them.
    OneNan,
    /// Ordinary numbers with one infinity among them.
    OneInfinity,
    /// Nothing but NaN.
    Poison,
    /// Nothing but ones.
    Ones,
}

/// Numbers that depend on nothing but a name.
#[derive(Debug)]
pub struct Numbers {
    generator: ChaCha8Rng,
}

impl Numbers {
    /// The sequence of this name.
    pub fn seeded(name: &str) -> Numbers {
        // FNV-1a: the standard library's hashes may change between versions.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Numbers { generator: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// A number below `limit`; zero where there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { self.generator.random_range(0..limit) }
    }

    /// `count` numbers of `format`.
    pub fn stored(&mut self, kind: Kind, format: Format, count: usize) -> Vec<f32> {
        let mut numbers: Vec<f32> = (0..count).map(|_| self.one(kind, format)).collect();
        let special = match kind {
            Kind::OneNan => f32::NAN,
            Kind::OneInfinity => f32::INFINITY,
            _ => return numbers,
        };
        let index = self.below(count);
        if let Some(number) = numbers.get_mut(index) {
            *number = special;
        }
        numbers
    }

    fn one(&mut self, kind: Kind, format: Format) -> f32 {
        let bits = self.generator.next_u64();
        let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
        // 1 <= significand < 2 with 40 random bits, so that every format has to round.
        let significand = 1.0 + (bits >> 24) as f64 * 2f64.powi(-40);
        let exponent = ((bits >> 1) & 3) as i32;
        let value = match kind {
            Kind::Ordinary | Kind::OneNan | Kind::OneInfinity => significand * 2f64.powi(exponent - 3),
            Kind::Large if format == Format::F16 => significand * 2f64.powi(exponent + 10),
            Kind::Large => significand * 2f64.powi(exponent + 40),
            Kind::Subnormal => format.min_subnormal() * (1 + ((bits >> 8) & 63)) as f64,
            Kind::Poison => f64::NAN,
            Kind::Ones => return 1.0,
        };
        round_to(sign * value, format) as f32
    }

    /// `0..count` in random order.
    pub fn shuffled(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for last in (1..count).rev() {
            let other = self.below(last + 1);
            order.swap(last, other);
        }
        order
    }
}

#[derive(Clone, Debug)]
struct Tensor {
    format: Format,
    shape: Vec<usize>,
    order: RowOrder,
    bytes: Vec<u8>,
}

/// A checkpoint in memory.
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    tensors: HashMap<String, Tensor>,
}

impl MemorySource {
    /// Adds a tensor whose rows lie as the op expects them; the numbers are rounded to `format`.
    pub fn add(&mut self, name: &str, shape: &[usize], format: Format, numbers: &[f32]) {
        let mut bytes = vec![0; format.bytes_for(numbers.len()).unwrap_or(0)];
        // The length was computed above, and formats without NaN are not stored here; an empty tensor would be
        // refused when it is loaded.
        if encode_slice(numbers, format, &mut bytes).is_err() {
            bytes.clear();
        }
        let tensor = Tensor { format, shape: shape.to_vec(), order: RowOrder::AsStored, bytes };
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Says how the rows of a tensor are ordered.
    pub fn set_order(&mut self, name: &str, order: RowOrder) {
        if let Some(tensor) = self.tensors.get_mut(name) {
            tensor.order = order;
        }
    }

    /// The numbers of a tensor as stored.
    pub fn numbers(&self, name: &str) -> Vec<f32> {
        let Some(tensor) = self.tensors.get(name) else { return Vec::new() };
        let mut numbers = vec![0.0; tensor.shape.iter().product()];
        match decode_slice(&tensor.bytes, tensor.format, &mut numbers) {
            Ok(()) => numbers,
            Err(_) => Vec::new(),
        }
    }
}

impl TensorSource for MemorySource {
    fn tensor(&self, name: &str) -> Result<View<'_>, SourceError> {
        let missing = || SourceError { message: format!("no tensor {name} in memory") };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        View::contiguous(tensor.format, &tensor.shape, &tensor.bytes)
            .map_err(|error| SourceError { message: format!("tensor {name}: {error}") })
    }

    fn row_order(&self, name: &str) -> RowOrder {
        self.tensors.get(name).map_or(RowOrder::AsStored, |tensor| tensor.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stored_ones_and_repeat() {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            for kind in [Kind::Ordinary, Kind::Large, Kind::Subnormal] {
                let numbers = Numbers::seeded("x").stored(kind, format, 100);
                assert_eq!(numbers, Numbers::seeded("x").stored(kind, format, 100));
                assert!(numbers.iter().all(|&x| x != 0.0 && round_to(f64::from(x), format) == f64::from(x)));
            }
        }
        assert_eq!(
            Numbers::seeded("n").stored(Kind::OneNan, Format::F16, 9).iter().filter(|x| x.is_nan()).count(),
            1
        );
        let mut order = Numbers::seeded("p").shuffled(20);
        assert_ne!(order, (0..20).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }
}
