//! The error of the residual stream, from layer to layer.

use super::compare::Comparison;
use crate::plot::{Axis, Lines, Mark, Series};

/// A line for each comparison, and the figure that the logits are held to. The embedding, which comes before layer 0, is
/// left out where it is exact in all of them.
pub fn error_by_layer(model: &str, comparisons: &[Comparison]) -> Lines {
    let exact =
        |comparison: &Comparison| comparison.points.first().is_none_or(|point| point.relative_error == 0.0);
    let (first, across) =
        if comparisons.iter().all(exact) { (1, "layer") } else { (0, "layer (-1 is the embedding)") };
    let series = |comparison: &Comparison| {
        let errors = comparison.points.iter().map(|point| point.relative_error).enumerate();
        Series {
            name: format!("{} against {}", comparison.subject, comparison.against),
            points: errors.skip(first).map(|(index, error)| (index as f64 - 1.0, error)).collect(),
        }
    };
    let figure = comparisons.iter().filter_map(|comparison| comparison.figure).reduce(f64::min);
    Lines {
        title: format!("Relative error of the residual stream behind each layer of {model}"),
        across: Axis::plain(across, ""),
        up: Axis::plain("relative error", ""),
        series: comparisons.iter().map(series).collect(),
        marks: figure
            .map(|value| Mark { name: "most that the logits may have".to_owned(), value })
            .into_iter()
            .collect(),
    }
}
