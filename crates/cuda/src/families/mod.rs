//! Kernel families: which kernel serves a contract and a shape, how it is launched, and what it is told.
//!
//! Each file has, for its kernels, a `spec` (contract and class of shapes to [`KernelSpec`](crate::kernel::KernelSpec)),
//! a launch shape, and the `#[repr(C)]` arguments that mirror the `Args` of its `.cu` file. Sessions only select
//! and hand off.
