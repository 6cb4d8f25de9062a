//! The largest logits, without sorting the vocabulary.

use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) token: u32,
}

impl Candidate {
    /// Largest logit first, then lowest token. Total, as no logit is NaN; 0 and -0 are equal.
    fn rank(&self, other: &Self) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal);
        by_logit.then(self.token.cmp(&other.token))
    }
}

/// Replaces `best` by the `count` best-ranked tokens in order, or all if there are fewer. Tokens at minus infinity
/// are left out. `count` is at least 1, logits are not NaN.
///
/// One pass that compares each logit with the worst one worth keeping. Tokens that pass gather until there are twice
/// as many as wanted; then half of them go. So the work is linear in the logits whatever their order, and next to
/// nothing beyond the comparison in the usual one.
pub(super) fn best_candidates(logits: &[f32], count: usize, best: &mut Vec<Candidate>) {
    best.clear();
    let room = count.saturating_mul(2).max(64);
    let mut threshold = f32::NEG_INFINITY;
    for (token, &logit) in (0u32..).zip(logits) {
        // Strictly: of equal logits the earlier ones, with lower tokens, stay.
        if logit > threshold {
            best.push(Candidate { logit, token });
            if best.len() == room {
                keep_best(best, count);
                threshold = best[count - 1].logit;
            }
        }
    }
    keep_best(best, count);
    best.sort_unstable_by(Candidate::rank);
}

/// Drops all but the `count` best-ranked; the worst of those is the last one.
fn keep_best(candidates: &mut Vec<Candidate>, count: usize) {
    if candidates.len() > count {
        candidates.select_nth_unstable_by(count - 1, Candidate::rank);
        candidates.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_full_sort(
            // Few distinct values, so that ties straddle the cut.
            logits in prop::collection::vec(prop_oneof![-4i8..4, Just(i8::MIN)], 1..700),
            count in 1usize..800,
        ) {
            let logits: Vec<f32> = logits
                .into_iter()
                .map(|l| if l == i8::MIN { f32::NEG_INFINITY } else { f32::from(l) * 0.5 })
                .collect();
            let mut sorted: Vec<Candidate> = (0u32..)
                .zip(&logits)
                .filter(|&(_, &logit)| logit > f32::NEG_INFINITY)
                .map(|(token, &logit)| Candidate { logit, token })
                .collect();
            // A stable sort by logit alone leaves ties in order of tokens.
            sorted.sort_by(|a, b| b.logit.total_cmp(&a.logit));
            sorted.truncate(count);
            let mut best = Vec::new();
            best_candidates(&logits, count, &mut best);
            prop_assert_eq!(best, sorted);
        }
    }

    #[test]
    fn ascending_logits_are_the_worst_case_and_right() {
        let logits: Vec<f32> = (0u16..20_000).map(f32::from).collect();
        let mut best = Vec::new();
        best_candidates(&logits, 3, &mut best);
        assert_eq!(best.iter().map(|c| c.token).collect::<Vec<_>>(), [19_999, 19_998, 19_997]);
    }

    #[test]
    fn negative_zero_ties_with_zero() {
        let mut best = Vec::new();
        best_candidates(&[-0.0, 0.0, -0.0], 2, &mut best);
        assert_eq!(best.iter().map(|c| c.token).collect::<Vec<_>>(), [0, 1]);
    }
}
