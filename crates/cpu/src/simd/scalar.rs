//! Arrays: every machine, and the definition of what the other tiers compute.

use half::{bf16, f16};
use mantissa_numerics::{E4M3, Element};

use super::{Kernel, LANES, Simd};
use crate::isa::Isa;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

type Lanes = [f32; LANES];

#[inline(always)]
fn zip(a: Lanes, b: Lanes, op: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|lane| op(a[lane], b[lane]))
}

/// 2^n for integral n in -126..=127.
fn power_of_two(n: f32) -> f32 {
    f32::from_bits(((n as i32).wrapping_add(127).cast_unsigned()) << 23)
}

/// Halves the lanes with `op` until one is left.
fn tree(a: Lanes, op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = a;
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] = op(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Simd for Scalar {
    type F32 = Lanes;
    type Bf16Pairs = [[bf16; 2]; LANES];

    const ISA: Isa = Isa::Scalar;

    #[inline(never)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, source: &[f32; 16]) -> Lanes {
        *source
    }

    #[inline(always)]
    fn store(self, value: Lanes, destination: &mut [f32; 16]) {
        *destination = value;
    }

    #[inline(always)]
    fn load_f16(self, source: &[f16; 16]) -> Lanes {
        source.map(Element::to_f32)
    }

    #[inline(always)]
    fn store_f16(self, value: Lanes, destination: &mut [f16; 16]) {
        *destination = value.map(Element::from_f32);
    }

    #[inline(always)]
    fn load_bf16(self, source: &[bf16; 16]) -> Lanes {
        source.map(Element::to_f32)
    }

    #[inline(always)]
    fn store_bf16(self, value: Lanes, destination: &mut [bf16; 16]) {
        *destination = value.map(Element::from_f32);
    }

    #[inline(always)]
    fn load_e4m3(self, source: &[E4M3; 16]) -> Lanes {
        source.map(Element::to_f32)
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn sqrt(self, a: Lanes) -> Lanes {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, larger)
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select_first(self, count: usize, first: Lanes, rest: Lanes) -> Lanes {
        std::array::from_fn(|lane| if lane < count { first[lane] } else { rest[lane] })
    }

    // In two factors, because 2^n alone may be beyond the range; the first product is exact.
    #[inline(always)]
    fn scale_exponent(self, a: Lanes, n: Lanes) -> Lanes {
        zip(a, n, |a, n| {
            let first = (n * 0.5).round_ties_even();
            a * power_of_two(first) * power_of_two(n - first)
        })
    }

    #[inline(always)]
    fn reduce_add(self, a: Lanes) -> f32 {
        tree(a, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, a: Lanes) -> f32 {
        tree(a, larger)
    }

    #[inline(always)]
    fn load_bf16_pairs(self, source: &[bf16; 32]) -> [[bf16; 2]; LANES] {
        bytemuck::cast(*source)
    }

    #[inline(always)]
    fn splat_bf16_pair(self, pair: [bf16; 2]) -> [[bf16; 2]; LANES] {
        [pair; LANES]
    }

    #[inline(always)]
    fn split_bf16_pairs(self, pairs: [[bf16; 2]; LANES]) -> [Lanes; 2] {
        [pairs.map(|pair| pair[0].to_f32()), pairs.map(|pair| pair[1].to_f32())]
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Lanes, a: [[bf16; 2]; LANES], b: [[bf16; 2]; LANES]) -> Lanes {
        std::array::from_fn(|lane| {
            let [a0, a1] = a[lane].map(Element::to_f32);
            let [b0, b1] = b[lane].map(Element::to_f32);
            a0.mul_add(b0, a1.mul_add(b1, sum[lane]))
        })
    }
}
