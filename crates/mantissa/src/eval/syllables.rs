//! How many syllables an English word has: by a list, and by its spelling where it is not in the list.
//!
//! The list is `models/tiny/words/syllables.tsv`: words in lower case with their counts, which the haiku were made by
//! that the built-in model learned from. Where a word can be spoken in two ways, the list decides: `fire` and `hour`
//! have one syllable, `flower` and `every` two.
//!
//! Any other word goes by its spelling:
//!
//! - Each run of vowels is a syllable. `y` is a vowel, unless a vowel follows it at the beginning of a word or after
//!   another vowel (`yellow`, `playing`).
//! - A final `e` after a consonant is silent, as in `stone`; not where it is the only vowel, nor in the `-le` of
//!   `table` and the `-re` of `acre`. So is the `ue` of `league` and `unique`.
//! - `-es` is silent but after a sibilant (`stones`, `roses`), `-ed` but after `t` and `d` (`called`, `wanted`);
//!   `tables`, `settled` and `hundred` keep theirs.
//! - An `e` is also silent before `-ly`, `-less`, `-ful`, `-ness`, `-ment`, `-some` and the like, as in `lonely`, and
//!   at the joint of some compounds, as in `firelight`.
//! - Some neighbouring vowels belong to two syllables: `giant`, `violet`, `medium`, `video`, `usual`, `quiet`,
//!   `poem`, `create`, `going`. But `-cial`, `-tion`, `-sion`, `-gion`, `-cious` and the like are one.
//! - `-sm` and `-thm` are syllables of their own: `prism`, `rhythm`.
//! - `'s` adds one after a sibilant (`rose's`), `n't` after `d`, `s`, `t` and `ve` (`couldn't`), `'ll`, `'ve` and `'d`
//!   after a consonant (`that'll`).
//! - Parts joined by a hyphen are words by themselves. Accents do not matter, except that an accented `e` is never
//!   silent (`café`) and that a diaeresis begins a syllable (`naïve`).
//! - What has no vowel has one syllable.
//!
//! By a test, the spelling gives the count of the list for nineteen of its words in twenty at least. What it cannot know
//! are words such as `naked` and `wicked`, and most compounds.
//!
//! A word with digits or with letters of another alphabet has no count: there is no telling how it is spoken.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The list, one `word<TAB>count` a line.
const LIST: &str = include_str!("../../../../models/tiny/words/syllables.tsv");

static COUNTS: LazyLock<HashMap<String, usize>> = LazyLock::new(|| LIST.lines().filter_map(entry).collect());

/// A line of the list. Comments are none, and nor are lines that say something else, of which a test finds none.
fn entry(line: &str) -> Option<(String, usize)> {
    let (word, count) = line.split_once('\t')?;
    Some((word.to_lowercase(), count.trim().parse().ok().filter(|&count| count > 0)?))
}

/// The words of a text: runs of letters, digits and, within them, apostrophes.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || is_apostrophe(c) || is_combining(c)))
        .map(|word| word.trim_matches(is_apostrophe))
        .filter(|word| !word.is_empty())
}

/// Syllables of a line; nothing where one of its words has no count.
pub fn of_line(line: &str) -> Option<usize> {
    words(line).map(of_word).sum()
}

/// Syllables of a word without hyphens; nothing where it has no count.
pub fn of_word(word: &str) -> Option<usize> {
    let word = word.replace(is_apostrophe, "'").to_lowercase();
    if let Some(&count) = COUNTS.get(&word) {
        return Some(count);
    }
    match word.strip_suffix("'s").map(|owner| (owner, COUNTS.get(owner))) {
        Some((owner, Some(count))) => Some(count + usize::from(ends_in_sibilant(owner.as_bytes()))),
        _ => by_spelling(&word),
    }
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}')
}

/// Accents that follow their letter.
fn is_combining(c: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&c)
}

/// Syllables of a word in lower case, by its spelling alone.
fn by_spelling(word: &str) -> Option<usize> {
    let (word, added) = without_ending(word);
    let letters = plain_letters(word)?;
    let second =
        |head: &str| letters.strip_prefix(head.as_bytes()).filter(|second| Spelled(second).can_stand_alone());
    Some(match COMPOUND_HEADS.split_whitespace().find_map(second) {
        Some(rest) => 1 + Spelled(rest).syllables() + added,
        None => Spelled(&letters).syllables() + added,
    })
}

/// The word without what an apostrophe adds, and the syllables of that.
fn without_ending(word: &str) -> (&str, usize) {
    if let Some(verb) = word.strip_suffix("n't") {
        let spoken = !matches!(verb, "are" | "were") && verb.ends_with(['d', 's', 't', 'e']);
        return (verb, usize::from(spoken));
    }
    let Some((stem, ending)) = word.rsplit_once('\'') else { return (word, 0) };
    let spoken = match ending {
        "s" => ends_in_sibilant(stem.as_bytes()),
        "ll" | "ve" | "d" => !stem.ends_with(['a', 'e', 'i', 'o', 'u', 'y']),
        "m" | "re" | "t" => false,
        // o'clock: one word.
        _ => return (word, 0),
    };
    (stem, usize::from(spoken))
}

fn ends_in_sibilant(word: &[u8]) -> bool {
    matches!(
        word,
        [.., b's' | b'x' | b'z'] | [.., b's' | b'x' | b'z' | b'c' | b'g', b'e'] | [.., b'c' | b's', b'h']
    )
}

/// Stands before a letter that begins a syllable.
const BREAK: u8 = b'-';

/// The word in plain Latin letters, without apostrophes; nothing where it has digits or other letters.
fn plain_letters(word: &str) -> Option<Vec<u8>> {
    let mut letters = Vec::with_capacity(word.len());
    for c in word.chars() {
        match c {
            'a'..='z' => letters.push(c as u8),
            'ä' | 'ë' | 'ï' | 'ö' | 'ü' | 'ÿ' => letters.extend([BREAK, b'a']),
            // An a is never silent.
            'à'..='å' | 'è'..='ê' | 'æ' | 'œ' => letters.push(b'a'),
            'ì'..='î' => letters.push(b'i'),
            'ò'..='õ' | 'ø' => letters.push(b'o'),
            'ù'..='û' | 'ý' => letters.push(b'u'),
            'ç' => letters.push(b's'),
            'ñ' => letters.push(b'n'),
            'ß' => letters.push(b's'),
            // The letter itself has been taken; one that spells a vowel loses its accent.
            _ if is_apostrophe(c) || is_combining(c) => {}
            _ => return None,
        }
    }
    Some(letters)
}

/// Endings before which an e is silent.
const AFTER_SILENT_E: &str =
    "ly liness less lessly lessness ful fully fulness ness ment ments some man men dom ty";

/// First parts of compounds, of one syllable, whose e is silent where another word follows.
const COMPOUND_HEADS: &str = "base care drive else eye fire fore gate goose grave hare hedge home horse house ice life like \
     lime mile more mouse note pine rose safe side some stone there time type vine waste wine";

/// A word as lower-case ASCII letters and [`BREAK`]s.
#[derive(Clone, Copy)]
struct Spelled<'a>(&'a [u8]);

impl Spelled<'_> {
    /// The letter at a place counted from 0; a space, which is no letter, where there is none.
    fn at(self, index: usize) -> u8 {
        self.0.get(index).copied().unwrap_or(b' ')
    }

    fn before(self, index: usize) -> u8 {
        index.checked_sub(1).map_or(b' ', |index| self.at(index))
    }

    /// Whether the letter at a place is spoken as a vowel.
    fn vowel(self, index: usize) -> bool {
        match self.at(index) {
            b'y' => !(is_aeiou(self.at(index + 1)) && (index == 0 || is_aeiou(self.before(index)))),
            letter => is_aeiou(letter),
        }
    }

    fn vowel_before(self, index: usize) -> bool {
        index.checked_sub(1).is_some_and(|index| self.vowel(index))
    }

    fn syllables(self) -> usize {
        let runs = self.runs_of_vowels() + self.parted_vowels() + self.syllabic_consonants();
        runs.saturating_sub(self.silent_vowels()).max(1)
    }

    /// Whether it could be the second part of a compound: not of `forest` or `timer`.
    fn can_stand_alone(self) -> bool {
        self.0.len() >= 3 && self.runs_of_vowels() > 0
    }

    fn runs_of_vowels(self) -> usize {
        (0..self.0.len()).filter(|&index| self.vowel(index) && !self.vowel_before(index)).count()
    }

    fn any_vowel_before(self, index: usize) -> bool {
        (0..index).any(|index| self.vowel(index))
    }

    /// Whether an e at a place is silent if it is followed by what makes it so: not alone, and after a consonant, but
    /// not in the `-le` of `table` and the `-re` of `acre`.
    fn mute(self, e: usize) -> bool {
        !self.vowel_before(e) && self.any_vowel_before(e) && !self.liquid(e)
    }

    /// Runs of vowels that are written and not spoken.
    fn silent_vowels(self) -> usize {
        let word = self.0;
        let mut stems =
            AFTER_SILENT_E.split_whitespace().filter_map(|ending| word.strip_suffix(ending.as_bytes()));
        let inner = stems.any(|stem| stem.ends_with(b"e") && self.mute(stem.len() - 1));
        let end = match word {
            [.., b'e'] => self.mute(word.len() - 1),
            [.., b't' | b'd', b'e', b'd'] => false,
            [stem @ .., b'e', b's']
                if ends_in_sibilant(stem) || stem.ends_with(b"c") || stem.ends_with(b"g") =>
            {
                false
            }
            [stem @ .., b'e', b'd' | b's'] => self.mute(stem.len()),
            _ => false,
        };
        let mute_u = match word.strip_suffix(b"s").unwrap_or(word) {
            [stem @ .., b'q', b'u', b'e'] => self.any_vowel_before(stem.len()),
            [stem @ .., b'g', b'u', b'e'] => !stem.ends_with(b"r") && self.any_vowel_before(stem.len()),
            _ => false,
        };
        usize::from(inner) + usize::from(end) + usize::from(mute_u)
    }

    /// Whether the e at a place belongs to the `-le` of `table` or the `-re` of `acre`, which are spoken.
    fn liquid(self, e: usize) -> bool {
        let Some(first) = e.checked_sub(2) else { return false };
        match (self.at(first), self.at(e - 1)) {
            // isle, aisle
            (b's', b'l') => self.before(first) != b'i',
            (letter, b'l') => !self.vowel(first) && !matches!(letter, b'l' | b'r' | b'w' | BREAK),
            (b'b' | b'c' | b'd' | b'g' | b't', b'r') => true,
            _ => false,
        }
    }

    /// `-sm` and `-thm`.
    fn syllabic_consonants(self) -> usize {
        let singular = self.0.strip_suffix(b"s").unwrap_or(self.0);
        usize::from(singular.ends_with(b"sm") || singular.ends_with(b"thm"))
    }

    /// Neighbouring vowels that belong to two syllables.
    fn parted_vowels(self) -> usize {
        let both = |index: &usize| self.vowel(*index) && self.vowel(*index + 1);
        (0..self.0.len()).filter(both).filter(|&index| self.parted(index)).count()
    }

    /// Whether the vowel at a place and the one after it belong to two syllables.
    fn parted(self, index: usize) -> bool {
        let (before, after) = (self.before(index), &self.0[index + 2..]);
        let ing = matches!(after, b"ng" | b"ngs" | b"ngly");
        match (self.at(index), self.at(index + 1)) {
            // queen, quoit
            (b'u', _) if before == b'q' => false,
            // arguing, but languid
            (b'u', b'i') if before == b'g' => ing,
            (b'u', b'i') => ing || after.starts_with(b"n"),
            (_, b'i') if ing => true,
            (b'i', second) => self.parted_after_i(index, second),
            (b'e', b'a') => match after {
                [] => matches!(before, b'd' | b'r') && self.any_vowel_before(index),
                [b'b', b'l', ..] => before == b'e',
                [b't', rest @ ..] => {
                    before == b'h' && matches!(rest, [b'e' | b'r', ..]) || self.creates(rest)
                }
                _ => false,
            },
            (b'e', b'o') => match after {
                [b'u', ..] => !matches!(before, b'g' | b'c' | b't'),
                [b'n', ..] => !matches!(before, b'g' | b'h'),
                // George, people, jeopardy, yeoman, leopard
                _ => !matches!(before, b'g' | b'p' | b'j' | b'y') && !self.0.starts_with(b"leop"),
            },
            (b'e', b'u') => after.starts_with(b"m"),
            (b'u', b'a') => before != b'g' && !after.starts_with(b"d"),
            (b'u', b'o') | (b'a', b'o') => true,
            (b'u', b'e') => before != b'g' && matches!(after, [b'l' | b't', ..] | [b'n', b'c' | b't', ..]),
            (b'o', b'e') => matches!(after, [b't' | b'm', ..]),
            // hyacinth, but canyon
            (b'y', b'a' | b'o') => !self.any_vowel_before(index),
            _ => false,
        }
    }

    /// `create` and its relatives, of which `rest` follows the t; not `creature`.
    fn creates(self, rest: &[u8]) -> bool {
        (self.0.starts_with(b"creat") || self.0.starts_with(b"recreat")) && !rest.starts_with(b"u")
    }

    /// Whether the i at a place and the vowel after it belong to two syllables.
    fn parted_after_i(self, index: usize, second: u8) -> bool {
        let (before, after) = (self.before(index), &self.0[index + 2..]);
        // million, brilliant
        if self.0[..index].ends_with(b"ll") && !after.starts_with(b"r") {
            return false;
        }
        match second {
            b'a' => match after {
                // social, but giant
                [] | [b'l' | b'n', ..] => !matches!(before, b'c' | b'g' | b's' | b't') || index == 1,
                [b'g', b'e', ..] => before != b'r',
                [b'r', ..] => !matches!(before, b'l' | b'n') || index == 1,
                _ => true,
            },
            b'o' => match after {
                [b'n', ..] | [b'u', b's', ..] => {
                    !matches!(before, b'c' | b'g' | b'h' | b'n' | b's' | b't' | b'x')
                }
                [b'r', ..] => !matches!(before, b'n' | b'v'),
                _ => true,
            },
            b'u' => true,
            b'e' => match after {
                [b't', ..] => true,
                [b'n', b'c' | b't', ..] => !matches!(before, b'c' | b's' | b't') || index == 2,
                b"r" | b"st" => self.any_vowel_before(index),
                _ => false,
            },
            _ => false,
        }
    }
}

fn is_aeiou(letter: u8) -> bool {
    matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_line_of_the_list_is_a_word_with_its_count() {
        let entries: Vec<(String, usize)> = LIST.lines().filter_map(entry).collect();
        let lines = LIST.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(entries.len(), lines.count());
        assert_eq!(entries.len(), COUNTS.len(), "no word is there twice");
        assert!(entries.len() > 5000);
        for (word, count) in &entries {
            assert_eq!(words(word).collect::<Vec<_>>(), [word], "one word");
            assert!((1..=8).contains(count), "{word}: {count}");
            assert_eq!(of_word(word), Some(*count));
        }
    }

    /// The documentation of the module speaks of this floor.
    #[test]
    fn the_spelling_agrees_with_the_list_on_nineteen_words_of_twenty() {
        let agree = COUNTS.iter().filter(|&(word, &count)| by_spelling(word) == Some(count)).count();
        assert!(20 * agree >= 19 * COUNTS.len(), "{agree} of {}", COUNTS.len());
    }

    #[test]
    fn spelling() {
        let table: [(usize, &str); 5] = [
            (
                1,
                "stone stones called walked played flies eyed league dogs though strength queen eye shrimps isle \
                 vague don't we're he'd mr tsk née crêpes",
            ),
            (
                2,
                "table tables settled wanted roses acre unique hundred yellow playing going flying poem cruel lonely \
                 firelight prism rhythm prisms million fashion gorgeous people forest couldn't rose's that'll café canyon \
                 being lion quiet create queued-up giant o'clock naïve hopeful basement should've stroller",
            ),
            (
                3,
                "giantess violet medium video usual piano idea area happier quietly hyacinth loneliness \
                 gracefully coffeehouse museum wonderful commotion religious creation",
            ),
            (4, "society's geranium appreciate television enthusiast millionairess incredible"),
            (5, "imagination electricity refrigerator congratulation"),
        ];
        let mut wrong = Vec::new();
        for (count, list) in table {
            for word in list.split_whitespace() {
                let counted: Option<usize> = words(word).map(by_spelling).sum();
                if counted != Some(count) {
                    wrong.push(format!("{word} has {count}, not {counted:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("; "));
    }

    #[test]
    fn apostrophes_hyphens_and_punctuation() {
        assert_eq!(of_word("Owl's"), Some(1));
        assert_eq!(of_word("rose\u{2019}s"), Some(2), "an apostrophe as printers set it");
        assert_eq!(of_line("'Tis the owl-light; the owl\u{2014}gone!"), Some(7));
        assert_eq!(of_line("An old silent pond..."), Some(5));
        assert_eq!(of_line("A frog jumps into the pond\u{2014}"), Some(7));
        assert_eq!(of_line(" - , '' "), Some(0));
    }

    #[test]
    fn what_cannot_be_told_has_no_count() {
        for word in ["7", "b4", "3rd", "снег", "雪", "łza"] {
            assert_eq!(of_word(word), None, "{word}");
        }
        assert_eq!(of_line("seven or 8 crows"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_counted_without_a_panic(text in ".{0,80}") {
            let parts = words(&text).map(of_word).collect::<Option<Vec<_>>>();
            prop_assert_eq!(of_line(&text), parts.map(|counts| counts.iter().sum()));
        }

        #[test]
        fn a_word_of_letters_has_a_syllable_for_each_letter_at_most(word in "[a-z']{1,12}") {
            let count = by_spelling(&word).unwrap();
            prop_assert!((1..=word.len() + 1).contains(&count), "{word}: {count}");
        }
    }
}
