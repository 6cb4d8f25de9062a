//! A folder that is written under another name and moved to its place when it is whole.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// What makes a folder a checkpoint: the last file to arrive and the first to go.
pub const CONFIG: &str = "config.json";
/// Weights in one file.
pub const SINGLE: &str = "model.safetensors";
/// The index of weights in several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// What to do with a folder that has files in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// Leave it alone.
    Refuse,
    /// Replace the checkpoint in it; other files stay.
    Replace,
}

/// A folder in the making: dropped unless it is finished.
#[derive(Debug)]
pub struct Staging {
    place: Place,
    /// Where files are written.
    folder: PathBuf,
}

/// Where the files will be.
#[derive(Debug)]
enum Place {
    /// A folder that is not there yet.
    New(PathBuf),
    /// A folder that is, which may be mounted or be the working directory, so that its files are moved one by one.
    Existing(PathBuf),
}

impl Staging {
    /// Begins to make `target`.
    pub fn new(target: &Path, occupied: Occupied) -> Result<Staging> {
        let partial = |name: &OsStr| {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}.partial", std::process::id()));
            hidden
        };
        let (place, folder) = if target.is_dir() {
            let mut entries =
                fs::read_dir(target).with_context(|| format!("cannot read {}", target.display()))?;
            if occupied == Occupied::Refuse && entries.next().is_some() {
                bail!("{} is not empty; --force replaces the checkpoint in it", target.display());
            }
            (Place::Existing(target.to_owned()), target.join(partial(OsStr::new("mantissa"))))
        } else if target.exists() {
            bail!("{} is a file; a checkpoint is a folder", target.display());
        } else {
            let name = target.file_name().with_context(|| format!("{} names no folder", target.display()))?;
            (Place::New(target.to_owned()), target.with_file_name(partial(name)))
        };
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Staging { place, folder })
    }

    /// Where to write the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Moves everything to its place.
    pub fn finish(self) -> Result<()> {
        match &self.place {
            Place::New(target) => fs::rename(&self.folder, target)
                .with_context(|| format!("cannot create {}", target.display())),
            Place::Existing(target) => self.move_into(target),
        }
    }

    fn move_into(&self, target: &Path) -> Result<()> {
        let failed = |path: &Path| format!("cannot replace {}", path.display());
        let mut old = checkpoint_files(target)?;
        old.sort_by_key(|name| name != CONFIG);
        for name in old {
            let path = target.join(name);
            fs::remove_file(&path).with_context(|| failed(&path))?;
        }
        let mut new = checkpoint_files(&self.folder)?;
        new.sort_by_key(|name| name == CONFIG);
        for name in new {
            let path = target.join(&name);
            fs::rename(self.folder.join(&name), &path).with_context(|| failed(&path))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone already where it was moved; otherwise the error that led here is the one to report.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The files in a folder that belong to a checkpoint's configuration and weights.
fn checkpoint_files(folder: &Path) -> Result<Vec<OsString>> {
    let belongs = |name: &str| {
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        shard || [CONFIG, "generation_config.json", SINGLE, INDEX].contains(&name)
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(belongs) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let parent = tempfile::tempdir().unwrap();
        let staging = Staging::new(&parent.path().join("model"), Occupied::Refuse).unwrap();
        fs::write(staging.folder().join(SINGLE), "half").unwrap();
        assert_eq!(names(parent.path()).len(), 1);
        drop(staging);
        assert!(names(parent.path()).is_empty());
    }

    #[test]
    fn a_new_folder_appears_whole() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("deep/model");
        let staging = Staging::new(&target, Occupied::Refuse).unwrap();
        fs::write(staging.folder().join(CONFIG), "{}").unwrap();
        assert!(!target.exists());
        staging.finish().unwrap();
        assert_eq!(names(&target), [CONFIG]);
        assert_eq!(names(&parent.path().join("deep")), ["model"]);
    }

    #[test]
    fn an_occupied_folder_is_refused_or_its_checkpoint_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["notes.txt", CONFIG, "model-00001-of-00002.safetensors", INDEX] {
            fs::write(folder.path().join(name), "old").unwrap();
        }
        let error = Staging::new(folder.path(), Occupied::Refuse).unwrap_err().to_string();
        assert!(error.contains("is not empty") && error.contains("--force"), "{error}");

        let staging = Staging::new(folder.path(), Occupied::Replace).unwrap();
        for name in [CONFIG, SINGLE] {
            fs::write(staging.folder().join(name), "new").unwrap();
        }
        staging.finish().unwrap();
        assert_eq!(names(folder.path()), [CONFIG, SINGLE, "notes.txt"]);
        assert_eq!(fs::read_to_string(folder.path().join(CONFIG)).unwrap(), "new");
        assert_eq!(fs::read_to_string(folder.path().join("notes.txt")).unwrap(), "old");
    }

    #[test]
    fn a_file_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Staging::new(&file, Occupied::Replace).unwrap_err().to_string().contains("is a file"));
    }
}
