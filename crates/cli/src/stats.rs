//! The line that `run` and `chat` print when an answer has ended.

use std::io::Write;

use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::cost::RunShape;
use mantissa::{Completion, Generator, Options, Timings};

use mantissa_lab::memory;

use crate::output;

/// Bytes that the bandwidth is measured with: far beyond the caches, and quick.
const READ_BYTES: usize = 256 << 20;
/// How often it is measured.
const SAMPLES: usize = 5;

/// What was generated, in numbers.
pub struct Summary {
    prefill: Option<String>,
    decode: Option<Decode>,
    first_token: Option<String>,
    peak: Option<String>,
    policy: PrecisionPolicy,
}

/// The tokens after the first of each answer.
struct Decode {
    tokens: usize,
    seconds: f64,
    /// Bytes that they had to move; nothing for several answers at once, which share the reading of the weights in ways
    /// that timings do not tell.
    bytes: Option<u64>,
}

impl Summary {
    /// Takes everything from the generator that the line needs.
    pub fn new(generator: &Generator, completions: &[Completion]) -> Summary {
        let sum = |tokens: fn(&Timings) -> usize| {
            completions.iter().map(|done| tokens(&done.timings)).sum::<usize>()
        };
        let longest = |seconds: fn(&Timings) -> f64| {
            completions.iter().map(|done| seconds(&done.timings)).fold(0.0, f64::max)
        };
        let prefill = longest(|timings| timings.prefill_seconds);
        let seconds = longest(|timings| timings.decode_seconds);
        let prompt_tokens = sum(|timings| timings.prompt_tokens);
        let tokens = sum(|timings| timings.generated_tokens.saturating_sub(1));
        let rate = prompt_tokens as f64 / prefill;
        let latency = longest(|timings| timings.first_token_seconds) * 1e3;
        let ran = prefill > 0.0;
        Summary {
            prefill: ran.then(|| format!("prefill {prompt_tokens} tokens at {rate:.1} tokens/s")),
            decode: (seconds > 0.0).then(|| Decode { tokens, seconds, bytes: moved(generator, completions) }),
            first_token: ran.then(|| format!("first token after {latency:.1} ms")),
            peak: peak(generator),
            policy: generator.plan().policy,
        }
    }

    /// Prints speed, first-token latency, peak memory and policy on one line of standard error. Measures the memory's
    /// bandwidth on the way, with a buffer of its own: a generator that is no longer needed is best dropped before.
    pub fn print(&self, options: &Options) {
        let mut parts: Vec<String> = self.prefill.iter().cloned().collect();
        if let Some(decode) = &self.decode {
            let share = decode.bandwidth_share(options).unwrap_or_default();
            let rate = decode.tokens as f64 / decode.seconds;
            parts.push(format!("decode {} tokens at {rate:.1} tokens/s{share}", decode.tokens));
        }
        parts.extend(self.first_token.clone());
        parts.extend(self.peak.clone());
        parts.push(format!("policy {}", self.policy));
        // Nothing depends on this line: where it cannot be written, the answer still stands.
        let _ = writeln!(output::stderr(), "{}", parts.join(", "));
    }
}

/// The peak of the device's memory beside what was predicted, which is what the generator holds, or that of the process.
fn peak(generator: &Generator) -> Option<String> {
    let text = |bytes| indicatif::BinaryBytes(bytes).to_string();
    match generator.device_memory() {
        Some(peak) => {
            let predicted = text(generator.memory().total());
            Some(format!("peak memory of the device {} ({predicted} predicted)", text(peak)))
        }
        None => memory::peak().map(|bytes| format!("peak memory {}", text(bytes))),
    }
}

fn moved(generator: &Generator, completions: &[Completion]) -> Option<u64> {
    let [done] = completions else { return None };
    let context = |step| done.timings.prompt_tokens + step;
    let steps = 1..done.timings.generated_tokens;
    Some(steps.map(|step| generator.plan().cost(&RunShape::single(1, context(step))).bytes()).sum())
}

impl Decode {
    /// Bytes moved per second, as a share of what this device streams from memory, measured now.
    fn bandwidth_share(&self, options: &Options) -> Option<String> {
        let bytes = self.bytes?;
        let backend = options.backend().ok()?;
        let ceilings = backend.ceilings(READ_BYTES).ok()?;
        ceilings.read().ok()?;
        let mut samples = (0..SAMPLES).map(|_| ceilings.read().ok()).collect::<Option<Vec<f64>>>()?;
        samples.sort_by(f64::total_cmp);
        let ceiling = samples[SAMPLES / 2];
        let share = 100.0 * (bytes as f64 / self.seconds) / ceiling;
        Some(format!(" ({share:.0} % of the memory bandwidth of {:.1} GB/s)", ceiling / 1e9))
    }
}
