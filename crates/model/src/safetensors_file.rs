//! Safetensors headers: which tensors a file holds, and where.
//!
//! The format (<https://github.com/huggingface/safetensors#format>) is a length, a JSON object and the data. The
//! `safetensors` crate reads it too, but its errors do not name the tensor, it lets the last of two tensors with one
//! name win, and its sum of sizes can overflow; so the header is read here, and the tests compare the two.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use mantissa_numerics::{Ecosystem, Format};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

/// Longest header, as the reference implementation has it.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes of the header's length at the start of the file.
const LENGTH_BYTES: usize = 8;

/// The key of the header that is no tensor.
const METADATA_KEY: &str = "__metadata__";

/// A type of stored values: its name and its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtype {
    name: &'static str,
    bits: usize,
}

/// Every type of the format.
const DTYPES: [Dtype; 22] = {
    const fn dtype(name: &'static str, bits: usize) -> Dtype {
        Dtype { name, bits }
    }
    [
        dtype("BOOL", 8),
        dtype("F4", 4),
        dtype("F6_E2M3", 6),
        dtype("F6_E3M2", 6),
        dtype("U8", 8),
        dtype("I8", 8),
        dtype("F8_E5M2", 8),
        dtype("F8_E4M3", 8),
        dtype("F8_E8M0", 8),
        dtype("F8_E4M3FNUZ", 8),
        dtype("F8_E5M2FNUZ", 8),
        dtype("I16", 16),
        dtype("U16", 16),
        dtype("F16", 16),
        dtype("BF16", 16),
        dtype("I32", 32),
        dtype("U32", 32),
        dtype("F32", 32),
        dtype("C64", 64),
        dtype("F64", 64),
        dtype("I64", 64),
        dtype("U64", 64),
    ]
};

impl Dtype {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The scalar format, where it is one.
    pub fn format(self) -> Option<Format> {
        Format::from_name_in(Ecosystem::Safetensors, self.name)
    }
}

/// Where one tensor lies, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub dtype: Dtype,
    /// Bytes of the file that hold the values.
    pub range: Range<usize>,
}

/// A safetensors file that cannot be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct SafetensorsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a safetensors file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// Fewer bytes than the header's length takes.
    #[error("not a safetensors file: it has {got} bytes, and the header's length alone takes {LENGTH_BYTES}")]
    TooShort {
        /// Bytes of the file.
        got: usize,
    },
    /// A header longer than the file, or than any sensible one.
    #[error(
        "the header claims {claimed} bytes, but the file has {left} left and at most {MAX_HEADER} are allowed"
    )]
    HeaderLength {
        /// Bytes it claims.
        claimed: u64,
        /// Bytes after its length.
        left: usize,
    },
    /// A header that is no JSON object of tensors.
    #[error("the header cannot be read: {message}")]
    Header {
        /// What is wrong, with the tensor where one is concerned.
        message: String,
    },
    /// A type that the format does not have.
    #[error("tensor {tensor:?} has the unknown type {dtype:?}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A shape without a size in bytes.
    #[error(
        "tensor {tensor:?} has shape {shape:?} of {dtype}, which is no number of bytes that fits a memory"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its type.
        dtype: &'static str,
    },
    /// Offsets that do not span the shape.
    #[error("tensor {tensor:?} has shape {shape:?} of {dtype}, {wanted} bytes, but lies at {start}..{end}")]
    Span {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its type.
        dtype: &'static str,
        /// Bytes that shape and type take.
        wanted: u64,
        /// First byte, within the data.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Data beyond the end of the file.
    #[error("tensor {tensor:?} lies at {start}..{end}, but the file has {available} bytes of data")]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// First byte, within the data.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of data.
        available: usize,
    },
    /// Tensors that share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
    },
    /// Bytes that belong to no tensor, which the format forbids.
    #[error("{bytes} bytes of data before {next} belong to no tensor")]
    Hole {
        /// How many.
        bytes: usize,
        /// What follows them.
        next: String,
    },
}

/// A tensor as the header describes it.
#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's tensors by name, each once.
struct RawHeader(BTreeMap<String, RawTensor>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                // Text for people; read for its form alone.
                map.next_value::<BTreeMap<String, String>>()?;
                continue;
            }
            let tensor = map
                .next_value::<RawTensor>()
                .map_err(|error| A::Error::custom(format_args!("tensor {name:?}: {error}")))?;
            match tensors.entry(name) {
                Entry::Vacant(vacant) => vacant.insert(tensor),
                Entry::Occupied(occupied) => {
                    return Err(A::Error::custom(format_args!("tensor {:?} occurs twice", occupied.key())));
                }
            };
        }
        Ok(RawHeader(tensors))
    }
}

/// Parses the header of the file `file`, whose content is `bytes`: its tensors by name.
///
/// # Errors
/// [`SafetensorsError`] naming the file and the tensor, where the header is malformed or the tensors do not cover the
/// data exactly.
pub fn parse(bytes: &[u8], file: &Path) -> Result<BTreeMap<String, TensorInfo>, SafetensorsError> {
    read(bytes).map_err(|problem| SafetensorsError { file: file.to_owned(), problem })
}

fn read(bytes: &[u8]) -> Result<BTreeMap<String, TensorInfo>, Problem> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Problem::TooShort { got: bytes.len() });
    };
    let claimed = u64::from_le_bytes(*length);
    let split = usize::try_from(claimed).ok().filter(|_| claimed <= MAX_HEADER);
    let Some((header, data)) = split.and_then(|length| rest.split_at_checked(length)) else {
        return Err(Problem::HeaderLength { claimed, left: rest.len() });
    };
    let unreadable = |message| Problem::Header { message };
    // All of it: a JSON parser lets bytes pass that it skips.
    let text = std::str::from_utf8(header).map_err(|error| unreadable(error.to_string()))?;
    let RawHeader(raw) = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    let data_start = LENGTH_BYTES + header.len();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in raw {
        let info = place(&name, tensor, data.len(), data_start)?;
        tensors.insert(name, info);
    }
    check_coverage(&tensors, data_start..bytes.len())?;
    Ok(tensors)
}

/// Finds the tensor's bytes in a file with `available` bytes of data from `data_start` on.
fn place(name: &str, tensor: RawTensor, available: usize, data_start: usize) -> Result<TensorInfo, Problem> {
    let RawTensor { dtype, shape, data_offsets: (start, end) } = tensor;
    let name = || name.to_owned();
    let Some(dtype) = DTYPES.into_iter().find(|known| known.name == dtype) else {
        return Err(Problem::Dtype { tensor: name(), dtype });
    };
    let bits = shape.iter().try_fold(dtype.bits as u64, |product, &dim| product.checked_mul(dim));
    let sizes = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<usize>>>();
    let (Some(bits), Some(sizes)) = (bits.filter(|bits| bits.is_multiple_of(8)), sizes) else {
        return Err(Problem::Size { tensor: name(), shape, dtype: dtype.name });
    };
    if end.checked_sub(start) != Some(bits / 8) {
        return Err(Problem::Span { tensor: name(), shape, dtype: dtype.name, wanted: bits / 8, start, end });
    }
    if end > available as u64 {
        return Err(Problem::OutOfFile { tensor: name(), start, end, available });
    }
    // Within the file now, whose length is a usize.
    let range = data_start + start as usize..data_start + end as usize;
    Ok(TensorInfo { shape: sizes, dtype, range })
}

/// Checks that the tensors cover `data` without holes or overlaps.
fn check_coverage(tensors: &BTreeMap<String, TensorInfo>, data: Range<usize>) -> Result<(), Problem> {
    let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| (tensor.range.start, tensor.range.end));
    let (mut covered, mut last) = (data.start, "");
    for (name, tensor) in order {
        if tensor.range.start < covered {
            return Err(Problem::Overlap { first: last.to_owned(), second: name.clone() });
        }
        if tensor.range.start > covered {
            let bytes = tensor.range.start - covered;
            return Err(Problem::Hole { bytes, next: format!("tensor {name:?}") });
        }
        (covered, last) = (tensor.range.end, name);
    }
    if covered < data.end {
        return Err(Problem::Hole { bytes: data.end - covered, next: "the end of the file".to_owned() });
    }
    Ok(())
}
