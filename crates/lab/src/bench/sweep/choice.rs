//! Whether a backend chose well.

use mantissa::numerics::PrecisionPolicy;

use super::{Chosen, Row, Sweep};
use crate::bench::statistics::{holm, paired};
use crate::stats::Spread;

/// A test in which another variant was faster than the one that the backend takes by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Slower {
    /// How numbers are kept.
    pub policy: PrecisionPolicy,
    /// The test.
    pub test: String,
    /// What the backend takes.
    pub chosen: String,
    /// What was faster.
    pub faster: String,
    /// Time of the chosen one over that of the faster one: the median of the rounds.
    pub ratio: f64,
    /// How probable such a difference is where there is none, raised for the number of comparisons.
    pub probability: f64,
}

impl Sweep {
    /// The tests in which a variant was faster than the chosen one, beyond noise: in Student's test of the pairs that the two
    /// form in each round, with at most this probability of a false alarm among all of them.
    pub fn slower(&self, level: f64) -> Vec<Slower> {
        let mut pairs = Vec::new();
        for chosen in self.rows.iter().filter(|row| row.chosen == Chosen::Yes) {
            let rivals = self.rows.iter().filter(|row| {
                row.chosen == Chosen::No && row.test == chosen.test && row.policy == chosen.policy
            });
            pairs.extend(rivals.filter_map(|rival| compare(chosen, rival)));
        }
        let raised = holm(&pairs.iter().map(|pair| pair.probability).collect::<Vec<_>>());
        let mut found: Vec<Slower> = Vec::new();
        for (pair, probability) in pairs.into_iter().zip(raised).filter(|(_, raised)| *raised <= level) {
            let pair = Slower { probability, ..pair };
            match found.iter_mut().find(|known| known.test == pair.test && known.policy == pair.policy) {
                Some(known) if known.ratio < pair.ratio => *known = pair,
                Some(_) => {}
                None => found.push(pair),
            }
        }
        found
    }
}

fn compare(chosen: &Row, rival: &Row) -> Option<Slower> {
    let pairs = chosen.repetitions.iter().zip(&rival.repetitions);
    let differences: Vec<f64> = pairs.map(|(a, b)| (a.seconds / b.seconds).ln()).collect();
    let probability = paired(&differences);
    Some(Slower {
        policy: chosen.policy,
        test: chosen.test.clone(),
        chosen: chosen.variant.clone(),
        faster: rival.variant.clone(),
        ratio: Spread::of(differences)?.median.exp(),
        probability,
    })
}
