//! What numbers are: formats, conversions, precision policies, contracts and error bounds.
//!
//! This crate is pure: no backend, no I/O, no environment, no threads.

#[cfg(target_endian = "big")]
compile_error!("checkpoints are little endian and are used in place: big-endian machines are not supported");

pub mod block;
pub mod compare;
pub mod contract;
pub mod convert;
pub mod format;
pub mod policy;
pub mod tolerance;

pub use block::BlockFormat;
pub use convert::{ConversionStats, ConvertError, E4M3, Element, convert_slice, decode_slice, encode_slice};
pub use format::{Ecosystem, Format};
pub use policy::{
    Field, PolicyError, PrecisionPolicy, Preset, default_policy, reset_default_policy, resolve,
    set_default_policy,
};
pub use tolerance::Tolerance;
