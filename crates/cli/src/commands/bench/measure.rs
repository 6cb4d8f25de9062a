//! The measurements under one policy.

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use mantissa::cpu::CpuBackend;
use mantissa::cpu::ceilings::{Ceilings, Effort, ReadProbe};
use mantissa::engine::sequence::EndOfText;
use mantissa::numerics::PrecisionPolicy;
use mantissa::numerics::contract::{Compute, Family};
use mantissa::ops::cost::RunShape;
use mantissa::ops::{MemoryUse, Plan, Step};
use mantissa::{Completion, GenerateOptions, Generator, Model, Options};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::stats::Spread;
use crate::context::Context;
use crate::{memory, model};

/// Ceilings are measured this often before a policy, and as often after it.
const EFFORT: Effort = Effort { bytes: 1 << 30, samples: 5 };
/// Tokens generated to warm up.
const WARM_UP: usize = 4;

/// What is measured, and with what.
pub struct Setup<'a> {
    pub model: &'a Model,
    /// Has the threads that ceilings are measured on, as many as the model runs on; nothing where a GPU computes.
    pub processor: Option<&'a CpuBackend>,
    pub options: Options,
    pub prompts: Vec<usize>,
    pub shortest: usize,
    pub generate: usize,
    pub repetitions: usize,
    pub bar: &'a ProgressBar,
}

/// What a policy reached.
pub struct Measured {
    /// Nothing where none are measured.
    pub ceilings: Option<Ceiling>,
    pub load_seconds: f64,
    pub load_bytes: u64,
    pub memory: MemoryUse,
    /// The most memory held from loading to the last prompt, where the system says; decoding allocates nothing.
    pub peak: Option<u64>,
    pub rows: Vec<Row>,
}

/// Ceilings before and after, taken together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Streaming reads, bytes per second.
    pub read: Spread,
    /// f32 fused multiply-adds, operations per second.
    pub f32_fma: Spread,
    /// Products of bf16 pairs, operations per second.
    pub bf16_pairs: Spread,
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// A prompt of so many tokens, up to the first new one.
    Prefill(usize),
    /// So many tokens, one at a time, after a prompt.
    Decode { tokens: usize, prompt: usize },
}

/// One line of the result.
pub struct Row {
    pub test: Test,
    /// The contract of the step with most operations.
    pub contract: String,
    /// Tokens per second.
    pub speed: Spread,
    /// Until the first new token, of a prompt.
    pub seconds: Spread,
    /// Bytes or operations per second, at the median.
    pub achieved: f64,
    /// Nothing where no ceilings are measured.
    pub bound: Option<Bound>,
}

/// The most that the machine could reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Bytes or operations per second.
    pub ceiling: f64,
    /// How much of the ceiling was reached; of decode the median of the repetitions, each with its own ceiling.
    pub share: f64,
}

impl Setup<'_> {
    /// Measures everything under a policy.
    pub fn measure(&self, policy: PrecisionPolicy, context: &Context) -> Result<Measured> {
        let say = |what: &str| self.bar.set_message(format!("{policy}: {what}"));
        say("ceilings of the machine");
        let before = self.ceilings()?;
        memory::reset_peak();
        say("loading");
        let options = Options { policy: Some(policy), ..self.options.clone() };
        let mut generator = model::prepare(self.model, &options, context)?;
        let (load_seconds, load_bytes) = (generator.report().seconds, generator.report().bytes_read);
        say("warming up");
        self.generate(&mut generator, self.shortest, WARM_UP)?;

        let mut timed = Vec::new();
        for &length in &self.prompts {
            say(&format!("prompt of {length} tokens"));
            let seconds =
                self.repeat(|| Ok(self.generate(&mut generator, length, 1)?.timings.prefill_seconds))?;
            timed.push((length, seconds));
        }
        let (memory, peak) = (generator.memory(), memory::peak());
        say("one token at a time");
        let decode = self.decode(&mut generator)?;

        say("ceilings of the machine");
        let ceilings = match (before, self.ceilings()?) {
            (Some(before), Some(after)) => {
                Some(Ceiling::of(&before, &after).context("no ceilings were measured")?)
            }
            _ => None,
        };
        let prefill = timed
            .into_iter()
            .map(|(length, seconds)| row(generator.plan(), length, seconds, ceilings.as_ref()));
        let rows = prefill.chain([decode]).collect();
        Ok(Measured { ceilings, load_seconds, load_bytes, memory, peak, rows })
    }

    /// Decodes, and reads memory before and after each repetition: bandwidth drifts on shared machines, so that each
    /// repetition is held against its own.
    fn decode(&self, generator: &mut Generator) -> Result<Row> {
        let (tokens, prompt) = (self.generate, self.shortest);
        let shapes: Vec<RunShape> = (1..=tokens).map(|step| RunShape::single(1, prompt + step)).collect();
        let bytes = bytes_read(generator.plan(), &shapes);
        let probe = match self.processor {
            Some(processor) => Some((ReadProbe::new(EFFORT.bytes)?, processor)),
            None => None,
        };
        let read = || probe.as_ref().map(|(probe, processor)| probe.pass(processor.pool(), processor.tier()));
        read();
        let mut before = read();
        let (mut seconds, mut ceilings, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.repetitions {
            let taken = self.generate(generator, prompt, tokens + 1)?.timings.decode_seconds;
            let after = read();
            seconds.push(taken);
            if let (Some(before), Some(after)) = (before, after) {
                let ceiling = f64::midpoint(before, after);
                ceilings.push(ceiling);
                shares.push(bytes / taken / ceiling);
            }
            before = after;
        }
        let seconds = Spread::of(seconds).context("nothing was measured")?;
        let bound = match (Spread::of(ceilings), Spread::of(shares)) {
            (Some(ceiling), Some(share)) => Some(Bound { ceiling: ceiling.median, share: share.median }),
            _ => None,
        };
        Ok(Row {
            test: Test::Decode { tokens, prompt },
            contract: heaviest_contract(generator.plan(), &shapes[0]),
            speed: seconds.rate(tokens as f64),
            seconds,
            achieved: bytes / seconds.median,
            bound,
        })
    }

    fn ceilings(&self) -> Result<Option<Ceilings>> {
        let measured =
            self.processor.map(|processor| Ceilings::measure(processor.pool(), processor.tier(), EFFORT));
        Ok(measured.transpose()?)
    }

    fn repeat(&self, mut seconds: impl FnMut() -> Result<f64>) -> Result<Spread> {
        let measured = (0..self.repetitions).map(|_| seconds()).collect::<Result<_>>()?;
        Spread::of(measured).context("nothing was measured")
    }

    /// Generates tokens after a prompt of random ones; 0 is none of them, which often stands for padding.
    fn generate(&self, generator: &mut Generator, prompt: usize, tokens: usize) -> Result<Completion> {
        let vocabulary = u32::try_from(self.model.config().vocab_size)?;
        let mut random = ChaCha8Rng::seed_from_u64(prompt as u64);
        let ids: Vec<u32> = (0..prompt).map(|_| random.random_range(1..vocabulary.max(2))).collect();
        let options = GenerateOptions {
            max_tokens: tokens,
            end_of_text: EndOfText::Ignore,
            ..GenerateOptions::default().greedy()
        };
        Ok(generator.generate(ids, &options, |_| ())?)
    }
}

impl Ceiling {
    fn of(before: &Ceilings, after: &Ceilings) -> Option<Ceiling> {
        let together = |one: &mantissa::cpu::ceilings::Measured,
                        other: &mantissa::cpu::ceilings::Measured| {
            Some(Spread {
                median: f64::midpoint(one.median, other.median),
                min: one.worst.min(other.worst),
                max: one.best.max(other.best),
            })
            .filter(|spread| spread.median > 0.0)
        };
        Some(Ceiling {
            read: together(&before.read, &after.read)?,
            f32_fma: together(&before.f32_fma, &after.f32_fma)?,
            bf16_pairs: together(&before.bf16_pairs, &after.bf16_pairs)?,
        })
    }

    /// Operations per second at which a contract's products could be formed.
    fn multiply(&self, compute: Compute) -> f64 {
        match compute {
            Compute::Bf16Pairs => self.bf16_pairs.median,
            Compute::F32Fma | Compute::MatrixUnits { .. } | Compute::F64 | Compute::None => {
                self.f32_fma.median
            }
        }
    }
}

fn row(plan: &Plan, length: usize, seconds: Spread, ceilings: Option<&Ceiling>) -> Row {
    let shape = RunShape::single(length, length);
    let (operations, ideal_seconds) = products(plan, &shape, ceilings);
    let bound =
        ideal_seconds.map(|ideal| Bound { ceiling: operations / ideal, share: ideal / seconds.median });
    Row {
        test: Test::Prefill(length),
        contract: heaviest_contract(plan, &shape),
        speed: seconds.rate(length as f64),
        seconds,
        achieved: operations / seconds.median,
        bound,
    }
}

/// The contract of the step with most operations.
fn heaviest_contract(plan: &Plan, shape: &RunShape) -> String {
    let heaviest = plan.steps.iter().max_by_key(|step| plan.step_cost(step, shape).operations);
    heaviest.map(|step| step.contract.to_string()).unwrap_or_default()
}

/// Operations of linear layers and attention, and the seconds that they take at the peak rate of each one's contract.
/// Splitting a prompt into chunks changes neither.
fn products(plan: &Plan, shape: &RunShape, ceilings: Option<&Ceiling>) -> (f64, Option<f64>) {
    let multiplies = |step: &&Step| match step.op.family() {
        Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits | Family::Attention => {
            true
        }
        Family::Embedding
        | Family::RmsNorm
        | Family::Rope
        | Family::Softmax
        | Family::Sdpa
        | Family::Residual => false,
    };
    let (mut operations, mut seconds) = (0.0, 0.0);
    for step in plan.steps.iter().filter(multiplies) {
        let of_step = plan.step_cost(step, shape).operations as f64;
        operations += of_step;
        seconds += ceilings.map_or(0.0, |ceilings| of_step / ceilings.multiply(step.contract.compute));
    }
    (operations, ceilings.map(|_| seconds))
}

/// Bytes of weights and cache that must be read or written.
fn bytes_read(plan: &Plan, shapes: &[RunShape]) -> f64 {
    let bytes = |shape| {
        let cost = plan.cost(shape);
        cost.weights + cost.cache_read + cost.cache_written
    };
    shapes.iter().map(bytes).sum::<u64>() as f64
}
