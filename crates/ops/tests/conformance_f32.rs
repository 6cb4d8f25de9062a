//! The suite accepts honest f32 kernels: the interpreter in f32 arithmetic, under contracts that state its order.

use std::sync::Arc;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, Compute, Family, OpContract, Order};
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, PrepareError, Progress, Session,
};
use mantissa_ops::reference::Rounding;
use mantissa_ops::reference::number::{Number, Products, cache_scale, round_to};
use mantissa_ops::{Op, Plan, Program, ReferenceBackend, ShapeClass, TensorSource};

/// f32 arithmetic; sums are one chain of fused multiply-adds.
#[derive(Clone, Copy, Debug)]
struct Single(f32);

fn stored(value: f32, format: Format) -> f32 {
    round_to(f64::from(value), format) as f32
}

impl Number for Single {
    fn exact(value: f64) -> Self {
        Single(value as f32)
    }

    fn table(value: f64) -> Self {
        Single(value as f32)
    }

    fn value(self) -> f64 {
        f64::from(self.0)
    }

    fn interval(self) -> (f64, f64) {
        (self.value(), self.value())
    }

    fn add(self, other: Self) -> Self {
        Single(self.0 + other.0)
    }

    fn sub(self, other: Self) -> Self {
        Single(self.0 - other.0)
    }

    fn mul(self, other: Self) -> Self {
        Single(self.0 * other.0)
    }

    fn div(self, other: Self) -> Self {
        Single(self.0 / other.0)
    }

    fn sqrt(self) -> Self {
        Single(self.0.sqrt())
    }

    fn exp(self) -> Self {
        Single(self.0.exp())
    }

    fn exp2(self) -> Self {
        Single(self.0.exp2())
    }

    fn silu(self, _stored: Format) -> Self {
        Single(self.0 / (1.0 + (-self.0).exp()))
    }

    fn max(self, other: Self) -> Self {
        if self.0.is_nan() || other.0.is_nan() { Single(f32::NAN) } else { Single(self.0.max(other.0)) }
    }

    fn dot(terms: impl Iterator<Item = (Self, Self)>, _products: Products) -> Self {
        Single(terms.fold(0.0, |sum, (left, right)| left.0.mul_add(right.0, sum)))
    }

    fn sum(terms: impl Iterator<Item = Self>) -> Self {
        Single(terms.fold(0.0, |sum, term| sum + term.0))
    }

    fn rescaled(self, _times: usize) -> Self {
        self
    }

    fn round(self, format: Format) -> Self {
        Single(stored(self.0, format))
    }

    fn split(self, format: Format, unit: f64) -> Self {
        let unit = unit as f32;
        let high = stored(self.0 / unit, format);
        Single((high + stored(self.0 / unit - high, format)) * unit)
    }

    fn through_cache(vector: &mut [Self], cache: CacheFormat) {
        let scale = match cache.scales {
            None => 1.0,
            Some(format) => {
                cache_scale(vector.iter().map(|number| number.value()), cache.format, format) as f32
            }
        };
        for number in vector.iter_mut().filter(|_| scale != 0.0) {
            number.0 = stored(number.0 / scale, cache.format) * scale;
        }
    }
}

struct SingleBackend {
    contracts: Vec<OpContract>,
}

impl SingleBackend {
    fn new() -> SingleBackend {
        let mut contracts = ReferenceBackend::new(Rounding::AsContract).contracts().to_vec();
        // Mixed storage of two narrow formats adds time and nothing new to what is shown here.
        contracts.retain(|contract| {
            let activations = contract.query.activations;
            contract.query.weights.is_none_or(|weights| weights == Format::F32 || weights == activations)
        });
        for contract in &mut contracts {
            contract.compute = match contract.query.family {
                Family::Embedding | Family::Residual => Compute::None,
                _ => Compute::F32Fma,
            };
            assert!(matches!(contract.order, Order::Ascending | Order::Elementwise));
        }
        SingleBackend { contracts }
    }
}

impl Backend for SingleBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            name: "single".into(),
            device: "test".into(),
            features: String::new(),
            driver: None,
            threads: None,
            prompt_rows: 512,
        }
    }

    fn contracts(&self) -> &[OpContract] {
        &self.contracts
    }

    fn choose(
        &self,
        _program: &Program,
        op: &Op,
        _contract: &OpContract,
        _class: ShapeClass,
    ) -> KernelChoice {
        KernelChoice { kernel: op.family().name().into(), why: "the only one".into() }
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        Ok(Box::new(ReferenceBackend::prepare_in::<Single>(plan, source, options, progress)?))
    }
}

mantissa_ops::conformance!(SingleBackend::new());
