//! Byte-level BPE from a GGUF vocabulary: what `tokenizer.json` says at length, GGUF says by a name.

use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::NFC,
    pre_tokenizers::{
        PreTokenizerWrapper,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{
    error::TokenizerError,
    vocabulary::{TokenType, Vocabulary},
};

/// Runs of letters, of digits and of other signs, each with a space before it (GPT-2).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One sign before letters, three digits at a time, line ends stay with signs before them (cl100k, Llama 3).
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// As Llama 3, but digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words cut where lower case turns to upper case, contractions with their word, three digits (o200k).
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// As o200k, without contractions, digits one by one (Mistral Nemo).
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Digits one by one.
const DIGIT: &str = r"\p{N}";

/// Runs of punctuation.
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";

/// Whether a word that is a token as a whole is taken as such, even where merges would not lead to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Whole,
    Merged,
}

/// Whether sequences begin with the BOS token where the file does not say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bos {
    Added,
    NotAdded,
}

/// Whether texts are brought to a normal form first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Nfc,
    AsIs,
}

/// How one family of tokenizers cuts texts into words, under the names that GGUF has for it.
struct PreTokenizer {
    names: &'static [&'static str],
    /// Each pattern cuts what those before it left.
    patterns: &'static [&'static str],
    words: Words,
    bos: Bos,
    form: Form,
}

const PRE_TOKENIZERS: [PreTokenizer; 9] = [
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "exaone4"],
        patterns: &[GPT2],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::AsIs,
    },
    PreTokenizer {
        names: &["default"],
        patterns: &[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::AsIs,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"],
        patterns: &[LLAMA3],
        words: Words::Whole,
        bos: Bos::Added,
        form: Form::AsIs,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        patterns: &[LLAMA3],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::AsIs,
    },
    PreTokenizer {
        // The files do not say so, but these tokenizers bring texts to NFC.
        names: &["qwen2", "deepseek-r1-qwen"],
        patterns: &[QWEN2],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::Nfc,
    },
    PreTokenizer {
        names: &["stablelm2"],
        patterns: &[QWEN2],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::AsIs,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[DIGIT, GPT2],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::AsIs,
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4"],
        patterns: &[GPT4O],
        words: Words::Merged,
        bos: Bos::NotAdded,
        form: Form::AsIs,
    },
    PreTokenizer {
        names: &["tekken"],
        patterns: &[TEKKEN],
        words: Words::Whole,
        bos: Bos::Added,
        form: Form::AsIs,
    },
];

/// A byte-level BPE tokenizer, without a rule for special tokens around a text.
pub(super) struct ByteLevelBpe {
    pub tokenizer: Tokenizer,
    /// Whether sequences begin with the BOS token.
    pub add_bos: bool,
}

impl ByteLevelBpe {
    pub fn new(vocabulary: &Vocabulary) -> Result<ByteLevelBpe, TokenizerError> {
        let kind = kind(vocabulary)?;
        let library = |error: tokenizers::Error| TokenizerError::Library {
            file: vocabulary.file.clone(),
            reason: error.to_string(),
        };
        let (vocab, added) = texts(vocabulary);
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges(vocabulary)?)
            .ignore_merges(kind.words == Words::Whole)
            .build()
            .map_err(|error| vocabulary.wrong(format!("the merges do not fit the tokens: {error}")))?;
        let mut tokenizer = Tokenizer::new(bpe);
        if kind.form == Form::Nfc {
            tokenizer.with_normalizer(Some(NFC)).map_err(library)?;
        }
        tokenizer.with_pre_tokenizer(Some(kind.pre_tokenizer().map_err(library)?));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer.add_tokens(added).map_err(library)?;
        Ok(ByteLevelBpe { tokenizer, add_bos: vocabulary.add_bos.unwrap_or(kind.bos == Bos::Added) })
    }
}

impl PreTokenizer {
    fn pre_tokenizer(&self) -> tokenizers::Result<Sequence> {
        let mut steps = Vec::new();
        for &pattern in self.patterns {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        let bytes = ByteLevel::default().add_prefix_space(false).use_regex(false);
        steps.push(PreTokenizerWrapper::ByteLevel(bytes));
        Ok(Sequence::new(steps))
    }
}

fn kind(vocabulary: &Vocabulary) -> Result<&'static PreTokenizer, TokenizerError> {
    let file = || vocabulary.file.clone();
    let known = || PRE_TOKENIZERS.iter().flat_map(|kind| kind.names).copied().collect();
    let Some(name) = vocabulary.pre.as_deref() else {
        return Err(TokenizerError::NoPreTokenizer { file: file(), known: known() });
    };
    PRE_TOKENIZERS
        .iter()
        .find(|kind| kind.names.contains(&name))
        .ok_or_else(|| TokenizerError::PreTokenizer { file: file(), got: name.to_owned(), known: known() })
}

/// The texts that BPE can reach, and those of them that are recognised whole before it. Unused tokens are neither:
/// they only fill up the rows of an embedding.
fn texts(vocabulary: &Vocabulary) -> (Vocab, Vec<AddedToken>) {
    let mut vocab = Vocab::with_capacity(vocabulary.tokens.len());
    let mut added = Vec::new();
    for (id, text, kind) in vocabulary.entries() {
        let special = match kind {
            TokenType::Normal | TokenType::Byte => None,
            TokenType::UserDefined => Some(false),
            TokenType::Control => Some(true),
            TokenType::Unknown if vocabulary.unk == Some(id) => Some(true),
            TokenType::Unknown | TokenType::Unused => continue,
        };
        vocab.entry(text.to_owned()).or_insert(id);
        if let Some(special) = special {
            added.push(AddedToken::from(text, special).normalized(false));
        }
    }
    (vocab, added)
}

fn merges(vocabulary: &Vocabulary) -> Result<Merges, TokenizerError> {
    let pair = |(index, merge): (usize, &String)| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(vocabulary
            .wrong(format!("merge {index} is {merge:?}; it should be two tokens with a space between"))),
    };
    vocabulary.merges.iter().enumerate().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    /// The pieces that the kind called `name` cuts `text` into, spaces as U+0120 and line ends as U+010A.
    fn pieces(name: &str, text: &str) -> Vec<String> {
        let kind = PRE_TOKENIZERS.iter().find(|kind| kind.names.contains(&name)).unwrap();
        let mut text = PreTokenizedString::from(text);
        kind.pre_tokenizer().unwrap().pre_tokenize(&mut text).unwrap();
        let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|kind| kind.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn each_kind_cuts_as_its_family_does() {
        let text = "I'LL say fooBar: 12345 (ok)!\n\n  x";
        for (name, expected) in [
            ("gpt-2", "I|'|LL|Ġsay|ĠfooBar|:|Ġ12345|Ġ(|ok|)!|ĊĊĠ|Ġx"),
            ("default", "I|'|LL|Ġsay|ĠfooBar|:|Ġ|123|45|Ġ|(|ok|)!|ĊĊĠ|Ġx"),
            ("llama-bpe", "I|'LL|Ġsay|ĠfooBar|:|Ġ|123|45|Ġ(|ok|)!ĊĊ|Ġ|Ġx"),
            ("dbrx", "I|'LL|Ġsay|ĠfooBar|:|Ġ|123|45|Ġ(|ok|)!ĊĊ|Ġ|Ġx"),
            ("qwen2", "I|'LL|Ġsay|ĠfooBar|:|Ġ|1|2|3|4|5|Ġ(|ok|)!ĊĊ|Ġ|Ġx"),
            ("stablelm2", "I|'LL|Ġsay|ĠfooBar|:|Ġ|1|2|3|4|5|Ġ(|ok|)!ĊĊ|Ġ|Ġx"),
            ("smollm", "I|'|LL|Ġsay|ĠfooBar|:|Ġ|1|2|3|4|5|Ġ(|ok|)!|ĊĊĠ|Ġx"),
            ("gpt-4o", "I'LL|Ġsay|Ġfoo|Bar|:|Ġ|123|45|Ġ(|ok|)!ĊĊ|Ġ|Ġx"),
            ("tekken", "I|'LL|Ġsay|Ġfoo|Bar|:|Ġ|1|2|3|4|5|Ġ(|ok|)!ĊĊ|Ġ|Ġx"),
        ] {
            assert_eq!(pieces(name, text).join("|"), expected, "{name}");
        }
    }
}
