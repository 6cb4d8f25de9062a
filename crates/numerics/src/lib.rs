//! What numbers are: formats, conversions, precision policies, contracts and error bounds.
//!
//! This crate is pure: no backend, no I/O, no environment, no threads.

pub mod convert;
pub mod format;

pub use convert::{E4M3, Element};
pub use format::Format;
