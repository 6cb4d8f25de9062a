//! Downloads of one snapshot, through `hf-hub`.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};

use super::{DownloadProgress, HubError, HubSettings, RepoId, is_plain, repo};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// One commit of a repository, whose files can be downloaded into the cache.
pub(super) struct Downloader<'a> {
    id: &'a RepoId,
    cache: &'a Cache,
    endpoint: String,
    commit: String,
    /// The snapshot, by commit.
    snapshot: ApiRepo,
    files: BTreeSet<String>,
    progress: &'a dyn DownloadProgress,
}

impl<'a> Downloader<'a> {
    /// Looks up the commit of the repository's revision, and its files.
    pub(super) fn new(
        cache: &'a Cache,
        id: &'a RepoId,
        settings: &HubSettings,
        progress: &'a dyn DownloadProgress,
    ) -> Result<Downloader<'a>, HubError> {
        let endpoint = settings.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/');
        let what = "the list of files";
        let failed = |error| translate(error, id, what, endpoint);
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.to_owned())
            .with_token(settings.token.clone().or_else(|| cache.token()))
            .with_progress(false)
            .build()
            .map_err(failed)?;
        let info = api.repo(repo(id, id.revision())).info().map_err(failed)?;
        // The commit becomes a folder's name.
        if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(HubError::Request {
                repo: id.repo().to_owned(),
                what: what.to_owned(),
                url: endpoint.to_owned(),
                message: format!("the site names the commit {:?}, which is none", info.sha),
            });
        }
        Ok(Downloader {
            id,
            cache,
            endpoint: endpoint.to_owned(),
            snapshot: api.repo(repo(id, &info.sha)),
            commit: info.sha,
            // Names that leave the folder are none that a model needs.
            files: info
                .siblings
                .into_iter()
                .map(|file| file.rfilename)
                .filter(|name| is_plain(name))
                .collect(),
            progress,
        })
    }

    /// The repository, for errors.
    pub(super) fn name(&self) -> String {
        self.id.repo().to_owned()
    }

    /// Whether the snapshot has `file`.
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.contains(file)
    }

    /// The files of the snapshot.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(String::as_str)
    }

    /// Downloads `file` where the cache does not have it, and returns its path there.
    pub(super) fn download(&self, file: &str) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cache.repo(self.commit_repo()).get(file) {
            return Ok(path);
        }
        let wanted = Cell::new(None);
        let watch = Watch { progress: self.progress, wanted: &wanted };
        let path = self
            .snapshot
            .download_with_progress(file, watch)
            .map_err(|error| translate(error, self.id, file, &self.endpoint))?;
        self.progress.finish();
        // A connection that closes early looks like the end of the file to hf-hub.
        let got = fs::metadata(&path).map_err(|source| HubError::Cache { path: path.clone(), source })?.len();
        match wanted.get() {
            Some(wanted) if got < wanted => {
                remove(&path)?;
                Err(HubError::Truncated { repo: self.name(), file: file.to_owned(), wanted, got })
            }
            _ => Ok(path),
        }
    }

    /// Writes down in the cache which commit the revision is. Called last, so that the revision in the cache always
    /// names a complete snapshot.
    pub(super) fn remember_revision(&self) -> Result<(), HubError> {
        self.cache
            .repo(repo(self.id, self.id.revision()))
            .create_ref(&self.commit)
            .map_err(|source| HubError::Cache { path: self.cache.path().to_owned(), source })
    }

    fn commit_repo(&self) -> Repo {
        repo(self.id, &self.commit)
    }
}

/// Removes a file of a snapshot and the blob that it links to.
fn remove(path: &Path) -> Result<(), HubError> {
    let blob = fs::canonicalize(path);
    let removed = fs::remove_file(path).and_then(|()| match blob {
        Ok(blob) if blob != path => fs::remove_file(blob),
        _ => Ok(()),
    });
    removed.map_err(|source| HubError::Cache { path: path.to_owned(), source })
}

/// Passes hf-hub's progress on, and keeps the size that the site promised.
struct Watch<'a> {
    progress: &'a dyn DownloadProgress,
    wanted: &'a Cell<Option<u64>>,
}

impl Progress for Watch<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        // hf-hub says so twice for each file.
        if self.wanted.replace(Some(size as u64)).is_none() {
            self.progress.start(filename, size as u64);
        }
    }

    fn update(&mut self, size: usize) {
        self.progress.advance(size as u64);
    }

    fn finish(&mut self) {}
}

fn translate(error: ApiError, id: &RepoId, what: &str, endpoint: &str) -> HubError {
    let (repo, what, url) = (id.repo().to_owned(), what.to_owned(), endpoint.to_owned());
    if let ApiError::RequestError(request) = &error
        && let ureq::Error::StatusCode(status) = **request
    {
        return HubError::Status { repo, what, url, status };
    }
    let message = match error {
        ApiError::RequestError(request) => request.to_string(),
        ApiError::LockAcquisition(lock) => {
            format!("another process is downloading it ({} is locked)", lock.display())
        }
        other => other.to_string(),
    };
    HubError::Request { repo, what, url, message }
}
