//! What a failed case says.

use std::fmt;

use mantissa_numerics::Format;
use mantissa_numerics::contract::Family;

/// Where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The backend under test.
    pub backend: String,
    /// The family under test.
    pub family: Family,
    /// Its contract.
    pub contract: String,
    /// Name of the case.
    pub case: String,
    /// The run of the case, from zero.
    pub run: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { backend, family, contract, case, run } = self;
        write!(f, "{backend} {family} {contract} [{case}] run {run}")
    }
}

/// What was wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error("refused: {0}")]
    Refused(String),
    #[error("value {value}: wanted {wanted} numbers, got {got}")]
    TooShort { value: String, wanted: usize, got: usize },
    #[error(
        "value {value} row {row} column {column} ({format}): got {got:e}, wanted {wanted:e}; the contract allows {low:e} to {high:e}"
    )]
    Value {
        value: String,
        row: usize,
        column: usize,
        format: Format,
        got: f32,
        wanted: f64,
        low: f64,
        high: f64,
    },
    #[error(
        "value {value} row {row} column {column}: {why} differ: got {got:e} ({:#010x}), wanted {wanted:e} ({:#010x})",
        .got.to_bits(),
        .wanted.to_bits()
    )]
    Bits { why: &'static str, value: String, row: usize, column: usize, got: f32, wanted: f32 },
    #[error("{0}")]
    Coverage(String),
}

/// A case that did not hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Failure {
    /// Where.
    pub place: Box<Place>,
    /// What.
    pub problem: Problem,
}

/// Everything that did not hold; never empty.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{} of {cases} cases failed:\n{}", .failures.len(), first_lines(.failures))]
pub struct Failures {
    /// Cases tried.
    pub cases: usize,
    /// One for each case that failed.
    pub failures: Vec<Failure>,
}

fn first_lines(failures: &[Failure]) -> String {
    const SHOWN: usize = 12;
    let mut lines: Vec<String> = failures.iter().take(SHOWN).map(|failure| format!("  {failure}")).collect();
    if failures.len() > SHOWN {
        lines.push(format!("  and {} more", failures.len() - SHOWN));
    }
    lines.join("\n")
}
