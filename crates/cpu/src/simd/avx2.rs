//! AVX2 with FMA and F16C: two 256-bit registers are a vector.

use std::arch::x86_64::*;

use half::{bf16, f16};
use mantissa_numerics::E4M3;

use super::{Kernel, Simd};
use crate::isa::Isa;

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine must have the features of [`Isa::Avx2`].
    pub(super) unsafe fn new_unchecked() -> Avx2 {
        Avx2(())
    }
}

/// Lanes 0 to 7 and 8 to 15.
type Pair = [__m256; 2];

#[target_feature(enable = "avx2,fma,f16c")]
fn run<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// The lower three levels of the tree of [`Simd::reduce_add`].
///
/// # Safety
/// The machine must have AVX.
#[inline(always)]
pub(super) unsafe fn sum8(a: __m256) -> f32 {
    // SAFETY: as the caller promises.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// The lower three levels of the tree of [`Simd::reduce_max`].
///
/// # Safety
/// The machine must have AVX.
#[inline(always)]
pub(super) unsafe fn max8(a: __m256) -> f32 {
    // SAFETY: as the caller promises.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

/// 2^n for integral n in -126..=127.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
unsafe fn power_of_two(n: __m256) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe {
        let field = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(field))
    }
}

/// Eight f32 rounded to bf16, each in the low half of its lane.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
unsafe fn round_bf16(value: __m256) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        let bits = _mm256_castps_si256(value);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

/// The low and the high bf16 of each pair, as f32.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
unsafe fn split(pairs: __m256i) -> [__m256; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(high)]
    }
}

// SAFETY of the intrinsics below: `self` proves the features; loads and stores go through references to arrays of
// exactly the bytes accessed, and are the unaligned kinds.
impl Simd for Avx2 {
    type F32 = Pair;
    type Bf16Pairs = [__m256i; 2];

    const ISA: Isa = Isa::Avx2;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves the features.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, source: &[f32; 16]) -> Pair {
        let pointer = source.as_ptr();
        // SAFETY: see the impl.
        unsafe { [_mm256_loadu_ps(pointer), _mm256_loadu_ps(pointer.add(8))] }
    }

    #[inline(always)]
    fn store(self, value: Pair, destination: &mut [f32; 16]) {
        let pointer = destination.as_mut_ptr();
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(pointer, value[0]);
            _mm256_storeu_ps(pointer.add(8), value[1]);
        }
    }

    #[inline(always)]
    fn load_f16(self, source: &[f16; 16]) -> Pair {
        let pointer = source.as_ptr();
        // SAFETY: see the impl.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(pointer.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(pointer.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    fn store_f16(self, value: Pair, destination: &mut [f16; 16]) {
        let pointer = destination.as_mut_ptr();
        // SAFETY: see the impl.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]);
            _mm_storeu_si128(pointer.cast(), low);
            _mm_storeu_si128(pointer.add(8).cast(), high);
        }
    }

    #[inline(always)]
    fn load_bf16(self, source: &[bf16; 16]) -> Pair {
        let pointer = source.as_ptr();
        // SAFETY: see the impl.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(pointer.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(pointer.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn store_bf16(self, value: Pair, destination: &mut [bf16; 16]) {
        // SAFETY: see the impl.
        unsafe {
            let packed = _mm256_packus_epi32(round_bf16(value[0]), round_bf16(value[1]));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(destination.as_mut_ptr().cast(), ordered);
        }
    }

    // An E4M3 code moved into the fields of f16 is the value divided by 2^8, subnormals included; NaN needs the
    // rest of the wider exponent.
    #[inline(always)]
    fn load_e4m3(self, source: &[E4M3; 16]) -> Pair {
        // SAFETY: see the impl.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(source.as_ptr().cast()));
            let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)));
            let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
            let exponent = _mm256_and_si256(nan, _mm256_set1_epi16(0x4000));
            let half = _mm256_or_si256(_mm256_or_si256(magnitude, sign), exponent);
            let (low, high) = (_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let scale = _mm256_set1_ps(256.0);
            [_mm256_mul_ps(_mm256_cvtph_ps(low), scale), _mm256_mul_ps(_mm256_cvtph_ps(high), scale)]
        }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sqrt(self, a: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn select_first(self, count: usize, first: Pair, rest: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe {
            let count = _mm256_set1_epi32(count.min(16) as i32);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let later = _mm256_add_epi32(lanes, _mm256_set1_epi32(8));
            let low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lanes));
            let high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, later));
            [_mm256_blendv_ps(rest[0], first[0], low), _mm256_blendv_ps(rest[1], first[1], high)]
        }
    }

    // In two factors, because 2^n alone may be beyond the range; the first product is exact.
    #[inline(always)]
    fn scale_exponent(self, a: Pair, n: Pair) -> Pair {
        // SAFETY: see the impl.
        unsafe {
            let scale = |a: __m256, n: __m256| {
                let half = _mm256_mul_ps(n, _mm256_set1_ps(0.5));
                let first = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(half);
                let second = _mm256_sub_ps(n, first);
                _mm256_mul_ps(_mm256_mul_ps(a, power_of_two(first)), power_of_two(second))
            };
            [scale(a[0], n[0]), scale(a[1], n[1])]
        }
    }

    #[inline(always)]
    fn reduce_add(self, a: Pair) -> f32 {
        // SAFETY: see the impl.
        unsafe { sum8(_mm256_add_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn reduce_max(self, a: Pair) -> f32 {
        // SAFETY: see the impl.
        unsafe { max8(_mm256_max_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn load_bf16_pairs(self, source: &[bf16; 32]) -> [__m256i; 2] {
        let pointer = source.as_ptr();
        // SAFETY: see the impl.
        unsafe { [_mm256_loadu_si256(pointer.cast()), _mm256_loadu_si256(pointer.add(16).cast())] }
    }

    #[inline(always)]
    fn splat_bf16_pair(self, pair: [bf16; 2]) -> [__m256i; 2] {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_epi32(bytemuck::cast(pair)); 2] }
    }

    #[inline(always)]
    fn split_bf16_pairs(self, pairs: [__m256i; 2]) -> [Pair; 2] {
        // SAFETY: see the impl.
        unsafe {
            let [low, high] = [split(pairs[0]), split(pairs[1])];
            [[low[0], high[0]], [low[1], high[1]]]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Pair, a: [__m256i; 2], b: [__m256i; 2]) -> Pair {
        // SAFETY: see the impl.
        unsafe {
            let dot = |sum: __m256, a: __m256i, b: __m256i| {
                let [a0, a1] = split(a);
                let [b0, b1] = split(b);
                _mm256_fmadd_ps(a0, b0, _mm256_fmadd_ps(a1, b1, sum))
            };
            [dot(sum[0], a[0], b[0]), dot(sum[1], a[1], b[1])]
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: a prefetch has no effect that a program can see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}
