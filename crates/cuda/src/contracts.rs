//! What the CUDA backend can do: every combination that has a kernel, as data. It does not depend on the device.

use mantissa_numerics::Format;
use mantissa_numerics::contract::{
    CacheFormat, Compute, ContractQuery, Family, OpContract, Order, RoundingPoint, Subnormals,
};

use crate::families::{attention, norm, products, softmax};

/// Formats of weights and activations.
pub(crate) const STORAGE: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

/// Formats of the KV cache.
pub(crate) const CACHES: [CacheFormat; 5] = [
    CacheFormat::plain(Format::F32),
    CacheFormat::plain(Format::F16),
    CacheFormat::plain(Format::Bf16),
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) },
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) },
];

/// Every contract.
pub fn contracts() -> Vec<OpContract> {
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
                    all.push(contract(ContractQuery { family, weights, activations, cache, accumulate }));
                }
            }
        }
    }
    all
}

fn contract(query: ContractQuery) -> OpContract {
    let (compute, order) = match query.family {
        Family::Embedding | Family::Residual => (Compute::None, Order::Elementwise),
        Family::Rope => (Compute::F32Fma, Order::Elementwise),
        Family::RmsNorm => (Compute::F32Fma, norm::ORDER),
        Family::Softmax => (Compute::F32Fma, softmax::ORDER),
        Family::Sdpa => (Compute::F32Fma, Order::Ascending),
        Family::Attention => (Compute::F32Fma, attention::ORDER),
        Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits => {
            // Every family of products has weights.
            products::compute(query.weights.unwrap_or(query.activations), query.activations)
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
    OpContract { query, output, compute, rounding, order, subnormals: Subnormals::Kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dense_combination_has_one_contract() {
        let contracts = contracts();
        // Six families have weights alone, four neither weights nor a cache, and two a cache.
        let (with_weights, with_neither) = (6 * 9, 4 * 3);
        let (qkv, attention) = (9 * 5, 3 * 5);
        assert_eq!(contracts.len(), with_weights + with_neither + qkv + attention);
        for (index, contract) in contracts.iter().enumerate() {
            assert!(contracts[..index].iter().all(|other| other.query != contract.query));
        }
    }

    #[test]
    fn matrix_units_multiply_where_both_operands_have_their_format() {
        for contract in contracts() {
            let ContractQuery { weights, activations, .. } = contract.query;
            let product = matches!(
                contract.query.family,
                Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits
            );
            let expected = product && weights == Some(activations) && activations != Format::F32;
            assert_eq!(matches!(contract.compute, Compute::MatrixUnits { .. }), expected, "{contract}");
        }
    }
}
