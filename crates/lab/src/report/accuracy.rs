//! What a policy does to what the model says.

use std::num::NonZeroUsize;

use mantissa::engine::evaluation::{Estimate, WindowRule};
use mantissa::eval::haiku::{self, Verdict};
use mantissa::eval::{Evaluated, Perplexity, Predictions};
use mantissa::model::template::GenerationPrompt;
use mantissa::numerics::{PrecisionPolicy, Preset};
use mantissa::{Flow, GenerateOptions, LogitRows, Options, Prompt};
use serde::Serialize;
use serde_json::json;

use super::Study;
use crate::LabError;

/// The policy that others are held against.
pub const REFERENCE: Preset = Preset::F32;
/// Tokens of a window of the text, as far as the model goes.
const WINDOW: usize = 512;
/// Tokens of a haiku at most.
const HAIKU: usize = 64;
/// Haiku that are written together.
const TOGETHER: usize = 16;

/// How well a text is predicted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predicted {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Perplexity.
    pub perplexity: f64,
    /// One standard error of it.
    pub perplexity_error: Option<f64>,
    /// The distance from f32; nothing of f32 itself.
    pub against: Option<Distance>,
}

/// How far predictions are from those under f32.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// By how much the perplexity is larger.
    pub difference: f64,
    /// One standard error of it.
    pub difference_error: Option<f64>,
    /// Mean KL divergence, in nats.
    pub kl_mean: f64,
    /// 99 of 100 tokens' KL divergences are below it.
    pub kl_p99: f64,
    /// The share of tokens at which both find the same one the most probable.
    pub same_top: f64,
}

/// How many haiku pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Haiku {
    /// Words that were asked about.
    pub words: usize,
    /// Answers that pass every check.
    pub passing: usize,
    /// The first word.
    pub word: String,
    /// The answer to it.
    pub answer: String,
    /// Whether that one passes.
    pub passes: bool,
}

impl Study<'_> {
    /// Predicts the text under a policy, beside f32.
    pub(super) fn predict(&self, policy: PrecisionPolicy) -> Result<Predicted, LabError> {
        if self.model.tokenizer()?.is_none() {
            return Err(mantissa::Error::TextWithoutTokenizer.into());
        }
        let windows = WindowRule {
            context: WINDOW.min(self.model.config().max_position_embeddings),
            stride: None,
            limit: NonZeroUsize::new(self.extent.windows),
        };
        let prepare = |policy: PrecisionPolicy| {
            self.progress.say(&format!("{policy}: loading for the text"));
            self.model.prepare(&Options {
                policy: Some(policy),
                context: Some(windows.context),
                logits: LogitRows::All,
                ..self.options.clone()
            })
        };
        let mut under = prepare(policy)?;
        let mut reference =
            if policy == REFERENCE.policy() { None } else { Some(prepare(REFERENCE.policy())?) };
        let mut measurement = Perplexity {
            policy: &mut under,
            reference: reference.as_mut(),
            windows,
            threads: self.options.threads,
        };
        let found = measurement.measure(&self.text.content, |Evaluated { windows, total }| {
            self.progress.say(&format!("{policy}: window {windows} of {total} of the text"));
            if self.progress.cancelled() { Flow::Cancel } else { Flow::Continue }
        })?;
        self.progress.go_on()?;
        Predicted::of(&found).ok_or(LabError::Unfinished { what: "the text", measured: 0, wanted: 1 })
    }

    /// Asks for a haiku about each word.
    pub(super) fn haiku(&self, policy: PrecisionPolicy) -> Result<Haiku, LabError> {
        let Some(first) = self.words.first() else {
            return Err(LabError::Unfinished { what: "haiku", measured: 0, wanted: 0 });
        };
        let template = self.model.chat_template()?;
        let mut prompts = Vec::new();
        let mut longest = 0;
        for word in &self.words {
            let chat = json!([{ "role": "user", "content": haiku::REQUEST.replace("{word}", word) }]);
            let rendered = template.render(&chat, GenerationPrompt::Add).map_err(mantissa::Error::from)?;
            let prompt = Prompt::Rendered(rendered);
            longest = longest.max(self.model.encode(&prompt)?.len());
            prompts.push(prompt);
        }
        self.progress.say(&format!("{policy}: haiku"));
        let mut generator = self.model.prepare(&Options {
            policy: Some(policy),
            context: Some((longest + HAIKU).min(self.model.config().max_position_embeddings)),
            sequences: Some(TOGETHER.min(prompts.len())),
            ..self.options.clone()
        })?;
        let options = GenerateOptions { max_tokens: HAIKU, ..GenerateOptions::default().greedy() };
        let answers = generator.generate_batch(&prompts, &options, |_| {
            if self.progress.cancelled() { Flow::Cancel } else { Flow::Continue }
        })?;
        self.progress.go_on()?;
        let answers: Vec<String> =
            answers.into_iter().map(|answer| answer.text.unwrap_or_default()).collect();
        let judged = answers.iter().zip(&self.words).map(|(answer, word)| haiku::judge(answer, word));
        let verdicts: Vec<Verdict> = judged.collect();
        Ok(Haiku {
            words: self.words.len(),
            passing: verdicts.iter().filter(|verdict| verdict.passes()).count(),
            word: first.clone(),
            answer: answers.into_iter().next().unwrap_or_default(),
            passes: verdicts.first().is_some_and(Verdict::passes),
        })
    }
}

impl Predicted {
    fn of(found: &Predictions) -> Option<Predicted> {
        let Estimate { value, error } = found.policy.perplexity()?;
        let against = found.against.as_ref().and_then(|against| {
            let (difference, divergence) = (found.difference()?, against.divergence()?);
            Some(Distance {
                difference: difference.value,
                difference_error: difference.error,
                kl_mean: divergence.mean.value,
                kl_p99: divergence.p99,
                same_top: against.same_top()?.value,
            })
        });
        Some(Predicted { tokens: found.count(), perplexity: value, perplexity_error: error, against })
    }
}
