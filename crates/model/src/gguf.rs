//! GGUF headers: metadata and the places of the tensors.
//!
//! Own parser, because it stands between hostile files and everything else: it works on a byte slice (a memory
//! map), compares every length, count and offset with what is left of the file before using it, and never
//! allocates more than a small multiple of the header's own size. Format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian.

mod error;
mod reader;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod types;
mod value;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

pub use error::{GgufError, Problem};
use reader::Reader;
pub use types::GgmlType;
pub use value::{Array, FromValue, Value};

/// The first four bytes of every file.
const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of tensor data where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Most dimensions of a ggml tensor.
const MAX_DIMENSIONS: u32 = 4;

/// Least bytes of a metadata entry: length of its key, its type, a value of one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;

/// Least bytes of a tensor's description: length of its name, number of dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// A parsed header. It owns all it holds; tensor data stays in the file.
#[derive(Clone, Debug)]
pub struct Gguf {
    file: PathBuf,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

/// Where one tensor lies, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name as in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, outermost first: `[rows, columns]`. The file has them the other way round.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub ggml_type: GgmlType,
    /// Bytes of the file that hold the values.
    pub range: Range<usize>,
}

/// A tensor's description before its place in the file is known to be sound.
struct RawTensor {
    name: String,
    shape: Vec<usize>,
    ggml_type: GgmlType,
    offset: u64,
    bytes: u64,
}

impl Gguf {
    /// Parses the header of the file `file`, whose content is `bytes`.
    ///
    /// # Errors
    /// [`GgufError`] naming the file and the key or tensor, where the header is malformed or a tensor's data does
    /// not lie wholly, aligned and alone within `bytes`.
    pub fn parse(bytes: &[u8], file: &Path) -> Result<Gguf, GgufError> {
        parse(bytes, file).map_err(|problem| GgufError { file: file.to_owned(), problem })
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The value of `key`, or nothing where the key is absent.
    ///
    /// # Errors
    /// [`Problem::WrongType`] where the value is of another type.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(Problem::WrongType {
                key: key.to_owned(),
                wanted: T::WANTED,
                got: value.type_name(),
            })),
        }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`Problem::MissingKey`] where the key is absent, [`Problem::WrongType`] where the value is of another type.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        self.get(key)?
            .ok_or_else(|| self.error(Problem::MissingKey { key: key.to_owned(), wanted: T::WANTED }))
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name` in the file.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&index| &self.tensors[index])
    }

    fn error(&self, problem: Problem) -> GgufError {
        GgufError { file: self.file.clone(), problem }
    }
}

fn parse(bytes: &[u8], file: &Path) -> Result<Gguf, Problem> {
    if !bytes.starts_with(MAGIC) {
        return Err(Problem::Magic { got: bytes.iter().take(MAGIC.len()).copied().collect() });
    }
    let mut reader = Reader::new(bytes);
    reader.u32(|| "the magic number".to_owned())?;
    let version = match reader.u32(|| "the version".to_owned())? {
        version @ (2 | 3) => version,
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Problem::BigEndian { version: version.swap_bytes() });
        }
        version => return Err(Problem::Version { version }),
    };
    let tensor_count = reader.u64(|| "the number of tensors".to_owned())?;
    let entry_count = reader.count(MIN_ENTRY_BYTES, &|| "the metadata".to_owned())?;
    let metadata = read_metadata(&mut reader, entry_count)?;
    let tensor_count =
        reader.check_count(tensor_count, MIN_TENSOR_BYTES, &|| "the tensor list".to_owned())?;
    let raw =
        (0..tensor_count).map(|index| read_tensor(&mut reader, index)).collect::<Result<Vec<_>, _>>()?;

    let alignment = alignment(&metadata)?;
    // Beyond the file where a file without tensors ends right after its header; checked against each tensor.
    let data_start = reader.position().next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(raw.len());
    let mut index = HashMap::with_capacity(raw.len());
    for tensor in raw {
        if index.insert(tensor.name.clone(), tensors.len()).is_some() {
            return Err(Problem::DuplicateTensor { tensor: tensor.name });
        }
        tensors.push(place(tensor, bytes.len() as u64, data_start, alignment)?);
    }
    check_overlaps(&tensors)?;
    Ok(Gguf { file: file.to_owned(), version, metadata, tensors, index })
}

fn read_metadata(reader: &mut Reader<'_>, count: usize) -> Result<BTreeMap<String, Value>, Problem> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = reader.name(&|| format!("metadata key {index}"))?;
        let value = reader.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(Problem::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Problem> {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    match *value {
        Value::U32(alignment) if alignment.is_power_of_two() => Ok(alignment.into()),
        Value::U32(alignment) => Err(Problem::Alignment { got: alignment.into() }),
        _ => Err(Problem::WrongType { key: KEY.to_owned(), wanted: "a u32", got: value.type_name() }),
    }
}

/// Reads the description of tensor `index` and checks all that does not depend on the place of the data.
fn read_tensor(reader: &mut Reader<'_>, index: usize) -> Result<RawTensor, Problem> {
    let name = reader.name(&|| format!("the name of tensor {index}"))?;
    let what = || format!("the description of tensor {name:?}");
    let rank = reader.u32(what)?;
    if rank > MAX_DIMENSIONS {
        return Err(Problem::Dimensions { tensor: name, got: rank, limit: MAX_DIMENSIONS });
    }
    let mut dimensions = (0..rank).map(|_| reader.u64(what)).collect::<Result<Vec<u64>, _>>()?;
    let type_id = reader.u32(what)?;
    let offset = reader.u64(what)?;
    let Some(ggml_type) = GgmlType::from_id(type_id) else {
        return Err(Problem::TensorType { tensor: name, id: type_id });
    };
    let row = dimensions.first().copied().unwrap_or(1);
    let block = ggml_type.block_values();
    dimensions.reverse();
    let wrong = |name, shape, wrong| Err(Problem::Shape { tensor: name, shape, wrong });
    if dimensions.contains(&0) {
        return wrong(name, dimensions, "empty");
    }
    if !row.is_multiple_of(block) {
        return Err(Problem::Block { tensor: name, ggml_type: ggml_type.name(), row, block });
    }
    let values = dimensions.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    let bytes = values.and_then(|values| (values / block).checked_mul(ggml_type.block_bytes()));
    let shape = dimensions.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<usize>>>();
    match (bytes, shape) {
        (Some(bytes), Some(shape)) => Ok(RawTensor { name, shape, ggml_type, offset, bytes }),
        _ => wrong(name, dimensions, "larger than any memory"),
    }
}

/// Finds the tensor's bytes in a file of `file_bytes` bytes whose data section starts at `data_start`.
fn place(tensor: RawTensor, file_bytes: u64, data_start: u64, alignment: u64) -> Result<TensorInfo, Problem> {
    let RawTensor { name, shape, ggml_type, offset, bytes } = tensor;
    if !offset.is_multiple_of(alignment) {
        return Err(Problem::Misaligned { tensor: name, offset, alignment });
    }
    let available = file_bytes.saturating_sub(data_start);
    if offset.checked_add(bytes).is_none_or(|end| end > available) {
        return Err(Problem::OutOfFile { tensor: name, offset, bytes, available });
    }
    // Within the file now, whose length is a usize.
    let start = (data_start + offset) as usize;
    Ok(TensorInfo { name, shape, ggml_type, range: start..start + bytes as usize })
}

fn check_overlaps(tensors: &[TensorInfo]) -> Result<(), Problem> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.range.end > second.range.start {
            return Err(Problem::Overlap {
                first: first.name.clone(),
                second: second.name.clone(),
                end: first.range.end as u64,
                start: second.range.start as u64,
            });
        }
    }
    Ok(())
}
