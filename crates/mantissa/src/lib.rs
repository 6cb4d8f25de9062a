//! Mantissa in one crate: load a checkpoint, set a precision policy, generate.

pub use mantissa_cpu as cpu;
pub use mantissa_engine as engine;
pub use mantissa_model as model;
pub use mantissa_numerics as numerics;
pub use mantissa_ops as ops;
