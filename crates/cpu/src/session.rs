//! A plan made ready for the CPU: packed weights, the KV cache, values and scratch; runs step after step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mantissa_ops::backend::{
    LoadOptions, LoadReport, MemoryUse, PrepareError, Progress, RunError, Session, StepObserver, ValueReader,
};
use mantissa_ops::batch::{Batch, Limits};
use mantissa_ops::load::check_kinds;
use mantissa_ops::program::{RunRows, WeightKind};
use mantissa_ops::trace::host_clock;
use mantissa_ops::{
    Grain, Op, Plan, Scope, ShapeClass, TensorSource, Trace, ValueId, WeightId, WeightLayout,
};

use crate::aligned::{AlignedBuffer, Arena, OutOfMemory};
use crate::attention::AttentionWorkspace;
use crate::cache::{CacheError, KvCache};
use crate::experimental::Kernels;
use crate::isa::Tier;
use crate::matmul::MatmulScratch;
use crate::operands::Machine;
use crate::pack::PANEL;
use crate::pool::Pool;
use crate::rope::{RopeError, RopeTables};
use crate::sdpa::sdpa_scratch;
use crate::steps::Runner;
use crate::values::{Values, poisoned};
use crate::weights::{Loader, Weights};

/// Memory that steps use between reading and writing values.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub matmul: MatmulScratch,
    /// f32 products of queries, keys and values; rows of looked-up tokens; scores of materialised attention.
    pub floats: AlignedBuffer,
    /// Intermediates of the FFN, or the rows whose logits are wanted, in the activation format.
    pub activations: AlignedBuffer,
    /// One workspace per shape of heads.
    pub attention: Vec<(mantissa_ops::op::Heads, AttentionWorkspace)>,
}

/// What a session computes with.
pub(crate) struct SessionMachine {
    pub tier: Tier,
    pub pool: Arc<Pool>,
    pub kernels: Kernels,
}

/// A prepared plan.
pub(crate) struct CpuSession {
    machine: SessionMachine,
    plan: Arc<Plan>,
    limits: Limits,
    report: LoadReport,
    weights: Weights,
    values: Values,
    rope: Option<RopeTables>,
    cache: Option<KvCache>,
    scratch: Scratch,
    rows: RunRows,
}

impl CpuSession {
    /// Loads weights and allocates everything.
    pub fn prepare(
        machine: SessionMachine,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<CpuSession, PrepareError> {
        let limits = options.limits;
        limits.check()?;
        check_kinds(&plan.program)?;
        let started = Instant::now();
        let mut report = LoadReport::default();
        let pool = &machine.pool;
        let memory = Arena::default();
        let loader = Loader { pool, source, overflow: options.overflow, progress, memory };
        let weights = Weights::load(&plan, loader, &mut report)?;
        let rope = match &plan.program.rope {
            Some(spec) => Some(RopeTables::new(spec, limits.context, pool).map_err(rope_error)?),
            None => None,
        };
        let cache = match plan.program.cache {
            Some(spec) => Some(KvCache::new(spec, plan.cache_format(), &limits).map_err(cache_error)?),
            None => None,
        };
        let values = Values::new(&plan, &limits)?;
        let scratch = Scratch::new(&plan, &limits, pool)?;
        report.seconds = started.elapsed().as_secs_f64();
        let rows = RunRows::default();
        Ok(CpuSession { machine, plan, limits, report, weights, values, rope, cache, scratch, rows })
    }

    fn execute(&mut self, batch: &Batch<'_>, mut watch: impl Watch) -> Result<(), RunError> {
        batch.check(&self.limits, &self.plan.batch_rules())?;
        self.rows = RunRows { tokens: batch.rows(), outputs: batch.outputs.len() };
        let plan = Arc::clone(&self.plan);
        for (index, step) in plan.steps.iter().enumerate() {
            watch.before(index);
            let mut runner = Runner {
                machine: Machine { tier: self.machine.tier, pool: &self.machine.pool },
                kernels: self.machine.kernels,
                weights: &self.weights,
                values: &mut self.values,
                rope: self.rope.as_ref(),
                cache: self.cache.as_mut(),
                scratch: &mut self.scratch,
                batch,
                rows: self.rows,
            };
            runner
                .step(&step.op)
                .map_err(|error| RunError::Kernel { step: step.name.clone(), message: error.to_string() })?;
            watch.after(index, self);
        }
        Ok(())
    }
}

/// What looks on while steps run.
trait Watch {
    fn before(&mut self, step: usize);
    fn after(&mut self, step: usize, values: &dyn ValueReader);
}

/// Nobody does.
struct Unwatched;

impl Watch for Unwatched {
    fn before(&mut self, _step: usize) {}
    fn after(&mut self, _step: usize, _values: &dyn ValueReader) {}
}

impl Watch for &mut dyn StepObserver {
    fn before(&mut self, step: usize) {
        self.before_step(step);
    }

    fn after(&mut self, step: usize, values: &dyn ValueReader) {
        self.after_step(step, values);
    }
}

/// Reads the clock before and after every step.
struct Stopwatch {
    started: Instant,
    /// Beginning and end of each.
    times: Vec<(Duration, Duration)>,
    begun: Duration,
}

impl Stopwatch {
    fn start(steps: usize) -> Stopwatch {
        let times = Vec::with_capacity(steps);
        Stopwatch { started: Instant::now(), times, begun: Duration::ZERO }
    }

    fn trace(self, plan: &Plan, class: ShapeClass) -> Trace {
        let seconds = self.started.elapsed().as_secs_f64();
        let scope = |(step, (begun, ended)): (usize, (Duration, Duration))| Scope {
            step: Some(step),
            kernel: plan.steps[step].kernel(class).kernel.clone(),
            start: begun.as_secs_f64(),
            seconds: (ended - begun).as_secs_f64(),
        };
        let scopes = self.times.into_iter().enumerate().map(scope).collect();
        Trace { scopes, seconds, clock: host_clock() }
    }
}

impl Watch for &mut Stopwatch {
    fn before(&mut self, _step: usize) {
        self.begun = self.started.elapsed();
    }

    fn after(&mut self, _step: usize, _values: &dyn ValueReader) {
        self.times.push((self.begun, self.started.elapsed()));
    }
}

impl Scratch {
    fn new(plan: &Plan, limits: &Limits, pool: &Pool) -> Result<Scratch, PrepareError> {
        let program = &plan.program;
        let (mut columns, mut floats, mut activations) = (0, 0, 0);
        let mut attention: Vec<(mantissa_ops::op::Heads, AttentionWorkspace)> = Vec::new();
        let memory = |what: &str, error: OutOfMemory| PrepareError::OutOfMemory {
            what: what.to_owned(),
            bytes: error.bytes as u64,
        };
        for step in &program.steps {
            for id in step.op.weights() {
                columns = columns.max(program.weight(id).columns);
            }
            match &step.op {
                Op::Embedding(op) => floats = floats.max(pool.threads() * program.weight(op.table).columns),
                Op::Qkv(op) => {
                    floats = floats.max(limits.rows.saturating_mul(program.weight(op.weight).rows))
                }
                Op::Sdpa(op) => floats = floats.max(sdpa_scratch(op.heads, limits.rows, pool)),
                Op::Ffn(op) => {
                    activations =
                        activations.max(limits.rows.saturating_mul(program.weight(op.down).columns));
                }
                Op::Logits(op) => {
                    activations =
                        activations.max(limits.outputs.saturating_mul(program.weight(op.weight).columns));
                }
                Op::Attention(op) if attention.iter().all(|(heads, _)| *heads != op.heads) => {
                    let workspace = AttentionWorkspace::new(op.heads, limits, pool)
                        .map_err(|error| memory("attention", error))?;
                    attention.push((op.heads, workspace));
                }
                _ => {}
            }
        }
        let activation_bytes = activations.saturating_mul(plan.policy.activations().bytes());
        Ok(Scratch {
            matmul: MatmulScratch::for_size(limits.rows, columns, pool.threads())
                .map_err(|error| memory("matrix products", error))?,
            floats: poisoned(floats.saturating_mul(size_of::<f32>()), "scratch of products")?,
            activations: poisoned(activation_bytes, "scratch of activations")?,
            attention,
        })
    }

    fn bytes(&self) -> usize {
        let attention: usize = self.attention.iter().map(|(_, workspace)| workspace.bytes()).sum();
        self.matmul.bytes() + self.floats.len() + self.activations.len() + attention
    }
}

fn rope_error(error: RopeError) -> PrepareError {
    let what = "rotary tables";
    match error {
        RopeError::Memory(OutOfMemory { bytes }) => {
            PrepareError::OutOfMemory { what: what.to_owned(), bytes: bytes as u64 }
        }
        other => PrepareError::Part { what, message: other.to_string() },
    }
}

fn cache_error(error: CacheError) -> PrepareError {
    let what = "KV cache";
    match error {
        CacheError::Memory(OutOfMemory { bytes }) => {
            PrepareError::OutOfMemory { what: what.to_owned(), bytes: bytes as u64 }
        }
        other => PrepareError::Part { what, message: other.to_string() },
    }
}

impl ValueReader for CpuSession {
    fn read(&self, value: ValueId) -> Vec<f32> {
        self.values.decoded(value, self.rows)
    }
}

impl Session for CpuSession {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn report(&self) -> &LoadReport {
        &self.report
    }

    fn memory(&self) -> MemoryUse {
        let tables = self.rope.as_ref().map_or(0, RopeTables::bytes) as u64;
        MemoryUse {
            weights: self.weights.bytes(),
            cache: self.cache.as_ref().map_or(0, KvCache::bytes) as u64,
            scratch: self.values.bytes() + self.scratch.bytes() as u64 + tables,
        }
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        self.execute(batch, Unwatched)
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.execute(batch, observer)
    }

    /// Every step is a scope: no two run at once, and none is launched with another.
    fn run_traced(&mut self, batch: &Batch<'_>, _grain: Grain) -> Result<Trace, RunError> {
        let mut stopwatch = Stopwatch::start(self.plan.steps.len());
        self.execute(batch, &mut stopwatch)?;
        let class = ShapeClass::of(batch.rows());
        Ok(stopwatch.trace(&self.plan, class))
    }

    fn weight_layout(&self, weight: WeightId) -> WeightLayout {
        match self.plan.program.weight(weight).kind {
            WeightKind::Matrix | WeightKind::GateUp => WeightLayout::Panels { rows: PANEL },
            WeightKind::Vector => WeightLayout::Rows { stride: 1 },
        }
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        Ok(match self.plan.program.logits() {
            Some(id) => self.values.as_f32(id, self.rows),
            None => &[],
        })
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.values.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        match &mut self.cache {
            Some(cache) => cache
                .copy_page(from, to)
                .map_err(|error| RunError::Page { page: error.page, pages: error.pages }),
            None => Err(RunError::Page { page: from, pages: 0 }),
        }
    }
}
