//! What can be wrong with a checkpoint.

use std::{io, path::PathBuf};

use mantissa_ops::ViewError;

use crate::{
    config::{Architecture, ConfigError},
    gguf::GgufError,
    safetensors_file::SafetensorsError,
};

/// A checkpoint that cannot be opened, or a tensor of it that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that cannot be opened or read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder that is no checkpoint.
    #[error(
        "{}: no config.json and no .gguf file; a checkpoint is a folder with config.json and model.safetensors, or a \
         .gguf file",
        folder.display()
    )]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder of GGUF files without a choice among them.
    #[error("{}: {} GGUF files and no config.json; name one: {}", folder.display(), files.len(), files.join(", "))]
    SeveralGguf {
        /// The folder.
        folder: PathBuf,
        /// Their names.
        files: Vec<String>,
    },
    /// A folder with a configuration and no weights.
    #[error("{}: neither model.safetensors nor model.safetensors.index.json{hint}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What else is there, and what to do about it.
        hint: &'static str,
    },
    /// A file that is no checkpoint.
    #[error("{}: not a GGUF file; of a safetensors checkpoint, name the folder", file.display())]
    NotGguf {
        /// The file.
        file: PathBuf,
    },
    /// A malformed GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A malformed safetensors file.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// A configuration that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A malformed index of shards.
    #[error("{}: {message}", file.display())]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A shard that the index names and the folder lacks.
    #[error("{}: tensor {tensor:?} is in {shard:?}, which is missing", index.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// A tensor that should be in it.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor that is not in the shard that the index names.
    #[error("{}: tensor {tensor:?} should be in {shard:?}, which does not have it", index.display())]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// One tensor in two shards.
    #[error("tensor {tensor:?} is both in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor that the model needs and the checkpoint lacks.
    #[error("{}: tensor {tensor:?} is missing", path.display())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor, as the checkpoint would call it.
        tensor: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor {tensor:?} has shape {got:?}, not {wanted}", file.display())]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the configuration says.
        wanted: String,
        /// What the file says.
        got: Vec<usize>,
    },
    /// A tensor of a type that cannot be computed with.
    #[error("{}: tensor {tensor:?} is {dtype}; types that can be read are F32, F16 and BF16", file.display())]
    UnreadableType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: &'static str,
    },
    /// A bias that the architecture here does not add.
    #[error(
        "{}: tensor {tensor:?} is a bias that {architecture} models here do not have; leaving it out would give wrong \
         results",
        file.display()
    )]
    UnexpectedBias {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: Architecture,
    },
    /// A tensor whose bytes do not form a view.
    #[error("{}: tensor {tensor:?}: {error}", file.display())]
    View {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        error: ViewError,
    },
}
