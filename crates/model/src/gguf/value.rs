//! Metadata values, and how typed code asks for them.

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the scalar types of the specification")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array of metadata values of one type; arrays may nest.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the scalar types of the specification")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
}

impl Value {
    /// What the value is, for errors and listings: `u32`, `array of string`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F32(_) => "f32",
            Value::F64(_) => "f64",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(array) => array.type_name(),
        }
    }

    /// The value as an integer of any width, or nothing where it is none or does not fit.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => v.try_into().ok(),
            Value::I64(v) => Some(v),
            _ => None,
        }
    }
}

impl Array {
    /// What the array is, for errors and listings.
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "array of u8",
            Array::I8(_) => "array of i8",
            Array::U16(_) => "array of u16",
            Array::I16(_) => "array of i16",
            Array::U32(_) => "array of u32",
            Array::I32(_) => "array of i32",
            Array::U64(_) => "array of u64",
            Array::I64(_) => "array of i64",
            Array::F32(_) => "array of f32",
            Array::F64(_) => "array of f64",
            Array::Bool(_) => "array of bool",
            Array::String(_) => "array of string",
            Array::Array(_) => "array of arrays",
        }
    }

    /// The values as integers, or nothing where they are none or one does not fit.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match self {
            Array::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U64(v) => v.iter().map(|&x| x.try_into().ok()).collect::<Option<_>>()?,
            Array::I64(v) => v.clone(),
            _ => return None,
        })
    }
}

/// What [`Gguf::get`](super::Gguf::get) can be asked for. Integers of any width read as `u64` or `i64`, both
/// floating-point types as `f64`.
pub trait FromValue<'a>: Sized {
    /// What an error says was wanted.
    const WANTED: &'static str;

    /// The value as this type, or nothing where it is another.
    fn from_value(value: &'a Value) -> Option<Self>;
}

impl FromValue<'_> for u64 {
    const WANTED: &'static str = "a non-negative integer";

    fn from_value(value: &Value) -> Option<u64> {
        match *value {
            Value::U64(v) => Some(v),
            _ => value.as_i64()?.try_into().ok(),
        }
    }
}

impl FromValue<'_> for i64 {
    const WANTED: &'static str = "an integer";

    fn from_value(value: &Value) -> Option<i64> {
        value.as_i64()
    }
}

impl FromValue<'_> for f64 {
    const WANTED: &'static str = "a floating-point number";

    fn from_value(value: &Value) -> Option<f64> {
        match *value {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const WANTED: &'static str = "a bool";

    fn from_value(value: &Value) -> Option<bool> {
        match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const WANTED: &'static str = "a string";

    fn from_value(value: &'a Value) -> Option<&'a str> {
        match value {
            Value::String(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [String] {
    const WANTED: &'static str = "an array of string";

    fn from_value(value: &'a Value) -> Option<&'a [String]> {
        match value {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [f32] {
    const WANTED: &'static str = "an array of f32";

    fn from_value(value: &'a Value) -> Option<&'a [f32]> {
        match value {
            Value::Array(Array::F32(v)) => Some(v),
            _ => None,
        }
    }
}

impl FromValue<'_> for Vec<i64> {
    const WANTED: &'static str = "an array of integers";

    fn from_value(value: &Value) -> Option<Vec<i64>> {
        match value {
            Value::Array(array) => array.to_i64(),
            _ => None,
        }
    }
}
