//! Speed and memory at several contexts.

use std::collections::BTreeMap;

use mantissa::Options;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::cost::RunShape;
use mantissa::ops::{MemoryUse, Plan};
use serde::Serialize;

use super::{Ceiling, Found, Study};
use crate::LabError;
use crate::bench::generation::{Measured, Peak, Setup, Test};
use crate::decode::Decode;
use crate::progress::Progress;
use crate::stats::Spread;

/// A policy at one context.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtContext {
    /// Tokens.
    pub context: usize,
    /// What the model holds with a cache of so many tokens.
    pub memory: Found<Memory>,
    /// What one further token has to move.
    pub bytes: Found<Bytes>,
    /// How fast it is.
    pub speed: Found<Speed>,
}

/// Bytes held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, as they are packed.
    pub weights: u64,
    /// Keys, values and their scales.
    pub cache: u64,
    /// Values between the steps, tables and scratch; nothing where it was not run and the backend does not say
    /// beforehand.
    pub scratch: Option<u64>,
    /// All of them.
    pub total: u64,
}

/// Bytes that one token moves, each counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Weights read.
    pub weights: u64,
    /// Cache read and written.
    pub cache: u64,
    /// Weights and cache.
    pub total: u64,
}

/// How fast a policy is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// How often it was timed.
    pub rounds: usize,
    /// Seconds from the request to the first token.
    pub first_token: Spread,
    /// Tokens of the prompt in a second.
    pub prefill: Spread,
    /// Of the products' peak rates, what prefill reached.
    pub prefill_share: f64,
    /// Tokens in a second, one at a time.
    pub decode: Spread,
    /// Of the nearer ceiling, what decode reached.
    pub decode_share: f64,
    /// Bytes held beside weights and cache.
    pub scratch: u64,
    /// The most bytes that the device held, as its driver counts them.
    pub device_peak: Option<u64>,
    /// The most bytes that the process held.
    pub process_peak: Option<u64>,
}

impl Speed {
    /// Seconds for a prompt of its length and so many tokens behind it.
    pub fn seconds(&self, generated: usize) -> f64 {
        self.first_token.median + (generated as f64 - 1.0) / self.decode.median
    }
}

/// Ceilings, as they come up.
#[derive(Default)]
pub(super) struct Ceilings {
    read: Vec<Spread>,
    multiply: BTreeMap<String, Vec<Spread>>,
}

impl Ceilings {
    fn add(&mut self, measured: &Measured) {
        self.read.push(measured.ceiling.read);
        for (unit, rate) in &measured.ceiling.multiply {
            self.multiply.entry(unit.to_string()).or_default().push(*rate);
        }
    }

    /// The median of the medians, and the ends of all.
    pub fn finish(self) -> Vec<Ceiling> {
        let join = |name: &str, unit, spreads: &[Spread]| {
            let median = Spread::of(spreads.iter().map(|spread| spread.median).collect())?.median;
            let min = spreads.iter().map(|spread| spread.min).fold(f64::INFINITY, f64::min);
            let max = spreads.iter().map(|spread| spread.max).fold(0.0, f64::max);
            Some(Ceiling { name: name.to_owned(), unit, rate: Spread { median, min, max } })
        };
        let read = join("streaming reads", "B/s", &self.read);
        let multiply = self.multiply.iter().filter_map(|(unit, spreads)| join(unit, "op/s", spreads));
        read.into_iter().chain(multiply).collect()
    }
}

/// How a prompt's time at one context is foreseen from that at a shorter one.
struct Pace {
    /// Operations in a second.
    rate: f64,
    /// How often a whole prompt is run before it counts: where the device has memory of its own, once.
    warm_ups: usize,
}

impl Study<'_> {
    /// Measures a policy at every context.
    pub(super) fn contexts(
        &self,
        policy: PrecisionPolicy,
        ceilings: &mut Ceilings,
    ) -> Result<Vec<AtContext>, LabError> {
        let options = Options { policy: Some(policy), ..self.options.clone() };
        let plan = match self.model.plan(&options) {
            Ok(plan) => plan,
            Err(error) => return Ok(self.refused(&error.to_string())),
        };
        let mut pace = None;
        let mut all = Vec::new();
        for &context in &self.contexts {
            self.progress.go_on()?;
            let longest = self.model.config().max_position_embeddings;
            if context > longest {
                let reason = format!("the model was made for {longest} tokens");
                all.push(AtContext::missing(context, &reason));
                continue;
            }
            let options = Options { context: Some(context), ..options.clone() };
            let memory = self.model.memory(&options, self.backend);
            let step = plan.cost(&RunShape::single(1, context));
            let cache = step.cache_read + step.cache_written;
            let speed = self.speed(policy, &plan, context, &mut pace, ceilings)?;
            let scratch = speed.value().map(|speed| speed.scratch);
            let memory = Found::of(memory.map_err(LabError::from))?;
            all.push(AtContext {
                context,
                memory: memory.map(|used| Memory::of(used, scratch, &plan, context)),
                bytes: Found::Measured(Bytes { weights: step.weights, cache, total: step.weights + cache }),
                speed,
            });
        }
        Ok(all)
    }

    fn refused(&self, reason: &str) -> Vec<AtContext> {
        self.contexts.iter().map(|&context| AtContext::missing(context, reason)).collect()
    }

    /// Measures speed, unless it would take too long.
    fn speed(
        &self,
        policy: PrecisionPolicy,
        plan: &Plan,
        context: usize,
        pace: &mut Option<Pace>,
        ceilings: &mut Ceilings,
    ) -> Result<Found<Speed>, LabError> {
        let Some(test) = ContextTest::new(context, self) else {
            let needed = self.decode(0).context();
            return Ok(Found::Missing(format!(
                "{needed} tokens are generated in the test alone, and the context is {context}: generate fewer"
            )));
        };
        let operations = plan.cost(&RunShape::single(test.prompt, test.prompt)).operations as f64;
        let rounds = match pace {
            None => self.extent.repetitions,
            Some(pace) => {
                let seconds = operations / pace.rate;
                match self.rounds(seconds, pace.warm_ups) {
                    0 => return Ok(Found::Missing(self.too_long(test.prompt, seconds, pace.warm_ups + 1))),
                    rounds => rounds,
                }
            }
        };
        let progress = At { of: self.progress, context };
        let setup = Setup {
            model: self.model,
            backend: self.backend,
            options: Options { context: Some(test.longest), ..self.options.clone() },
            prompts: vec![test.prompt],
            decodes: vec![test.decode],
            repetitions: rounds,
            progress: &progress,
        };
        let measured = match Found::of(setup.measure(policy))? {
            Found::Measured(measured) => measured,
            Found::Missing(reason) => return Ok(Found::Missing(reason)),
        };
        ceilings.add(&measured);
        let Some(speed) = Speed::of(&measured, test.prompt, rounds) else {
            return Ok(Found::Missing("nothing was measured".to_owned()));
        };
        let warm_ups = usize::from(speed.device_peak.is_some());
        *pace = Some(Pace { rate: operations / speed.first_token.median, warm_ups });
        Ok(Found::Measured(speed))
    }

    /// How often a prompt that takes so long can be timed within the budget: once a round, behind the times to warm up.
    fn rounds(&self, seconds: f64, warm_ups: usize) -> usize {
        let affordable = |rounds: &usize| (warm_ups + rounds) as f64 * seconds <= self.extent.budget;
        (1..=self.extent.repetitions).rev().find(affordable).unwrap_or(0)
    }

    fn too_long(&self, prompt: usize, seconds: f64, runs: usize) -> String {
        let budget = self.extent.budget;
        let times = if runs == 1 { "once" } else { "twice" };
        format!(
            "a prompt of {prompt} tokens would take about {seconds:.0} s and runs at least {times}, which is beyond the \
             budget of {budget:.0} s"
        )
    }

    fn decode(&self, after: usize) -> Decode {
        Decode { tokens: self.extent.generate, after, sequences: 1, repetitions: self.extent.repetitions }
    }
}

/// What is run at one context.
struct ContextTest {
    prompt: usize,
    decode: Decode,
    /// Tokens that the cache holds.
    longest: usize,
}

impl ContextTest {
    /// A prompt of so many tokens and those generated behind it; where that is more than the model was made for, a prompt
    /// that leaves room for them.
    fn new(context: usize, study: &Study<'_>) -> Option<ContextTest> {
        let behind = study.decode(0).context();
        let most = study.model.config().max_position_embeddings;
        let prompt = context.min(most.checked_sub(behind)?);
        let test = ContextTest { prompt, decode: study.decode(prompt), longest: prompt + behind };
        // A context that is mostly generated is not the one that was asked for.
        (2 * prompt >= context).then_some(test)
    }
}

impl AtContext {
    /// Whether there is anything to say of it.
    pub(super) fn is_known(&self) -> bool {
        self.memory.value().is_some() || self.bytes.value().is_some() || self.speed.value().is_some()
    }

    fn missing(context: usize, reason: &str) -> AtContext {
        AtContext {
            context,
            memory: Found::Missing(reason.to_owned()),
            bytes: Found::Missing(reason.to_owned()),
            speed: Found::Missing(reason.to_owned()),
        }
    }
}

impl Memory {
    /// What the backend says, or else what the plan knows, with the scratch that was found when it ran.
    fn of(used: Option<MemoryUse>, scratch: Option<u64>, plan: &Plan, context: usize) -> Memory {
        let scratch = used.map(|used| used.scratch).or(scratch);
        let MemoryUse { weights, cache, .. } = used.unwrap_or_else(|| plan.memory(context));
        Memory { weights, cache, scratch, total: weights + cache + scratch.unwrap_or(0) }
    }
}

impl Speed {
    fn of(measured: &Measured, prompt: usize, rounds: usize) -> Option<Speed> {
        let row =
            |prefill: bool| measured.rows.iter().find(|row| matches!(row.test, Test::Prefill(_)) == prefill);
        let (prefill, decode) = (row(true)?, row(false)?);
        let Peak { device, process } = measured.peak;
        Some(Speed {
            prompt,
            rounds,
            first_token: prefill.first_token()?,
            prefill: prefill.speed(),
            prefill_share: prefill.bound.share,
            decode: decode.speed(),
            decode_share: decode.bound.share,
            scratch: measured.memory.scratch,
            device_peak: device,
            process_peak: process,
        })
    }
}

impl<T> Found<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Found::Measured(value) => Found::Measured(with(value)),
            Found::Missing(reason) => Found::Missing(reason),
        }
    }
}

/// Says at which context something is done; how far all of it is, the report knows.
struct At<'a> {
    of: &'a dyn Progress,
    context: usize,
}

impl Progress for At<'_> {
    fn say(&self, what: &str) {
        self.of.say(&format!("{what}, context {}", self.context));
    }

    fn cancelled(&self) -> bool {
        self.of.cancelled()
    }
}
