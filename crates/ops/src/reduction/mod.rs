//! From a row of logits to a token.
//!
//! A sampler says in a [`Request`] how a token is to be chosen from a row, down to the uniform number that a draw uses.
//! What comes back is [`Reduced`]: the token, and what else is to be known of the row. [`reduce`] is the definition: plain
//! code for the host, in operations that IEEE 754 rounds exactly and in an order that depends on the number of logits
//! alone. A backend whose logits are in the memory of a device gives the same bits from there, so that a few numbers
//! travel instead of a vocabulary, and the same tokens are chosen.

mod penalties;
mod rank;
mod softmax;

use crate::backend::RunError;

use rank::best_ranked;

pub use penalties::{Penalties, Seen};
pub use rank::RankKey;
pub use softmax::{BLOCK, LANES, Softmax, inverse, ln};

/// How one row's token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Applied before anything else, where there are any.
    pub penalties: Option<Penalties<'a>>,
    /// What becomes of the row then.
    pub wish: Wish,
}

/// How a token is chosen from a row whose penalties are applied. The weight of a token is e^((logit - largest) /
/// temperature). Temperatures are above 0, shares of a sum are in [0, 1) where a draw ends and else in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wish {
    /// The best-ranked token.
    Best,
    /// One drawn from all, in order of tokens.
    Draw {
        /// That of the weights.
        temperature: f32,
        /// Smaller weights count as 0.
        floor: f32,
        /// Where the draw ends, as a share of the sum of weights.
        uniform: f64,
    },
    /// One drawn from the best-ranked, in order of rank.
    DrawFromBest(Cuts),
}

/// What is left to draw from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cuts {
    /// How many are ranked; at least one.
    pub count: usize,
    /// That of the weights.
    pub temperature: f32,
    /// The fewest are kept whose weights reach this share; all from 1 on.
    pub top_p: f32,
    /// Of what it is a share.
    pub whole: Whole,
    /// Of these, those from the first on that weigh this much.
    pub min_p: f32,
    /// Where the draw ends, as a share of the sum of the weights that are left.
    pub uniform: f64,
}

/// What top-p is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// The weights of the tokens that are ranked.
    Ranked,
    /// The weights of all tokens.
    All,
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
    /// The token, with its logit after penalties. Nothing where top-p keeps more tokens than are ranked.
    pub chosen: Option<RankKey>,
    /// The row with its penalties.
    penalised: Vec<f32>,
    /// Sums of the blocks of a row.
    sums: Vec<f64>,
    /// The best-ranked tokens, and the weights of those that are kept.
    ranked: Vec<RankKey>,
    weights: Vec<f64>,
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
    reduced.chosen = None;
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
    reduced.chosen = match wish {
        Wish::Best => {
            // Ties go to the lowest token by taking the first.
            let token = logits.iter().position(|&logit| logit == max).unwrap_or(0);
            Some(RankKey::new(max, token as u32))
        }
        Wish::Draw { temperature, floor, uniform } => {
            let softmax = Softmax::new(max, temperature, floor);
            let mut target = uniform * softmax.block_sums(logits, &mut reduced.sums);
            let start = walk(reduced.sums.iter().copied(), &mut target) * BLOCK;
            let weights = logits[start..].iter().take(BLOCK).map(|&logit| f64::from(softmax.weight(logit)));
            let token = start + walk(weights, &mut target);
            Some(RankKey::new(logits[token], token as u32))
        }
        Wish::DrawFromBest(cuts) => draw_from_best(logits, max, &cuts, reduced),
    };
}

fn draw_from_best(logits: &[f32], max: f32, cuts: &Cuts, reduced: &mut Reduced) -> Option<RankKey> {
    let Reduced { ranked, weights, sums, .. } = reduced;
    best_ranked(logits, cuts.count, ranked);
    let softmax = Softmax::new(max, cuts.temperature, 0.0);
    let weight = |key: &RankKey| f64::from(softmax.weight(key.logit()));
    let mass = match (cuts.top_p < 1.0, cuts.whole) {
        (false, _) => f64::INFINITY,
        (true, Whole::Ranked) => f64::from(cuts.top_p) * ranked.iter().map(weight).sum::<f64>(),
        (true, Whole::All) => f64::from(cuts.top_p) * softmax.block_sums(logits, sums),
    };
    let mut sum = 0.0;
    weights.clear();
    for weight in ranked.iter().map(weight) {
        weights.push(weight);
        sum += weight;
        if sum >= mass {
            break;
        }
    }
    // Where nothing more could follow, rounding has left the sum of all short of its own mass.
    if sum < mass && cuts.whole == Whole::All && cuts.count < logits.len() {
        return None;
    }
    // Relative to the largest, which is 1: at least that one stays.
    let likely = weights.iter().copied().take_while(|&weight| weight >= f64::from(cuts.min_p));
    let mut target = cuts.uniform * likely.clone().sum::<f64>();
    ranked.get(walk(likely, &mut target)).copied()
}

/// Index of the weight into which `target` falls when the weights lie end to end; `target` becomes the distance from
/// that weight's beginning. Where rounding has put `target` beyond the end, it is the last weight above 0.
/// A weight of 0 is never chosen unless all are.
fn walk(weights: impl Iterator<Item = f64>, target: &mut f64) -> usize {
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
