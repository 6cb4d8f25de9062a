//! The CPU backend: every kernel family on AVX-512, AVX2, Advanced SIMD and plain Rust, with the same bits on each.
//!
//! [`isa`] detects instruction sets once, [`simd`] holds the only code that differs between them, [`pool`] the
//! threads. Kernels are generic over [`simd::Simd`], one family a file.

pub mod aligned;
pub mod attention;
mod backend;
pub mod cache;
mod ceilings;
mod contracts;
mod disjoint;
pub mod elements;
pub mod elementwise;
pub mod embedding;
pub mod experimental;
pub mod isa;
pub mod matmul;
pub mod norm;
pub mod operands;
pub mod pack;
pub mod pool;
pub mod qkv;
pub mod rope;
pub mod sdpa;
mod session;
pub mod simd;
pub mod softmax;
mod steps;
mod values;
mod weights;

pub use backend::{CpuBackend, CpuError, CpuOptions};
pub use experimental::Experimental;
pub use isa::{Isa, Tier};
pub use pool::{Pool, Task};
