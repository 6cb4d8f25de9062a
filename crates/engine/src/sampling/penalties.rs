//! Penalties on tokens that occurred before.

use std::mem;

use super::{SampleError, SamplingParams};

/// The tokens of a sequence so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// Given, not generated. Only the repetition penalty counts them.
    pub prompt: &'a [u32],
    /// Generated, oldest first.
    pub generated: &'a [u32],
}

impl<'a> History<'a> {
    /// The latest `window` tokens.
    fn latest(self, window: Option<usize>) -> Self {
        let Some(window) = window else { return self };
        let generated = last(self.generated, window);
        Self { prompt: last(self.prompt, window - generated.len()), generated }
    }
}

fn last(tokens: &[u32], count: usize) -> &[u32] {
    &tokens[tokens.len().saturating_sub(count)..]
}

/// Counts tokens without hashing or sorting; its cost is that of the tokens counted, not of the vocabulary.
#[derive(Debug, Clone, Default)]
pub(super) struct Penalties {
    /// By token: 0 if not seen, else 1 + the times it was generated. All 0 between calls.
    seen: Vec<u32>,
    /// The tokens that are not 0 in `seen`. Empty between calls.
    touched: Vec<u32>,
}

impl Penalties {
    /// Applies repetition, then frequency and presence penalty to `logits`, in f32. A finite logit stays finite.
    pub(super) fn apply(
        &mut self,
        params: &SamplingParams,
        history: History<'_>,
        logits: &mut [f32],
    ) -> Result<(), SampleError> {
        let History { prompt, generated } = history.latest(params.penalty_window);
        let vocabulary = logits.len();
        if let Some(&token) = prompt.iter().chain(generated).find(|&&token| token as usize >= vocabulary) {
            return Err(SampleError::HistoryToken { token, vocabulary });
        }
        if self.seen.len() < vocabulary {
            self.seen.resize(vocabulary, 0);
        }
        for (tokens, generated) in [(prompt, 0), (generated, 1)] {
            for &token in tokens {
                let seen = &mut self.seen[token as usize];
                if *seen == 0 {
                    *seen = 1;
                    self.touched.push(token);
                }
                *seen = seen.saturating_add(generated);
            }
        }
        for token in self.touched.drain(..) {
            let times_generated = mem::take(&mut self.seen[token as usize]) - 1;
            let logit = &mut logits[token as usize];
            *logit = penalise(params, *logit, times_generated);
        }
        Ok(())
    }
}

fn penalise(params: &SamplingParams, logit: f32, times_generated: u32) -> f32 {
    // Minus infinity says "never", and no negative penalty may change that.
    if logit == f32::NEG_INFINITY {
        return logit;
    }
    let penalty = params.repetition_penalty;
    let mut penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
    if times_generated > 0 {
        penalised -= params.frequency_penalty * times_generated as f32;
        penalised -= params.presence_penalty;
    }
    // An extreme repetition penalty may leave the range of f32.
    penalised.clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [2.0, -2.0, 4.0, -4.0, 0.0, f32::NEG_INFINITY];

    fn penalised(params: SamplingParams, prompt: &[u32], generated: &[u32]) -> [f32; 6] {
        let mut logits = LOGITS;
        Penalties::default()
            .apply(&params, History { prompt, generated }, &mut logits)
            .expect("valid tokens");
        logits
    }

    #[test]
    fn repetition_divides_positive_and_multiplies_negative_logits_once() {
        let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        assert_eq!(
            penalised(params, &[0, 1, 0, 0], &[3, 4, 5, 3]),
            [1.0, -4.0, 4.0, -8.0, 0.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn presence_and_frequency_count_generated_tokens_only() {
        let params = SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..Default::default() };
        assert_eq!(
            penalised(params, &[0, 1, 1], &[2, 3, 2, 2, 5]),
            [2.0, -2.0, 4.0 - 0.75 - 0.5, -4.75, 0.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn all_three_together_repetition_first() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 1.0,
            frequency_penalty: -0.5,
            ..Default::default()
        };
        // 4 / 2 + 2 * 0.5 - 1; -4 * 2 + 0.5 - 1; the prompt's 2 / 2 only.
        assert_eq!(penalised(params, &[0], &[2, 3, 2]), [1.0, -2.0, 2.0, -8.5, 0.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn the_window_takes_the_latest_tokens_across_prompt_and_generated() {
        let with_window =
            |window| SamplingParams { repetition_penalty: 2.0, penalty_window: window, ..Default::default() };
        let (prompt, generated) = (&[0, 1], &[2, 3]);
        assert_eq!(penalised(with_window(Some(0)), prompt, generated), LOGITS);
        assert_eq!(penalised(with_window(Some(1)), prompt, generated)[..4], [2.0, -2.0, 4.0, -8.0]);
        assert_eq!(penalised(with_window(Some(3)), prompt, generated)[..4], [2.0, -4.0, 2.0, -8.0]);
        assert_eq!(
            penalised(with_window(Some(usize::MAX)), prompt, generated),
            penalised(with_window(None), prompt, generated)
        );
    }

    #[test]
    fn extreme_penalties_stay_finite() {
        let params = SamplingParams { repetition_penalty: f32::MIN_POSITIVE, ..Default::default() };
        assert_eq!(penalised(params, &[2], &[])[2], f32::MAX);
        let params = SamplingParams { repetition_penalty: f32::MAX, ..Default::default() };
        assert_eq!(penalised(params, &[3], &[])[3], f32::MIN);
    }

    #[test]
    fn counters_are_clean_after_success_and_after_an_error() {
        let params = SamplingParams { frequency_penalty: 1.0, ..Default::default() };
        let mut penalties = Penalties::default();
        let mut logits = LOGITS;
        let bad = History { prompt: &[], generated: &[0, 6] };
        assert_eq!(
            penalties.apply(&params, bad, &mut logits),
            Err(SampleError::HistoryToken { token: 6, vocabulary: 6 })
        );
        assert_eq!(logits, LOGITS);
        for _ in 0..2 {
            let mut logits = LOGITS;
            let history = History { prompt: &[], generated: &[0] };
            assert_eq!(penalties.apply(&params, history, &mut logits), Ok(()));
            assert_eq!(logits[..2], [1.0, -2.0]);
        }
    }
}
