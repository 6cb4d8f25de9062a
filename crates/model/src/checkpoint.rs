//! Checkpoints: a configuration and its tensors, from a Hugging Face folder or a GGUF file, memory-mapped.
//!
//! Tensors are asked for by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`) whatever the file
//! calls them, and have Hugging Face's shapes, outermost dimension first.

mod error;
mod folder;
mod gguf_file;
mod mapped;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use mantissa_numerics::Format;
use mantissa_ops::{RowOrder, SourceError, TensorSource, View};

pub use error::CheckpointError;
pub use mapped::MappedFile;

use crate::{
    config::{GenerationDefaults, ModelConfig},
    gguf::Gguf,
    location::Location,
};

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    generation: GenerationDefaults,
    /// The header, where the checkpoint is a GGUF file.
    gguf: Option<Gguf>,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    /// Index of the file.
    file: usize,
    /// The name in the file.
    stored_name: String,
    dtype: &'static str,
    format: Option<Format>,
    shape: Vec<usize>,
    range: Range<usize>,
    row_order: RowOrder,
}

/// One tensor of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSummary<'a> {
    /// The name to ask for.
    pub name: &'a str,
    /// The name in the file.
    pub stored_name: &'a str,
    /// What the file calls the type, such as `BF16` or `Q4_K`.
    pub dtype: &'static str,
    /// The scalar format, where the type is one.
    pub format: Option<Format>,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Bytes in the file.
    pub bytes: usize,
    /// The file.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Opens the checkpoint at `location`: a folder with `config.json` and safetensors, a folder with a single GGUF
    /// file, or a GGUF file.
    ///
    /// Files are mapped, not read; they must not change while the checkpoint is open.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and the key or tensor.
    pub fn open(location: impl Into<Location>) -> Result<Checkpoint, CheckpointError> {
        let location = location.into();
        let checkpoint = match gguf_at(&location)? {
            Some(file) => gguf_file::open(&file),
            None => folder::open(&location),
        }?;
        checkpoint.refuse_unexpected_biases()?;
        Ok(checkpoint)
    }

    /// The folder or GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Architecture and sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Recommended sampling; empty for GGUF files, which have none.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// The tokens that end a text: those of `generation_config.json`, else those of the configuration.
    pub fn eos_token_ids(&self) -> &[u32] {
        self.generation.eos_token_ids.as_deref().unwrap_or(&self.config.eos_token_ids)
    }

    /// The GGUF header, where the checkpoint is a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// The files that hold tensors.
    pub fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorSummary<'_>> {
        self.tensors.iter().map(|(name, entry)| TensorSummary {
            name,
            stored_name: &entry.stored_name,
            dtype: entry.dtype,
            format: entry.format,
            shape: &entry.shape,
            bytes: entry.range.len(),
            file: self.files[entry.file].path(),
        })
    }

    /// Whether there is a tensor called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::UnreadableType`] where it does not hold plain f32, f16
    /// or bf16 numbers, and [`CheckpointError::WrongShape`] where it holds none at all.
    pub fn tensor(&self, name: &str) -> Result<View<'_>, CheckpointError> {
        let entry = self.entry(name)?;
        let file = &self.files[entry.file];
        let format = match entry.format {
            Some(format @ (Format::F32 | Format::F16 | Format::Bf16)) => format,
            _ => {
                return Err(CheckpointError::UnreadableType {
                    file: file.path().to_owned(),
                    tensor: entry.stored_name.clone(),
                    dtype: entry.dtype,
                });
            }
        };
        if entry.shape.contains(&0) {
            return Err(self.wrong_shape(entry, "one without a zero".to_owned()));
        }
        let bytes = &file.bytes()[entry.range.clone()];
        // The header's reader compared shape and length; a difference here is a mistake of ours, still no panic.
        View::contiguous(format, &entry.shape, bytes).map_err(|error| CheckpointError::View {
            file: file.path().to_owned(),
            tensor: entry.stored_name.clone(),
            error,
        })
    }

    /// The tensor called `name`, whose dimensions must be `shape`.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and [`CheckpointError::WrongShape`].
    pub fn expect_tensor(&self, name: &str, shape: &[usize]) -> Result<View<'_>, CheckpointError> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            return Err(self.wrong_shape(entry, format!("{shape:?}")));
        }
        self.tensor(name)
    }

    fn entry(&self, name: &str) -> Result<&Entry, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: match &self.gguf {
                Some(_) => gguf_file::stored_name(name, self.config.architecture),
                None => name.to_owned(),
            },
        })
    }

    fn wrong_shape(&self, entry: &Entry, wanted: String) -> CheckpointError {
        CheckpointError::WrongShape {
            file: self.files[entry.file].path().to_owned(),
            tensor: entry.stored_name.clone(),
            wanted,
            got: entry.shape.clone(),
        }
    }

    /// Refuses biases that no architecture here adds: left out silently, they would change every result.
    fn refuse_unexpected_biases(&self) -> Result<(), CheckpointError> {
        let expected = |name: &str| {
            self.config.attention_bias
                && ["q_proj.bias", "k_proj.bias", "v_proj.bias"].iter().any(|end| name.ends_with(end))
        };
        let unexpected = self.tensors.iter().find(|(name, _)| name.ends_with(".bias") && !expected(name));
        match unexpected {
            None => Ok(()),
            Some((_, entry)) => Err(CheckpointError::UnexpectedBias {
                file: self.files[entry.file].path().to_owned(),
                tensor: entry.stored_name.clone(),
                architecture: self.config.architecture,
            }),
        }
    }
}

/// The GGUF file at `location`, or nothing where it is a folder with `config.json`.
fn gguf_at(location: &Location) -> Result<Option<Cow<'_, Path>>, CheckpointError> {
    let Location::Path(path) = location else { return Ok(None) };
    let metadata =
        std::fs::metadata(path).map_err(|source| CheckpointError::Io { file: path.clone(), source })?;
    if !metadata.is_dir() {
        return Ok(Some(Cow::Borrowed(path)));
    }
    if location.has(folder::CONFIG) {
        return Ok(None);
    }
    match folder::single_gguf(path)? {
        Some(file) => Ok(Some(Cow::Owned(file))),
        None => Err(CheckpointError::NoConfig { folder: path.clone() }),
    }
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str) -> Result<View<'_>, SourceError> {
        Checkpoint::tensor(self, name).map_err(|error| SourceError { message: error.to_string() })
    }

    fn row_order(&self, name: &str) -> RowOrder {
        self.tensors.get(name).map_or(RowOrder::AsStored, |entry| entry.row_order)
    }

    fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.files[entry.file].release(entry.range.clone());
        }
    }
}
