//! Benchmarks: how fast a model generates, how fast single kernels are, and whether something became slower.

pub mod generation;
