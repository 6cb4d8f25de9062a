//! Sixteen f32 lanes on every instruction set, with the same bits on each.
//!
//! Kernels are written once, generic over [`Simd`], as a [`Kernel`] whose `run` is `#[inline(always)]`.
//! [`dispatch`] calls it from a function compiled for the instruction set, so that the whole body is compiled for
//! it. Only this module knows instructions; everything else is written in these operations.
//!
//! Every operation is defined to the bit (IEEE 754, round to nearest even, subnormals kept), reductions over lanes
//! included, so a kernel gives the same bits on every tier. Two exceptions: the payload of a NaN that arithmetic
//! makes, and subnormal numbers in [`Simd::dot_bf16`].

mod element;
mod math;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

use half::{bf16, f16};
use mantissa_numerics::E4M3;

use crate::isa::{Isa, Tier};

pub use element::SimdElement;
pub use math::{exp, sigmoid, silu};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen f32 lanes. A value of the implementing type proves that the machine has the instructions.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32 lanes.
    type F32: Copy;
    /// Sixteen pairs of bf16 values.
    type Bf16Pairs: Copy;

    /// The instruction set.
    const ISA: Isa;

    /// Runs `kernel` in a function of its own, compiled for this instruction set: keeps the registers of a hot loop
    /// apart from those of its surroundings.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F32;

    /// All lanes zero.
    #[inline(always)]
    fn zero(self) -> Self::F32 {
        self.splat(0.0)
    }

    /// Sixteen values.
    fn load(self, source: &[f32; 16]) -> Self::F32;

    /// Sixteen values.
    fn store(self, value: Self::F32, destination: &mut [f32; 16]);

    /// Decodes exactly.
    fn load_f16(self, source: &[f16; 16]) -> Self::F32;

    /// Rounds to nearest even; NaN stays NaN, overflow becomes infinity.
    fn store_f16(self, value: Self::F32, destination: &mut [f16; 16]);

    /// Decodes exactly.
    fn load_bf16(self, source: &[bf16; 16]) -> Self::F32;

    /// Rounds to nearest even; NaN stays NaN, overflow becomes infinity, subnormals are kept.
    fn store_bf16(self, value: Self::F32, destination: &mut [bf16; 16]);

    /// Decodes exactly, NaN and subnormals included.
    fn load_e4m3(self, source: &[E4M3; 16]) -> Self::F32;

    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// `a / b`, correctly rounded.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// The square root, correctly rounded.
    fn sqrt(self, a: Self::F32) -> Self::F32;

    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    /// `a > b ? a : b`: the second operand where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// `a < b ? a : b`: the second operand where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// Lanes below `count` from `first`, the others from `rest`.
    fn select_first(self, count: usize, first: Self::F32, rest: Self::F32) -> Self::F32;

    /// `a * 2^n` with one rounding, for integral `n` in -252..=254 and `a` of magnitude 0.25 to 4.
    fn scale_exponent(self, a: Self::F32, n: Self::F32) -> Self::F32;

    /// The sum of the lanes as a tree: lanes `i` and `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn reduce_add(self, a: Self::F32) -> f32;

    /// The largest lane, as a tree of [`Simd::max`] like that of [`Simd::reduce_add`], the lower lane first.
    /// Without NaN this is the maximum.
    fn reduce_max(self, a: Self::F32) -> f32;

    /// Sixteen pairs: lane `i` holds values `2 i` and `2 i + 1`.
    fn load_bf16_pairs(self, source: &[bf16; 32]) -> Self::Bf16Pairs;

    /// The same pair in all lanes.
    fn splat_bf16_pair(self, pair: [bf16; 2]) -> Self::Bf16Pairs;

    /// The first and the second values of the pairs, decoded exactly.
    fn split_bf16_pairs(self, pairs: Self::Bf16Pairs) -> [Self::F32; 2];

    /// Adds both products of each pair to `sum`: `fma(a[0], b[0], fma(a[1], b[1], sum))`, the second product first,
    /// each step rounded to nearest even.
    ///
    /// That is what `vdpbf16ps` does, as measured on AMD Zen 4 and as Intel's manual describes it. It also takes
    /// subnormal operands (`sum` included) as zero and turns subnormal results, after either step, into zero; the
    /// other tiers keep them. No other number differs.
    fn dot_bf16(self, sum: Self::F32, a: Self::Bf16Pairs, b: Self::Bf16Pairs) -> Self::F32;

    /// Asks for the cache line at `address`, to be read soon. Any address is allowed.
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        let _ = address;
    }
}

/// A computation generic over the instruction set. `run` and everything hot that it calls must be
/// `#[inline(always)]`, or it is compiled without the instructions. Closures passed to functions of the standard
/// library (`array::map` and its like) are no exception: they may or may not be inlined.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// Computes.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` with the instructions of `tier`.
#[inline]
pub fn dispatch<K: Kernel>(tier: Tier, kernel: K) -> K::Output {
    match tier.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Tier` exists only for an instruction set that this machine has.
        Isa::Avx512 => unsafe { avx512::Avx512::new_unchecked() }.vectorize(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::Avx2::new_unchecked() }.vectorize(kernel),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon => unsafe { neon::Neon::new_unchecked() }.vectorize(kernel),
        // Of the other sets this target has no tier.
        _ => scalar::Scalar.vectorize(kernel),
    }
}
