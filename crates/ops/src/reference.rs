//! The f64 oracle: a plain interpreter of every op, as a backend.
//!
//! It is written to be read, not to be fast. Contracts of other backends are judged by it, see
//! [`conformance`](mod@crate::conformance), and so are whole models.

pub mod as_contract;
mod attention;
mod bounded;
mod cache;
mod kernels;
pub mod number;
mod session;

use std::sync::Arc;

use mantissa_numerics::contract::{Compute, ContractQuery, Family, OpContract, Order, Subnormals};

use crate::backend::{Backend, BackendInfo, KernelChoice, LoadOptions, PrepareError, Progress, Session};
use crate::op::Op;
use crate::plan::{Plan, ShapeClass};
use crate::program::Program;
use crate::source::TensorSource;

use self::number::{Exact, Number, Rounded};
pub use self::session::ReferenceSession;

/// What the reference rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing but the weights, once, into the policy's format: the truth of that checkpoint and policy.
    Exact,
    /// What the contract says, where it says so, and nothing else.
    AsContract,
}

/// The reference as a [`Backend`].
#[derive(Clone, Debug)]
pub struct ReferenceBackend {
    rounding: Rounding,
    contracts: Vec<OpContract>,
}

impl ReferenceBackend {
    /// The reference with or without the contract's rounding points.
    pub fn new(rounding: Rounding) -> ReferenceBackend {
        ReferenceBackend {
            rounding,
            contracts: ContractQuery::unquantised().into_iter().map(contract).collect(),
        }
    }

    /// Prepares a session in any arithmetic, whoever resolved the plan.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    pub fn prepare_in<N: Number>(
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<ReferenceSession<N>, PrepareError> {
        ReferenceSession::prepare(plan, source, options, progress)
    }
}

fn contract(query: ContractQuery) -> OpContract {
    let order = match query.family {
        Family::Embedding | Family::Rope | Family::Residual => Order::Elementwise,
        Family::RmsNorm
        | Family::Softmax
        | Family::Sdpa
        | Family::Matmul
        | Family::Qkv
        | Family::Attention
        | Family::SwiGlu
        | Family::Ffn
        | Family::Logits => Order::Ascending,
    };
    OpContract {
        query,
        output: query.output(),
        compute: Compute::F64,
        rounding: query.rounding(),
        order,
        subnormals: Subnormals::Kept,
    }
}

impl Backend for ReferenceBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            name: "reference".into(),
            device: "this machine, in f64".into(),
            features: match self.rounding {
                Rounding::Exact => "exact".into(),
                Rounding::AsContract => "as the contract says".into(),
            },
            driver: None,
            threads: Some(1),
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
        KernelChoice { kernel: format!("{}.f64", op.family()), why: "the reference has one of each".into() }
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        Ok(match self.rounding {
            Rounding::Exact => Box::new(Self::prepare_in::<Exact>(plan, source, options, progress)?),
            Rounding::AsContract => Box::new(Self::prepare_in::<Rounded>(plan, source, options, progress)?),
        })
    }
}
