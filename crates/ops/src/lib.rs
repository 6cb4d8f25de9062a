//! What is computed, not who computes it: views, ops, programs, plans, the backend trait and the f64 reference.

pub mod backend;
pub mod batch;
pub mod builder;
pub mod ceilings;
pub mod conformance;
pub mod cost;
pub mod load;
pub mod matrix;
pub mod op;
pub mod plan;
pub mod program;
pub mod reduction;
pub mod reference;
pub mod rope;
pub mod source;
pub mod trace;
pub mod view;

pub use backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, LoadReport, MemoryUse, PrepareError, Progress, RunError,
    Session, StepObserver, ValueReader,
};
pub use batch::{Batch, Limits, SequenceRows};
pub use builder::ProgramBuilder;
pub use ceilings::{CeilingError, Ceilings};
pub use op::Op;
pub use plan::{Plan, PlanError, ShapeClass, Step};
pub use program::{Program, ValueId, WeightId};
pub use reference::{ReferenceBackend, ReferenceSession};
pub use source::{RowOrder, SourceError, TensorSource};
pub use trace::{Grain, Scope, Trace};
pub use view::{View, ViewError, WeightLayout};
