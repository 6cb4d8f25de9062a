//! Safetensors files of random values: headers from the program's weights, values block by block.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use mantissa::cpu::Pool;
use mantissa::numerics::Ecosystem;
use mantissa::ops::Program;
use mantissa::ops::program::WeightKind;
use serde_json::{Map, Value, json};

use super::folder::{INDEX, SINGLE};
use super::values::{ALIGNMENT, Values};
use crate::interrupt::{Guard, Interrupted};

/// Where transformers begins a new file.
pub const SHARD_BYTES: u64 = 5_000_000_000;
/// Values that one thread computes at a time; a multiple of [`ALIGNMENT`].
const PART: usize = 1 << 16;
/// Parts in memory at a time.
const PARTS: usize = 128;
/// Tensors begin at multiples of this many bytes of a file.
const DATA_ALIGNMENT: usize = 64;

const _: () = assert!(PART.is_multiple_of(ALIGNMENT));

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    shape: Vec<usize>,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The tensors that a program loads, each once, in the order of its steps.
pub fn tensors(program: &Program) -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = Vec::new();
    for weight in &program.weights {
        for part in &weight.parts {
            let shape = match weight.kind {
                WeightKind::Matrix | WeightKind::GateUp => vec![part.tensor_rows, weight.columns],
                WeightKind::Vector => vec![part.tensor_rows],
            };
            if tensors.iter().all(|known| known.name != part.tensor) {
                tensors.push(Tensor { name: part.tensor.clone(), shape });
            }
        }
    }
    tensors
}

/// Writes tensors into a folder.
pub struct Writer<'a> {
    pub folder: &'a Path,
    pub values: &'a Values,
    pub pool: &'a Pool,
    pub bar: &'a ProgressBar,
    pub interrupt: &'a Guard,
    /// Bytes of tensors in one file, unless a single tensor has more.
    pub shard_bytes: u64,
}

impl Writer<'_> {
    /// Writes one file, or several with an index where one would be too large, and returns the bytes of all tensors.
    pub fn write(&self, tensors: &[Tensor]) -> Result<u64> {
        let total = tensors.iter().map(|tensor| self.bytes(tensor)).sum();
        self.bar.set_length(total);
        let shards = self.shards(tensors);
        if let [tensors] = shards.as_slice() {
            self.write_file(SINGLE, tensors)?;
            return Ok(total);
        }
        let mut places = Map::new();
        for (index, tensors) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
            self.write_file(&name, tensors)?;
            places.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        write_json(&self.folder.join(INDEX), &index)?;
        Ok(total)
    }

    fn bytes(&self, tensor: &Tensor) -> u64 {
        tensor.len() as u64 * self.values.format().bytes() as u64
    }

    /// Consecutive tensors that go into one file, at least one.
    fn shards<'t>(&self, tensors: &'t [Tensor]) -> Vec<&'t [Tensor]> {
        let mut shards = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (index, tensor) in tensors.iter().enumerate() {
            let more = self.bytes(tensor);
            if index > start && bytes + more > self.shard_bytes {
                shards.push(&tensors[start..index]);
                (start, bytes) = (index, 0);
            }
            bytes += more;
        }
        shards.push(&tensors[start..]);
        shards
    }

    fn write_file(&self, name: &str, tensors: &[Tensor]) -> Result<()> {
        let path = self.folder.join(name);
        self.write_to(&path, tensors).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_to(&self, path: &Path, tensors: &[Tensor]) -> Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&self.header(tensors)?)?;
        let size = self.values.format().bytes();
        let mut buffer = vec![0; PARTS * PART * size];
        for tensor in tensors {
            let mut first = 0;
            while first < tensor.len() {
                if self.interrupt.requested() {
                    return Err(Interrupted.into());
                }
                let count = (tensor.len() - first).min(PARTS * PART);
                let block = &mut buffer[..count * size];
                self.compute(&tensor.name, first, block);
                file.write_all(block)?;
                self.bar.inc(block.len() as u64);
                first += count;
            }
        }
        // A disk that is full may say so only now.
        file.sync_all()?;
        Ok(())
    }

    /// Fills a block with the values of a tensor from value `first` on.
    fn compute(&self, tensor: &str, first: usize, block: &mut [u8]) {
        let part_bytes = PART * self.values.format().bytes();
        let parts: Vec<Mutex<&mut [u8]>> = block.chunks_mut(part_bytes).map(Mutex::new).collect();
        self.pool.run(parts.len(), |task| {
            // Every part has one task: nobody else holds the lock, or has panicked with it.
            let mut part = parts[task.index].lock().unwrap_or_else(PoisonError::into_inner);
            self.values.fill(tensor, first + task.index * PART, &mut part);
        });
    }

    /// The header: its length, and names, types, shapes and offsets as JSON, padded with spaces.
    fn header(&self, tensors: &[Tensor]) -> Result<Vec<u8>> {
        let format = self.values.format();
        let dtype = format.name_in(Ecosystem::Safetensors);
        let mut entries = Map::new();
        entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
        let mut start = 0;
        for tensor in tensors {
            let end = start + self.bytes(tensor);
            let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end] });
            entries.insert(tensor.name.clone(), entry);
            start = end;
        }
        let mut json = serde_json::to_vec(&Value::Object(entries))?;
        let length = size_of::<u64>();
        json.resize((length + json.len()).next_multiple_of(DATA_ALIGNMENT) - length, b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(header)
    }
}

/// Writes a file of JSON for people to read.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use mantissa::model::arch;
    use mantissa::model::checkpoint::Checkpoint;
    use mantissa::model::config::ModelConfig;
    use mantissa::numerics::Format;

    use super::super::folder::CONFIG;
    use super::super::shapes::Shape;
    use super::*;
    use crate::interrupt::Interrupt;

    /// Opens a small model that was written in files of this size.
    fn written(folder: &Path, shard_bytes: u64) -> Checkpoint {
        let config = Shape::find("tiny-qwen3").unwrap().config(Format::F32);
        write_json(&folder.join(CONFIG), &config).unwrap();
        let parsed = ModelConfig::from_json(config.to_string().as_bytes(), Path::new(CONFIG)).unwrap();
        let writer = Writer {
            folder,
            values: &Values::new(Format::F32, 3, 64).unwrap(),
            pool: &Pool::new(NonZeroUsize::new(2).unwrap()).unwrap(),
            bar: &ProgressBar::hidden(),
            interrupt: &Interrupt::default().guard(),
            shard_bytes,
        };
        let bytes = writer.write(&tensors(&arch::program(&parsed).unwrap())).unwrap();
        let checkpoint = Checkpoint::open(folder).unwrap();
        assert_eq!(checkpoint.total_bytes(), bytes);
        checkpoint
    }

    #[test]
    fn one_file_or_several_hold_the_same_tensors() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let one = written(folders[0].path(), u64::MAX);
        let several = written(folders[1].path(), 100_000);
        assert_eq!(one.files().len(), 1);
        assert!(several.files().len() > 2);
        for file in several.files() {
            let largest =
                several.tensors().filter(|tensor| tensor.file == file.path()).map(|t| t.bytes).sum::<usize>();
            assert!(largest <= 100_000, "{largest}");
        }
        assert_eq!(one.tensors().len(), several.tensors().len());
        for tensor in one.tensors() {
            let (left, right) = (one.tensor(tensor.name).unwrap(), several.tensor(tensor.name).unwrap());
            assert_eq!((left.shape(), left.as_bytes()), (right.shape(), right.as_bytes()), "{}", tensor.name);
        }
    }
}
