//! What the CPU backend can do: every combination that has a kernel, as data.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{Compute, ContractQuery, Family, Merge, OpContract, Order, Subnormals};

use crate::attention::SPAN;
use crate::simd::LANES;

/// Every contract, with the bf16 pair products' treatment of subnormals that the instruction set has.
pub(crate) fn contracts(bf16_subnormals: Subnormals) -> Vec<OpContract> {
    ContractQuery::unquantised().into_iter().map(|query| contract(query, bf16_subnormals)).collect()
}

fn contract(query: ContractQuery, bf16_subnormals: Subnormals) -> OpContract {
    let (compute, order) = match query.family {
        Family::Embedding | Family::Residual => (Compute::None, Order::Elementwise),
        Family::Rope => (Compute::F32Fma, Order::Elementwise),
        Family::RmsNorm | Family::Softmax => {
            (Compute::F32Fma, Order::Lanes { lanes: LANES, group: 1, merge: Merge::Tree })
        }
        Family::Sdpa => (Compute::F32Fma, Order::Ascending),
        Family::Attention => (Compute::F32Fma, Order::Spans { positions: SPAN }),
        Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits => {
            (product(query.weights, query.activations), Order::Ascending)
        }
    };
    let subnormals = match compute {
        Compute::Bf16Pairs => bf16_subnormals,
        Compute::F32Fma | Compute::MatrixUnits { .. } | Compute::F64 | Compute::None => Subnormals::Kept,
    };
    OpContract { query, output: query.output(), compute, rounding: query.rounding(), order, subnormals }
}

/// Products of bf16 with bf16 go through the pair instruction or its emulation; all others through f32.
fn product(weights: Option<Format>, activations: Format) -> Compute {
    match (weights, activations) {
        (Some(Format::Bf16), Format::Bf16) => Compute::Bf16Pairs,
        _ => Compute::F32Fma,
    }
}
