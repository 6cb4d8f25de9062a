//! Advanced SIMD on AArch64: four 128-bit registers are a vector.
//!
//! Conversions to and from f16 go through integers and the `half` crate, because the f16 vector types of
//! `std::arch` are not stable yet; `BFDOT` is not used, because it rounds differently (see [`Simd::dot_bf16`]).

use std::arch::aarch64::*;
use std::array::from_fn;

use half::{bf16, f16};
use mantissa_numerics::{E4M3, Element};

use super::{Kernel, LANES, Simd};
use crate::isa::Isa;

/// Proof that the machine has Advanced SIMD.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    /// # Safety
    /// The machine must have Advanced SIMD.
    pub(super) unsafe fn new_unchecked() -> Neon {
        Neon(())
    }
}

/// Four lanes each, in order.
type Quad = [float32x4_t; 4];

#[target_feature(enable = "neon")]
fn run<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// 2^n for integral n in -126..=127.
///
/// # Safety
/// The machine must have Advanced SIMD.
#[inline(always)]
unsafe fn power_of_two(n: float32x4_t) -> float32x4_t {
    // SAFETY: as the caller promises.
    unsafe {
        let field = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(field))
    }
}

/// Four f32 rounded to bf16.
///
/// # Safety
/// The machine must have Advanced SIMD.
#[inline(always)]
unsafe fn round_bf16(value: float32x4_t) -> uint16x4_t {
    // SAFETY: as the caller promises.
    unsafe {
        let bits = vreinterpretq_u32_f32(value);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
        let number = vceqq_f32(value, value);
        vshrn_n_u32::<16>(vbslq_u32(number, rounded, quiet))
    }
}

/// Four f16 codes decoded: the magnitude moved into the fields of f32 is the value divided by 2^112, subnormals
/// included; infinity and NaN need the rest of the wider exponent.
///
/// # Safety
/// The machine must have Advanced SIMD.
#[inline(always)]
unsafe fn decode_f16(codes: uint16x4_t) -> float32x4_t {
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    // SAFETY: as the caller promises.
    unsafe {
        let wide = vmovl_u16(codes);
        let sign = vshlq_n_u32::<16>(vandq_u32(wide, vdupq_n_u32(0x8000)));
        let magnitude = vandq_u32(wide, vdupq_n_u32(0x7fff));
        let fields = vreinterpretq_f32_u32(vshlq_n_u32::<13>(magnitude));
        let scaled = vreinterpretq_u32_f32(vmulq_f32(fields, vdupq_n_f32(REBIAS)));
        let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00));
        let exponent = vandq_u32(special, vdupq_n_u32(0x7f80_0000));
        vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(scaled, exponent), sign))
    }
}

/// The low and the high bf16 of each pair, as f32.
///
/// # Safety
/// The machine must have Advanced SIMD.
#[inline(always)]
unsafe fn split(pairs: uint32x4_t) -> [float32x4_t; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let high = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
        [vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(high)]
    }
}

// SAFETY of the intrinsics below: `self` proves the features; loads and stores go through references to arrays of
// exactly the bytes accessed.
impl Simd for Neon {
    type F32 = Quad;
    type Bf16Pairs = [uint32x4_t; 4];

    const ISA: Isa = Isa::Neon;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves the features.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Quad {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load(self, source: &[f32; 16]) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vld1q_f32(source.as_ptr().add(4 * part)) })
    }

    #[inline(always)]
    fn store(self, value: Quad, destination: &mut [f32; 16]) {
        for (part, lanes) in value.into_iter().enumerate() {
            // SAFETY: see the impl.
            unsafe { vst1q_f32(destination.as_mut_ptr().add(4 * part), lanes) }
        }
    }

    #[inline(always)]
    fn load_f16(self, source: &[f16; 16]) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { decode_f16(vld1_u16(source.as_ptr().add(4 * part).cast())) })
    }

    #[inline(always)]
    fn store_f16(self, value: Quad, destination: &mut [f16; 16]) {
        let mut lanes = [0.0; LANES];
        self.store(value, &mut lanes);
        f16::encode_into(&lanes, destination);
    }

    #[inline(always)]
    fn load_bf16(self, source: &[bf16; 16]) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe {
            let codes = vld1_u16(source.as_ptr().add(4 * part).cast());
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(codes)))
        })
    }

    #[inline(always)]
    fn store_bf16(self, value: Quad, destination: &mut [bf16; 16]) {
        for (part, lanes) in value.into_iter().enumerate() {
            // SAFETY: see the impl.
            unsafe { vst1_u16(destination.as_mut_ptr().add(4 * part).cast(), round_bf16(lanes)) }
        }
    }

    // An E4M3 code moved into the fields of f16 is the value divided by 2^8, subnormals included; NaN needs the
    // rest of the wider exponent.
    #[inline(always)]
    fn load_e4m3(self, source: &[E4M3; 16]) -> Quad {
        // SAFETY: see the impl.
        unsafe {
            let codes = vld1q_u8(source.as_ptr().cast());
            let halves = [vmovl_u8(vget_low_u8(codes)), vmovl_u8(vget_high_u8(codes))];
            let decoded = halves.map(|codes| {
                let magnitude = vshlq_n_u16::<7>(vandq_u16(codes, vdupq_n_u16(0x7f)));
                let sign = vshlq_n_u16::<8>(vandq_u16(codes, vdupq_n_u16(0x80)));
                let nan = vceqq_u16(magnitude, vdupq_n_u16(0x3f80));
                let exponent = vandq_u16(nan, vdupq_n_u16(0x4000));
                let half = vorrq_u16(vorrq_u16(magnitude, sign), exponent);
                [decode_f16(vget_low_u16(half)), decode_f16(vget_high_u16(half))]
                    .map(|lanes| vmulq_f32(lanes, vdupq_n_f32(256.0)))
            });
            [decoded[0][0], decoded[0][1], decoded[1][0], decoded[1][1]]
        }
    }

    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vaddq_f32(a[part], b[part]) })
    }

    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vsubq_f32(a[part], b[part]) })
    }

    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vmulq_f32(a[part], b[part]) })
    }

    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vdivq_f32(a[part], b[part]) })
    }

    #[inline(always)]
    fn sqrt(self, a: Quad) -> Quad {
        // SAFETY: see the impl.
        a.map(|lanes| unsafe { vsqrtq_f32(lanes) })
    }

    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vfmaq_f32(c[part], a[part], b[part]) })
    }

    // A comparison and a selection, because `FMAX` treats NaN in its own way.
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vbslq_f32(vcgtq_f32(a[part], b[part]), a[part], b[part]) })
    }

    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe { vbslq_f32(vcltq_f32(a[part], b[part]), a[part], b[part]) })
    }

    #[inline(always)]
    fn select_first(self, count: usize, first: Quad, rest: Quad) -> Quad {
        const INDICES: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let count = count.min(LANES) as u32;
        // SAFETY: see the impl.
        from_fn(|part| unsafe {
            let lanes = vld1q_u32(INDICES.as_ptr().add(4 * part));
            vbslq_f32(vcltq_u32(lanes, vdupq_n_u32(count)), first[part], rest[part])
        })
    }

    // In two factors, because 2^n alone may be beyond the range; the first product is exact.
    #[inline(always)]
    fn scale_exponent(self, a: Quad, n: Quad) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe {
            let first = vrndnq_f32(vmulq_n_f32(n[part], 0.5));
            let second = vsubq_f32(n[part], first);
            vmulq_f32(vmulq_f32(a[part], power_of_two(first)), power_of_two(second))
        })
    }

    #[inline(always)]
    fn reduce_add(self, a: Quad) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: Quad) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                let other = lanes[lane + width];
                lanes[lane] = if lanes[lane] > other { lanes[lane] } else { other };
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn load_bf16_pairs(self, source: &[bf16; 32]) -> [uint32x4_t; 4] {
        // SAFETY: see the impl; through u16, whose alignment is that of bf16.
        from_fn(|part| unsafe { vreinterpretq_u32_u16(vld1q_u16(source.as_ptr().add(8 * part).cast())) })
    }

    #[inline(always)]
    fn splat_bf16_pair(self, pair: [bf16; 2]) -> [uint32x4_t; 4] {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_u32(bytemuck::cast(pair)); 4] }
    }

    #[inline(always)]
    fn split_bf16_pairs(self, pairs: [uint32x4_t; 4]) -> [Quad; 2] {
        // SAFETY: see the impl.
        let parts = pairs.map(|pairs| unsafe { split(pairs) });
        [parts.map(|[first, _]| first), parts.map(|[_, second]| second)]
    }

    #[inline(always)]
    fn dot_bf16(self, sum: Quad, a: [uint32x4_t; 4], b: [uint32x4_t; 4]) -> Quad {
        // SAFETY: see the impl.
        from_fn(|part| unsafe {
            let [a0, a1] = split(a[part]);
            let [b0, b1] = split(b[part]);
            vfmaq_f32(vfmaq_f32(sum[part], a1, b1), a0, b0)
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: a prefetch has no effect that a program can see, at any address.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
        }
    }
}
