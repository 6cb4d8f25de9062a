//! Sampling defaults and special tokens of `generation_config.json`.

use std::path::Path;

use super::{
    ConfigError,
    fields::{self, Fields},
};

/// What the makers of a checkpoint recommend for generation. All of it may be absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample (`true`) or to take the likeliest token.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Number of likeliest tokens to choose among; 0 for all.
    pub top_k: Option<usize>,
    /// Share of probability to choose within.
    pub top_p: Option<f64>,
    /// Least probability, as a share of the likeliest token's.
    pub min_p: Option<f64>,
    /// Divisor of the logits of tokens that occurred.
    pub repetition_penalty: Option<f64>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one; they replace those of `config.json`.
    pub eos_token_ids: Option<Vec<u32>>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` from `text`; `file` is for errors.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and the key.
    pub fn from_json(text: &[u8], file: &Path) -> Result<GenerationDefaults, ConfigError> {
        let map = fields::parse(text, file)?;
        let fields = Fields::new(file, &map);
        Ok(GenerationDefaults {
            do_sample: fields.bool("do_sample")?,
            temperature: fields.number("temperature")?,
            top_k: fields.count("top_k")?,
            top_p: fields.number("top_p")?,
            min_p: fields.number("min_p")?,
            repetition_penalty: fields.number("repetition_penalty")?,
            bos_token_id: fields.token("bos_token_id")?,
            eos_token_ids: fields.tokens("eos_token_id")?,
        })
    }
}
