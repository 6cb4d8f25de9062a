//! Where a model lies: on disk, or within the program itself. Whatever reads a file of a model folder reads it through
//! [`Location`], so that both kinds behave alike.

use std::{
    borrow::Cow,
    fmt, fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use crate::checkpoint::MappedFile;

/// Where a model lies. Paths of any kind convert into it, and so does an [`EmbeddedFolder`].
#[derive(Clone, Debug)]
pub enum Location {
    /// A Hugging Face folder or a `.gguf` file on disk.
    Path(PathBuf),
    /// A Hugging Face folder within the program.
    Embedded(EmbeddedFolder),
}

/// A Hugging Face folder that was compiled into the program, file by file.
#[derive(Clone, Copy)]
pub struct EmbeddedFolder {
    /// What the model is called.
    pub name: &'static str,
    /// Names and contents of the files; no folders within the folder.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl fmt::Debug for EmbeddedFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.files.iter().map(|(name, _)| name);
        // Not the contents, which are weights.
        write!(f, "EmbeddedFolder {{ name: {:?}, files: ", self.name)?;
        f.debug_list().entries(names).finish()?;
        f.write_str(" }")
    }
}

impl<P: AsRef<Path>> From<P> for Location {
    fn from(path: P) -> Location {
        Location::Path(path.as_ref().to_owned())
    }
}

impl From<EmbeddedFolder> for Location {
    fn from(folder: EmbeddedFolder) -> Location {
        Location::Embedded(folder)
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Location {
        location.clone()
    }
}

/// The path, or the name with the words "(built in)".
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Path(path) => path.display().fmt(f),
            Location::Embedded(folder) => write!(f, "{} (built in)", folder.name),
        }
    }
}

impl Location {
    /// The path, or what stands in its place in messages: `mantissa-tiny (built in)`.
    pub fn path(&self) -> Cow<'_, Path> {
        match self {
            Location::Path(path) => Cow::Borrowed(path),
            Location::Embedded(_) => Cow::Owned(PathBuf::from(self.to_string())),
        }
    }

    /// The path of a file of the folder, or what stands in its place in messages:
    /// `mantissa-tiny (built in)/config.json`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Whether the folder has this file.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Location::Path(folder) => folder.join(name).is_file(),
            Location::Embedded(folder) => folder.content(name).is_ok(),
        }
    }

    /// The content of a file of the folder.
    ///
    /// # Errors
    /// Where it cannot be read; [`ErrorKind::NotFound`] where there is none.
    pub fn read(&self, name: &str) -> io::Result<Cow<'static, [u8]>> {
        match self {
            Location::Path(folder) => fs::read(folder.join(name)).map(Cow::Owned),
            Location::Embedded(folder) => folder.content(name).map(Cow::Borrowed),
        }
    }

    /// A file of the folder, mapped: its content is read when it is looked at.
    ///
    /// # Errors
    /// As [`Location::read`].
    pub fn map(&self, name: &str) -> io::Result<MappedFile> {
        match self {
            Location::Path(folder) => MappedFile::open(&folder.join(name)),
            Location::Embedded(folder) => Ok(MappedFile::embedded(self.file(name), folder.content(name)?)),
        }
    }
}

impl EmbeddedFolder {
    fn content(&self, name: &str) -> io::Result<&'static [u8]> {
        let found = self.files.iter().find(|(file, _)| *file == name);
        found.map(|&(_, content)| content).ok_or_else(|| ErrorKind::NotFound.into())
    }
}
