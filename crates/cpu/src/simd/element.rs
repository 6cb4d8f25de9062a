//! Formats that vectors load from and store to.

use half::{bf16, f16};
use mantissa_numerics::{E4M3, Element};

use super::{LANES, Simd};

/// A storage format with vector loads (exact) and stores (one rounding to nearest even).
pub trait SimdElement: Element {
    /// Decodes sixteen values.
    fn load<S: Simd>(simd: S, source: &[Self; 16]) -> S::F32;

    /// Rounds and stores sixteen values.
    fn store<S: Simd>(simd: S, value: S::F32, destination: &mut [Self; 16]);

    /// Decodes up to sixteen values; lanes beyond the slice are zero, values beyond the sixteenth are not read.
    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, source: &[Self]) -> S::F32 {
        if let Some(whole) = source.first_chunk() {
            return Self::load(simd, whole);
        }
        let mut padded = [Self::zeroed(); LANES];
        padded[..source.len()].copy_from_slice(source);
        Self::load(simd, &padded)
    }

    /// Rounds and stores as many lanes as the slice holds, at most sixteen.
    #[inline(always)]
    fn store_partial<S: Simd>(simd: S, value: S::F32, destination: &mut [Self]) {
        if let Some(whole) = destination.first_chunk_mut() {
            return Self::store(simd, value, whole);
        }
        let mut padded = [Self::zeroed(); LANES];
        Self::store(simd, value, &mut padded);
        let count = destination.len();
        destination.copy_from_slice(&padded[..count]);
    }
}

impl SimdElement for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, source: &[f32; 16]) -> S::F32 {
        simd.load(source)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, value: S::F32, destination: &mut [f32; 16]) {
        simd.store(value, destination);
    }
}

impl SimdElement for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, source: &[f16; 16]) -> S::F32 {
        simd.load_f16(source)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, value: S::F32, destination: &mut [f16; 16]) {
        simd.store_f16(value, destination);
    }
}

impl SimdElement for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, source: &[bf16; 16]) -> S::F32 {
        simd.load_bf16(source)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, value: S::F32, destination: &mut [bf16; 16]) {
        simd.store_bf16(value, destination);
    }
}

impl SimdElement for E4M3 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, source: &[E4M3; 16]) -> S::F32 {
        simd.load_e4m3(source)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, value: S::F32, destination: &mut [E4M3; 16]) {
        let mut lanes = [0.0; LANES];
        simd.store(value, &mut lanes);
        for (out, lane) in destination.iter_mut().zip(lanes) {
            *out = E4M3::from_f32(lane);
        }
    }
}
