//! What the integration tests share.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file or folder under `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// A JSON array of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("an array of ids");
    ids.iter().map(|id| u32::try_from(id.as_u64().expect("an id")).expect("an id")).collect()
}
