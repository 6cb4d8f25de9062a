//! What a policy takes of memory.

use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::Program;
use mantissa::ops::program::cache_format;
use serde_json::{Value, json};

/// Contexts that are shown, as far as the model goes.
const CONTEXTS: [usize; 4] = [512, 2048, 8192, 32_768];

/// The contexts that are shown for a model.
pub fn contexts(program: &Program) -> Vec<usize> {
    let shown: Vec<usize> = CONTEXTS.into_iter().filter(|&context| context <= program.max_context).collect();
    if shown.is_empty() { vec![program.max_context] } else { shown }
}

/// Bytes under one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All weights, those used twice counted once.
    pub weights: u64,
    /// Keys, values and scales of one token in all layers.
    pub per_token: u64,
}

impl Memory {
    /// What a policy takes.
    pub fn of(program: &Program, policy: &PrecisionPolicy) -> Memory {
        let weights = program.parameters() as u64 * u64::from(policy.weights().bits()) / 8;
        let per_token = program.cache.map_or(0, |cache| cache.bytes_per_token(cache_format(policy)) as u64);
        Memory { weights, per_token }
    }

    /// The cache at a context.
    pub fn cache(&self, context: usize) -> u64 {
        self.per_token * context as u64
    }

    /// Weights and cache at a context.
    pub fn total(&self, context: usize) -> u64 {
        self.weights + self.cache(context)
    }

    /// As JSON, with an entry for each of the contexts.
    pub fn json(&self, contexts: &[usize]) -> Value {
        let at = |&context: &usize| json!({ "context": context, "cache": self.cache(context), "total": self.total(context) });
        let contexts: Vec<Value> = contexts.iter().map(at).collect();
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
        let of = |preset: Preset| Memory::of(&program, &preset.policy());
        assert_eq!(of(Preset::F32), Memory { weights: 320, per_token: 2 * 3 * 2 * 256 });
        assert_eq!(of(Preset::MemoryEfficient), Memory { weights: 160, per_token: 2 * 3 * 2 * (64 + 2) });
        assert_eq!(contexts(&program), [512, 2048]);
        assert_eq!(of(Preset::F16).total(512), 160 + 512 * 2 * 3 * 2 * 128);
    }
}
