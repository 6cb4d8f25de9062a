//! What numbers are: formats, conversions, precision policies, contracts and error bounds.
//!
//! This crate is pure: no backend, no I/O, no environment, no threads.

pub mod format;

pub use format::Format;
