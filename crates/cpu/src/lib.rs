//! The CPU backend: every kernel family on AVX-512, AVX2, Advanced SIMD and plain Rust, with the same bits on each.
//!
//! [`isa`] detects instruction sets once, [`simd`] holds the only code that differs between them, [`pool`] the
//! threads. Kernels are generic over [`simd::Simd`], one family a file.

pub mod isa;
pub mod pool;
pub mod simd;

pub use isa::{Isa, Tier};
pub use pool::{Pool, Task};
