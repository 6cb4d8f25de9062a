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
    #[error(
        "{backend} does not say how long each step takes, so that kernels cannot be measured by themselves"
    )]
    Untraced { backend: String },
    #[error(
        "the f64 reference needs {needed} bytes of memory for this model and prompt, and {available} are free; give fewer \
         tokens, or compare two policies without it"
    )]
    ReferenceMemory { needed: u64, available: u64 },
    #[error("the text has {tokens} tokens, and {wanted} are to be run: give a longer one, or fewer tokens")]
    ShortText { tokens: usize, wanted: usize },
    #[error("there is no token to run")]
    NoTokens,
    #[error(
        "the measurements were made on different machines, and say nothing of each other: {before}, and {after}"
    )]
    OtherMachine { before: String, after: String },
    #[error("the files have no measurement in common: the same tests, policies and variants must be in both")]
    NothingInCommon,
    #[error(transparent)]
    Csv(#[from] csv::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("{}: {source}", file.display())]
    File { file: std::path::PathBuf, source: std::io::Error },
    #[error("interrupted")]
    Cancelled,
    #[error("{measured} of {wanted} repetitions of {what} were measured")]
    Unfinished { what: &'static str, measured: usize, wanted: usize },
}
