//! A program joined with a policy and a backend, before the first token.

use std::sync::Arc;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, OpContract, Order, Unsupported, look_up};
use mantissa_numerics::policy::PrecisionPolicy;

use crate::backend::{Backend, BackendInfo, KernelChoice, MemoryUse};
use crate::batch::{BatchRules, CacheUse};
use crate::cost::{Cost, RunShape, op_cost};
use crate::op::Op;
use crate::program::{Program, ValueId, cache_format};

/// Classes of batch sizes for which kernels are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ShapeClass {
    /// One row.
    Decode,
    /// 2 to 16 rows.
    SmallBatch,
    /// More.
    Prefill,
}

impl ShapeClass {
    /// Every class.
    pub const ALL: [ShapeClass; 3] = [ShapeClass::Decode, ShapeClass::SmallBatch, ShapeClass::Prefill];

    /// The class of a number of rows.
    pub fn of(rows: usize) -> ShapeClass {
        match rows {
            0..=1 => ShapeClass::Decode,
            2..=16 => ShapeClass::SmallBatch,
            _ => ShapeClass::Prefill,
        }
    }

    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            ShapeClass::Decode => "decode",
            ShapeClass::SmallBatch => "small batch",
            ShapeClass::Prefill => "prefill",
        }
    }
}

/// One resolved step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Name of the program's step.
    pub name: String,
    /// The op.
    pub op: Op,
    /// What its kernel does.
    pub contract: OpContract,
    /// The kernel for each [`ShapeClass`], in the order of [`ShapeClass::ALL`].
    pub kernels: [KernelChoice; 3],
}

impl Step {
    /// The kernel for a class of shapes.
    pub fn kernel(&self, class: ShapeClass) -> &KernelChoice {
        &self.kernels[class as usize]
    }
}

/// A program, a policy and a backend, resolved. Plain data.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program.
    pub program: Program,
    /// The policy.
    pub policy: PrecisionPolicy,
    /// Who will run it.
    pub backend: BackendInfo,
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// How all steps are launched in each [`ShapeClass`], where there is more to it than one kernel after another.
    pub launches: [Option<KernelChoice>; 3],
}

/// Every combination that the backend does not support, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy cannot be carried out:\n{}", lines(.unsupported))]
pub struct PlanError {
    /// Each once, named by the first step that wants it and the number of further ones.
    pub unsupported: Vec<Unsupported>,
}

/// Steps of a plan whose rows may have other numbers in other batches, where that is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the numbers of a row would depend on what else is in its batch:\n{}\nproducts of the backend's own (matmul backend \
     own or auto) do not depend on it",
    dependent_lines(.steps)
)]
pub struct BatchDependent {
    /// The first step of each contract that does not state its order, and how many more there are.
    pub steps: Vec<(String, OpContract, usize)>,
}

fn dependent_lines(steps: &[(String, OpContract, usize)]) -> String {
    let line = |(name, contract, more): &(String, OpContract, usize)| {
        let more = if *more == 0 { String::new() } else { format!(", and {more} more like it") };
        format!("  {name}: {} {contract}{more}", contract.query.family)
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn lines(unsupported: &[Unsupported]) -> String {
    unsupported.iter().map(|entry| format!("  {entry}")).collect::<Vec<_>>().join("\n")
}

impl Plan {
    /// Finds contract and kernels for every step.
    ///
    /// # Errors
    /// [`PlanError`] lists all combinations without a kernel.
    pub fn resolve(
        program: Program,
        policy: PrecisionPolicy,
        backend: &dyn Backend,
    ) -> Result<Arc<Plan>, PlanError> {
        let info = backend.info();
        let contracts = backend.contracts();
        let mut steps = Vec::with_capacity(program.steps.len());
        let mut unsupported: Vec<Unsupported> = Vec::new();
        for step in &program.steps {
            let query = program.query(&step.op, &policy);
            match look_up(contracts, &query, &info.name, &step.name) {
                Ok(contract) => {
                    let kernels =
                        ShapeClass::ALL.map(|class| backend.choose(&program, &step.op, contract, class));
                    steps.push(Step {
                        name: step.name.clone(),
                        op: step.op.clone(),
                        contract: contract.clone(),
                        kernels,
                    });
                }
                Err(missing) => {
                    if unsupported.iter().all(|known| known.query != missing.query) {
                        unsupported.push(missing);
                    }
                }
            }
        }
        if unsupported.is_empty() {
            let launches = ShapeClass::ALL.map(|class| backend.launches(&program, &policy, class));
            Ok(Arc::new(Plan { program, policy, backend: info, steps, launches }))
        } else {
            Err(PlanError { unsupported })
        }
    }

    /// Refuses a plan in which a row may have other numbers in another batch.
    ///
    /// # Errors
    /// [`BatchDependent`] names the steps.
    pub fn check_batch_invariance(&self) -> Result<(), BatchDependent> {
        let mut steps: Vec<(String, OpContract, usize)> = Vec::new();
        for step in self.steps.iter().filter(|step| step.contract.order == Order::Library) {
            match steps.iter_mut().find(|(_, contract, _)| *contract == step.contract) {
                Some((_, _, more)) => *more += 1,
                None => steps.push((step.name.clone(), step.contract.clone(), 0)),
            }
        }
        if steps.is_empty() { Ok(()) } else { Err(BatchDependent { steps }) }
    }

    /// How all steps are launched for a class of shapes.
    pub fn launch(&self, class: ShapeClass) -> Option<&KernelChoice> {
        self.launches[class as usize].as_ref()
    }

    /// Format of a value.
    pub fn value_format(&self, id: ValueId) -> Format {
        self.program.value_format(id, &self.policy)
    }

    /// Format of the KV cache.
    pub fn cache_format(&self) -> CacheFormat {
        cache_format(&self.policy)
    }

    /// Cost of one step for a shape.
    pub fn step_cost(&self, step: &Step, shape: &RunShape) -> Cost {
        op_cost(&self.program, &self.policy, &step.op, shape)
    }

    /// Cost of a whole run.
    pub fn cost(&self, shape: &RunShape) -> Cost {
        self.steps.iter().map(|step| self.step_cost(step, shape)).sum()
    }

    /// Weights and cache in bytes for `tokens` tokens of context, before anything is loaded.
    pub fn memory(&self, tokens: usize) -> MemoryUse {
        let weights = self.program.parameters() as u64 * u64::from(self.policy.weights().bits()) / 8;
        let per_token = self.program.cache.map_or(0, |cache| cache.bytes_per_token(self.cache_format()));
        MemoryUse { weights, cache: per_token as u64 * tokens as u64, scratch: 0 }
    }

    /// What batches of this plan must keep to.
    pub fn batch_rules(&self) -> BatchRules {
        let vocabulary = self.steps.iter().find_map(|step| match &step.op {
            Op::Embedding(op) => Some(self.program.weight(op.table).rows),
            _ => None,
        });
        let cache = if self.program.cache.is_some() { CacheUse::Paged } else { CacheUse::None };
        BatchRules {
            vocabulary,
            cache,
            rope_sets: self.program.rope.as_ref().map_or(0, |rope| rope.sets.len()),
        }
    }
}
