//! Generation: which token comes next, where its keys and values live, and when to stop.
//!
//! * [`sampling`]: from f32 logits to a token, reproducibly on every platform;
//! * [`paging`]: pages of the KV cache and the block tables of the sequences that use them;
//! * [`stop`]: stop strings over text that arrives in pieces;
//! * [`evaluation`]: likelihoods of a given text, and the divergence of one policy from another.
//!
//! Nothing here knows a backend: a sequence is given to whichever one the plan was made for.

mod ahead;
pub mod engine;
pub mod evaluation;
pub mod paging;
pub mod probe;
pub mod sampling;
pub mod score;
pub mod sequence;
pub mod stop;

pub use engine::{Engine, EngineError, EngineOptions};
pub use score::{Hidden, ScoredRows, Scores, Scoring};
pub use sequence::{EndOfText, FinishReason, Request, SequenceId, TokenEvent};
