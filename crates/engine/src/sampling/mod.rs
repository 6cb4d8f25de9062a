//! From logits to a token.
//!
//! Logits are f32 in every policy. A [`Sampler`] turns one row of them into a token in this order:
//!
//! 1. repetition, frequency and presence penalties;
//! 2. temperature; 0 takes the largest logit here and skips the rest;
//! 3. top-k: the `k` largest;
//! 4. top-p: the fewest largest whose share of what top-k left reaches `p`;
//! 5. min-p: those at least `min_p` times as probable as the most probable one;
//! 6. one draw from what is left.
//!
//! It is the order of Hugging Face transformers, not of llama.cpp, which applies the temperature last: the values in
//! a checkpoint's `generation_config.json` were chosen with transformers, and mean something else in another order.
//!
//! # Precision
//! Penalties, differences to the largest logit and exponentials are f32; sums are f64, in an order that depends on
//! the number of logits alone. Exponential and logarithm are this module's own and use only operations that IEEE 754
//! rounds exactly, where those of the system's library differ between platforms. Equal logits rank by id, lowest
//! first. So logits, parameters, seed and history determine the token everywhere.
//!
//! [`Sampler::request`] says how the token is to be chosen, the session that the row is from chooses it (on a GPU without
//! bringing the row to the host), and [`Sampler::choose`] takes it.

mod params;
mod penalties;
mod sampler;

pub use params::{InvalidParam, SamplingOptions, SamplingParams};
pub use penalties::History;
pub use sampler::{SampleError, Sampled, Sampler};
