//! Prompts to measure with.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random tokens, the same for the same seed; 0 is none of them, which often stands for padding.
pub fn random_ids(vocabulary: usize, length: usize, seed: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed as u64);
    let end = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(2);
    (0..length).map(|_| random.random_range(1..end)).collect()
}
