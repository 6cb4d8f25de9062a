//! A plan made ready for a GPU: weights, cache, values and scratch in its memory, every kernel loaded.

use std::sync::Arc;
use std::time::Instant;

use mantissa_ops::backend::{
    LoadOptions, LoadReport, MemoryUse, NextRun, PrepareError, Progress, RunError, Session, StepObserver,
    ValueReader,
};
use mantissa_ops::batch::{Batch, Limits};
use mantissa_ops::load::check_kinds;
use mantissa_ops::program::{RunRows, ValueRole};
use mantissa_ops::reduction::{Reduced, Request};
use mantissa_ops::view::WeightLayout;
use mantissa_ops::{Grain, Op, Plan, Program, Step, TensorSource, Trace, ValueId, WeightId};

use crate::backend::Machine;
use crate::batch::{AttentionKind, DeviceBatch, attention_heads};
use crate::cache::KvCache;
use crate::cublaslt::CublasLt;
use crate::device::{Device, HostBuffer, Stream};
use crate::error::{CudaError, prepare_error};
use crate::families::{attention, batch, elementwise, qkv, sampling};
use crate::graph::Graphs;
use crate::kernels::Loaded;
use crate::needs::{Needs, Taken};
use crate::reducer::{self, Bests, Reducer};
use crate::scratch::{Scratch, ScratchSizes};
use crate::select::{Chooser, Formats, required_kernels, token_spec};
use crate::stream::Event;
use crate::tables::RopeTables;
use crate::token::{Parts, TokenKernel, token_sizes};
use crate::values::Values;
use crate::weights::{Loader, Weights};

/// A prepared plan. Fields that use the stream come before it, so that it is the last to go.
pub(crate) struct CudaSession {
    pub(crate) plan: Arc<Plan>,
    pub(crate) limits: Limits,
    report: LoadReport,
    pub(crate) kernels: Loaded,
    pub(crate) chooser: Chooser,
    pub(crate) weights: Weights,
    pub(crate) values: Values,
    pub(crate) tables: Option<RopeTables>,
    pub(crate) cache: Option<KvCache>,
    pub(crate) scratch: Scratch,
    pub(crate) library: Option<Arc<CublasLt>>,
    sizes: ScratchSizes,
    pub(crate) batch: DeviceBatch,
    logits: HostBuffer,
    /// Bytes of the last run's logits, once they are asked for.
    pub(crate) logit_bytes: Option<usize>,
    pub(crate) reducer: Option<Reducer>,
    /// What the last run's kernel has left of its logits, as long as nobody else has written them.
    pub(crate) bests: Option<Bests>,
    pub(crate) rows: RunRows,
    taken: Taken,
    pub(crate) graphs: Graphs,
    pub(crate) token: Option<TokenKernel>,
    /// For traces.
    pub(crate) moments: Vec<Event>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) device: Device,
}

impl CudaSession {
    /// What a session of the plan would hold.
    pub fn predict(machine: &Machine, plan: &Plan, limits: &Limits) -> Result<MemoryUse, PrepareError> {
        limits.check()?;
        let kinds = attention_kinds(plan, &machine.chooser)?;
        let token = token_sizes(plan, &machine.chooser)?;
        let sizes = ScratchSizes::of(plan, limits, &kinds, token.as_ref());
        Ok(Needs::of(plan, limits, &sizes, kinds.len())?.memory)
    }

    /// Loads kernels and weights and allocates everything.
    pub fn prepare(
        machine: &Machine,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<CudaSession, PrepareError> {
        let Machine { device, store, chooser, library } = machine;
        let limits = options.limits;
        limits.check()?;
        check_kinds(&plan.program)?;
        check_overlap(&plan)?;
        check_heads(&plan.program)?;
        let kinds = attention_kinds(&plan, chooser)?;
        let token = token_sizes(&plan, chooser)?;
        let sizes = ScratchSizes::of(&plan, &limits, &kinds, token.as_ref());
        Needs::of(&plan, &limits, &sizes, kinds.len())?.check(device.free_memory())?;
        let taken = Taken::before(device);
        let failed = |error| prepare_error("the session", error);
        let started = Instant::now();
        let stream = Arc::new(device.stream().map_err(failed)?);
        let reduced = reducer::shape(&plan, &limits);
        let formats = Formats::of_plan(&plan);
        let mut specs = required_kernels(&plan, &limits, &kinds, chooser);
        specs.extend(token.iter().map(|sizes| token_spec(formats, sizes)));
        specs.extend([elementwise::spec(formats.activations), batch::spec()]);
        specs.extend(reduced.iter().flat_map(|_| sampling::Kernel::ALL).map(sampling::Kernel::spec));
        let kernels = store.load(device, &specs).map_err(failed)?;
        let mut report = LoadReport::default();
        let loader = Loader { device, stream: &stream, source, overflow: options.overflow, progress };
        let weights = Weights::load(&plan, &loader, &mut report)?;
        let tables = match &plan.program.rope {
            Some(spec) => Some(RopeTables::new(spec, limits.context, device, &stream)?),
            None => None,
        };
        let cache = match plan.program.cache {
            Some(spec) => Some(KvCache::new(spec, plan.cache_format(), &limits, device)?),
            None => None,
        };
        let values = Values::new(&plan, &limits, device, &stream).map_err(failed)?;
        let scratch = Scratch::new(sizes, device).map_err(failed)?;
        let token = match (&token, &tables, &cache) {
            (Some(sizes), Some(tables), Some(cache)) => {
                let parts =
                    Parts { plan: &plan, limits: &limits, weights: &weights, values: &values, tables, cache };
                Some(TokenKernel::new(sizes, &parts, chooser, device, &stream)?)
            }
            _ => None,
        };
        let batch = DeviceBatch::new(device, &limits, kinds).map_err(failed)?;
        let logits = device.allocate_host(logit_bytes(&plan, limits.outputs), "logits").map_err(failed)?;
        let reducer = reduced.map(|shape| Reducer::new(device, shape)).transpose().map_err(failed)?;
        report.seconds = started.elapsed().as_secs_f64();
        let mut session = CudaSession {
            plan,
            limits,
            report,
            kernels,
            chooser: *chooser,
            weights,
            values,
            tables,
            cache,
            scratch,
            library: library.clone(),
            sizes,
            batch,
            logits,
            logit_bytes: None,
            reducer,
            bests: None,
            rows: RunRows::default(),
            taken,
            graphs: Graphs::default(),
            token,
            moments: Vec::new(),
            stream,
            device: device.clone(),
        };
        let failed =
            |error| PrepareError::Part { what: "graphs", message: RunError::from(error).to_string() };
        session.record_graphs().map_err(failed)?;
        session.taken = session.taken.prepared(device);
        Ok(session)
    }

    /// Makes way for a batch, and launches what is asked for.
    pub(crate) fn execute(
        &mut self,
        batch: &Batch<'_>,
        launch: impl FnOnce(&mut CudaSession) -> Result<(), Failure>,
    ) -> Result<(), RunError> {
        batch.check(&self.limits, &self.plan.batch_rules())?;
        // Whatever fails from here on, no number of the run before is given out as this one's.
        self.logit_bytes = None;
        self.bests = None;
        let whole = |error: CudaError| RunError::from(Failure::from(error));
        self.device.bind().map_err(whole)?;
        // The batch before may still be running, and this one takes its place.
        self.stream.synchronize().map_err(whole)?;
        self.rows = RunRows { tokens: batch.rows(), outputs: batch.outputs.len() };
        launch(self).map_err(|failure| self.abandon(failure))
    }

    /// What became of a run whose launches failed: the next batch takes its place, so that none may be under way, and it
    /// has no results.
    pub(crate) fn abandon(&mut self, failure: Failure) -> RunError {
        let _ = self.stream.synchronize();
        self.rows = RunRows::default();
        RunError::from(failure)
    }

    /// Waits for the run, and brings its logits here if none have asked for them before.
    fn fetch_logits(&mut self) -> Result<usize, CudaError> {
        if let Some(bytes) = self.logit_bytes {
            return Ok(bytes);
        }
        self.device.bind()?;
        let bytes = match self.plan.program.logits() {
            Some(logits) if self.rows.outputs > 0 => {
                self.values.download_f32(logits, self.rows.outputs, &mut self.logits)?
            }
            _ => {
                self.stream.synchronize()?;
                0
            }
        };
        self.logit_bytes = Some(bytes);
        Ok(bytes)
    }
}

/// A step that failed.
pub(crate) struct Failure {
    pub step: String,
    pub message: String,
}

impl Failure {
    pub fn of(step: &Step, error: impl std::fmt::Display) -> Failure {
        Failure { step: step.name.clone(), message: error.to_string() }
    }
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Failure {
        Failure { step: "the run".to_owned(), message: error.to_string() }
    }
}

impl From<Failure> for RunError {
    fn from(Failure { step, message }: Failure) -> RunError {
        RunError::Kernel { step, message }
    }
}

fn logit_bytes(plan: &Plan, outputs: usize) -> usize {
    let width = plan.program.logits().map_or(0, |value| plan.program.value(value).width);
    width.saturating_mul(size_of::<f32>()).saturating_mul(outputs)
}

/// The kernels that each kind of the program's attention takes on this device.
fn attention_kinds(plan: &Plan, chooser: &Chooser) -> Result<Vec<AttentionKind>, PrepareError> {
    let device = chooser.device();
    let kind = |heads| {
        let route = attention::route(plan.policy.activations(), plan.cache_format(), heads, device)
            .map_err(|error| PrepareError::Part { what: "attention", message: error.to_string() })?;
        Ok(AttentionKind { heads, route })
    };
    attention_heads(&plan.program).into_iter().map(kind).collect()
}

/// Refuses heads that are wider than the kernels of projections take.
fn check_heads(program: &Program) -> Result<(), PrepareError> {
    for step in &program.steps {
        if let Op::Qkv(op) = &step.op
            && op.heads.dim > qkv::MAX_DIM
        {
            let (got, wanted) = (op.heads.dim, format!("at most {}", qkv::MAX_DIM));
            return Err(PrepareError::Limit { what: "the width of a head", got, wanted });
        }
    }
    Ok(())
}

/// Refuses steps that write what other blocks of the same launch still read.
fn check_overlap(plan: &Plan) -> Result<(), PrepareError> {
    for step in &plan.program.steps {
        let out = step.op.output();
        let overlaps = match &step.op {
            // Each number is read by the thread that writes it.
            Op::Residual(_) | Op::Softmax(_) => false,
            Op::RmsNorm(op) => op.residual.is_some_and(|residual| residual == out || residual == op.input),
            // The residual is read by the thread that writes its place.
            Op::Matmul(op) => op.input == out,
            Op::Ffn(op) => op.input == out,
            op => op.inputs().contains(&out),
        };
        let role = plan.program.value(out).role;
        let misplaced = (role == ValueRole::Logits) != matches!(step.op, Op::Logits(_));
        let name = &plan.program.value(out).name;
        let message = match (overlaps, misplaced) {
            (true, _) => format!("step {} reads and writes value {name} at once", step.name),
            (_, true) => format!("step {} cannot write value {name}: {role:?}", step.name),
            _ => continue,
        };
        return Err(PrepareError::Part { what: "program", message });
    }
    Ok(())
}

impl Drop for CudaSession {
    /// What is under way uses the buffers that go now.
    fn drop(&mut self) {
        // A device that is lost has stopped using them.
        let _ = self.device.bind().and_then(|()| self.stream.synchronize());
    }
}

impl ValueReader for CudaSession {
    /// NaN where the device is lost: the next run says why.
    fn read(&self, value: ValueId) -> Vec<f32> {
        let read = self.device.bind().and_then(|()| self.values.decoded(value, self.rows));
        read.unwrap_or_else(|_| {
            let spec = self.plan.program.value(value);
            let rows = match spec.role {
                ValueRole::Activation => self.rows.tokens,
                ValueRole::Logits => self.rows.outputs,
            };
            vec![f32::NAN; spec.width * rows]
        })
    }
}

impl Session for CudaSession {
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
        let tables = self.tables.as_ref().map_or(0, RopeTables::bytes);
        MemoryUse {
            weights: self.weights.bytes(),
            cache: self.cache.as_ref().map_or(0, KvCache::bytes),
            scratch: self.values.bytes() + self.sizes.total() + tables + self.batch.bytes(),
        }
    }

    fn device_memory(&self) -> Option<u64> {
        Some(self.taken.peak(&self.device))
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        self.execute(batch, |session| {
            session.upload(batch)?;
            session.launch_all(None).map(drop)
        })
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.execute(batch, |session| {
            session.upload(batch)?;
            session.launch_observed(observer)
        })
    }

    fn run_traced(&mut self, batch: &Batch<'_>, grain: Grain) -> Result<Trace, RunError> {
        self.trace(batch, grain)
    }

    fn first_row(&self, step: usize) -> usize {
        self.batch.first(self.part(step))
    }

    fn row_stride(&self, value: ValueId) -> usize {
        self.values.place(value).stride as usize
    }

    fn weight_layout(&self, weight: WeightId) -> WeightLayout {
        WeightLayout::Rows { stride: self.weights.get(weight).stride }
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        let bytes = self.fetch_logits().map_err(Failure::from)?;
        // Page-locked memory is aligned, and the length is a whole number of f32.
        Ok(bytemuck::try_cast_slice(&self.logits[..bytes]).unwrap_or_default())
    }

    fn reduce(&mut self, requests: &[Request<'_>], reduced: &mut Vec<Reduced>) -> Result<(), RunError> {
        self.reduce_rows(requests, reduced)
    }

    fn reduce_and_run(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<NextRun, RunError> {
        if !self.can_follow(requests, next)? {
            self.reduce_rows(requests, reduced)?;
            return Ok(NextRun::NotStarted);
        }
        self.reduce_and_follow(requests, reduced, next)?;
        Ok(NextRun::Started)
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.device
            .bind()
            .map_err(|error| RunError::Kernel { step: "write".to_owned(), message: error.to_string() })?;
        self.bests = None;
        self.values.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        let Some(cache) = &self.cache else { return Err(RunError::Page { page: from, pages: 0 }) };
        let pages = cache.pages();
        if let Some(page) = [from, to].into_iter().find(|&page| page as usize >= pages) {
            return Err(RunError::Page { page, pages });
        }
        self.device.bind().and_then(|()| cache.copy_page(from as usize, to as usize, &self.stream)).map_err(
            |error| RunError::Kernel { step: "copy of a page".to_owned(), message: error.to_string() },
        )
    }
}

#[cfg(test)]
mod tests {
    use mantissa_ops::ProgramBuilder;
    use mantissa_ops::builder::QkvArgs;
    use mantissa_ops::op::Heads;
    use mantissa_ops::program::{CacheSpec, WeightPart};

    use super::*;

    #[test]
    fn heads_beyond_the_kernel_are_refused() {
        for (dim, refusal) in
            [(256, None), (320, Some("the width of a head is 320, but must be at most 256"))]
        {
            let heads = Heads { query: 2, key_value: 1, dim };
            let mut builder = ProgramBuilder::new("wide", 64);
            builder.cache(CacheSpec { layers: 1, heads });
            let stream = builder.embedding("table", 100, 64);
            builder.qkv(
                "qkv",
                stream,
                QkvArgs {
                    weights: vec![WeightPart::whole("qkv", 4 * dim)],
                    biases: None,
                    head_norms: None,
                    heads,
                    layer: 0,
                },
            );
            let error = check_heads(&builder.finish()).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), refusal);
        }
    }
}
