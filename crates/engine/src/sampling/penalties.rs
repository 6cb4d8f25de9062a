//! Penalties on tokens that occurred before.

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

/// Counts tokens without hashing or sorting. A history that goes on where the last one ended costs what is new in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Counter {
    /// By token: 0 if not seen, else 1 + its place in `seen`.
    places: Vec<u32>,
    seen: Vec<Seen>,
    /// What was counted.
    prompt: Vec<u32>,
    generated: Vec<u32>,
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
        let goes_on = self.places.len() == vocabulary
            && prompt == self.prompt.as_slice()
            && generated.starts_with(&self.generated);
        if !goes_on {
            self.forget(vocabulary);
        }
        let new_prompt = &prompt[self.prompt.len()..];
        let new_generated = &generated[self.generated.len()..];
        if let Some(&token) =
            new_prompt.iter().chain(new_generated).find(|&&token| token as usize >= vocabulary)
        {
            return Err(SampleError::HistoryToken { token, vocabulary });
        }
        for (tokens, times) in [(new_prompt, 0), (new_generated, 1)] {
            for &token in tokens {
                self.add(token, times);
            }
        }
        self.prompt.extend_from_slice(new_prompt);
        self.generated.extend_from_slice(new_generated);
        Ok(())
    }

    fn forget(&mut self, vocabulary: usize) {
        for seen in self.seen.drain(..) {
            self.places[seen.token as usize] = 0;
        }
        self.places.resize(vocabulary, 0);
        self.prompt.clear();
        self.generated.clear();
    }

    fn add(&mut self, token: u32, times: u32) {
        let place = &mut self.places[token as usize];
        if *place == 0 {
            self.seen.push(Seen { token, generated: 0 });
            *place = self.seen.len() as u32;
        }
        let generated = &mut self.seen[*place as usize - 1].generated;
        *generated = generated.saturating_add(times);
    }

    /// Where a token stands among those seen.
    pub(super) fn place(&self, token: u32) -> Option<usize> {
        self.places.get(token as usize).and_then(|&place| (place as usize).checked_sub(1))
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
    fn a_history_may_go_on_shrink_or_change_and_errors_count_nothing() {
        let mut counter = Counter::default();
        let mut check = |prompt: &[u32], generated: &[u32], vocabulary: usize| {
            let counted = counter.count(History { prompt, generated }, None, vocabulary);
            let mut fresh = Counter::default();
            assert_eq!(counted, fresh.count(History { prompt, generated }, None, vocabulary));
            assert_eq!(
                counted.is_err(),
                prompt.iter().chain(generated).any(|&token| token as usize >= vocabulary)
            );
            if counted.is_ok() {
                assert_eq!(counter.seen(), fresh.seen());
                for (place, seen) in counter.seen().iter().enumerate() {
                    assert_eq!(counter.place(seen.token), Some(place));
                }
                assert_eq!(counter.place(4), fresh.place(4));
            }
        };
        check(&[0, 1], &[2], 6);
        check(&[0, 1], &[2, 3, 2], 6);
        check(&[0, 1], &[2, 3, 2, 6], 6);
        check(&[0, 1], &[2, 3, 2, 5], 6);
        check(&[0, 1], &[2], 6);
        check(&[0, 1], &[3, 3], 6);
        check(&[0], &[3, 3], 6);
        check(&[0], &[3, 3], 3);
        check(&[0], &[], 3);
        check(&[0], &[2, 2], 9);
        check(&[], &[], 9);
    }
}
