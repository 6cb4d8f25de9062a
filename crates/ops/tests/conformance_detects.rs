//! The suite can fail: the reference with one deliberate mistake is found out by it, in the right family.

use std::sync::Arc;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Compute, Family, Merge, OpContract, Order};
use mantissa_numerics::convert::{self, Overflow};
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, LoadReport, MemoryUse, PrepareError, Progress, RunError,
    Session, StepObserver, ValueReader,
};
use mantissa_ops::builder::{AttentionArgs, FfnArgs, ProgramBuilder, QkvArgs};
use mantissa_ops::conformance::shapes::Shapes;
use mantissa_ops::conformance::{Failures, Problem, Suite, Tally, check_family, check_matrix, examine};
use mantissa_ops::op::{Heads, Mask, Op};
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, WeightPart};
use mantissa_ops::reference::Rounding;
use mantissa_ops::{
    Batch, Limits, Plan, Program, ReferenceBackend, ShapeClass, SourceError, TensorSource, ValueId, View,
};

/// What the backend gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A window that is one position too wide.
    Window,
    /// Rotation in the other direction, as if the halves of a pair were exchanged.
    RopeHalves,
    /// The first head of keys and values taken for the second.
    KvHead,
    /// Scores without their factor.
    Scale,
    /// No `eps` in the norm.
    Eps,
    /// Results rounded toward zero.
    Truncates,
    /// Results that went through bf16 on their way to f32 or f16.
    ThroughBf16,
    /// f32 results that are one unit in the last place off: within any bound, but not the stated order.
    LastBit,
    /// NaN becomes zero.
    HidesNan,
    /// Infinity becomes the largest finite value.
    Saturates,
    /// A row's bits depend on the number of rows.
    DependsOnBatch,
    /// Bits differ from one session to the next.
    Forgetful,
    /// The residual is left out.
    NoResidual,
}

struct Broken {
    inner: ReferenceBackend,
    fault: Fault,
    contracts: Vec<OpContract>,
    sessions: std::sync::atomic::AtomicU32,
}

impl Broken {
    fn new(fault: Fault) -> Broken {
        let inner = ReferenceBackend::new(Rounding::AsContract);
        // Only some contracts, to be quick.
        let wanted = |contract: &&OpContract| {
            let query = &contract.query;
            query.weights.is_none_or(|weights| weights == Format::F32)
                && query.cache.is_none_or(|cache| cache.format == Format::F16)
        };
        let contracts = inner.contracts().iter().filter(wanted).cloned().collect();
        Broken { inner, fault, contracts, sessions: 0.into() }
    }

    fn sabotage(&self, program: &mut Plan) {
        for step in &mut program.steps {
            match (&mut step.op, self.fault) {
                (Op::Attention(op), Fault::Window) => widen(&mut op.mask),
                (Op::Sdpa(op), Fault::Window) => widen(&mut op.mask),
                (Op::Attention(op), Fault::Scale) => op.scale = 1.0,
                (Op::Softmax(op), Fault::Scale) => op.scale = 1.0,
                (Op::RmsNorm(op), Fault::Eps) => op.eps = 0.0,
                (Op::Matmul(op), Fault::NoResidual) => op.residual = None,
                _ => {}
            }
        }
        if self.fault == Fault::RopeHalves {
            let sets = program.program.rope.iter_mut().flat_map(|rope| &mut rope.sets);
            sets.flat_map(|set| &mut set.inverse_frequencies).for_each(|frequency| *frequency = -*frequency);
        }
    }
}

fn widen(mask: &mut Mask) {
    if let Mask::SlidingWindow { window } = mask {
        *window += 1;
    }
}

impl Backend for Broken {
    fn info(&self) -> BackendInfo {
        self.inner.info()
    }

    fn contracts(&self) -> &[OpContract] {
        &self.contracts
    }

    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        self.inner.choose(program, op, contract, class)
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        let mut wrong = (*plan).clone();
        self.sabotage(&mut wrong);
        let swapped = SwappedHeads::new(source, &plan.program);
        let source = if self.fault == Fault::KvHead { &swapped } else { source };
        let session = self.inner.prepare(Arc::new(wrong), source, options, progress)?;
        let number = self.sessions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Box::new(BrokenSession { session, fault: self.fault, plan, number, rows: 0, logits: Vec::new() }))
    }
}

struct BrokenSession {
    session: Box<dyn Session>,
    fault: Fault,
    plan: Arc<Plan>,
    number: u32,
    rows: usize,
    logits: Vec<f32>,
}

/// The f32 next to `x`, away from zero.
fn next(x: f32) -> f32 {
    if x.is_finite() && x != 0.0 { f32::from_bits(x.to_bits() + 1) } else { x }
}

impl BrokenSession {
    fn distort(&self, x: f32, format: Format) -> f32 {
        match self.fault {
            Fault::Truncates if x != 0.0 && x.is_finite() => {
                // Half a unit of the format below: what truncation would have left half of the time.
                let below = f64::from(x) * (1.0 - format.unit_roundoff());
                rounded(below, format, convert::Rounding::TowardZero)
            }
            Fault::ThroughBf16 => {
                let narrow = rounded(f64::from(x), Format::Bf16, convert::Rounding::NearestEven);
                rounded(f64::from(narrow), format, convert::Rounding::NearestEven)
            }
            Fault::LastBit if format == Format::F32 => next(x),
            Fault::HidesNan if x.is_nan() => 0.0,
            Fault::Saturates if x.is_infinite() => x.signum() * format.max_finite() as f32,
            Fault::DependsOnBatch if self.rows > 1 && format == Format::F32 => next(x),
            Fault::Forgetful if self.number.is_multiple_of(2) && format == Format::F32 => next(x),
            _ => x,
        }
    }
}

fn rounded(x: f64, format: Format, rounding: convert::Rounding) -> f32 {
    let bits = convert::encode(x, format, rounding, Overflow::Infinity).expect("a format with NaN");
    convert::decode(bits, format)
}

impl ValueReader for BrokenSession {
    fn read(&self, value: ValueId) -> Vec<f32> {
        let format = self.plan.value_format(value);
        self.session.read(value).into_iter().map(|x| self.distort(x, format)).collect()
    }
}

impl Session for BrokenSession {
    fn plan(&self) -> &Plan {
        &self.plan
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
        self.rows = batch.rows();
        self.session.run(batch)?;
        self.logits = self.plan.program.logits().map_or_else(Vec::new, |value| self.read(value));
        Ok(())
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.session.run_observed(batch, observer)
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        Ok(&self.logits)
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.session.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        self.session.copy_page(from, to)
    }
}

/// Exchanges the first two heads of keys and of values in the projections of attention's cases.
struct SwappedHeads<'a> {
    source: &'a dyn TensorSource,
    selection: Vec<u8>,
}

impl SwappedHeads<'_> {
    fn new<'a>(source: &'a dyn TensorSource, program: &Program) -> SwappedHeads<'a> {
        let mut selection = Vec::new();
        let heads = program.cache.map(|cache| cache.heads).filter(|heads| heads.key_value > 1);
        if let (Ok(view), Some(heads)) = (source.tensor("selection"), heads) {
            selection = view.as_bytes().expect("no gaps").to_vec();
            let head = selection.len() / (heads.query + 2 * heads.key_value);
            for first in [heads.query, heads.query + heads.key_value] {
                let (left, right) = selection[first * head..(first + 2) * head].split_at_mut(head);
                left.swap_with_slice(right);
            }
        }
        SwappedHeads { source, selection }
    }
}

impl TensorSource for SwappedHeads<'_> {
    fn tensor(&self, name: &str) -> Result<View<'_>, SourceError> {
        let view = self.source.tensor(name)?;
        if self.selection.is_empty() {
            return Ok(view);
        }
        Ok(View::contiguous(view.format(), view.shape(), &self.selection).expect("the same shape"))
    }
}

fn check(fault: Fault, family: Family) -> Result<Tally, Failures> {
    check_family(&Broken::new(fault), family)
}

fn problems(fault: Fault, family: Family) -> Vec<Problem> {
    let failures = check(fault, family).expect_err("the fault must be found");
    failures.failures.into_iter().map(|failure| failure.problem).collect()
}

#[test]
fn without_a_fault_nothing_is_found() {
    for family in [Family::Matmul, Family::Qkv, Family::Logits] {
        let tally = check(Fault::None, family).unwrap_or_else(|failures| panic!("{failures}"));
        assert_eq!(tally.contracts, 3);
    }
}

#[test]
fn wrong_semantics_are_found() {
    for (fault, family) in [
        (Fault::Window, Family::Attention),
        (Fault::Window, Family::Sdpa),
        (Fault::RopeHalves, Family::Rope),
        (Fault::RopeHalves, Family::Qkv),
        (Fault::KvHead, Family::Attention),
        (Fault::Scale, Family::Attention),
        (Fault::Scale, Family::Softmax),
        (Fault::Eps, Family::RmsNorm),
        (Fault::NoResidual, Family::Matmul),
    ] {
        let problems = problems(fault, family);
        assert!(
            problems.iter().all(|problem| matches!(problem, Problem::Value { .. })),
            "{fault:?}: {problems:?}"
        );
    }
}

#[test]
fn wrong_rounding_is_found_in_every_family() {
    for family in Family::ALL {
        let is = |wanted: Format| move |problem: &Problem| matches!(problem, Problem::Value { format, .. } if *format == wanted);
        // Logits are f32 only, where one unit in the last place is within the bound of any order of the sum.
        let truncated =
            family == Family::Logits || problems(Fault::Truncates, family).iter().any(is(Format::F16));
        assert!(truncated, "{family}");
        let found = problems(Fault::ThroughBf16, family);
        assert!(found.iter().any(is(Format::F32)) && !found.iter().any(is(Format::Bf16)), "{family}");
    }
}

#[test]
fn lost_special_values_are_found() {
    for family in [Family::Matmul, Family::RmsNorm, Family::Softmax, Family::Ffn, Family::Attention] {
        assert!(!problems(Fault::HidesNan, family).is_empty());
    }
    for family in [Family::Matmul, Family::Logits, Family::Residual] {
        assert!(!problems(Fault::Saturates, family).is_empty());
    }
}

#[test]
fn changing_bits_are_found() {
    for family in [Family::Matmul, Family::Attention, Family::Softmax] {
        let why = |fault| {
            problems(fault, family).into_iter().find_map(|problem| match problem {
                Problem::Bits { why, .. } => Some(why),
                _ => None,
            })
        };
        assert_eq!(why(Fault::DependsOnBatch), Some("rows in chunks and all at once"), "{family}");
        assert_eq!(why(Fault::Forgetful), Some("the same run twice"), "{family}");
    }
}

#[test]
fn an_order_that_was_not_kept_is_found() {
    // Claims the order of an f32 chain, which sums in f64 do not have.
    let orders = [
        (Family::Matmul, Order::Ascending),
        (Family::Matmul, Order::Lanes { lanes: 32, group: 4, merge: Merge::Ascending }),
        (Family::Matmul, Order::Segments { length: 128 }),
        (Family::RmsNorm, Order::Lanes { lanes: 16, group: 1, merge: Merge::Tree }),
    ];
    for (family, order) in orders {
        let mut backend = Broken::new(Fault::LastBit);
        backend.contracts.retain(|contract| contract.query.family == family);
        for contract in &mut backend.contracts {
            contract.compute = Compute::F32Fma;
            contract.order = order;
        }
        let failures = check_family(&backend, family).expect_err("the order is not kept").failures;
        let by_bits = |problem: &Problem| {
            matches!(problem, Problem::Bits { why: "the order that the contract states", .. })
        };
        assert!(failures.iter().any(|failure| by_bits(&failure.problem)), "{family}");
    }
}

#[test]
fn gaps_of_the_matrix_are_found() {
    // A contract twice.
    let mut twice = Broken::new(Fault::None);
    twice.contracts.push(twice.contracts[0].clone());
    assert!(check_matrix(&twice).is_err());

    // A contract that no policy can ask for.
    let mut foreign = Broken::new(Fault::None);
    foreign.contracts[0].query.activations = Format::F8E5M2;
    let failures = check_matrix(&foreign).expect_err("f8e5m2 activations are no policy");
    assert!(failures.to_string().contains("activations cannot be \"f8e5m2\""), "{failures}");

    // Attention over a cache that nothing writes.
    let mut orphan = Broken::new(Fault::None);
    orphan.contracts.retain(|contract| contract.query.family != Family::Qkv);
    let failures = check_matrix(&orphan).expect_err("the cache cannot be filled");
    assert!(failures.to_string().contains("no projection that writes such a cache"), "{failures}");

    // What is merely missing is refused, and that is as it should be.
    let partial = Broken::new(Fault::None);
    let tally = check_matrix(&partial).unwrap_or_else(|failures| panic!("{failures}"));
    assert_eq!(tally.contracts, partial.contracts.len());
    assert!(tally.cases > 4 * tally.contracts);
}

/// A layer of a decoder whose sizes are its own.
fn decoder() -> Program {
    let heads = Heads { query: 4, key_value: 2, dim: 16 };
    let mut builder = ProgramBuilder::new("decoder", 256);
    builder.cache(CacheSpec { layers: 1, heads });
    let set = RopeSet { inverse_frequencies: vec![0.5; 8], attention_factor: 1.0 };
    builder.rope(RopeSpec { rotary_dim: 16, sets: vec![set], long_beyond: None });
    let stream = builder.embedding("table", 300, 72);
    let normed = builder.rms_norm("norm", "norm", stream, 1e-6);
    let weights = vec![WeightPart::whole("qkv", heads.query_width() + 2 * heads.kv_width())];
    let projections = QkvArgs { weights, biases: None, head_norms: None, heads, layer: 0 };
    let query = builder.qkv("qkv", normed, projections);
    let seen = AttentionArgs { heads, scale: 0.25, mask: Mask::Causal, layer: 0 };
    let attended = builder.attention("attention", query, seen);
    builder.project_into("out", "out", attended, stream);
    let [gate_up, down] = ["gate_up", "down"].map(str::to_owned);
    let ffn = FfnArgs { gate_up: vec![WeightPart::whole(gate_up, 208)], down, intermediate: 104 };
    builder.ffn_into("ffn", normed, stream, ffn);
    builder.logits("head", stream, 300);
    builder.finish()
}

#[test]
fn kernels_are_tried_at_the_shapes_of_a_model_and_measured() {
    let shapes = Shapes::of(&decoder()).expect("a decoder");
    assert_eq!((shapes.hidden, shapes.intermediate, shapes.vocabulary), (72, 104, 300));
    let (right, wrong) = (Broken::new(Fault::None), Broken::new(Fault::ThroughBf16));
    for contract in right.contracts() {
        let found = examine(&right, contract, Suite::Model(&shapes));
        assert!(found.failures.is_empty() && found.judged > 0, "{:?}", found.failures);
        let error = found.measured.relative_error.expect("it was measured");
        // One rounding to storage, of an intermediate or of the cache.
        assert!(
            error <= 2f64.powi(-8) && found.measured.bound_used <= 1.0,
            "{contract}: {:?}",
            found.measured
        );
    }
    let of = |backend: &Broken, family| {
        let is = |contract: &&OpContract| {
            let query = &contract.query;
            query.family == family && query.activations == Format::F32
        };
        examine(backend, backend.contracts().iter().find(is).expect("one in f32"), Suite::Model(&shapes))
    };
    for (family, size) in [(Family::Matmul, "64 to 72"), (Family::Ffn, "72 through 104")] {
        let found = of(&wrong, family);
        let failure = found.failures.first().expect("bf16 is not f32");
        assert!(
            matches!(failure.problem, Problem::Value { .. }) && failure.place.case.contains(size),
            "{failure}"
        );
        assert!(found.measured.max_ulps > 100.0 && found.measured.bound_used > 1.0, "{:?}", found.measured);
        assert!(of(&right, family).measured.relative_error < found.measured.relative_error);
    }
}
