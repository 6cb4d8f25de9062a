//! What a machine can do at most, measured: benchmarks state their results as shares of it, from the same run.

use std::fmt;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Compute, OpContract};

/// What forms the products of a contract, as far as their rate depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Fused multiply-add in f32, whatever the operands are stored in.
    F32Fma,
    /// Pairs of bf16 into f32.
    Bf16Pairs,
    /// Matrix units on two operands of this format.
    Matrix(Format),
}

impl Unit {
    /// What forms the products of a contract.
    pub fn of(contract: &OpContract) -> Unit {
        match contract.compute {
            Compute::Bf16Pairs => Unit::Bf16Pairs,
            Compute::MatrixUnits { .. } => Unit::Matrix(contract.query.activations),
            Compute::F32Fma | Compute::F64 | Compute::None => Unit::F32Fma,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::F32Fma => f.pad("f32 multiply-add"),
            Unit::Bf16Pairs => f.pad("bf16 pairs"),
            Unit::Matrix(format) => f.pad(&format!("{format} matrix units")),
        }
    }
}

/// A ceiling that cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CeilingError {
    #[error("{backend} measures no ceilings")]
    None { backend: String },
    #[error("{backend} measures no {unit}")]
    Unit { backend: String, unit: Unit },
    #[error("measuring the ceilings: {0}")]
    Device(String),
}

/// Measures the ceilings of one machine, as often as it is asked to. It holds the memory that it reads.
pub trait Ceilings {
    /// Bytes per second of reading memory once, as one stream.
    ///
    /// # Errors
    /// Where the device fails.
    fn read(&self) -> Result<f64, CeilingError>;

    /// Operations per second of products that need no memory: a multiplication and an addition are two.
    ///
    /// # Errors
    /// Where the machine has no such unit, or fails.
    fn multiply(&self, unit: Unit) -> Result<f64, CeilingError>;
}
