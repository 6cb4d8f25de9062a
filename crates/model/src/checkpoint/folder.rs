//! Hugging Face folders: `config.json`, `generation_config.json`, and safetensors in one file or several.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map},
    fs,
    path::{Component, Path},
};

use mantissa_ops::RowOrder;
use serde::Deserialize;

use super::{Checkpoint, CheckpointError, Entry, MappedFile};
use crate::{
    config::{GenerationDefaults, ModelConfig},
    location::Location,
    safetensors_file,
};

/// The file that makes a folder a checkpoint.
pub(super) const CONFIG: &str = "config.json";

const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Which shard holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Tensors gathered from one file after another.
#[derive(Default)]
struct Tensors {
    files: Vec<MappedFile>,
    entries: BTreeMap<String, Entry>,
}

pub(super) fn open(folder: &Location) -> Result<Checkpoint, CheckpointError> {
    let config = ModelConfig::from_json(&read(folder, CONFIG)?, &folder.file(CONFIG))?;
    let generation = if folder.has(GENERATION_CONFIG) {
        GenerationDefaults::from_json(&read(folder, GENERATION_CONFIG)?, &folder.file(GENERATION_CONFIG))?
    } else {
        GenerationDefaults::default()
    };
    let mut tensors = Tensors::default();
    // Where both are there, transformers takes the single file.
    if folder.has(SINGLE) {
        tensors.add(folder, SINGLE)?;
    } else if folder.has(INDEX) {
        add_shards(&mut tensors, folder)?;
    } else {
        let pickled = folder.has("pytorch_model.bin") || folder.has("pytorch_model.bin.index.json");
        let hint = if pickled {
            "; pytorch_model.bin holds a pickle, which is code: convert it to safetensors first"
        } else {
            ""
        };
        return Err(CheckpointError::NoWeights { folder: folder.path().into_owned(), hint });
    }
    let Tensors { files, entries } = tensors;
    Ok(Checkpoint {
        path: folder.path().into_owned(),
        config,
        generation,
        gguf: None,
        files,
        tensors: entries,
    })
}

/// The only GGUF file of a folder without `config.json`.
pub(super) fn single_gguf(folder: &Path) -> Result<Option<std::path::PathBuf>, CheckpointError> {
    let io = |source| CheckpointError::Io { file: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    found.sort();
    if found.len() > 1 {
        let name = |path: &std::path::PathBuf| {
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let files = found.iter().map(name).collect();
        return Err(CheckpointError::SeveralGguf { folder: folder.to_owned(), files });
    }
    Ok(found.pop())
}

fn read(folder: &Location, name: &str) -> Result<Cow<'static, [u8]>, CheckpointError> {
    folder.read(name).map_err(|source| CheckpointError::Io { file: folder.file(name), source })
}

fn add_shards(tensors: &mut Tensors, folder: &Location) -> Result<(), CheckpointError> {
    let index_file = folder.file(INDEX);
    let wrong = |message| CheckpointError::Index { file: index_file.clone(), message };
    let index: Index =
        serde_json::from_slice(&read(folder, INDEX)?).map_err(|error| wrong(error.to_string()))?;
    let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        if shards.contains_key(shard.as_str()) {
            continue;
        }
        // A name that climbs out of the folder would read files that nobody meant.
        if shard.is_empty() || !Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(wrong(format!(
                "tensor {tensor:?} is in {shard:?}, which is no file name within the folder"
            )));
        }
        if !folder.has(shard) {
            let (index, tensor, shard) = (index_file.clone(), tensor.clone(), shard.clone());
            return Err(CheckpointError::MissingShard { index, tensor, shard });
        }
        shards.insert(shard, tensors.add(folder, shard)?);
    }
    for (tensor, shard) in &index.weight_map {
        if tensors.entries.get(tensor).map(|entry| entry.file) != shards.get(shard.as_str()).copied() {
            let (index, tensor, shard) = (index_file.clone(), tensor.clone(), shard.clone());
            return Err(CheckpointError::NotInShard { index, tensor, shard });
        }
    }
    Ok(())
}

impl Tensors {
    /// Adds the tensors of a file and returns the file's index.
    fn add(&mut self, folder: &Location, name: &str) -> Result<usize, CheckpointError> {
        let file =
            folder.map(name).map_err(|source| CheckpointError::Io { file: folder.file(name), source })?;
        let index = self.files.len();
        for (name, info) in safetensors_file::parse(file.bytes(), file.path())? {
            match self.entries.entry(name) {
                btree_map::Entry::Occupied(first) => {
                    return Err(CheckpointError::DuplicateTensor {
                        tensor: first.key().clone(),
                        first: self.files[first.get().file].path().to_owned(),
                        second: file.path().to_owned(),
                    });
                }
                btree_map::Entry::Vacant(vacant) => {
                    let stored_name = vacant.key().clone();
                    vacant.insert(Entry {
                        file: index,
                        stored_name,
                        dtype: info.dtype.name(),
                        format: info.dtype.format(),
                        shape: info.shape,
                        range: info.range,
                        row_order: RowOrder::AsStored,
                    });
                }
            }
        }
        self.files.push(file);
        Ok(index)
    }
}
