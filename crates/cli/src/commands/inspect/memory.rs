//! What a policy takes of memory.

use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::program::cache_format;
use mantissa::ops::{MemoryUse, Program};
use serde_json::{Value, json};

/// Contexts that are shown, as far as the model goes.
const CONTEXTS: [usize; 4] = [512, 2048, 8192, 32_768];

/// The contexts that are shown for a model.
fn contexts(program: &Program) -> Vec<usize> {
    let shown: Vec<usize> = CONTEXTS.into_iter().filter(|&context| context <= program.max_context).collect();
    if shown.is_empty() { vec![program.max_context] } else { shown }
}

/// Bytes under one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All weights, those used twice counted once.
    pub weights: u64,
    /// Keys, values and scales of one token in all layers.
    pub per_token: u64,
    /// At each of the contexts.
    pub contexts: Vec<AtContext>,
}

/// Bytes at one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtContext {
    pub context: usize,
    pub cache: u64,
    /// Values and scratch, where the device was asked and supports the policy.
    pub scratch: Option<u64>,
    pub total: u64,
}

impl Memory {
    /// What a policy takes: by `predict`, at a context, where it knows, and else by the sizes of weights and cache alone.
    pub fn of(
        program: &Program,
        policy: &PrecisionPolicy,
        predict: impl Fn(usize) -> Option<MemoryUse>,
    ) -> Memory {
        let formula = program.parameters() as u64 * u64::from(policy.weights().bits()) / 8;
        let per_token = program.cache.map_or(0, |cache| cache.bytes_per_token(cache_format(policy)) as u64);
        let at = |context: usize| match predict(context) {
            Some(used) => (
                used.weights,
                AtContext { context, cache: used.cache, scratch: Some(used.scratch), total: used.total() },
            ),
            None => {
                let cache = per_token * context as u64;
                (formula, AtContext { context, cache, scratch: None, total: formula + cache })
            }
        };
        let (weights, contexts): (Vec<u64>, _) = contexts(program).into_iter().map(at).unzip();
        Memory { weights: weights.into_iter().max().unwrap_or(formula), per_token, contexts }
    }

    /// As JSON, with an entry for each of the contexts.
    pub fn json(&self) -> Value {
        let at = |at: &AtContext| json!({ "context": at.context, "cache": at.cache, "scratch": at.scratch, "total": at.total });
        let contexts: Vec<Value> = self.contexts.iter().map(at).collect();
        json!({ "weights": self.weights, "cache_per_token": self.per_token, "contexts": contexts })
    }
}

#[cfg(test)]
mod tests {
    use mantissa::numerics::Preset;
    use mantissa::ops::ProgramBuilder;
    use mantissa::ops::op::Heads;
    use mantissa::ops::program::CacheSpec;

    use super::*;

    #[test]
    fn the_scales_of_an_8_bit_cache_are_counted() {
        let mut builder = ProgramBuilder::new("test", 4096);
        builder.cache(CacheSpec { layers: 3, heads: Heads { query: 4, key_value: 2, dim: 64 } });
        builder.embedding("table", 10, 8);
        let program = builder.finish();
        let of = |preset: Preset| Memory::of(&program, &preset.policy(), |_| None);
        let sizes = |memory: Memory| (memory.weights, memory.per_token);
        assert_eq!(sizes(of(Preset::F32)), (320, 2 * 3 * 2 * 256));
        assert_eq!(sizes(of(Preset::MemoryEfficient)), (160, 2 * 3 * 2 * (64 + 2)));
        let at = |context: usize| {
            let cache = context as u64 * 2 * 3 * 2 * 128;
            AtContext { context, cache, scratch: None, total: 160 + cache }
        };
        assert_eq!(of(Preset::F16).contexts, [at(512), at(2048)]);
    }

    #[test]
    fn what_a_device_predicts_comes_before_the_formula() {
        let mut builder = ProgramBuilder::new("test", 600);
        builder.embedding("table", 10, 8);
        let program = builder.finish();
        let used = MemoryUse { weights: 1000, cache: 20, scratch: 3 };
        let memory = Memory::of(&program, &Preset::F32.policy(), |context| (context == 512).then_some(used));
        let expected = AtContext { context: 512, cache: 20, scratch: Some(3), total: 1023 };
        assert_eq!((memory.weights, memory.contexts), (1000, vec![expected]));
    }
}
