//! What can go wrong between a checkpoint and a text.

use std::path::PathBuf;

use mantissa_cpu::CpuError;
use mantissa_cuda::CudaError;
use mantissa_engine::engine::EngineError;
use mantissa_engine::sampling::InvalidParam;
use mantissa_engine::stop::StopError;
use mantissa_model::arch::ArchError;
use mantissa_model::checkpoint::CheckpointError;
use mantissa_model::gguf::GgufError;
use mantissa_model::hub::HubError;
use mantissa_model::template::TemplateError;
use mantissa_model::tokenizer::TokenizerError;

/// Everything that this crate's functions return as an error.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(
        "there is no file or folder {}; a model is a Hugging Face folder, a .gguf file or a repository id such as \
         Qwen/Qwen2.5-0.5B-Instruct", .0.display()
    )]
    NoModel(PathBuf),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Architecture(#[from] ArchError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{}: {error}", file.display())]
    Weights { file: PathBuf, error: EngineError },
    #[error(transparent)]
    Sampling(#[from] InvalidParam),
    #[error(transparent)]
    Stop(#[from] StopError),
    #[error("{} has no tokenizer: give token ids instead of text", .0.display())]
    NoTokenizer(PathBuf),
    #[error("stop strings need a tokenizer, which this model does not have")]
    StopWithoutTokenizer,
    #[error("there is no prompt")]
    NoPrompt,
}
