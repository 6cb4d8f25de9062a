//! cuBLASLt, NVIDIA's matrix library: looked for and loaded when it is asked for, like NVRTC.
//!
//! Its promise is [`Order::Library`](mantissa_numerics::contract::Order): the same bits for the same shapes, device and
//! version, but other bits for a row in another batch. Numbers that can be stated are stated: sums are f32; f32 operands
//! are multiplied as such, never as TF32 or in emulation; partial sums are added in f32 in a fixed order, never through
//! the format of the result.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;
use mantissa_numerics::Format;

use crate::device::{Device, DeviceBuffer, Stream};
use crate::dynamic;
use crate::error::CudaError;
use crate::families::library::WORKSPACE;

type Status = c_int;
type Pointer = *mut c_void;
/// Sets an attribute of an object from so many bytes.
type SetAttribute = unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> Status;
type Destroy = unsafe extern "C" fn(Pointer) -> Status;

/// The functions, by their signatures in `cublasLt.h`.
#[derive(Clone, Copy)]
struct Functions {
    create: unsafe extern "C" fn(*mut Pointer) -> Status,
    destroy: Destroy,
    version: unsafe extern "C" fn() -> usize,
    status: unsafe extern "C" fn(Status) -> *const c_char,
    create_product: unsafe extern "C" fn(*mut Pointer, c_int, c_int) -> Status,
    set_product: SetAttribute,
    destroy_product: Destroy,
    create_layout: unsafe extern "C" fn(*mut Pointer, c_int, u64, u64, i64) -> Status,
    destroy_layout: Destroy,
    create_preference: unsafe extern "C" fn(*mut Pointer) -> Status,
    set_preference: SetAttribute,
    destroy_preference: Destroy,
    heuristic: unsafe extern "C" fn(
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    multiply: unsafe extern "C" fn(
        Pointer,
        Pointer,
        *const f32,
        *const c_void,
        Pointer,
        *const c_void,
        Pointer,
        *const f32,
        *const c_void,
        Pointer,
        Pointer,
        Pointer,
        *const Algorithm,
        Pointer,
        usize,
        Pointer,
    ) -> Status,
}

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

// Values of the enums of `cublasLt.h` and `library_types.h`, which its binary interface fixes.
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_PEDANTIC: c_int = 69;
const PRODUCT_TRANSPOSE_A: c_int = 3;
const TRANSPOSE: i32 = 1;
const PREFERENCE_WORKSPACE: c_int = 1;
const PREFERENCE_REDUCTIONS: c_int = 3;
const PREFERENCE_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
/// Partial sums meet in a workspace in the type of the sums, one after the other.
const REDUCTION_COMPUTE_TYPE: u32 = 2;

/// Every row and matrix starts at a multiple of this.
const ALIGNMENT: u32 = 16;

/// A format's `cudaDataType_t`.
fn data_type(format: Format) -> Option<c_int> {
    match format {
        Format::F32 => Some(0),
        Format::F16 => Some(2),
        Format::Bf16 => Some(14),
        Format::F8E4M3 | Format::F8E5M2 | Format::F4E2M1 => None,
    }
}

/// The shape of a product: `out[row][feature] = alpha * sum over k of weights[feature][k] * input[row][k] +
/// addend[row][feature]`. Strides in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Gemm {
    pub operands: Format,
    pub out: Format,
    pub rows: usize,
    pub features: usize,
    pub columns: usize,
    pub weight_stride: usize,
    pub input_stride: usize,
    /// That of `out` where there is no addend.
    pub addend_stride: usize,
    pub out_stride: usize,
}

/// Addresses of a product, and its factor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub weights: u64,
    pub input: u64,
    /// In the format of `out`; may be `out`.
    pub addend: Option<u64>,
    pub out: u64,
    pub alpha: f32,
}

/// Where the library is looked for when no path is given.
const NAMES: &[&str] = if cfg!(windows) {
    &["cublasLt64_13.dll", "cublasLt64_12.dll"]
} else {
    &[
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "/usr/local/cuda/lib64/libcublasLt.so.13",
        "/usr/local/cuda/lib64/libcublasLt.so.12",
    ]
};

/// The library, loaded, with a handle for one device.
pub(crate) struct CublasLt {
    functions: Functions,
    handle: Pointer,
    path: PathBuf,
    /// The algorithm of every shape that was multiplied.
    prepared: Mutex<HashMap<Gemm, Arc<Prepared>>>,
    device: Device,
    /// Holds the functions' code.
    _library: Library,
}

// SAFETY: the library's functions may be called with one handle from several threads at the same time.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CublasLt")
            .field("path", &self.path)
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { (self.functions.destroy)(self.handle) };
        }
    }
}

impl CublasLt {
    /// Loads the library at `path`, or the first that is found, for a device.
    ///
    /// # Errors
    /// [`CudaError::CublasLtMissing`] with the places looked at, [`CudaError::Symbol`] where it is another library.
    pub fn load(path: Option<&Path>, device: &Device) -> Result<CublasLt, CudaError> {
        let (library, path) =
            dynamic::open(path, NAMES).map_err(|looked_for| CudaError::CublasLtMissing { looked_for })?;
        let functions = functions(&library, &path)?;
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is valid for one write, and a context is current.
        let status = unsafe { (functions.create)(&mut handle) };
        functions.check(status, "starting")?;
        let (prepared, device) = (Mutex::default(), device.clone());
        Ok(CublasLt { functions, handle, path, prepared, device, _library: library })
    }

    /// Its version: with the device and a shape, what its order of sums follows from.
    pub fn version(&self) -> String {
        // SAFETY: the function takes nothing and changes nothing.
        version_text(unsafe { (self.functions.version)() })
    }

    /// Chooses the algorithm of a shape, once.
    ///
    /// # Errors
    /// Where the library has none.
    pub fn prepare(&self, gemm: &Gemm) -> Result<Arc<Prepared>, CudaError> {
        // A panic while the lock is held leaves a map of whole entries.
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = prepared.get(gemm) {
            return Ok(Arc::clone(known));
        }
        let new = Arc::new(Prepared::new(self, gemm)?);
        prepared.insert(*gemm, Arc::clone(&new));
        Ok(new)
    }

    /// Multiplies.
    ///
    /// # Safety
    /// The addresses are those of device memory of the shape that `gemm` describes, each a multiple of 16, as is every
    /// row, and live until the stream is synchronized; so does the workspace, which nothing else uses on another stream.
    ///
    /// # Errors
    /// Where the library has no algorithm, or the device is lost.
    pub unsafe fn multiply(
        &self,
        gemm: &Gemm,
        operands: &Operands,
        workspace: &DeviceBuffer,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        if gemm.rows == 0 {
            return Ok(());
        }
        let prepared = self.prepare(gemm)?;
        let Operands { weights, input, addend, out, alpha } = *operands;
        let beta = if addend.is_some() { 1.0 } else { 0.0 };
        let pointer = |address: u64| address as usize as *mut c_void;
        // SAFETY: descriptors and algorithm were made for each other, factors are f32 of the host as they say; the caller
        // answers for the memory. With a factor of zero the addend is not read.
        let status = unsafe {
            (self.functions.multiply)(
                self.handle,
                prepared.product.object,
                &alpha,
                pointer(weights),
                prepared.weights.object,
                pointer(input),
                prepared.input.object,
                &beta,
                pointer(addend.unwrap_or(out)),
                prepared.addend.object,
                pointer(out),
                prepared.out.object,
                &prepared.algorithm,
                pointer(workspace.address()),
                workspace.bytes(),
                stream.raw().cast(),
            )
        };
        self.functions.check(status, "multiplying")
    }
}

/// A shape's descriptions and algorithm.
pub(crate) struct Prepared {
    product: Object,
    weights: Object,
    input: Object,
    addend: Object,
    out: Object,
    algorithm: Algorithm,
}

// SAFETY: descriptions are plain memory of the library, which multiplying only reads.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

/// A description, destroyed when dropped.
struct Object {
    object: Pointer,
    destroy: Destroy,
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: created once by the same library, which the session keeps loaded, and destroyed once.
        let _ = unsafe { (self.destroy)(self.object) };
    }
}

impl Prepared {
    fn new(library: &CublasLt, gemm: &Gemm) -> Result<Prepared, CudaError> {
        let functions = &library.functions;
        // By columns, as the library sees memory, a row of ours is a column: weights are transposed, and features come
        // first in the result.
        let product = functions.product(gemm.operands)?;
        let weights = functions.layout(gemm.operands, [gemm.columns, gemm.features], gemm.weight_stride)?;
        let input = functions.layout(gemm.operands, [gemm.columns, gemm.rows], gemm.input_stride)?;
        let addend = functions.layout(gemm.out, [gemm.features, gemm.rows], gemm.addend_stride)?;
        let out = functions.layout(gemm.out, [gemm.features, gemm.rows], gemm.out_stride)?;
        let preference = functions.preference()?;
        let mut found = MaybeUninit::<Heuristic>::uninit();
        let mut count = 0;
        // SAFETY: all objects live; there is room for the one result asked for.
        let status = unsafe {
            (functions.heuristic)(
                library.handle,
                product.object,
                weights.object,
                input.object,
                addend.object,
                out.object,
                preference.object,
                1,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        let none =
            || CudaError::CublasLt { during: "choosing an algorithm", message: format!("none for {gemm:?}") };
        functions.check(status, "choosing an algorithm")?;
        if count < 1 {
            return Err(none());
        }
        // SAFETY: the library says that it wrote one result.
        let found = unsafe { found.assume_init() };
        functions.check(found.state, "choosing an algorithm")?;
        Ok(Prepared { product, weights, input, addend, out, algorithm: found.algorithm })
    }
}

fn functions(library: &Library, path: &Path) -> Result<Functions, CudaError> {
    /// Looks a function up under its name in `cublasLt.h`.
    macro_rules! symbol {
        ($symbol:literal) => {
            // SAFETY: the field's type is the function's signature in `cublasLt.h`, unchanged since CUDA 11.4, and the
            // library is kept for as long as the pointer.
            unsafe { dynamic::function(library, path, $symbol) }?
        };
    }
    Ok(Functions {
        create: symbol!("cublasLtCreate"),
        destroy: symbol!("cublasLtDestroy"),
        version: symbol!("cublasLtGetVersion"),
        status: symbol!("cublasLtGetStatusString"),
        create_product: symbol!("cublasLtMatmulDescCreate"),
        set_product: symbol!("cublasLtMatmulDescSetAttribute"),
        destroy_product: symbol!("cublasLtMatmulDescDestroy"),
        create_layout: symbol!("cublasLtMatrixLayoutCreate"),
        destroy_layout: symbol!("cublasLtMatrixLayoutDestroy"),
        create_preference: symbol!("cublasLtMatmulPreferenceCreate"),
        set_preference: symbol!("cublasLtMatmulPreferenceSetAttribute"),
        destroy_preference: symbol!("cublasLtMatmulPreferenceDestroy"),
        heuristic: symbol!("cublasLtMatmulAlgoGetHeuristic"),
        multiply: symbol!("cublasLtMatmul"),
    })
}

impl Functions {
    fn check(&self, status: Status, during: &'static str) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a static string for every status.
        let message = unsafe { CStr::from_ptr((self.status)(status)) }.to_string_lossy().into_owned();
        Err(CudaError::CublasLt { during, message })
    }

    /// A product of operands of this format with f32 sums and factors.
    fn product(&self, operands: Format) -> Result<Object, CudaError> {
        // The pedantic kind excludes what may stand for f32 arithmetic: TF32 and emulation, whatever the environment says.
        let compute = if operands == Format::F32 { COMPUTE_32F_PEDANTIC } else { COMPUTE_32F };
        let mut object = std::ptr::null_mut();
        // SAFETY: the pointer is valid for one write.
        let status = unsafe { (self.create_product)(&mut object, compute, type_of(Format::F32)?) };
        self.check(status, "describing a product")?;
        let object = Object { object, destroy: self.destroy_product };
        self.set(self.set_product, &object, PRODUCT_TRANSPOSE_A, TRANSPOSE)?;
        Ok(object)
    }

    fn layout(
        &self,
        format: Format,
        [rows, columns]: [usize; 2],
        stride: usize,
    ) -> Result<Object, CudaError> {
        let mut object = std::ptr::null_mut();
        // SAFETY: the pointer is valid for one write.
        let status = unsafe {
            (self.create_layout)(&mut object, type_of(format)?, rows as u64, columns as u64, stride as i64)
        };
        self.check(status, "describing a matrix")?;
        Ok(Object { object, destroy: self.destroy_layout })
    }

    /// What an algorithm may do.
    fn preference(&self) -> Result<Object, CudaError> {
        let mut object = std::ptr::null_mut();
        // SAFETY: the pointer is valid for one write.
        self.check(unsafe { (self.create_preference)(&mut object) }, "stating preferences")?;
        let object = Object { object, destroy: self.destroy_preference };
        self.set(self.set_preference, &object, PREFERENCE_WORKSPACE, WORKSPACE as u64)?;
        self.set(self.set_preference, &object, PREFERENCE_REDUCTIONS, REDUCTION_COMPUTE_TYPE)?;
        for alignment in PREFERENCE_ALIGNMENTS {
            self.set(self.set_preference, &object, alignment, ALIGNMENT)?;
        }
        Ok(object)
    }

    fn set<T: Copy>(
        &self,
        set: SetAttribute,
        object: &Object,
        name: c_int,
        value: T,
    ) -> Result<(), CudaError> {
        // SAFETY: the object lives; the attribute has the size of `T`, or the library refuses it.
        let status = unsafe { set(object.object, name, std::ptr::from_ref(&value).cast(), size_of::<T>()) };
        self.check(status, "setting an attribute")
    }
}

/// `CUBLAS_VERSION` of the header in words.
fn version_text(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

fn type_of(format: Format) -> Result<c_int, CudaError> {
    data_type(format).ok_or_else(|| CudaError::CublasLt {
        during: "describing a matrix",
        message: format!("no type for {format}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_told_with_who_asked_for_it() {
        let error = CudaError::CublasLtMissing { looked_for: NAMES.join(", ") }.to_string();
        assert!(error.contains(NAMES[0]) && error.contains("MANTISSA_MATMUL_BACKEND"), "{error}");
    }

    #[test]
    fn versions_are_read_from_their_number() {
        assert_eq!(version_text(130_100), "13.1.0");
        assert_eq!(version_text(120_905), "12.9.5");
    }

    #[test]
    fn results_of_the_heuristic_have_the_layout_of_the_header() {
        assert_eq!((size_of::<Heuristic>(), std::mem::offset_of!(Heuristic, workspace)), (96, 64));
        assert_eq!(std::mem::offset_of!(Heuristic, state), 72);
    }
}
