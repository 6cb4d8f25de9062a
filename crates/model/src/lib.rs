//! Model files: checkpoints, their configuration and their tokenizers, and architectures as readable code.

pub mod arch;
pub mod checkpoint;
pub mod config;
pub mod gguf;
pub mod hub;
pub mod location;
pub mod rope;
pub mod safetensors_file;
pub mod template;
pub mod tokenizer;
