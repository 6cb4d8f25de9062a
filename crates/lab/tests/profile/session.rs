//! A session that computes nothing and says what it is told to say of its times.

use mantissa::cpu::{CpuBackend, CpuOptions};
use mantissa::model::arch;
use mantissa::model::config::ModelConfig;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::backend::{LoadOptions, LoadReport, MemoryUse, PrepareError, Progress, RunError};
use mantissa::ops::backend::{StepObserver, ValueReader};
use mantissa::ops::ceilings::Unit;
use mantissa::ops::reduction::{RankKey, Reduced, Request};
use mantissa::ops::{Backend, BackendInfo, Batch, CeilingError, Ceilings, Grain, KernelChoice, Limits};
use mantissa::ops::{Op, Plan, Program, Scope, Session, ShapeClass, TensorSource, Trace, ValueId};
use mantissa_lab::profile::{Profile, Profiler, Workload};
use mantissa_lab::progress::Quiet;
use std::path::Path;
use std::sync::Arc;

/// Bytes per second that memory gives.
pub const READ: f64 = 1e10;
/// Operations per second of every unit.
pub const MULTIPLY: f64 = 1e11;

/// Qwen2.5-0.5B as its `config.json` has it.
pub const QWEN: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    "hidden_act": "silu", "torch_dtype": "bfloat16"
}"#;

/// Two layers of the same kind.
pub const SMALL: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    "hidden_act": "silu", "torch_dtype": "bfloat16"
}"#;

/// The plan of a configuration under a policy, on the CPU.
pub fn plan(config: &str, policy: &str) -> Arc<Plan> {
    let config = ModelConfig::from_json(config.as_bytes(), Path::new("config.json")).unwrap();
    let policy: PrecisionPolicy = policy.parse().unwrap();
    Plan::resolve(arch::program(&config).unwrap(), policy, &cpu()).unwrap()
}

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions::default()).unwrap()
}

/// How a session cuts a run of so many rows into scopes.
pub type Cut = fn(plan: &Plan, rows: usize, grain: Grain) -> Trace;

/// One scope for each step of a plan, of a microsecond and so many tenths as the number of the step, without gaps.
pub fn by_step(plan: &Plan, rows: usize, _grain: Grain) -> Trace {
    let mut start = 0.0;
    let mut scopes = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        let seconds = (1.0 + index as f64 / 10.0) * 1e-6 * rows as f64;
        let kernel = step.kernel(ShapeClass::of(rows)).kernel.clone();
        scopes.push(Scope { step: Some(index), kernel, start, seconds });
        start += seconds;
    }
    Trace { scopes, seconds: start, clock: 0.0 }
}

/// A session that computes nothing.
pub struct Idle {
    pub plan: Arc<Plan>,
    pub limits: Limits,
    pub cut: Cut,
    /// The first row that steps compute from `Program::own_rows_from` on, given the rows of a batch.
    pub skipped: fn(rows: usize) -> usize,
    rows: usize,
    report: LoadReport,
}

impl Idle {
    pub fn new(plan: &Arc<Plan>, workload: &Workload, cut: Cut) -> Idle {
        let pages = workload.sequences * Limits::pages_for(16, workload.context());
        let limits = Limits {
            rows: 64,
            outputs: workload.sequences,
            sequences: workload.sequences,
            pages,
            page_size: 16,
            context: workload.context(),
        };
        let report = LoadReport::default();
        Idle { plan: Arc::clone(plan), limits, cut, skipped: |_| 0, rows: 0, report }
    }

    pub fn profile(mut self, workload: Workload) -> Profile {
        Profiler { workload, repetitions: 3 }.measure(&mut self, &Steady(cpu()), &Quiet).unwrap()
    }
}

impl ValueReader for Idle {
    fn read(&self, _value: ValueId) -> Vec<f32> {
        Vec::new()
    }
}

impl Session for Idle {
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
        MemoryUse::default()
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        batch.check(&self.limits, &self.plan.batch_rules())?;
        self.rows = batch.rows();
        Ok(())
    }

    fn run_observed(&mut self, batch: &Batch<'_>, _observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.run(batch)
    }

    fn run_traced(&mut self, batch: &Batch<'_>, grain: Grain) -> Result<Trace, RunError> {
        self.run(batch)?;
        Ok((self.cut)(&self.plan, batch.rows(), grain))
    }

    fn first_row(&self, step: usize) -> usize {
        let own = self.plan.program.own_rows_from().is_some_and(|first| step >= first);
        if own { (self.skipped)(self.rows) } else { 0 }
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        Ok(&[])
    }

    fn reduce(&mut self, requests: &[Request<'_>], reduced: &mut Vec<Reduced>) -> Result<(), RunError> {
        reduced.resize_with(requests.len(), Reduced::default);
        reduced.iter_mut().for_each(|row| row.chosen = Some(RankKey::new(1.0, 7)));
        Ok(())
    }

    fn write(&mut self, _value: ValueId, _numbers: &[f32]) -> Result<(), RunError> {
        Ok(())
    }

    fn copy_page(&mut self, _from: u32, _to: u32) -> Result<(), RunError> {
        Ok(())
    }
}

/// A machine of constant speed.
struct Steady(CpuBackend);

impl Ceilings for Steady {
    fn read(&self) -> Result<f64, CeilingError> {
        Ok(READ)
    }

    fn multiply(&self, _unit: Unit) -> Result<f64, CeilingError> {
        Ok(MULTIPLY)
    }
}

impl Backend for Steady {
    fn info(&self) -> BackendInfo {
        self.0.info()
    }

    fn contracts(&self) -> &[mantissa::numerics::contract::OpContract] {
        self.0.contracts()
    }

    fn choose(
        &self,
        program: &Program,
        op: &Op,
        contract: &mantissa::numerics::contract::OpContract,
        class: ShapeClass,
    ) -> KernelChoice {
        self.0.choose(program, op, contract, class)
    }

    fn ceilings(&self, _bytes: usize) -> Result<Box<dyn Ceilings + '_>, CeilingError> {
        Ok(Box::new(Steady(cpu())))
    }

    fn prepare(
        &self,
        _plan: Arc<Plan>,
        _source: &dyn TensorSource,
        _options: &LoadOptions,
        _progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        Err(PrepareError::Part { what: "a machine that computes nothing", message: "no session".to_owned() })
    }
}
