//! The kernels of `kernels/selftest.cu`.

use std::path::PathBuf;

use mantissa_cuda::compile::{Compiler, Nvrtc};
use mantissa_cuda::device::{Device, Kernel};
use mantissa_cuda::kernel::{Alias, KernelSpec, SourceFile};
use mantissa_numerics::Format;

/// Mirrors `Args` of the file.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Args {
    pub from: u64,
    pub to: u64,
    pub count: u32,
    pub unused: u32,
}

/// The compiler, or why there is none.
pub fn nvrtc() -> Result<Nvrtc, String> {
    let path = std::env::var_os("MANTISSA_NVRTC").map(PathBuf::from);
    Nvrtc::load(path.as_deref()).map_err(|error| error.to_string())
}

/// An entry of the file, loaded.
pub fn load(device: &Device, nvrtc: &Nvrtc, entry: &'static str, format: Format) -> Kernel {
    let aliases = vec![Alias::format("T", format)];
    let spec = KernelSpec { file: SourceFile::Selftest, entry, aliases };
    let compiled = nvrtc.compile(&spec, &spec.source(), device.info().arch).expect("it compiles");
    device.load(&spec, &compiled.cubin).expect("it loads")
}
