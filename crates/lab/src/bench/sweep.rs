//! Single kernels at many shapes, in all variants that a backend has: is the one that it chooses the fastest?
//!
//! A program has several layers of one shape, so that no layer's weights or cache are still in a cache of the device when
//! their turn comes again, and each step of a traced run is one timing. Everything is measured once a round, the variants
//! of a shape right after one another, in sessions that are made anew: what drifts, and where memory happens to lie, differs
//! between the rounds and not between the tests.

pub mod attention;
mod choice;
pub mod matmul;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::backend::{LoadOptions, NoProgress, OverflowRule};
use mantissa::ops::conformance::case::Run;
use mantissa::ops::cost::RunShape;
use mantissa::ops::{Backend, Ceilings, Grain, Limits, Plan, Program, Session, Trace};

pub use self::choice::Slower;
use self::source::RandomSource;
use crate::LabError;
use crate::ceiling::{Bound, Ceiling, Samples};
use crate::progress::Progress;
use crate::stats::Spread;

/// Bytes that are read for a ceiling between two groups of tests.
const READ_BYTES: usize = 256 << 20;
/// Runs, and seconds of them, that a repetition is at least taken from, where they take no longer than this together.
const RUNS: usize = 8;
const LEAST_SECONDS: f64 = 0.04;
const RUNS_SECONDS: f64 = 0.2;
/// A variant that takes so many times as long as the fastest one is measured once.
const FAR_BEHIND: f64 = 4.0;

/// One set of kernels of a backend.
pub struct Variant {
    /// As a user asks for it.
    pub name: String,
    /// Prefers it.
    pub backend: Box<dyn Backend>,
    /// Bytes of weights or cache that the layers of a shape have together: more than the caches of the device hold.
    pub rotated_bytes: usize,
}

/// What is measured, and with what.
pub struct Setup<'a> {
    /// The backend as it chooses by itself; ceilings are measured on it.
    pub dispatcher: &'a dyn Backend,
    /// What it chooses from.
    pub variants: &'a [Variant],
    /// How numbers are kept.
    pub policies: Vec<PrecisionPolicy>,
    /// How often everything is measured.
    pub rounds: usize,
    /// Seconds that one run of a program may take; tests that would take longer are left out.
    pub limit_seconds: f64,
    /// Is told what is being done.
    pub progress: &'a dyn Progress,
}

/// What is swept over: makes the programs.
pub trait Family {
    /// Names of the groups of tests, each with a program of its own, from the quickest to the slowest.
    fn groups(&self) -> Vec<String>;

    /// The program of one group.
    ///
    /// # Errors
    /// Where its weights cannot be made.
    fn group(&self, index: usize, policy: &PrecisionPolicy, rotated_bytes: usize) -> Result<Group, LabError>;
}

/// Layers of one shape, and what is run over them.
pub struct Group {
    program: Program,
    source: RandomSource,
    limits: Limits,
    /// Run once, for what they leave in the cache.
    fill: Vec<Run>,
    timed: Vec<Timed>,
}

/// A run whose steps, or some of them, all do the same.
struct Timed {
    run: Run,
    shape: RunShape,
    /// What they do, and its shape.
    test: String,
    steps: Vec<usize>,
    /// How they are timed: as they are launched, where the program has no other steps.
    grain: Grain,
}

/// One repetition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// Of one step: the middle one of a run, of which the fastest tenth of several runs stay below.
    pub seconds: f64,
    /// How much was reached of the ceilings around it.
    pub bound: Bound,
}

/// Which of its variants the backend takes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// This one.
    Yes,
    /// Another.
    No,
}

/// One test in one variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// How numbers are kept.
    pub policy: PrecisionPolicy,
    /// What was run, with its shape.
    pub test: String,
    /// Whose kernels.
    pub variant: String,
    /// The kernels that ran.
    pub kernel: String,
    /// What they do.
    pub contract: String,
    /// Whether the backend takes them by itself.
    pub chosen: Chosen,
    /// One for each round.
    pub repetitions: Vec<Repetition>,
}

impl Row {
    /// Seconds of a step.
    pub fn seconds(&self) -> Option<Spread> {
        Spread::of(self.repetitions.iter().map(|repetition| repetition.seconds).collect())
    }

    /// At the medians.
    pub fn bound(&self) -> Option<Bound> {
        Bound::median(&self.repetitions.iter().map(|repetition| repetition.bound).collect::<Vec<_>>())
    }
}

/// A group of tests that was not measured.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    /// How numbers would be kept.
    pub policy: PrecisionPolicy,
    /// The tests.
    pub group: String,
    /// In this variant.
    pub variant: String,
    /// Why.
    pub reason: String,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// In the order of policies, tests and variants.
    pub rows: Vec<Row>,
    /// What was not.
    pub left_out: Vec<LeftOut>,
}

/// Where a row belongs: policy, group, test within it, variant.
type Key = (usize, usize, usize, usize);

/// A sweep that is under way.
struct Sweeper<'a> {
    setup: &'a Setup<'a>,
    rows: BTreeMap<Key, Row>,
    left_out: BTreeMap<(usize, usize, usize), LeftOut>,
    /// Operations per second that each variant reached in its latest run of some length, by policy and variant.
    rates: BTreeMap<(usize, usize), f64>,
}

/// Measures all tests in all variants.
///
/// # Errors
/// Where a program cannot be run, a backend does not say how long its steps took, or the sweep is cancelled.
pub fn sweep(family: &dyn Family, setup: &Setup<'_>) -> Result<Sweep, LabError> {
    let ceilings = setup.dispatcher.ceilings(READ_BYTES)?;
    ceilings.read()?;
    let mut sweeper =
        Sweeper { setup, rows: BTreeMap::new(), left_out: BTreeMap::new(), rates: BTreeMap::new() };
    let groups = family.groups();
    let parts = setup.rounds * setup.policies.len() * groups.len();
    let mut done = 0;
    for _ in 0..setup.rounds {
        for (policy_index, policy) in setup.policies.iter().enumerate() {
            for (index, name) in groups.iter().enumerate() {
                setup.progress.say(&format!("{policy}: {name}"));
                setup.progress.step(done, parts);
                done += 1;
                let place = Place { policy: *policy, policy_index, index, name };
                sweeper.group(family, &place, &*ceilings)?;
            }
        }
    }
    Ok(Sweep {
        rows: sweeper.rows.into_values().collect(),
        left_out: sweeper.left_out.into_values().collect(),
    })
}

/// A group under a policy.
struct Place<'a> {
    policy: PrecisionPolicy,
    policy_index: usize,
    index: usize,
    name: &'a str,
}

/// What one variant took for one test, before the ceilings behind it are known.
struct Taken {
    key: Key,
    seconds: f64,
    shape: RunShape,
    step: usize,
    plan: Arc<Plan>,
}

impl Sweeper<'_> {
    /// Measures all variants of a group once, between two samples of the ceilings.
    fn group(
        &mut self,
        family: &dyn Family,
        place: &Place<'_>,
        ceilings: &dyn Ceilings,
    ) -> Result<(), LabError> {
        let mut samples = Samples::default();
        let mut taken = Vec::new();
        let chosen = self.chosen_kernels(family, place)?;
        for (variant_index, variant) in self.setup.variants.iter().enumerate() {
            self.setup.progress.go_on()?;
            let at = (place.policy_index, place.index, variant_index);
            if self.left_out.contains_key(&at) || self.far_behind(at) {
                continue;
            }
            let group = family.group(place.index, &place.policy, variant.rotated_bytes)?;
            let plan = Plan::resolve(group.program.clone(), place.policy, &*variant.backend)?;
            if samples.is_empty() {
                samples.add(ceilings, &plan)?;
            }
            // What has been measured once can be measured again.
            let first = !self.measured(at);
            if let Some(reason) = self.too_slow(&group, &plan, at).filter(|_| first) {
                let (policy, group, variant) = (place.policy, place.name.to_owned(), variant.name.clone());
                self.left_out.insert(at, LeftOut { policy, group, variant, reason });
                continue;
            }
            taken.extend(self.variant(&group, &plan, at, &chosen)?);
        }
        if let Some(first) = taken.first() {
            samples.add(ceilings, &first.plan)?;
            let around = samples.between(0, 1)?;
            for taken in taken {
                self.keep(taken, &around);
            }
        }
        Ok(())
    }

    fn keep(&mut self, taken: Taken, around: &Ceiling) {
        let Taken { key, seconds, shape, step, plan } = taken;
        let bound = around.of_step(&plan, &plan.steps[step], &shape, seconds);
        if let Some(row) = self.rows.get_mut(&key) {
            row.repetitions.push(Repetition { seconds, bound });
        }
    }

    /// Why a group would take too long, by what the variant has done so far.
    fn too_slow(&self, group: &Group, plan: &Plan, at: (usize, usize, usize)) -> Option<String> {
        let rate = self.rates.get(&(at.0, at.2))?;
        let operations = |timed: &Timed| plan.cost(&timed.shape).operations as f64;
        let seconds = group.timed.iter().map(operations).fold(0.0, f64::max) / rate;
        let limit = self.setup.limit_seconds;
        (seconds > limit).then(|| {
            format!("a run would take about {seconds:.0} s, more than the {limit} s that one may take")
        })
    }

    fn measured(&self, (policy, group, variant): (usize, usize, usize)) -> bool {
        let mut tests = self.rows.range((policy, group, 0, 0)..(policy, group + 1, 0, 0));
        tests.any(|(key, _)| key.3 == variant)
    }

    /// Whether a variant was so slow in the first round that nothing more is learnt by repeating it.
    fn far_behind(&self, (policy, group, variant): (usize, usize, usize)) -> bool {
        let tests = self.rows.range((policy, group, 0, 0)..(policy, group + 1, 0, 0));
        let seconds = |of: Option<usize>| -> f64 {
            let rows = tests.clone().filter(|(key, _)| of.is_none_or(|variant| key.3 == variant));
            rows.map(|(_, row)| row.repetitions.first().map_or(0.0, |first| first.seconds))
                .fold(f64::INFINITY, f64::min)
        };
        let own = seconds(Some(variant));
        own.is_finite() && own > FAR_BEHIND * seconds(None)
    }

    /// The kernels that the dispatcher takes for each test of a group.
    fn chosen_kernels(&mut self, family: &dyn Family, place: &Place<'_>) -> Result<Vec<String>, LabError> {
        let known = (place.policy_index, place.index, 0, 0)..(place.policy_index, place.index + 1, 0, 0);
        if self.rows.range(known).next().is_some() {
            return Ok(Vec::new());
        }
        // The fewest layers: only the names of the kernels are wanted.
        let group = family.group(place.index, &place.policy, 0)?;
        let plan = Plan::resolve(group.program.clone(), place.policy, self.setup.dispatcher)?;
        if self.too_slow(&group, &plan, (place.policy_index, place.index, 0)).is_some() {
            return Ok(Vec::new());
        }
        let mut session = prepare(self.setup.dispatcher, &group, &plan)?;
        let kernel = |timed: &Timed| {
            write(&mut *session, &timed.run)?;
            kernel(&mut *session, timed)
        };
        group.timed.iter().map(kernel).collect()
    }

    /// Runs a group in one variant.
    fn variant(
        &mut self,
        group: &Group,
        plan: &Arc<Plan>,
        at: (usize, usize, usize),
        chosen: &[String],
    ) -> Result<Vec<Taken>, LabError> {
        let (policy_index, group_index, variant_index) = at;
        let variant = &self.setup.variants[variant_index];
        let mut session = prepare(&*variant.backend, group, plan)?;
        for fill in &group.fill {
            write(&mut *session, fill)?;
            fill.with_batch(|batch| session.run(batch))?;
        }
        let mut taken = Vec::new();
        for (test_index, timed) in group.timed.iter().enumerate() {
            self.setup.progress.go_on()?;
            write(&mut *session, &timed.run)?;
            let Timings { kernel, seconds, whole } = timings(&mut *session, timed)?;
            // What is over in a moment says little about how long more of it would take.
            if whole > self.setup.limit_seconds / 10.0 {
                let rate = plan.cost(&timed.shape).operations as f64 / whole;
                self.rates.insert((policy_index, variant_index), rate);
            }
            let key = (policy_index, group_index, test_index, variant_index);
            let (step, shape) = (timed.steps[0], timed.shape.clone());
            self.rows.entry(key).or_insert_with(|| Row {
                policy: plan.policy,
                test: timed.test.clone(),
                variant: variant.name.clone(),
                chosen: if chosen.get(test_index) == Some(&kernel) { Chosen::Yes } else { Chosen::No },
                kernel,
                contract: plan.steps[step].contract.to_string(),
                repetitions: Vec::new(),
            });
            taken.push(Taken { key, seconds, shape, step, plan: Arc::clone(plan) });
        }
        Ok(taken)
    }
}

fn prepare(backend: &dyn Backend, group: &Group, plan: &Arc<Plan>) -> Result<Box<dyn Session>, LabError> {
    let options = LoadOptions { limits: group.limits, overflow: OverflowRule::Refuse };
    Ok(backend.prepare(Arc::clone(plan), &group.source, &options, &NoProgress)?)
}

fn write(session: &mut dyn Session, run: &Run) -> Result<(), LabError> {
    run.inputs.iter().try_for_each(|(value, numbers)| Ok(session.write(*value, numbers)?))
}

/// What the steps of a run took.
struct Timings {
    /// The kernels of one step.
    kernel: String,
    /// Of the middle step of a run, without most of what others did on the machine at the time.
    seconds: f64,
    /// Of the quickest run as a whole.
    whole: f64,
}

/// Runs until there are enough timings, at least twice: one run may be held up by others for longer than it takes. The first
/// run, which tells the kernels apart, finds memory and kernels cold: it counts only where it takes so long that this does not
/// matter.
fn timings(session: &mut dyn Session, timed: &Timed) -> Result<Timings, LabError> {
    let first = traced(session, timed, Grain::Kernel)?;
    let kernel = kernel_of(&first, timed, session)?;
    let (mut runs, mut spent, mut whole) = (Vec::new(), 0.0, first.seconds);
    if first.seconds > RUNS_SECONDS {
        (runs, spent) = (vec![middle_step(&first, timed)], first.seconds);
    }
    while runs.len() < 2 || spent < LEAST_SECONDS || (runs.len() < RUNS && spent < RUNS_SECONDS) {
        let trace = traced(session, timed, timed.grain)?;
        spent += trace.seconds;
        whole = trace.seconds.min(whole);
        runs.push(middle_step(&trace, timed));
    }
    Ok(Timings { kernel, seconds: fastest_tenth(runs), whole })
}

fn traced(session: &mut dyn Session, timed: &Timed, grain: Grain) -> Result<Trace, LabError> {
    Ok(timed.run.with_batch(|batch| session.run_traced(batch, grain))?)
}

/// The kernels of the first step that is timed.
fn kernel(session: &mut dyn Session, timed: &Timed) -> Result<String, LabError> {
    let trace = traced(session, timed, Grain::Kernel)?;
    kernel_of(&trace, timed, session)
}

fn kernel_of(trace: &Trace, timed: &Timed, session: &dyn Session) -> Result<String, LabError> {
    let of_step = trace.scopes.iter().filter(|scope| scope.step == timed.steps.first().copied());
    let names: Vec<&str> = of_step.map(|scope| scope.kernel.as_str()).collect();
    if names.is_empty() {
        return Err(LabError::Untraced { backend: session.plan().backend.name.clone() });
    }
    Ok(names.join(" + "))
}

/// Seconds of the middle step, ordered by how long they took; where they were launched as one, what comes to each of them.
/// The fastest ones would be those whose weights a cache had kept, which differs from one run of the program to the next.
fn middle_step(trace: &Trace, timed: &Timed) -> f64 {
    let of_step = |&step: &usize| {
        let scopes = trace.scopes.iter().filter(|scope| scope.step == Some(step));
        scopes.map(|scope| scope.seconds).reduce(|sum, seconds| sum + seconds)
    };
    let apart: Option<Vec<f64>> = timed.steps.iter().map(of_step).collect();
    let middle = apart.and_then(Spread::of).map(|spread| spread.median);
    middle.unwrap_or_else(|| {
        let longest = trace.scopes.iter().map(|scope| scope.seconds).fold(0.0, f64::max);
        longest / timed.steps.len() as f64
    })
}

/// The timing that a tenth of all stay below: whatever else happens on a machine only ever adds to the time of a run.
fn fastest_tenth(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 10).copied().unwrap_or(f64::NAN)
}
