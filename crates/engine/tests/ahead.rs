//! The engine over a session that starts the next run by itself: the same tokens come, in fewer runs that the engine asks
//! for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mantissa_cpu::{CpuBackend, CpuOptions};
use mantissa_engine::sampling::SamplingParams;
use mantissa_engine::{EndOfText, Engine, EngineOptions, Request, SequenceId, TokenEvent};
use mantissa_model::arch;
use mantissa_model::checkpoint::Checkpoint;
use mantissa_numerics::contract::OpContract;
use mantissa_numerics::policy::Preset;
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, LoadReport, MemoryUse, NextRun, NoProgress,
    PrepareError, Progress, RunError, Session, StepObserver, ValueReader,
};
use mantissa_ops::reduction::{self, Reduced};
use mantissa_ops::{Batch, Limits, Op, Plan, Program, ShapeClass, TensorSource, ValueId};

/// Runs by who asked for them.
#[derive(Default)]
struct Runs {
    engine: AtomicUsize,
    session: AtomicUsize,
}

struct AheadBackend {
    backend: CpuBackend,
    runs: Arc<Runs>,
    /// Of so many reductions one chooses no token.
    open: usize,
}

impl AheadBackend {
    fn new(runs: &Arc<Runs>, open: usize) -> AheadBackend {
        let backend = CpuBackend::new(CpuOptions::default()).unwrap();
        AheadBackend { backend, runs: Arc::clone(runs), open }
    }
}

impl Backend for AheadBackend {
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
        Ok(Box::new(AheadSession { session, runs: Arc::clone(&self.runs), open: self.open, reductions: 0 }))
    }
}

struct AheadSession {
    session: Box<dyn Session>,
    runs: Arc<Runs>,
    open: usize,
    reductions: usize,
}

impl ValueReader for AheadSession {
    fn read(&self, value: ValueId) -> Vec<f32> {
        self.session.read(value)
    }
}

impl Session for AheadSession {
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
        self.runs.engine.fetch_add(1, Ordering::Relaxed);
        self.session.run(batch)
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.session.run_observed(batch, observer)
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        self.session.logits()
    }

    fn reduce_and_run(
        &mut self,
        requests: &[reduction::Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<NextRun, RunError> {
        self.session.reduce(requests, reduced)?;
        self.reductions += 1;
        if self.reductions.is_multiple_of(self.open) {
            reduced[0].chosen = None;
        }
        let tokens: Vec<u32> = reduced.iter().map(|row| row.chosen.map_or(0, |key| key.token())).collect();
        self.runs.session.fetch_add(1, Ordering::Relaxed);
        self.session.run(&Batch { tokens: &tokens, ..*next })?;
        Ok(NextRun::Started)
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.session.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        self.session.copy_page(from, to)
    }
}

fn prepare(backend: &dyn Backend) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen2");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan =
        Plan::resolve(arch::program(checkpoint.config()).unwrap(), Preset::F32.into(), backend).unwrap();
    let options = EngineOptions { chunk: Some(4), sequences: 12, ..EngineOptions::default() };
    Engine::prepare(plan, &checkpoint, backend, &options, &NoProgress).unwrap()
}

fn request(
    prompt: &[u32],
    max_tokens: usize,
    sampling: SamplingParams,
    end_of_text_ids: Vec<u32>,
) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling,
        fallback_seed: 5,
        end_of_text_ids,
        end_of_text: EndOfText::Stop,
    }
}

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

const NEVER: usize = usize::MAX;

/// All ways to choose a token.
fn ways() -> Vec<SamplingParams> {
    let base = SamplingParams::default();
    let penalties = SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.5, ..base };
    vec![
        SamplingParams::greedy(),
        SamplingParams { temperature: 0.0, ..penalties },
        base,
        SamplingParams { temperature: 4.0, min_p: 0.01, ..base },
        SamplingParams { top_k: 20, top_p: 0.8, ..penalties },
        SamplingParams { temperature: 2.0, top_p: 0.95, min_p: 0.05, ..base },
    ]
}

/// A life with sequences that come, end by length and by their text, and are cancelled.
fn live(backend: &dyn Backend, sampling: SamplingParams) -> Vec<(SequenceId, u32, f32)> {
    let mut engine = prepare(backend);
    let alone = engine.add(request(&PROMPT, 20, sampling, vec![])).unwrap();
    let mut events: Vec<TokenEvent> = Vec::new();
    for _ in 0..6 {
        events.extend(engine.step().unwrap());
    }
    // The third of these tokens ends the second sequence wherever it comes up.
    let end = events.iter().filter(|event| event.sequence == alone).nth(2).unwrap().token;
    engine.add(request(&PROMPT, 20, sampling, vec![end])).unwrap();
    let cancelled =
        engine.add(request(&[7, 7], 50, SamplingParams { temperature: 0.7, ..sampling }, vec![])).unwrap();
    for _ in 0..7 {
        events.extend(engine.step().unwrap());
    }
    engine.cancel(cancelled).unwrap();
    engine.add(request(&[9, 2, 6, 5, 3, 5, 8, 9, 7], 9, sampling, vec![])).unwrap();
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
    }
    events.iter().map(|event| (event.sequence, event.token, event.logprob)).collect()
}

#[test]
fn the_same_tokens_come() {
    for sampling in ways() {
        let plain = live(&CpuBackend::new(CpuOptions::default()).unwrap(), sampling);
        for (open, fewest, most) in [(NEVER, 15, 18), (5, 10, 30), (1, 3, 40)] {
            let runs = Arc::new(Runs::default());
            assert_eq!(live(&AheadBackend::new(&runs, open), sampling), plain, "{sampling:?}");
            let (engine, session) =
                (runs.engine.load(Ordering::Relaxed), runs.session.load(Ordering::Relaxed));
            let text = format!("{session} runs were started ahead, {engine} were not: {open} {sampling:?}");
            assert!(session > fewest && engine < most, "{text}");
        }
    }
}

#[test]
fn the_engine_asks_for_no_run_that_is_under_way() {
    for sampling in ways() {
        let runs = Arc::new(Runs::default());
        let mut engine = prepare(&AheadBackend::new(&runs, NEVER));
        engine.add(request(&PROMPT, 16, sampling, vec![])).unwrap();
        let mut tokens = 0;
        while !engine.is_idle() {
            tokens += engine.step().unwrap().len();
        }
        assert_eq!(tokens, 16);
        // One run for the prompt and one for each further token, none of them in vain.
        assert_eq!((runs.engine.load(Ordering::Relaxed), runs.session.load(Ordering::Relaxed)), (1, 15));
    }
}
