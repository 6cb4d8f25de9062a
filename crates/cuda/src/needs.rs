//! What a plan needs of the device's memory, said beforehand, and what it took.

use mantissa_ops::backend::{MemoryUse, PrepareError};
use mantissa_ops::{Limits, Plan};

use crate::batch::batch_bytes;
use crate::cache::layout;
use crate::device::Device;
use crate::scratch::ScratchSizes;
use crate::tables::table_bytes;
use crate::values::value_bytes;
use crate::weights::weight_bytes;

/// A sum of sizes, of which those beyond all memory stay beyond it.
pub(crate) fn saturating_sum(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// What a plan needs of the device's memory.
pub(crate) struct Needs {
    pub memory: MemoryUse,
    /// Bytes of the cache for one token.
    per_token: u64,
}

impl Needs {
    pub fn of(
        plan: &Plan,
        limits: &Limits,
        sizes: &ScratchSizes,
        kinds: usize,
    ) -> Result<Needs, PrepareError> {
        let mut memory = MemoryUse { weights: weight_bytes(plan), cache: 0, scratch: 0 };
        if let Some(spec) = plan.program.cache {
            let layout = layout(spec, plan.cache_format(), limits)?;
            memory.cache = (layout.value_bytes() as u64).saturating_add(layout.scale_bytes() as u64);
        }
        let tables = plan.program.rope.as_ref().map_or(0, |spec| table_bytes(spec, limits.context));
        memory.scratch =
            saturating_sum([value_bytes(plan, limits), sizes.total(), tables, batch_bytes(limits, kinds)]);
        let tokens = limits.pages.saturating_mul(limits.page_size).max(1) as u64;
        Ok(Needs { memory, per_token: memory.cache.div_ceil(tokens) })
    }

    /// Refuses before anything is loaded what cannot fit, and says what would.
    pub fn check(&self, free: u64) -> Result<(), PrepareError> {
        let MemoryUse { weights, cache, scratch } = self.memory;
        let needed = saturating_sum([weights, cache, scratch]);
        if needed <= free {
            return Ok(());
        }
        let room = free.saturating_sub(weights.saturating_add(scratch));
        let fits = match room.checked_div(self.per_token) {
            Some(tokens) if tokens > 0 => format!("a cache of up to {tokens} tokens would fit"),
            _ if weights > free => "narrower weights or another device would fit".to_owned(),
            _ => "smaller batches, a shorter context or narrower weights may fit".to_owned(),
        };
        Err(PrepareError::DeviceMemory { needed, parts: self.memory, free, fits })
    }
}

/// What a session has taken of the device's memory, by the driver's count of what is free.
///
/// The count is the whole device's: whoever else allocates meanwhile is counted too. It has no part in it that existed
/// before the session, the driver's context among it, and it has the code of kernels, graphs, and what the driver rounds
/// allocations up by. A session allocates nothing after it was prepared but graphs of shapes that it did not expect, in the
/// place of others, and frees nothing before it ends, so that its peak is the larger of what it had taken then and what it
/// has taken now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Free before.
    free: u64,
    prepared: u64,
}

impl Taken {
    /// Starts counting.
    pub fn before(device: &Device) -> Taken {
        Taken { free: device.free_memory(), prepared: 0 }
    }

    /// Notes what preparing took.
    pub fn prepared(self, device: &Device) -> Taken {
        Taken { prepared: self.now(device), ..self }
    }

    fn now(self, device: &Device) -> u64 {
        self.free.saturating_sub(device.free_memory())
    }

    /// The most so far.
    pub fn peak(self, device: &Device) -> u64 {
        self.prepared.max(self.now(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(weights: u64, cache: u64, scratch: u64) -> Needs {
        Needs { memory: MemoryUse { weights, cache, scratch }, per_token: 10 }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        assert_eq!(needs(500, 400, 100).check(1000), Ok(()));
        let text = |needs: Needs, free| needs.check(free).unwrap_err().to_string();
        assert_eq!(
            text(needs(500, 400, 100), 940),
            "out of device memory: the model needs 1000 bytes (weights 500, cache 400, values and scratch 100), and \
             940 are free; a cache of up to 34 tokens would fit"
        );
        assert!(text(needs(500, 400, 100), 300).ends_with("narrower weights or another device would fit"));
        assert!(text(needs(500, 400, 100), 605).contains("smaller batches"));
    }
}
