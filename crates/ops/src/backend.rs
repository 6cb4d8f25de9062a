//! What a backend is: contracts as data, a choice of kernels, and sessions that run plans.

use std::sync::Arc;
use std::time::Instant;

use mantissa_numerics::ConversionStats;
use mantissa_numerics::Format;
use mantissa_numerics::contract::OpContract;
use mantissa_numerics::policy::PrecisionPolicy;

use crate::batch::{Batch, BatchError, Limits};
use crate::ceilings::{CeilingError, Ceilings};
use crate::op::Op;
use crate::plan::{Plan, ShapeClass};
use crate::program::{Program, ValueId, WeightId};
use crate::reduction::{self, Reduced, Request};
use crate::source::{SourceError, TensorSource};
use crate::trace::{Grain, Scope, Trace, host_clock};
use crate::view::WeightLayout;

/// What a backend says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// Short name, such as `cpu`.
    pub name: String,
    /// The device, in words.
    pub device: String,
    /// The instruction set or compute capability in use.
    pub features: String,
    /// Version of the device's driver, where it has one.
    pub driver: Option<String>,
    /// Threads, where the backend has them.
    pub threads: Option<usize>,
    /// Rows of a batch that are enough for full speed: as many tokens of a prompt are run together.
    pub prompt_rows: usize,
}

/// Which kernel runs a step for one class of shapes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// Name of the kernel with its specialisation.
    pub kernel: String,
    /// What decided it.
    pub why: String,
}

/// Executes programs. The contracts are data: they can be listed without preparing anything.
pub trait Backend: Send + Sync {
    /// Name, device and features.
    fn info(&self) -> BackendInfo;

    /// Everything that the backend can do, exactly.
    fn contracts(&self) -> &[OpContract];

    /// The kernel for an op of a program. Selects and hands off; computes nothing.
    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice;

    /// How all steps of a batch of a class are launched, and why, where there is more to it than one kernel after another.
    fn launches(
        &self,
        program: &Program,
        policy: &PrecisionPolicy,
        class: ShapeClass,
    ) -> Option<KernelChoice> {
        let _ = (program, policy, class);
        None
    }

    /// What a session of the plan will hold, where the backend can say that before it prepares one.
    ///
    /// # Errors
    /// Where the backend cannot run the plan at these sizes.
    fn memory(&self, plan: &Plan, limits: &Limits) -> Result<Option<MemoryUse>, PrepareError> {
        let _ = (plan, limits);
        Ok(None)
    }

    /// The ceilings of the machine, with a buffer of so many bytes to read.
    ///
    /// # Errors
    /// Where there is not that much memory, or nothing to measure.
    fn ceilings(&self, bytes: usize) -> Result<Box<dyn Ceilings + '_>, CeilingError> {
        let _ = bytes;
        Err(CeilingError::None { backend: self.info().name })
    }

    /// Loads and packs the weights, allocates everything, and makes the plan ready to run.
    ///
    /// # Errors
    /// Everything that can fail fails here: see [`PrepareError`].
    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError>;
}

/// Whether a finite value of the checkpoint may become the target format's largest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverflowRule {
    /// Refuse the checkpoint.
    #[default]
    Refuse,
    /// Saturate, and report how many.
    Saturate,
}

/// How to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Sizes to allocate for.
    pub limits: Limits,
    /// What to do with values that overflow the policy's weight format.
    pub overflow: OverflowRule,
}

/// Told how far loading is.
pub trait Progress: Sync {
    /// Total bytes of weights that will be read.
    fn start(&self, total_bytes: u64);
    /// Further bytes done.
    fn advance(&self, bytes: u64);
    /// Loading ended.
    fn finish(&self);
}

/// Reports nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}

/// What happened to one tensor of the checkpoint on its way into the policy's format.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// The tensor.
    pub tensor: String,
    /// Its stored format.
    pub from: Format,
    /// The policy's format.
    pub to: Format,
    /// What was lost.
    pub stats: ConversionStats,
}

/// What loading did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// One entry per tensor whose format changed.
    pub conversions: Vec<Conversion>,
    /// Bytes read from the checkpoint.
    pub bytes_read: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Bytes that a session holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Packed weights.
    pub weights: u64,
    /// KV cache, scales included.
    pub cache: u64,
    /// Values, tables and scratch.
    pub scratch: u64,
}

impl MemoryUse {
    /// Everything.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch
    }
}

/// A model or plan that cannot be made ready.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PrepareError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("tensor {tensor}: wanted shape {wanted:?}, got {got:?}")]
    Shape { tensor: String, wanted: Vec<usize>, got: Vec<usize> },
    #[error("tensor {tensor}: {count} of its values are NaN or infinite; a norm or bias must be finite")]
    NotFinite { tensor: String, count: u64 },
    #[error(
        "tensor {tensor}: {count} finite values are beyond the range of {to} (stored as {from}); choose weights={from} or \
         another wide format, or allow saturation"
    )]
    Overflow { tensor: String, from: Format, to: Format, count: u64 },
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory { what: String, bytes: u64 },
    #[error(
        "out of device memory: the model needs {needed} bytes (weights {}, cache {}, values and scratch {}), and {free} \
         are free; {fits}", .parts.weights, .parts.cache, .parts.scratch
    )]
    DeviceMemory { needed: u64, parts: MemoryUse, free: u64, fits: String },
    #[error("{what} is {got}, but must be {wanted}")]
    Limit { what: &'static str, got: usize, wanted: String },
    #[error("{what}: {message}")]
    Part { what: &'static str, message: String },
}

impl PrepareError {
    /// The tensor that the error is about, where it is about one whose file it does not name.
    pub fn tensor(&self) -> Option<&str> {
        match self {
            PrepareError::Shape { tensor, .. }
            | PrepareError::NotFinite { tensor, .. }
            | PrepareError::Overflow { tensor, .. } => Some(tensor),
            PrepareError::Source(_)
            | PrepareError::OutOfMemory { .. }
            | PrepareError::DeviceMemory { .. }
            | PrepareError::Limit { .. }
            | PrepareError::Part { .. } => None,
        }
    }
}

/// A run that could not be carried out; nothing was computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error("batch: {0}")]
    Batch(#[from] BatchError),
    #[error("value {value}: wanted {wanted} numbers, got {got}")]
    ValueLength { value: String, wanted: usize, got: usize },
    #[error("value {value}: {number} is not a {format} number")]
    NotRepresentable { value: String, number: f32, format: Format },
    #[error("page {page} is outside the cache of {pages} pages")]
    Page { page: u32, pages: usize },
    #[error("{got} rows of logits are to be reduced, but the last run gave {rows}")]
    Reductions { got: usize, rows: usize },
    #[error("step {step}: {message}")]
    Kernel { step: String, message: String },
}

/// Whether a run was started before the tokens that it takes were known to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRun {
    /// It was.
    Started,
    /// It is the caller's to run.
    NotStarted,
}

/// Reads a session's values, decoded exactly to f32, as the last run left them.
pub trait ValueReader {
    /// All rows of the value, row-major.
    fn read(&self, value: ValueId) -> Vec<f32>;
}

/// Is told about every step of a run; for traces, hidden states and searches for the first non-finite value.
pub trait StepObserver {
    /// Before the step with this index in the plan.
    fn before_step(&mut self, step: usize) {
        let _ = step;
    }
    /// After it.
    fn after_step(&mut self, step: usize, values: &dyn ValueReader);
}

/// A plan made ready: weights packed, cache and scratch allocated.
pub trait Session: Send + ValueReader {
    /// The plan.
    fn plan(&self) -> &Plan;

    /// The sizes it was prepared for.
    fn limits(&self) -> &Limits;

    /// What loading did.
    fn report(&self) -> &LoadReport;

    /// Bytes held.
    fn memory(&self) -> MemoryUse;

    /// Bytes of a device's own memory that the session has taken since before it was prepared, at their peak, as the
    /// driver counts them; nothing where the backend computes in the memory of the process.
    fn device_memory(&self) -> Option<u64> {
        None
    }

    /// Runs all steps on the batch. What goes wrong on a device may not show before results are asked for.
    ///
    /// Rows that no wanted logits depend on need not be computed in the steps from [`Program::own_rows_from`] on: whoever
    /// reads values beside the logits observes the run.
    ///
    /// # Errors
    /// Where the batch does not fit the limits.
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError>;

    /// Runs all steps on the batch and tells the observer of each.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError>;

    /// Runs all steps on the batch like [`Session::run`], waits for its results, and says what took how long. Nothing that is
    /// computed differs; clocks are read around each scope. The default knows one scope: the whole run.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_traced(&mut self, batch: &Batch<'_>, grain: Grain) -> Result<Trace, RunError> {
        let _ = grain;
        let started = Instant::now();
        self.run(batch)?;
        self.logits()?;
        let seconds = started.elapsed().as_secs_f64();
        let whole = Scope { step: None, kernel: "all steps".to_owned(), start: 0.0, seconds };
        Ok(Trace { scopes: vec![whole], seconds, clock: host_clock() })
    }

    /// The first row of the last run's batch that this step computed; those before it were left out, as [`Session::run`]
    /// may.
    fn first_row(&self, step: usize) -> usize {
        let _ = step;
        0
    }

    /// Values between the beginnings of two rows of a value: its width, or more where rows are padded.
    fn row_stride(&self, value: ValueId) -> usize {
        self.plan().program.value(value).width
    }

    /// How a weight lies in memory.
    fn weight_layout(&self, weight: WeightId) -> WeightLayout {
        WeightLayout::Rows { stride: self.plan().program.weight(weight).columns }
    }

    /// Logits of the last run, `[outputs, vocabulary]`; empty where the program computes none.
    ///
    /// # Errors
    /// Where the run failed on the device, or its logits cannot be fetched.
    fn logits(&mut self) -> Result<&[f32], RunError>;

    /// Reduces the logits of the last run, one request for each of its outputs, to one entry of `reduced` each. The
    /// results are those of [`reduction::reduce`], bit for bit; a device need not hand its logits over for them.
    ///
    /// # Errors
    /// Where there are not as many requests as outputs, and as [`Session::logits`].
    fn reduce(&mut self, requests: &[Request<'_>], reduced: &mut Vec<Reduced>) -> Result<(), RunError> {
        let width = self.plan().program.logits().map_or(0, |value| self.plan().program.value(value).width);
        reduction::reduce_rows(self.logits()?, width, requests, reduced)
    }

    /// Reduces like [`Session::reduce`], and where it can starts the run after that before the host has seen what came of
    /// it. `next` has one row for each output of the last run, in order; in the place of its tokens stand those that the
    /// requests lead to, or any where they lead to none. Once started it is the last run.
    ///
    /// # Errors
    /// As [`Session::reduce`] and [`Session::run`].
    fn reduce_and_run(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<NextRun, RunError> {
        let _ = next;
        self.reduce(requests, reduced)?;
        Ok(NextRun::NotStarted)
    }

    /// Sets the first rows of a value, for programs whose inputs are not tokens. The numbers must be representable.
    ///
    /// # Errors
    /// Where the length is no multiple of the width, exceeds the limits, or a number is not representable.
    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError>;

    /// Copies a page of the cache in all layers.
    ///
    /// # Errors
    /// Where a page lies outside the cache.
    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError>;
}
