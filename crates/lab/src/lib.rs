//! The laboratory: everything that measures. Speed against the machine's ceilings, memory, and accuracy against the f64
//! reference; on any machine, for any model.
//!
//! Nothing here reads the environment, prints, or knows about a command line: it takes values and returns values.

pub mod bench;
pub mod ceiling;
pub mod decode;
mod error;
pub mod label;
pub mod machine;
pub mod memory;
pub mod parity;
pub mod plot;
pub mod profile;
pub mod progress;
pub mod prompts;
pub mod report;
pub mod stats;

pub use error::LabError;
