//! One sequence: its tokens, what of it is in the cache, and how it ends.

use crate::sampling::{History, SampleError, Sampled, Sampler, SamplingParams};

/// Names a sequence of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Whether end-of-text tokens end a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndOfText {
    /// They do.
    #[default]
    Stop,
    /// They are tokens like any other.
    Ignore,
}

/// What is asked of the engine.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// The seed where `sampling` names none.
    pub fallback_seed: u64,
    /// Tokens that end the sequence.
    pub end_of_text_ids: Vec<u32>,
    /// Whether they do.
    pub end_of_text: EndOfText,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-text token, or a stop string.
    Stop,
    /// The number of tokens asked for was reached.
    Length,
    /// The context is full.
    Context,
    /// The caller ended it.
    Cancelled,
}

/// A token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenEvent {
    /// The sequence.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// Its log-probability under the distribution sampled from.
    pub logprob: f32,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

/// The engine's record of a sequence.
pub(crate) struct Sequence {
    pub id: SequenceId,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    pub prompt_length: usize,
    /// Tokens whose keys and values are in the cache.
    pub cached: usize,
    /// The frequency set that the cached keys were rotated with.
    pub rope_set: usize,
    pub sampler: Sampler,
    pub max_tokens: usize,
    pub end_ids: Vec<u32>,
}

impl Sequence {
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_length
    }

    /// Has the sampler count what was generated so far; see [`Sampler::prepare`].
    pub fn prepare_sampler(&mut self, vocabulary: usize) -> Result<(), SampleError> {
        let (prompt, generated) = self.tokens.split_at(self.prompt_length);
        self.sampler.prepare(History { prompt, generated }, vocabulary)
    }

    /// Chooses the next token by a whole row of logits.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Sampled, SampleError> {
        let (prompt, generated) = self.tokens.split_at(self.prompt_length);
        self.sampler.sample(logits, History { prompt, generated })
    }

    /// Whether it goes on after the next token, unless that ends the text.
    pub fn goes_on(&self, context: usize) -> bool {
        self.generated() + 1 < self.max_tokens && self.tokens.len() + 1 < context
    }

    /// Tokens still to be run before the next one can be sampled.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }
}
