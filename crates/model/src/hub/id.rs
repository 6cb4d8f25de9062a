//! Names of repositories.

use std::{fmt, str::FromStr};

use super::{HubError, is_plain};

/// The branch where none is named.
const DEFAULT_REVISION: &str = "main";

/// A repository of Hugging Face: `owner/name`, `owner/name@revision`, `owner/name:file.gguf`, or all of it,
/// `owner/name@revision:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

impl RepoId {
    /// `owner/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The GGUF file, where one is named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Whether `text` is a word of the characters that Hugging Face allows in names.
fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.contains("..")
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<RepoId, HubError> {
        let invalid = |problem| HubError::InvalidId { text: text.to_owned(), problem };
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (rest, None),
        };
        let words = repo.split_once('/').filter(|(owner, name)| is_word(owner) && is_word(name));
        if words.is_none() {
            return Err(invalid("the repository must be owner/name, of letters, digits, '-', '_' and '.'"));
        }
        if revision.is_some_and(|revision| !revision.split('/').all(is_word)) {
            return Err(invalid("the revision must be a branch, a tag or a commit"));
        }
        if file.is_some_and(|file| !is_plain(file) || file.contains('\\') || !file.ends_with(".gguf")) {
            return Err(invalid("the file must be a .gguf file of the repository"));
        }
        Ok(RepoId {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}
