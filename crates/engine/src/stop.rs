//! Stop strings over text that arrives in pieces.
//!
//! A stop string may be spread over several pieces, so the end of the text so far is held back for as long as it may
//! be the beginning of one. The result does not depend on where the pieces were cut.

use thiserror::Error;

/// A stop string that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StopError {
    /// It is empty, and would stop every text before its first character.
    #[error("stop string {index} is empty; it must have at least one character")]
    Empty {
        /// Its place in the list, from 0.
        index: usize,
    },
}

/// What one piece of text leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that may be shown now. Never holds any part of a stop string that was found.
    pub emit: String,
    /// The stop string found, as its place in the list. Generation is over then.
    pub matched: Option<usize>,
}

/// Looks for stop strings in a stream of text.
///
/// The string whose last character comes first wins; of several that end at the same place the longest; of equal
/// ones the first in the list. Takes time in proportion to the text and the number of stop strings (Knuth, Morris and
/// Pratt 1977).
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text received and not yet emitted.
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these stop strings; without any, all text passes at once.
    ///
    /// # Errors
    /// An empty stop string.
    pub fn new(stops: Vec<String>) -> Result<Self, StopError> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(StopError::Empty { index });
        }
        let patterns = stops.into_iter().map(Pattern::new).collect();
        Ok(Self { patterns, held: String::new(), matched: None })
    }

    /// The stop string found so far, as its place in the list.
    pub fn matched(&self) -> Option<usize> {
        self.matched
    }

    /// Takes the next piece of text. After a stop string all text is dropped, from the string itself on.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.matched.is_some() {
            return StopOutcome { emit: String::new(), matched: self.matched };
        }
        let old = self.held.len();
        self.held.push_str(piece);
        for (offset, &byte) in piece.as_bytes().iter().enumerate() {
            if let Some((index, length)) = self.advance(byte) {
                let start = old + offset + 1 - length;
                self.matched = Some(index);
                self.held.truncate(start);
                return StopOutcome { emit: std::mem::take(&mut self.held), matched: self.matched };
            }
        }
        // The cut is at a character border: what is held back begins with the first byte of a stop string, and the
        // text ends with a whole character.
        let hold = self.patterns.iter().map(|pattern| pattern.reached).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        StopOutcome { emit: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// The text still held back, when no more is coming. Empty after a stop string.
    pub fn finish(self) -> String {
        self.held
    }

    /// Moves every pattern on by one byte; the longest that is complete with it, as its place and its length.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            pattern.advance(byte);
            let length = pattern.text.len();
            if pattern.reached == length && found.is_none_or(|(_, longest)| length > longest) {
                found = Some((index, length));
            }
        }
        found
    }
}

/// One stop string and how much of it the end of the text is.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// By length of a beginning of `text`, less one: the longest shorter beginning that it ends with.
    borders: Vec<usize>,
    /// Length of the longest beginning of `text` that the text so far ends with. Never stays at the full length: the
    /// matcher stops there.
    reached: usize,
}

impl Pattern {
    /// `text` is not empty.
    fn new(text: String) -> Self {
        let mut pattern = Self { borders: vec![0], reached: 0, text };
        // The borders of a text are what remains reached when it is searched in itself from its second byte on;
        // each needs only those of shorter beginnings.
        for index in 1..pattern.text.len() {
            pattern.advance(pattern.text.as_bytes()[index]);
            pattern.borders.push(pattern.reached);
        }
        pattern.reached = 0;
        pattern
    }

    fn advance(&mut self, byte: u8) {
        let text = self.text.as_bytes();
        while self.reached > 0 && text[self.reached] != byte {
            self.reached = self.borders[self.reached - 1];
        }
        if text[self.reached] == byte {
            self.reached += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|s| s.to_string()).collect()).expect("no empty stop string")
    }

    fn outcome(emit: &str, matched: Option<usize>) -> StopOutcome {
        StopOutcome { emit: emit.to_string(), matched }
    }

    #[test]
    fn holds_back_what_may_begin_a_stop_string() {
        let mut stop = matcher(&["</s>", "\n\nUser:"]);
        assert_eq!(stop.push("a < b <"), outcome("a < b ", None));
        assert_eq!(stop.push("/"), outcome("", None));
        assert_eq!(stop.push("div>\n"), outcome("</div>", None));
        assert_eq!(stop.push("\n"), outcome("", None));
        assert_eq!(stop.push("\n"), outcome("\n", None));
        assert_eq!(stop.push("User: hi"), outcome("", Some(1)));
        assert_eq!(stop.matched(), Some(1));
        assert_eq!(stop.push("more"), outcome("", Some(1)));
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn finish_gives_what_was_held() {
        let mut stop = matcher(&["abc"]);
        assert_eq!(stop.push("xab"), outcome("x", None));
        assert_eq!(stop.finish(), "ab");
    }

    #[test]
    fn the_earliest_end_wins_then_the_longest_then_the_first() {
        assert_eq!(matcher(&["abcd", "bc"]).push("abcd"), outcome("a", Some(1)));
        assert_eq!(matcher(&["c", "bc", "abc"]).push("xabc"), outcome("x", Some(2)));
        assert_eq!(matcher(&["q", "bc", "bc"]).push("abc"), outcome("a", Some(1)));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        // The first two bytes of the two characters are the same.
        let mut stop = matcher(&["\u{1f600}!"]);
        assert_eq!(stop.push("\u{1f601}"), outcome("\u{1f601}", None));
        assert_eq!(stop.push("é\u{1f600}"), outcome("é", None));
        assert_eq!(stop.push("?"), outcome("\u{1f600}?", None));
        assert_eq!(stop.push("ü\u{1f600}!"), outcome("ü", Some(0)));
    }

    #[test]
    fn without_stop_strings_all_text_passes() {
        let mut stop = matcher(&[]);
        assert_eq!(stop.push("any"), outcome("any", None));
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let error = StopMatcher::new(vec!["a".into(), String::new()]).expect_err("empty");
        assert_eq!(error, StopError::Empty { index: 1 });
        assert_eq!(error.to_string(), "stop string 1 is empty; it must have at least one character");
    }

    /// Tries every place where a stop string may end, in order.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = (0..stops.len()).filter(|&i| text[..end].ends_with(&stops[i]));
            if let Some(index) = ending.max_by_key(|&i| (stops[i].len(), usize::MAX - i)) {
                return (text[..end - stops[index].len()].to_string(), Some(index));
            }
        }
        (text.to_string(), None)
    }

    proptest! {
        #[test]
        fn any_chunking_equals_a_search_in_the_whole_text(
            stops in prop::collection::vec("[abé\u{1f600}]{1,5}", 0..4),
            pieces in prop::collection::vec("[abé\u{1f600}\u{1f601}]{0,7}", 0..12),
        ) {
            let (expected, matched) = naive(&stops, &pieces.concat());
            let mut stop = StopMatcher::new(stops.clone()).expect("not empty");
            let mut emitted = String::new();
            for (count, piece) in (1..).zip(&pieces) {
                let outcome = stop.push(piece);
                emitted.push_str(&outcome.emit);
                prop_assert_eq!(outcome.matched, stop.matched());
                // Found with the piece that completes it, not later, and no more held back than necessary.
                let so_far = pieces[..count].concat();
                let (visible, found) = naive(&stops, &so_far);
                prop_assert_eq!(outcome.matched, found);
                if found.is_none() {
                    let hold = (0..so_far.len())
                        .filter(|&at| so_far.is_char_boundary(at))
                        .find(|&at| stops.iter().any(|s| s.starts_with(&so_far[at..])))
                        .unwrap_or(so_far.len());
                    prop_assert_eq!(&emitted, &visible[..hold]);
                }
            }
            emitted.push_str(&stop.clone().finish());
            prop_assert_eq!(&emitted, &expected);
            prop_assert_eq!(stop.matched(), matched);
            prop_assert!(stops.iter().all(|s| !emitted.contains(s.as_str())));
        }
    }
}
