//! How far computed numbers lie from the truth: kernels one by one at the shapes of a model, and the whole model from layer to
//! layer.
//!
//! The truth is the reference of `ops`: every op as its definition reads, in f64, from the same stored inputs and weights.

mod compare;
mod families;
mod passage;
mod plot;
mod record;

use mantissa::numerics::Format;
use mantissa::numerics::contract::ContractQuery;
use mantissa::ops::conformance::Family;

pub use compare::{Comparison, Growth, LogitError, PointError};
pub use families::{CaseFailure, ContractCheck, FamilyChecks, FirstDifference, check_families};
pub use passage::{TokenSource, tokens};
pub use plot::error_by_layer;
pub use record::{REFERENCE, Recording, Subject, record, record_formats, record_reference, reference_bytes};

/// The largest relative error that a product of f16 matrices may have.
pub const F16_GEMM: f64 = 1e-3;
/// The same of attention over a cache of 16 bits a number or more.
pub const ATTENTION: f64 = 1e-2;
/// The same of a whole model's logits, with such a cache.
pub const WHOLE_MODEL: f64 = 1e-2;

/// The relative error that a kernel is held to beside its contract's bounds, where there is such a figure.
pub fn figure(query: &ContractQuery) -> Option<f64> {
    match query.family {
        Family::Matmul | Family::Logits => {
            let f16 = query.weights == Some(Format::F16) && query.activations == Format::F16;
            f16.then_some(F16_GEMM)
        }
        Family::Attention | Family::Sdpa => {
            let wide = query.cache.is_none_or(|cache| cache.format.bits() >= 16);
            wide.then_some(ATTENTION)
        }
        Family::Embedding
        | Family::RmsNorm
        | Family::Rope
        | Family::Softmax
        | Family::Qkv
        | Family::SwiGlu
        | Family::Ffn
        | Family::Residual => None,
    }
}
