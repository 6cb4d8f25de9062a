//! The measurements under one policy.

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use mantissa::engine::sequence::EndOfText;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::cost::RunShape;
use mantissa::ops::{Backend, MemoryUse, Plan};
use mantissa::{Completion, GenerateOptions, Generator, Model, Options};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::context::Context;
use crate::{memory, model};
use mantissa_lab::ceiling::{Bound, Ceiling, READ_BYTES, Samples};
use mantissa_lab::decode::{Decode, Window};
use mantissa_lab::stats::Spread;

/// Tokens generated to warm up.
const WARM_UP: usize = 4;

/// What is measured, and with what.
pub struct Setup<'a> {
    pub model: &'a Model,
    /// Has the device, and as many threads as the model runs on, that ceilings are measured on.
    pub backend: &'a dyn Backend,
    pub options: Options,
    pub prompts: Vec<usize>,
    pub decodes: Vec<Decode>,
    pub repetitions: usize,
    pub bar: &'a ProgressBar,
}

/// What a policy reached.
pub struct Measured {
    pub ceiling: Ceiling,
    pub load_seconds: f64,
    pub load_bytes: u64,
    /// What the backend said beforehand that the model would hold, where it can.
    pub predicted: Option<MemoryUse>,
    pub memory: MemoryUse,
    /// The most memory held from loading on, of the device where it has its own, else of the process where the system
    /// says.
    pub peak: Option<u64>,
    pub rows: Vec<Row>,
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// A prompt of so many tokens, up to the first new one.
    Prefill(usize),
    /// So many tokens, one at a time.
    Decode(Decode),
}

/// One line of the result.
pub struct Row {
    pub test: Test,
    /// The contract of the step with most operations.
    pub contract: String,
    /// Tokens per second, of all sequences together.
    pub speed: Spread,
    /// Of a prompt until the first new token; of decode, of all its tokens.
    pub seconds: Spread,
    pub bound: Bound,
}

impl Setup<'_> {
    /// Measures everything under a policy.
    pub fn measure(&self, policy: PrecisionPolicy, context: &Context) -> Result<Measured> {
        let say = |what: &str| self.bar.set_message(format!("{policy}: {what}"));
        let options = Options { policy: Some(policy), ..self.options.clone() };
        let predicted = self.model.memory(&options, self.backend)?;
        let mut samples = Samples::default();
        say("ceilings of the machine");
        samples.take(self.backend, &*self.model.plan(&options)?)?;
        memory::reset_peak();
        say("loading");
        let mut generator = model::prepare(self.model, &options, context)?;
        let (load_seconds, load_bytes) = (generator.report().seconds, generator.report().bytes_read);
        say("warming up");
        let shortest = self.prompts.iter().copied().min().unwrap_or(1);
        self.generate(&mut generator, shortest, WARM_UP)?;

        let mut prefills = Vec::new();
        for &length in &self.prompts {
            say(&format!("prompt of {length} tokens"));
            let seconds =
                self.repeat(|| Ok(self.generate(&mut generator, length, 1)?.timings.prefill_seconds))?;
            prefills.push((length, seconds));
        }
        // Of the process before memory to read is added to it; decoding allocates nothing there.
        let of_process = memory::peak();
        let mut decodes = Vec::new();
        for decode in &self.decodes {
            say("one token at a time");
            decodes.push((decode, self.decode(decode, &mut generator)?));
        }
        let peak = generator.device_memory().or(of_process);

        say("ceilings of the machine");
        samples.take(self.backend, generator.plan())?;
        let (plan, ceiling) = (generator.plan(), samples.ceiling()?);
        let prefills =
            prefills.into_iter().map(|(length, seconds)| Ok(prefill_row(plan, length, seconds, &ceiling)));
        let decodes =
            decodes.into_iter().map(|(decode, windows)| decode_row(plan, decode, &windows, &ceiling));
        let rows = prefills.chain(decodes).collect::<Result<_>>()?;
        let memory = generator.memory();
        Ok(Measured { ceiling, load_seconds, load_bytes, predicted, memory, peak, rows })
    }

    fn decode(&self, decode: &Decode, generator: &mut Generator) -> Result<Vec<Window>> {
        let vocabulary = generator.plan().batch_rules().vocabulary.unwrap_or(1);
        let ceilings = self.backend.ceilings(READ_BYTES)?;
        ceilings.read()?;
        let prompt = |sequence: usize, length| random_ids(vocabulary, length, sequence);
        Ok(decode.measure(generator, prompt, &*ceilings)?)
    }

    fn repeat(&self, mut seconds: impl FnMut() -> Result<f64>) -> Result<Spread> {
        let measured = (0..self.repetitions).map(|_| seconds()).collect::<Result<_>>()?;
        Spread::of(measured).context("nothing was measured")
    }

    /// Generates tokens after a prompt of random ones.
    fn generate(&self, generator: &mut Generator, prompt: usize, tokens: usize) -> Result<Completion> {
        let ids = random_ids(self.model.config().vocab_size, prompt, prompt);
        let options = GenerateOptions {
            max_tokens: tokens,
            end_of_text: EndOfText::Ignore,
            ..GenerateOptions::default().greedy()
        };
        Ok(generator.generate(ids, &options, |_| ())?)
    }
}

/// Random tokens; 0 is none of them, which often stands for padding.
fn random_ids(vocabulary: usize, length: usize, seed: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed as u64);
    let end = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(2);
    (0..length).map(|_| random.random_range(1..end)).collect()
}

fn prefill_row(plan: &Plan, length: usize, seconds: Spread, ceiling: &Ceiling) -> Row {
    let shape = RunShape::single(length, length);
    Row {
        test: Test::Prefill(length),
        contract: heaviest_contract(plan, &shape),
        speed: seconds.rate(length as f64),
        bound: ceiling.of_products(plan, &shape, seconds.median),
        seconds,
    }
}

fn decode_row(plan: &Plan, decode: &Decode, windows: &[Window], ceiling: &Ceiling) -> Result<Row> {
    let seconds = Spread::of(windows.iter().map(|window| window.seconds).collect());
    let seconds = seconds.context("nothing was measured")?;
    let first = windows.iter().flat_map(|window| window.shapes(1)).next();
    Ok(Row {
        test: Test::Decode(*decode),
        contract: first.map(|shape| heaviest_contract(plan, &shape)).unwrap_or_default(),
        speed: seconds.rate((decode.tokens * decode.sequences) as f64),
        bound: ceiling.of_windows(plan, decode.tokens, windows).context("nothing was measured")?,
        seconds,
    })
}

/// The contract of the step with most operations.
fn heaviest_contract(plan: &Plan, shape: &RunShape) -> String {
    let heaviest = plan.steps.iter().max_by_key(|step| plan.step_cost(step, shape).operations);
    heaviest.map(|step| step.contract.to_string()).unwrap_or_default()
}
