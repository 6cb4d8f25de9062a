//! What tells a difference from noise.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::stats::Spread;

/// Pairs of measurements up to which the distribution of [`mann_whitney`] is counted out.
const EXACT: usize = 1600;

/// The probability that measurements of the same thing differ as `larger` from `smaller` do, or more: the one-sided test of
/// Mann and Whitney. Exact where no two measurements are the same and there are not too many; 1 where there are none.
pub fn mann_whitney(smaller: &[f64], larger: &[f64]) -> f64 {
    let (n, m) = (smaller.len(), larger.len());
    if n == 0 || m == 0 {
        return 1.0;
    }
    let pairs = || larger.iter().flat_map(|b| smaller.iter().map(move |a| b.total_cmp(a)));
    let above = pairs().filter(|order| order.is_gt()).count();
    let ties = pairs().filter(|order| order.is_eq()).count();
    if ties == 0 && n * m <= EXACT {
        let ways = rank_sums(n, m);
        let total: f64 = ways.iter().sum();
        return ways[above..].iter().sum::<f64>() / total;
    }
    // Ties make the true spread smaller than this one: the test errs on the side of noise.
    let mean = (n * m) as f64 / 2.0;
    let deviation = ((n * m * (n + m + 1)) as f64 / 12.0).sqrt();
    let z = (above as f64 + ties as f64 / 2.0 - mean - 0.5) / deviation;
    Normal::standard().sf(z)
}

/// In how many orders of `n` and `m` things so many pairs have the one of the `m` behind the one of the `n`.
fn rank_sums(n: usize, m: usize) -> Vec<f64> {
    // counts[j][u]: orders of the first i and j things with u such pairs; the last thing is of one kind or the other.
    let mut counts: Vec<Vec<f64>> = (0..=m).map(|_| vec![1.0]).collect();
    for i in 1..=n {
        let mut next: Vec<Vec<f64>> = vec![vec![1.0]];
        for j in 1..=m {
            let mut ways = vec![0.0; i * j + 1];
            for (u, count) in counts[j].iter().enumerate() {
                ways[u] += count;
            }
            for (u, count) in next[j - 1].iter().enumerate() {
                ways[u + i] += count;
            }
            next.push(ways);
        }
        counts = next;
    }
    counts.pop().unwrap_or_default()
}

/// How far `to` lies above `from`: the median of all differences, as Hodges and Lehmann estimate it.
pub fn shift(from: &[f64], to: &[f64]) -> Option<f64> {
    let differences = to.iter().flat_map(|b| from.iter().map(move |a| b - a));
    Some(Spread::of(differences.collect())?.median)
}

/// The probability that Student's t with so many degrees of freedom is at least `t`; 1 where there are none.
pub fn student_above(t: f64, freedom: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, freedom) {
        Ok(student) if !t.is_nan() => student.sf(t),
        _ => 1.0,
    }
}

/// The t above which Student's distribution has this probability; infinite where there are no degrees of freedom.
pub fn student_quantile(probability: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::INFINITY, |student| student.inverse_cdf(1.0 - probability))
}

/// The probability that differences around nothing have a mean so far above it: Student's one-sided test of pairs.
pub fn paired(differences: &[f64]) -> f64 {
    let count = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / count;
    let squares: f64 = differences.iter().map(|difference| (difference - mean).powi(2)).sum();
    let error = (squares / (count - 1.0) / count).sqrt();
    student_above(mean / error, count - 1.0)
}

/// Probabilities of several tests made at once, raised as Holm says: those that stay below a level are found with no more
/// than that probability of even one false alarm, however the tests depend on each other.
pub fn holm(probabilities: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    let mut raised = vec![1.0; probabilities.len()];
    let mut least = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        least = least.max(probabilities[index] * (probabilities.len() - rank) as f64).min(1.0);
        raised[index] = least;
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mann_whitney_is_exact_where_it_can_be() {
        // Of the 20 orders of three and three, one has all of the larger behind all of the smaller.
        assert_eq!(mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 1.0 / 20.0);
        // One pair the other way: two orders have eight pairs or more.
        assert_eq!(mann_whitney(&[1.0, 2.0, 4.5], &[4.0, 5.0, 6.0]), 2.0 / 20.0);
        assert_eq!(mann_whitney(&[4.0, 5.0, 6.0], &[1.0, 2.0, 3.0]), 1.0);
        assert_eq!(mann_whitney(&[], &[1.0]), 1.0);
        // As many orders as there are.
        assert_eq!(rank_sums(4, 3).iter().sum::<f64>(), 35.0);
        // Ties, and more pairs than are counted out: nearly the same as without.
        let all: Vec<f64> = (0..40).map(f64::from).collect();
        let same = mann_whitney(&all, &all);
        assert!((same - 0.5).abs() < 0.01, "{same}");
        let later: Vec<f64> = all.iter().map(|x| x + 10.5).collect();
        let (exact, approximate) =
            (mann_whitney(&all, &later), mann_whitney(&all[1..], &[&later[..], &[60.0]].concat()));
        assert!(exact < 1e-3 && approximate < 1e-3, "{exact} {approximate}");
    }

    #[test]
    fn shifts_and_pairs() {
        assert_eq!(shift(&[1.0, 2.0, 30.0], &[3.0, 4.0, 32.0]), Some(2.0));
        assert_eq!(shift(&[], &[1.0]), None);
        // t is 3 / (1 / sqrt(3)) with two degrees of freedom; its tail is (1 - t / sqrt(t^2 + 2)) / 2.
        let t = 3.0 * 3.0_f64.sqrt();
        let expected = (1.0 - t / (t * t + 2.0).sqrt()) / 2.0;
        assert!((paired(&[2.0, 3.0, 4.0]) - expected).abs() < 1e-9);
        assert_eq!(paired(&[1.0]), 1.0);
        assert_eq!(paired(&[]), 1.0);
        assert!((student_above(student_quantile(0.01, 7.0), 7.0) - 0.01).abs() < 1e-9);
    }

    #[test]
    fn holm_raises_by_the_number_of_tests_that_are_left() {
        assert_eq!(holm(&[0.01, 0.5, 0.015]), [0.03, 0.5, 0.03]);
        assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
