//! Whole generations on the first GPU, where tokens are chosen on the device and runs start before the host has seen them,
//! against generations over the same sessions whose logits are all brought to the host. Where there is no GPU, or no NVRTC,
//! every test is reported as skipped.

#[path = "gpu/backend.rs"]
mod gpu;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use mantissa_cuda::{CudaBackend, CudaOptions};
use mantissa_engine::sampling::SamplingParams;
use mantissa_engine::{EndOfText, Engine, EngineOptions, Request, SequenceId};
use mantissa_numerics::Format;
use mantissa_numerics::contract::OpContract;
use mantissa_numerics::policy::{PrecisionPolicy, Preset};
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, LoadReport, MemoryUse, NoProgress, OverflowRule,
    PrepareError, Progress, RunError, Session, StepObserver, ValueReader,
};
use mantissa_ops::builder::{AttentionArgs, QkvArgs};
use mantissa_ops::conformance::data::MemorySource;
use mantissa_ops::conformance::or_skip;
use mantissa_ops::op::{Heads, Mask};
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, WeightPart};
use mantissa_ops::{
    Batch, Limits, Op, Plan, Program, ProgramBuilder, SequenceRows, ShapeClass, TensorSource, ValueId,
};

fn backend() -> Result<&'static CudaBackend, String> {
    static BACKEND: OnceLock<Result<CudaBackend, String>> = OnceLock::new();
    BACKEND.get_or_init(|| gpu::open(CudaOptions::default())).as_ref().map_err(Clone::clone)
}

/// The GPU, with sessions that leave everything behind their logits to the trait.
struct HostBackend(&'static CudaBackend);

impl Backend for HostBackend {
    fn info(&self) -> BackendInfo {
        self.0.info()
    }

    fn contracts(&self) -> &[OpContract] {
        self.0.contracts()
    }

    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        self.0.choose(program, op, contract, class)
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        Ok(Box::new(HostSession(self.0.prepare(plan, source, options, progress)?)))
    }
}

struct HostSession(Box<dyn Session>);

impl ValueReader for HostSession {
    fn read(&self, value: ValueId) -> Vec<f32> {
        self.0.read(value)
    }
}

impl Session for HostSession {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn limits(&self) -> &Limits {
        self.0.limits()
    }

    fn report(&self) -> &LoadReport {
        self.0.report()
    }

    fn memory(&self) -> MemoryUse {
        self.0.memory()
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        self.0.run(batch)
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.0.run_observed(batch, observer)
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        self.0.logits()
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.0.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        self.0.copy_page(from, to)
    }
}

const VOCABULARY: usize = 5003;
const HIDDEN: usize = 64;
const HEADS: Heads = Heads { query: 2, key_value: 1, dim: 64 };

/// A model of one layer whose weights look random.
fn model() -> (Program, MemorySource) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut numbers = |count: usize, scale: f32| -> Vec<f32> {
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0) * scale
        };
        (0..count).map(next).collect()
    };
    let mut source = MemorySource::default();
    let rows = (HEADS.query + 2 * HEADS.key_value) * HEADS.dim;
    for (name, rows, columns) in [
        ("table", VOCABULARY, HIDDEN),
        ("qkv", rows, HIDDEN),
        ("out", HIDDEN, HEADS.query * HEADS.dim),
        ("head", VOCABULARY, HIDDEN),
    ] {
        source.add(name, &[rows, columns], Format::F32, &numbers(rows * columns, 0.4));
    }
    source.add("norm", &[HIDDEN], Format::F32, &[1.0; HIDDEN]);
    let mut builder = ProgramBuilder::new("generation", 256);
    let frequencies = (0..HEADS.dim / 2).map(|pair| 1.0 / (pair + 1) as f64).collect();
    let set = RopeSet { inverse_frequencies: frequencies, attention_factor: 1.0 };
    builder.rope(RopeSpec { rotary_dim: HEADS.dim, sets: vec![set], long_beyond: None });
    builder.cache(CacheSpec { layers: 1, heads: HEADS });
    let stream = builder.embedding("table", VOCABULARY, HIDDEN);
    let normed = builder.rms_norm("norm", "norm", stream, 1e-6);
    let args = QkvArgs {
        weights: vec![WeightPart::whole("qkv", rows)],
        biases: None,
        head_norms: None,
        heads: HEADS,
        layer: 0,
    };
    let query = builder.qkv("qkv", normed, args);
    let args = AttentionArgs { heads: HEADS, scale: 0.125, mask: Mask::Causal, layer: 0 };
    let attended = builder.attention("attention", query, args);
    builder.project_into("out", "out", attended, stream);
    let last = builder.rms_norm("last", "norm", stream, 1e-6);
    builder.logits("head", last, VOCABULARY);
    (builder.finish(), source)
}

/// Tokens and log-probabilities of sequences that come, end and are cancelled.
fn generate(
    backend: &dyn Backend,
    policy: PrecisionPolicy,
    sampling: SamplingParams,
) -> BTreeMap<SequenceId, Vec<(u32, u32)>> {
    let (program, source) = model();
    let plan = Plan::resolve(program, policy, backend).expect("supported");
    let options =
        EngineOptions { context: Some(128), sequences: 12, page_size: 16, ..EngineOptions::default() };
    let mut engine = Engine::prepare(plan, &source, backend, &options, &NoProgress).expect("ready");
    let request = |index: usize, max_tokens: usize| Request {
        prompt: (0..1 + index * 7 % 30).map(|token| (token * 37 + index * 101) as u32).collect(),
        max_tokens,
        sampling,
        fallback_seed: index as u64,
        // A few of all tokens end a sequence before its time.
        end_of_text_ids: (0..VOCABULARY as u32).step_by(29).collect(),
        end_of_text: EndOfText::Stop,
    };
    let mut all: BTreeMap<SequenceId, Vec<(u32, u32)>> = BTreeMap::new();
    let mut step = |engine: &mut Engine| {
        for event in engine.step().expect("a step") {
            all.entry(event.sequence).or_default().push((event.token, event.logprob.to_bits()));
        }
    };
    let long = engine.add(request(0, 60)).expect("room");
    for index in 1..14 {
        (0..3).for_each(|_| step(&mut engine));
        if index % 5 == 0 {
            engine.cancel(long).expect("pages");
        }
        // As many as run with a step ahead, and more.
        if let Ok(first) = engine.add(request(index, 8 + index)) {
            assert_ne!(first, long);
        }
    }
    while !engine.is_idle() {
        step(&mut engine);
    }
    all
}

#[test]
fn tokens_are_those_chosen_on_the_host() {
    let Some(backend) = or_skip(backend()) else { return };
    let base = SamplingParams::default();
    let penalties = SamplingParams { repetition_penalty: 1.2, frequency_penalty: 0.5, ..base };
    let ways = [
        SamplingParams::greedy(),
        SamplingParams { temperature: 0.0, ..penalties },
        base,
        SamplingParams { temperature: 0.7, min_p: 0.02, ..base },
        SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.8, ..penalties },
        SamplingParams { temperature: 0.5, top_p: 0.9, ..base },
        // Flat enough for top-p to keep more tokens than are ranked, now and then.
        SamplingParams { temperature: 1.5, top_p: 0.6, ..base },
        SamplingParams { temperature: 30.0, top_p: 0.95, ..penalties },
    ];
    for preset in [Preset::F32, Preset::Bf16] {
        for sampling in ways {
            let on_host = generate(&HostBackend(backend), preset.into(), sampling);
            let on_device = generate(backend, preset.into(), sampling);
            assert!(on_host.len() > 10 && on_host.values().map(Vec::len).sum::<usize>() > 60);
            assert_eq!(on_device, on_host, "{preset:?} {sampling:?}");
        }
    }
}

/// Tokens and log-probabilities of the first of some sequences that are decoded together.
fn first_of(backend: &dyn Backend, preset: Preset, sequences: usize) -> Vec<(u32, u32)> {
    let (program, source) = model();
    let plan = Plan::resolve(program, preset.into(), backend).expect("supported");
    let options = EngineOptions { context: Some(128), sequences, page_size: 16, ..EngineOptions::default() };
    let mut engine = Engine::prepare(plan, &source, backend, &options, &NoProgress).expect("ready");
    let request = |index: usize| Request {
        prompt: (0..20 + index * 7).map(|token| (token * 37 + index * 101) as u32).collect(),
        max_tokens: 40,
        sampling: SamplingParams { temperature: 0.8, ..SamplingParams::default() },
        fallback_seed: index as u64,
        end_of_text_ids: Vec::new(),
        end_of_text: EndOfText::Ignore,
    };
    let ids: Vec<SequenceId> =
        (0..sequences).map(|index| engine.add(request(index)).expect("room")).collect();
    let mut first = Vec::new();
    while !engine.is_idle() {
        let events = engine.step().expect("a step");
        let mine = events.iter().filter(|event| event.sequence == ids[0]);
        first.extend(mine.map(|event| (event.token, event.logprob.to_bits())));
    }
    first
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_among_seven_others() {
    let Some(backend) = or_skip(backend()) else { return };
    for preset in [Preset::F32, Preset::F16, Preset::Bf16, Preset::MemoryEfficient] {
        let alone = first_of(backend, preset, 1);
        assert_eq!(alone.len(), 40);
        assert_eq!(first_of(backend, preset, 8), alone, "{preset:?}");
    }
}

/// Looks at nothing, but as an observer may do so, all rows are computed for it.
struct Onlooker;

impl StepObserver for Onlooker {
    fn after_step(&mut self, _step: usize, _values: &dyn ValueReader) {}
}

#[test]
fn wanted_rows_have_the_same_bits_where_the_others_are_left_out() {
    let Some(backend) = or_skip(backend()) else { return };
    let (program, source) = model();
    for preset in [Preset::F32, Preset::Bf16, Preset::MemoryEfficient] {
        let plan = Plan::resolve(program.clone(), preset.into(), backend).expect("supported");
        let limits = Limits { rows: 96, outputs: 4, sequences: 2, pages: 16, page_size: 16, context: 128 };
        let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
        let mut session = backend.prepare(plan, &source, &options, &NoProgress).expect("ready");
        let tokens: Vec<u32> = (0..87).map(|token| token * 41 % VOCABULARY as u32).collect();
        let positions: Vec<u32> = (0..80).chain(0..7).collect();
        let sequences = [
            SequenceRows { rows: 0..80, block_table: &[3, 0, 9, 5, 7], rope_set: 0 },
            SequenceRows { rows: 80..87, block_table: &[1], rope_set: 0 },
        ];
        for outputs in [&[86][..], &[79, 86], &[3, 40, 85], &[]] {
            let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs };
            session.run(&batch).expect("a run");
            let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
            let narrowed = bits(session.logits().expect("logits"));
            session.run_observed(&batch, &mut Onlooker).expect("a run");
            assert_eq!(narrowed.len(), outputs.len() * VOCABULARY);
            assert!(narrowed == bits(session.logits().expect("logits")), "{preset:?} {outputs:?}");
        }
    }
}

#[test]
fn a_long_prompt_has_the_same_bits_in_one_run_and_in_many() {
    const ROWS: usize = 1100;
    let Some(backend) = or_skip(backend()) else { return };
    let (program, source) = model();
    let tokens: Vec<u32> = (0..ROWS as u32).map(|token| token * 41 % VOCABULARY as u32).collect();
    let positions: Vec<u32> = (0..ROWS as u32).collect();
    let pages = Limits::pages_for(16, ROWS);
    let block_table: Vec<u32> = (0..pages as u32).rev().collect();
    for preset in [Preset::F32, Preset::F16, Preset::Bf16, Preset::MemoryEfficient] {
        let plan = Plan::resolve(program.clone(), preset.into(), backend).expect("supported");
        let limits =
            Limits { rows: ROWS, outputs: 1, sequences: 1, pages, page_size: 16, context: pages * 16 };
        let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
        let mut session = backend.prepare(plan, &source, &options, &NoProgress).expect("ready");
        let mut last_logits = |each: usize| -> Vec<u32> {
            for first in (0..ROWS).step_by(each) {
                let rows = first..ROWS.min(first + each);
                let sequence = SequenceRows { rows: 0..rows.len(), block_table: &block_table, rope_set: 0 };
                let outputs = if rows.end == ROWS { vec![rows.len() as u32 - 1] } else { vec![] };
                let batch = Batch {
                    tokens: &tokens[rows.clone()],
                    positions: &positions[rows],
                    sequences: &[sequence],
                    outputs: &outputs,
                };
                session.run(&batch).expect("a run");
            }
            session.logits().expect("logits").iter().map(|logit| logit.to_bits()).collect()
        };
        let whole = last_logits(ROWS);
        assert_eq!(whole.len(), VOCABULARY);
        for each in [32, 137, 1024] {
            assert!(last_logits(each) == whole, "{preset:?} in runs of {each}");
        }
    }
}
