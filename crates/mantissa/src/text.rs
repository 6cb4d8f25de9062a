//! The text side of a model, of which nothing else needs to be there: a folder with tokenizer files, or a GGUF file with
//! a vocabulary.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mantissa_model::checkpoint::{CheckpointError, MappedFile};
use mantissa_model::gguf::Gguf;
use mantissa_model::location::Location;
use mantissa_model::template::ChatTemplate;
use mantissa_model::tokenizer::{NamedTokens, SpecialTokens, Tokenizer, TokenizerError};

use crate::error::Error;
use crate::prompt::Prompt;

/// The tokenizer of a folder, on disk or embedded, or of a `.gguf` file.
///
/// # Errors
/// Where there is none, or it is malformed or of an unknown kind.
pub fn open_tokenizer(location: impl Into<Location>) -> Result<Tokenizer, Error> {
    match Source::open(location.into())? {
        Source::Folder(folder) => Ok(Tokenizer::from_folder(&folder)?),
        Source::Gguf(gguf) => Ok(Tokenizer::from_gguf(&gguf)?),
    }
}

/// The chat template of a folder, on disk or embedded, or of a `.gguf` file.
///
/// # Errors
/// Where there is none, or it is malformed.
pub fn open_chat_template(location: impl Into<Location>) -> Result<ChatTemplate, Error> {
    match Source::open(location.into())? {
        Source::Folder(folder) => Ok(ChatTemplate::from_folder(&folder)?),
        Source::Gguf(gguf) => Ok(ChatTemplate::from_gguf(&gguf)?),
    }
}

/// The chat template in `template`, for the model at `location`, whose special tokens it may name.
///
/// # Errors
/// Where one of them cannot be read, or the template is malformed.
pub fn chat_template_from_file(
    location: impl Into<Location>,
    template: &Path,
) -> Result<ChatTemplate, Error> {
    let tokens = match Source::open(location.into())? {
        Source::Folder(folder) => NamedTokens::from_folder(&folder).map_err(TokenizerError::from)?,
        Source::Gguf(gguf) => NamedTokens::from_gguf(&gguf).map_err(TokenizerError::from)?,
    };
    Ok(ChatTemplate::from_file(template, tokens)?)
}

/// The tokenizer of a model, opened when it is first needed: much can be done without one, and a large vocabulary takes
/// its time.
pub(crate) struct LazyTokenizer {
    location: Location,
    opened: OnceLock<Option<Arc<Tokenizer>>>,
}

impl LazyTokenizer {
    pub fn new(location: &Location) -> LazyTokenizer {
        LazyTokenizer { location: location.clone(), opened: OnceLock::new() }
    }

    /// The tokenizer, or nothing where the model has none.
    pub fn get(&self) -> Result<Option<Arc<Tokenizer>>, Error> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened.clone());
        }
        let opened = match open_tokenizer(&self.location) {
            Ok(tokenizer) => Some(Arc::new(tokenizer)),
            Err(Error::Tokenizer(TokenizerError::Missing { .. } | TokenizerError::MissingInGguf { .. })) => {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(self.opened.get_or_init(|| opened).clone())
    }

    /// Token ids of a prompt.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let (text, special) = match prompt {
            Prompt::Ids(ids) => return Ok(ids.clone()),
            Prompt::Text(text) => (text, SpecialTokens::ADD),
            Prompt::Rendered(text) => (text, SpecialTokens::RECOGNISE),
        };
        let tokenizer = self.get()?.ok_or_else(|| Error::NoTokenizer(self.location.path().into_owned()))?;
        Ok(tokenizer.encode(text, special)?)
    }
}

/// A location at which there is something.
pub(crate) fn existing(location: Location) -> Result<Location, Error> {
    match location {
        Location::Path(path) if !path.exists() => Err(Error::NoModel(path)),
        location => Ok(location),
    }
}

/// Where texts are turned into tokens.
enum Source {
    Folder(Location),
    Gguf(Box<Gguf>),
}

impl Source {
    fn open(location: Location) -> Result<Source, Error> {
        let location = existing(location)?;
        match &location {
            Location::Path(path) if !path.is_dir() => Source::gguf(path),
            _ => match only_gguf(&location) {
                Some(file) => Source::gguf(&file),
                None => Ok(Source::Folder(location)),
            },
        }
    }

    fn gguf(path: &Path) -> Result<Source, Error> {
        let io = |source| Error::Checkpoint(CheckpointError::Io { file: path.to_owned(), source });
        let file = MappedFile::open(path).map_err(io)?;
        Ok(Source::Gguf(Box::new(Gguf::parse(file.bytes(), path)?)))
    }
}

/// The GGUF file of a folder that holds a single one and no `config.json` or tokenizer of its own, as a checkpoint does.
fn only_gguf(folder: &Location) -> Option<PathBuf> {
    let own = ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"];
    if own.iter().any(|name| folder.has(name)) {
        return None;
    }
    let Location::Path(path) = folder else { return None };
    let paths = std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.next().filter(|_| files.next().is_none())
}
