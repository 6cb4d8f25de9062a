//! What the user and the checkpoint ask of sampling.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How to choose a token. The defaults draw from the model's own distribution: nothing is changed or cut off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SamplingParams {
    /// Divides the logits; finite, 0 or more. 0 takes the largest logit ("greedy") and ignores `top_k`, `top_p`,
    /// `min_p` and `seed`. Default 1.
    pub temperature: f32,
    /// Keep this many of the largest logits; exactly as many, also where equal ones straddle the cut. 0, the
    /// default, keeps all.
    pub top_k: u32,
    /// Keep the fewest most probable tokens whose probabilities reach this sum; 0 to 1, at least one token stays.
    /// Default 1: all.
    pub top_p: f32,
    /// Keep tokens at least this many times as probable as the most probable one; 0 to 1. Default 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token in the prompt and the generated text (Keskar
    /// et al. 2019, with the sign rule of transformers); finite, above 0. Default 1: none.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token generated before (OpenAI); -2 to 2. Default 0.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token once for each time it was generated before (OpenAI); -2 to 2. Default 0.
    pub frequency_penalty: f32,
    /// Penalties look at this many of the latest tokens, prompt and generated text taken together; all if `None`,
    /// the default.
    pub penalty_window: Option<usize>,
    /// Makes the draws reproducible. `None`, the default: the caller of [`Sampler::new`](super::Sampler::new) chooses.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            seed: None,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{field} = {value} is not allowed: it must be {allowed}")]
pub struct InvalidParam {
    /// Name of the field in [`SamplingParams`].
    pub field: &'static str,
    /// The value given.
    pub value: f32,
    /// The values that are allowed, in words.
    pub allowed: &'static str,
}

impl SamplingParams {
    /// The most probable token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the largest logit is taken, without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether any penalty changes a logit.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field whose value is outside its range.
    pub fn validate(&self) -> Result<(), InvalidParam> {
        // Comparisons with NaN are false, so NaN is outside every range.
        let unit = |value: f32| (0.0..=1.0).contains(&value);
        let openai = |value: f32| (-2.0..=2.0).contains(&value);
        let checks = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "a finite number from 0 (greedy) up",
            ),
            ("top_p", self.top_p, unit(self.top_p), "from 0 to 1 (1 turns it off)"),
            ("min_p", self.min_p, unit(self.min_p), "from 0 (off) to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "a finite number above 0 (1 turns it off)",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                openai(self.presence_penalty),
                "from -2 to 2 (0 turns it off)",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                openai(self.frequency_penalty),
                "from -2 to 2 (0 turns it off)",
            ),
        ];
        match checks.into_iter().find(|&(_, _, valid, _)| !valid) {
            Some((field, value, _, allowed)) => Err(InvalidParam { field, value, allowed }),
            None => Ok(()),
        }
    }
}

/// [`SamplingParams`] in which every field may be left open: what a user typed, or what a checkpoint recommends.
///
/// Deserialises from `generation_config.json`: absent and `null` fields stay open, fields that are not about
/// sampling are ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// `false` is a wish for greedy decoding and outweighs a `temperature` beside it, as in transformers. Absent
    /// says nothing.
    pub do_sample: Option<bool>,
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`]; `Some(0)` turns it off.
    pub top_k: Option<u32>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`SamplingParams::penalty_window`].
    pub penalty_window: Option<usize>,
    /// See [`SamplingParams::seed`].
    pub seed: Option<u64>,
}

impl SamplingOptions {
    /// The temperature asked for, `do_sample` included.
    fn effective_temperature(&self) -> Option<f32> {
        if self.do_sample == Some(false) { Some(0.0) } else { self.temperature }
    }

    /// These options, with `fallback` wherever one is open. A user's options come first:
    /// `user.or(&checkpoint).resolve()`.
    #[must_use]
    pub fn or(&self, fallback: &Self) -> Self {
        Self {
            // Folded into the temperature, so that a temperature here outweighs a `do_sample` there.
            do_sample: None,
            temperature: self.effective_temperature().or_else(|| match self.do_sample {
                Some(true) => fallback.temperature,
                _ => fallback.effective_temperature(),
            }),
            top_k: self.top_k.or(fallback.top_k),
            top_p: self.top_p.or(fallback.top_p),
            min_p: self.min_p.or(fallback.min_p),
            repetition_penalty: self.repetition_penalty.or(fallback.repetition_penalty),
            presence_penalty: self.presence_penalty.or(fallback.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(fallback.frequency_penalty),
            penalty_window: self.penalty_window.or(fallback.penalty_window),
            seed: self.seed.or(fallback.seed),
        }
    }

    /// The parameters, with [`SamplingParams::default`] for what is still open.
    ///
    /// # Errors
    /// See [`SamplingParams::validate`].
    pub fn resolve(&self) -> Result<SamplingParams, InvalidParam> {
        let default = SamplingParams::default();
        let params = SamplingParams {
            temperature: self.effective_temperature().unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            penalty_window: self.penalty_window,
            seed: self.seed,
        };
        params.validate()?;
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> SamplingOptions {
        serde_json::from_str(json).expect("valid options")
    }

    #[test]
    fn the_checkpoint_fills_what_the_user_left_open() {
        let checkpoint = options(
            r#"{"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": true, "temperature": 0.7, "top_k": 20,
                "top_p": 0.8, "min_p": null, "repetition_penalty": 1.1, "transformers_version": "4.37.0"}"#,
        );
        let user = SamplingOptions { top_k: Some(0), seed: Some(9), ..Default::default() };
        let params = user.or(&checkpoint).resolve().expect("valid");
        assert_eq!(
            params,
            SamplingParams {
                temperature: 0.7,
                top_p: 0.8,
                repetition_penalty: 1.1,
                seed: Some(9),
                ..SamplingParams::default()
            }
        );
    }

    #[test]
    fn nothing_given_is_the_plain_distribution() {
        assert_eq!(options("{}").resolve(), Ok(SamplingParams::default()));
    }

    #[test]
    fn do_sample_false_is_greedy_unless_the_user_names_a_temperature() {
        let checkpoint = options(r#"{"do_sample": false, "temperature": 0.6}"#);
        let temperature = |user: SamplingOptions| user.or(&checkpoint).resolve().expect("valid").temperature;
        assert_eq!(checkpoint.resolve().expect("valid").temperature, 0.0);
        assert_eq!(temperature(SamplingOptions::default()), 0.0);
        assert_eq!(temperature(SamplingOptions { temperature: Some(0.9), ..Default::default() }), 0.9);
        assert_eq!(temperature(SamplingOptions { do_sample: Some(true), ..Default::default() }), 0.6);
        let greedy = SamplingOptions { do_sample: Some(false), ..Default::default() };
        assert_eq!(greedy.or(&options(r#"{"temperature": 0.6}"#)).resolve(), Ok(SamplingParams::greedy()));
    }

    #[test]
    fn values_outside_their_range_name_field_value_and_range() {
        let base = SamplingParams::default();
        let cases = [
            (SamplingParams { temperature: -0.5, ..base }, "temperature", "-0.5"),
            (SamplingParams { temperature: f32::INFINITY, ..base }, "temperature", "inf"),
            (SamplingParams { temperature: f32::NAN, ..base }, "temperature", "NaN"),
            (SamplingParams { top_p: 1.5, ..base }, "top_p", "1.5"),
            (SamplingParams { top_p: f32::NAN, ..base }, "top_p", "NaN"),
            (SamplingParams { min_p: -0.1, ..base }, "min_p", "-0.1"),
            (SamplingParams { repetition_penalty: 0.0, ..base }, "repetition_penalty", "0"),
            (SamplingParams { presence_penalty: 2.5, ..base }, "presence_penalty", "2.5"),
            (SamplingParams { frequency_penalty: -3.0, ..base }, "frequency_penalty", "-3"),
        ];
        for (params, field, value) in cases {
            let error = params.validate().expect_err(field);
            assert_eq!(error.field, field);
            let text = error.to_string();
            assert!(text.starts_with(&format!("{field} = {value} is not allowed: it must be ")), "{text}");
            assert!(text.contains(error.allowed));
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        let params = SamplingParams {
            temperature: 0.0,
            top_k: u32::MAX,
            top_p: 0.0,
            min_p: 1.0,
            repetition_penalty: f32::MIN_POSITIVE,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            penalty_window: Some(0),
            seed: Some(u64::MAX),
        };
        assert_eq!(params.validate(), Ok(()));
    }
}
