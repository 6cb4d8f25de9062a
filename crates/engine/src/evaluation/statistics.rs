//! Means with their standard errors, and percentiles.

/// A mean or a share, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// One standard error; nothing where it is of a single number.
    pub error: Option<f64>,
}

impl Estimate {
    /// The mean of numbers with `sqrt(variance / (n - 1))`, the variance being the mean square of the differences to the
    /// mean; nothing of no numbers.
    pub fn mean(numbers: impl ExactSizeIterator<Item = f64> + Clone) -> Option<Estimate> {
        let count = numbers.len();
        if count == 0 {
            return None;
        }
        let value = numbers.clone().sum::<f64>() / count as f64;
        let variance = || numbers.map(|number| (number - value).powi(2)).sum::<f64>() / count as f64;
        let error = (count > 1).then(|| (variance() / (count - 1) as f64).sqrt());
        Some(Estimate { value, error })
    }

    /// The share of `part` in `whole`, with the error of a binomial; nothing of nothing.
    pub fn share(part: usize, whole: usize) -> Option<Estimate> {
        let value = (whole > 0).then(|| part as f64 / whole as f64)?;
        let error = (whole > 1).then(|| (value * (1.0 - value) / (whole - 1) as f64).sqrt());
        Some(Estimate { value, error })
    }

    /// The exponential, with the error that follows to the first order.
    #[must_use]
    pub fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate { value, error: self.error.map(|error| value * error) }
    }
}

/// The number below which the fraction lies, by linear interpolation between neighbours; nothing of no numbers.
/// `sorted` is ascending, the fraction from 0 to 1.
pub fn percentile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = fraction.clamp(0.0, 1.0) * last as f64;
    let below = place.floor();
    let (lower, upper) = (sorted[below as usize], sorted[(below as usize + 1).min(last)]);
    // Between equal neighbours nothing is computed, so that two infinities do not make a NaN.
    Some(if lower == upper { lower } else { lower + (place - below) * (upper - lower) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(numbers: &[f64]) -> Option<Estimate> {
        Estimate::mean(numbers.iter().copied())
    }

    #[test]
    fn means_have_the_error_of_a_sample() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[3.0]), Some(Estimate { value: 3.0, error: None }));
        // Differences -1.5 -0.5 0.5 1.5: variance 1.25, of which a third, its root.
        let found = mean(&[1.0, 2.0, 3.0, 4.0]).expect("a mean");
        assert_eq!(found.value, 2.5);
        assert!((found.error.expect("an error") - (1.25_f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean(&[7.0; 5]), Some(Estimate { value: 7.0, error: Some(0.0) }));
    }

    #[test]
    fn shares_and_exponentials_keep_their_errors() {
        assert_eq!(Estimate::share(0, 0), None);
        let share = Estimate::share(9, 10).expect("a share");
        assert!((share.value - 0.9).abs() < 1e-15);
        assert!((share.error.expect("an error") - 0.1).abs() < 1e-15);
        let grown = Estimate { value: 2.0, error: Some(0.5) }.exp();
        assert!((grown.error.expect("an error") - 0.5 * 2.0_f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let numbers = [0.0, 1.0, 2.0, 4.0];
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&numbers, 0.0), Some(0.0));
        assert_eq!(percentile(&numbers, 0.5), Some(1.5));
        assert_eq!(percentile(&numbers, 1.0), Some(4.0));
        assert_eq!(percentile(&numbers[..1], 0.99), Some(0.0));
        assert_eq!(percentile(&[1.0, f64::INFINITY, f64::INFINITY], 0.75), Some(f64::INFINITY));
    }
}
