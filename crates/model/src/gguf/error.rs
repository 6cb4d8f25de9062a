//! What can be wrong with a GGUF file.

use std::path::PathBuf;

/// A GGUF file that cannot be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct GgufError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a GGUF file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// The first four bytes are others.
    #[error("not a GGUF file: it starts with {got:02x?}, not with \"GGUF\"")]
    Magic {
        /// The first bytes, at most four.
        got: Vec<u8>,
    },
    /// A version other than 2 and 3.
    #[error(
        "GGUF version {version}; versions 2 and 3 can be read (llama.cpp's convert tools write version 3)"
    )]
    Version {
        /// The version in the file.
        version: u32,
    },
    /// Written on a big-endian machine.
    #[error("GGUF version {version} in big-endian byte order; only little-endian files can be read")]
    BigEndian {
        /// The version in the file, bytes swapped.
        version: u32,
    },
    /// The file ends early, or a length in it is wrong.
    #[error("{what} at byte {offset} needs {wanted} bytes, but the file has {left} left")]
    Truncated {
        /// What was being read, with its key or tensor.
        what: String,
        /// Where it starts.
        offset: u64,
        /// Bytes it claims to take.
        wanted: u64,
        /// Bytes between there and the end of the file.
        left: u64,
    },
    /// A count of entries that cannot fit into the rest of the file.
    #[error(
        "{what} claims {count} entries of at least {entry_bytes} bytes at byte {offset}, but the file has {left} left"
    )]
    Count {
        /// What has the entries.
        what: String,
        /// Where they start.
        offset: u64,
        /// How many are claimed.
        count: u64,
        /// The least that one can take.
        entry_bytes: u64,
        /// Bytes between there and the end of the file.
        left: u64,
    },
    /// Text that is no UTF-8.
    #[error("{what} at byte {offset} is not valid UTF-8")]
    Utf8 {
        /// The text's place.
        what: String,
        /// Where it starts.
        offset: u64,
    },
    /// A key or tensor name longer than the specification allows.
    #[error("{what} at byte {offset} has {length} bytes; at most {limit} are allowed")]
    NameLength {
        /// Which name.
        what: String,
        /// Where it starts.
        offset: u64,
        /// Its length.
        length: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// Two metadata entries with one key.
    #[error("metadata key {key:?} occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Two tensors with one name.
    #[error("tensor {tensor:?} occurs twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A value type that the specification does not have.
    #[error("{what} has value type {id}; the specification has types 0 to 12")]
    ValueType {
        /// Where.
        what: String,
        /// The number in the file.
        id: u32,
    },
    /// Arrays nested beyond any use.
    #[error("{what} nests arrays more than {limit} deep")]
    Nesting {
        /// Where.
        what: String,
        /// The depth allowed.
        limit: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("{what} holds {got} as a bool; only 0 and 1 are")]
    Bool {
        /// Where.
        what: String,
        /// The byte in the file.
        got: u8,
    },
    /// An alignment that is no power of two.
    #[error("general.alignment is {got}; it must be a power of two")]
    Alignment {
        /// The alignment in the file.
        got: u64,
    },
    /// A tensor with too many dimensions.
    #[error("tensor {tensor:?} has {got} dimensions; ggml has at most {limit}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// Its number of dimensions.
        got: u32,
        /// The most allowed.
        limit: u32,
    },
    /// A tensor whose size is zero or does not fit 64 bits.
    #[error("tensor {tensor:?} has shape {shape:?}, outermost first, which is {wrong}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its dimensions, outermost first.
        shape: Vec<u64>,
        /// What is wrong with them.
        wrong: &'static str,
    },
    /// A tensor type that is not known.
    #[error("tensor {tensor:?} has ggml type {id}, which is unknown here or was removed from ggml")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        id: u32,
    },
    /// A row that is no whole number of blocks.
    #[error(
        "tensor {tensor:?} is {ggml_type} with rows of {row} values, no multiple of the block size {block}"
    )]
    Block {
        /// The tensor.
        tensor: String,
        /// Its type.
        ggml_type: &'static str,
        /// Values of a row.
        row: u64,
        /// Values of a block.
        block: u64,
    },
    /// Tensor data that is not aligned.
    #[error("tensor {tensor:?} has offset {offset}, no multiple of the file's alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset within the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Tensor data beyond the end of the file.
    #[error(
        "tensor {tensor:?} of {bytes} bytes at offset {offset} lies beyond the data section, which has {available} bytes"
    )]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Its offset within the data section.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// Bytes of the data section.
        available: u64,
    },
    /// Two tensors that share bytes.
    #[error(
        "tensors {first:?} and {second:?} overlap: one ends at byte {end}, the other starts at byte {start}"
    )]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The other.
        second: String,
        /// Where the first ends.
        end: u64,
        /// Where the second starts.
        start: u64,
    },
    /// A metadata key that is needed and absent.
    #[error("metadata key {key:?} is missing; it should hold {wanted}")]
    MissingKey {
        /// The key.
        key: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// A metadata value of another type.
    #[error("metadata key {key:?} holds a value of type {got}, not {wanted}")]
    WrongType {
        /// The key.
        key: String,
        /// What it should hold.
        wanted: &'static str,
        /// What it holds.
        got: &'static str,
    },
}
