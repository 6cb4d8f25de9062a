//! Two recordings of the same tokens, held against each other.

use std::num::NonZeroUsize;

use mantissa::engine::evaluation::compare as compare_logits;
use mantissa::numerics::{Format, tolerance};
use serde::Serialize;

use super::WHOLE_MODEL;
use super::record::Recording;

/// How far one recording lies from another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What is judged.
    pub subject: String,
    /// What it is held against.
    pub against: String,
    /// Tokens.
    pub tokens: usize,
    /// The residual stream, from the embedding to the last layer.
    pub points: Vec<PointError>,
    /// The logits.
    pub logits: LogitError,
    /// Where the error grows most from one point to the next.
    pub fastest: Option<Growth>,
    /// The subject's first step whose result is not finite.
    pub first_non_finite: Option<String>,
    /// The most that the relative error of the logits may be, where there is such a figure.
    pub figure: Option<f64>,
    /// The relative error of the logits that the rounding points of the contracts alone lead to, where it was asked for: what
    /// no kernel of these formats can avoid.
    pub formats_alone: Option<f64>,
}

/// The error of the residual stream at one point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointError {
    /// `embedding`, `layers.0`, and so on.
    pub name: String,
    /// Euclidean norm of the difference over that of what it is held against, of all tokens together.
    pub relative_error: f64,
    /// Largest difference in units in the last place of the subject's activations: those of the number that it is held
    /// against, or of its row's root mean square, whichever is larger.
    pub max_ulps: f64,
    /// Largest difference.
    pub max_error: f64,
}

/// How much larger the relative error is than at the point before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// The point.
    pub name: String,
    /// So many times.
    pub factor: f64,
}

/// The error of the logits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogitError {
    /// As that of a point.
    pub relative_error: f64,
    /// Largest difference.
    pub max_error: f64,
    /// Mean KL divergence over the tokens, in nats; nothing where a logit is no number.
    pub divergence: Option<f64>,
    /// Largest KL divergence at a token.
    pub max_divergence: Option<f64>,
    /// Tokens with the same most probable successor.
    pub same_top: Option<usize>,
}

impl Comparison {
    /// A subject against the f64 reference of its own weights.
    pub fn with_reference(subject: &Recording, reference: &Recording) -> Comparison {
        let wide = subject.cache.bits() >= 16;
        Comparison { figure: wide.then_some(WHOLE_MODEL), ..Comparison::between(subject, reference) }
    }

    /// A subject against another one.
    pub fn between(subject: &Recording, against: &Recording) -> Comparison {
        let names = subject.points.iter();
        let streams = subject.hidden.iter().zip(&against.hidden);
        let points: Vec<PointError> = names
            .zip(streams)
            .map(|(name, (got, wanted))| {
                let stream = Rows { got, wanted, rows: subject.tokens };
                let Errors { relative, max_ulps, max } = errors(&stream, subject.format);
                PointError { name: name.clone(), relative_error: relative, max_ulps, max_error: max }
            })
            .collect();
        Comparison {
            subject: subject.label.clone(),
            against: against.label.clone(),
            tokens: subject.tokens,
            fastest: fastest(&points),
            points,
            logits: logit_error(subject, against),
            first_non_finite: subject.first_non_finite.clone(),
            figure: None,
            formats_alone: None,
        }
    }

    /// Adds what the formats alone do to the logits, from a recording in f64 that rounds where the contracts do.
    pub fn with_formats(self, formats: &Recording, reference: &Recording) -> Comparison {
        let error = logit_error(formats, reference).relative_error;
        Comparison { formats_alone: Some(error), ..self }
    }

    /// Whether everything is finite, and the figure kept, where there is one.
    pub fn holds(&self) -> bool {
        let finite = self.first_non_finite.is_none() && self.logits.relative_error.is_finite();
        finite && self.figure.is_none_or(|figure| self.logits.relative_error <= figure)
    }
}

struct Errors {
    relative: f64,
    max_ulps: f64,
    max: f64,
}

/// Two matrices of so many rows.
struct Rows<'a> {
    got: &'a [f32],
    wanted: &'a [f32],
    rows: usize,
}

/// NaN wherever there is one; infinite where the lengths differ.
fn errors(of: &Rows<'_>, format: Format) -> Errors {
    let Rows { got, wanted, rows } = *of;
    if got.len() != wanted.len() {
        return Errors { relative: f64::INFINITY, max_ulps: f64::INFINITY, max: f64::INFINITY };
    }
    let larger =
        |most: f64, next: f64| if most.is_nan() || next.is_nan() { f64::NAN } else { most.max(next) };
    let (mut squares, mut norm) = (0.0, 0.0);
    let (mut max_ulps, mut max): (f64, f64) = (0.0, 0.0);
    let width = (wanted.len() / rows.max(1)).max(1);
    for (got, wanted) in got.chunks(width).zip(wanted.chunks(width)) {
        let row: f64 = wanted.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        norm += row;
        let mean = (row / wanted.len() as f64).sqrt();
        for (&got, &wanted) in got.iter().zip(wanted) {
            let (got, wanted) = (f64::from(got), f64::from(wanted));
            let error = if got == wanted { 0.0 } else { (got - wanted).abs() };
            squares += error * error;
            max = larger(max, error);
            max_ulps = larger(max_ulps, error / tolerance::ulp(format, wanted.abs().max(mean)));
        }
    }
    let relative = if squares == 0.0 { 0.0 } else { (squares / norm).sqrt() };
    Errors { relative, max_ulps, max }
}

fn fastest(points: &[PointError]) -> Option<Growth> {
    let growth = |pair: &[PointError]| {
        let factor = pair[1].relative_error / pair[0].relative_error;
        factor.is_finite().then(|| Growth { name: pair[1].name.clone(), factor })
    };
    points.windows(2).filter_map(growth).max_by(|a, b| a.factor.total_cmp(&b.factor))
}

fn logit_error(subject: &Recording, against: &Recording) -> LogitError {
    let logits = Rows { got: &subject.logits, wanted: &against.logits, rows: subject.tokens };
    let Errors { relative, max, .. } = errors(&logits, Format::F32);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    // Likelihoods of tokens are not looked at: any token will do.
    let rows = compare_logits(&subject.logits, &against.logits, &vec![0; subject.tokens], threads).ok();
    let divergences = rows.iter().flatten().map(|row| row.divergence);
    LogitError {
        relative_error: relative,
        max_error: max,
        divergence: rows.as_ref().map(|rows| divergences.clone().sum::<f64>() / rows.len().max(1) as f64),
        max_divergence: divergences.reduce(f64::max),
        same_top: rows.as_ref().map(|rows| rows.iter().filter(|row| row.same_top).count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(hidden: &[[f32; 2]], logits: [f32; 4]) -> Recording {
        Recording {
            label: "test".to_owned(),
            format: Format::Bf16,
            cache: Format::Bf16,
            points: (0..hidden.len()).map(|point| format!("layers.{point}")).collect(),
            hidden: hidden.iter().map(|stream| stream.to_vec()).collect(),
            logits: logits.to_vec(),
            tokens: 1,
            first_non_finite: None,
        }
    }

    #[test]
    fn errors_are_found_where_they_are() {
        let truth = recording(&[[3.0, 4.0]; 4], [0.0, 1.0, 2.0, 0.0]);
        let subject = recording(&[[3.0, 4.0], [3.0, 4.05], [3.0, 4.2], [3.3, 4.0]], [0.0, 1.0, 0.0, 2.0]);
        let found = Comparison::with_reference(&subject, &truth);
        let relative: Vec<f64> = found.points.iter().map(|point| point.relative_error).collect();
        for (got, wanted) in relative.iter().zip([0.0, 0.01, 0.04, 0.06]) {
            assert!((got - wanted).abs() < 1e-7, "{relative:?}");
        }
        // A unit in the last place of 4 is 2^-5 in bf16.
        assert!((found.points[2].max_ulps - 6.4).abs() < 1e-5);
        let Growth { name, factor } = found.fastest.clone().unwrap();
        assert_eq!((name.as_str(), factor.round()), ("layers.2", 4.0));
        assert_eq!(found.logits.same_top, Some(0));
        // Only the last two logits changed places.
        let sum = 2.0 + 1f64.exp() + 2f64.exp();
        let divergence = (2.0 * 2f64.exp() - 2.0) / sum;
        assert!((found.logits.divergence.unwrap() - divergence).abs() < 1e-9);
        assert!((found.logits.max_divergence.unwrap() - divergence).abs() < 1e-9);
        assert!(!found.holds());
        // Where the formats alone lead to the same logits, they are all of the error.
        let formats = found.clone().with_formats(&subject, &truth);
        assert_eq!(formats.formats_alone, Some(found.logits.relative_error));
        assert!(Comparison::between(&subject, &truth).holds());
        assert!(Comparison::with_reference(&truth, &truth).holds());
    }

    #[test]
    fn nan_never_holds() {
        let truth = recording(&[[3.0, 4.0]], [0.0, 1.0, 2.0, 0.0]);
        let subject = recording(&[[f32::NAN, 4.0]], [0.0, f32::NAN, 2.0, 0.0]);
        let found = Comparison::between(&subject, &truth);
        assert!(found.points[0].relative_error.is_nan() && found.points[0].max_error.is_nan());
        assert!(!found.holds() && found.logits.divergence.is_none());
        // Where both are infinite they agree, and still nothing holds.
        let infinite = Recording { first_non_finite: Some("layers.0.ffn".to_owned()), ..truth.clone() };
        assert!(!Comparison::between(&infinite, &truth).holds());
    }
}
