//! One row of logits to one token.

use mantissa_ops::reduction::{self, Cuts, Penalties, Reduced, Request, Whole, Wish};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use thiserror::Error;

use super::penalties::Counter;
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
    /// Tokens that top-p looks at.
    nucleus: usize,
    /// Size of the vocabulary that the next request is about.
    vocabulary: usize,
    // Buffers that outlive a call, so that a token costs no allocation.
    counter: Counter,
    reduced: Reduced,
}

/// How many candidates top-p looks at first; eight times as many each time they do not suffice.
const FIRST_NUCLEUS: usize = 512;

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
            nucleus: FIRST_NUCLEUS,
            vocabulary: 0,
            counter: Counter::default(),
            reduced: Reduced::default(),
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
        check(logits)?;
        self.prepare(history, logits.len())?;
        let mut reduced = std::mem::take(&mut self.reduced);
        let sampled = loop {
            reduction::reduce(logits, &self.request(), &mut reduced);
            if let Some(sampled) = self.choose(&reduced) {
                break sampled;
            }
            self.nucleus = self.nucleus.saturating_mul(8);
        };
        self.nucleus = FIRST_NUCLEUS;
        self.reduced = reduced;
        Ok(sampled)
    }

    /// Takes note of what the next token depends on beside its row of logits, of which there is one for each token of
    /// the vocabulary.
    ///
    /// # Errors
    /// A token of `history` outside the vocabulary (only looked for if there are penalties).
    pub fn prepare(&mut self, history: History<'_>, vocabulary: usize) -> Result<(), SampleError> {
        self.vocabulary = vocabulary;
        if self.params.has_penalties() {
            self.counter.count(history, self.params.penalty_window, vocabulary)?;
        }
        Ok(())
    }

    /// What is to be known of the row of logits that [`Sampler::prepare`] was called for.
    pub fn request(&self) -> Request<'_> {
        let SamplingParams { temperature, top_p, top_k, min_p, .. } = self.params;
        let penalties = self.params.has_penalties().then(|| Penalties {
            repetition: self.params.repetition_penalty,
            frequency: self.params.frequency_penalty,
            presence: self.params.presence_penalty,
            seen: self.counter.seen(),
        });
        // The draw counts when its token is taken.
        let uniform = uniform(&mut self.rng.clone());
        let wish = if self.params.is_greedy() {
            Wish::Best
        } else if self.keeps_all() {
            // Min-p alone needs no ranks.
            Wish::Draw { temperature, floor: min_p, uniform }
        } else {
            let (count, whole) =
                if top_k > 0 { (top_k as usize, Whole::Ranked) } else { (self.nucleus, Whole::All) };
            Wish::DrawFromBest(Cuts { count, temperature, top_p, whole, min_p, uniform })
        };
        Request { penalties, wish }
    }

    /// Whether neither top-k nor top-p cuts anything off.
    fn keeps_all(&self) -> bool {
        let SamplingParams { top_k, top_p, .. } = self.params;
        (top_k == 0 || top_k as usize >= self.vocabulary) && top_p >= 1.0
    }

    /// Takes the token that [`Sampler::request`] led to, from a row that has a logit above minus infinity and none that is
    /// NaN or plus infinity. Nothing, and the sampler is as it was before, if top-p keeps more tokens than are ranked at
    /// first: [`Sampler::sample`] has to look at the row itself.
    pub fn choose(&mut self, reduced: &Reduced) -> Option<Sampled> {
        let key = reduced.chosen?;
        if !self.params.is_greedy() {
            uniform(&mut self.rng);
        }
        let before = self.params.has_penalties().then(|| {
            let place = self.counter.place(key.token());
            place.and_then(|place| reduced.unpenalised.get(place).copied())
        });
        let logit = before.flatten().unwrap_or(key.logit());
        // The sum is at least the 1 of the largest logit, so this is 0 or less.
        let logprob = f64::from(logit) - f64::from(reduced.largest) - reduction::ln(reduced.sum);
        Some(Sampled { token: key.token(), logprob: logprob as f32 })
    }
}

/// A uniform number in [0, 1) from the upper 53 bits of one 64-bit draw.
fn uniform(rng: &mut ChaCha12Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Demands that a token can be chosen.
fn check(logits: &[f32]) -> Result<(), SampleError> {
    if logits.is_empty() {
        return Err(SampleError::Empty);
    }
    if u32::try_from(logits.len()).is_err() {
        return Err(SampleError::TooMany { got: logits.len() });
    }
    let unusable = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    let count = logits.iter().filter(|logit| unusable(logit)).count();
    if count > 0 {
        return Err(match logits.iter().position(|logit| logit.is_nan()) {
            Some(index) => SampleError::NotANumber { index, count },
            None => {
                let index = logits.iter().position(|&logit| logit == f32::INFINITY).unwrap_or(0);
                SampleError::Infinite { index, count }
            }
        });
    }
    if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        return Err(SampleError::NothingPossible { count: logits.len() });
    }
    Ok(())
}
