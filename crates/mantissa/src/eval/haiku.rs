//! Whether a text is a haiku about a word, by checks that need no judgement of taste.
//!
//! A model that a number format has damaged still writes text, but loses count: the haiku test asks for something whose
//! form can be checked exactly. An answer, without the white space around it, passes where all of these hold:
//!
//! - **text**: it is whole text. Neither U+FFFD, which stands for bytes that are no UTF-8, nor a control character
//!   other than the line feed is in it.
//! - **lines**: it has exactly three lines, none of them blank.
//! - **word**: the word that was asked for is one of its words, in capitals or not. Its plural and its possessive are
//!   other words. Where several words were asked for, they follow each other.
//! - **syllables**: its lines have 5, 7 and 5 syllables, counted by [`super::syllables`]. A word that cannot
//!   be counted fails.
//! - **no repetition**: no line comes twice, letters and digits compared, and no word comes three times. Articles,
//!   pronouns, prepositions, conjunctions and auxiliary verbs may.
//!
//! That an answer ended by itself is not asked: what a limit cuts off has lost lines or syllables, or was complete.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::syllables::{self, words};

/// What is asked of a chat model, with `{word}` in the word's place.
pub const REQUEST: &str = "Write a haiku about {word}.";

/// Syllables of the lines.
pub const SYLLABLES: [usize; 3] = [5, 7, 5];

/// Words that never stood in a request that the built-in model learned from.
pub fn held_out_words() -> impl Iterator<Item = &'static str> {
    word_list(include_str!("../../../../models/tiny/words/held_out.txt"))
}

/// The words of a list: one a line; blank lines and those that begin with `#` are none.
pub fn word_list(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// What the checks say about an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether it is whole text without control characters.
    pub text: bool,
    /// Whether it has three lines, none blank.
    pub lines: bool,
    /// Whether the word is in it.
    pub word: bool,
    /// Whether the lines have 5, 7 and 5 syllables.
    pub syllables: bool,
    /// Whether no line comes twice and no word three times.
    pub no_repetition: bool,
    /// Syllables of each line; nothing where a word of it cannot be counted.
    pub syllable_counts: Vec<Option<usize>>,
    /// What it repeats, if anything.
    pub repeated: Option<Repeated>,
}

/// What an answer repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeated {
    /// A line that comes twice.
    Line(String),
    /// A word that comes three times, in lower case.
    Word(String),
}

/// Checks an answer to the request for a haiku about `word`.
///
/// ```
/// use mantissa::eval::haiku::judge;
///
/// let verdict = judge("An old silent pond\nA frog jumps into the pond\nSplash! Silence again", "frog");
/// assert!(verdict.passes());
/// assert_eq!(judge("A frog jumps in.", "pond").to_string(), "fails: one line, without the word");
/// ```
pub fn judge(answer: &str, word: &str) -> Verdict {
    let whole = !answer.chars().any(|c| c == char::REPLACEMENT_CHARACTER || (c.is_control() && c != '\n'));
    let lines: Vec<&str> = match answer.trim() {
        "" => Vec::new(),
        text => text.split('\n').map(str::trim).collect(),
    };
    let counts: Vec<Option<usize>> = lines.iter().map(|line| syllables::of_line(line)).collect();
    let repeated = repeated(&lines);
    Verdict {
        text: whole,
        lines: lines.len() == SYLLABLES.len() && lines.iter().all(|line| !line.is_empty()),
        word: contains(answer, word),
        syllables: counts == SYLLABLES.map(Some),
        no_repetition: repeated.is_none(),
        syllable_counts: counts,
        repeated,
    }
}

impl Verdict {
    /// Names of the checks, in the order of [`Verdict::checks`].
    pub const CHECKS: [&str; 5] = ["text", "lines", "word", "syllables", "no_repetition"];

    /// Which checks hold.
    pub fn checks(&self) -> [bool; 5] {
        [self.text, self.lines, self.word, self.syllables, self.no_repetition]
    }

    /// Whether all checks hold.
    pub fn passes(&self) -> bool {
        self.checks().iter().all(|&holds| holds)
    }

    /// The syllables of the lines, as `5-7-5`; `?` stands for a line that cannot be counted.
    fn counted(&self) -> String {
        let counts = self.syllable_counts.iter();
        let counts = counts.map(|count| count.map_or_else(|| "?".to_owned(), |count| count.to_string()));
        counts.collect::<Vec<_>>().join("-")
    }
}

impl fmt::Display for Verdict {
    /// `passes`, or what is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passes() {
            return f.write_str("passes");
        }
        let mut faults = Vec::new();
        if !self.text {
            faults.push("characters that are no text".to_owned());
        }
        if !self.lines {
            faults.push(match self.syllable_counts.len() {
                0 => "empty".to_owned(),
                1 => "one line".to_owned(),
                3 => "a blank line".to_owned(),
                count => format!("{count} lines"),
            });
        }
        if !self.word {
            faults.push("without the word".to_owned());
        }
        if !self.syllables && self.lines {
            faults.push(format!("{} syllables", self.counted()));
        }
        match &self.repeated {
            Some(Repeated::Line(_)) => faults.push("a line twice".to_owned()),
            Some(Repeated::Word(word)) => faults.push(format!("\"{word}\" three times")),
            None => {}
        }
        write!(f, "fails: {}", faults.join(", "))
    }
}

/// The words of a text for comparison: in lower case, with plain apostrophes.
fn folded(text: &str) -> Vec<String> {
    words(text).map(|word| word.replace('\u{2019}', "'").to_lowercase()).collect()
}

/// Whether the words of `phrase`, of which there must be one at least, follow each other in a text.
fn contains(text: &str, phrase: &str) -> bool {
    let (text, phrase) = (folded(text), folded(phrase));
    !phrase.is_empty() && text.windows(phrase.len()).any(|window| window == phrase)
}

/// The first line that has come before, or else the first word to come for the third time.
fn repeated(lines: &[&str]) -> Option<Repeated> {
    let folded: Vec<Vec<String>> = lines.iter().map(|line| folded(line)).collect();
    for (index, line) in folded.iter().enumerate() {
        if !line.is_empty() && folded[..index].contains(line) {
            return Some(Repeated::Line(lines[index].to_owned()));
        }
    }
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in folded.iter().flatten().filter(|word| !is_function_word(word)) {
        let count = counts.entry(word).or_default();
        *count += 1;
        if *count == 3 {
            return Some(Repeated::Word(word.clone()));
        }
    }
    None
}

/// Words that sentences cannot do without.
const FUNCTION_WORDS: &str = "\
    a an the this that these those each every some any all both no not nor \
    i me my mine you your yours he him his she her hers it its we us our ours they them their theirs who whom whose \
    which what \
    about above across after against along among around as at before behind below beneath beside between beyond by down \
    for from in inside into like near of off on onto out outside over past since through till to toward towards under \
    until up upon with within without \
    and but or so yet if than then though while when where because how there here \
    am is are was were be been being do does did done have has had having will would shall should may might must can \
    could can't won't";

/// Whether a word in lower case is one of them, contracted or not.
fn is_function_word(word: &str) -> bool {
    let stem = word.strip_suffix("n't").or_else(|| Some(word.split_once('\'')?.0)).unwrap_or(word);
    FUNCTION_WORDS.split_whitespace().any(|known| known == word || known == stem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POND: &str = "An old silent pond\nA frog jumps into the pond\nSplash! Silence again";

    /// The names of the checks that fail.
    fn failing(answer: &str, word: &str) -> Vec<&'static str> {
        let verdict = judge(answer, word);
        let checks = Verdict::CHECKS.into_iter().zip(verdict.checks());
        checks.filter(|(_, holds)| !holds).map(|(name, _)| name).collect()
    }

    #[test]
    fn a_haiku_passes() {
        let verdict = judge(&format!("\n{POND}\n\n"), "frog");
        assert!(verdict.passes(), "{verdict}");
        assert_eq!(verdict.syllable_counts, [Some(5), Some(7), Some(5)]);
        assert_eq!(verdict.to_string(), "passes");
        for word in ["Frog", "POND", "silent pond", "splash silence"] {
            assert!(judge(POND, word).passes(), "{word}");
        }
    }

    #[test]
    fn each_check_fails_by_itself() {
        let cases: [(String, &[&str], &str); 12] = [
            (String::new(), &["lines", "word", "syllables"], "fails: empty, without the word"),
            (POND.replace("old", "old\u{7}"), &["text"], "fails: characters that are no text"),
            (POND.replace('\n', "\r\n"), &["text"], "fails: characters that are no text"),
            (POND.replace("silent", "silent\u{fffd}"), &["text"], "fails: characters that are no text"),
            (POND.replacen('\n', "\n\n", 1), &["lines", "syllables"], "fails: 4 lines"),
            (POND.replace('\n', ", "), &["lines", "syllables"], "fails: one line"),
            (POND.replace("frog", "toad"), &["word"], "fails: without the word"),
            (POND.replace("A frog jumps", "Two frogs jump"), &["word"], "fails: without the word"),
            (POND.replace("A frog jumps", "The frog's leap"), &["word"], "fails: without the word"),
            (POND.replace("An old", "An ancient"), &["syllables"], "fails: 6-7-5 syllables"),
            (POND.replace("again", "4 now"), &["syllables"], "fails: 5-7-? syllables"),
            (POND.replace("Splash!", "Pond"), &["no_repetition"], "fails: \"pond\" three times"),
        ];
        for (answer, checks, said) in cases {
            assert_eq!(failing(&answer, "frog"), checks, "{answer:?}");
            assert_eq!(judge(&answer, "frog").to_string(), said, "{answer:?}");
        }
    }

    #[test]
    fn a_line_comes_twice_whatever_its_capitals_and_stops() {
        let answer = "The frog in the rain\nwaits for the sun to come back:\nthe frog, in the rain";
        let verdict = judge(answer, "frog");
        assert_eq!(failing(answer, "frog"), ["no_repetition"]);
        assert_eq!(verdict.repeated, Some(Repeated::Line("the frog, in the rain".to_owned())));
    }

    #[test]
    fn function_words_may_come_as_often_as_they_like() {
        assert!(
            judge("The frog and the pond\nthe moon and the rain and wind\nit's he, and it's she", "pond")
                .passes()
        );
        assert!(is_function_word("isn't") && is_function_word("i'm") && is_function_word("won't"));
        assert!(!is_function_word("owl's"));
    }

    #[test]
    fn a_word_without_letters_is_nowhere() {
        assert!(!judge(POND, "").word);
        assert!(!judge(POND, "!").word);
    }

    #[test]
    fn a_verdict_is_plain_json() {
        let json = serde_json::to_value(judge(&POND.replace("Splash!", "Pond"), "frog")).unwrap();
        assert_eq!(json["lines"], true);
        assert_eq!(json["syllable_counts"], serde_json::json!([5, 7, 5]));
        assert_eq!(json["repeated"], serde_json::json!({ "word": "pond" }));
    }

    #[test]
    fn the_held_out_words_are_words_of_the_list() {
        let words: Vec<&str> = held_out_words().collect();
        assert!(words.len() >= 150);
        for word in words {
            assert_eq!(folded(word), [word], "one word in lower case");
            assert!(syllables::of_word(word).is_some_and(|count| count <= 5), "{word}");
        }
        assert_eq!(word_list("# a list\n\n owl \r\nsnow").collect::<Vec<_>>(), ["owl", "snow"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_checks_panic(answer in "\\PC{0,60}|[ \n\ra-z'\u{2019}\u{300}0]{0,60}", word in ".{0,6}") {
            let verdict = judge(&answer, &word);
            prop_assert_eq!(verdict.passes(), verdict.to_string() == "passes");
            prop_assert_eq!(verdict.no_repetition, verdict.repeated.is_none());
            prop_assert!(!verdict.syllables || verdict.syllable_counts.len() == 3);
        }

        #[test]
        fn a_word_is_found_between_any_others(before in "[a-z]{1,5}", after in "[a-z]{1,5}", word in "[a-z]{1,5}") {
            let line = format!("{before} {word}, {after}");
            prop_assert!(judge(&line, &word).word);
            prop_assert!(judge(&line.to_uppercase(), &word).word);
            let (inner, outer) = (format!("x{word}"), format!("{word}x"));
            prop_assert_eq!(judge(&line, &inner).word, before == inner || after == inner);
            prop_assert_eq!(judge(&line, &outer).word, before == outer || after == outer);
        }
    }
}
