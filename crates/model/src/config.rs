//! What a model is: the numbers of its architecture, read from `config.json` or GGUF metadata.

mod fields;
mod from_gguf;
mod from_json;
mod generation;
mod rope_json;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use mantissa_numerics::Format;

pub(crate) use from_gguf::RopeFactors;
pub use generation::GenerationDefaults;

use crate::{
    gguf::{Gguf, GgufError},
    rope::RopeConfig,
};

/// Largest vocabulary, hidden or feed-forward size: far above any model, small enough that products stay in range.
pub(crate) const MAX_SIZE: usize = 1 << 24;

/// Most layers, far above any model.
pub(crate) const MAX_LAYERS: usize = 1 << 12;

/// Longest context.
pub(crate) const MAX_CONTEXT: usize = 1 << 31;

/// A model family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3, and GGUF files of Mistral, which do not differ.
    Llama,
    /// Mistral 7B and Nemo.
    Mistral,
    /// Qwen2 and Qwen2.5, dense.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// Phi-3, Phi-3.5 and Phi-4, dense.
    Phi3,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 5] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Phi3,
    ];

    /// The name in tables, which is also transformers' `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Phi3 => "phi3",
        }
    }

    /// The class of transformers, as `architectures` in `config.json` names it.
    pub fn class_name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Phi3 => "Phi3ForCausalLM",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A model's architecture and sizes, checked: every size is positive and within range, `heads` is a multiple of
/// `kv_heads`, `head_dim` and the rotary dimensions are even.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// What RMSNorm adds to the mean square.
    pub rms_norm_eps: f64,
    /// Whether the logits use the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Of each layer the sliding window in tokens: position `i` sees `j` with `i - window < j <= i`. Nothing where
    /// it sees all before it.
    pub windows: Vec<Option<usize>>,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// What the weights are stored as, where the file says so.
    pub dtype: Option<Format>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one.
    pub eos_token_ids: Vec<u32>,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The file is no JSON object.
    #[error("{}: {message}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A key that is needed and absent.
    #[error("{}: key {key:?} is missing; it should hold {wanted}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key; those of inner objects with a dot.
        key: String,
        /// What it should hold.
        wanted: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{}: key {key:?} holds {got}, not {wanted}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What it should hold.
        wanted: String,
        /// What it holds.
        got: String,
    },
    /// A value that is legal and cannot be expressed here.
    #[error("{}: {key} {got} is not supported; supported: {supported}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What it holds.
        got: String,
        /// What would work.
        supported: String,
    },
    /// GGUF metadata that is absent or of the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// What the source calls the keys that checks across keys name.
pub(crate) struct Keys<'a> {
    pub heads: &'a str,
    pub kv_heads: &'a str,
    pub head_dim: &'a str,
    pub rotary: &'a str,
}

impl ModelConfig {
    /// Reads `config.json`, as transformers 4 or 5 writes it, from `text`; `file` is for errors.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and the key.
    pub fn from_json(text: &[u8], file: &Path) -> Result<ModelConfig, ConfigError> {
        from_json::read(text, file)
    }

    /// Reads the metadata of a GGUF file; `factors` come from its tensors.
    pub(crate) fn from_gguf(gguf: &Gguf, factors: RopeFactors) -> Result<ModelConfig, ConfigError> {
        from_gguf::read(gguf, factors)
    }

    /// The checks that involve several keys, or a key and arithmetic.
    fn check(self, file: &Path, keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
        let invalid = |key: &str, wanted: String, got: usize| {
            let (file, key, got) = (file.to_owned(), key.to_owned(), got.to_string());
            Err(ConfigError::Invalid { file, key, wanted, got })
        };
        if !self.heads.is_multiple_of(self.kv_heads) {
            let wanted = format!("a divisor of {} = {}", keys.heads, self.heads);
            return invalid(keys.kv_heads, wanted, self.kv_heads);
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid(keys.head_dim, "an even number".to_owned(), self.head_dim);
        }
        if self.heads.checked_mul(self.head_dim).is_none_or(|width| width > MAX_SIZE) {
            let wanted = format!("at most {MAX_SIZE} / {} = {}", keys.heads, MAX_SIZE / self.heads);
            return invalid(keys.head_dim, wanted, self.head_dim);
        }
        let rotary = self.rope.rotary_dim;
        if rotary == 0 || !rotary.is_multiple_of(2) || rotary > self.head_dim {
            let wanted = format!("an even number of rotating dimensions, at most {}", self.head_dim);
            return invalid(keys.rotary, wanted, rotary);
        }
        Ok(self)
    }
}
