//! From logits to log-likelihoods, KL divergence and agreement.
//!
//! Logits come in f32. Exponentials, their sums and what is made of them are f64: the divergence of close policies is
//! the difference of nearly equal numbers and would drown in the rounding of f32. A log-likelihood is then given in f32.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

/// Rows are given to threads in blocks of so many logits: large enough to be worth the lock.
const BLOCK_LOGITS: usize = 1 << 15;

/// Logits that are no distribution, or do not fit the tokens.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LikelihoodError {
    #[error(
        "row {row}: the logit of token {token} is {logit}; logits must be finite, or -inf for what cannot follow"
    )]
    NotANumber { row: usize, token: usize, logit: f32 },
    #[error("row {row}: every logit is -inf, so that nothing can follow")]
    Nothing { row: usize },
    #[error("row {row}: token {token} is outside the vocabulary of {vocabulary}")]
    Token { row: usize, token: u32, vocabulary: usize },
    #[error(
        "{tokens} tokens with {policy} logits, and {reference} of the reference: wanted whole rows for each token"
    )]
    Lengths { tokens: usize, policy: usize, reference: usize },
}

/// One position under two policies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compared {
    /// Log-likelihood of the token that follows under the policy, in nats.
    pub policy: f32,
    /// And under the reference.
    pub reference: f32,
    /// KL divergence of the policy's distribution from the reference's, `sum p_reference ln(p_reference / p_policy)`, in
    /// nats; infinite where the policy excludes what the reference does not.
    pub divergence: f64,
    /// Whether the most probable token is the same; of equally probable ones the lowest.
    pub same_top: bool,
}

/// Log-likelihoods, in nats, of the token that follows each row of `[tokens, vocabulary]` logits. The result does not
/// depend on the number of threads.
///
/// # Errors
/// Where a logit is NaN or `+inf`, or a token is outside the vocabulary.
pub fn log_likelihoods(
    logits: &[f32],
    next: &[u32],
    threads: NonZeroUsize,
) -> Result<Vec<f32>, LikelihoodError> {
    let vocabulary = vocabulary(logits, logits, next)?;
    each_row(next.len(), vocabulary, threads, |row| {
        let logits = row_of(logits, row, vocabulary);
        let top = Top::of(logits).map_err(|error| error.at(row))?;
        let sum: f64 = logits.iter().map(|&logit| top.exp(logit)).sum();
        top.log_likelihood(logits, sum, next[row], row)
    })
}

/// Compares two policies at each row of `[tokens, vocabulary]` logits. The result does not depend on the number of
/// threads, and the log-likelihoods are those of [`log_likelihoods`].
///
/// # Errors
/// As [`log_likelihoods`].
pub fn compare(
    policy: &[f32],
    reference: &[f32],
    next: &[u32],
    threads: NonZeroUsize,
) -> Result<Vec<Compared>, LikelihoodError> {
    let vocabulary = vocabulary(policy, reference, next)?;
    each_row(next.len(), vocabulary, threads, |row| {
        compare_row(row_of(policy, row, vocabulary), row_of(reference, row, vocabulary), next[row], row)
    })
}

fn compare_row(
    policy: &[f32],
    reference: &[f32],
    next: u32,
    row: usize,
) -> Result<Compared, LikelihoodError> {
    let top = Top::of(policy).map_err(|error| error.at(row))?;
    let reference_top = Top::of(reference).map_err(|error| error.at(row))?;
    let (mut sum, mut reference_sum, mut weighted) = (0.0, 0.0, 0.0);
    for (&logit, &reference_logit) in policy.iter().zip(reference) {
        let weight = reference_top.exp(reference_logit);
        sum += top.exp(logit);
        reference_sum += weight;
        // What the reference excludes adds nothing, even where the policy excludes it, too.
        if weight > 0.0 {
            weighted += weight * (f64::from(reference_logit) - f64::from(logit));
        }
    }
    // ln p - ln q = (x - ln sum e^x) - (y - ln sum e^y): the last terms are the same for all tokens.
    let divergence = weighted / reference_sum - reference_top.log_sum(reference_sum) + top.log_sum(sum);
    Ok(Compared {
        policy: top.log_likelihood(policy, sum, next, row)?,
        reference: reference_top.log_likelihood(reference, reference_sum, next, row)?,
        // It is never negative but by rounding.
        divergence: divergence.max(0.0),
        same_top: top.token == reference_top.token,
    })
}

/// The largest logit of a row.
#[derive(Clone, Copy, Debug)]
struct Top {
    logit: f32,
    token: usize,
}

/// What is wrong with a row that is not known yet.
enum BadRow {
    NotANumber { token: usize, logit: f32 },
    Nothing,
}

impl BadRow {
    fn at(self, row: usize) -> LikelihoodError {
        match self {
            BadRow::NotANumber { token, logit } => LikelihoodError::NotANumber { row, token, logit },
            BadRow::Nothing => LikelihoodError::Nothing { row },
        }
    }
}

impl Top {
    /// Of equal ones the first.
    fn of(logits: &[f32]) -> Result<Top, BadRow> {
        let mut top = Top { logit: f32::NEG_INFINITY, token: 0 };
        for (token, &logit) in logits.iter().enumerate() {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(BadRow::NotANumber { token, logit });
            }
            if logit > top.logit {
                top = Top { logit, token };
            }
        }
        if top.logit == f32::NEG_INFINITY { Err(BadRow::Nothing) } else { Ok(top) }
    }

    /// `e^(logit - top)`.
    fn exp(self, logit: f32) -> f64 {
        (f64::from(logit) - f64::from(self.logit)).exp()
    }

    /// `ln sum e^logit`, given `sum e^(logit - top)`, which is at least 1.
    fn log_sum(self, sum: f64) -> f64 {
        f64::from(self.logit) + sum.ln()
    }

    fn log_likelihood(self, logits: &[f32], sum: f64, next: u32, row: usize) -> Result<f32, LikelihoodError> {
        let outside = LikelihoodError::Token { row, token: next, vocabulary: logits.len() };
        let logit = *logits.get(next as usize).ok_or(outside)?;
        // Of f64 to f32, the nearest; both are IEEE formats of the language.
        Ok((f64::from(logit) - f64::from(self.logit) - sum.ln()) as f32)
    }
}

fn row_of(logits: &[f32], row: usize, vocabulary: usize) -> &[f32] {
    &logits[row * vocabulary..(row + 1) * vocabulary]
}

fn vocabulary(policy: &[f32], reference: &[f32], next: &[u32]) -> Result<usize, LikelihoodError> {
    let (tokens, lengths) = (next.len(), (policy.len(), reference.len()));
    let vocabulary = policy.len().checked_div(tokens).unwrap_or(0);
    if lengths != (tokens * vocabulary, tokens * vocabulary) || (tokens > 0 && vocabulary == 0) {
        return Err(LikelihoodError::Lengths { tokens, policy: lengths.0, reference: lengths.1 });
    }
    Ok(vocabulary)
}

/// Works on all rows, on several threads where it is worth it, and gives the results in the order of the rows.
fn each_row<T: Clone + Default + Send>(
    rows: usize,
    vocabulary: usize,
    threads: NonZeroUsize,
    work: impl Fn(usize) -> Result<T, LikelihoodError> + Sync,
) -> Result<Vec<T>, LikelihoodError> {
    let mut results = vec![T::default(); rows];
    let block = (BLOCK_LOGITS / vocabulary.max(1)).max(1);
    let helpers = threads.get().min(rows.div_ceil(block)).saturating_sub(1);
    let waiting = Mutex::new(results.chunks_mut(block).enumerate());
    let first_error: Mutex<Option<(usize, LikelihoodError)>> = Mutex::new(None);
    let take_part = || {
        loop {
            let Some((index, results)) = lock(&waiting).next() else { return };
            for (offset, result) in results.iter_mut().enumerate() {
                let row = index * block + offset;
                match work(row) {
                    Ok(value) => *result = value,
                    Err(error) => {
                        let mut first = lock(&first_error);
                        if first.is_none_or(|(earlier, _)| row < earlier) {
                            *first = Some((row, error));
                        }
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // Where no thread is to be had, this one does the work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, take_part);
        }
        take_part();
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(results),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INFINITY: f32 = f32::INFINITY;

    fn one() -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    /// Log-probabilities by the definition.
    fn brute_force(logits: &[f32]) -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = || logits.iter().map(|&logit| f64::from(logit) - f64::from(max));
        let sum: f64 = shifted().map(f64::exp).sum();
        shifted().map(|logit| logit - sum.ln()).collect()
    }

    #[test]
    fn likelihoods_of_rows_made_by_hand() {
        // Two equal logits, a certain one, and one beyond all reason.
        let logits = [1.0, 1.0, -INFINITY, 0.0, 90.0, -30.0, 3e38, -3e38, 0.0];
        let found = log_likelihoods(&logits, &[1, 1, 0], one()).expect("likelihoods");
        assert_eq!(found, [(0.5_f64).ln() as f32, 0.0, 0.0]);
        let unlikely = log_likelihoods(&logits, &[2, 0, 1], one()).expect("likelihoods");
        assert_eq!(unlikely, [-INFINITY, -90.0, -6e38_f64 as f32]);
        assert_eq!(log_likelihoods(&[], &[], one()), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for bad in [f32::NAN, INFINITY] {
            let logits = [0.0, 1.0, bad, 2.0];
            let error = log_likelihoods(&logits, &[0, 0], one()).expect_err("no number");
            assert!(matches!(error, LikelihoodError::NotANumber { row: 1, token: 0, .. }), "{error}");
            assert!(compare(&logits, &[0.0; 4], &[0, 0], one()).is_err());
            assert!(compare(&[0.0; 4], &logits, &[0, 0], one()).is_err());
        }
        let nothing = log_likelihoods(&[-INFINITY; 2], &[0], one());
        assert_eq!(nothing, Err(LikelihoodError::Nothing { row: 0 }));
        let outside = log_likelihoods(&[0.0; 2], &[2], one());
        assert_eq!(outside, Err(LikelihoodError::Token { row: 0, token: 2, vocabulary: 2 }));
        assert!(matches!(log_likelihoods(&[0.0; 3], &[0, 0], one()), Err(LikelihoodError::Lengths { .. })));
        assert!(matches!(log_likelihoods(&[], &[0], one()), Err(LikelihoodError::Lengths { .. })));
        let lengths = compare(&[0.0; 4], &[0.0; 2], &[0, 0], one());
        assert_eq!(lengths, Err(LikelihoodError::Lengths { tokens: 2, policy: 4, reference: 2 }));
    }

    #[test]
    fn a_policy_is_as_its_reference_or_it_is_not() {
        let logits = [0.3, -2.0, 5.0, 5.0];
        let same = compare(&logits, &logits, &[0], one()).expect("a comparison")[0];
        assert_eq!((same.divergence, same.same_top), (0.0, true));
        assert_eq!(same.policy, same.reference);
        // The tie goes to the lowest token, which is another one now.
        let other = compare(&[0.3, -2.0, 4.9, 5.0], &logits, &[0], one()).expect("a comparison")[0];
        assert!(!other.same_top && other.divergence > 0.0);
        // What is excluded by the policy alone makes the divergence infinite; by the reference, it adds nothing.
        let half = [0.0, -INFINITY];
        let excluded = compare(&half, &[0.0, 0.0], &[0], one()).expect("a comparison")[0];
        assert_eq!(excluded.divergence, f64::INFINITY);
        let kept = compare(&[0.0, 0.0], &half, &[0], one()).expect("a comparison")[0];
        assert!((kept.divergence - 2_f64.ln()).abs() < 1e-15);
        assert_eq!(compare(&half, &half, &[0], one()).expect("a comparison")[0].divergence, 0.0);
    }

    #[test]
    fn the_divergence_of_close_policies_is_not_lost_in_rounding() {
        // Moving one logit of two by d changes the distribution by d/4: KL = d^2 / 8 to the second order.
        let d = 1.0 / 4096.0;
        let found = compare(&[20.0, 20.0 + d], &[20.0, 20.0], &[0], one()).expect("a comparison")[0];
        let expected = f64::from(d).powi(2) / 8.0;
        assert!((found.divergence / expected - 1.0).abs() < 1e-6, "{} of {expected}", found.divergence);
    }

    proptest! {
        #[test]
        fn everything_is_as_the_definition_says(
            rows in 1_usize..6,
            numbers in proptest::collection::vec(-40.0_f32..40.0, 7 * 6),
            noise in proptest::collection::vec(-0.5_f32..0.5, 7 * 6),
            next in proptest::collection::vec(0_u32..7, 6),
            threads in 1_usize..4,
        ) {
            let (logits, next) = (&numbers[..rows * 7], &next[..rows]);
            let policy: Vec<f32> = logits.iter().zip(&noise).map(|(logit, noise)| logit + noise).collect();
            let threads = NonZeroUsize::new(threads).expect("threads");
            let found = compare(&policy, logits, next, threads).expect("a comparison");
            prop_assert_eq!(
                log_likelihoods(&policy, next, threads).expect("likelihoods"),
                found.iter().map(|row| row.policy).collect::<Vec<_>>()
            );
            for (row, found) in found.iter().enumerate() {
                let q = brute_force(row_of(&policy, row, 7));
                let p = brute_force(row_of(logits, row, 7));
                let token = next[row] as usize;
                prop_assert!((f64::from(found.policy) - q[token]).abs() <= 1e-6 * (1.0 + q[token].abs()));
                prop_assert!((f64::from(found.reference) - p[token]).abs() <= 1e-6 * (1.0 + p[token].abs()));
                let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                prop_assert!((found.divergence - divergence).abs() < 1e-12, "{} {divergence}", found.divergence);
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (rows, vocabulary) = (300, 1000);
        let number = |i: usize| ((i * 7919 % 10_007) as f32 - 5000.0) / 400.0;
        let logits: Vec<f32> = (0..rows * vocabulary).map(number).collect();
        let reference: Vec<f32> = (0..rows * vocabulary).map(|i| number(i + 3)).collect();
        let next: Vec<u32> = (0..rows as u32).collect();
        let on = |threads| compare(&logits, &reference, &next, NonZeroUsize::new(threads).expect("threads"));
        assert_eq!(on(1), on(2));
        assert_eq!(on(1), on(7));
        let mut bad = logits.clone();
        bad[250 * vocabulary] = f32::NAN;
        bad[40 * vocabulary + 9] = f32::NAN;
        let error = log_likelihoods(&bad, &next, NonZeroUsize::new(3).expect("threads")).expect_err("NaN");
        assert!(matches!(error, LikelihoodError::NotANumber { row: 40, token: 9, .. }), "{error}");
    }
}
