//! Rotary tables: the numbers that every backend rotates by.

use crate::program::{RopeSet, RopeSpec};

/// A set with another number of frequencies than the rotary dimensions have pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frequency set {set}: wanted {wanted} frequencies for the rotary pairs, got {got}")]
pub struct FrequencyError {
    /// Which set.
    pub set: usize,
    /// Pairs.
    pub wanted: usize,
    /// Frequencies.
    pub got: usize,
}

impl RopeSpec {
    /// Rotary pairs of a head.
    pub fn pairs(&self) -> usize {
        self.rotary_dim / 2
    }

    /// Demands one frequency for each pair in every set.
    ///
    /// # Errors
    /// The first set that has another number.
    pub fn check(&self) -> Result<(), FrequencyError> {
        let wanted = self.pairs();
        for (set, frequencies) in self.sets.iter().enumerate() {
            let got = frequencies.inverse_frequencies.len();
            if got != wanted {
                return Err(FrequencyError { set, wanted, got });
            }
        }
        Ok(())
    }
}

impl RopeSet {
    /// Cosines and sines of a position, one of each per pair. Angles, cosines, sines and their product with the
    /// attention factor are f64, rounded once to f32.
    pub fn rotation(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        let pairs = cos.iter_mut().zip(sin).zip(&self.inverse_frequencies);
        for ((cos, sin), frequency) in pairs {
            let (s, c) = (position as f64 * frequency).sin_cos();
            *cos = (c * self.attention_factor) as f32;
            *sin = (s * self.attention_factor) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_are_those_of_the_angles() {
        let set = RopeSet { inverse_frequencies: vec![1.0, 0.25], attention_factor: 2.0 };
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        set.rotation(3, &mut cos, &mut sin);
        assert_eq!(cos, [(2.0 * 3.0_f64.cos()) as f32, (2.0 * 0.75_f64.cos()) as f32]);
        assert_eq!(sin, [(2.0 * 3.0_f64.sin()) as f32, (2.0 * 0.75_f64.sin()) as f32]);
    }

    #[test]
    fn every_pair_needs_a_frequency() {
        let set = RopeSet { inverse_frequencies: vec![1.0, 0.25], attention_factor: 1.0 };
        let spec = RopeSpec { rotary_dim: 6, sets: vec![set], long_beyond: None };
        assert_eq!(spec.check(), Err(FrequencyError { set: 0, wanted: 3, got: 2 }));
        assert_eq!(RopeSpec { rotary_dim: 4, ..spec }.check(), Ok(()));
    }
}
