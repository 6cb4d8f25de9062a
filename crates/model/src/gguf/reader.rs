//! A cursor over the header bytes. Every length is compared with what is left before anything is read or allocated.

use super::{
    Problem,
    value::{Array, Value},
};

/// Nested arrays are legal and unused; each level costs a hostile file 12 bytes and us a stack frame.
const MAX_NESTING: u32 = 4;

/// Longest key or tensor name: the specification's limit for keys.
const MAX_NAME: u64 = 65_535;

/// Least bytes of an array inside an array: its type and its count.
const MIN_ARRAY_BYTES: u64 = 12;

/// Least bytes of a string: its length.
const MIN_STRING_BYTES: u64 = 8;

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The next `wanted` bytes. `what` describes them and is only called for an error.
    fn take(&mut self, wanted: u64, what: impl FnOnce() -> String) -> Result<&'a [u8], Problem> {
        let end = usize::try_from(wanted).ok().and_then(|n| self.position.checked_add(n));
        match end.and_then(|end| self.bytes.get(self.position..end)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => {
                Err(Problem::Truncated { what: what(), offset: self.position(), wanted, left: self.left() })
            }
        }
    }

    fn array<const N: usize>(&mut self, what: impl FnOnce() -> String) -> Result<[u8; N], Problem> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N as u64, what)?);
        Ok(value)
    }

    pub(super) fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of entries that take at least `entry_bytes` each, no larger than the rest of the file allows.
    pub(super) fn count(&mut self, entry_bytes: u64, what: &dyn Fn() -> String) -> Result<usize, Problem> {
        let count = self.u64(what)?;
        self.check_count(count, entry_bytes, what)
    }

    /// `count` as an index, where that many entries of at least `entry_bytes` can be left in the file.
    pub(super) fn check_count(
        &self,
        count: u64,
        entry_bytes: u64,
        what: &dyn Fn() -> String,
    ) -> Result<usize, Problem> {
        let absurd = || Problem::Count {
            what: what(),
            offset: self.position(),
            count,
            entry_bytes,
            left: self.left(),
        };
        if count > self.left() / entry_bytes {
            return Err(absurd());
        }
        usize::try_from(count).map_err(|_| absurd())
    }

    fn text(&mut self, length: u64, what: &dyn Fn() -> String) -> Result<String, Problem> {
        let offset = self.position();
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Problem::Utf8 { what: what(), offset }),
        }
    }

    /// A key or a tensor name.
    pub(super) fn name(&mut self, what: &dyn Fn() -> String) -> Result<String, Problem> {
        let offset = self.position();
        let length = self.u64(what)?;
        if length > MAX_NAME && length <= self.left() {
            return Err(Problem::NameLength { what: what(), offset, length, limit: MAX_NAME });
        }
        self.text(length, what)
    }

    fn string(&mut self, what: &dyn Fn() -> String) -> Result<String, Problem> {
        let length = self.u64(what)?;
        self.text(length, what)
    }

    fn bool(&mut self, what: &dyn Fn() -> String) -> Result<bool, Problem> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [got] => Err(Problem::Bool { what: what(), got }),
        }
    }

    /// The value of `key`, type first.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, Problem> {
        let what = || format!("the value of {key:?}");
        let what: &dyn Fn() -> String = &what;
        Ok(match self.u32(what)? {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.values(what, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            id => return Err(Problem::ValueType { what: what(), id }),
        })
    }

    /// The elements of an array at nesting `depth`, element type first.
    fn values(&mut self, what: &dyn Fn() -> String, depth: u32) -> Result<Array, Problem> {
        if depth > MAX_NESTING {
            return Err(Problem::Nesting { what: what(), limit: MAX_NESTING });
        }
        Ok(match self.u32(what)? {
            0 => Array::U8(self.numbers(what, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(what, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(what, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(what, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(what, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(what, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(what, f32::from_le_bytes)?),
            7 => Array::Bool(self.elements(what, 1, |reader, what| reader.bool(what))?),
            8 => Array::String(self.elements(what, MIN_STRING_BYTES, |reader, what| reader.string(what))?),
            9 => Array::Array(
                self.elements(what, MIN_ARRAY_BYTES, |reader, what| reader.values(what, depth + 1))?,
            ),
            10 => Array::U64(self.numbers(what, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(what, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(what, f64::from_le_bytes)?),
            id => return Err(Problem::ValueType { what: what(), id }),
        })
    }

    /// A counted run of numbers of `N` bytes.
    fn numbers<T, const N: usize>(
        &mut self,
        what: &dyn Fn() -> String,
        decode: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Problem> {
        let count = self.count(N as u64, what)?;
        let bytes = self.take(count as u64 * N as u64, what)?;
        let (numbers, _) = bytes.as_chunks::<N>();
        Ok(numbers.iter().map(|&number| decode(number)).collect())
    }

    /// A counted run of elements that take at least `entry_bytes` each.
    fn elements<T>(
        &mut self,
        what: &dyn Fn() -> String,
        entry_bytes: u64,
        element: impl Fn(&mut Self, &dyn Fn() -> String) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        let count = self.count(entry_bytes, what)?;
        (0..count).map(|index| element(self, &|| format!("element {index} of {}", what()))).collect()
    }
}
