//! What the CUDA backend can do: every combination that has a kernel, as data. It does not depend on the device, but on
//! whose products are asked for: a library's are other contracts.

use mantissa_numerics::contract::{
    CacheFormat, Compute, ContractQuery, Family, OpContract, Order, Subnormals,
};

use crate::families::{attention, library, norm, products, softmax};

/// Every contract under these preferences.
pub fn contracts(preferences: products::Preferences) -> Vec<OpContract> {
    ContractQuery::unquantised().into_iter().map(|query| contract(query, preferences)).collect()
}

fn contract(query: ContractQuery, preferences: products::Preferences) -> OpContract {
    let (compute, order) = match query.family {
        Family::Embedding | Family::Residual => (Compute::None, Order::Elementwise),
        Family::Rope => (Compute::F32Fma, Order::Elementwise),
        Family::RmsNorm => (Compute::F32Fma, norm::ORDER),
        Family::Softmax => (Compute::F32Fma, softmax::ORDER),
        Family::Sdpa => (Compute::F32Fma, Order::Ascending),
        Family::Attention => attention::compute(attention_unit(&query)),
        Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits => {
            // Every family of products has weights.
            let weights = query.weights.unwrap_or(query.activations);
            if library::serves(weights, query.activations, preferences) {
                library::compute(query.activations)
            } else {
                products::compute(weights, query.activations)
            }
        }
    };
    OpContract {
        query,
        output: query.output(),
        compute,
        rounding: match query.family {
            Family::Attention => attention::rounding(attention_unit(&query)),
            _ => query.rounding(),
        },
        order,
        subnormals: Subnormals::Kept,
    }
}

fn attention_unit(query: &ContractQuery) -> attention::Unit {
    // Every query about attention has a cache.
    attention::unit(query.activations, query.cache.unwrap_or(CacheFormat::plain(query.activations)))
}

#[cfg(test)]
mod tests {
    use mantissa_numerics::Format;
    use mantissa_numerics::contract::RoundingPoint;

    use super::*;
    use crate::families::products::{MatmulBackend, Preferences};

    #[test]
    fn every_dense_combination_has_one_contract() {
        let contracts = contracts(Preferences::default());
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
        for contract in contracts(Preferences::default()) {
            let ContractQuery { family, weights, activations, cache, .. } = contract.query;
            let other = match (family, cache) {
                (Family::Attention, Some(CacheFormat { scales: Some(_), .. })) => Some(activations),
                (Family::Attention, cache) => cache.map(|cache| cache.format),
                (Family::Matmul | Family::Qkv | Family::SwiGlu | Family::Ffn | Family::Logits, _) => weights,
                _ => None,
            };
            let expected = other == Some(activations) && activations != Format::F32;
            assert_eq!(matches!(contract.compute, Compute::MatrixUnits { .. }), expected, "{contract}");
            let split = contract.rounding.contains(&RoundingPoint::SoftmaxWeights);
            assert_eq!(split, expected && family == Family::Attention, "{contract}");
        }
    }

    #[test]
    fn a_library_changes_the_order_of_the_products_that_it_serves_and_nothing_else() {
        let library = Preferences { backend: MatmulBackend::CublasLt, ..Preferences::default() };
        for (own, other) in contracts(Preferences::default()).into_iter().zip(contracts(library)) {
            let ContractQuery { family, weights, activations, .. } = own.query;
            let product = family.has_weights() && !matches!(family, Family::Embedding | Family::RmsNorm);
            if product && weights == Some(activations) {
                assert_eq!(other.order, Order::Library, "{other}");
            } else {
                assert_eq!(own, other);
            }
        }
        let own = Preferences { backend: MatmulBackend::Own, ..Preferences::default() };
        assert_eq!(contracts(own), contracts(Preferences::default()));
    }
}
