//! A vocabulary as GGUF metadata and SentencePiece files have it: tokens with scores and types.

use std::{collections::HashSet, path::PathBuf};

use super::error::TokenizerError;
use crate::gguf::{Gguf, GgufError};

/// Control tokens that end an answer whatever the file's `eos_token_id` says: chat models are often converted with
/// the end of a document there, though they end their turns with another token.
const END_OF_TURN: [&str; 7] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
];

/// What a token is for. The numbers are those of SentencePiece and GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// 1: text.
    Normal,
    /// 2: stands for what the vocabulary does not have.
    Unknown,
    /// 3: a special token, recognised in a text only on request, and no text when decoded.
    Control,
    /// 4: text that is never cut.
    UserDefined,
    /// 5: a number that no text leads to.
    Unused,
    /// 6: one byte, written `<0x41>`.
    Byte,
}

impl TokenType {
    /// The type with this number.
    pub fn from_number(number: i64) -> Option<TokenType> {
        Some(match number {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => return None,
        })
    }
}

/// A vocabulary and what the file says about its use.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Where it comes from, for errors.
    pub file: PathBuf,
    /// Kind of tokenizer: `gpt2` or `llama`.
    pub model: String,
    /// Kind of pre-tokenizer, for `gpt2`.
    pub pre: Option<String>,
    /// Texts by id.
    pub tokens: Vec<String>,
    /// Scores by id, for `llama`; as many as tokens, or none.
    pub scores: Vec<f32>,
    /// Types by id; as many as tokens.
    pub types: Vec<TokenType>,
    /// Pairs that are joined, first ones first, for `gpt2`: two texts with a space between.
    pub merges: Vec<String>,
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// Every token that ends an answer.
    pub eos: Vec<u32>,
    /// Stands for what the vocabulary does not have.
    pub unk: Option<u32>,
    /// Whether a sequence begins with `bos`; nothing where the file does not say.
    pub add_bos: Option<bool>,
    /// Whether a sequence ends with the first of `eos`; nothing where the file does not say.
    pub add_eos: Option<bool>,
    /// Whether a text gets a space before it, for `llama`; nothing where the file does not say.
    pub add_space_prefix: Option<bool>,
    /// Special tokens that swallow the white space after them.
    pub strip_after: HashSet<u32>,
}

impl Vocabulary {
    /// Reads the `tokenizer.ggml.*` keys. Tensors are not needed.
    ///
    /// # Errors
    /// [`TokenizerError`] where there is no vocabulary, a key has the wrong type, or the keys contradict each other.
    pub fn from_gguf(gguf: &Gguf) -> Result<Vocabulary, TokenizerError> {
        let file = gguf.file().to_owned();
        let Some(tokens) = gguf.get::<&[String]>("tokenizer.ggml.tokens")? else {
            return Err(TokenizerError::MissingInGguf { file });
        };
        let types = match gguf.get::<Vec<i64>>("tokenizer.ggml.token_type")? {
            Some(numbers) => token_types(gguf, &numbers)?,
            None => vec![TokenType::Normal; tokens.len()],
        };
        let mut vocabulary = Vocabulary {
            model: gguf.require::<&str>("tokenizer.ggml.model")?.to_owned(),
            pre: gguf.get::<&str>("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: tokens.to_vec(),
            scores: gguf.get::<&[f32]>("tokenizer.ggml.scores")?.unwrap_or_default().to_vec(),
            types,
            merges: gguf.get::<&[String]>("tokenizer.ggml.merges")?.unwrap_or_default().to_vec(),
            bos: token_id(gguf, "tokenizer.ggml.bos_token_id")?,
            eos: Vec::new(),
            unk: token_id(gguf, "tokenizer.ggml.unknown_token_id")?,
            add_bos: gguf.get("tokenizer.ggml.add_bos_token")?,
            add_eos: gguf.get("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: gguf.get("tokenizer.ggml.add_space_prefix")?,
            strip_after: HashSet::new(),
            file,
        };
        vocabulary.eos =
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
                .into_iter()
                .filter_map(|key| token_id(gguf, key).transpose())
                .collect::<Result<_, GgufError>>()?;
        vocabulary.check()?;
        vocabulary.add_ends_of_turn();
        if vocabulary.model == "llama" && gguf.get::<&str>("general.architecture")? == Some("phi3") {
            vocabulary.strip_after_phi3_tokens();
        }
        Ok(vocabulary)
    }

    /// Ids with texts and types, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &str, TokenType)> {
        (0_u32..).zip(&self.tokens).zip(&self.types).map(|((id, text), &kind)| (id, text.as_str(), kind))
    }

    /// The error that something in this vocabulary is wrong.
    pub(super) fn wrong(&self, problem: String) -> TokenizerError {
        TokenizerError::Vocabulary { file: self.file.clone(), problem }
    }

    /// Checks lengths and ids against each other.
    pub(super) fn check(&self) -> Result<(), TokenizerError> {
        let count = self.tokens.len();
        if u32::try_from(count).is_err() {
            return Err(self.wrong(format!("{count} tokens; ids have 32 bits")));
        }
        if self.types.len() != count {
            return Err(self.wrong(format!("{count} tokens, but {} token types", self.types.len())));
        }
        if !self.scores.is_empty() && self.scores.len() != count {
            return Err(self.wrong(format!("{count} tokens, but {} scores", self.scores.len())));
        }
        let roles = [("bos", self.bos), ("unknown", self.unk)];
        let ends = self.eos.iter().map(|&id| ("eos", Some(id)));
        for (role, id) in roles.into_iter().chain(ends) {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(
                    self.wrong(format!("the {role} token is {id}, but there are only {count} tokens"))
                );
            }
        }
        Ok(())
    }

    fn add_ends_of_turn(&mut self) {
        let ends = self
            .entries()
            .filter(|(_, text, kind)| *kind == TokenType::Control && END_OF_TURN.contains(text))
            .map(|(id, ..)| id)
            .filter(|id| !self.eos.contains(id))
            .collect::<Vec<u32>>();
        self.eos.extend(ends);
    }

    /// Phi-3's special tokens strip the white space after them, all but three. GGUF has no key for that.
    fn strip_after_phi3_tokens(&mut self) {
        const KEEP: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
        self.strip_after = self
            .entries()
            .filter(|(_, text, kind)| {
                matches!(kind, TokenType::Control | TokenType::UserDefined) && !KEEP.contains(text)
            })
            .map(|(id, ..)| id)
            .collect();
    }
}

fn token_types(gguf: &Gguf, numbers: &[i64]) -> Result<Vec<TokenType>, TokenizerError> {
    let kind = |(id, &number): (usize, &i64)| {
        TokenType::from_number(number).ok_or_else(|| TokenizerError::Vocabulary {
            file: gguf.file().to_owned(),
            problem: format!("token {id} has type {number}; types are 1 to 6"),
        })
    };
    numbers.iter().enumerate().map(kind).collect()
}

/// A token id, or nothing where the key is absent. Ids beyond 32 bits become one that no vocabulary has.
fn token_id(gguf: &Gguf, key: &str) -> Result<Option<u32>, GgufError> {
    Ok(gguf.get::<u64>(key)?.map(|id| u32::try_from(id).unwrap_or(u32::MAX)))
}
