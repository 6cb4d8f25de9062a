//! The paged KV cache.
//!
//! Attention reads one head's vectors of sixteen neighbouring positions at a time, so a page holds for each head its
//! keys as `[page_size / 16][head_dim][16]`, positions in the lanes of a vector, and then its values as
//! `[page_size][head_dim]`. Scales lie beside them: for each page and head those of the keys, then those of the
//! values. Layers come first, pages second, heads third.

mod access;

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::batch::{Batch, Limits};
use mantissa_ops::program::CacheSpec;

use crate::aligned::{AlignedBuffer, OutOfMemory};
use crate::disjoint::Disjoint;
use crate::operands::{OperandError, check_length};
use crate::simd::{LANES, SimdElement};

pub(crate) use access::{BlockScales, CacheView, CacheWriter, Slot};
use access::{ScaleWriter, Scales, ValueWriter};

/// Positions that lie in the lanes of a vector.
pub const BLOCK: usize = LANES;

/// A cache that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// A combination of formats without a kernel.
    #[error("a KV cache cannot be {0}; it can be f32, f16, bf16, f8e4m3+f16, f8e4m3+f32")]
    Format(CacheFormat),
    /// A page size that does not divide into blocks.
    #[error("a page of {0} tokens; it must be a power of two, at least {BLOCK}")]
    PageSize(usize),
    /// More bytes than there are addresses.
    #[error("a KV cache of {pages} pages of {page_size} tokens has no size in bytes on this machine")]
    Size {
        /// Pages.
        pages: usize,
        /// Tokens per page.
        page_size: usize,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// A page outside the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page {page} is outside the cache of {pages} pages")]
pub struct PageError {
    /// The page.
    pub page: u32,
    /// Pages of the cache.
    pub pages: usize,
}

/// Keys and values of all layers; see the [module](self) for the layout.
///
/// In builds with debug assertions memory starts as all ones, which is NaN in every format, so that a read of what
/// was never written shows.
#[derive(Debug)]
pub struct KvCache {
    values: AlignedBuffer,
    scales: AlignedBuffer,
    layout: CacheLayout,
    format: CacheFormat,
    /// For each page the last batch that wrote it.
    claims: Vec<u64>,
    batch: u64,
}

/// Where everything is, counted in values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheLayout {
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub pages: usize,
    pub page_size: usize,
}

/// One head's part of one page in one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageHead {
    pub layer: usize,
    pub page: u32,
    pub head: usize,
}

impl CacheLayout {
    fn index(&self, at: PageHead) -> usize {
        (at.layer * self.pages + at.page as usize) * self.heads + at.head
    }

    /// The first of the `head_dim * 16` keys of a block, in order `[head_dim][16]`.
    pub(crate) fn key_block(&self, at: PageHead, block: usize) -> usize {
        (self.index(at) * 2 * self.page_size + block * BLOCK) * self.head_dim
    }

    /// The first of the values of a slot, `head_dim` of them; later slots of the page follow.
    pub(crate) fn value(&self, at: PageHead, slot: usize) -> usize {
        ((self.index(at) * 2 + 1) * self.page_size + slot) * self.head_dim
    }

    /// The scale of a slot's keys; those of later slots follow.
    pub(crate) fn key_scale(&self, at: PageHead, slot: usize) -> usize {
        self.index(at) * 2 * self.page_size + slot
    }

    /// The scale of a slot's values; those of later slots follow.
    pub(crate) fn value_scale(&self, at: PageHead, slot: usize) -> usize {
        (self.index(at) * 2 + 1) * self.page_size + slot
    }
}

impl KvCache {
    /// A cache of `limits.pages` pages.
    ///
    /// # Errors
    /// [`CacheError`] for a format or page size without a kernel, or too little memory.
    pub fn new(spec: CacheSpec, format: CacheFormat, limits: &Limits) -> Result<KvCache, CacheError> {
        let Limits { pages, page_size, .. } = *limits;
        let known = match (format.format, format.scales) {
            (Format::F32 | Format::F16 | Format::Bf16, None) => true,
            (Format::F8E4M3, Some(scales)) => matches!(scales, Format::F32 | Format::F16),
            _ => false,
        };
        if !known {
            return Err(CacheError::Format(format));
        }
        if page_size < BLOCK || !page_size.is_power_of_two() {
            return Err(CacheError::PageSize(page_size));
        }
        let layout = CacheLayout {
            layers: spec.layers,
            heads: spec.heads.key_value,
            head_dim: spec.heads.dim,
            pages,
            page_size,
        };
        let vectors =
            [2, layout.layers, layout.heads, pages, page_size].into_iter().try_fold(1, usize::checked_mul);
        let bytes = |per_vector: usize| {
            let bytes = vectors.and_then(|vectors| vectors.checked_mul(per_vector));
            bytes.ok_or(CacheError::Size { pages, page_size })
        };
        let value_bytes = layout.head_dim.checked_mul(format.format.bytes());
        let value_bytes = value_bytes.ok_or(CacheError::Size { pages, page_size })?;
        let mut values = AlignedBuffer::zeroed(bytes(value_bytes)?)?;
        let mut scales = AlignedBuffer::zeroed(bytes(format.scales.map_or(0, Format::bytes))?)?;
        if cfg!(debug_assertions) {
            values.fill(0xff);
            scales.fill(0xff);
        }
        let mut claims = Vec::new();
        claims.try_reserve_exact(pages).map_err(|_| OutOfMemory { bytes: pages.saturating_mul(8) })?;
        claims.resize(pages, 0);
        Ok(KvCache { values, scales, layout, format, claims, batch: 0 })
    }

    /// Formats of values and scales.
    pub fn format(&self) -> CacheFormat {
        self.format
    }

    /// Pages.
    pub fn pages(&self) -> usize {
        self.layout.pages
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.layout.page_size
    }

    /// Bytes held, scales included.
    pub fn bytes(&self) -> usize {
        self.values.len() + self.scales.len()
    }

    pub(crate) fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    /// Demands that the sequences cover the batch's rows, and that their tables hold pages of this cache for all
    /// positions up to those of their rows.
    pub(crate) fn check_pages(&self, batch: &Batch<'_>) -> Result<(), OperandError> {
        let mut covered = 0;
        for sequence in batch.sequences {
            check_length("rows before a sequence", covered, sequence.rows.start)?;
            covered = sequence.rows.end.max(covered);
            let Some(&last) = batch.positions.get(..covered).and_then(<[u32]>::last) else { continue };
            let wanted = last as usize / self.layout.page_size + 1;
            let Some(table) = sequence.block_table.get(..wanted) else {
                return Err(OperandError::Length {
                    operand: "block table",
                    wanted,
                    got: sequence.block_table.len(),
                });
            };
            if let Some(&page) = table.iter().find(|&&page| page as usize >= self.layout.pages) {
                let limit = self.layout.pages.saturating_sub(1);
                return Err(OperandError::Limit { operand: "page", got: page as usize, limit });
            }
        }
        check_length("rows of the sequences", batch.rows(), covered)?;
        check_length("positions", batch.rows(), batch.positions.len())
    }

    /// Demands in addition that positions ascend one by one and that no page is written twice: by two sequences, or
    /// for two parts of one. Then rows can be written in parallel.
    pub(crate) fn claim_pages(&mut self, batch: &Batch<'_>) -> Result<(), OperandError> {
        self.check_pages(batch)?;
        self.batch += 1;
        for sequence in batch.sequences {
            let positions = &batch.positions[sequence.rows.clone()];
            let Some((&first, &last)) = positions.first().zip(positions.last()) else { continue };
            for (&position, expected) in positions.iter().zip(first..) {
                check_length("position after its predecessor", expected as usize, position as usize)?;
            }
            let pages = first as usize / self.layout.page_size..=last as usize / self.layout.page_size;
            for &page in &sequence.block_table[pages] {
                let claim = &mut self.claims[page as usize];
                if *claim == self.batch {
                    return Err(OperandError::SharedPage { page });
                }
                *claim = self.batch;
            }
        }
        Ok(())
    }

    /// Copies a page in all layers.
    ///
    /// # Errors
    /// [`PageError`] where either page lies outside.
    pub fn copy_page(&mut self, from: u32, to: u32) -> Result<(), PageError> {
        let pages = self.layout.pages;
        if let Some(&page) = [from, to].iter().find(|&&page| page as usize >= pages) {
            return Err(PageError { page, pages });
        }
        for buffer in [&mut self.values, &mut self.scales] {
            // The number of bytes is a multiple of pages and layers by construction.
            let page = buffer.len() / (self.layout.layers * pages).max(1);
            for layer in 0..self.layout.layers {
                let start = |index: u32| (layer * pages + index as usize) * page;
                buffer.copy_within(start(from)..start(from) + page, start(to));
            }
        }
        Ok(())
    }

    /// What attention reads; the caller has matched `C` with the format.
    pub(crate) fn view<C: SimdElement>(&self) -> CacheView<'_, C> {
        let scales = match self.format.scales {
            None => Scales::None,
            Some(Format::F16) => Scales::F16(bytemuck::cast_slice(&self.scales)),
            Some(_) => Scales::F32(bytemuck::cast_slice(&self.scales)),
        };
        CacheView { values: bytemuck::cast_slice(&self.values), scales, layout: &self.layout }
    }

    /// What tasks write, each its own positions.
    pub(crate) fn writer(&mut self) -> CacheWriter<'_> {
        let scales = match self.format.scales {
            None => ScaleWriter::None,
            Some(Format::F16) => ScaleWriter::F16(Disjoint::new(bytemuck::cast_slice_mut(&mut self.scales))),
            Some(_) => ScaleWriter::F32(Disjoint::new(bytemuck::cast_slice_mut(&mut self.scales))),
        };
        let bytes: &mut [u8] = &mut self.values;
        let values = match self.format.format {
            Format::F16 => ValueWriter::F16(Disjoint::new(bytemuck::cast_slice_mut(bytes))),
            Format::Bf16 => ValueWriter::Bf16(Disjoint::new(bytemuck::cast_slice_mut(bytes))),
            Format::F8E4M3 => ValueWriter::E4M3(Disjoint::new(bytemuck::cast_slice_mut(bytes))),
            _ => ValueWriter::F32(Disjoint::new(bytemuck::cast_slice_mut(bytes))),
        };
        CacheWriter { values, scales, layout: self.layout }
    }
}
