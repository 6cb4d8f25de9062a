//! From a kernel's source to a cubin for one architecture, by NVRTC.
//!
//! NVRTC needs no GPU. It is looked for when it is first wanted, by the path given or by the loader's rules; every
//! function used is looked up then, so that nothing is missing later.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::dynamic;
use crate::error::CudaError;
use crate::kernel::KernelSpec;

/// How every kernel is compiled. All that changes numbers is stated: contractions are written in the kernels,
/// subnormals are kept, division and square root are correctly rounded.
pub const FLAGS: [&str; 6] = [
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--ptxas-options=--verbose",
];

/// A compute capability, as the name of the machine code compiled for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Arch {
    /// The oldest one with asynchronous copies and bf16 matrix units.
    pub const OLDEST: Arch = Arch { major: 8, minor: 0 };

    /// The architectures that every kernel must compile for: A100, RTX 40 and L40, H100 and H200, B200, RTX 50.
    pub const CHECKED: [Arch; 5] = [
        Arch::OLDEST,
        Arch { major: 8, minor: 9 },
        Arch { major: 9, minor: 0 },
        Arch { major: 10, minor: 0 },
        Arch { major: 12, minor: 0 },
    ];
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hopper's own instructions need the architecture-specific target.
        let specific = if (self.major, self.minor) == (9, 0) { "a" } else { "" };
        write!(f, "sm_{}{}{specific}", self.major, self.minor)
    }
}

/// Machine code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The cubin.
    pub cubin: Vec<u8>,
    /// What the compiler said, registers and spills among it.
    pub log: String,
}

/// Turns kernels into machine code.
pub trait Compiler: Send + Sync {
    /// The version, as far as it may change the code.
    fn version(&self) -> String;

    /// Compiles a kernel.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the log.
    fn compile(&self, spec: &KernelSpec, source: &str, arch: Arch) -> Result<Compiled, CudaError>;
}

type Program = *mut c_void;
type Status = c_int;

/// NVRTC, loaded.
pub struct Nvrtc {
    functions: Functions,
    version: (c_int, c_int),
    path: PathBuf,
    /// Holds the functions' code.
    _library: Library,
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvrtc")
            .field("version", &self.version)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// NVRTC's functions, by their signatures in `nvrtc.h`.
#[derive(Clone, Copy)]
struct Functions {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
}

/// Where NVRTC is looked for when no path is given: the loader's names, then the toolkit's usual place.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &[
        "libnvrtc.so.13",
        "libnvrtc.so.12",
        "libnvrtc.so",
        "/usr/local/cuda/lib64/libnvrtc.so.13",
        "/usr/local/cuda/lib64/libnvrtc.so.12",
    ]
};

impl Nvrtc {
    /// Loads the library at `path`, or the first that is found.
    ///
    /// # Errors
    /// [`CudaError::NvrtcMissing`] with the places looked at, [`CudaError::Symbol`] where it is another library.
    pub fn load(path: Option<&Path>) -> Result<Nvrtc, CudaError> {
        let (library, path) =
            dynamic::open(path, NAMES).map_err(|looked_for| CudaError::NvrtcMissing { looked_for })?;
        /// Looks a function up under its name in `nvrtc.h`.
        macro_rules! symbol {
            ($symbol:literal) => {
                // SAFETY: the field's type is the function's signature in `nvrtc.h`, unchanged since CUDA 11.1, and
                // the library is kept for as long as the pointer.
                unsafe { dynamic::function(&library, &path, $symbol) }?
            };
        }
        let functions = Functions {
            create: symbol!("nvrtcCreateProgram"),
            destroy: symbol!("nvrtcDestroyProgram"),
            compile: symbol!("nvrtcCompileProgram"),
            cubin_size: symbol!("nvrtcGetCUBINSize"),
            cubin: symbol!("nvrtcGetCUBIN"),
            log_size: symbol!("nvrtcGetProgramLogSize"),
            log: symbol!("nvrtcGetProgramLog"),
            error: symbol!("nvrtcGetErrorString"),
            version: symbol!("nvrtcVersion"),
        };
        let mut version = (0, 0);
        // SAFETY: both pointers are valid for one write.
        unsafe { (functions.version)(&mut version.0, &mut version.1) };
        Ok(Nvrtc { functions, version, path, _library: library })
    }

    /// Major and minor version: that of its CUDA toolkit.
    pub fn toolkit(&self) -> (u32, u32) {
        (self.version.0.unsigned_abs(), self.version.1.unsigned_abs())
    }

    fn message(&self, status: Status) -> String {
        // SAFETY: NVRTC returns a static string for every status.
        unsafe { CStr::from_ptr((self.functions.error)(status)) }.to_string_lossy().into_owned()
    }
}

/// A program of NVRTC's, destroyed when dropped.
struct Owned<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created by the same library and is destroyed once.
        unsafe { (self.functions.destroy)(&mut self.program) };
    }
}

impl Owned<'_> {
    fn log(&self) -> String {
        let mut bytes = Vec::new();
        let mut size = 0;
        // SAFETY: the program lives; the second call writes the `size` bytes that the first one asks for.
        unsafe {
            if (self.functions.log_size)(self.program, &mut size) == 0 {
                bytes.resize(size, 0_u8);
                (self.functions.log)(self.program, bytes.as_mut_ptr().cast());
            }
        }
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, Status> {
        let mut size = 0;
        // SAFETY: the program lives and was compiled.
        let status = unsafe { (self.functions.cubin_size)(self.program, &mut size) };
        if status != 0 {
            return Err(status);
        }
        let mut cubin = vec![0_u8; size];
        // SAFETY: as above; the buffer has the `size` bytes that the library asked for.
        match unsafe { (self.functions.cubin)(self.program, cubin.as_mut_ptr().cast()) } {
            0 => Ok(cubin),
            status => Err(status),
        }
    }
}

impl Compiler for Nvrtc {
    fn version(&self) -> String {
        format!("nvrtc {}.{}", self.version.0, self.version.1)
    }

    fn compile(&self, spec: &KernelSpec, source: &str, arch: Arch) -> Result<Compiled, CudaError> {
        let options: Vec<String> =
            FLAGS.iter().map(ToString::to_string).chain([format!("--gpu-architecture={arch}")]).collect();
        let failure = |log: String| CudaError::Compile {
            kernel: spec.to_string(),
            arch: arch.to_string(),
            options: options.join(" "),
            log,
        };
        let text = |text: &str| CString::new(text).map_err(|error| failure(error.to_string()));
        let (code, name) = (text(source)?, text(&format!("{}.cu", spec.file.name()))?);
        let arguments = options.iter().map(|option| text(option)).collect::<Result<Vec<CString>, _>>()?;
        let pointers: Vec<*const c_char> = arguments.iter().map(|option| option.as_ptr()).collect();
        let none = std::ptr::null();
        let mut program = std::ptr::null_mut();
        // SAFETY: source and name end in zero and outlive the program; there are no headers.
        let status =
            unsafe { (self.functions.create)(&mut program, code.as_ptr(), name.as_ptr(), 0, none, none) };
        if status != 0 {
            return Err(failure(self.message(status)));
        }
        let program = Owned { functions: &self.functions, program };
        // SAFETY: the program lives, and so do the options, which end in zero.
        let status =
            unsafe { (self.functions.compile)(program.program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.log();
        if status != 0 {
            return Err(failure(format!("{}\n{log}", self.message(status))));
        }
        let cubin = program.cubin().map_err(|status| failure(self.message(status)))?;
        Ok(Compiled { cubin, log })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_the_names_of_the_compiler() {
        let names = Arch::CHECKED.map(|arch| arch.to_string());
        assert_eq!(names, ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]);
    }

    #[test]
    fn a_missing_compiler_is_an_error_that_names_it() {
        let error = Nvrtc::load(Some(Path::new("/nowhere/libnvrtc.so"))).unwrap_err();
        assert!(matches!(error, CudaError::NvrtcMissing { .. }));
        assert!(error.to_string().contains("/nowhere/libnvrtc.so"), "{error}");
    }
}
