//! Several measurements of one thing.

use serde::Serialize;
use serde_json::{Value, json};

/// The middle and the ends of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of measurements in any order; nothing where there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Spread { median: f64::midpoint(values[lower], values[upper]), min, max })
    }

    /// What `amount` per measured second comes to.
    pub fn rate(&self, amount: f64) -> Spread {
        Spread { median: amount / self.median, min: amount / self.max, max: amount / self.min }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_rates() {
        assert_eq!(Spread::of(Vec::new()), None);
        let three = Spread::of(vec![4.0, 1.0, 2.0]).unwrap();
        assert_eq!(three, Spread { median: 2.0, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of(vec![1.0, 3.0]).unwrap().median, 2.0);
        assert_eq!(three.rate(8.0), Spread { median: 4.0, min: 2.0, max: 8.0 });
    }
}
