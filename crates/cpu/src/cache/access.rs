//! Reading and writing the cache from within kernels.

use half::{bf16, f16};
use mantissa_numerics::{E4M3, Element, Format};

use super::{BLOCK, CacheLayout, PageHead};
use crate::disjoint::Disjoint;
use crate::isa::Tier;
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};

/// The cache as attention reads it.
#[derive(Clone, Copy)]
pub(crate) struct CacheView<'a, C> {
    pub(super) values: &'a [C],
    pub(super) scales: Scales<'a>,
    pub(super) layout: &'a CacheLayout,
}

/// Stored scales.
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    None,
    F16(&'a [f16]),
    F32(&'a [f32]),
}

/// Scales of sixteen positions.
pub(crate) enum BlockScales<V> {
    /// All one.
    One,
    /// One per lane.
    Lanes(V),
}

impl<'a, C: SimdElement> CacheView<'a, C> {
    pub(crate) fn layout(&self) -> &'a CacheLayout {
        self.layout
    }

    /// How many of all values are numbers.
    #[cfg(test)]
    pub(crate) fn written(&self) -> usize {
        self.values.iter().filter(|value| !value.to_f32().is_nan()).count()
    }

    /// Whether vectors have scales.
    pub(crate) fn is_scaled(&self) -> bool {
        !matches!(self.scales, Scales::None)
    }

    /// The keys of a block: `[head_dim]` vectors of sixteen positions.
    #[inline(always)]
    pub(crate) fn key_block(&self, at: PageHead, block: usize) -> &'a [[C; LANES]] {
        let start = self.layout.key_block(at, block);
        self.values[start..start + self.layout.head_dim * BLOCK].as_chunks().0
    }

    /// The values of one slot.
    #[inline(always)]
    pub(crate) fn value(&self, at: PageHead, slot: usize) -> &'a [C] {
        &self.values[self.layout.value(at, slot)..][..self.layout.head_dim]
    }

    /// Scales of the keys of a block.
    #[inline(always)]
    pub(crate) fn key_scales<S: Simd>(&self, simd: S, at: PageHead, block: usize) -> BlockScales<S::F32> {
        self.scales_from(simd, self.layout.key_scale(at, block * BLOCK))
    }

    /// Scales of the values of a block.
    #[inline(always)]
    pub(crate) fn value_scales<S: Simd>(&self, simd: S, at: PageHead, block: usize) -> BlockScales<S::F32> {
        self.scales_from(simd, self.layout.value_scale(at, block * BLOCK))
    }

    #[inline(always)]
    fn scales_from<S: Simd>(&self, simd: S, start: usize) -> BlockScales<S::F32> {
        match self.scales {
            Scales::None => BlockScales::One,
            Scales::F16(scales) => BlockScales::Lanes(f16::load_partial(simd, &scales[start..start + BLOCK])),
            Scales::F32(scales) => BlockScales::Lanes(f32::load_partial(simd, &scales[start..start + BLOCK])),
        }
    }
}

/// The cache as tasks write it.
pub(crate) struct CacheWriter<'a> {
    pub(super) values: ValueWriter<'a>,
    pub(super) scales: ScaleWriter<'a>,
    pub(super) layout: CacheLayout,
}

pub(super) enum ValueWriter<'a> {
    F32(Disjoint<'a, f32>),
    F16(Disjoint<'a, f16>),
    Bf16(Disjoint<'a, bf16>),
    E4M3(Disjoint<'a, E4M3>),
}

pub(super) enum ScaleWriter<'a> {
    None,
    F16(Disjoint<'a, f16>),
    F32(Disjoint<'a, f32>),
}

/// Where one token's vectors of one head go.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub at: PageHead,
    /// Position within the page.
    pub slot: usize,
}

impl CacheWriter<'_> {
    /// Rounds and writes one head's key of one position.
    ///
    /// # Safety
    /// No other thread writes the same layer, head and slot at the same time.
    pub(crate) unsafe fn write_key(&self, tier: Tier, to: Slot, vector: &[f32]) {
        let start = self.layout.key_block(to.at, to.slot / BLOCK) + to.slot % BLOCK;
        let scale = self.layout.key_scale(to.at, to.slot);
        // SAFETY: the positions are those of this slot alone, as the caller promises.
        unsafe { self.write(tier, Place { start, stride: BLOCK, scale }, vector) }
    }

    /// Rounds and writes one head's value of one position.
    ///
    /// # Safety
    /// As for [`CacheWriter::write_key`].
    pub(crate) unsafe fn write_value(&self, tier: Tier, to: Slot, vector: &[f32]) {
        let start = self.layout.value(to.at, to.slot);
        let scale = self.layout.value_scale(to.at, to.slot);
        // SAFETY: as above.
        unsafe { self.write(tier, Place { start, stride: 1, scale }, vector) }
    }

    /// # Safety
    /// The places are this thread's alone.
    unsafe fn write(&self, tier: Tier, place: Place, vector: &[f32]) {
        // SAFETY: handed on from the caller.
        let divisor = unsafe {
            match &self.scales {
                ScaleWriter::None => None,
                ScaleWriter::F16(scales) => Some(write_scale(tier, scales, place.scale, vector)),
                ScaleWriter::F32(scales) => Some(write_scale(tier, scales, place.scale, vector)),
            }
        };
        match &self.values {
            ValueWriter::F32(values) => dispatch(tier, Store { values, place, divisor, vector }),
            ValueWriter::F16(values) => dispatch(tier, Store { values, place, divisor, vector }),
            ValueWriter::Bf16(values) => dispatch(tier, Store { values, place, divisor, vector }),
            ValueWriter::E4M3(values) => dispatch(tier, Store { values, place, divisor, vector }),
        }
    }
}

/// Indices of a vector's values and of its scale.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    stride: usize,
    scale: usize,
}

/// Writes the scale of a vector, and returns what its values are divided by.
///
/// # Safety
/// The scale is this thread's alone.
unsafe fn write_scale<T: Element>(tier: Tier, scales: &Disjoint<'_, T>, index: usize, vector: &[f32]) -> f32 {
    let scale: T = scale_of(dispatch(tier, Largest(vector)));
    // SAFETY: as the caller promises.
    unsafe { scales.range(index..index + 1) }.fill(scale);
    match scale.to_f32() {
        // A vector of zeros, or of zeros and NaNs, is stored as it is.
        0.0 => 1.0,
        scale => scale,
    }
}

/// The scale that puts the largest magnitude at the end of E4M3: rounded, but to zero only from zero, and to
/// infinity only from infinity.
fn scale_of<T: Element>(largest: f32) -> T {
    let scale = T::from_f32(largest / Format::F8E4M3.max_finite() as f32);
    if scale.to_f32() == 0.0 && largest > 0.0 {
        return T::from_f32(T::FORMAT.min_subnormal() as f32);
    }
    if scale.to_f32().is_infinite() && largest.is_finite() {
        return T::from_f32(T::FORMAT.max_finite() as f32);
    }
    scale
}

/// The largest magnitude of a vector, NaNs aside.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut largest = simd.zero();
        for x in self.0.chunks(LANES) {
            let x = f32::load_partial(simd, x);
            // NaN is the first operand, which loses.
            largest = simd.max(simd.max(x, simd.sub(simd.zero(), x)), largest);
        }
        simd.reduce_max(largest)
    }
}

/// Rounds a vector, divided by `divisor` where there is one, to its place.
struct Store<'a, C> {
    values: &'a Disjoint<'a, C>,
    place: Place,
    divisor: Option<f32>,
    vector: &'a [f32],
}

impl<C: SimdElement> Kernel for Store<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Store { values, place, divisor, vector } = self;
        for (index, x) in vector.chunks(LANES).enumerate() {
            let mut rounded = [C::zeroed(); LANES];
            let mut value = f32::load_partial(simd, x);
            if let Some(divisor) = divisor {
                value = simd.div(value, simd.splat(divisor));
            }
            C::store(simd, value, &mut rounded);
            for (lane, &value) in rounded[..x.len()].iter().enumerate() {
                let at = place.start + (index * LANES + lane) * place.stride;
                // SAFETY: `CacheWriter::write` has its caller's promise that the places are this thread's alone.
                unsafe { values.range(at..at + 1) }.fill(value);
            }
        }
    }
}
