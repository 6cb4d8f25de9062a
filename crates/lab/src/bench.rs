//! Benchmarks: how fast a model generates, how fast single kernels are, and whether something became slower.

pub mod compare;
pub mod generation;
pub mod record;
pub mod statistics;
pub mod sweep;
pub mod variants;
