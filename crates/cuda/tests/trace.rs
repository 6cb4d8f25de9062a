//! Traces on the first GPU: they change no bit, and their times add up. Where there is no GPU, or no NVRTC, every test is
//! reported as skipped.

#[path = "gpu/decoder.rs"]
mod decoder;
#[path = "gpu/backend.rs"]
mod gpu;

use decoder::Decoder;
use mantissa_cuda::families::products::{MatmulBackend, Preferences, VariantPreference};
use mantissa_cuda::families::token::DecodeVariant;
use mantissa_cuda::{CudaBackend, CudaOptions};
use mantissa_numerics::policy::PrecisionPolicy;
use mantissa_ops::backend::{Backend, LoadOptions, NoProgress, OverflowRule, Session};
use mantissa_ops::conformance::or_skip;
use mantissa_ops::op::Heads;
use mantissa_ops::{Batch, Grain, Limits, Plan, SequenceRows, Trace};

const PAGE: usize = 64;
const CONTEXT: usize = 1024;
const VOCABULARY: usize = 2048;
const POLICIES: [&str; 3] = ["f32", "bf16", "f16,kv_cache=f8e4m3"];

const DECODER: Decoder = Decoder {
    layers: 4,
    heads: Heads { query: 2, key_value: 1, dim: 64 },
    hidden: 128,
    // Enough for the kernel for a token: a tile for each multiprocessor.
    intermediate: 1216,
    vocabulary: VOCABULARY,
    context: CONTEXT,
    bias: Some(0.3),
};

/// More scopes than a stream is held for at once.
const DEEP: Decoder = Decoder { layers: 60, ..DECODER };

fn prepare(backend: &CudaBackend, decoder: &Decoder, policy: &str) -> Box<dyn Session> {
    let (program, source) = decoder.model();
    let policy: PrecisionPolicy = policy.parse().expect("a policy");
    let plan = Plan::resolve(program, policy, backend).expect("supported");
    let limits = Limits {
        rows: 512,
        outputs: 4,
        sequences: 4,
        pages: 4 * CONTEXT / PAGE,
        page_size: PAGE,
        context: CONTEXT,
    };
    let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
    backend.prepare(plan, &source, &options, &NoProgress).expect("ready")
}

/// So many rows of each of some sequences, from a position on; the last row of each is wanted.
struct Rows {
    sequences: usize,
    rows: usize,
    position: usize,
}

impl Rows {
    /// Does something with the batch.
    fn with<T>(&self, act: impl FnOnce(&Batch<'_>) -> T) -> T {
        let &Rows { sequences, rows, position } = self;
        let pages = CONTEXT / PAGE;
        let table = |sequence: usize| (0..pages).map(|page| (page * 4 + sequence) as u32).collect();
        let tables: Vec<Vec<u32>> = (0..sequences).map(table).collect();
        let sequence = |(index, table)| SequenceRows {
            rows: index * rows..(index + 1) * rows,
            block_table: table,
            rope_set: 0,
        };
        let parts: Vec<SequenceRows<'_>> =
            tables.iter().map(Vec::as_slice).enumerate().map(sequence).collect();
        let tokens: Vec<u32> = (0..sequences * rows).map(|row| (row * 7919 % VOCABULARY) as u32).collect();
        let positions: Vec<u32> = (0..sequences * rows).map(|row| (position + row % rows) as u32).collect();
        let outputs: Vec<u32> = (1..=sequences).map(|sequence| (sequence * rows - 1) as u32).collect();
        act(&Batch { tokens: &tokens, positions: &positions, sequences: &parts, outputs: &outputs })
    }

    fn run(&self, session: &mut dyn Session) -> Vec<u32> {
        self.with(|batch| session.run(batch)).expect("a run");
        bits(session)
    }

    fn trace(&self, session: &mut dyn Session, grain: Grain) -> (Trace, Vec<u32>) {
        let trace = self.with(|batch| session.run_traced(batch, grain)).expect("a run");
        (trace, bits(session))
    }
}

fn bits(session: &mut dyn Session) -> Vec<u32> {
    session.logits().expect("logits").iter().map(|logit| logit.to_bits()).collect()
}

/// Scopes follow each other, within the whole.
fn check_times(trace: &Trace, place: &str) {
    assert!(trace.clock > 0.0 && trace.clock < trace.seconds, "{place}: {} {}", trace.clock, trace.seconds);
    let mut end = 0.0;
    for scope in &trace.scopes {
        // The driver gives differences of moments in f32 milliseconds.
        let rounding = 1e-6 * trace.seconds;
        assert!(scope.seconds > 0.0 && !scope.kernel.is_empty(), "{place}: {scope:?}");
        assert!(scope.start >= end - rounding, "{place}: {scope:?} before {end}");
        end = scope.start + scope.seconds;
        assert!(end <= trace.seconds + rounding, "{place}: {scope:?} after {}", trace.seconds);
    }
}

/// Every step has a scope, in the order of steps, behind the copy of the batch.
fn check_kernels(trace: &Trace, steps: usize, place: &str) {
    let (copy, kernels) = trace.scopes.split_first().expect("scopes");
    assert_eq!((copy.step, &copy.kernel[..]), (None, "copy of the batch"), "{place}");
    let mut numbers: Vec<Option<usize>> = kernels.iter().map(|scope| scope.step).collect();
    numbers.dedup();
    assert_eq!(numbers, (0..steps).map(Some).collect::<Vec<_>>(), "{place}");
}

/// Both grains of a batch, after a prompt of some tokens: what was launched as one.
fn check(session: &mut dyn Session, rows: &Rows, place: &str) -> String {
    let prompt = Rows { rows: 100, position: 0, ..*rows };
    prompt.run(session);
    let expected = rows.run(session);
    assert_eq!(expected.len(), rows.sequences * VOCABULARY);
    assert!(expected.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{place}");
    // What was written to the cache before must not matter.
    let (trace, logits) = rows.trace(session, Grain::Kernel);
    assert!(logits == expected, "kernel by kernel: other bits: {place}");
    check_times(&trace, place);
    check_kernels(&trace, session.plan().steps.len(), place);
    let (trace, logits) = rows.trace(session, Grain::Launch);
    assert!(logits == expected, "as it is launched: other bits: {place}");
    check_times(&trace, place);
    let [copy, whole] = &trace.scopes[..] else { panic!("{place}: {:?}", trace.scopes) };
    assert_eq!((&copy.kernel[..], copy.step, whole.step), ("copy of the batch", None, None), "{place}");
    whole.kernel.clone()
}

const TOKEN: Rows = Rows { sequences: 1, rows: 1, position: 100 };
const TOKENS: Rows = Rows { sequences: 4, rows: 1, position: 100 };
const PROMPT: Rows = Rows { sequences: 1, rows: 300, position: 100 };

#[test]
fn traces_change_no_bit_and_times_add_up() {
    let options = CudaOptions { decode: DecodeVariant::Graph, ..CudaOptions::default() };
    let Some(backend) = or_skip(gpu::open(options)) else { return };
    for policy in POLICIES {
        let mut session = prepare(&backend, &DECODER, policy);
        for (rows, launched) in [(TOKEN, "graph of "), (TOKENS, "graph of "), (PROMPT, "stream of ")] {
            let kernel = check(&mut *session, &rows, policy);
            assert!(kernel.starts_with(launched), "{policy}: {kernel}");
        }
    }
}

#[test]
fn the_kernel_for_a_token_is_one_scope() {
    let options = CudaOptions { decode: DecodeVariant::Token, ..CudaOptions::default() };
    let backend = gpu::open(options).and_then(|backend| {
        let arch = backend.device().info().arch;
        let hopper = (arch.major, arch.minor) == (9, 0);
        hopper.then_some(backend).ok_or(format!("the kernel for a token is not for {arch}"))
    });
    let Some(backend) = or_skip(backend) else { return };
    let mut session = prepare(&backend, &DECODER, "bf16");
    let kernel = check(&mut *session, &TOKEN, "token");
    assert!(kernel.starts_with("token."), "{kernel}");
}

#[test]
fn products_of_the_library_are_scopes() {
    let products = Preferences {
        backend: MatmulBackend::CublasLt,
        variant: VariantPreference::Gemm,
        ..Preferences::default()
    };
    let Some(backend) = or_skip(gpu::open(CudaOptions { products, ..CudaOptions::default() })) else {
        return;
    };
    let mut session = prepare(&backend, &DECODER, "bf16");
    check(&mut *session, &PROMPT, "library");
    let (trace, _) = PROMPT.trace(&mut *session, Grain::Kernel);
    assert!(trace.scopes.iter().any(|scope| scope.kernel == "cublaslt"), "{:?}", trace.scopes);
}

#[test]
fn more_scopes_than_a_queue_holds() {
    let Some(backend) = or_skip(gpu::open(CudaOptions::default())) else { return };
    let mut session = prepare(&backend, &DEEP, "bf16");
    for rows in [TOKENS, PROMPT] {
        check(&mut *session, &rows, "deep");
        let (trace, _) = rows.trace(&mut *session, Grain::Kernel);
        assert!(trace.scopes.len() > 340, "{}", trace.scopes.len());
    }
}

#[test]
fn a_batch_that_does_not_fit_leaves_a_session_that_traces() {
    let Some(backend) = or_skip(gpu::open(CudaOptions::default())) else { return };
    let mut session = prepare(&backend, &DECODER, "bf16");
    let beyond = Rows { position: CONTEXT, ..TOKEN };
    assert!(beyond.with(|batch| session.run_traced(batch, Grain::Kernel)).is_err());
    check(&mut *session, &TOKEN, "afterwards");
}
