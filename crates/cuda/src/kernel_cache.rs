//! Compiled kernels on disk, by content.
//!
//! A file is named by the hash of everything that the machine code depends on: source, flags, the compiler's version
//! and the architecture. It states that hash again, and one of the code, so that a damaged, shortened or foreign file
//! is seen, and compiled anew.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::compile::{Arch, Compiler, FLAGS};
use crate::error::CudaError;
use crate::kernel::KernelSpec;

/// The first bytes of a file; the number changes with its layout.
const MAGIC: &[u8; 16] = b"mantissa cubin 1";
const HASH: usize = 32;

/// Compiled kernels on disk, or none.
#[derive(Clone, Debug, Default)]
pub struct KernelCache {
    directory: Option<PathBuf>,
}

type Hash = [u8; HASH];

impl KernelCache {
    /// A cache in this directory, which is made when something is stored.
    pub fn new(directory: impl Into<PathBuf>) -> KernelCache {
        KernelCache { directory: Some(directory.into()) }
    }

    /// No cache: every kernel is compiled.
    pub fn none() -> KernelCache {
        KernelCache::default()
    }

    /// The machine code of a kernel, from disk or compiled.
    ///
    /// A cache that cannot be written is no error: the kernel is there, only compiled again next time.
    ///
    /// # Errors
    /// Where the kernel does not compile.
    pub fn cubin(
        &self,
        spec: &KernelSpec,
        arch: Arch,
        compiler: &dyn Compiler,
    ) -> Result<Vec<u8>, CudaError> {
        let source = spec.source();
        let key = key(&source, arch, &compiler.version());
        let path = self.directory.as_ref().map(|directory| directory.join(file_name(&key)));
        if let Some(cubin) = path.as_deref().and_then(|path| read(path, &key)) {
            return Ok(cubin);
        }
        let cubin = compiler.compile(spec, &source, arch)?.cubin;
        if let Some(path) = path {
            // See above: the next process compiles again.
            let _ = write(&path, &key, &cubin);
        }
        Ok(cubin)
    }
}

/// The hash of all that machine code depends on. Each part is preceded by its length, so that no two lists of parts
/// give the same bytes.
fn key(source: &str, arch: Arch, version: &str) -> Hash {
    let arch = arch.to_string();
    let mut hasher = Sha256::new();
    for part in FLAGS.iter().copied().chain([source, &arch, version]) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

fn file_name(key: &Hash) -> String {
    let mut name = String::with_capacity(2 * HASH + 6);
    for byte in key {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.push_str(".cubin");
    name
}

/// The code in a file, if it is whole and belongs to the key.
fn read(path: &Path, key: &Hash) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?.strip_prefix(key)?;
    let (checksum, cubin) = rest.split_at_checked(HASH)?;
    (Sha256::digest(cubin).as_slice() == checksum).then(|| cubin.to_vec())
}

/// Writes beside the file and renames, so that a reader sees all of it or nothing.
fn write(path: &Path, key: &Hash, cubin: &[u8]) -> std::io::Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(MAGIC)?;
    file.write_all(key)?;
    file.write_all(&Sha256::digest(cubin))?;
    file.write_all(cubin)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use mantissa_numerics::Format;

    use super::*;
    use crate::compile::Compiled;
    use crate::kernel::{Alias, SourceFile};

    /// Its code is the source's length and its version.
    struct Fake {
        version: &'static str,
        compiled: AtomicUsize,
    }

    impl Fake {
        fn new(version: &'static str) -> Fake {
            Fake { version, compiled: AtomicUsize::new(0) }
        }

        fn count(&self) -> usize {
            self.compiled.load(Ordering::Relaxed)
        }
    }

    impl Compiler for Fake {
        fn version(&self) -> String {
            self.version.to_owned()
        }

        fn compile(&self, spec: &KernelSpec, source: &str, arch: Arch) -> Result<Compiled, CudaError> {
            self.compiled.fetch_add(1, Ordering::Relaxed);
            let cubin = format!("{spec} {} {arch} {}", source.len(), self.version).into_bytes();
            Ok(Compiled { cubin, log: String::new() })
        }
    }

    fn spec(format: Format) -> KernelSpec {
        KernelSpec { file: SourceFile::Norm, entry: "rms_norm", aliases: vec![Alias::format("A", format)] }
    }

    fn only_file(directory: &Path) -> PathBuf {
        let files: Vec<PathBuf> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        files[0].clone()
    }

    #[test]
    fn a_kernel_is_compiled_once_for_everything_that_it_depends_on() {
        let directory = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(directory.path().join("made"));
        let fake = Fake::new("1");
        let first = cache.cubin(&spec(Format::F16), Arch::OLDEST, &fake).unwrap();
        assert_eq!(cache.cubin(&spec(Format::F16), Arch::OLDEST, &fake).unwrap(), first);
        assert_eq!(fake.count(), 1);

        cache.cubin(&spec(Format::Bf16), Arch::OLDEST, &fake).unwrap();
        cache.cubin(&spec(Format::F16), Arch { major: 9, minor: 0 }, &fake).unwrap();
        assert_eq!(fake.count(), 3);
        let newer = Fake::new("2");
        assert_ne!(cache.cubin(&spec(Format::F16), Arch::OLDEST, &newer).unwrap(), first);
        assert_eq!(newer.count(), 1);
    }

    #[test]
    fn damaged_and_foreign_files_are_compiled_anew() {
        let directory = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(directory.path());
        let fake = Fake::new("1");
        let wanted = cache.cubin(&spec(Format::F16), Arch::OLDEST, &fake).unwrap();
        let path = only_file(directory.path());
        let whole = std::fs::read(&path).unwrap();

        let mut damages: Vec<Vec<u8>> =
            vec![Vec::new(), whole[..whole.len() - 1].to_vec(), b"other".to_vec()];
        for place in [0, MAGIC.len(), MAGIC.len() + HASH, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            damages.push(flipped);
        }
        damages.push([whole.as_slice(), b"more"].concat());
        for (index, damage) in damages.iter().enumerate() {
            std::fs::write(&path, damage).unwrap();
            assert_eq!(cache.cubin(&spec(Format::F16), Arch::OLDEST, &fake).unwrap(), wanted);
            assert_eq!(fake.count(), index + 2, "damage {index}");
            assert_eq!(std::fs::read(&path).unwrap(), whole, "damage {index} is repaired");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = KernelCache::new(file.path());
        let fake = Fake::new("1");
        for _ in 0..2 {
            cache.cubin(&spec(Format::F32), Arch::OLDEST, &fake).unwrap();
        }
        assert_eq!(fake.count(), 2);
        KernelCache::none().cubin(&spec(Format::F32), Arch::OLDEST, &fake).unwrap();
        assert_eq!(fake.count(), 3);
    }
}
