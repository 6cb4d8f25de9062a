//! What can go wrong between this process and a GPU.

use mantissa_ops::PrepareError;

/// A device that cannot be used, or work on it that failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CudaError {
    #[error("no NVIDIA driver: looked for {looked_for}; install the driver, or use --device cpu")]
    DriverMissing { looked_for: String },
    #[error("the NVIDIA driver supports CUDA {got}, but {needs}; update the driver{instead}")]
    DriverTooOld { got: String, needs: String, instead: &'static str },
    #[error("no device cuda:{ordinal}: the driver knows {count} ({})", ordinals(*count))]
    NoSuchDevice { ordinal: usize, count: usize },
    #[error(
        "{name} has compute capability {major}.{minor}, but the kernels need at least 8.0 (Ampere and later)"
    )]
    DeviceTooOld { name: String, major: u32, minor: u32 },
    #[error(
        "no NVRTC, the compiler of the kernels: looked for {looked_for}; install CUDA 13's nvrtc, for instance by `pip \
         install nvidia-cuda-nvrtc`, and give its path in MANTISSA_NVRTC"
    )]
    NvrtcMissing { looked_for: String },
    #[error(
        "no cuBLASLt, NVIDIA's matrix library, which MANTISSA_MATMUL_BACKEND=cublaslt asks for: looked for {looked_for}; \
         install it, for instance by `pip install nvidia-cublas`, and give its path in MANTISSA_CUBLASLT, or leave the \
         products to Mantissa's own kernels"
    )]
    CublasLtMissing { looked_for: String },
    #[error("cuBLASLt, {during}: {message}")]
    CublasLt { during: &'static str, message: String },
    #[error("NVRTC does not compile {kernel} for {arch} with {options}:\n{log}")]
    Compile { kernel: String, arch: String, options: String, log: String },
    #[error("{library} lacks the function {name}: {message}")]
    Symbol { library: String, name: &'static str, message: String },
    #[error("out of device memory: {what} needs {asked} bytes, and {free} of {total} are free")]
    OutOfMemory { what: String, asked: u64, free: u64, total: u64 },
    #[error(
        "the device is lost ({during}: {message}); restart the program, and look at the system's log if it recurs"
    )]
    DeviceLost { during: &'static str, message: String },
    #[error("{during}: {message}")]
    Driver { during: &'static str, message: String },
}

fn ordinals(count: usize) -> String {
    match count {
        0 => "none".to_owned(),
        1 => "cuda:0".to_owned(),
        count => format!("cuda:0 to cuda:{}", count - 1),
    }
}

/// An error while a plan is made ready.
pub(crate) fn prepare_error(what: &str, error: CudaError) -> PrepareError {
    match error {
        CudaError::OutOfMemory { asked, .. } => {
            PrepareError::OutOfMemory { what: format!("{what} on the device"), bytes: asked }
        }
        other => PrepareError::Part { what: "the GPU", message: other.to_string() },
    }
}
