//! What the machine could do at most, and how much of it was reached.

use std::collections::{BTreeMap, BTreeSet};

use mantissa::numerics::contract::Family;
use mantissa::ops::ceilings::Unit;
use mantissa::ops::cost::RunShape;
use mantissa::ops::{Backend, Ceilings, Plan, Step};

use crate::LabError;
use crate::decode::Window;
use crate::stats::Spread;

/// Bytes that are read for a ceiling: far more than any cache holds.
pub const READ_BYTES: usize = 1 << 30;
/// Ceilings are measured this often before a policy, and as often after it.
const SAMPLES: usize = 5;

/// Measurements of the ceilings.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    read: Vec<f64>,
    multiply: BTreeMap<Unit, Vec<f64>>,
}

impl Samples {
    /// Measures how fast memory is read, and how fast the units multiply that a plan names.
    ///
    /// # Errors
    /// Where the backend has no such ceiling, or its device fails.
    pub fn take(&mut self, backend: &dyn Backend, plan: &Plan) -> Result<(), LabError> {
        let ceilings = backend.ceilings(READ_BYTES)?;
        // The first pass finds memory and clocks as somebody else left them.
        ceilings.read()?;
        for _ in 0..SAMPLES {
            self.read.push(ceilings.read()?);
        }
        let units: BTreeSet<Unit> = multiplying(plan).map(|step| Unit::of(&step.contract)).collect();
        for unit in units {
            let samples = self.multiply.entry(unit).or_default();
            for _ in 0..SAMPLES {
                samples.push(ceilings.multiply(unit)?);
            }
        }
        Ok(())
    }

    /// Whether none were taken.
    pub fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Takes one sample, for measurements that are held against the ceilings around them.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn add(&mut self, ceilings: &dyn Ceilings, plan: &Plan) -> Result<(), LabError> {
        self.read.push(ceilings.read()?);
        let units: BTreeSet<Unit> = multiplying(plan).map(|step| Unit::of(&step.contract)).collect();
        for unit in units {
            self.multiply.entry(unit).or_default().push(ceilings.multiply(unit)?);
        }
        Ok(())
    }

    /// The ceilings around what was measured between two samples.
    ///
    /// # Errors
    /// Where there are no such samples.
    pub fn between(&self, first: usize, second: usize) -> Result<Ceiling, LabError> {
        let of =
            |samples: &Vec<f64>| [first, second].iter().filter_map(|&at| samples.get(at).copied()).collect();
        let multiply = self.multiply.iter().map(|(&unit, samples)| (unit, of(samples)));
        Samples { read: of(&self.read), multiply: multiply.collect() }.ceiling()
    }

    /// The ceilings that they amount to.
    ///
    /// # Errors
    /// Where none were taken.
    pub fn ceiling(self) -> Result<Ceiling, LabError> {
        let spread = |samples| {
            Spread::of(samples).ok_or(LabError::Unfinished { what: "ceilings", measured: 0, wanted: SAMPLES })
        };
        let multiply = self.multiply.into_iter().map(|(unit, samples)| Ok((unit, spread(samples)?)));
        Ok(Ceiling { read: spread(self.read)?, multiply: multiply.collect::<Result<_, LabError>>()? })
    }
}

/// The ceilings of the machine before and after a policy, taken together.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceiling {
    /// Streaming reads, bytes per second.
    pub read: Spread,
    /// Operations per second of each unit that the plan multiplies with.
    pub multiply: BTreeMap<Unit, Spread>,
}

/// What limits a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// How fast memory is read.
    Memory,
    /// How fast products are formed.
    Multiply,
}

impl Limit {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Multiply => "multiply-add rate",
            Limit::Memory => "memory bandwidth",
        }
    }

    /// The unit of its rates.
    pub const fn unit(self) -> &'static str {
        match self {
            Limit::Multiply => "op/s",
            Limit::Memory => "B/s",
        }
    }
}

/// How much of the most was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// What limits it.
    pub limit: Limit,
    /// Bytes or operations per second, at the median.
    pub achieved: f64,
    /// Bytes or operations per second.
    pub ceiling: f64,
    /// How much of the ceiling was reached; of decode the median of the windows, each with its own ceiling.
    pub share: f64,
}

impl Bound {
    /// The medians of bounds, of those with the limit that most of them have.
    pub fn median(bounds: &[Bound]) -> Option<Bound> {
        let of_memory = bounds.iter().filter(|bound| bound.limit == Limit::Memory).count();
        let limit = if 2 * of_memory > bounds.len() { Limit::Memory } else { Limit::Multiply };
        let of = |value: fn(&Bound) -> f64| {
            let alike = bounds.iter().filter(|bound| bound.limit == limit);
            Some(Spread::of(alike.map(value).collect())?.median)
        };
        Some(Bound {
            limit,
            achieved: of(|bound| bound.achieved)?,
            ceiling: of(|bound| bound.ceiling)?,
            share: of(|bound| bound.share)?,
        })
    }
}

impl Ceiling {
    /// The bound of a run that its products limit.
    pub fn of_products(&self, plan: &Plan, shape: &RunShape, seconds: f64) -> Bound {
        let Products { operations, seconds: ideal } = self.products(plan, shape);
        Bound {
            limit: Limit::Multiply,
            achieved: operations / seconds,
            ceiling: operations / ideal,
            share: ideal / seconds,
        }
    }

    /// The bound of one step of a plan: whichever of memory and products needs longer.
    pub fn of_step(&self, plan: &Plan, step: &Step, shape: &RunShape, seconds: f64) -> Bound {
        let cost = plan.step_cost(step, shape);
        let bound = |limit, amount: u64, ceiling: f64| {
            let achieved = amount as f64 / seconds;
            Bound { limit, achieved, ceiling, share: achieved / ceiling }
        };
        let rate = self.multiply.get(&Unit::of(&step.contract)).map_or(f64::INFINITY, |rate| rate.median);
        let memory = cost.weights + cost.cache_read + cost.cache_written;
        let memory = bound(Limit::Memory, memory, self.read.median);
        let multiply = bound(Limit::Multiply, cost.operations, rate);
        if multiply.share > memory.share { multiply } else { memory }
    }

    /// The bound of decoding: whichever of memory and products needs longer. Each window is held against the bandwidth
    /// around it.
    pub fn of_windows(&self, plan: &Plan, tokens: usize, windows: &[Window]) -> Option<Bound> {
        let (mut read, mut multiply) = (Vec::new(), Vec::new());
        for window in windows {
            let (mut bytes, mut products) = (0, Products::default());
            for shape in window.shapes(tokens) {
                let cost = plan.cost(&shape);
                bytes += cost.weights + cost.cache_read + cost.cache_written;
                let step = self.products(plan, &shape);
                products.operations += step.operations;
                products.seconds += step.seconds;
            }
            let rate = bytes as f64 / window.seconds;
            read.push(Bound {
                limit: Limit::Memory,
                achieved: rate,
                ceiling: window.read,
                share: rate / window.read,
            });
            multiply.push(Bound {
                limit: Limit::Multiply,
                achieved: products.operations / window.seconds,
                ceiling: products.operations / products.seconds,
                share: products.seconds / window.seconds,
            });
        }
        [Bound::median(&read)?, Bound::median(&multiply)?]
            .into_iter()
            .max_by(|a, b| a.share.total_cmp(&b.share))
    }

    /// Operations of linear layers and attention, and the seconds that they take at the peak rate of each one's
    /// contract. Splitting a prompt into chunks changes neither.
    fn products(&self, plan: &Plan, shape: &RunShape) -> Products {
        let mut products = Products::default();
        for step in multiplying(plan) {
            let operations = plan.step_cost(step, shape).operations as f64;
            let rate = self.multiply.get(&Unit::of(&step.contract)).map_or(f64::INFINITY, |rate| rate.median);
            products.operations += operations;
            products.seconds += operations / rate;
        }
        products
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Products {
    operations: f64,
    /// At the peak rates.
    seconds: f64,
}

/// The steps that are matrix products or attention.
fn multiplying(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.steps.iter().filter(|step| multiplies(step))
}

/// Whether a step is a matrix product or attention, whose operations are many for the bytes that they need.
pub(crate) fn multiplies(step: &Step) -> bool {
    match step.op.family() {
        Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits | Family::Attention => {
            true
        }
        Family::Embedding
        | Family::RmsNorm
        | Family::Rope
        | Family::Softmax
        | Family::Sdpa
        | Family::Residual => false,
    }
}
