//! The conformance suite on the first GPU. Where there is none, or no NVRTC, every test is reported as skipped.

use std::sync::OnceLock;

use mantissa_cuda::{CudaBackend, CudaOptions};

/// The device, shared by all tests so that each kernel is loaded once, or why there is none.
fn backend() -> Result<&'static CudaBackend, String> {
    static BACKEND: OnceLock<Result<CudaBackend, String>> = OnceLock::new();
    let open = || {
        let options = CudaOptions {
            kernel_cache: std::env::var_os("MANTISSA_KERNEL_CACHE").map(Into::into),
            nvrtc: std::env::var_os("MANTISSA_NVRTC").map(Into::into),
            ..CudaOptions::default()
        };
        CudaBackend::new(0, &options).map_err(|error| error.to_string())
    };
    BACKEND.get_or_init(open).as_ref().map_err(Clone::clone)
}

mantissa_ops::conformance!(try backend());
