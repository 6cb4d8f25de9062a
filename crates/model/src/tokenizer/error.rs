//! What can go wrong with a tokenizer.

use std::path::PathBuf;

use super::files::FileError;
use crate::gguf::GgufError;

/// A tokenizer that cannot be built, or a text that it cannot encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// A GGUF file's metadata has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The folder holds no tokenizer.
    #[error("{}: no tokenizer here: neither tokenizer.json nor tokenizer.model", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// The GGUF file holds no tokenizer.
    #[error("{}: no tokenizer in this file: metadata key \"tokenizer.ggml.tokens\" is missing", file.display())]
    MissingInGguf {
        /// The file.
        file: PathBuf,
    },
    /// A kind of tokenizer that is not implemented.
    #[error("{}: tokenizer of kind {got:?}; known are \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece BPE)", file.display())]
    Kind {
        /// The file.
        file: PathBuf,
        /// `tokenizer.ggml.model` of the file.
        got: String,
    },
    /// A way to cut texts into words that is not known.
    #[error("{}: pre-tokenizer {got:?} is unknown; known are {}", file.display(), known.join(", "))]
    PreTokenizer {
        /// The file.
        file: PathBuf,
        /// `tokenizer.ggml.pre` of the file.
        got: String,
        /// All known names.
        known: Vec<&'static str>,
    },
    /// The file does not say how texts are cut into words.
    #[error(
        "{}: metadata key \"tokenizer.ggml.pre\" is missing, so the pre-tokenizer is unknown; \
         convert the model again with a current converter, or set the key to one of {}",
        file.display(), known.join(", ")
    )]
    NoPreTokenizer {
        /// The file.
        file: PathBuf,
        /// All known names.
        known: Vec<&'static str>,
    },
    /// A vocabulary that contradicts itself.
    #[error("{}: {problem}", file.display())]
    Vocabulary {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer library refuses the file.
    #[error("{}: {reason}", file.display())]
    Library {
        /// The file.
        file: PathBuf,
        /// What the library says.
        reason: String,
    },
    /// A character for which there is neither a token nor bytes nor a token for unknown characters.
    #[error("{}: the vocabulary has no token for {text:?} and none for unknown characters", file.display())]
    NoToken {
        /// The file of the vocabulary.
        file: PathBuf,
        /// The character.
        text: String,
    },
}
