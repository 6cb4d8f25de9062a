//! The CUDA backend: every dense kernel family on NVIDIA GPUs, compiled at run time for the exact device.
//!
//! Nothing of CUDA is needed to build: the driver and NVRTC are looked for when a device is opened, and a machine
//! without them gets an error that says what is missing.
//!
//! [`device`] owns the context, memory and the stream; [`kernel`] names kernels as typed data; [`compile`] turns a
//! name into a cubin; [`families`] holds, for each kernel family, which kernel serves which shape, how it is launched
//! and the arguments that it takes. The kernels are CUDA C++ under `kernels/`, each specialised by an alias block.

mod ahead;
mod backend;
mod batch;
mod cache;
mod ceilings;
pub mod compile;
mod contracts;
mod cublaslt;
pub mod device;
mod dynamic;
mod error;
pub mod families;
mod graph;
pub mod kernel;
pub mod kernel_cache;
mod kernels;
mod launch;
mod memory;
mod needs;
pub mod preferences;
mod reducer;
mod scratch;
mod select;
mod session;
mod steps;
mod stream;
mod tables;
pub mod tensor_map;
mod token;
mod trace;
mod upload;
mod values;
mod weights;

pub use backend::{CudaBackend, CudaOptions};
pub use contracts::contracts;
pub use error::CudaError;
