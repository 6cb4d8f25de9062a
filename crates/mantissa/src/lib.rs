//! Mantissa in one crate: load a checkpoint, set a precision policy, generate.
//!
//! ```
//! use mantissa::{GenerateOptions, Model, Options};
//!
//! let model = Model::built_in()?; // or Model::open("path/to/checkpoint")?
//! let options = Options { policy: Some("bf16,kv_cache=f8e4m3".parse()?), ..Options::default() };
//! let mut generator = model.prepare(&options)?;
//! let done = generator.generate("Once upon a time", &GenerateOptions::default(), |piece| print!("{piece}"))?;
//! println!("{:.1} tokens/s", done.timings.decode_rate().unwrap_or(0.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crates that do the work are there under their own names: [`numerics`] for formats and policies, [`ops`] for plans
//! and contracts, [`model`](mod@model) for checkpoints and tokenizers, [`engine`] for sampling and batches, [`cpu`] for the
//! processor's kernels, [`cuda`] for those of NVIDIA GPUs.

mod checkpoint;
mod error;
pub mod eval;
mod generator;
mod options;
mod prompt;
mod stream;
mod text;

pub use mantissa_cpu as cpu;
pub use mantissa_cuda as cuda;
pub use mantissa_engine as engine;
pub use mantissa_model as model;
pub use mantissa_numerics as numerics;
pub use mantissa_ops as ops;

pub use checkpoint::{BUILT_IN, Model, locate};
pub use error::Error;
pub use generator::Generator;
pub use mantissa_model::location::{EmbeddedFolder, Location};
pub use options::{BatchRule, Chosen, Device, GenerateOptions, LogitRows, Options, UnknownDevice};
pub use prompt::{Completion, Flow, Piece, Prompt, Timings};
pub use text::{chat_template_from_file, open_chat_template, open_tokenizer};
