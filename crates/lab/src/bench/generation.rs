//! How fast a model reads prompts and generates, under one policy after the other.
//!
//! All tests of a policy are measured in rounds, each test once a round, and the ceilings of the machine between the
//! rounds: what drifts on a shared machine then touches every test alike, and each repetition is held against the
//! ceilings around it. A prompt in front of what one sequence decodes is the repetition of a prompt of that length.

use mantissa::engine::sequence::EndOfText;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::backend::NoProgress;
use mantissa::ops::cost::RunShape;
use mantissa::ops::{Backend, LoadReport, MemoryUse, Plan};
use mantissa::{Completion, Flow, GenerateOptions, Generator, Model, Options, Timings};

use crate::LabError;
use crate::ceiling::{Bound, Ceiling, READ_BYTES, Samples};
use crate::decode::{Decode, Window};
use crate::memory;
use crate::progress::Progress;
use crate::prompts::random_ids;
use crate::stats::Spread;

/// Tokens generated to warm up.
const WARM_UP: usize = 4;

/// What is measured, and with what.
pub struct Setup<'a> {
    /// The model.
    pub model: &'a Model,
    /// Has the device, and as many threads as the model runs on, that ceilings are measured on.
    pub backend: &'a dyn Backend,
    /// How the model is prepared; the policy of each measurement takes the place of the one in here.
    pub options: Options,
    /// Lengths of prompts, in tokens.
    pub prompts: Vec<usize>,
    /// What is decoded in each round.
    pub decodes: Vec<Decode>,
    /// Rounds.
    pub repetitions: usize,
    /// Is told what is being done.
    pub progress: &'a dyn Progress,
}

/// The most memory held from loading on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Of the device, as its driver counts it, where it has memory of its own.
    pub device: Option<u64>,
    /// Of the process, where the system says.
    pub process: Option<u64>,
}

/// What a policy reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Of the machine, in all rounds.
    pub ceiling: Ceiling,
    /// What loading read and converted.
    pub load: LoadReport,
    /// What the backend said beforehand that the model would hold, where it can.
    pub predicted: Option<MemoryUse>,
    /// What it holds.
    pub memory: MemoryUse,
    /// The most that was held.
    pub peak: Peak,
    /// One for each test.
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

impl Test {
    /// Tokens that a repetition computes, of all sequences together.
    pub fn tokens(self) -> usize {
        match self {
            Test::Prefill(length) => length,
            Test::Decode(decode) => decode.tokens * decode.sequences,
        }
    }

    /// In words: `decode 64 of 8 sequences after 512`.
    pub fn name(self) -> String {
        match self {
            Test::Prefill(length) => format!("prefill {length}"),
            Test::Decode(Decode { tokens, after, sequences: 1, .. }) => {
                format!("decode {tokens} after {after}")
            }
            Test::Decode(Decode { tokens, after, sequences, .. }) => {
                format!("decode {tokens} of {sequences} sequences after {after}")
            }
        }
    }
}

/// One measurement of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// Of a prompt until the first new token; of decode, of all its tokens.
    pub seconds: f64,
    /// From the request to the first new token, of a prompt.
    pub first_token: Option<f64>,
    /// How much was reached of the ceiling that was measured around it.
    pub bound: Bound,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was run.
    pub test: Test,
    /// The contract of the step with most operations.
    pub contract: String,
    /// In the order in which they were measured.
    pub repetitions: Vec<Repetition>,
    /// Seconds of a repetition.
    pub seconds: Spread,
    /// At the medians.
    pub bound: Bound,
}

impl Row {
    /// Tokens per second, of all sequences together.
    pub fn speed(&self) -> Spread {
        self.seconds.rate(self.test.tokens() as f64)
    }

    /// Seconds from the request to the first new token, of a prompt.
    pub fn first_token(&self) -> Option<Spread> {
        Spread::of(self.repetitions.iter().filter_map(|repetition| repetition.first_token).collect())
    }

    fn new(test: Test, contract: String, repetitions: Vec<Repetition>) -> Result<Row, LabError> {
        let unfinished = || LabError::Unfinished { what: "a test", measured: 0, wanted: 1 };
        let seconds = Spread::of(repetitions.iter().map(|repetition| repetition.seconds).collect());
        let bounds: Vec<Bound> = repetitions.iter().map(|repetition| repetition.bound).collect();
        let (seconds, bound) = seconds.zip(Bound::median(&bounds)).ok_or_else(unfinished)?;
        Ok(Row { test, contract, repetitions, seconds, bound })
    }
}

/// What a round gave, before the ceilings at its end are known.
enum Taken {
    Prefill { seconds: f64, first_token: f64 },
    Decode(Vec<Window>),
}

impl Taken {
    fn prefill(timings: &Timings) -> Taken {
        Taken::Prefill { seconds: timings.prefill_seconds, first_token: timings.first_token_seconds }
    }
}

impl Setup<'_> {
    /// Measures everything under a policy.
    ///
    /// # Errors
    /// Where the policy cannot be carried out, the model cannot be loaded or run, or the measurement is cancelled.
    pub fn measure(&self, policy: PrecisionPolicy) -> Result<Measured, LabError> {
        let say = |what: &str| self.progress.say(&format!("{policy}: {what}"));
        let options = Options { policy: Some(policy), ..self.options.clone() };
        let predicted = self.model.memory(&options, self.backend)?;
        memory::reset_peak();
        say("loading");
        let mut generator = self.model.prepare_with_progress(&options, &NoProgress)?;
        say("warming up");
        self.warm_up(&mut generator)?;
        let device = generator.device_memory();
        let (peak_before, held_before) = (memory::peak(), memory::held());

        let ceilings = self.backend.ceilings(READ_BYTES)?;
        // The first pass finds memory and clocks as somebody else left them.
        ceilings.read()?;
        let of_ceilings = memory::held().zip(held_before).map(|(now, before)| now.saturating_sub(before));
        let mut samples = Samples::default();
        samples.add(&*ceilings, generator.plan())?;
        let tests: Vec<Test> = self.tests().collect();
        let mut rounds: Vec<Vec<(Test, Taken)>> = Vec::new();
        for round in 0..self.repetitions {
            let mut taken = Vec::new();
            for (index, &test) in tests.iter().enumerate() {
                self.progress.go_on()?;
                say(&test.name());
                self.progress.step(round * tests.len() + index, self.repetitions * tests.len());
                match test {
                    Test::Prefill(length) if self.decodes.iter().any(|decode| decode.begins_with(length)) => {
                    }
                    Test::Prefill(length) => taken.push((test, self.prefill(&mut generator, length)?)),
                    Test::Decode(decode) => {
                        let vocabulary = self.model.config().vocab_size;
                        let prompt = |sequence: usize, length| random_ids(vocabulary, length, sequence);
                        let (windows, timings) = decode.measure(&mut generator, prompt, &*ceilings)?;
                        if decode.begins_with(decode.after) {
                            taken.push((Test::Prefill(decode.after), Taken::prefill(&timings)));
                        }
                        taken.push((test, Taken::Decode(windows)));
                    }
                }
            }
            samples.add(&*ceilings, generator.plan())?;
            rounds.push(taken);
        }
        let rows = rows(&tests, &rounds, &samples, generator.plan())?;
        let (load, memory) = (generator.report().clone(), generator.memory());
        // What the process held in the rounds, without what it had to read for the ceilings.
        let in_rounds = memory::peak().zip(of_ceilings).map(|(peak, theirs)| peak.saturating_sub(theirs));
        let peak = Peak { device, process: peak_before.max(in_rounds) };
        Ok(Measured { ceiling: samples.ceiling()?, load, predicted, memory, peak, rows })
    }

    fn tests(&self) -> impl Iterator<Item = Test> {
        let prefills = self.prompts.iter().map(|&length| Test::Prefill(length));
        prefills.chain(self.decodes.iter().map(|&decode| Test::Decode(decode)))
    }

    /// Runs every shape once: kernels are loaded, graphs captured and memory touched before anything is timed. On a
    /// processor, which has none of the former and may take minutes for a long prompt, a batch of it will do.
    fn warm_up(&self, generator: &mut Generator) -> Result<(), LabError> {
        let most = match generator.device_memory() {
            Some(_) => usize::MAX,
            None => generator.plan().backend.prompt_rows,
        };
        for &length in &self.prompts {
            self.progress.go_on()?;
            self.generate(generator, &[length.min(most)], 1)?;
        }
        for decode in &self.decodes {
            self.progress.go_on()?;
            self.generate(generator, &vec![decode.after.min(most); decode.sequences], WARM_UP)?;
        }
        Ok(())
    }

    fn prefill(&self, generator: &mut Generator, length: usize) -> Result<Taken, LabError> {
        let done = self.generate(generator, &[length], 1)?;
        let timings = done.first().map(|completion| completion.timings).unwrap_or_default();
        Ok(Taken::prefill(&timings))
    }

    /// Generates tokens after prompts of random ones.
    fn generate(
        &self,
        generator: &mut Generator,
        lengths: &[usize],
        tokens: usize,
    ) -> Result<Vec<Completion>, LabError> {
        let vocabulary = self.model.config().vocab_size;
        let ids = lengths.iter().enumerate().map(|(index, &length)| random_ids(vocabulary, length, index));
        let prompts: Vec<_> = ids.map(Into::into).collect();
        let options = GenerateOptions {
            max_tokens: tokens,
            end_of_text: EndOfText::Ignore,
            ..GenerateOptions::default().greedy()
        };
        // A long prompt on a slow machine is ended between its batches.
        let done = generator.generate_batch(&prompts, &options, |_| {
            if self.progress.cancelled() { Flow::Cancel } else { Flow::Continue }
        })?;
        self.progress.go_on()?;
        Ok(done)
    }
}

/// Turns rounds of tests into tests with their repetitions, each against the ceilings before and after its round.
fn rows(
    tests: &[Test],
    rounds: &[Vec<(Test, Taken)>],
    samples: &Samples,
    plan: &Plan,
) -> Result<Vec<Row>, LabError> {
    let ceilings: Vec<Ceiling> =
        (0..rounds.len()).map(|round| samples.between(round, round + 1)).collect::<Result<_, _>>()?;
    let row = |&test: &Test| {
        let mut repetitions = Vec::new();
        for (round, ceiling) in rounds.iter().zip(&ceilings) {
            for (_, taken) in round.iter().filter(|(of, _)| *of == test) {
                match taken {
                    &Taken::Prefill { seconds, first_token } => {
                        let bound = ceiling.of_products(plan, &test.shape(), seconds);
                        repetitions.push(Repetition { seconds, first_token: Some(first_token), bound });
                    }
                    Taken::Decode(windows) => {
                        let tokens = test.tokens_of_each();
                        repetitions.extend(windows.iter().filter_map(|window| {
                            let bound = ceiling.of_windows(plan, tokens, std::slice::from_ref(window))?;
                            Some(Repetition { seconds: window.seconds, first_token: None, bound })
                        }));
                    }
                }
            }
        }
        Row::new(test, heaviest_contract(plan, &test.shape()), repetitions)
    };
    tests.iter().map(row).collect()
}

impl Test {
    /// The shape of a prompt's run, or of the first token's that is decoded.
    fn shape(self) -> RunShape {
        match self {
            Test::Prefill(length) => RunShape::single(length, length),
            Test::Decode(decode) => decode.shape(decode.after + 1),
        }
    }

    fn tokens_of_each(self) -> usize {
        match self {
            Test::Prefill(_) => 1,
            Test::Decode(decode) => decode.tokens,
        }
    }
}

/// The contract of the step with most operations.
fn heaviest_contract(plan: &Plan, shape: &RunShape) -> String {
    let heaviest = plan.steps.iter().max_by_key(|step| plan.step_cost(step, shape).operations);
    heaviest.map(|step| step.contract.to_string()).unwrap_or_default()
}
