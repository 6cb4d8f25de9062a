//! The device: what it is, its context, and loaded kernels.

use std::ffi::CString;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use crate::compile::Arch;
use crate::error::CudaError;
use crate::kernel::KernelSpec;
pub use crate::memory::{DeviceBuffer, HostBuffer};
pub use crate::stream::{Event, Stream};

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, as in `cuda:0`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub arch: Arch,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block can have.
    pub shared_per_block: u32,
    /// Bytes of the L2 cache.
    pub l2_bytes: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Newest CUDA version that the driver supports, major and minor.
    pub driver: (u32, u32),
}

/// The primary context of a device, kept for as long as anything that lives in it.
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    total: u64,
}

// SAFETY: the driver's functions may be called with a context from any thread, at the same time too.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Context {
    /// Makes the context current on this thread, as every other call to the driver demands.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context was retained and is released only when dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(|error| driver_error("context", error))
    }

    /// An allocation that failed.
    pub(crate) fn out_of_memory(&self, what: &str, asked: u64) -> CudaError {
        CudaError::OutOfMemory { what: what.to_owned(), asked, free: self.free(), total: self.total }
    }

    fn free(&self) -> u64 {
        self.bind().ok().and_then(|()| result::mem_get_info().ok()).map_or(0, |(free, _)| free as u64)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `Device::open`. A failure at the end of a process changes nothing.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// What the driver says of a call that failed.
pub(crate) fn driver_error(during: &'static str, error: DriverError) -> CudaError {
    let message = match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    };
    failure(during, error.0, message)
}

/// A failed call by its code.
fn failure(during: &'static str, code: CUresult, message: String) -> CudaError {
    match code {
        code if ends_context(code) => CudaError::DeviceLost { during, message },
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_INVALID_IMAGE => {
            let message = format!("{message}: the driver does not take this code; is it older than NVRTC?");
            CudaError::Driver { during, message }
        }
        _ => CudaError::Driver { during, message },
    }
}

/// Whether nothing can be done on the device any more after this error: every later call fails too.
fn ends_context(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
    )
}

/// The oldest CUDA version whose drivers have all functions that are called: the bindings would panic without one.
const OLDEST_DRIVER: (u32, u32) = (12, 8);

/// Demands a driver that has all functions that are called.
fn check_driver(version: (u32, u32)) -> Result<(), CudaError> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let needs = format!("Mantissa calls functions of {}", version_text(OLDEST_DRIVER));
    Err(CudaError::DriverTooOld { got: version_text(version), needs, instead: "" })
}

/// Demands a driver that takes the code of this version of NVRTC: within a major version older ones take that of newer
/// compilers.
pub(crate) fn check_compiler(driver: (u32, u32), nvrtc: (u32, u32)) -> Result<(), CudaError> {
    if nvrtc.0 <= driver.0 {
        return Ok(());
    }
    let needs = format!("the kernels are compiled by NVRTC {}", version_text(nvrtc));
    let instead = ", or install an NVRTC of its major version";
    Err(CudaError::DriverTooOld { got: version_text(driver), needs, instead })
}

/// Where Linux says which driver is loaded.
const LOADED_DRIVER: &str = "/proc/driver/nvidia/version";

/// The version in that file: the first word of its first line that is numbers with points between.
fn loaded_version(text: &str) -> Option<&str> {
    let is_version = |word: &&str| {
        word.contains('.')
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    text.lines().next()?.split_whitespace().find(is_version)
}

impl DeviceInfo {
    /// The driver in words: its version, where the system says it, and the newest CUDA version that it supports.
    pub fn driver_text(&self) -> String {
        let cuda = format!("CUDA {}", version_text(self.driver));
        let text = std::fs::read_to_string(LOADED_DRIVER).unwrap_or_default();
        loaded_version(&text).map_or_else(|| cuda.clone(), |version| format!("{version}, {cuda}"))
    }
}

fn version_text((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// Demands that the driver's library is there: the bindings would panic without it.
fn probe() -> Result<(), CudaError> {
    // SAFETY: loading the driver's library has no effect on this process but its presence.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let looked_for = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so and libcuda.so.1" };
    Err(CudaError::DriverMissing { looked_for: looked_for.to_owned() })
}

/// A GPU.
#[derive(Clone, Debug)]
pub struct Device {
    context: Arc<Context>,
    info: DeviceInfo,
}

impl Device {
    /// How many devices the driver knows.
    ///
    /// # Errors
    /// [`CudaError::DriverMissing`], or what the driver says when it is started.
    pub fn count() -> Result<usize, CudaError> {
        probe()?;
        match result::init() {
            Ok(()) => {}
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
            Err(DriverError(CUresult::CUDA_ERROR_STUB_LIBRARY)) => {
                let looked_for = "libcuda.so.1, and found only the toolkit's stub of it".to_owned();
                return Err(CudaError::DriverMissing { looked_for });
            }
            Err(error) => return Err(driver_error("starting the driver", error)),
        }
        let count = result::device::get_count().map_err(|error| driver_error("counting devices", error))?;
        Ok(count.unsigned_abs() as usize)
    }

    /// Opens a device.
    ///
    /// # Errors
    /// Where there is no driver, no such device, or one too old.
    pub fn open(ordinal: usize) -> Result<Device, CudaError> {
        let count = Device::count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let failed = |error| driver_error("opening the device", error);
        let device = result::device::get(ordinal as i32).map_err(failed)?;
        let attribute = |attribute: Attribute| {
            // SAFETY: the device was returned by the driver.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map(i32::unsigned_abs).map_err(failed)
        };
        let name = result::device::get_name(device).map_err(failed)?;
        let arch = Arch {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        };
        if arch < Arch::OLDEST {
            return Err(CudaError::DeviceTooOld { name, major: arch.major, minor: arch.minor });
        }
        let mut version = 0;
        // SAFETY: the pointer is valid for one write.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed)?;
        let version = version.unsigned_abs();
        let driver = (version / 1000, version % 1000 / 10);
        check_driver(driver)?;
        // SAFETY: the device was returned by the driver.
        let memory = unsafe { result::device::total_mem(device) }.map_err(failed)? as u64;
        let info = DeviceInfo {
            ordinal,
            name,
            arch,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2_bytes: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            memory,
            driver,
        };
        // SAFETY: the device was returned by the driver; `Context` releases what is retained here.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let context = Arc::new(Context { device, context, total: memory });
        context.bind()?;
        Ok(Device { context, info })
    }

    /// What the device says of itself.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Bytes of memory that are free.
    pub fn free_memory(&self) -> u64 {
        self.context.free()
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Makes the device's context current on this thread; needed before a launch from a thread that has not used it.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn bind(&self) -> Result<(), CudaError> {
        self.context.bind()
    }

    /// Loads a compiled kernel, with as much dynamic shared memory allowed as the device has.
    ///
    /// # Errors
    /// Where the driver does not take the code, or it lacks the kernel's entry.
    pub fn load(&self, spec: &KernelSpec, cubin: &[u8]) -> Result<Kernel, CudaError> {
        self.bind()?;
        let failed = |error| driver_error("loading a kernel", error);
        // SAFETY: the bytes are a whole cubin, as the compiler returned it; the driver checks its header.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(failed)?;
        let module = Module { module, context: Arc::clone(&self.context) };
        let entry = CString::new(spec.entry)
            .map_err(|error| CudaError::Driver { during: "loading a kernel", message: error.to_string() })?;
        // SAFETY: the module is loaded, and lives as long as the kernel that holds it.
        let function = unsafe { result::module::get_function(module.module, entry) }.map_err(failed)?;
        let attribute = |attribute| {
            // SAFETY: the function belongs to a loaded module.
            let value = unsafe { result::function::get_function_attribute(function, attribute) };
            value.map(i32::unsigned_abs).map_err(failed)
        };
        use sys::CUfunction_attribute_enum as Of;
        let shared = attribute(Of::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let registers = attribute(Of::CU_FUNC_ATTRIBUTE_NUM_REGS)?;
        let local = attribute(Of::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?;
        let dynamic = self.info.shared_per_block.saturating_sub(shared);
        let allow = Of::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above; at most what the device said it has.
        unsafe { result::function::set_function_attribute(function, allow, dynamic as i32) }
            .map_err(failed)?;
        Ok(Kernel { function, name: spec.to_string(), registers, local, _module: module })
    }
}

struct Module {
    module: sys::CUmodule,
    context: Arc<Context>,
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once, unloaded once. Where the device is lost nothing can be done.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// A loaded kernel.
pub struct Kernel {
    pub(crate) function: sys::CUfunction,
    name: String,
    registers: u32,
    local: u32,
    /// Holds the code.
    _module: Module,
}

// SAFETY: a function's handle may be used from any thread in whose context it lives; nothing changes it after loading.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kernel { name, registers, local, .. } = self;
        write!(f, "{name} ({registers} registers, {local} bytes of local memory)")
    }
}

impl Kernel {
    /// The name of its specification.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Registers of a thread.
    pub fn registers(&self) -> u32 {
        self.registers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_context_is_told_from_what_fails() {
        let kind = |code| failure("running", code, "why".to_owned());
        let lost = CudaError::DeviceLost { during: "running", message: "why".to_owned() };
        for code in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        ] {
            assert_eq!(kind(code), lost, "{code:?}");
        }
        let failed = CudaError::Driver { during: "running", message: "why".to_owned() };
        for code in [CUresult::CUDA_ERROR_OUT_OF_MEMORY, CUresult::CUDA_ERROR_INVALID_VALUE] {
            assert_eq!(kind(code), failed, "{code:?}");
        }
        let foreign = kind(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU).to_string();
        assert_eq!(foreign, "running: why: the driver does not take this code; is it older than NVRTC?");
        assert_eq!(
            lost.to_string(),
            "the device is lost (running: why); restart the program, and look at the system's log if it recurs"
        );
    }

    #[test]
    fn a_device_that_is_not_there_is_not_opened() {
        assert!(matches!(
            Device::open(usize::MAX),
            Err(CudaError::DriverMissing { .. } | CudaError::NoSuchDevice { .. } | CudaError::Driver { .. })
        ));
    }

    #[test]
    fn old_drivers_are_refused_by_what_needs_newer_ones() {
        assert_eq!(check_driver((12, 8)), Ok(()));
        assert_eq!(
            check_driver((12, 4)).unwrap_err().to_string(),
            "the NVIDIA driver supports CUDA 12.4, but Mantissa calls functions of 12.8; update the driver"
        );
        assert_eq!(check_compiler((13, 0), (13, 1)), Ok(()));
        assert_eq!(check_compiler((13, 0), (12, 9)), Ok(()));
        assert_eq!(
            check_compiler((12, 9), (13, 0)).unwrap_err().to_string(),
            "the NVIDIA driver supports CUDA 12.9, but the kernels are compiled by NVRTC 13.0; update the driver, or \
             install an NVRTC of its major version"
        );
    }

    #[test]
    fn a_driver_s_version_is_found_in_what_the_system_says() {
        for (text, version) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6\nGCC version:  12.2.0",
                "535.54.03",
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build",
                "580.95.05",
            ),
        ] {
            assert_eq!(loaded_version(text), Some(version));
        }
        assert_eq!(loaded_version("no numbers. here 12"), None);
        assert_eq!(loaded_version(""), None);
    }

    #[test]
    fn errors_say_what_is_there() {
        let error = |count| CudaError::NoSuchDevice { ordinal: 7, count }.to_string();
        assert_eq!(error(0), "no device cuda:7: the driver knows 0 (none)");
        assert_eq!(error(1), "no device cuda:7: the driver knows 1 (cuda:0)");
        assert_eq!(error(4), "no device cuda:7: the driver knows 4 (cuda:0 to cuda:3)");
    }
}
