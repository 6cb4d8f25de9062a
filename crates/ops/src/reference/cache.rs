//! The paged cache of the reference: what was written is what is read, rounded as the arithmetic says.

use mantissa_numerics::contract::CacheFormat;

use super::number::Number;
use crate::backend::PrepareError;
use crate::batch::Limits;
use crate::load::filled;
use crate::program::CacheSpec;

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Key,
    Value,
}

/// One head's vector of one token in one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub layer: usize,
    pub side: Side,
    pub page: u32,
    /// Token within the page.
    pub offset: usize,
    pub head: usize,
}

/// `[layer][key, value][page][token][head][dim]`, poisoned with NaN until written.
#[derive(Clone, Debug)]
pub(super) struct PagedCache<N> {
    spec: CacheSpec,
    format: CacheFormat,
    pages: usize,
    page_size: usize,
    numbers: Vec<N>,
}

impl<N: Number> PagedCache<N> {
    pub(super) fn new(
        spec: CacheSpec,
        format: CacheFormat,
        limits: &Limits,
    ) -> Result<PagedCache<N>, PrepareError> {
        let tokens = limits.pages.saturating_mul(limits.page_size);
        let length = tokens.saturating_mul(2 * spec.layers).saturating_mul(spec.heads.kv_width());
        let numbers = filled(N::exact(f64::NAN), length, "the KV cache")?;
        Ok(PagedCache { spec, format, pages: limits.pages, page_size: limits.page_size, numbers })
    }

    pub(super) fn bytes(&self) -> u64 {
        size_of_val(self.numbers.as_slice()) as u64
    }

    fn start(&self, slot: Slot) -> usize {
        let plane = 2 * slot.layer + usize::from(slot.side == Side::Value);
        let token = (plane * self.pages + slot.page as usize) * self.page_size + slot.offset;
        (token * self.spec.heads.key_value + slot.head) * self.spec.heads.dim
    }

    pub(super) fn read(&self, slot: Slot) -> &[N] {
        let start = self.start(slot);
        &self.numbers[start..start + self.spec.heads.dim]
    }

    pub(super) fn write(&mut self, slot: Slot, vector: &[N]) {
        let start = self.start(slot);
        let stored = &mut self.numbers[start..start + self.spec.heads.dim];
        stored.copy_from_slice(vector);
        N::through_cache(stored, self.format);
    }

    pub(super) fn copy_page(&mut self, from: u32, to: u32) {
        let page = self.page_size * self.spec.heads.kv_width();
        for plane in 0..2 * self.spec.layers {
            let start = |page_index: u32| (plane * self.pages + page_index as usize) * page;
            self.numbers.copy_within(start(from)..start(from) + page, start(to));
        }
    }
}
