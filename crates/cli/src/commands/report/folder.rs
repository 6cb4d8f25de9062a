//! A folder that is there whole or not at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mantissa_lab::report;

/// What to do with a report that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone, and fail.
    Keep,
    /// Put the new one in its place.
    ReplaceReport,
}

/// A place where a folder may be written.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    parent: PathBuf,
    name: String,
}

impl Folder {
    /// Sees whether the folder can be written there, and leaves no trace.
    pub fn check(path: &Path, existing: Existing) -> Result<Folder> {
        let name = path.file_name().with_context(|| format!("{} names no folder", path.display()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            bail!("there is no folder {} to put {} into", parent.display(), name.to_string_lossy());
        }
        let (path, parent) = (path.to_owned(), parent.to_owned());
        let folder = Folder { path, parent, name: name.to_string_lossy().into_owned() };
        folder.may_be_replaced(existing)?;
        folder.begin()?;
        Ok(folder)
    }

    fn may_be_replaced(&self, existing: Existing) -> Result<()> {
        let path = self.path.display();
        let mut entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot write the folder {path}")),
        };
        if entries.next().is_none() {
            return Ok(());
        }
        let is_report = report::File::MARKS.iter().all(|name| self.path.join(name).is_file());
        match (is_report, existing) {
            (true, Existing::ReplaceReport) => Ok(()),
            (true, Existing::Keep) => bail!("{path} holds a report: --force replaces it"),
            (false, _) => bail!("{path} has files in it and is no report: name another folder"),
        }
    }

    /// A folder beside the place, which is removed unless it is kept.
    fn begin(&self) -> Result<Partial> {
        let path = self.beside("partial");
        fs::create_dir(&path)
            .with_context(|| format!("cannot write a folder in {}", self.parent.display()))?;
        Ok(Partial(path))
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.parent.join(format!(".{}.{}.{what}", self.name, std::process::id()))
    }

    /// Writes all files beside the place, and moves them there together.
    pub fn write(&self, files: &[report::File]) -> Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        let partial = self.begin()?;
        for file in files {
            let path = partial.0.join(file.name);
            let write = || {
                let mut out = File::create(&path)?;
                out.write_all(&file.content)?;
                out.sync_all()
            };
            write().with_context(failed)?;
        }
        // What is in the way was looked at before the measurements, and may have changed meanwhile.
        self.may_be_replaced(Existing::ReplaceReport)?;
        let old = self.beside("old");
        let replaced = match fs::rename(&self.path, &old) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(failed),
        };
        if let Err(error) = fs::rename(&partial.0, &self.path) {
            if replaced {
                fs::rename(&old, &self.path).with_context(failed)?;
            }
            return Err(error).with_context(failed);
        }
        if replaced { fs::remove_dir_all(&old).with_context(failed) } else { Ok(()) }
    }
}

/// A folder that is removed when it is done with; nothing, where it has been moved away.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone where it was moved; the error that led here, if any, is the one to report.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Vec<report::File> {
        let file = |name| report::File { name, content: text.as_bytes().to_vec() };
        report::File::MARKS.into_iter().map(file).collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn reports_are_written_and_replaced_whole() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("report");
        let folder = Folder::check(&path, Existing::Keep).unwrap();
        assert!(names(parent.path()).is_empty(), "looking leaves no trace");
        folder.write(&files("one")).unwrap();
        assert_eq!(names(parent.path()), ["report"]);
        assert_eq!(names(&path), ["report.json", "report.md"]);
        let error = Folder::check(&path, Existing::Keep).unwrap_err().to_string();
        assert!(error.contains("--force"), "{error}");
        Folder::check(&path, Existing::ReplaceReport).unwrap().write(&files("two")).unwrap();
        assert_eq!(fs::read_to_string(path.join("report.md")).unwrap(), "two");
        assert_eq!(names(parent.path()), ["report"]);
    }

    #[test]
    fn other_folders_are_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("photos");
        fs::create_dir(&path).unwrap();
        let early = Folder::check(&path, Existing::Keep).expect("an empty folder may be used");
        fs::write(path.join("me.jpg"), "x").unwrap();
        for existing in [Existing::Keep, Existing::ReplaceReport] {
            let error = Folder::check(&path, existing).unwrap_err().to_string();
            assert!(error.contains("is no report"), "{error}");
        }
        assert!(early.write(&files("one")).is_err(), "what came in meanwhile stays");
        assert_eq!(names(&path), ["me.jpg"]);
        assert_eq!(names(parent.path()), ["photos"]);
        assert!(Folder::check(&parent.path().join("no/report"), Existing::Keep).is_err());
        assert!(Folder::check(&path.join("me.jpg"), Existing::Keep).is_err());
    }
}
