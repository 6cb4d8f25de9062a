//! The conformance suite: every contract of a backend is run at awkward shapes and judged by the reference.
//!
//! A backend instantiates the whole suite with one line in a test:
//!
//! ```
//! use mantissa_ops::{ReferenceBackend, reference::Rounding};
//!
//! mantissa_ops::conformance!(ReferenceBackend::new(Rounding::AsContract));
//! ```
//!
//! What is demanded of every contract:
//! - each result lies in the interval that the reference's error analysis allows ([`Bounded`]), rounded to storage;
//!   no tolerance is written by hand;
//! - where the contract states the order of f32 operations, plain products, RMSNorm and sums have exactly those bits;
//! - the same run gives the same bits twice; a row gives the same bits alone and in any batch, and a prompt in any
//!   chunks, unless the contract's order is `Library`;
//! - what is not in the contracts is refused, with the family, the combination, the backend and what comes nearest.
//!
//! [`Bounded`]: crate::reference::number::Bounded

mod bits;
mod cached;
pub mod case;
pub mod data;
mod failure;
mod judge;
mod measured;
mod products;
mod rows;
pub mod shapes;

use mantissa_numerics::Format;
#[doc(hidden)]
pub use mantissa_numerics::contract::Family;
use mantissa_numerics::contract::{ContractQuery, OpContract, Unsupported, look_up};
use mantissa_numerics::policy::{Field, PolicyError, PrecisionPolicy, Preset};

use self::cached::JudgeCache;
use self::case::{Case, Judged, Setting};
pub use self::failure::{Failure, Failures, Place, Problem};
use self::judge::{Judgement, Trial};
pub use self::measured::Measured;
use self::products::Table;
use self::shapes::Shapes;
use crate::backend::Backend;
use crate::matrix::universe;
use crate::plan::Plan;
use crate::program::query_for;

/// What the suite ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Contracts, each with at least one judged case.
    pub contracts: usize,
    /// Cases.
    pub cases: usize,
}

/// Instantiates the suite for a backend: one `#[test]` per family, and those of the support matrix.
///
/// The expression is evaluated once per test. After `try` it is a `Result` of a reference to a backend or of the reason
/// why there is none here, with which each test is reported as skipped; see [`or_skip`].
#[macro_export]
macro_rules! conformance {
    (try $backend:expr) => {
        $crate::conformance!(@all $crate::conformance::or_skip($backend));
    };
    ($backend:expr) => {
        $crate::conformance!(@all Some(Box::new($backend)));
    };
    (@all $backend:expr) => {
        $crate::conformance!(@families $backend;
            embedding Embedding, rms_norm RmsNorm, rope Rope, softmax Softmax, sdpa Sdpa, matmul Matmul, qkv Qkv,
            attention Attention, swiglu SwiGlu, ffn Ffn, residual Residual, logits Logits);

        #[test]
        fn every_combination_is_run_or_refused() {
            let Some(backend) = $backend else { return };
            let backend: &dyn $crate::backend::Backend = &*backend;
            let tally = $crate::conformance::check_matrix(backend).unwrap_or_else(|failures| panic!("{failures}"));
            assert_eq!(tally.contracts, backend.contracts().len());
        }
    };
    (@families $backend:expr; $($test:ident $family:ident),+) => {
        $(
            #[test]
            fn $test() {
                let family = $crate::conformance::Family::$family;
                let Some(backend) = $backend else { return };
                let backend: &dyn $crate::backend::Backend = &*backend;
                let tally = $crate::conformance::check_family(backend, family)
                    .unwrap_or_else(|failures| panic!("{failures}"));
                let contracts = backend.contracts();
                assert_eq!(tally.contracts, contracts.iter().filter(|contract| contract.query.family == family).count());
            }
        )+

        #[test]
        fn every_family_has_a_test() {
            assert_eq!([$($crate::conformance::Family::$family),+], $crate::conformance::Family::ALL);
        }
    };
}

/// The backend, or nothing where there is none here: then the reason is printed past the capture of test output, as a
/// line that starts with `skipped:`, by which skipped tests can be counted.
pub fn or_skip<B>(backend: Result<B, String>) -> Option<B> {
    use std::io::Write as _;
    match backend {
        Ok(backend) => Some(backend),
        Err(reason) => {
            let test = std::thread::current().name().unwrap_or("test").to_owned();
            // In one piece and on a line of its own, whatever other tests print at the same time. Where nothing can be
            // printed nothing can be reported.
            let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {reason}\n").as_bytes());
            None
        }
    }
}

/// Runs every case of every contract of a family.
///
/// # Errors
/// [`Failures`], one for each case that did not hold.
pub fn check_family(backend: &dyn Backend, family: Family) -> Result<Tally, Failures> {
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    for contract in backend.contracts().iter().filter(|contract| contract.query.family == family) {
        let findings = examine(backend, contract, Suite::Awkward);
        tally.contracts += usize::from(findings.judged > 0);
        tally.cases += findings.cases;
        failures.extend(findings.failures);
    }
    verdict(tally, failures)
}

/// Which shapes a contract is tried at.
#[derive(Clone, Copy, Debug)]
pub enum Suite<'a> {
    /// Those on both sides of the borders of the usual tiles, and others that kernels stumble over.
    Awkward,
    /// Those of a model, or slices of them. Relative errors are measured as well.
    Model(&'a Shapes),
}

/// What came of a contract's cases.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Cases tried.
    pub cases: usize,
    /// Those of them of which results were compared.
    pub judged: usize,
    /// What was measured of all of them.
    pub measured: Measured,
    /// One for each case that did not hold.
    pub failures: Vec<Failure>,
}

/// Runs every case of one of the backend's contracts.
pub fn examine(backend: &dyn Backend, contract: &OpContract, suite: Suite<'_>) -> Findings {
    let mut findings = Findings { cases: 0, judged: 0, measured: Measured::default(), failures: Vec::new() };
    let setting = match setting(backend, contract) {
        Ok(setting) => setting,
        Err(reason) => {
            findings.failures.push(coverage(backend, &contract.query, reason));
            return findings;
        }
    };
    let cases = match suite {
        Suite::Awkward => cases(backend, &setting),
        Suite::Model(shapes) => shapes.cases(backend, &setting),
    };
    for (index, case) in cases.iter().enumerate() {
        findings.cases += 1;
        findings.judged += usize::from(is_judged(case));
        let trial = Trial { backend, setting: &setting, case };
        findings.failures.extend(check_case(&trial, suite, index, &mut findings.measured).err());
    }
    findings
}

fn verdict(tally: Tally, failures: Vec<Failure>) -> Result<Tally, Failures> {
    if failures.is_empty() { Ok(tally) } else { Err(Failures { cases: tally.cases, failures }) }
}

fn is_judged(case: &Case) -> bool {
    case.runs.iter().any(|run| run.judged == Judged::Yes && !case.results(run).is_empty())
}

fn check_case(
    trial: &Trial<'_>,
    suite: Suite<'_>,
    index: usize,
    measured: &mut Measured,
) -> Result<(), Failure> {
    const CHUNKS: [usize; 3] = [1, 5, 16];
    let Judgement { results, measured: numbers, failure } = trial.judge()?;
    measured.merge(&numbers);
    if let Suite::Model(_) = suite {
        let relative_error = trial.relative_error(&results)?;
        measured.merge(&Measured { relative_error, ..Measured::default() });
    }
    failure.map_or(Ok(()), Err)?;
    trial.repeat(&results)?;
    trial.chunked(&results, CHUNKS[index % CHUNKS.len()])
}

/// The cases of a contract.
fn cases(backend: &dyn Backend, setting: &Setting) -> Vec<Case> {
    match setting.contract.query.family {
        Family::Embedding => products::embedding(setting, tied(backend, setting)),
        Family::RmsNorm => rows::rms_norm(setting),
        Family::Rope => rows::rope(setting),
        Family::Softmax => rows::softmax(setting),
        Family::Sdpa => rows::sdpa(setting),
        Family::Matmul => products::matmul(setting),
        Family::Qkv => cached::qkv(setting, judge_cache(backend, setting)),
        Family::Attention => cached::attention(setting),
        Family::SwiGlu => products::swiglu(setting),
        Family::Ffn => products::ffn(setting),
        Family::Residual => rows::residual(setting),
        Family::Logits => products::logits(setting),
    }
}

/// Whether the backend has a family under the setting's policy.
fn supports(backend: &dyn Backend, setting: &Setting, family: Family) -> bool {
    let query = query_for(family, &setting.policy);
    backend.contracts().iter().any(|contract| contract.query == query)
}

/// Whether logits can share the table of an embedding.
fn tied(backend: &dyn Backend, setting: &Setting) -> Table {
    if supports(backend, setting, Family::Logits) { Table::Tied } else { Table::Alone }
}

/// Whether attention can show what a projection wrote.
fn judge_cache(backend: &dyn Backend, setting: &Setting) -> JudgeCache {
    if supports(backend, setting, Family::Attention) { JudgeCache::ByAttention } else { JudgeCache::Not }
}

/// A policy that asks for the query, if there is one; `weights` where the query has none.
fn policy_for(query: &ContractQuery, weights: Format) -> Result<PrecisionPolicy, PolicyError> {
    let mut policy = Preset::F32.policy();
    policy.set(Field::Weights, query.weights.unwrap_or(weights))?;
    policy.set(Field::Activations, query.activations)?;
    policy.set(Field::Accumulation, query.accumulate)?;
    if let Some(cache) = query.cache {
        policy.set(Field::KvCache, cache.format)?;
        policy.set(Field::Scales, cache.scales.unwrap_or(Format::F32))?;
    }
    Ok(policy)
}

/// A policy under which the contract can be run.
fn setting(backend: &dyn Backend, contract: &OpContract) -> Result<Setting, String> {
    let query = &contract.query;
    for weights in Field::Weights.allowed() {
        let policy =
            policy_for(query, *weights).map_err(|error| format!("no policy asks for it: {error}"))?;
        if query_for(query.family, &policy) != *query {
            return Err("no policy asks for it".into());
        }
        // The cache that attention reads is written by the projections.
        let writes_cache = query_for(Family::Qkv, &policy);
        let runs = backend.contracts().iter().any(|contract| contract.query == writes_cache);
        if query.family != Family::Attention || runs {
            return Ok(Setting { contract: contract.clone(), policy });
        }
    }
    Err("the backend has no projection that writes such a cache, so attention over it cannot be run".into())
}

fn coverage(backend: &dyn Backend, query: &ContractQuery, reason: String) -> Failure {
    let place = Place {
        backend: backend.info().name,
        family: query.family,
        contract: query.to_string(),
        case: "support matrix".into(),
        run: 0,
    };
    Failure { place: Box::new(place), problem: Problem::Coverage(reason) }
}

/// Goes through every combination there is: each is a contract with cases, or refused with an explanation.
///
/// # Errors
/// [`Failures`], one for each combination of which neither holds, and for contracts outside the combinations.
pub fn check_matrix(backend: &dyn Backend) -> Result<Tally, Failures> {
    let universe = universe();
    let mut tally = Tally { contracts: 0, cases: universe.len() };
    let mut failures = Vec::new();
    let contracts = backend.contracts();
    for query in &universe {
        let answers = contracts.iter().filter(|contract| contract.query == *query).count();
        let checked = match answers {
            0 => check_refusal(backend, query),
            1 => check_support(backend, query).map(|()| tally.contracts += 1),
            _ => Err(format!("{answers} contracts answer it")),
        };
        failures.extend(checked.err().map(|reason| coverage(backend, query, reason)));
    }
    for contract in contracts.iter().filter(|contract| !universe.contains(&contract.query)) {
        failures.push(coverage(
            backend,
            &contract.query,
            "no such combination is in the support matrix".into(),
        ));
    }
    verdict(tally, failures)
}

fn check_support(backend: &dyn Backend, query: &ContractQuery) -> Result<(), String> {
    let name = backend.info().name;
    let contract = look_up(backend.contracts(), query, &name, "suite").map_err(|error| error.to_string())?;
    let setting = setting(backend, contract)?;
    if cases(backend, &setting).iter().any(is_judged) { Ok(()) } else { Err("no case runs it".into()) }
}

fn check_refusal(backend: &dyn Backend, query: &ContractQuery) -> Result<(), String> {
    let name = backend.info().name;
    let Err(refusal) = look_up(backend.contracts(), query, &name, "suite") else {
        return Err("it is not in the contracts, but was found".into());
    };
    check_message(backend, query, &refusal)?;
    // Only some combinations can be asked for by a policy; those must be refused by the plan as well.
    for weights in Field::Weights.allowed() {
        let Ok(policy) = policy_for(query, *weights) else { continue };
        if query_for(query.family, &policy) != *query {
            continue;
        }
        // The contract is made up: of this setting only the program is used.
        let Some(model) = backend.contracts().first() else { continue };
        let setting = Setting { contract: OpContract { query: *query, ..model.clone() }, policy };
        let Some(case) = cases(backend, &setting).into_iter().next() else {
            return Err("no program asks for it".into());
        };
        match Plan::resolve(case.program, policy, backend) {
            Err(error) if error.unsupported.iter().any(|entry| entry.query == *query) => {}
            Err(error) => return Err(format!("the plan was refused, but not for this: {error}")),
            Ok(_) => return Err("it is not in the contracts, but a plan with it was resolved".into()),
        }
    }
    Ok(())
}

fn check_message(backend: &dyn Backend, query: &ContractQuery, refusal: &Unsupported) -> Result<(), String> {
    let text = refusal.to_string();
    for wanted in [query.to_string(), backend.info().name] {
        if !text.contains(&wanted) {
            return Err(format!("the refusal does not name {wanted}: {text}"));
        }
    }
    let of_family = |contract: &&OpContract| contract.query.family == query.family;
    if backend.contracts().iter().any(|contract| of_family(&contract)) && refusal.nearest.is_empty() {
        return Err(format!("the refusal names no supported combination: {text}"));
    }
    let supported =
        |nearest: &ContractQuery| backend.contracts().iter().any(|contract| contract.query == *nearest);
    match refusal.nearest.iter().find(|nearest| !supported(nearest) || !text.contains(&nearest.to_string())) {
        Some(nearest) => Err(format!("the refusal recommends {nearest} wrongly: {text}")),
        None => Ok(()),
    }
}
