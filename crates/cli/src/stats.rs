//! The line that `run` and `chat` print when an answer has ended.

use std::io::Write;

use mantissa::cpu::ceilings::{self, Effort};
use mantissa::cpu::{CpuBackend, CpuOptions};
use mantissa::ops::cost::RunShape;
use mantissa::{Completion, Generator, Options, Timings};

use crate::{memory, output};

/// Enough to be far beyond the caches, and quick.
const EFFORT: Effort = Effort { bytes: 256 << 20, samples: 5 };

/// Prints speed, first-token latency, peak memory and policy of what was generated, on one line of standard error.
pub fn print(generator: &Generator, completions: &[Completion], options: &Options) {
    // Before the measurement of the memory's bandwidth adds a buffer of its own.
    let peak = memory::peak();
    let mut parts = Vec::new();
    let sum =
        |tokens: fn(&Timings) -> usize| completions.iter().map(|done| tokens(&done.timings)).sum::<usize>();
    let longest = |seconds: fn(&Timings) -> f64| {
        completions.iter().map(|done| seconds(&done.timings)).fold(0.0, f64::max)
    };
    let prefill = longest(|timings| timings.prefill_seconds);
    if prefill > 0.0 {
        let tokens = sum(|timings| timings.prompt_tokens);
        parts.push(format!("prefill {tokens} tokens at {:.1} tokens/s", tokens as f64 / prefill));
    }
    let decode = longest(|timings| timings.decode_seconds);
    if decode > 0.0 {
        let tokens = sum(|timings| timings.generated_tokens.saturating_sub(1));
        let share = bandwidth_share(generator, completions, options).unwrap_or_default();
        parts.push(format!("decode {tokens} tokens at {:.1} tokens/s{share}", tokens as f64 / decode));
    }
    if prefill > 0.0 {
        parts.push(format!(
            "first token after {:.1} ms",
            longest(|timings| timings.first_token_seconds) * 1e3
        ));
    }
    if let Some(bytes) = peak {
        parts.push(format!("peak memory {}", indicatif::BinaryBytes(bytes)));
    }
    parts.push(format!("policy {}", generator.plan().policy));
    // Nothing depends on this line: where it cannot be written, the answer still stands.
    let _ = writeln!(output::stderr(), "{}", parts.join(", "));
}

/// Bytes that decoding had to move per second, as a share of what this machine streams from memory, measured now.
/// Nothing for several answers at once, which share the reading of the weights in ways that timings do not tell.
fn bandwidth_share(generator: &Generator, completions: &[Completion], options: &Options) -> Option<String> {
    let [done] = completions else { return None };
    let timings = &done.timings;
    let steps = 1..timings.generated_tokens;
    let bytes: u64 = steps
        .map(|step| generator.plan().cost(&RunShape::single(1, timings.prompt_tokens + step)).bytes())
        .sum();
    let backend = CpuBackend::new(CpuOptions { threads: options.threads, isa: options.cpu_isa }).ok()?;
    let ceiling = ceilings::read_bandwidth(backend.pool(), backend.tier(), EFFORT).ok()?.median;
    let reached = bytes as f64 / timings.decode_seconds;
    let share = 100.0 * reached / ceiling;
    Some(format!(" ({share:.0} % of the memory bandwidth of {:.1} GB/s)", ceiling / 1e9))
}
