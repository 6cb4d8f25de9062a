//! Typed access to a JSON object, with errors that name file and key.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// A JSON object of a file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'a Path,
    /// The object's own key, for errors; empty for the file's outermost object.
    name: &'a str,
    map: &'a Map<String, Value>,
}

/// Parses `text` as a JSON object.
pub(super) fn parse(text: &[u8], file: &Path) -> Result<Map<String, Value>, ConfigError> {
    let json = |message| ConfigError::Json { file: file.to_owned(), message };
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(json(format!("holds {}, not an object", show(&other)))),
        Err(error) => {
            // Python's json module writes and reads these; no JSON parser does.
            let python = ["NaN", "Infinity"]
                .into_iter()
                .find(|word| text.windows(word.len()).any(|window| window == word.as_bytes()));
            Err(json(match python {
                Some(word) => format!("not valid JSON: {error} ({word} occurs, which JSON does not have)"),
                None => format!("not valid JSON: {error}"),
            }))
        }
    }
}

/// A value as an error shows it.
fn show(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Fields<'a> {
        Fields { file, name: "", map }
    }

    /// The value, where it is present and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is present, null included.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The key with the names of the objects around it.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn invalid(&self, key: &str, wanted: impl Into<String>, got: impl ToString) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.to_owned(),
            key: self.path(key),
            wanted: wanted.into(),
            got: got.to_string(),
        }
    }

    pub(super) fn missing(&self, key: &str, wanted: impl Into<String>) -> ConfigError {
        ConfigError::Missing { file: self.file.to_owned(), key: self.path(key), wanted: wanted.into() }
    }

    pub(super) fn unsupported(&self, key: &str, got: impl ToString, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_owned(),
            key: self.path(key),
            got: got.to_string(),
            supported: supported.to_owned(),
        }
    }

    /// The value as `read` sees it.
    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.invalid(key, wanted, show(value))),
        }
    }

    /// An integer from 1 to `limit`.
    pub(super) fn size(&self, key: &str, limit: usize) -> Result<Option<usize>, ConfigError> {
        let wanted = format!("an integer from 1 to {limit}");
        self.typed(key, &wanted, |value| {
            let size = usize::try_from(value.as_u64()?).ok()?;
            (1..=limit).contains(&size).then_some(size)
        })
    }

    /// An integer from 1 to `limit` that must be there.
    pub(super) fn require_size(&self, key: &str, limit: usize) -> Result<usize, ConfigError> {
        self.size(key, limit)?.ok_or_else(|| self.missing(key, format!("an integer from 1 to {limit}")))
    }

    /// A non-negative integer.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a non-negative integer", |value| usize::try_from(value.as_u64()?).ok())
    }

    /// A number, 0 excluded.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a positive number", |value| value.as_f64().filter(|&number| number > 0.0))
    }

    pub(super) fn require_positive(&self, key: &str) -> Result<f64, ConfigError> {
        self.positive(key)?.ok_or_else(|| self.missing(key, "a positive number"))
    }

    /// Any number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn object(&self, key: &'a str) -> Result<Option<Fields<'a>>, ConfigError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { file: self.file, name: key, map }))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        self.typed(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A list of positive numbers that must be there.
    pub(super) fn require_positives(&self, key: &str) -> Result<Vec<f64>, ConfigError> {
        const WANTED: &str = "a list of positive numbers";
        let positive = |value: &Value| value.as_f64().filter(|&number| number > 0.0);
        self.typed(key, WANTED, |value| value.as_array()?.iter().map(positive).collect())?
            .ok_or_else(|| self.missing(key, WANTED))
    }

    /// A token id.
    pub(super) fn token(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        self.typed(key, "a token id", |value| value.as_u64()?.try_into().ok())
    }

    /// One token id or a list of them.
    pub(super) fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        let token = |value: &Value| value.as_u64()?.try_into().ok();
        self.typed(key, "a token id or a list of them", |value| match value {
            Value::Array(values) => values.iter().map(token).collect(),
            single => Some(vec![token(single)?]),
        })
    }
}
