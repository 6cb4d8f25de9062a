//! The engine over sessions that keep their logits to themselves: tokens are those of samplers that see whole rows, and
//! rows are fetched only where a request does not suffice.

use std::path::Path;
use std::sync::{Arc, Mutex};

use mantissa_cpu::{CpuBackend, CpuOptions};
use mantissa_engine::sampling::{History, Sampler, SamplingParams};
use mantissa_engine::{EndOfText, Engine, EngineOptions, Request};
use mantissa_model::arch;
use mantissa_model::checkpoint::Checkpoint;
use mantissa_numerics::contract::OpContract;
use mantissa_numerics::policy::Preset;
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, LoadReport, MemoryUse, NoProgress, PrepareError,
    Progress, RunError, Session, StepObserver, ValueReader,
};
use mantissa_ops::reduction::{self, Reduced};
use mantissa_ops::{Batch, Limits, Op, Plan, Program, ShapeClass, TensorSource, ValueId};

/// What was asked of a session.
#[derive(Default)]
struct Asked {
    /// The logits of every run that were reduced.
    reduced: Vec<Vec<f32>>,
    /// How often logits were fetched.
    fetched: usize,
}

struct RemoteBackend {
    backend: CpuBackend,
    asked: Arc<Mutex<Asked>>,
}

impl Backend for RemoteBackend {
    fn info(&self) -> BackendInfo {
        self.backend.info()
    }

    fn contracts(&self) -> &[OpContract] {
        self.backend.contracts()
    }

    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        self.backend.choose(program, op, contract, class)
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        let session = self.backend.prepare(plan, source, options, progress)?;
        Ok(Box::new(RemoteSession { session, asked: Arc::clone(&self.asked) }))
    }
}

struct RemoteSession {
    session: Box<dyn Session>,
    asked: Arc<Mutex<Asked>>,
}

impl ValueReader for RemoteSession {
    fn read(&self, value: ValueId) -> Vec<f32> {
        self.session.read(value)
    }
}

impl Session for RemoteSession {
    fn plan(&self) -> &Plan {
        self.session.plan()
    }

    fn limits(&self) -> &Limits {
        self.session.limits()
    }

    fn report(&self) -> &LoadReport {
        self.session.report()
    }

    fn memory(&self) -> MemoryUse {
        self.session.memory()
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        self.session.run(batch)
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.session.run_observed(batch, observer)
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        self.asked.lock().unwrap().fetched += 1;
        self.session.logits()
    }

    fn reduce(
        &mut self,
        requests: &[reduction::Request<'_>],
        reduced: &mut Vec<Reduced>,
    ) -> Result<(), RunError> {
        let logits = self.session.logits()?.to_vec();
        self.session.reduce(requests, reduced)?;
        self.asked.lock().unwrap().reduced.push(logits);
        Ok(())
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.session.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        self.session.copy_page(from, to)
    }
}

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

/// The tokens and log-probabilities of a run, and what it asked of its session.
fn generate(sampling: SamplingParams) -> (Vec<(u32, f32)>, Asked) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen2");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let asked = Arc::new(Mutex::new(Asked::default()));
    let backend =
        RemoteBackend { backend: CpuBackend::new(CpuOptions::default()).unwrap(), asked: Arc::clone(&asked) };
    let program = arch::program(checkpoint.config()).unwrap();
    let plan = Plan::resolve(program, Preset::F32.into(), &backend).unwrap();
    let options = EngineOptions { chunk: Some(4), ..EngineOptions::default() };
    let mut engine = Engine::prepare(plan, &checkpoint, &backend, &options, &NoProgress).unwrap();
    let request = Request {
        prompt: PROMPT.to_vec(),
        max_tokens: 24,
        sampling,
        fallback_seed: 11,
        end_of_text_ids: Vec::new(),
        end_of_text: EndOfText::Ignore,
    };
    engine.add(request).unwrap();
    let mut tokens = Vec::new();
    while !engine.is_idle() {
        tokens.extend(engine.step().unwrap().iter().map(|event| (event.token, event.logprob)));
    }
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    (tokens, asked)
}

/// The same by a sampler that sees every row.
fn sample(sampling: SamplingParams, rows: &[Vec<f32>]) -> Vec<(u32, f32)> {
    let mut sampler = Sampler::new(sampling, 11).unwrap();
    let (mut generated, mut tokens) = (Vec::new(), Vec::new());
    for row in rows {
        let sampled = sampler.sample(row, History { prompt: &PROMPT, generated: &generated }).unwrap();
        generated.push(sampled.token);
        tokens.push((sampled.token, sampled.logprob));
    }
    tokens
}

#[test]
fn tokens_are_those_of_samplers_that_see_whole_rows() {
    let mut different = std::collections::BTreeSet::new();
    for temperature in [0.0, 0.3, 1.0, 3.0] {
        for (top_k, top_p, min_p) in
            [(0, 1.0, 0.0), (20, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.8, 0.1), (0, 1.0, 0.2), (1000, 0.999, 0.0)]
        {
            for (repetition_penalty, frequency_penalty, penalty_window) in
                [(1.0, 0.0, None), (1.3, 0.0, None), (1.0, 1.5, Some(6)), (0.5, -0.5, None)]
            {
                let sampling = SamplingParams {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repetition_penalty,
                    frequency_penalty,
                    penalty_window,
                    ..SamplingParams::default()
                };
                let (tokens, asked) = generate(sampling);
                assert_eq!(tokens.len(), 24);
                assert_eq!(tokens, sample(sampling, &asked.reduced), "{sampling:?}");
                assert_eq!(asked.fetched, 0, "{sampling:?}");
                different.insert(tokens.iter().map(|(token, _)| *token).collect::<Vec<_>>());
            }
        }
    }
    // The parameters are not all without effect.
    assert!(different.len() > 40, "{} different texts", different.len());
}
