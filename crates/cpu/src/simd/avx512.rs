//! AVX-512 with BF16: one 512-bit register is a vector.

use std::arch::x86_64::*;

use half::{bf16, f16};
use mantissa_numerics::E4M3;

use super::{Kernel, Simd};
use crate::isa::Isa;

/// Proof that the machine has AVX-512 F, BW, DQ, VL and BF16, and the AVX2 tier.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine must have the features of [`Isa::Avx512`].
    pub(super) unsafe fn new_unchecked() -> Avx512 {
        Avx512(())
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn run<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

// SAFETY of the intrinsics below: `self` proves the features; loads and stores go through references to arrays of
// exactly the bytes accessed, and are the unaligned kinds.
impl Simd for Avx512 {
    type F32 = __m512;
    type Bf16Pairs = __m512i;

    const ISA: Isa = Isa::Avx512;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves the features.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, source: &[f32; 16]) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_loadu_ps(source.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, destination: &mut [f32; 16]) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(destination.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn load_f16(self, source: &[f16; 16]) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store_f16(self, value: __m512, destination: &mut [f16; 16]) {
        // SAFETY: see the impl.
        unsafe {
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
            _mm256_storeu_si256(destination.as_mut_ptr().cast(), half);
        }
    }

    #[inline(always)]
    fn load_bf16(self, source: &[bf16; 16]) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    // In integers, because `vcvtneps2bf16` turns subnormals into zero.
    #[inline(always)]
    fn store_bf16(self, value: __m512, destination: &mut [bf16; 16]) {
        // SAFETY: see the impl.
        unsafe {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let kept = _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet));
            _mm256_storeu_si256(destination.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(kept));
        }
    }

    // An E4M3 code moved into the fields of f16 is the value divided by 2^8, subnormals included; NaN needs the
    // rest of the wider exponent.
    #[inline(always)]
    fn load_e4m3(self, source: &[E4M3; 16]) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(source.as_ptr().cast()));
            let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)));
            let nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x3f80));
            let fields = _mm256_or_si256(magnitude, sign);
            let half = _mm256_mask_add_epi16(fields, nan, fields, _mm256_set1_epi16(0x4000));
            _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_sqrt_ps(a) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn select_first(self, count: usize, first: __m512, rest: __m512) -> __m512 {
        let mask = if count < 16 { (1_u16 << count) - 1 } else { u16::MAX };
        // SAFETY: see the impl.
        unsafe { _mm512_mask_blend_ps(mask, rest, first) }
    }

    #[inline(always)]
    fn scale_exponent(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(a);
            super::avx2::sum8(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(a);
            super::avx2::max8(_mm256_max_ps(_mm512_castps512_ps256(a), high))
        }
    }

    #[inline(always)]
    fn load_bf16_pairs(self, source: &[bf16; 32]) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_loadu_si512(source.as_ptr().cast()) }
    }

    #[inline(always)]
    fn splat_bf16_pair(self, pair: [bf16; 2]) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_epi32(bytemuck::cast(pair)) }
    }

    #[inline(always)]
    fn split_bf16_pairs(self, pairs: __m512i) -> [__m512; 2] {
        // SAFETY: see the impl.
        unsafe {
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: see the impl; the transmutes are between 512-bit registers of any content.
        unsafe {
            let a = std::mem::transmute::<__m512i, __m512bh>(a);
            let b = std::mem::transmute::<__m512i, __m512bh>(b);
            _mm512_dpbf16_ps(sum, a, b)
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: a prefetch has no effect that a program can see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}
