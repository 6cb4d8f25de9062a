//! From a row of logits to the little that choosing a token needs of it.
//!
//! A sampler says in a [`Request`] what it wants to know of a row: the best-ranked tokens, a sum of weights, or the
//! token in which a draw ends. What comes back is [`Reduced`]. [`reduce`] is the definition: plain code for the host,
//! in operations that IEEE 754 rounds exactly and in an order that depends on the number of logits alone. A backend
//! whose logits are in the memory of a device gives the same bits from there, so that a few numbers travel instead of a
//! vocabulary, and the same tokens are chosen.

mod penalties;
mod rank;
mod softmax;

use crate::backend::RunError;

pub use penalties::{Penalties, Seen};
pub use rank::{RankKey, best_ranked};
pub use softmax::{BLOCK, LANES, Softmax, inverse, ln};

/// What is wanted of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Applied before anything else, where there are any.
    pub penalties: Option<Penalties<'a>>,
    /// What for.
    pub wish: Wish,
}

impl Request<'_> {
    /// Whether the first of [`Reduced::best`] is the token that comes next, whatever else is found.
    pub fn decides(&self) -> bool {
        self.penalties.is_none() && matches!(self.wish, Wish::Best { count: 1 } | Wish::Draw { .. })
    }
}

/// What is wanted of a row whose penalties are applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wish {
    /// The best-ranked tokens.
    Best {
        /// How many; at least one.
        count: usize,
    },
    /// The best-ranked tokens, and the sum of the weights of all.
    Nucleus {
        /// How many; at least one.
        count: usize,
        /// That of the weights; above 0.
        temperature: f32,
    },
    /// One token, drawn from all.
    Draw {
        /// That of the weights; above 0.
        temperature: f32,
        /// Smaller weights count as 0; 0 to 1.
        floor: f32,
        /// Where the draw ends, as a share of the sum of weights; in [0, 1).
        uniform: f64,
    },
}

/// What there is to know of one row. Buffers are used again by the next row that is reduced into it.
#[derive(Clone, Debug, Default)]
pub struct Reduced {
    /// Logits that are NaN or infinite. If there are any, the rest may be missing.
    pub not_finite: usize,
    /// The largest logit before penalties.
    pub largest: f32,
    /// The sum of e^(logit - `largest`), before penalties.
    pub sum: f64,
    /// The logits of the tokens that penalties were asked for, before these, in the order of the request.
    pub unpenalised: Vec<f32>,
    /// [`Wish::Best`] and [`Wish::Nucleus`]: as many as were asked for, or all there are if that is fewer, in order.
    /// Tokens at minus infinity have no rank. [`Wish::Draw`]: the token drawn.
    pub best: Vec<RankKey>,
    /// [`Wish::Nucleus`]: the sum of the weights of all tokens.
    pub wished_sum: f64,
    /// The row with its penalties.
    penalised: Vec<f32>,
    /// Sums of the blocks of a row.
    sums: Vec<f64>,
}

/// Reduces rows of `width` logits, one request each, into the entries of `reduced`.
///
/// # Errors
/// Where there are not as many requests as rows.
pub fn reduce_rows(
    logits: &[f32],
    width: usize,
    requests: &[Request<'_>],
    reduced: &mut Vec<Reduced>,
) -> Result<(), RunError> {
    let rows = logits.len().checked_div(width).unwrap_or(0);
    if rows != requests.len() {
        return Err(RunError::Reductions { got: requests.len(), rows });
    }
    reduced.resize_with(rows, Reduced::default);
    for ((logits, request), reduced) in logits.chunks_exact(width.max(1)).zip(requests).zip(reduced) {
        reduce(logits, request, reduced);
    }
    Ok(())
}

/// Reduces one row; `logits` are not empty. A row that holds a NaN or plus infinity, or nothing above minus infinity, is
/// only counted.
///
/// Tokens of the penalties must be within the row, and distinct.
pub fn reduce(logits: &[f32], request: &Request<'_>, reduced: &mut Reduced) {
    let Scan { max, unusable, not_finite } = scan(logits);
    reduced.not_finite = not_finite;
    reduced.unpenalised.clear();
    reduced.best.clear();
    if unusable || !max.is_finite() {
        return;
    }
    reduced.largest = max;
    reduced.sum = Softmax::new(max, 1.0, 0.0).block_sums(logits, &mut reduced.sums);
    match &request.penalties {
        None => wish(logits, max, request.wish, reduced),
        Some(penalties) => {
            let mut penalised = std::mem::take(&mut reduced.penalised);
            penalised.clear();
            penalised.extend_from_slice(logits);
            penalties.apply(&mut penalised, &mut reduced.unpenalised);
            wish(&penalised, scan(&penalised).max, request.wish, reduced);
            reduced.penalised = penalised;
        }
    }
}

/// `max` is the largest of `logits`, and finite.
fn wish(logits: &[f32], max: f32, wish: Wish, reduced: &mut Reduced) {
    match wish {
        Wish::Best { count: 1 } => {
            // Ties go to the lowest token by taking the first.
            let token = logits.iter().position(|&logit| logit == max).unwrap_or(0);
            reduced.best.push(RankKey::new(max, token as u32));
        }
        Wish::Best { count } => best_ranked(logits, count, &mut reduced.best),
        Wish::Nucleus { count, temperature } => {
            best_ranked(logits, count, &mut reduced.best);
            let softmax = Softmax::new(max, temperature, 0.0);
            reduced.wished_sum = softmax.block_sums(logits, &mut reduced.sums);
        }
        Wish::Draw { temperature, floor, uniform } => {
            let softmax = Softmax::new(max, temperature, floor);
            let mut target = uniform * softmax.block_sums(logits, &mut reduced.sums);
            let start = walk(reduced.sums.iter().copied(), &mut target) * BLOCK;
            let weights = logits[start..].iter().take(BLOCK).map(|&logit| f64::from(softmax.weight(logit)));
            let token = start + walk(weights, &mut target);
            reduced.best.push(RankKey::new(logits[token], token as u32));
        }
    }
}

/// Index of the weight into which `target` falls when the weights lie end to end; `target` becomes the distance from
/// that weight's beginning. Where rounding has put `target` beyond the end, it is the last weight above 0.
/// A weight of 0 is never chosen unless all are.
pub fn walk(weights: impl Iterator<Item = f64>, target: &mut f64) -> usize {
    let mut last = 0;
    for (index, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = index;
            if *target < weight {
                return index;
            }
            *target -= weight;
        }
    }
    last
}

/// What one fast pass over the logits sees.
struct Scan {
    /// The largest that is not NaN; 0 for -0.
    max: f32,
    /// Whether a logit is NaN or plus infinity.
    unusable: bool,
    /// Logits that are NaN or infinite.
    not_finite: usize,
}

fn scan(logits: &[f32]) -> Scan {
    // Several running maxima, as one alone would wait for itself at every step.
    let mut largest = [f32::NEG_INFINITY; 16];
    let mut bad = [0_u32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for ((max, bad), &logit) in largest.iter_mut().zip(&mut bad).zip(chunk) {
            *max = if logit > *max { logit } else { *max };
            *bad += u32::from(!logit.is_finite());
        }
    }
    let rest_bad = rest.iter().filter(|logit| !logit.is_finite()).count();
    let not_finite = bad.iter().map(|&bad| bad as usize).sum::<usize>() + rest_bad;
    Scan {
        // `f32::max` passes over NaN.
        max: largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max) + 0.0,
        unusable: not_finite > 0 && logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY),
        not_finite,
    }
}

#[cfg(test)]
mod tests;
