//! What can go wrong between a checkpoint and a text.

use std::path::PathBuf;

use mantissa_cpu::{CpuError, Experimental};
use mantissa_cuda::CudaError;
use mantissa_engine::engine::EngineError;
use mantissa_engine::evaluation::{LikelihoodError, WindowError};
use mantissa_engine::sampling::InvalidParam;
use mantissa_engine::stop::StopError;
use mantissa_model::arch::ArchError;
use mantissa_model::checkpoint::CheckpointError;
use mantissa_model::gguf::GgufError;
use mantissa_model::hub::HubError;
use mantissa_model::template::TemplateError;
use mantissa_model::tokenizer::TokenizerError;
use mantissa_ops::plan::BatchDependent;

use crate::options::Device;

/// Everything that this crate's functions return as an error.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(
        "there is no file or folder {}; a model is a Hugging Face folder, a .gguf file, a repository id such as \
         Qwen/Qwen2.5-0.5B-Instruct, or mantissa-tiny, which is built in", .0.display()
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
    #[error("{kernel} is a kernel of the cpu, and {device} is to compute; choose the device cpu")]
    ExperimentalElsewhere { kernel: Experimental, device: Device },
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    BatchDependent(#[from] BatchDependent),
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
    #[error("perplexity is that of a text, but this model has no tokenizer to read one")]
    TextWithoutTokenizer,
    #[error(
        "the policies cannot be compared: the {what} size is {policy} under one and {reference} under the other; prepare \
         the same model with the same options but for the policy"
    )]
    NotAlike { what: &'static str, policy: usize, reference: usize },
    #[error(transparent)]
    Windows(#[from] WindowError),
    #[error(transparent)]
    Likelihood(#[from] LikelihoodError),
    #[error("there is no prompt")]
    NoPrompt,
}
