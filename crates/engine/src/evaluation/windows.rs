//! Windows over a text: what is run together, and which predictions count.

use std::num::NonZeroUsize;
use std::ops::Range;

/// How a text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRule {
    /// Tokens of a window.
    pub context: usize,
    /// Nothing: windows follow each other, and the predictions of the second half of each count. A stride: a window
    /// starts every so many tokens, and so many predictions at its end count.
    pub stride: Option<NonZeroUsize>,
    /// Windows at most.
    pub limit: Option<NonZeroUsize>,
}

/// One window of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its tokens, as positions in the text.
    pub tokens: Range<usize>,
    /// Rows of the window that count: each predicts the token after it, which is in the window.
    pub rows: Range<usize>,
}

/// A rule that cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WindowError {
    #[error("a context of {context} tokens leaves no prediction to count; take at least {least}")]
    Context { context: usize, least: usize },
    #[error(
        "a stride of {stride} tokens is too long for a context of {context}: the first token of a window has nothing \
         before it, so that at most {longest} of its tokens can count"
    )]
    Stride { stride: usize, context: usize, longest: usize },
    #[error(
        "the text has {tokens} tokens, but windows of {context} tokens{} need at least {needed}: take a longer text or a \
         smaller context", with_stride(*.stride)
    )]
    TooShort { tokens: usize, context: usize, stride: Option<NonZeroUsize>, needed: usize },
}

fn with_stride(stride: Option<NonZeroUsize>) -> String {
    stride.map_or_else(String::new, |stride| format!(" with a stride of {stride}"))
}

impl WindowRule {
    /// Shortest context of which the second half holds a prediction.
    const LEAST_CONTEXT: usize = 3;

    /// The rows of each window that count.
    ///
    /// # Errors
    /// Where context and stride leave none.
    pub fn counted_rows(&self) -> Result<Range<usize>, WindowError> {
        let (context, least) = (self.context, Self::LEAST_CONTEXT);
        let Some(stride) = self.stride.map(NonZeroUsize::get) else {
            return match context < least {
                true => Err(WindowError::Context { context, least }),
                false => Ok(context / 2..context - 1),
            };
        };
        match context.checked_sub(1) {
            None | Some(0) => Err(WindowError::Context { context, least: 2 }),
            Some(longest) if stride > longest => Err(WindowError::Stride { stride, context, longest }),
            Some(last) => Ok(last - stride..last),
        }
    }

    /// The windows of a text of `tokens` tokens, in order; what is left at the end and fills no window is left out, and
    /// with a stride so is a window that ends exactly with the text, as in llama.cpp.
    ///
    /// # Errors
    /// Where there is none.
    pub fn windows(
        &self,
        tokens: usize,
    ) -> Result<impl ExactSizeIterator<Item = Window> + use<>, WindowError> {
        let rows = self.counted_rows()?;
        let context = self.context;
        let (step, needed, windows) = match self.stride.map(NonZeroUsize::get) {
            None => (context, context, tokens / context),
            Some(stride) => (stride, context + 1, tokens.saturating_sub(context).div_ceil(stride)),
        };
        if windows == 0 {
            return Err(WindowError::TooShort { tokens, context, stride: self.stride, needed });
        }
        let windows = self.limit.map_or(windows, |limit| windows.min(limit.get()));
        let window = move |index| {
            let start = index * step;
            Window { tokens: start..start + context, rows: rows.clone() }
        };
        Ok((0..windows).map(window))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(context: usize, stride: usize, limit: usize) -> WindowRule {
        WindowRule { context, stride: NonZeroUsize::new(stride), limit: NonZeroUsize::new(limit) }
    }

    fn windows(rule: WindowRule, tokens: usize) -> Result<Vec<Window>, WindowError> {
        rule.windows(tokens).map(Iterator::collect)
    }

    #[test]
    fn the_second_half_of_each_window_counts() {
        let found = windows(rule(512, 0, 0), 1100).expect("windows");
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Window { tokens: 512..1024, rows: 256..511 });
        assert_eq!(windows(rule(512, 0, 1), 1100).map(|found| found.len()), Ok(1));
        assert_eq!(windows(rule(3, 0, 0), 3).expect("a window")[0].rows, 1..2);
    }

    #[test]
    fn a_stride_counts_the_tokens_at_the_end() {
        let found = windows(rule(8, 3, 0), 15).expect("windows");
        assert_eq!(found.len(), 3);
        assert_eq!(found[2], Window { tokens: 6..14, rows: 4..7 });
        // A window that ends with the text is left out.
        assert_eq!(windows(rule(8, 3, 0), 14).map(|found| found.len()), Ok(2));
        assert_eq!(windows(rule(2, 1, 0), 3).expect("a window")[0].rows, 0..1);
    }

    #[test]
    fn what_leaves_nothing_to_count_is_refused() {
        assert_eq!(windows(rule(2, 0, 0), 99), Err(WindowError::Context { context: 2, least: 3 }));
        assert_eq!(windows(rule(1, 1, 0), 99), Err(WindowError::Context { context: 1, least: 2 }));
        assert_eq!(windows(rule(0, 1, 0), 99), Err(WindowError::Context { context: 0, least: 2 }));
        let too_long = WindowError::Stride { stride: 8, context: 8, longest: 7 };
        assert_eq!(windows(rule(8, 8, 0), 99), Err(too_long));
        for (stride, tokens, needed) in [(0, 511, 512), (256, 512, 513)] {
            let error = windows(rule(512, stride, 0), tokens).expect_err("too short").to_string();
            assert!(error.contains(&format!("{tokens} tokens")), "{error}");
            assert!(error.contains(&format!("at least {needed}")), "{error}");
            assert!(windows(rule(512, stride, 0), needed).is_ok());
        }
    }

    proptest! {
        /// Against the definition, spelt out token by token.
        #[test]
        fn windows_are_those_of_the_definition(
            context in 1_usize..40, stride in 0_usize..40, limit in 0_usize..5, tokens in 0_usize..300,
        ) {
            let rule = rule(context, stride, limit);
            let mut counted = Vec::new();
            let mut start = 0;
            let mut number = 0;
            let last_start = |start: usize| if stride == 0 { start + context <= tokens } else { start + context < tokens };
            while last_start(start) && (limit == 0 || number < limit) {
                let first = if stride == 0 { context / 2 + 1 } else { context.saturating_sub(stride) };
                counted.extend((first.max(1)..context).map(|target| (start, start + target)));
                start += if stride == 0 { context } else { stride };
                number += 1;
            }
            let usable = if stride == 0 { context >= 3 } else { stride < context };
            match windows(rule, tokens) {
                Ok(found) => {
                    let targets = |window: &Window| {
                        let start = window.tokens.start;
                        window.rows.clone().map(move |row| (start, start + row + 1)).collect::<Vec<_>>()
                    };
                    prop_assert!(found.iter().all(|window| window.tokens.len() == context));
                    prop_assert!(found.iter().all(|window| window.tokens.end <= tokens));
                    prop_assert_eq!(found.iter().flat_map(targets).collect::<Vec<_>>(), counted);
                }
                Err(WindowError::TooShort { .. }) => prop_assert!(usable && counted.is_empty()),
                Err(_) => prop_assert!(!usable),
            }
        }

        /// No token is counted twice.
        #[test]
        fn a_token_counts_once(context in 2_usize..40, stride in 1_usize..40, tokens in 0_usize..300) {
            if let Ok(found) = windows(rule(context, stride, 0), tokens) {
                let mut end = 0;
                for window in found {
                    prop_assert!(window.tokens.start + window.rows.start + 1 >= end);
                    end = window.tokens.start + window.rows.end + 1;
                }
            }
        }
    }
}
