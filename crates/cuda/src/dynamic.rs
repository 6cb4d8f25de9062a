//! Libraries that are looked for at run time: nothing of CUDA is needed to build.

use std::path::{Path, PathBuf};

use libloading::Library;

use crate::error::CudaError;

/// Loads the library at `path`, or the first of `names` that the loader finds.
///
/// # Errors
/// The places looked at, in words.
pub(crate) fn open(path: Option<&Path>, names: &[&str]) -> Result<(Library, PathBuf), String> {
    let candidates: Vec<PathBuf> = match path {
        Some(path) => vec![path.to_owned()],
        None => names.iter().map(PathBuf::from).collect(),
    };
    let mut tried = Vec::new();
    for candidate in candidates {
        // SAFETY: the initialisers of NVIDIA's libraries touch nothing of this process; a path given is the user's to
        // vouch for.
        match unsafe { Library::new(&candidate) } {
            Ok(library) => return Ok((library, candidate)),
            Err(error) => tried.push(match path {
                // The loader's reason says more than the name where there was only one.
                Some(path) => format!("{} ({error})", path.display()),
                None => candidate.display().to_string(),
            }),
        }
    }
    Err(tried.join(", "))
}

/// A function of a library, by its name.
///
/// # Safety
/// `T` is a pointer to a function of the signature that the library's header states, and is not used after the library
/// has gone.
///
/// # Errors
/// [`CudaError::Symbol`] where the library does not have it.
pub(crate) unsafe fn function<T: Copy>(
    library: &Library,
    path: &Path,
    name: &'static str,
) -> Result<T, CudaError> {
    // SAFETY: the caller answers for the type.
    let found = unsafe { library.get::<T>(name) }.map(|found| *found);
    found.map_err(|error| {
        let (library, message) = (path.display().to_string(), error.to_string());
        CudaError::Symbol { library, name, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_for_is_told() {
        let missing = open(None, &["libnowhere.so.1", "libnowhere.so"]).unwrap_err();
        assert_eq!(missing, "libnowhere.so.1, libnowhere.so");
        let missing = open(Some(Path::new("/nowhere/lib.so")), &["libnowhere.so"]).unwrap_err();
        assert!(missing.starts_with("/nowhere/lib.so ("), "{missing}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn another_library_is_told_by_what_it_lacks() {
        let (library, path) = open(None, &["libc.so.6"]).unwrap();
        // SAFETY: the function does not exist, so that no pointer is made.
        let found = unsafe { function::<unsafe extern "C" fn()>(&library, &path, "nvrtcVersion") };
        assert!(matches!(found, Err(CudaError::Symbol { name: "nvrtcVersion", .. })), "{found:?}");
    }
}
