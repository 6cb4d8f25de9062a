//! Test data, runs of kernels in every format, and what they must equal.

use std::num::NonZeroUsize;

use mantissa_cpu::elements::{Elements, ElementsMut};
use mantissa_cpu::operands::Machine;
use mantissa_cpu::{Pool, Tier};
use mantissa_numerics::{Format, decode_slice, encode_slice};

pub const STORAGE: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

/// Reproducible numbers of moderate size.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// In -2..2, roughly bell-shaped.
    pub fn number(&mut self) -> f32 {
        let sum: u64 = (0..4).map(|_| self.next() % (1 << 22)).sum();
        sum as f32 / (1 << 22) as f32 - 2.0
    }

    pub fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

/// Numbers of a format, stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    format: Format,
    /// As `u32`s, so that every format is aligned.
    words: Vec<u32>,
    count: usize,
}

impl Stored {
    pub fn new(format: Format, numbers: &[f32]) -> Stored {
        let mut stored = Stored::poisoned(format, numbers.len());
        encode_slice(numbers, format, stored.bytes_mut()).unwrap();
        stored
    }

    /// NaN everywhere.
    pub fn poisoned(format: Format, count: usize) -> Stored {
        let words = vec![u32::MAX; (count * format.bytes()).div_ceil(4)];
        Stored { format, words, count }
    }

    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.count * self.format.bytes()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.count * self.format.bytes();
        &mut bytemuck::cast_slice_mut(&mut self.words)[..length]
    }

    pub fn get(&self) -> Elements<'_> {
        Elements::from_bytes(self.format, self.bytes()).unwrap()
    }

    pub fn get_mut(&mut self) -> ElementsMut<'_> {
        ElementsMut::from_bytes(self.format, self.bytes_mut()).unwrap()
    }

    /// The exact values.
    pub fn numbers(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.count];
        decode_slice(self.bytes(), self.format, &mut numbers).unwrap();
        numbers
    }

    pub fn exact(&self) -> Vec<f64> {
        self.numbers().into_iter().map(f64::from).collect()
    }
}

pub fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// Runs on every instruction set and on one, two and three threads, demands the same bytes, and returns them.
pub fn on_every_machine(run: impl Fn(Machine<'_>) -> Vec<Stored>) -> Vec<Stored> {
    let mut first: Option<Vec<Stored>> = None;
    for threads in [1, 2, 3] {
        let pool = pool(threads);
        for tier in Tier::available() {
            let got = run(Machine { tier, pool: &pool });
            let expected = first.get_or_insert_with(|| got.clone());
            for (got, expected) in got.iter().zip(expected) {
                assert!(got.bytes() == expected.bytes(), "{} with {threads} threads", tier.isa());
            }
        }
    }
    first.unwrap()
}
