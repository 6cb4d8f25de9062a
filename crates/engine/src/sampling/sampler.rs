//! One row of logits to one token.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use thiserror::Error;

use super::math::{self, BLOCK, Softmax};
use super::penalties::Penalties;
use super::select::{RankKey, best_ranked, token_of};
use super::{History, InvalidParam, SamplingParams};

/// The token chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// Index into the logits.
    pub token: u32,
    /// Natural logarithm of the token's probability in the model's own distribution: the softmax of the logits as
    /// they came, before penalties, temperature and cuts. 0 or less.
    pub logprob: f32,
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SampleError {
    /// No logits at all.
    #[error("cannot sample: there are no logits; one per token of the vocabulary is wanted")]
    Empty,
    /// More logits than token ids.
    #[error("cannot sample: {got} logits, but token ids reach no further than 4294967295")]
    TooMany {
        /// Number of logits.
        got: usize,
    },
    /// A logit is NaN: the forward pass went wrong.
    #[error(
        "cannot sample: logit {index} is NaN ({count} are NaN or +infinity); trace the first layer that is not finite, \
         or use a policy with a wider range"
    )]
    NotANumber {
        /// The first NaN.
        index: usize,
        /// How many logits are NaN or plus infinity.
        count: usize,
    },
    /// A logit is plus infinity: the forward pass overflowed.
    #[error(
        "cannot sample: logit {index} is +infinity ({count} are); trace the first layer that is not finite, or use a \
         policy with a wider range"
    )]
    Infinite {
        /// The first plus infinity.
        index: usize,
        /// How many logits are plus infinity.
        count: usize,
    },
    /// Every logit is minus infinity.
    #[error("cannot sample: all {count} logits are -infinity, so no token is possible")]
    NothingPossible {
        /// Number of logits.
        count: usize,
    },
    /// A token of the history is not in the vocabulary.
    #[error(
        "cannot apply penalties: token {token} of the history is outside the vocabulary of {vocabulary} logits"
    )]
    HistoryToken {
        /// The token.
        token: u32,
        /// Number of logits.
        vocabulary: usize,
    },
}

/// Chooses the tokens of one sequence. Each sequence of a batch has its own, so that its tokens do not depend on
/// its neighbours.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    rng: ChaCha12Rng,
    // Buffers that outlive a call, so that a token costs no allocation.
    penalties: Penalties,
    penalised: Vec<f32>,
    ranked: Vec<RankKey>,
    weights: Vec<f64>,
}

/// How many candidates top-p looks at first; eight times as many each time they do not suffice.
const FIRST_NUCLEUS: usize = 256;

impl Sampler {
    /// A sampler for one sequence. `fallback_seed` is used where `params` names no seed; this crate never asks the
    /// clock or the system for one. Every draw takes 64 bits of ChaCha12 (8 bytes of seed in little-endian order, then
    /// zeros, as its key); greedy decoding takes none.
    ///
    /// # Errors
    /// See [`SamplingParams::validate`].
    pub fn new(params: SamplingParams, fallback_seed: u64) -> Result<Self, InvalidParam> {
        params.validate()?;
        let seed = params.seed.unwrap_or(fallback_seed);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Ok(Self {
            params,
            seed,
            rng: ChaCha12Rng::from_seed(key),
            penalties: Penalties::default(),
            penalised: Vec::new(),
            ranked: Vec::new(),
            weights: Vec::new(),
        })
    }

    /// The parameters given.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The seed in use: with the same one the same tokens come again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token from `logits`, one for each token of the vocabulary.
    ///
    /// # Errors
    /// A logit that is NaN or plus infinity, no logit above minus infinity, or a token of `history` outside the
    /// vocabulary (only looked for if there are penalties). The sampler is as it was before.
    pub fn sample(&mut self, logits: &[f32], history: History<'_>) -> Result<Sampled, SampleError> {
        let max = checked_max(logits)?;
        let token = if self.params.has_penalties() {
            let mut penalised = std::mem::take(&mut self.penalised);
            penalised.clear();
            penalised.extend_from_slice(logits);
            let applied = self.penalties.apply(&self.params, history, &mut penalised);
            let token = applied.map(|()| self.choose(&penalised, scan(&penalised).max));
            self.penalised = penalised;
            token?
        } else {
            self.choose(logits, max)
        };
        let log_sum = math::ln(Softmax::new(max, 1.0, 0.0).sum(logits));
        // The sum is at least the 1 of the largest logit, so this is 0 or less.
        let logprob = f64::from(logits[token as usize]) - f64::from(max) - log_sum;
        Ok(Sampled { token, logprob: logprob as f32 })
    }

    /// `max` is the largest of `logits`, and finite.
    fn choose(&mut self, logits: &[f32], max: f32) -> u32 {
        if self.params.is_greedy() {
            return first_at(logits, max);
        }
        let keeps_all = self.params.top_k == 0 || self.params.top_k as usize >= logits.len();
        if keeps_all && self.params.top_p >= 1.0 {
            self.draw_from_all(logits, max)
        } else {
            self.draw_from_best(logits, max)
        }
    }

    /// Draws without ranking anything, in order of ids: min-p needs the largest logit only.
    fn draw_from_all(&mut self, logits: &[f32], max: f32) -> u32 {
        let softmax = Softmax::new(max, self.params.temperature, self.params.min_p);
        let total = softmax.block_sums(logits, &mut self.weights);
        let mut target = uniform(&mut self.rng) * total;
        let block = walk(self.weights.iter().copied(), &mut target);
        let start = block * BLOCK;
        let weights = logits[start..].iter().take(BLOCK).map(|&logit| f64::from(softmax.weight(logit)));
        (start + walk(weights, &mut target)) as u32
    }

    /// Ranks as many tokens as top-k and top-p need, then draws from those that they and min-p leave.
    fn draw_from_best(&mut self, logits: &[f32], max: f32) -> u32 {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let softmax = Softmax::new(max, temperature, 0.0);
        if top_k > 0 {
            self.rank(logits, &softmax, top_k as usize);
            let mass = f64::from(top_p) * self.weights.iter().sum::<f64>();
            if top_p < 1.0 {
                let nucleus = nucleus(&self.weights, mass).unwrap_or(self.weights.len());
                self.weights.truncate(nucleus);
            }
        } else {
            let mass = f64::from(top_p) * softmax.sum(logits);
            let mut count = FIRST_NUCLEUS;
            loop {
                self.rank(logits, &softmax, count);
                if let Some(nucleus) = nucleus(&self.weights, mass) {
                    self.weights.truncate(nucleus);
                    break;
                }
                if count >= logits.len() {
                    break;
                }
                count = count.saturating_mul(8);
            }
        }
        // Ranked and relative to the largest, which is 1: min-p is a cut, and leaves at least that one.
        let likely = self.weights.partition_point(|&weight| weight >= f64::from(min_p));
        self.weights.truncate(likely);
        let mut target = uniform(&mut self.rng) * self.weights.iter().sum::<f64>();
        token_of(self.ranked[walk(self.weights.iter().copied(), &mut target)])
    }

    /// Fills `ranked` and `weights` with the `count` best-ranked tokens.
    fn rank(&mut self, logits: &[f32], softmax: &Softmax, count: usize) {
        best_ranked(logits, count, &mut self.ranked);
        self.weights.clear();
        self.weights
            .extend(self.ranked.iter().map(|&key| f64::from(softmax.weight(logits[token_of(key) as usize]))));
    }
}

/// A uniform number in [0, 1) from the upper 53 bits of one 64-bit draw.
fn uniform(rng: &mut ChaCha12Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
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

/// How many of the leading weights it takes to reach `mass`, at least one; none if they do not.
fn nucleus(weights: &[f64], mass: f64) -> Option<usize> {
    let mut sum = 0.0;
    let reached = weights.iter().position(|&weight| {
        sum += weight;
        sum >= mass
    });
    reached.map(|index| index + 1)
}

/// The largest logit, which is finite.
fn checked_max(logits: &[f32]) -> Result<f32, SampleError> {
    if logits.is_empty() {
        return Err(SampleError::Empty);
    }
    if u32::try_from(logits.len()).is_err() {
        return Err(SampleError::TooMany { got: logits.len() });
    }
    let Scan { max, has_nan } = scan(logits);
    if has_nan || max == f32::INFINITY {
        let count = logits.iter().filter(|&&logit| logit.is_nan() || logit == f32::INFINITY).count();
        return Err(match logits.iter().position(|logit| logit.is_nan()) {
            Some(index) => SampleError::NotANumber { index, count },
            None => SampleError::Infinite { index: first_at(logits, max) as usize, count },
        });
    }
    if max == f32::NEG_INFINITY {
        return Err(SampleError::NothingPossible { count: logits.len() });
    }
    Ok(max)
}

/// What one fast pass over the logits sees.
struct Scan {
    /// The largest that is not NaN.
    max: f32,
    has_nan: bool,
}

fn scan(logits: &[f32]) -> Scan {
    // Several running maxima, as one alone would wait for itself at every step.
    let mut largest = [f32::NEG_INFINITY; 16];
    let mut nan = [0u32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for ((max, nan), &logit) in largest.iter_mut().zip(&mut nan).zip(chunk) {
            *max = if logit > *max { logit } else { *max };
            *nan |= u32::from(logit.is_nan());
        }
    }
    Scan {
        // `f32::max` passes over NaN.
        max: largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max),
        has_nan: nan.iter().any(|&nan| nan != 0) || rest.iter().any(|logit| logit.is_nan()),
    }
}

/// The first token whose logit is `value`; ties go to the lowest id by this.
fn first_at(logits: &[f32], value: f32) -> u32 {
    logits.iter().position(|&logit| logit == value).unwrap_or(0) as u32
}
