//! Penalties on tokens that occurred before.

use std::mem;

use mantissa_ops::reduction::Seen;

use super::SampleError;

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
pub(super) struct Counter {
    /// By token: 0 if not seen, else 1 + the times it was generated. All 0 between calls.
    times: Vec<u32>,
    seen: Vec<Seen>,
}

impl Counter {
    /// Counts the latest `window` tokens of a history, of a vocabulary of this size.
    pub(super) fn count(
        &mut self,
        history: History<'_>,
        window: Option<usize>,
        vocabulary: usize,
    ) -> Result<(), SampleError> {
        let History { prompt, generated } = history.latest(window);
        if let Some(&token) = prompt.iter().chain(generated).find(|&&token| token as usize >= vocabulary) {
            return Err(SampleError::HistoryToken { token, vocabulary });
        }
        if self.times.len() < vocabulary {
            self.times.resize(vocabulary, 0);
        }
        self.seen.clear();
        for (tokens, generated) in [(prompt, 0), (generated, 1)] {
            for &token in tokens {
                let times = &mut self.times[token as usize];
                if *times == 0 {
                    *times = 1;
                    self.seen.push(Seen { token, generated: 0 });
                }
                *times = times.saturating_add(generated);
            }
        }
        for seen in &mut self.seen {
            seen.generated = mem::take(&mut self.times[seen.token as usize]) - 1;
        }
        Ok(())
    }

    /// The tokens counted last, each once, in the order in which they came first.
    pub(super) fn seen(&self) -> &[Seen] {
        &self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(prompt: &[u32], generated: &[u32], window: Option<usize>) -> Vec<(u32, u32)> {
        let mut counter = Counter::default();
        counter.count(History { prompt, generated }, window, 6).expect("valid tokens");
        counter.seen().iter().map(|seen| (seen.token, seen.generated)).collect()
    }

    #[test]
    fn each_token_is_counted_once_with_the_times_it_was_generated() {
        assert_eq!(counted(&[0, 1, 0, 0], &[3, 4, 5, 3, 1], None), [(0, 0), (1, 1), (3, 2), (4, 1), (5, 1)]);
        assert_eq!(counted(&[], &[], None), []);
    }

    #[test]
    fn the_window_takes_the_latest_tokens_across_prompt_and_generated() {
        let with_window = |window| counted(&[0, 1], &[2, 3], window);
        assert_eq!(with_window(Some(0)), []);
        assert_eq!(with_window(Some(1)), [(3, 1)]);
        assert_eq!(with_window(Some(3)), [(1, 0), (2, 1), (3, 1)]);
        assert_eq!(with_window(Some(usize::MAX)), with_window(None));
    }

    #[test]
    fn counters_are_clean_after_success_and_after_an_error() {
        let mut counter = Counter::default();
        let bad = History { prompt: &[], generated: &[0, 6] };
        assert_eq!(counter.count(bad, None, 6), Err(SampleError::HistoryToken { token: 6, vocabulary: 6 }));
        for _ in 0..2 {
            let history = History { prompt: &[], generated: &[0] };
            assert_eq!(counter.count(history, None, 6), Ok(()));
            assert_eq!(counter.seen(), [Seen { token: 0, generated: 1 }]);
        }
    }
}
