//! Which model it was, so that nobody confuses it with another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use mantissa::{Location, Model};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::LabError;
use crate::progress::Progress;

/// A model's files and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// The family, such as `qwen2`.
    pub architecture: String,
    /// Decoder layers.
    pub layers: usize,
    /// Weights, those used twice counted once.
    pub parameters: u64,
    /// The longest context that it was made for.
    pub longest: usize,
    /// What weights are stored as.
    pub dtypes: Vec<String>,
    /// Files that hold weights.
    pub files: Vec<WeightFile>,
}

/// A file that holds weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightFile {
    /// Its name in the model's folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
}

impl Checkpoint {
    /// Looks at a model, and reads its files from beginning to end.
    pub(super) fn of(model: &Model, progress: &dyn Progress) -> Result<Checkpoint, LabError> {
        let mut files: BTreeMap<String, &Path> = BTreeMap::new();
        let mut dtypes: Vec<String> = Vec::new();
        let mut parameters = 0;
        for tensor in model.checkpoint().tensors() {
            let name = tensor.file.file_name().map(|name| name.to_string_lossy().into_owned());
            files.insert(name.unwrap_or_default(), tensor.file);
            parameters += tensor.shape.iter().map(|&size| size as u64).product::<u64>();
            if !dtypes.iter().any(|dtype| dtype == tensor.dtype) {
                dtypes.push(tensor.dtype.to_owned());
            }
        }
        let mut hashed = Vec::new();
        for (name, path) in files {
            let failed = |source| LabError::File { file: path.to_owned(), source };
            let (bytes, sha256) = match model.location() {
                location @ Location::Embedded(_) => {
                    let content = location.read(&name).map_err(failed)?;
                    digest(&mut &*content, path, progress)?
                }
                Location::Path(_) => digest(&mut File::open(path).map_err(failed)?, path, progress)?,
            };
            hashed.push(WeightFile { name, bytes, sha256 });
        }
        let config = model.config();
        Ok(Checkpoint {
            architecture: config.architecture.to_string(),
            layers: config.layers,
            parameters,
            longest: config.max_position_embeddings,
            dtypes,
            files: hashed,
        })
    }
}

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// The size and the SHA-256 of what is read.
fn digest(from: &mut dyn Read, path: &Path, progress: &dyn Progress) -> Result<(u64, String), LabError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        progress.go_on()?;
        let read = from.read(&mut buffer);
        let read = read.map_err(|source| LabError::File { file: path.to_owned(), source })?;
        if read == 0 {
            let digits = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((bytes, digits));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    #[test]
    fn content_is_hashed_whole() {
        // The digest of the empty text, and of a million times "a", as FIPS 180 has them.
        let of = |content: &[u8]| digest(&mut &*content, Path::new("file"), &Quiet).unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(b""), (0, empty.to_owned()));
        let million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(of(&vec![b'a'; 1_000_000]), (1_000_000, million.to_owned()));
    }

    #[test]
    fn the_built_in_model_is_told_apart() {
        let model = Model::built_in().unwrap();
        let checkpoint = Checkpoint::of(&model, &Quiet).unwrap();
        assert_eq!(checkpoint.files.len(), 1);
        assert_eq!(checkpoint.files[0].name, "model.safetensors");
        assert!(checkpoint.files[0].bytes > 2 * checkpoint.parameters, "{checkpoint:?}");
    }
}
