//! Architectures: what each model family computes, as a program of ops.
//!
//! `decoder` is the block that all of them share, read from top to bottom; each architecture's file says in what it
//! differs.

mod decoder;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

use mantissa_ops::Program;

pub use crate::arch::decoder::ArchError;
use crate::config::{Architecture, ModelConfig};

/// The program of a model.
///
/// # Errors
/// Where the configuration cannot be expressed: see [`ArchError`].
pub fn program(config: &ModelConfig) -> Result<Program, ArchError> {
    let decoder = match config.architecture {
        Architecture::Llama => llama::decoder(config),
        Architecture::Mistral => mistral::decoder(),
        Architecture::Qwen2 => qwen2::decoder(),
        Architecture::Qwen3 => qwen3::decoder(config),
        Architecture::Phi3 => phi3::decoder(),
    };
    decoder.program(config)
}
