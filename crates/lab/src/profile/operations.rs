//! A phase, summed up: what each operation, step or kernel took.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use mantissa::ops::ceilings::Unit;
use mantissa::ops::cost::Cost;
use mantissa::ops::{Scope, Step};
use serde::Serialize;

use super::{Phase, Profile, Repetition, TracedPass};
use crate::ceiling::{Bound, Ceiling, Limit, multiplies};
use crate::label::Label;
use crate::stats::Spread;

/// What is summed up as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The same step of all layers, where contract and flags are the same.
    #[default]
    Operation,
    /// Every step by itself.
    Step,
    /// Every kernel by its name.
    Kernel,
}

impl By {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            By::Operation => "operation",
            By::Step => "step",
            By::Kernel => "kernel",
        }
    }
}

/// Seconds that something took in the repetitions of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Seconds {
    /// The mean of the repetitions in the middle: of all, ordered by the time of the whole, the middle third. What belongs to
    /// one whole is taken from the same repetitions, so that parts add up to it.
    pub mean: f64,
    /// In the shortest of all repetitions.
    pub min: f64,
    /// In the longest.
    pub max: f64,
}

impl Seconds {
    /// Of each repetition's, with the mean over some of them; nothing where there are none.
    fn of(seconds: &[f64], middle: &[usize]) -> Option<Seconds> {
        let chosen: Vec<f64> = middle.iter().filter_map(|&index| seconds.get(index).copied()).collect();
        let Spread { min, max, .. } = Spread::of(seconds.to_vec())?;
        (!chosen.is_empty()).then(|| Seconds {
            mean: chosen.iter().sum::<f64>() / chosen.len() as f64,
            min,
            max,
        })
    }
}

/// The repetitions of the middle third by the time of the whole; all where there are less than three.
fn middle(wholes: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wholes.len()).collect();
    order.sort_by(|&a, &b| wholes[a].total_cmp(&wholes[b]));
    let beside = wholes.len() / 3;
    order[beside..wholes.len() - beside].to_vec()
}

/// Something that takes time, in all batches of a phase together.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Scopes in one repetition.
    pub calls: usize,
    /// Seconds in one repetition.
    pub seconds: Seconds,
    /// Of the phase's traced time, kernel by kernel.
    pub share: f64,
    /// What it moves and computes in one repetition; nothing where it is no step, or where kernels of another row take part.
    pub cost: Option<Cost>,
    /// The nearer one of the machine's ceilings, where the cost is known.
    pub bound: Option<Bound>,
    /// What else is to be known of it; only backend and kernel where it is no step.
    pub label: Label,
}

/// A phase, summed up. Rows, what is between steps, and sampling add up to the traced time.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// What takes time, kernel by kernel: the longest first, or step after step.
    pub rows: Vec<Row>,
    /// What is launched as one, where that is not a kernel: the longest first, without costs.
    pub launches: Vec<Row>,
    /// Seconds of the runs that belong to no scope, kernel by kernel.
    pub between: Seconds,
    /// Seconds that the choice of tokens took.
    pub sampling: Seconds,
    /// Seconds of everything, kernel by kernel.
    pub traced: Seconds,
    /// Of these, what reading the clock takes: every scope contains as much of it.
    pub clock: f64,
    /// Seconds of everything as it is launched, where that is not kernel by kernel.
    pub launched: Option<Seconds>,
    /// Seconds of everything, untraced, by the host's clock.
    pub untraced: Seconds,
    /// What a trace adds to the untraced phase by the host's clock, as a share of it; of launches, where they are not kernels.
    pub overhead: Spread,
    /// What all steps move and compute.
    pub cost: Cost,
    /// The nearer ceiling of the untraced phase.
    pub bound: Option<Bound>,
}

/// The kernel-by-kernel passes of a phase's repetitions.
struct Kernels<'a> {
    passes: Vec<&'a TracedPass>,
    /// The repetitions that means are taken of.
    middle: Vec<usize>,
    /// Mean seconds of everything.
    whole: f64,
    /// How many scopes each step of each run has.
    of_steps: HashMap<(usize, usize), usize>,
}

impl Profile {
    /// Sums a phase up; nothing where it has no repetition.
    pub fn summary(&self, phase: &Phase, by: By) -> Option<Summary> {
        let passes: Vec<&TracedPass> = phase.repetitions.iter().map(|one| &one.ways.kernels).collect();
        let wholes: Vec<f64> = passes.iter().map(|pass| pass.seconds()).collect();
        let first = *passes.first()?;
        let middle = middle(&wholes);
        let seconds = |of: fn(&TracedPass) -> f64| {
            Seconds::of(&passes.iter().map(|pass| of(pass)).collect::<Vec<_>>(), &middle)
        };
        let traced = seconds(TracedPass::seconds)?;
        let (between, sampling) = (seconds(TracedPass::between)?, seconds(TracedPass::sampling)?);
        let work =
            self.work(phase, first.scopes().filter_map(|(run, scope)| Some((run, scope.step?))).collect());
        let (launches, launched) = self.launches(phase);
        let overhead = |one: &Repetition| {
            one.ways.launches.as_ref().unwrap_or(&one.ways.kernels).wall / one.ways.untraced - 1.0
        };
        let overhead = Spread::of(phase.repetitions.iter().map(overhead).collect())?;
        let untraced: Vec<f64> = phase.repetitions.iter().map(|one| one.ways.untraced).collect();
        let untraced_middle = self::middle(&untraced);
        let of_steps = first.kernels_of_steps();
        let kernels = Kernels { passes, middle, whole: traced.mean, of_steps };
        Some(Summary {
            rows: self.rows(phase, &kernels, by),
            launches,
            between,
            sampling,
            traced,
            clock: phase.clock() * first.scopes().count() as f64,
            launched,
            overhead,
            cost: work.cost,
            bound: work.bound(phase, &untraced, &untraced_middle),
            untraced: Seconds::of(&untraced, &untraced_middle)?,
        })
    }

    fn rows(&self, phase: &Phase, kernels: &Kernels<'_>, by: By) -> Vec<Row> {
        let passes = &kernels.passes;
        let groups = match by {
            By::Operation => group(passes, |scope| self.operation(scope)),
            By::Step => group(passes, |scope| match scope.step {
                Some(step) => (Some(step), String::new()),
                None => (None, scope.kernel.clone()),
            }),
            By::Kernel => group(passes, |scope| scope.kernel.clone()),
        };
        let row = |group: Group<'_>| self.row(phase, &group, kernels, by);
        let mut rows: Vec<Row> = groups.into_iter().filter_map(row).collect();
        match by {
            By::Operation | By::Kernel => longest_first(&mut rows),
            By::Step => {}
        }
        rows
    }

    /// What tells operations apart.
    fn operation(&self, scope: &Scope) -> (String, String, &[String]) {
        match scope.step.and_then(|index| Some((self.plan.steps.get(index)?, self.labels.get(index)?))) {
            Some((step, label)) => (role(step).to_owned(), label.contract.clone(), &label.flags),
            None => (scope.kernel.clone(), String::new(), &[]),
        }
    }

    fn row(&self, phase: &Phase, group: &Group<'_>, kernels: &Kernels<'_>, by: By) -> Option<Row> {
        let mut steps: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (run, scope) in &group.scopes {
            *steps.entry((*run, scope.step.unwrap_or(usize::MAX))).or_default() += 1;
        }
        let alone = steps.iter().all(|(step, scopes)| kernels.of_steps.get(step) == Some(scopes));
        let work = alone.then(|| self.work(phase, steps.keys().copied().collect()));
        let seconds = Seconds::of(&group.seconds, &kernels.middle)?;
        let label = self.label(phase, group, &steps);
        let name = match (by, steps.keys().next().and_then(|&(_, index)| self.plan.steps.get(index))) {
            (By::Operation, Some(step)) => role(step).to_owned(),
            (By::Step, Some(step)) => step.name.clone(),
            _ => label.kernel.clone(),
        };
        Some(Row {
            name,
            calls: group.scopes.len(),
            seconds,
            share: seconds.mean / kernels.whole,
            bound: work.as_ref().and_then(|work| work.bound(phase, &group.seconds, &kernels.middle)),
            cost: work.map(|work| work.cost),
            label,
        })
    }

    fn label(&self, phase: &Phase, group: &Group<'_>, steps: &BTreeMap<(usize, usize), usize>) -> Label {
        let first = steps.keys().next().and_then(|&(_, index)| self.labels.get(index));
        let of = |(run, step): &(usize, usize)| Some(phase.steps.get(*run)?.get(*step)?.shape.as_str());
        let mut shapes: Vec<&str> = Vec::new();
        for shape in steps.keys().filter_map(of) {
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        let shape = match shapes.as_slice() {
            [] => String::new(),
            [one] => (*one).to_owned(),
            [first, .., last] => format!("{first} .. {last}"),
        };
        let backend = self.plan.backend.name.clone();
        Label { backend, kernel: group.kernels(), shape, ..first.cloned().unwrap_or_default() }
    }

    /// What is launched as one, and the seconds of all; nothing where that is kernel by kernel. Launches have no steps of
    /// their own: what a graph or a kernel for many steps computes is the phase's.
    fn launches(&self, phase: &Phase) -> (Vec<Row>, Option<Seconds>) {
        let passes: Vec<&TracedPass> =
            phase.repetitions.iter().filter_map(|one| one.ways.launches.as_ref()).collect();
        let wholes: Vec<f64> = passes.iter().map(|pass| pass.seconds()).collect();
        let middle = middle(&wholes);
        let Some(whole) = Seconds::of(&wholes, &middle) else { return (Vec::new(), None) };
        let row = |group: Group<'_>| {
            let kernel = group.kernels();
            let backend = self.plan.backend.name.clone();
            let seconds = Seconds::of(&group.seconds, &middle)?;
            Some(Row {
                name: kernel.clone(),
                calls: group.scopes.len(),
                seconds,
                share: seconds.mean / whole.mean,
                cost: None,
                bound: None,
                label: Label { backend, kernel, ..Label::default() },
            })
        };
        let groups = group(&passes, |scope| scope.kernel.clone());
        let mut rows: Vec<Row> = groups.into_iter().filter_map(row).collect();
        longest_first(&mut rows);
        (rows, Some(whole))
    }

    /// What steps of runs move and compute, each once.
    fn work(&self, phase: &Phase, steps: BTreeSet<(usize, usize)>) -> Work {
        let mut work = Work::default();
        for (run, index) in steps {
            let computed = phase.steps.get(run).and_then(|steps| steps.get(index));
            let (Some(computed), Some(step)) = (computed, self.plan.steps.get(index)) else { continue };
            work.cost = work.cost + computed.cost;
            if multiplies(step) {
                *work.products.entry(Unit::of(&step.contract)).or_default() += computed.cost.operations;
            }
        }
        work
    }
}

/// What steps move and compute.
#[derive(Clone, Debug, Default)]
struct Work {
    cost: Cost,
    /// Operations of each unit that multiplies.
    products: BTreeMap<Unit, u64>,
}

impl Work {
    /// The nearer ceiling of so many seconds in each repetition, over some of them, each against the ceilings around it.
    fn bound(&self, phase: &Phase, seconds: &[f64], middle: &[usize]) -> Option<Bound> {
        let (mut taken, mut reading, mut multiplying) = (0.0, 0.0, 0.0);
        for &index in middle {
            let ceiling = &phase.repetitions.get(index)?.ceiling;
            taken += seconds.get(index)?;
            reading += self.cost.bytes() as f64 / ceiling.read.median;
            multiplying += self.multiplying(ceiling);
        }
        let times = middle.len() as f64;
        let bound = |limit, amount: u64, ideal: f64| {
            let amount = amount as f64 * times;
            Bound { limit, achieved: amount / taken, ceiling: amount / ideal, share: ideal / taken }
        };
        let nearer = if multiplying > reading {
            bound(Limit::Multiply, self.products.values().sum(), multiplying)
        } else {
            bound(Limit::Memory, self.cost.bytes(), reading)
        };
        (self.cost.bytes() > 0).then_some(nearer)
    }

    /// Seconds of the products at the rates of their units.
    fn multiplying(&self, ceiling: &Ceiling) -> f64 {
        let seconds = |(unit, &operations): (&Unit, &u64)| {
            let rate = ceiling.multiply.get(unit).map_or(f64::INFINITY, |rate| rate.median);
            operations as f64 / rate
        };
        self.products.iter().map(seconds).sum()
    }
}

/// Scopes that are summed up as one.
struct Group<'a> {
    /// Those of the first repetition, each with the number of its run.
    scopes: Vec<(usize, &'a Scope)>,
    /// Their seconds in each repetition.
    seconds: Vec<f64>,
}

impl Group<'_> {
    /// The names of their kernels, each once.
    fn kernels(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for (_, scope) in &self.scopes {
            if !names.contains(&scope.kernel.as_str()) {
                names.push(&scope.kernel);
            }
        }
        names.join(" + ")
    }
}

/// The scopes of passes by a key, in the order in which keys come up.
fn group<'a, K: Eq + Hash>(passes: &[&'a TracedPass], key: impl Fn(&'a Scope) -> K) -> Vec<Group<'a>> {
    let mut places: HashMap<K, usize> = HashMap::new();
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (repetition, pass) in passes.iter().enumerate() {
        for (run, scope) in pass.scopes() {
            let place = *places.entry(key(scope)).or_insert(groups.len());
            if place == groups.len() {
                groups.push(Group { scopes: Vec::new(), seconds: vec![0.0; passes.len()] });
            }
            let group = &mut groups[place];
            group.seconds[repetition] += scope.seconds;
            if repetition == 0 {
                group.scopes.push((run, scope));
            }
        }
    }
    groups
}

fn longest_first(rows: &mut [Row]) {
    rows.sort_by(|a, b| b.seconds.mean.total_cmp(&a.seconds.mean));
}

/// The name of a step without that of its layer: `qkv` of `layers.3.qkv`.
fn role(step: &Step) -> &str {
    let of_layer = step.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match of_layer {
        Some((layer, role)) if layer.parse::<usize>().is_ok() => role,
        _ => &step.name,
    }
}
