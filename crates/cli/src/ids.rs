//! Token ids on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Token ids, written out or in a file.
#[derive(Clone, Debug, clap::Args)]
#[group(required = false, multiple = false)]
pub struct IdsArgs {
    /// Token ids, such as 1,2,3
    #[arg(long, value_name = "IDS", value_parser = parse)]
    pub ids: Option<Ids>,

    /// File with a JSON array of token ids
    #[arg(long, value_name = "FILE")]
    pub ids_file: Option<PathBuf>,
}

/// A list of token ids; a type of its own, because clap takes a `Vec` for an option that may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids(pub Vec<u32>);

impl IdsArgs {
    /// The ids, if any were given.
    pub fn read(&self) -> Result<Option<Vec<u32>>> {
        match (&self.ids, &self.ids_file) {
            (Some(ids), _) => Ok(Some(ids.0.clone())),
            (None, Some(path)) => read_file(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON array of token ids", path.display()))
}

fn parse(text: &str) -> Result<Ids, String> {
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    let ids = words.map(|word| {
        word.parse().map_err(|_| format!("\"{word}\" is no token id, which is a number from 0 up"))
    });
    ids.collect::<Result<Vec<u32>, String>>().map(Ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_with_commas_and_spaces() {
        assert_eq!(parse("1,2, 3"), Ok(Ids(vec![1, 2, 3])));
        assert_eq!(parse(""), Ok(Ids(Vec::new())));
    }

    #[test]
    fn what_is_no_id_is_named() {
        assert!(parse("1,-2").is_err_and(|message| message.contains("\"-2\"")));
        assert!(parse("4294967296").is_err_and(|message| message.contains("4294967296")));
    }
}
