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

/// Something that takes time, in all batches of a phase together.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Scopes in one repetition.
    pub calls: usize,
    /// Seconds in one repetition.
    pub seconds: Spread,
    /// Of the phase's traced time, kernel by kernel.
    pub share: f64,
    /// What it moves and computes in one repetition; nothing where it is no step, or where kernels of another row take part.
    pub cost: Option<Cost>,
    /// The nearer one of the machine's ceilings, where the cost is known.
    pub bound: Option<Bound>,
    /// What else is to be known of it; only backend and kernel where it is no step.
    pub label: Label,
}

/// A phase, summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// What takes time, kernel by kernel: the longest first, or step after step.
    pub rows: Vec<Row>,
    /// What is launched as one, where that is not a kernel: the longest first, without costs.
    pub launches: Vec<Row>,
    /// Seconds of the runs that belong to no scope, kernel by kernel.
    pub between: Spread,
    /// Seconds that the choice of tokens took.
    pub sampling: Spread,
    /// Seconds of everything, kernel by kernel.
    pub traced: Spread,
    /// Seconds of everything as it is launched, where that is not kernel by kernel.
    pub launched: Option<Spread>,
    /// Seconds of everything, untraced, by the host's clock.
    pub untraced: Spread,
    /// What a trace adds to the untraced phase by the host's clock, as a share of it; of launches, where they are not kernels.
    pub overhead: Spread,
    /// What all steps move and compute.
    pub cost: Cost,
    /// The nearer ceiling of the untraced phase.
    pub bound: Option<Bound>,
}

impl Profile {
    /// Sums a phase up; nothing where it has no repetition.
    pub fn summary(&self, phase: &Phase, by: By) -> Option<Summary> {
        let spread = |of: &dyn Fn(&Repetition) -> f64| Spread::of(phase.repetitions.iter().map(of).collect());
        let passes: Vec<&TracedPass> = phase.repetitions.iter().map(|one| &one.ways.kernels).collect();
        let launches: Vec<&TracedPass> =
            phase.repetitions.iter().filter_map(|one| one.ways.launches.as_ref()).collect();
        let traced = spread(&|one| one.ways.kernels.seconds())?;
        let overhead = |one: &Repetition| {
            one.ways.launches.as_ref().unwrap_or(&one.ways.kernels).wall / one.ways.untraced - 1.0
        };
        let scopes = passes.first()?.scopes();
        let work = self.work(phase, scopes.filter_map(|(run, scope)| Some((run, scope.step?))).collect());
        let untraced: Vec<f64> = phase.repetitions.iter().map(|one| one.ways.untraced).collect();
        Some(Summary {
            rows: self.rows(phase, &passes, by, traced.median),
            launches: self.launch_rows(&launches),
            between: spread(&|one| one.ways.kernels.between())?,
            sampling: spread(&|one| one.ways.kernels.sampling())?,
            traced,
            launched: Spread::of(launches.iter().map(|pass| pass.seconds()).collect()),
            overhead: spread(&overhead)?,
            cost: work.cost,
            bound: work.bound(phase, &untraced),
            untraced: Spread::of(untraced)?,
        })
    }

    fn rows(&self, phase: &Phase, passes: &[&TracedPass], by: By, whole: f64) -> Vec<Row> {
        let groups = match by {
            By::Operation => group(passes, |scope| self.operation(scope)),
            By::Step => group(passes, |scope| match scope.step {
                Some(step) => (Some(step), String::new()),
                None => (None, scope.kernel.clone()),
            }),
            By::Kernel => group(passes, |scope| scope.kernel.clone()),
        };
        let kernels = passes.first().map(|pass| pass.kernels_of_steps()).unwrap_or_default();
        let row = |group: Group<'_>| self.row(phase, group, &kernels, by, whole);
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

    fn row(
        &self,
        phase: &Phase,
        group: Group<'_>,
        kernels: &HashMap<(usize, usize), usize>,
        by: By,
        whole: f64,
    ) -> Option<Row> {
        let mut steps: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (run, scope) in &group.scopes {
            *steps.entry((*run, scope.step.unwrap_or(usize::MAX))).or_default() += 1;
        }
        let alone = steps.iter().all(|(step, scopes)| kernels.get(step) == Some(scopes));
        let work = alone.then(|| self.work(phase, steps.keys().copied().collect()));
        let seconds = Spread::of(group.seconds.clone())?;
        let label = self.label(phase, &group, &steps);
        let name = match (by, steps.keys().next().and_then(|&(_, index)| self.plan.steps.get(index))) {
            (By::Operation, Some(step)) => role(step).to_owned(),
            (By::Step, Some(step)) => step.name.clone(),
            _ => label.kernel.clone(),
        };
        Some(Row {
            name,
            calls: group.scopes.len(),
            seconds,
            share: seconds.median / whole,
            bound: work.as_ref().and_then(|work| work.bound(phase, &group.seconds)),
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

    /// Launches have no steps of their own: what a graph or a kernel for many steps computes is the phase's.
    fn launch_rows(&self, passes: &[&TracedPass]) -> Vec<Row> {
        let whole = Spread::of(passes.iter().map(|pass| pass.seconds()).collect());
        let row = |group: Group<'_>| {
            let kernel = group.kernels();
            let backend = self.plan.backend.name.clone();
            let seconds = Spread::of(group.seconds.clone())?;
            Some(Row {
                name: kernel.clone(),
                calls: group.scopes.len(),
                seconds,
                share: seconds.median / whole?.median,
                cost: None,
                bound: None,
                label: Label { backend, kernel, ..Label::default() },
            })
        };
        let groups = group(passes, |scope| scope.kernel.clone());
        let mut rows: Vec<Row> = groups.into_iter().filter_map(row).collect();
        longest_first(&mut rows);
        rows
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
    /// The nearer ceiling, of so many seconds in each repetition, each against the ceilings around it.
    fn bound(&self, phase: &Phase, seconds: &[f64]) -> Option<Bound> {
        let pairs = phase.repetitions.iter().zip(seconds);
        let bounds: Vec<Bound> = pairs.map(|(one, &seconds)| self.bound_in(&one.ceiling, seconds)).collect();
        Bound::median(&bounds).filter(|_| self.cost.bytes() > 0)
    }

    fn bound_in(&self, ceiling: &Ceiling, seconds: f64) -> Bound {
        let bytes = self.cost.bytes() as f64;
        let memory = Bound {
            limit: Limit::Memory,
            achieved: bytes / seconds,
            ceiling: ceiling.read.median,
            share: bytes / ceiling.read.median / seconds,
        };
        let ideal = |(unit, &operations): (&Unit, &u64)| {
            let rate = ceiling.multiply.get(unit).map_or(f64::INFINITY, |rate| rate.median);
            operations as f64 / rate
        };
        let ideal: f64 = self.products.iter().map(ideal).sum();
        let operations = self.products.values().sum::<u64>() as f64;
        if ideal / seconds <= memory.share {
            return memory;
        }
        Bound {
            limit: Limit::Multiply,
            achieved: operations / seconds,
            ceiling: operations / ideal,
            share: ideal / seconds,
        }
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
    rows.sort_by(|a, b| b.seconds.median.total_cmp(&a.seconds.median));
}

/// The name of a step without that of its layer: `qkv` of `layers.3.qkv`.
fn role(step: &Step) -> &str {
    let of_layer = step.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match of_layer {
        Some((layer, role)) if layer.parse::<usize>().is_ok() => role,
        _ => &step.name,
    }
}
