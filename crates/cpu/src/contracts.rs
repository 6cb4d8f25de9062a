//! What the CPU backend can do: every combination that has a kernel, as data.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{
    CacheFormat, Compute, ContractQuery, Family, Merge, OpContract, Order, RoundingPoint, Subnormals,
};

use crate::attention::SPAN;
use crate::simd::LANES;

/// Formats of weights and activations.
const STORAGE: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

/// Formats of the KV cache.
const CACHES: [CacheFormat; 5] = [
    CacheFormat::plain(Format::F32),
    CacheFormat::plain(Format::F16),
    CacheFormat::plain(Format::Bf16),
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) },
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) },
];

/// Every contract, with the bf16 pair products' treatment of subnormals that the instruction set has.
pub(crate) fn contracts(bf16_subnormals: Subnormals) -> Vec<OpContract> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let weights: Vec<Option<Format>> =
            if family.has_weights() { STORAGE.map(Some).to_vec() } else { vec![None] };
        let caches: Vec<Option<CacheFormat>> =
            if family.has_cache() { CACHES.map(Some).to_vec() } else { vec![None] };
        for &weights in &weights {
            for activations in STORAGE {
                for &cache in &caches {
                    let accumulate = Format::F32;
                    let query = ContractQuery { family, weights, activations, cache, accumulate };
                    all.push(contract(query, bf16_subnormals));
                }
            }
        }
    }
    all
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
    let rounding: &'static [RoundingPoint] = match (query.family, query.cache.and_then(|cache| cache.scales))
    {
        (Family::Qkv, None) => &[RoundingPoint::Output, RoundingPoint::CacheWrite],
        (Family::Qkv, Some(_)) => {
            &[RoundingPoint::Output, RoundingPoint::CacheWrite, RoundingPoint::CacheScale]
        }
        (Family::Ffn, _) => &[RoundingPoint::Intermediate, RoundingPoint::Output],
        _ => &[RoundingPoint::Output],
    };
    let output = match query.family {
        Family::Logits => Format::F32,
        _ => query.activations,
    };
    let subnormals = match compute {
        Compute::Bf16Pairs => bf16_subnormals,
        Compute::F32Fma | Compute::MatrixUnits { .. } | Compute::F64 | Compute::None => Subnormals::Kept,
    };
    OpContract { query, output, compute, rounding, order, subnormals }
}

/// Products of bf16 with bf16 go through the pair instruction or its emulation; all others through f32.
fn product(weights: Option<Format>, activations: Format) -> Compute {
    match (weights, activations) {
        (Some(Format::Bf16), Format::Bf16) => Compute::Bf16Pairs,
        _ => Compute::F32Fma,
    }
}
