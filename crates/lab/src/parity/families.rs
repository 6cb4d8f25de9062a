//! Kernels one by one: every contract of a backend, or those that some policies ask for, at the shapes of a model.

use mantissa::numerics::PrecisionPolicy;
use mantissa::numerics::contract::OpContract;
use mantissa::ops::Backend;
use mantissa::ops::conformance::shapes::Shapes;
use mantissa::ops::conformance::{Failure, Family, Problem, Suite, examine};
use mantissa::ops::program::query_for;
use serde::Serialize;

use super::figure;
use crate::LabError;
use crate::progress::Progress;

/// What to check.
#[derive(Clone, Copy)]
pub struct FamilyChecks<'a> {
    /// Whose kernels.
    pub backend: &'a dyn Backend,
    /// At which shapes.
    pub shapes: &'a Shapes,
    /// Only contracts that one of these policies asks for; all where there are none.
    pub policies: &'a [PrecisionPolicy],
    /// Only these families; all where there are none.
    pub families: &'a [Family],
}

/// What came of one contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ContractCheck {
    /// Kernel family.
    pub op: String,
    /// What its kernels promise.
    pub contract: String,
    /// Batches, shapes and slices of shapes that it was tried at.
    pub cases: usize,
    /// Numbers compared.
    pub numbers: usize,
    /// Largest relative error of a row, against f64 without any rounding but of inputs and weights.
    pub relative_error: Option<f64>,
    /// The most that it may be, where there is such a figure beside the bounds.
    pub figure: Option<f64>,
    /// Largest distance from the contract's own result in f64, in units in the last place of what is stored.
    pub max_ulps: f64,
    /// Largest share of the bound that follows from the contract; beyond 1 it is exceeded.
    pub bound_used: f64,
    /// What did not hold, a line each.
    pub failures: Vec<CaseFailure>,
}

/// A case that did not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseFailure {
    /// The shapes of the case.
    pub shape: String,
    /// What was wrong: for a wrong number the value, row and column, what it is and what the contract allows.
    pub problem: String,
    /// The first number that is wrong, where it is one.
    pub first: Option<FirstDifference>,
}

/// A number that is not what it should be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FirstDifference {
    /// The result that it is part of.
    pub value: String,
    /// Its row.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// What it is.
    pub got: f32,
    /// What the reference has in its place.
    pub wanted: f64,
}

impl ContractCheck {
    /// Whether every case holds, and the figure, where there is one.
    pub fn holds(&self) -> bool {
        // An error that is no number is not within anything.
        let within = |limit| self.relative_error.is_some_and(|error| error <= limit);
        self.failures.is_empty() && self.figure.is_none_or(within)
    }
}

impl FamilyChecks<'_> {
    fn wants(&self, contract: &OpContract) -> bool {
        let family = contract.query.family;
        let asked = |policy: &PrecisionPolicy| query_for(family, policy) == contract.query;
        (self.families.is_empty() || self.families.contains(&family))
            && (self.policies.is_empty() || self.policies.iter().any(asked))
    }
}

/// Checks them, in the order of the backend's contracts.
///
/// # Errors
/// [`LabError::Cancelled`]; what kernels get wrong is in the result.
pub fn check_families(
    what: &FamilyChecks<'_>,
    progress: &dyn Progress,
) -> Result<Vec<ContractCheck>, LabError> {
    let contracts: Vec<&OpContract> =
        what.backend.contracts().iter().filter(|contract| what.wants(contract)).collect();
    let mut checks = Vec::with_capacity(contracts.len());
    for (done, contract) in contracts.iter().enumerate() {
        progress.go_on()?;
        progress.say(&format!("{} {contract}", contract.query.family));
        progress.step(done, contracts.len());
        checks.push(check(what, contract));
    }
    Ok(checks)
}

fn check(what: &FamilyChecks<'_>, contract: &OpContract) -> ContractCheck {
    let found = examine(what.backend, contract, Suite::Model(what.shapes));
    ContractCheck {
        op: contract.query.family.to_string(),
        contract: contract.to_string(),
        cases: found.cases,
        numbers: found.measured.numbers,
        relative_error: found.measured.relative_error,
        figure: figure(&contract.query),
        max_ulps: found.measured.max_ulps,
        bound_used: found.measured.bound_used,
        failures: found.failures.iter().map(CaseFailure::of).collect(),
    }
}

impl CaseFailure {
    fn of(failure: &Failure) -> CaseFailure {
        let first = match &failure.problem {
            Problem::Value { value, row, column, got, wanted, .. } => {
                Some((value, *row, *column, *got, *wanted))
            }
            Problem::Bits { value, row, column, got, wanted, .. } => {
                Some((value, *row, *column, *got, f64::from(*wanted)))
            }
            Problem::Refused(_) | Problem::TooShort { .. } | Problem::Coverage(_) => None,
        };
        let first = first.map(|(value, row, column, got, wanted)| FirstDifference {
            value: value.clone(),
            row,
            column,
            got,
            wanted,
        });
        CaseFailure { shape: failure.place.case.clone(), problem: failure.problem.to_string(), first }
    }
}
