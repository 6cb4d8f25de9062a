//! The paged KV cache on the device: layout, and the aliases of the kernels that touch it (`kernels/cache.cuh`).
//!
//! Values are `[layer][page][head][keys, values][slot][stride]`, scales the same without the last dimension.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::batch::Limits;
use mantissa_ops::op::Mask;
use mantissa_ops::program::CacheSpec;

use crate::kernel::Alias;

/// Tokens of the smallest page: positions that kernels take to lie in one page.
pub const MIN_PAGE_SIZE: usize = 16;

/// Where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    spec: CacheSpec,
    format: CacheFormat,
    pages: usize,
    page_size: usize,
}

/// One layer of the cache, as kernels see it: mirrors `CacheLayer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct CacheLayer {
    pub values: u64,
    pub scales: u64,
    pub heads: u32,
    pub page_shift: u32,
    pub stride: u32,
    pub unused: u32,
}

impl CacheLayout {
    /// The layout for a session's limits; `None` where the cache has more vectors in a layer than kernels can count
    /// (2^32), or more bytes than there are addresses.
    pub fn new(spec: CacheSpec, format: CacheFormat, limits: &Limits) -> Option<CacheLayout> {
        let layout = CacheLayout { spec, format, pages: limits.pages, page_size: limits.page_size };
        let vectors = [limits.pages, limits.page_size, spec.heads.key_value, 2]
            .into_iter()
            .try_fold(1_usize, usize::checked_mul)?;
        u32::try_from(vectors).ok()?;
        let vector_bytes = layout.stride().checked_mul(format.format.bytes())?;
        vectors.checked_mul(vector_bytes)?.checked_mul(spec.layers)?;
        Some(layout)
    }

    /// Values from one vector to the next: the head's, padded to 16 bytes.
    pub fn stride(&self) -> usize {
        let bytes = self.format.format.bytes();
        (self.spec.heads.dim * bytes).next_multiple_of(16) / bytes
    }

    /// Key and value vectors of a layer.
    pub fn layer_vectors(&self) -> usize {
        self.pages * self.page_vectors()
    }

    fn page_vectors(&self) -> usize {
        2 * self.spec.heads.key_value * self.page_size
    }

    /// Bytes of values of one page in one layer; pages of a layer lie one after another, layers too.
    pub fn page_value_bytes(&self) -> usize {
        self.page_vectors() * self.stride() * self.format.format.bytes()
    }

    /// Bytes of scales of one page in one layer; zero where the format has none.
    pub fn page_scale_bytes(&self) -> usize {
        self.page_vectors() * self.format.scales.map_or(0, Format::bytes)
    }

    /// Bytes of all values.
    pub fn value_bytes(&self) -> usize {
        self.spec.layers * self.pages * self.page_value_bytes()
    }

    /// Bytes of all scales.
    pub fn scale_bytes(&self) -> usize {
        self.spec.layers * self.pages * self.page_scale_bytes()
    }

    /// Layers, pages and tokens per page.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.spec.layers, self.pages, self.page_size)
    }

    /// A layer of the cache whose buffers start at these addresses.
    pub fn layer(&self, values: u64, scales: u64, layer: usize) -> CacheLayer {
        CacheLayer {
            values: values + (layer * self.pages * self.page_value_bytes()) as u64,
            scales: scales + (layer * self.pages * self.page_scale_bytes()) as u64,
            heads: self.spec.heads.key_value as u32,
            page_shift: self.page_size.trailing_zeros(),
            stride: self.stride() as u32,
            unused: 0,
        }
    }
}

/// The aliases of `cache.cuh`.
pub fn aliases(activations: Format, cache: CacheFormat) -> Vec<Alias> {
    vec![
        Alias::format("A", activations),
        Alias::format("C", cache.format),
        Alias::format("S", cache.scales.unwrap_or(Format::F32)),
        Alias::count("SCALED", u32::from(cache.scales.is_some())),
    ]
}

/// Positions that a query sees, its own included: the largest u32 where all before it are.
pub fn window(mask: Mask) -> u32 {
    match mask {
        Mask::Causal => u32::MAX,
        Mask::SlidingWindow { window } => u32::try_from(window).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use mantissa_ops::op::Heads;

    use super::*;

    #[test]
    fn vectors_are_padded_and_pages_add_up() {
        let heads = Heads { query: 4, key_value: 2, dim: 24 };
        let limits = Limits { rows: 1, outputs: 1, sequences: 1, pages: 5, page_size: 32, context: 32 };
        let format = CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) };
        let layout = CacheLayout::new(CacheSpec { layers: 3, heads }, format, &limits).expect("small");
        assert_eq!(layout.stride(), 32);
        assert_eq!(layout.page_value_bytes(), 2 * 2 * 32 * 32);
        assert_eq!(layout.value_bytes(), 3 * 5 * layout.page_value_bytes());
        assert_eq!(layout.scale_bytes(), 3 * 5 * 2 * 2 * 32 * 2);
        let layer = layout.layer(1 << 20, 1 << 30, 2);
        assert_eq!(layer.values - (1 << 20), 2 * 5 * layout.page_value_bytes() as u64);
        assert_eq!(layer.scales - (1 << 30), 2 * 5 * layout.page_scale_bytes() as u64);
        assert_eq!((layer.page_shift, layer.stride), (5, 32));
        let plain = CacheLayout { format: CacheFormat::plain(Format::Bf16), ..layout };
        assert_eq!((plain.stride(), plain.scale_bytes()), (24, 0));
    }

    #[test]
    fn caches_beyond_counting_are_refused() {
        let heads = Heads { query: 8, key_value: 8, dim: 64 };
        let limits = Limits { rows: 1, outputs: 1, sequences: 1, pages: 1 << 24, page_size: 16, context: 1 };
        let spec = CacheSpec { layers: 1, heads };
        assert_eq!(CacheLayout::new(spec, CacheFormat::plain(Format::F16), &limits), None);
    }
}
