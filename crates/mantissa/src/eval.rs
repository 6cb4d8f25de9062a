//! Judging a policy by what the model does with real text: how well it predicts one, and what it writes.

pub mod haiku;
pub mod perplexity;
pub mod syllables;

pub use perplexity::{Against, Divergence, Evaluated, Perplexity, Predictions, Track};
