//! Memory on the device, and memory of the host that the device copies from and to at full speed.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;

use crate::device::{Context, Device, driver_error};
use crate::error::CudaError;

/// Written into fresh memory: NaN in every format, so that a value read before it is written shows.
const POISON: u8 = 0xff;

/// Memory of the device.
#[derive(Debug)]
pub struct DeviceBuffer {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl DeviceBuffer {
    /// The device address; every buffer starts at a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.address != 0 && self.context.bind().is_ok() {
            // SAFETY: allocated once, freed once; freeing waits for the work that uses it. A lost device frees all.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked memory of the host.
#[derive(Debug)]
pub struct HostBuffer {
    data: *mut u8,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: the buffer owns its memory, which is ordinary memory to every thread.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; writing needs exclusive access.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Where kernels find it: under unified addressing, which every 64-bit system has, at the host's own address.
    pub(crate) fn address(&self) -> u64 {
        self.data as u64
    }

    /// The words of 8 bytes from byte `at` on, a multiple of 8, while kernels may be writing them; none where the buffer
    /// ends before.
    pub(crate) fn watched(&self, at: usize, words: usize) -> &[AtomicU64] {
        let end = words.checked_mul(size_of::<u64>()).and_then(|bytes| bytes.checked_add(at));
        if !at.is_multiple_of(size_of::<u64>()) || end.is_none_or(|end| end > self.bytes) {
            return &[];
        }
        // SAFETY: the range lies in the buffer, whose start is aligned; the words live as long as it does. Kernels write whole
        // aligned words, and everything on this side that looks at them at such times does so through atomics.
        unsafe { std::slice::from_raw_parts(self.data.add(at).cast::<AtomicU64>(), words) }
    }
}

impl Deref for HostBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: `bytes` bytes were allocated and zeroed at `data`, and live as long as the buffer.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
}

impl DerefMut for HostBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        if self.bytes == 0 {
            return &mut [];
        }
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.bytes != 0 && self.context.bind().is_ok() {
            // SAFETY: allocated once, freed once.
            let _ = unsafe { result::free_host(self.data.cast()) };
        }
    }
}

impl Device {
    /// Memory for `bytes` bytes, poisoned with NaN. `what` names it in errors.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn allocate(&self, bytes: usize, what: &str) -> Result<DeviceBuffer, CudaError> {
        let context = Arc::clone(self.context());
        if bytes == 0 {
            return Ok(DeviceBuffer { address: 0, bytes, context });
        }
        context.bind()?;
        // SAFETY: the context is current.
        let address = match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => address,
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(context.out_of_memory(what, bytes as u64));
            }
            Err(error) => return Err(driver_error("allocating memory", error)),
        };
        let buffer = DeviceBuffer { address, bytes, context };
        // SAFETY: the buffer was just allocated with this size.
        unsafe { result::memset_d8_sync(address, POISON, bytes) }
            .and_then(|()| result::ctx::synchronize())
            // Streams of sessions do not wait for the default one, on which this ran.
            .map_err(|error| driver_error("clearing memory", error))?;
        Ok(buffer)
    }

    /// Page-locked memory of the host, zeroed.
    ///
    /// # Errors
    /// Where the system does not give that much.
    pub fn allocate_host(&self, bytes: usize, what: &str) -> Result<HostBuffer, CudaError> {
        let context = Arc::clone(self.context());
        if bytes == 0 {
            return Ok(HostBuffer { data: std::ptr::null_mut(), bytes, context });
        }
        context.bind()?;
        // SAFETY: the context is current.
        let data = match unsafe { result::malloc_host(bytes, 0) } {
            Ok(data) => data.cast::<u8>(),
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let message = format!("{what} needs {bytes} bytes of page-locked memory");
                return Err(CudaError::Driver { during: "allocating host memory", message });
            }
            Err(error) => return Err(driver_error("allocating host memory", error)),
        };
        // SAFETY: `bytes` bytes were just allocated.
        unsafe { data.write_bytes(0, bytes) };
        Ok(HostBuffer { data, bytes, context })
    }
}
