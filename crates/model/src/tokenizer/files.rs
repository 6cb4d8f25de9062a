//! Text files of a model folder: tokenizer configuration, generation configuration, templates.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    gguf::{Gguf, GgufError},
    location::Location,
};

/// A file that cannot be read as what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no text.
    #[error("{}: byte {offset} starts no UTF-8 character", file.display())]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// Bytes before the first wrong one.
        offset: usize,
    },
    /// The file is no JSON.
    #[error("{}: not valid JSON: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field of a JSON file holds something else.
    #[error("{}: {field} should be {wanted}, but is {got}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// Name of the field.
        field: String,
        /// What it should hold.
        wanted: &'static str,
        /// What it holds, shortened.
        got: String,
    },
}

/// The content of a file of `folder`, or nothing where there is no such file.
pub(crate) fn read_if_any(folder: &Location, name: &str) -> Result<Option<Cow<'static, [u8]>>, FileError> {
    match folder.read(name) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Read { file: folder.file(name), source }),
    }
}

/// The text of a file of `folder`, or nothing where there is no such file.
pub(crate) fn read_text_if_any(folder: &Location, name: &str) -> Result<Option<String>, FileError> {
    read_if_any(folder, name)?.map(|bytes| text(bytes.into_owned(), &folder.file(name))).transpose()
}

/// The text of `file`.
pub(crate) fn read_text(file: &Path) -> Result<String, FileError> {
    let bytes = std::fs::read(file).map_err(|source| FileError::Read { file: file.to_owned(), source })?;
    text(bytes, file)
}

fn text(bytes: Vec<u8>, file: &Path) -> Result<String, FileError> {
    String::from_utf8(bytes)
        .map_err(|error| FileError::Utf8 { file: file.to_owned(), offset: error.utf8_error().valid_up_to() })
}

/// A parsed JSON file that remembers its name.
pub(crate) struct JsonFile {
    pub file: PathBuf,
    pub json: Value,
}

impl JsonFile {
    /// Reads `folder/name`, or nothing where there is no such file.
    pub fn read_if_any(folder: &Location, name: &str) -> Result<Option<JsonFile>, FileError> {
        let Some(text) = read_text_if_any(folder, name)? else { return Ok(None) };
        let file = folder.file(name);
        match serde_json::from_str(&text) {
            Ok(json) => Ok(Some(JsonFile { file, json })),
            Err(source) => Err(FileError::Json { file, source }),
        }
    }

    /// A field that is neither absent nor null.
    pub fn field(&self, field: &str) -> Option<&Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    /// The error that `field` holds `got`, not `wanted`.
    pub fn wrong(&self, field: impl Into<String>, wanted: &'static str, got: &Value) -> FileError {
        const SHOWN: usize = 60;
        let mut text = got.to_string();
        if let Some((cut, _)) = text.char_indices().nth(SHOWN) {
            text.truncate(cut);
            text.push_str("...");
        }
        FileError::Field { file: self.file.clone(), field: field.into(), wanted, got: text }
    }
}

/// Tokens that have a role, as a tokenizer's configuration names them; templates see them as variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedTokens {
    /// Beginning of a sequence.
    pub bos: Option<String>,
    /// End of a sequence.
    pub eos: Option<String>,
    /// Stands for what the vocabulary does not have.
    pub unk: Option<String>,
    /// Fills up shorter sequences of a batch.
    pub pad: Option<String>,
}

impl NamedTokens {
    /// The tokens that `tokenizer_config.json` names in `folder`, and where it is silent `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`FileError`] where one of these files is unreadable or names a token by anything but a text.
    pub fn from_folder(folder: impl Into<Location>) -> Result<NamedTokens, FileError> {
        let folder = folder.into();
        let files = [
            JsonFile::read_if_any(&folder, "tokenizer_config.json")?,
            JsonFile::read_if_any(&folder, "special_tokens_map.json")?,
        ];
        let named = |field: &str| -> Result<Option<String>, FileError> {
            for file in files.iter().flatten() {
                let Some(value) = file.json.get(field) else { continue };
                return token_text(file, field, value);
            }
            Ok(None)
        };
        Ok(NamedTokens {
            bos: named("bos_token")?,
            eos: named("eos_token")?,
            unk: named("unk_token")?,
            pad: named("pad_token")?,
        })
    }

    /// The tokens that a GGUF file names by their ids; none where it holds no vocabulary.
    ///
    /// # Errors
    /// [`GgufError`] where a key of the vocabulary has the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<NamedTokens, GgufError> {
        let tokens = gguf.get::<&[String]>("tokenizer.ggml.tokens")?.unwrap_or_default();
        let named = |key: &str| -> Result<Option<String>, GgufError> {
            let id = gguf.get::<u64>(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id).cloned()))
        };
        Ok(NamedTokens {
            bos: named("tokenizer.ggml.bos_token_id")?,
            eos: named("tokenizer.ggml.eos_token_id")?,
            unk: named("tokenizer.ggml.unknown_token_id")?,
            pad: named("tokenizer.ggml.padding_token_id")?,
        })
    }
}

/// A token is written as its text, or as an object that has the text as `content`.
fn token_text(file: &JsonFile, field: &str, value: &Value) -> Result<Option<String>, FileError> {
    match value.get("content").unwrap_or(value) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(file.wrong(field, "the text of a token", value)),
    }
}
