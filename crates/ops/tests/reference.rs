//! The reference against numbers worked out by hand, and what it refuses.

use std::sync::Arc;

use mantissa_numerics::Format;
use mantissa_numerics::policy::{PrecisionPolicy, Preset};
use mantissa_ops::backend::{
    Backend, LoadOptions, NoProgress, OverflowRule, PrepareError, RunError, Session,
};
use mantissa_ops::backend::{StepObserver, ValueReader};
use mantissa_ops::builder::{AttentionArgs, FfnArgs, QkvArgs};
use mantissa_ops::conformance::data::MemorySource;
use mantissa_ops::op::{
    Embedding, HeadNorms, Heads, Logits, Mask, Matmul, Op, Qkv, RmsNorm, Rope, Sdpa, Softmax,
};
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, ValueRole, WeightPart};
use mantissa_ops::reference::Rounding;
use mantissa_ops::{
    Batch, Limits, Plan, Program, ProgramBuilder, ReferenceBackend, RowOrder, SequenceRows, ValueId,
};

const LIMITS: Limits = Limits { rows: 8, outputs: 8, sequences: 2, pages: 3, page_size: 16, context: 40 };

struct Fixture {
    builder: ProgramBuilder,
    source: MemorySource,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture { builder: ProgramBuilder::new("test", 40), source: MemorySource::default() }
    }

    fn value(&mut self, name: &str, width: usize) -> ValueId {
        self.builder.value(name, width, ValueRole::Activation)
    }

    fn matrix(&mut self, name: &str, rows: usize, numbers: &[f32]) -> mantissa_ops::WeightId {
        let columns = numbers.len() / rows;
        self.source.add(name, &[rows, columns], Format::F32, numbers);
        self.builder.matrix(name, vec![WeightPart::whole(name, rows)], columns)
    }

    fn vector(&mut self, name: &str, numbers: &[f32]) -> mantissa_ops::WeightId {
        self.source.add(name, &[numbers.len()], Format::F32, numbers);
        self.builder.vector(name, vec![WeightPart::whole(name, numbers.len())])
    }

    fn session(self, rounding: Rounding, policy: impl Into<PrecisionPolicy>) -> Box<dyn Session> {
        prepare(self.builder.finish(), &self.source, rounding, policy.into()).expect("ready")
    }
}

fn prepare(
    program: Program,
    source: &MemorySource,
    rounding: Rounding,
    policy: PrecisionPolicy,
) -> Result<Box<dyn Session>, PrepareError> {
    let backend = ReferenceBackend::new(rounding);
    let plan = Plan::resolve(program, policy, &backend).expect("supported");
    backend.prepare(
        plan,
        source,
        &LoadOptions { limits: LIMITS, overflow: OverflowRule::Refuse },
        &NoProgress,
    )
}

/// Runs one sequence from `position` on, with pages 2, 0.
fn run(session: &mut dyn Session, tokens: &[u32], position: u32) -> Result<(), RunError> {
    let positions: Vec<u32> = (position..position + tokens.len() as u32).collect();
    let sequences = [SequenceRows { rows: 0..tokens.len(), block_table: &[2, 0], rope_set: 0 }];
    let outputs = [tokens.len() as u32 - 1];
    session.run(&Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs })
}

fn close(got: &[f32], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!(
            (f64::from(*got) - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3),
            "got {got}, wanted {wanted}"
        );
    }
}

#[test]
fn products_norms_and_lookups() {
    let mut fixture = Fixture::new();
    let table = fixture.matrix("table", 3, &[0.0, 0.0, 3.0, 4.0, -1.0, 2.0]);
    let embedded = fixture.value("embedded", 2);
    fixture.builder.step("embedding", Op::Embedding(Embedding { table, out: embedded }));
    let residual = fixture.value("residual", 2);
    let weight = fixture.vector("norm", &[2.0, 0.5]);
    let normalised = fixture.value("normalised", 2);
    let norm = RmsNorm { input: embedded, residual: Some(residual), weight, eps: 0.5, out: normalised };
    fixture.builder.step("norm", Op::RmsNorm(norm));
    let weight = fixture.matrix("weight", 3, &[1.0, 0.0, 0.0, 1.0, 1.0, -1.0]);
    let bias = fixture.vector("bias", &[0.0, 10.0, 0.0]);
    let product = fixture.value("product", 3);
    let matmul =
        Matmul { input: embedded, weight, bias: Some(bias), residual: None, alpha: -2.0, out: product };
    fixture.builder.step("matmul", Op::Matmul(matmul));
    let logits = fixture.builder.value("logits", 3, ValueRole::Logits);
    fixture.builder.step("logits", Op::Logits(Logits { input: embedded, weight: table, out: logits }));

    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    session.write(residual, &[1.0, 1.0, -2.0, -4.0]).expect("representable");
    run(session.as_mut(), &[2, 1], 0).expect("a run");
    assert_eq!(session.read(embedded), [-1.0, 2.0, 3.0, 4.0]);
    assert_eq!(session.read(residual), [0.0, 3.0, 1.0, 0.0]);
    let inverse = [1.0 / (4.5_f64 + 0.5).sqrt(), 1.0 / (0.5_f64 + 0.5).sqrt()];
    close(&session.read(normalised), &[0.0, 1.5 * inverse[0], 2.0 * inverse[1], 0.0]);
    assert_eq!(session.read(product), [2.0, 6.0, 6.0, -6.0, 2.0, 2.0]);
    assert_eq!(session.logits().unwrap(), [0.0, 25.0, 5.0]);
}

#[test]
fn rope_turns_pairs_of_halves_and_passes_the_rest() {
    let mut fixture = Fixture::new();
    let quarter = std::f64::consts::FRAC_PI_2;
    let set = RopeSet { inverse_frequencies: vec![quarter, 2.0 * quarter], attention_factor: 2.0 };
    fixture.builder.rope(RopeSpec { rotary_dim: 4, sets: vec![set], long_beyond: None });
    let (input, out) = (fixture.value("input", 6), fixture.value("out", 6));
    fixture.builder.step("rope", Op::Rope(Rope { input, head_dim: 6, out }));
    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    session.write(input, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).expect("representable");
    // A quarter turn of (1, 3), a half turn of (2, 4).
    run(session.as_mut(), &[0], 1).expect("a run");
    close(&session.read(out), &[-6.0, -4.0, 2.0, -8.0, 5.0, 6.0]);
}

#[test]
fn softmax_and_materialised_attention() {
    let mut fixture = Fixture::new();
    let (input, out) = (fixture.value("input", 3), fixture.value("out", 3));
    fixture.builder.step("softmax", Op::Softmax(Softmax { input, scale: 2.0, out }));
    // Two query heads share a key head; each row sees itself and one before.
    let heads = Heads { query: 2, key_value: 1, dim: 1 };
    let (query, key, value) = (fixture.value("q", 2), fixture.value("k", 1), fixture.value("v", 1));
    let attended = fixture.value("attended", 2);
    let mask = Mask::SlidingWindow { window: 2 };
    let sdpa = Sdpa { query, key, value, heads, scale: 1.0, mask, out: attended };
    fixture.builder.step("sdpa", Op::Sdpa(sdpa));
    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    let ln2 = std::f32::consts::LN_2;
    session.write(input, &[0.0, ln2 / 2.0, f32::NEG_INFINITY].repeat(3)).expect("representable");
    session.write(query, &[0.0, ln2, 0.0, ln2, 0.0, ln2]).expect("representable");
    session.write(key, &[5.0, 1.0, 2.0]).expect("representable");
    session.write(value, &[100.0, 3.0, 6.0]).expect("representable");
    run(session.as_mut(), &[0, 0, 0], 0).expect("a run");
    close(&session.read(out)[..3], &[1.0 / 3.0, 2.0 / 3.0, 0.0]);
    // The last row: head 0 averages 3 and 6; head 1 weighs them 2 : 4.
    close(&session.read(attended)[4..], &[4.5, 5.0]);
    assert_eq!(session.read(attended)[..2], [100.0, 100.0]);
}

/// A cache written by projections that select input features: query head 0 and 1, key, value.
fn cached(fixture: &mut Fixture, mask: Mask) -> (ValueId, ValueId) {
    let heads = Heads { query: 2, key_value: 1, dim: 2 };
    fixture.builder.cache(CacheSpec { layers: 1, heads });
    let input = fixture.value("input", 3);
    // Queries (a, 0) and (0, a), keys (b, b), values (c, -c).
    let rows = [[1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]];
    let numbers: Vec<f32> = rows.iter().flatten().map(|&number| number as f32).collect();
    fixture.source.add("qkv", &[8, 3], Format::F32, &numbers);
    let args = QkvArgs {
        weights: vec![WeightPart::whole("qkv", 8)],
        biases: None,
        head_norms: None,
        heads,
        layer: 0,
    };
    let query = fixture.builder.qkv("qkv", input, args);
    let out =
        fixture.builder.attention("attention", query, AttentionArgs { heads, scale: 1.0, mask, layer: 0 });
    (input, out)
}

#[test]
fn attention_reads_the_pages_of_its_table() {
    let mut fixture = Fixture::new();
    let (input, out) = cached(&mut fixture, Mask::Causal);
    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    // Positions 0 to 15 fill page 2 with equal keys; position 16 lies in page 0.
    for position in 0..17_u32 {
        session.write(input, &[1.0, 0.0, position as f32]).expect("representable");
        run(session.as_mut(), &[0], position).expect("a run");
        let mean = f64::from(position) / 2.0;
        close(&session.read(out), &[mean, -mean, mean, -mean]);
    }
    // With page 2 copied to page 1, a table that names that page reads the same.
    session.copy_page(2, 1).expect("inside");
    let again = [SequenceRows { rows: 0..1, block_table: &[1, 0], rope_set: 0 }];
    session.run(&Batch { tokens: &[0], positions: &[16], sequences: &again, outputs: &[] }).expect("a run");
    close(&session.read(out)[..1], &[8.0]);
    assert_eq!(session.copy_page(3, 0), Err(RunError::Page { page: 3, pages: 3 }));
}

#[test]
fn a_window_forgets() {
    let mut fixture = Fixture::new();
    let (input, out) = cached(&mut fixture, Mask::SlidingWindow { window: 2 });
    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    let ln3 = 3.0_f32.ln();
    session.write(input, &[1.0, 9.0, f32::NAN, 1.0, 0.0, 4.0, 1.0, ln3, 8.0]).expect("representable");
    run(session.as_mut(), &[0, 0, 0], 0).expect("a run");
    let out = session.read(out);
    assert!(out[..8].iter().all(|x| x.is_nan()));
    // exp(ln 3) against exp(0).
    close(&out[8..10], &[7.0, -7.0]);
}

#[test]
fn projections_add_bias_normalise_heads_and_rotate() {
    let mut fixture = Fixture::new();
    let heads = Heads { query: 1, key_value: 1, dim: 2 };
    fixture.builder.cache(CacheSpec { layers: 1, heads });
    let set = RopeSet { inverse_frequencies: vec![std::f64::consts::PI], attention_factor: 1.0 };
    fixture.builder.rope(RopeSpec { rotary_dim: 2, sets: vec![set], long_beyond: None });
    let (input, query) = (fixture.value("input", 1), fixture.value("query", 2));
    let weight = fixture.matrix("weight", 6, &[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    let bias = fixture.vector("bias", &[2.0, 3.0, 0.0, 0.0, 0.0, 0.0]);
    let norms = HeadNorms {
        query: fixture.vector("query norm", &[5.0, 10.0]),
        key: fixture.vector("key norm", &[1.0, 1.0]),
        eps: 0.0,
    };
    let op = Qkv { input, weight, bias: Some(bias), head_norms: Some(norms), heads, layer: 0, query };
    fixture.builder.step("qkv", Op::Qkv(op));
    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    session.write(input, &[1.0]).expect("representable");
    // (3, 4) has mean square 12.5; half a turn negates it.
    run(session.as_mut(), &[0], 1).expect("a run");
    let inverse = 1.0 / 12.5_f64.sqrt();
    close(&session.read(query), &[-15.0 * inverse, -40.0 * inverse]);
}

#[test]
fn ffn_rounds_its_intermediate_only_as_the_contract_says() {
    let session = |rounding, policy: Preset| {
        let mut fixture = Fixture::new();
        let (input, residual) = (fixture.value("input", 1), fixture.value("residual", 1));
        // Far from zero silu is the identity: the intermediate is 64 x^2, no number of bf16.
        fixture.source.add("both", &[2, 1], Format::F32, &[64.0, 1.0]);
        fixture.source.add("down", &[1, 1], Format::F32, &[1.0]);
        let part = |rows| WeightPart { tensor: "both".into(), tensor_rows: 2, rows };
        let args = FfnArgs { gate_up: vec![part(0..1), part(1..2)], down: "down".into(), intermediate: 1 };
        fixture.builder.ffn_into("ffn", input, residual, args);
        let mut session = fixture.session(rounding, policy);
        let x = 1.0 + 1.0 / 128.0;
        session.write(input, &[x]).expect("representable");
        session.write(residual, &[-65.0]).expect("representable");
        run(session.as_mut(), &[0], 0).expect("a run");
        session.read(residual)[0]
    };
    // 64 x^2 - 65 with x = 1 + 2^-7 is 2^-8. In bf16 the intermediate 65.00390625 becomes 65.
    assert_eq!(session(Rounding::Exact, Preset::Bf16), 0.00390625);
    assert_eq!(session(Rounding::AsContract, Preset::Bf16), 0.0);
    assert_eq!(session(Rounding::AsContract, Preset::F32), 0.00390625);
}

#[test]
fn rotary_pairs_of_gguf_are_taken_apart() {
    let mut fixture = Fixture::new();
    let weight = fixture.matrix("weight", 4, &[0.0, 1.0, 2.0, 3.0]);
    fixture.source.set_order("weight", RowOrder::RopePairs { heads: 1 });
    let (input, out) = (fixture.value("input", 1), fixture.value("out", 4));
    fixture
        .builder
        .step("matmul", Op::Matmul(Matmul { input, weight, bias: None, residual: None, alpha: 1.0, out }));
    let mut session = fixture.session(Rounding::Exact, Preset::F32);
    session.write(input, &[1.0]).expect("representable");
    run(session.as_mut(), &[0], 0).expect("a run");
    assert_eq!(session.read(out), [0.0, 2.0, 1.0, 3.0]);
}

fn norm_program(weights: &[f32], shape: &[usize]) -> (Program, MemorySource) {
    let mut builder = ProgramBuilder::new("norm", 8);
    let input = builder.value("input", 2, ValueRole::Activation);
    builder.rms_norm("norm", "w", input, 1e-5);
    let mut source = MemorySource::default();
    source.add("w", shape, Format::F32, weights);
    (builder.finish(), source)
}

#[test]
fn bad_weights_are_refused_with_their_names() {
    let refusal = |numbers: &[f32], shape: &[usize]| {
        let (program, source) = norm_program(numbers, shape);
        prepare(program, &source, Rounding::Exact, Preset::F16.policy()).err().map(|error| error.to_string())
    };
    assert_eq!(refusal(&[1.0, 2.0], &[2]), None);
    assert_eq!(refusal(&[1.0, 2.0, 3.0], &[3]).as_deref(), Some("tensor w: wanted shape [2], got [3]"));
    assert_eq!(refusal(&[1.0, 2.0], &[2, 1]).as_deref(), Some("tensor w: wanted shape [2], got [2, 1]"));
    let text = refusal(&[1.0, f32::NAN], &[2]).expect("NaN in a norm");
    assert!(text.starts_with("tensor w: 1 of its values are NaN or infinite"), "{text}");
    let text = refusal(&[1.0, 1e6], &[2]).expect("beyond f16");
    assert!(
        text.starts_with("tensor w: 1 finite values are beyond the range of f16 (stored as f32)"),
        "{text}"
    );

    let (program, _) = norm_program(&[], &[2]);
    let missing = prepare(program, &MemorySource::default(), Rounding::Exact, Preset::F16.policy());
    assert_eq!(missing.err().map(|error| error.to_string()).as_deref(), Some("no tensor w in memory"));
}

#[test]
fn saturation_is_reported_where_it_is_allowed() {
    let (program, source) = norm_program(&[1.0, 1e6], &[2]);
    let backend = ReferenceBackend::new(Rounding::Exact);
    let plan = Plan::resolve(program, Preset::F16.policy(), &backend).expect("supported");
    let options = LoadOptions { limits: LIMITS, overflow: OverflowRule::Saturate };
    let session = backend.prepare(Arc::clone(&plan), &source, &options, &NoProgress).expect("allowed");
    let [conversion] = session.report().conversions.as_slice() else { panic!("one tensor was converted") };
    assert_eq!((conversion.from, conversion.to, conversion.stats.overflowed), (Format::F32, Format::F16, 1));
    assert_eq!(session.report().bytes_read, 8);

    let mut fixture = Fixture::new();
    cached(&mut fixture, Mask::Causal);
    let plan = Plan::resolve(fixture.builder.finish(), Preset::F16.policy(), &backend).expect("supported");
    let limits = Limits { page_size: 24, ..LIMITS };
    let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
    let error =
        backend.prepare(plan, &fixture.source, &options, &NoProgress).err().expect("24 is no power of two");
    assert_eq!(error.to_string(), "page size is 24, but must be a power of two of at least 16");
}

#[test]
fn runs_and_values_that_do_not_fit_are_refused() {
    let (program, source) = norm_program(&[1.0, 2.0], &[2]);
    let mut session = prepare(program, &source, Rounding::Exact, Preset::F16.policy()).expect("ready");
    let input = ValueId(0);
    let refused = |result: Result<(), RunError>| result.expect_err("refused").to_string();
    assert_eq!(refused(session.write(input, &[1.0; 3])), "value input: wanted 4 numbers, got 3");
    assert_eq!(refused(session.write(input, &[1.0; 18])), "value input: wanted 16 numbers, got 18");
    assert_eq!(refused(session.write(input, &[1.0, 0.1])), "value input: 0.1 is not a f16 number");
    assert_eq!(
        refused(run(session.as_mut(), &[0; 9], 0)),
        "batch: rows: 9 in the batch, but the session was prepared for 8"
    );
}

#[test]
fn observers_see_every_step() {
    struct Seen(Vec<(usize, usize)>);
    impl StepObserver for Seen {
        fn after_step(&mut self, step: usize, values: &dyn ValueReader) {
            self.0.push((step, values.read(ValueId(1)).len()));
        }
    }
    let (program, source) = norm_program(&[1.0, 2.0], &[2]);
    let mut session = prepare(program, &source, Rounding::AsContract, Preset::Bf16.policy()).expect("ready");
    session.write(ValueId(0), &[1.0, 2.0]).expect("representable");
    let sequences = [SequenceRows { rows: 0..1, block_table: &[], rope_set: 0 }];
    let batch = Batch { tokens: &[0], positions: &[0], sequences: &sequences, outputs: &[] };
    let mut seen = Seen(Vec::new());
    session.run_observed(&batch, &mut seen).expect("a run");
    assert_eq!(seen.0, [(0, 2)]);
}
