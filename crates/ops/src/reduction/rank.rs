//! The largest logits, without sorting the vocabulary.

/// A logit and its token in one number, smaller the better the rank: the largest logit first, then the lowest token.
/// Comparing them is one instruction. 0 and -0 are equal; logits are not NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RankKey(pub u64);

impl RankKey {
    /// The key of a logit and its token.
    pub fn new(logit: f32, token: u32) -> RankKey {
        // Adding 0 makes -0 to 0. Bits of positive floats are ordered like the floats, those of negative ones the other
        // way round.
        let bits = (logit + 0.0).to_bits();
        let descending = if bits >> 31 == 0 { !bits & 0x7fff_ffff } else { bits };
        RankKey(u64::from(descending) << 32 | u64::from(token))
    }

    /// The token.
    pub fn token(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// The logit; 0 for -0.
    pub fn logit(self) -> f32 {
        let descending = (self.0 >> 32) as u32;
        f32::from_bits(if descending >> 31 == 0 { !descending & 0x7fff_ffff } else { descending })
    }
}

/// Replaces `best` by the `count` best-ranked tokens in order, or all if there are fewer. Tokens at minus infinity
/// are left out. `count` is at least 1, logits are not NaN.
///
/// One pass that compares each logit with the worst one worth keeping. Tokens that pass gather until there are twice
/// as many as wanted; then half of them go. So the work is linear in the logits whatever their order, and next to
/// nothing beyond the comparison in the usual one.
pub(super) fn best_ranked(logits: &[f32], count: usize, best: &mut Vec<RankKey>) {
    best.clear();
    let room = count.saturating_mul(2).max(64);
    let mut threshold = f32::NEG_INFINITY;
    for (token, &logit) in (0u32..).zip(logits) {
        // Strictly: of equal logits the earlier ones, with lower tokens, stay.
        if logit > threshold {
            best.push(RankKey::new(logit, token));
            if best.len() == room {
                keep_best(best, count);
                threshold = logits[best[count - 1].token() as usize];
            }
        }
    }
    keep_best(best, count);
    best.sort_unstable();
}

/// Drops all but the `count` best-ranked; the worst of those is the last one.
fn keep_best(keys: &mut Vec<RankKey>, count: usize) {
    if keys.len() > count {
        keys.select_nth_unstable(count - 1);
        keys.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn best(logits: &[f32], count: usize) -> Vec<u32> {
        let mut keys = Vec::new();
        best_ranked(logits, count, &mut keys);
        keys.into_iter().map(RankKey::token).collect()
    }

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
            let mut sorted: Vec<u32> =
                (0u32..).zip(&logits).filter(|&(_, &l)| l > f32::NEG_INFINITY).map(|(token, _)| token).collect();
            // A stable sort by logit alone leaves ties in order of tokens.
            sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            sorted.truncate(count);
            prop_assert_eq!(best(&logits, count), sorted);
        }

        #[test]
        fn keys_are_ordered_like_logits(a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(RankKey::new(a, 5) < RankKey::new(b, 5), a > b);
            prop_assert_eq!(RankKey::new(a, 4) < RankKey::new(b, 5), a >= b);
            let key = RankKey::new(a, u32::MAX);
            prop_assert_eq!((key.token(), key.logit()), (u32::MAX, a));
        }
    }

    #[test]
    fn ascending_logits_are_the_worst_case_and_right() {
        let logits: Vec<f32> = (0u16..20_000).map(f32::from).collect();
        assert_eq!(best(&logits, 3), [19_999, 19_998, 19_997]);
    }

    #[test]
    fn negative_zero_ties_with_zero() {
        assert_eq!(best(&[-0.0, 0.0, -0.0], 2), [0, 1]);
    }
}
