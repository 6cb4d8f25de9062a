//! The first GPU as a backend.

use mantissa_cuda::{CudaBackend, CudaOptions};

/// Opens it, with the files that the environment names, or says why it cannot be used.
pub fn open(options: CudaOptions) -> Result<CudaBackend, String> {
    let path = |name| std::env::var_os(name).map(Into::into);
    let options = CudaOptions {
        kernel_cache: path("MANTISSA_KERNEL_CACHE"),
        nvrtc: path("MANTISSA_NVRTC"),
        cublaslt: path("MANTISSA_CUBLASLT"),
        ..options
    };
    CudaBackend::new(0, &options).map_err(|error| error.to_string())
}
