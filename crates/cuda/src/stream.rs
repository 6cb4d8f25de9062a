//! The stream: launches and copies, in the order in which they were asked for.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::compile::Arch;
use crate::device::{Context, Device, Kernel, driver_error};
use crate::error::CudaError;
use crate::kernel::Launch;
use crate::memory::{DeviceBuffer, HostBuffer};

/// The one stream of a session.
///
/// Every method binds nothing: the device's context must be current on the calling thread, which
/// [`Device::bind`] sees to.
#[derive(Debug)]
pub struct Stream {
    stream: sys::CUstream,
    starts: Starts,
    /// Whether the next kernel starts in turn whatever `starts` says.
    next_in_turn: AtomicBool,
    context: Arc<Context>,
}

/// When a kernel may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Starts {
    /// Once the kernel before it lets it, to wait inside for what that one writes (programmatic dependent launch).
    Early,
    /// Once all work before it has ended.
    InTurn,
}

impl Starts {
    /// The earliest start that a device knows.
    fn of(arch: Arch) -> Starts {
        if arch.major >= 9 { Starts::Early } else { Starts::InTurn }
    }
}

/// Whether blocks of a launch wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocks {
    Independent,
    /// The driver sees to it that all of them run at the same time.
    Together,
}

// SAFETY: a stream's handle may be used from any thread in whose context it lives.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Device {
    /// A new stream.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn stream(&self) -> Result<Stream, CudaError> {
        self.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| driver_error("making a stream", error))?;
        let (starts, context) = (Starts::of(self.info().arch), Arc::clone(self.context()));
        Ok(Stream { stream, starts, next_in_turn: AtomicBool::new(false), context })
    }
}

impl Stream {
    pub(crate) fn raw(&self) -> sys::CUstream {
        self.stream
    }

    /// When its kernels start.
    pub(crate) fn starts(&self) -> Starts {
        self.starts
    }

    /// Has the next kernel start when those before it have ended, and with it all that follow. A graph starts so by itself.
    pub(crate) fn in_turn(&self) {
        self.next_in_turn.store(true, Ordering::Relaxed);
    }

    /// When the kernel starts that is launched next.
    pub(crate) fn next_starts(&self) -> Starts {
        match self.next_in_turn.swap(false, Ordering::Relaxed) {
            true => Starts::InTurn,
            false => self.starts,
        }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made once, destroyed once; the driver lets work that is under way end.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

/// A launch that the driver does not take.
pub(crate) fn refused(kernel: &Kernel, launch: Launch, error: DriverError) -> CudaError {
    match driver_error("launch", error) {
        CudaError::Driver { during, message } => {
            CudaError::Driver { during, message: format!("{} as {launch:?}: {message}", kernel.name()) }
        }
        lost => lost,
    }
}

/// Which bytes of a device buffer.
fn place(buffer: &DeviceBuffer, range: &Range<usize>) -> Result<u64, CudaError> {
    if range.start > range.end || range.end > buffer.bytes() {
        let message = format!("bytes {range:?} of a buffer of {} bytes", buffer.bytes());
        return Err(CudaError::Driver { during: "copying", message });
    }
    Ok(buffer.address() + range.start as u64)
}

impl Stream {
    /// Launches a kernel. `args` is its one parameter: a `#[repr(C)]` struct that mirrors the kernel's `Args`, whose
    /// pointers are device addresses. A grid without blocks launches nothing.
    ///
    /// # Safety
    /// - `P` has the size and layout of the kernel's parameter.
    /// - Its pointers are addresses of device memory that holds what the kernel reads and writes under this launch, in the
    ///   formats for which it was specialised, and that lives until the stream is synchronized.
    ///
    /// # Errors
    /// Where the driver refuses the launch. What goes wrong inside a kernel shows at [`Stream::synchronize`].
    pub unsafe fn launch<P: Copy>(&self, kernel: &Kernel, launch: Launch, args: &P) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { self.launch_as(kernel, launch, args, Blocks::Independent) }
    }

    /// Launches a kernel like [`Stream::launch`], whose blocks may wait for each other.
    ///
    /// # Safety
    /// As [`Stream::launch`].
    ///
    /// # Errors
    /// As [`Stream::launch`], and where they do and the device has no room for all of them.
    pub(crate) unsafe fn launch_as<P: Copy>(
        &self,
        kernel: &Kernel,
        launch: Launch,
        args: &P,
        blocks: Blocks,
    ) -> Result<(), CudaError> {
        if launch.is_empty() {
            return Ok(());
        }
        let Launch { grid, block, shared } = launch;
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: Default::default(), value };
        let together = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            sys::CUlaunchAttributeValue { cooperative: 1 },
        );
        let early = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
        let mut attributes = [together, early];
        let attributes = match (blocks, self.next_starts()) {
            (Blocks::Together, Starts::Early) => &mut attributes[..],
            (Blocks::Together, Starts::InTurn) => &mut attributes[..1],
            (Blocks::Independent, Starts::Early) => &mut attributes[1..],
            (Blocks::Independent, Starts::InTurn) => &mut [],
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the kernel is loaded; it takes one parameter by value, of the size and layout of `P`, which the
        // driver copies before this returns, as it does the attributes. Every kernel waits itself for the kernels before
        // it (`wait_for_inputs` of the prelude). The caller answers for what its pointers point to.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.function,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        launched.result().map_err(|error| refused(kernel, launch, error))
    }

    /// Waits until everything asked for is done.
    ///
    /// # Errors
    /// What went wrong in any launch or copy before.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|error| driver_error("running", error))
    }

    /// Whether everything asked for is done.
    ///
    /// # Errors
    /// As [`Stream::synchronize`].
    pub(crate) fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(self.stream) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => answer.result().map(|()| true).map_err(|error| driver_error("running", error)),
        }
    }

    /// Copies bytes to the device, and waits.
    ///
    /// # Errors
    /// Where the bytes do not fit, or the device is lost.
    pub fn upload(&self, bytes: &[u8], to: &DeviceBuffer, at: usize) -> Result<(), CudaError> {
        let address = place(to, &(at..at.saturating_add(bytes.len())))?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the buffer, and the bytes live until the copy is done.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream) }
            .map_err(|error| driver_error("copying to the device", error))?;
        self.synchronize()
    }

    /// Copies the first `bytes` bytes of page-locked memory into a buffer from byte `at` on, without waiting.
    ///
    /// The caller must neither write nor drop `from` before the copy is done; the copy would see it.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub(crate) fn upload_later(
        &self,
        from: &HostBuffer,
        bytes: usize,
        to: &DeviceBuffer,
        at: usize,
    ) -> Result<(), CudaError> {
        let bytes = &from[..bytes.min(from.len())];
        let address = place(to, &(at..at.saturating_add(bytes.len())))?;
        // SAFETY: the range lies in the buffer; the caller keeps both until the copy is done.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream) }
            .map_err(|error| driver_error("copying to the device", error))
    }

    /// Copies bytes from the device, and waits.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn download(&self, from: &DeviceBuffer, at: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        let address = place(from, &(at..at.saturating_add(bytes.len())))?;
        if bytes.is_empty() {
            return self.synchronize();
        }
        // SAFETY: the range lies in the buffer, and the destination lives until the copy is done.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) }
            .map_err(|error| driver_error("copying from the device", error))?;
        self.synchronize()
    }

    /// Copies bytes within a buffer.
    ///
    /// # Errors
    /// Where a range lies outside, or the device is lost.
    pub fn copy_within(&self, buffer: &DeviceBuffer, from: Range<usize>, to: usize) -> Result<(), CudaError> {
        let source = place(buffer, &from)?;
        let target = place(buffer, &(to..to.saturating_add(from.len())))?;
        // SAFETY: both ranges lie in the buffer.
        unsafe { result::memcpy_dtod_async(target, source, from.len(), self.stream) }
            .map_err(|error| driver_error("copying on the device", error))
    }

    /// Copies bytes at an address to the start of a buffer.
    ///
    /// # Safety
    /// That many bytes of device memory lie at the address, until the stream is synchronized.
    ///
    /// # Errors
    /// Where they do not fit, or the device is lost.
    pub(crate) unsafe fn copy_from(
        &self,
        from: u64,
        to: &DeviceBuffer,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let target = place(to, &(0..bytes))?;
        // SAFETY: the range lies in the buffer; the caller answers for where the bytes come from.
        unsafe { result::memcpy_dtod_async(target, from, bytes, self.stream) }
            .map_err(|error| driver_error("copying on the device", error))
    }

    /// Notes the moment at which everything asked for so far is done.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn record(&self) -> Result<Event, CudaError> {
        let event = self.event()?;
        self.note(&event)?;
        Ok(event)
    }

    /// A moment to be noted.
    ///
    /// # Errors
    /// Where the device is lost.
    pub(crate) fn event(&self) -> Result<Event, CudaError> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|error| driver_error("timing", error))?;
        Ok(Event { event, context: Arc::clone(&self.context) })
    }

    /// Notes the moment at which everything asked for so far is done, in place of the one that the event had.
    ///
    /// # Errors
    /// Where the device is lost.
    pub(crate) fn note(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: event and stream live in the same context.
        unsafe { result::event::record(event.event, self.stream) }
            .map_err(|error| driver_error("timing", error))
    }

    /// Calls a function of the host once everything asked for so far is done; what is asked for later waits for its return.
    ///
    /// # Safety
    /// The function may be called with the argument from another thread, once, at any time before the stream is synchronized
    /// or the device lost. It calls nothing of the driver, and does not unwind.
    ///
    /// # Errors
    /// Where the device is lost; the function is not called then.
    pub(crate) unsafe fn call_host(
        &self,
        function: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    ) -> Result<(), CudaError> {
        // SAFETY: the stream lives; the caller answers for the rest.
        unsafe { result::stream::launch_host_function(self.stream, function, argument) }
            .map_err(|error| driver_error("calling the host", error))
    }
}

/// A moment of a stream.
#[derive(Debug)]
pub struct Event {
    event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: an event's handle may be used from any thread in whose context it lives.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Waits for it.
    ///
    /// # Errors
    /// What went wrong before it.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event was recorded.
        unsafe { result::event::synchronize(self.event) }.map_err(|error| driver_error("running", error))
    }

    /// Seconds from this moment to a later one; waits for it.
    ///
    /// # Errors
    /// What went wrong before it.
    pub fn seconds_until(&self, end: &Event) -> Result<f64, CudaError> {
        let failed = |error| driver_error("timing", error);
        // SAFETY: both events were recorded.
        let milliseconds = unsafe {
            result::event::synchronize(end.event).map_err(failed)?;
            result::event::elapsed(self.event, end.event).map_err(failed)?
        };
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
