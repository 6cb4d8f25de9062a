//! Checkpoints from Hugging Face: downloads what a model needs into the cache that all Hugging Face tools share.
//!
//! Everything goes through the `hf-hub` crate. The snapshot's commit is looked up once and pinned for all files, the
//! branch's entry in the cache is written last; so a snapshot that the cache knows by its branch is complete, and is
//! used without asking the network.

mod download;
mod error;
mod id;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use download::Downloader;
pub use error::HubError;
pub use id::RepoId;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Small files that a model may have, besides its weights.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// How to reach Hugging Face. The library reads no environment: its caller fills this in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubSettings {
    /// The site, where it is not `https://huggingface.co` (`HF_ENDPOINT`).
    pub endpoint: Option<String>,
    /// The folder that holds the cache, `hub`, and perhaps a `token` (`HF_HOME`).
    pub cache_home: Option<PathBuf>,
    /// An access token; without one, the file `token` is used where it exists (`HF_TOKEN`).
    pub token: Option<String>,
    /// Whether to use the cache alone (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

/// Is told how far downloads are. Files come one after another.
pub trait DownloadProgress {
    /// The download of `file`, `bytes` long, starts.
    fn start(&self, file: &str, bytes: u64);
    /// Another `bytes` bytes of it are there.
    fn advance(&self, bytes: u64);
    /// It is complete.
    fn finish(&self);
}

/// Progress that nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDownloadProgress;

impl DownloadProgress for NoDownloadProgress {
    fn start(&self, _file: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}

/// Which shard holds which tensor; only the shards matter here.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The checkpoint `id` in the cache, downloaded where it is not there: a folder, or a GGUF file.
///
/// # Errors
/// [`HubError`] naming the repository and the file.
pub fn fetch(
    id: &RepoId,
    settings: &HubSettings,
    progress: &dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    let home = settings.cache_home.as_ref().ok_or_else(|| HubError::NoCache { repo: id.to_string() })?;
    // The folders of a snapshot link to each other by relative paths, which hf-hub makes from absolute ones alone.
    let home =
        std::path::absolute(home).map_err(|source| HubError::Cache { path: home.to_owned(), source })?;
    let cache = Cache::new(home.join("hub"));
    if let Some(path) = cached(&cache, id) {
        return Ok(path);
    }
    if settings.offline {
        return Err(HubError::Offline { repo: id.to_string(), cache: cache.path().to_owned() });
    }
    let downloader = Downloader::new(&cache, id, settings, progress)?;
    let path = match id.file() {
        Some(file) => download_file(&downloader, file),
        None => download_model(&downloader),
    }?;
    downloader.remember_revision()?;
    Ok(path)
}

/// The checkpoint in the cache, where all of it is there.
fn cached(cache: &Cache, id: &RepoId) -> Option<PathBuf> {
    let repo = cache.repo(repo(id, id.revision()));
    if let Some(file) = id.file() {
        return repo.get(file);
    }
    let Some(config) = repo.get(CONFIG) else { return cached_gguf(cache, id) };
    let complete = match repo.get(INDEX) {
        _ if repo.get(SINGLE).is_some() => true,
        Some(index) => {
            shards(&index).is_ok_and(|shards| shards.iter().all(|shard| repo.get(shard).is_some()))
        }
        None => false,
    };
    complete.then(|| config.parent().map(Path::to_owned)).flatten()
}

/// The only GGUF file of a cached snapshot without `config.json`.
fn cached_gguf(cache: &Cache, id: &RepoId) -> Option<PathBuf> {
    let folder = cache.path().join(repo(id, id.revision()).folder_name());
    let commit = fs::read_to_string(folder.join("refs").join(id.revision())).ok()?;
    let files = fs::read_dir(folder.join("snapshots").join(commit)).ok()?;
    let mut found = files.filter_map(|file| file.ok().map(|file| file.path())).filter(|path| is_gguf(path));
    let only = found.next()?;
    found.next().is_none().then_some(only)
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}

fn repo(id: &RepoId, revision: &str) -> Repo {
    Repo::with_revision(id.repo().to_owned(), RepoType::Model, revision.to_owned())
}

fn download_file(downloader: &Downloader<'_>, file: &str) -> Result<PathBuf, HubError> {
    if !downloader.has(file) {
        let files = downloader.files().filter(|file| is_gguf(Path::new(file))).map(str::to_owned).collect();
        return Err(HubError::NoSuchFile { repo: downloader.name(), file: file.to_owned(), files });
    }
    downloader.download(file)
}

fn download_model(downloader: &Downloader<'_>) -> Result<PathBuf, HubError> {
    let has_weights = downloader.has(SINGLE) || downloader.has(INDEX);
    if !(has_weights && downloader.has(CONFIG)) {
        return download_only_gguf(downloader);
    }
    let config = downloader.download(CONFIG)?;
    for file in OPTIONAL.into_iter().filter(|file| downloader.has(file)) {
        downloader.download(file)?;
    }
    if downloader.has(SINGLE) {
        downloader.download(SINGLE)?;
    } else {
        let index = downloader.download(INDEX)?;
        let shards = shards(&index).map_err(|message| HubError::Index {
            repo: downloader.name(),
            file: INDEX,
            message,
        })?;
        for shard in shards {
            downloader.download(&shard)?;
        }
    }
    Ok(config.parent().map(Path::to_owned).unwrap_or_default())
}

fn download_only_gguf(downloader: &Downloader<'_>) -> Result<PathBuf, HubError> {
    let files: Vec<&str> = downloader.files().filter(|file| is_gguf(Path::new(file))).collect();
    match files[..] {
        [] => Err(HubError::NoWeights { repo: downloader.name() }),
        [file] => downloader.download(file),
        _ => Err(HubError::SeveralGguf {
            repo: downloader.name(),
            files: files.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// The shards that an index names, each a plain path within the repository.
fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let text = fs::read(index).map_err(|error| error.to_string())?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_plain(shard)) {
        Some(shard) => Err(format!("{shard:?} is no file name within the repository")),
        None => Ok(shards),
    }
}

/// Whether a path stays within the folder that it is joined to.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}
