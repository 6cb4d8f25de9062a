//! Where the time of a run goes: prefill and decode with every kernel timed, against the ceilings of the machine.

mod batches;
mod chrome;
mod operations;
mod passes;
mod plots;
mod records;

use mantissa::ops::ceilings::Ceilings;
use mantissa::ops::cost::{Cost, RunShape};
use mantissa::ops::{Backend, Grain, Plan, Session};
use serde::Serialize;

use crate::LabError;
use crate::ceiling::{Ceiling, READ_BYTES, Samples};
use crate::label::{self, Label};
use crate::progress::Progress;
use crate::prompts::random_ids;

use batches::{Places, Run};
use passes::Runner;

pub use chrome::{ChromeTrace, Event};
pub use operations::{By, Row, Seconds, Summary};
pub use passes::{TracedPass, TracedRun};
pub use records::{Record, cost_json};

/// What is profiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each sequence generates behind it, one at a time.
    pub generate: usize,
    /// Sequences that run together.
    pub sequences: usize,
}

impl Workload {
    /// The longest context that a sequence reaches.
    pub fn context(&self) -> usize {
        self.prompt + self.generate
    }
}

/// The two kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseKind {
    /// The prompts of all sequences, in batches as large as the session takes.
    Prefill,
    /// One token of each sequence at a time.
    Decode,
}

impl PhaseKind {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            PhaseKind::Prefill => "prefill",
            PhaseKind::Decode => "decode",
        }
    }
}

/// A phase once in every way, and the ceilings around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Repetition {
    /// The ceilings.
    pub ceiling: Ceiling,
    /// The ways.
    pub ways: Ways,
}

/// A phase once in every way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ways {
    /// Seconds of the phase as it runs, without a trace.
    pub untraced: f64,
    /// With a trace of what is launched as one, where that differs from kernels.
    pub launches: Option<TracedPass>,
    /// With a trace of every kernel.
    pub kernels: TracedPass,
}

/// What was measured of a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Which it is.
    pub kind: PhaseKind,
    /// The shapes of its batches.
    pub shapes: Vec<RunShape>,
    /// Of each batch, what each step of the plan computed of it.
    steps: Vec<Vec<StepRun>>,
    /// Every repetition.
    pub repetitions: Vec<Repetition>,
}

impl Phase {
    /// Seconds between two readings of the clock that scopes are timed with: about as much is part of every scope's time.
    pub fn clock(&self) -> f64 {
        let passes = self.repetitions.iter().map(|one| &one.ways.kernels);
        passes.flat_map(|pass| &pass.runs).map(|run| run.trace.clock).fold(0.0, f64::max)
    }
}

/// A step in one run.
#[derive(Clone, Debug, PartialEq)]
struct StepRun {
    shape: String,
    cost: Cost,
}

/// A profile.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the model is called: its architecture, until someone knows better.
    pub model: String,
    /// What was run.
    pub plan: Plan,
    /// With which batches.
    pub workload: Workload,
    /// The ceilings, from before, between and after all repetitions.
    pub ceiling: Ceiling,
    /// Of each step of the plan, without kernel and shape.
    labels: Vec<Label>,
    /// Prefill and decode.
    pub phases: Vec<Phase>,
}

/// Measures profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profiler {
    /// What is run.
    pub workload: Workload,
    /// How often each phase is measured; at least once.
    pub repetitions: usize,
}

impl Profiler {
    /// Profiles a session that `backend` made ready with limits for the workload, on random tokens. Every phase is run in
    /// three ways: without a trace, with what is launched as one timed as one, and with every kernel timed.
    ///
    /// # Errors
    /// Where a run fails, its logits are not finite, the machine's ceilings cannot be measured, or `progress` ends it.
    pub fn measure(
        &self,
        session: &mut dyn Session,
        backend: &dyn Backend,
        progress: &dyn Progress,
    ) -> Result<Profile, LabError> {
        let Profiler { workload, repetitions } = *self;
        let plan = session.plan().clone();
        let labels = plan.steps.iter().map(|step| Label::of(session, step)).collect();
        let vocabulary = plan.batch_rules().vocabulary.unwrap_or(1);
        let prompts: Vec<Vec<u32>> = (0..workload.sequences)
            .map(|sequence| random_ids(vocabulary, workload.prompt, sequence))
            .collect();
        let places = Places::new(&workload, session.limits(), &plan);
        let ceilings = backend.ceilings(READ_BYTES)?;
        // The first pass finds memory and clocks as somebody else left them.
        ceilings.read()?;

        progress.say("warming up");
        let prefill = batches::prefill(&prompts, session.limits());
        let mut runner = Runner::new(session, &places);
        let first = runner.prefill(&prefill)?;
        let decode = runner.generate(first, workload.prompt, workload.generate)?;
        let mut around = Around { samples: Samples::default(), taken: 0, ceilings: &*ceilings };
        let mut phases = Vec::new();
        for (done, (kind, runs)) in
            [(PhaseKind::Prefill, prefill), (PhaseKind::Decode, decode)].iter().enumerate()
        {
            let mut meter = Meter { runner: &mut runner, runs };
            let mut phase = meter.warm_up(*kind)?;
            let grains = meter.grains()?;
            around.begin(&plan)?;
            for repetition in 0..repetitions {
                progress.go_on()?;
                progress.say(kind.name());
                progress.step(done * repetitions + repetition, 2 * repetitions);
                let ways = meter.repeat(grains, repetition)?;
                let ceiling = around.end(&plan)?;
                phase.repetitions.push(Repetition { ceiling, ways });
            }
            phases.push(phase);
        }
        let ceiling = around.samples.ceiling()?;
        Ok(Profile { model: plan.program.name.clone(), plan, workload, ceiling, labels, phases })
    }
}

/// Takes the ceilings around repetitions.
struct Around<'a> {
    samples: Samples,
    taken: usize,
    ceilings: &'a dyn Ceilings,
}

impl Around<'_> {
    /// Before the first.
    fn begin(&mut self, plan: &Plan) -> Result<(), LabError> {
        self.samples.add(self.ceilings, plan)?;
        self.taken += 1;
        Ok(())
    }

    /// Behind one, which is before the next: the ceilings around the one that ended.
    fn end(&mut self, plan: &Plan) -> Result<Ceiling, LabError> {
        self.begin(plan)?;
        self.samples.between(self.taken - 2, self.taken - 1)
    }
}

/// Whether what is launched as one is a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grains {
    /// It is: there is one way to trace.
    Same,
    /// Several kernels are launched together.
    Differ,
}

/// Measures one phase.
struct Meter<'a, 'r> {
    runner: &'a mut Runner<'r>,
    runs: &'a [Run],
}

impl Meter<'_, '_> {
    /// Runs the phase once, and sees what of it is computed.
    fn warm_up(&mut self, kind: PhaseKind) -> Result<Phase, LabError> {
        let shapes: Vec<RunShape> = self.runs.iter().map(Run::shape).collect();
        let mut steps = Vec::with_capacity(shapes.len());
        for (run, shape) in self.runs.iter().zip(&shapes) {
            self.runner.traced(std::slice::from_ref(run), Grain::Kernel)?;
            let session = &*self.runner.session;
            let plan = session.plan();
            let computed = plan.steps.iter().enumerate().map(|(index, step)| {
                let shape = from_row(shape, session.first_row(index));
                StepRun { shape: label::shape(plan, &step.op, &shape), cost: plan.step_cost(step, &shape) }
            });
            steps.push(computed.collect());
        }
        Ok(Phase { kind, shapes, steps, repetitions: Vec::new() })
    }

    /// Finds out whether there is more than one way to trace.
    fn grains(&mut self) -> Result<Grains, LabError> {
        let names = |pass: &TracedPass| -> Vec<(usize, Option<usize>, String)> {
            pass.scopes().map(|(run, scope)| (run, scope.step, scope.kernel.clone())).collect()
        };
        let launches = self.runner.traced(self.runs, Grain::Launch)?;
        let kernels = self.runner.traced(self.runs, Grain::Kernel)?;
        Ok(if names(&launches) == names(&kernels) { Grains::Same } else { Grains::Differ })
    }

    /// The phase once in every way. The ways take turns in being the first: what comes later finds the machine warmer.
    fn repeat(&mut self, grains: Grains, repetition: usize) -> Result<Ways, LabError> {
        // Caches hold what the ceilings were measured with.
        self.runner.untraced(self.runs)?;
        let mut ways = Ways::default();
        for way in 0..3 {
            match (way + repetition) % 3 {
                0 => ways.untraced = self.runner.untraced(self.runs)?,
                1 => ways.kernels = self.runner.traced(self.runs, Grain::Kernel)?,
                _ if grains == Grains::Differ => {
                    ways.launches = Some(self.runner.traced(self.runs, Grain::Launch)?);
                }
                _ => {}
            }
        }
        Ok(ways)
    }
}

/// A shape without its first rows.
fn from_row(shape: &RunShape, first: usize) -> RunShape {
    let mut left_out = first;
    let mut shape = shape.clone();
    for sequence in &mut shape.sequences {
        let rows = left_out.min(sequence.rows);
        sequence.rows -= rows;
        left_out -= rows;
    }
    shape.sequences.retain(|sequence| sequence.rows > 0);
    shape
}
