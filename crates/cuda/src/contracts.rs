//! What the CUDA backend can do: every combination that has a kernel, as data. It does not depend on the device.

use mantissa_numerics::contract::{Compute, ContractQuery, Family, OpContract, Order, Subnormals};

use crate::families::{attention, norm, products, softmax};

/// Every contract.
pub fn contracts() -> Vec<OpContract> {
    ContractQuery::unquantised().into_iter().map(contract).collect()
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
    OpContract {
        query,
        output: query.output(),
        compute,
        rounding: query.rounding(),
        order,
        subnormals: Subnormals::Kept,
    }
}

#[cfg(test)]
mod tests {
    use mantissa_numerics::Format;

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
