//! The CPU as a [`Backend`]: contracts, kernel choice, and the way into a session.

use std::num::NonZeroUsize;
use std::sync::Arc;

use mantissa_numerics::contract::{Compute, OpContract, Subnormals};
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, PrepareError, Progress, Session,
};
use mantissa_ops::{CeilingError, Ceilings, Op, Plan, Program, ShapeClass, TensorSource};

use crate::ceilings::{CpuCeilings, ReadProbe};
use crate::contracts::contracts;
use crate::experimental::{Experimental, Kernels};
use crate::isa::{Isa, Tier, UnavailableIsa};
use crate::pool::{Pool, PoolError};
use crate::session::{CpuSession, SessionMachine};

/// How to run on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads; as many as the system lets the process run where none is given.
    pub threads: Option<NonZeroUsize>,
    /// Instruction set; the best where none is given.
    pub isa: Option<Isa>,
    /// A kernel to take in the place of the usual one; nothing where none is given.
    pub experimental: Option<Experimental>,
}

/// The CPU cannot be used as asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CpuError {
    #[error(transparent)]
    Isa(#[from] UnavailableIsa),
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// The CPU backend.
#[derive(Debug)]
pub struct CpuBackend {
    tier: Tier,
    pool: Arc<Pool>,
    contracts: Vec<OpContract>,
    experimental: Option<Experimental>,
}

impl CpuBackend {
    /// Starts the threads and fixes the instruction set.
    ///
    /// # Errors
    /// Where the instruction set is not available, or threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<CpuBackend, CpuError> {
        let tier = match options.isa {
            Some(isa) => Tier::new(isa)?,
            None => Tier::detect(),
        };
        let threads = options.threads.unwrap_or_else(Pool::default_threads);
        let pool = Arc::new(Pool::new(threads)?);
        let contracts = contracts(CpuBackend::bf16_subnormals(tier.isa()));
        Ok(CpuBackend { tier, pool, contracts, experimental: options.experimental })
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The instruction set.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// What an instruction set's bf16 pair products do with subnormals.
    fn bf16_subnormals(isa: Isa) -> Subnormals {
        match isa {
            Isa::Avx512 => Subnormals::FlushedInProducts,
            Isa::Avx2 | Isa::Neon | Isa::Scalar => Subnormals::Kept,
        }
    }

    /// The contracts of an instruction set, whether or not this machine has it.
    pub fn contracts_of(isa: Isa) -> Vec<OpContract> {
        contracts(CpuBackend::bf16_subnormals(isa))
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            name: "cpu".to_owned(),
            device: device_name(),
            features: self.tier.isa().name().to_owned(),
            driver: None,
            threads: Some(self.pool.threads()),
            prompt_rows: 512,
        }
    }

    fn contracts(&self) -> &[OpContract] {
        &self.contracts
    }

    fn choose(&self, _program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        let compute = match contract.compute {
            Compute::Bf16Pairs => "bf16-pairs",
            Compute::F32Fma => "f32-fma",
            Compute::MatrixUnits { .. } => "matrix-units",
            Compute::F64 => "f64",
            Compute::None => "copy",
        };
        let (variant, why) = variant(op, class);
        let usual = KernelChoice {
            kernel: format!("{}.{compute}.{}{variant}", op.family(), self.tier.isa()),
            why: why.to_owned(),
        };
        self.experimental.and_then(|kernel| kernel.choice(op, &usual)).unwrap_or(usual)
    }

    fn ceilings(&self, bytes: usize) -> Result<Box<dyn Ceilings + '_>, CeilingError> {
        let probe = ReadProbe::new(bytes).map_err(|error| CeilingError::Device(error.to_string()))?;
        Ok(Box::new(CpuCeilings { pool: &self.pool, tier: self.tier, probe }))
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        let machine = SessionMachine {
            tier: self.tier,
            pool: Arc::clone(&self.pool),
            kernels: Kernels::new(self.experimental),
        };
        let session = CpuSession::prepare(machine, plan, source, options, progress)?;
        Ok(Box::new(session))
    }
}

/// The variant of a kernel for a class of shapes, and what decides it. All variants of a family obey one contract.
fn variant(op: &Op, class: ShapeClass) -> (&'static str, &'static str) {
    match op {
        Op::Matmul(_) | Op::Qkv(_) | Op::SwiGlu(_) | Op::Ffn(_) | Op::Logits(_) => match class {
            ShapeClass::Decode => (".gemv", "one row: weights are streamed once, at the speed of memory"),
            ShapeClass::SmallBatch => (".small", "few rows: weights are streamed once for all of them"),
            ShapeClass::Prefill => (".gemm", "many rows: register tiles reuse each weight"),
        },
        Op::Attention(_) => match class {
            ShapeClass::Decode => {
                (".decode", "one row a sequence: spans of the cache are split over threads")
            }
            ShapeClass::SmallBatch | ShapeClass::Prefill => {
                (".flash", "tiles of queries share each block of keys")
            }
        },
        Op::Embedding(_) | Op::RmsNorm(_) | Op::Rope(_) | Op::Softmax(_) | Op::Sdpa(_) | Op::Residual(_) => {
            ("", "the only variant")
        }
    }
}

/// The processor's name, as the system gives it.
fn device_name() -> String {
    let described = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    described.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
