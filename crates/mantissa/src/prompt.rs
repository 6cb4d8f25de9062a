//! What generation starts from, and what it gives.

use std::fmt;

use mantissa_engine::sequence::FinishReason;

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text; special tokens in it are recognised, and those that the tokenizer puts around a text are added.
    Text(String),
    /// A text that a chat template rendered: special tokens in it are recognised, and none are added.
    Rendered(String),
    /// Token ids, as they are.
    Ids(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Prompt {
        Prompt::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Prompt {
        Prompt::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Prompt {
        Prompt::Ids(ids)
    }
}

impl From<&[u32]> for Prompt {
    fn from(ids: &[u32]) -> Prompt {
        Prompt::Ids(ids.to_vec())
    }
}

/// What one step of generation adds; displays as its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which prompt it continues, from 0.
    pub prompt: usize,
    /// The token, unless the step only read a part of the prompt, or text was flushed at the end.
    pub token: Option<u32>,
    /// Text that is now certain: characters are given whole, and what may be the beginning of a stop string is held
    /// back. Always empty without a tokenizer.
    pub text: &'a str,
}

impl fmt::Display for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// Whether to go on; a callback that returns nothing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// Generate further.
    #[default]
    Continue,
    /// End all answers here, as [`FinishReason::Cancelled`].
    Cancel,
}

impl From<()> for Flow {
    fn from((): ()) -> Flow {
        Flow::Continue
    }
}

/// How long a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, an end-of-text token included.
    pub generated_tokens: usize,
    /// From the beginning of the prompt's computation to the first token.
    pub prefill_seconds: f64,
    /// From the first token to the last.
    pub decode_seconds: f64,
    /// From the call to the first token: tokenization and waiting for other prompts included.
    pub first_token_seconds: f64,
}

impl Timings {
    /// Prompt tokens per second; nothing where no token came.
    pub fn prefill_rate(&self) -> Option<f64> {
        (self.prefill_seconds > 0.0).then(|| self.prompt_tokens as f64 / self.prefill_seconds)
    }

    /// Tokens per second after the first one; nothing where there was no second.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.generated_tokens > 1 && self.decode_seconds > 0.0)
            .then(|| (self.generated_tokens - 1) as f64 / self.decode_seconds)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The generated tokens; the end-of-text token or those of a stop string included.
    pub ids: Vec<u32>,
    /// Their text without special tokens, up to the stop string; nothing where the model has no tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timings: Timings,
    /// The seed of its draws, to repeat them.
    pub seed: u64,
}
