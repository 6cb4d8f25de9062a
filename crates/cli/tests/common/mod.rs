//! What the integration tests share.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file or folder under `fixtures/`. The crate's folder is that of the time of the test, not of the build: GPU machines
/// run tests that were built elsewhere.
pub fn fixture(path: &str) -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).join("../../fixtures").join(path)
}

/// A JSON array of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("an array of ids");
    ids.iter().map(|id| u32::try_from(id.as_u64().expect("an id")).expect("an id")).collect()
}
