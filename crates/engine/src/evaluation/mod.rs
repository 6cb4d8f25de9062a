//! How well a model predicts a text, and how far two policies are apart.
//!
//! * [`windows`]: which tokens of a text are run together, and which of the predictions count;
//! * [`likelihood`]: from f32 logits to log-likelihoods, KL divergence and agreement, one position at a time;
//! * [`statistics`]: means with their standard errors, and percentiles.
//!
//! The definitions are those of llama.cpp's `llama-perplexity` where it has one, so that numbers can be compared.

pub mod likelihood;
pub mod statistics;
pub mod windows;

pub use likelihood::{Compared, LikelihoodError, compare, log_likelihoods};
pub use statistics::{Estimate, percentile};
pub use windows::{Window, WindowError, WindowRule};
