//! What can go wrong on the way to a repository.

use std::{io, path::PathBuf};

/// A repository that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A text that names no repository.
    #[error(
        "{text:?} names no Hugging Face repository: {problem}; owner/name@revision:file.gguf is the full form"
    )]
    InvalidId {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No folder for the cache.
    #[error("{repo}: there is no home folder for the cache; set HF_HOME to a folder")]
    NoCache {
        /// The repository.
        repo: String,
    },
    /// A repository that the cache does not hold, while the network is not to be used.
    #[error("{repo} is not (completely) in the cache {}, and HF_HUB_OFFLINE forbids to download it", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The site refuses.
    #[error("{url}: {what} of {repo}: HTTP status {status}{}", hint(*status))]
    Status {
        /// The repository.
        repo: String,
        /// What was asked for.
        what: String,
        /// The site.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// The site cannot be reached, or answers what it should not.
    #[error("{url}: {what} of {repo}: {message}")]
    Request {
        /// The repository.
        repo: String,
        /// What was asked for.
        what: String,
        /// The site.
        url: String,
        /// What happened.
        message: String,
    },
    /// A download that ended early.
    #[error("{file} of {repo}: the download ended after {got} of {wanted} bytes; try again")]
    Truncated {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// Bytes that the site promised.
        wanted: u64,
        /// Bytes that came.
        got: u64,
    },
    /// A repository without usable weights.
    #[error("{repo} has neither config.json with model.safetensors (or its index) nor a .gguf file")]
    NoWeights {
        /// The repository.
        repo: String,
    },
    /// A repository with several GGUF files and no choice among them.
    #[error("{repo} has several .gguf files; name one as {repo}:FILE, of {}", files.join(", "))]
    SeveralGguf {
        /// The repository.
        repo: String,
        /// Its GGUF files.
        files: Vec<String>,
    },
    /// A file that the repository does not have.
    #[error("{repo} has no file {file:?}; its .gguf files: {}", if files.is_empty() { "none".to_owned() } else { files.join(", ") })]
    NoSuchFile {
        /// The repository.
        repo: String,
        /// The file asked for.
        file: String,
        /// Its GGUF files.
        files: Vec<String>,
    },
    /// An index of shards that cannot be read.
    #[error("{file} of {repo}: {message}")]
    Index {
        /// The repository.
        repo: String,
        /// The index.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What helps against a status.
fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            " (the name may be wrong; a private or gated repository needs HF_TOKEN, set to a token that may read it)"
        }
        404 => " (check the name and the revision; a private repository needs HF_TOKEN)",
        429 => " (too many requests: wait, or set HF_TOKEN)",
        500..=599 => " (the site has a problem: try again later)",
        _ => "",
    }
}
