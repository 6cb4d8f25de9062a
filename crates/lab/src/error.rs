//! What can go wrong while something is measured.

use mantissa::ops::CeilingError;
use mantissa::ops::backend::{PrepareError, RunError};
use mantissa::ops::plan::PlanError;

/// Everything that this crate's functions return as an error.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LabError {
    #[error(transparent)]
    Model(#[from] mantissa::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Ceiling(#[from] CeilingError),
    #[error(transparent)]
    Plot(#[from] crate::plot::PlotError),
    #[error("the model's logits are not finite: use a policy with a wider range")]
    NotFinite,
    #[error("interrupted")]
    Cancelled,
    #[error("{measured} of {wanted} repetitions of {what} were measured")]
    Unfinished { what: &'static str, measured: usize, wanted: usize },
}
