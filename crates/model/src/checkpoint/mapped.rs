//! Files in the address space: mapped from disk, or part of the program, which the system maps itself.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

/// A file mapped for reading.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Map(Mmap),
    Embedded(&'static [u8]),
}

impl MappedFile {
    /// Maps the file at `path`, to be read mostly from front to back.
    ///
    /// The file must not be changed while it is mapped: its new content would appear in the middle of a read, and
    /// cutting it short would end the process.
    ///
    /// # Errors
    /// Where the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        // SAFETY: the map is only read, as plain bytes. That no other process changes the file meanwhile cannot be
        // enforced; it is documented here and on `Checkpoint::open`, as every program that maps weights requires it.
        let map = unsafe { Mmap::map(&file) }?;
        // A hint for the page cache; where it is refused, reading works all the same.
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(MappedFile { path: path.to_owned(), content: Content::Map(map) })
    }

    /// A file that is part of the program, with the `path` that messages give it.
    pub fn embedded(path: PathBuf, bytes: &'static [u8]) -> MappedFile {
        MappedFile { path, content: Content::Embedded(bytes) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Map(map) => map,
            Content::Embedded(bytes) => bytes,
        }
    }

    /// Lets the pages of `range` leave memory; reading them again brings them back from the file. Does nothing for a
    /// range outside the file, for a part of the program, and on systems without `madvise`.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Content::Map(map) = &self.content
            && range.start < range.end
            && range.end <= map.len()
        {
            // SAFETY: the map is backed by a file, shared and never written through, so a dropped page returns with
            // the same bytes (the file does not change, see `open`) and borrows of it stay valid; `range` lies
            // within the map. The call widens it to whole pages, which is as harmless to the neighbours.
            let _ = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.end - range.start,
                )
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
