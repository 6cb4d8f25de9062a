//! `tokenizer.model`: a SentencePiece model, for folders that have no `tokenizer.json`.
//!
//! Format: protocol buffers with the fields of <https://github.com/google/sentencepiece>,
//! `sentencepiece_model.proto`. Only BPE models without a normaliser are read, as Llama 2 and its kin have them.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    error::TokenizerError,
    files::{JsonFile, read_if_any},
    vocabulary::{TokenType, Vocabulary},
};
use crate::location::Location;

/// `model_type` of a BPE model.
const BPE: u64 = 2;

impl Vocabulary {
    /// Reads `tokenizer.model` of a folder, with what `tokenizer_config.json` adds to it; nothing where the folder
    /// has no such file.
    ///
    /// # Errors
    /// [`TokenizerError`] where a file is unreadable or malformed, or the model is of another kind than BPE.
    pub(super) fn from_model_file(folder: &Location) -> Result<Option<Vocabulary>, TokenizerError> {
        const FILE: &str = "tokenizer.model";
        let Some(bytes) = read_if_any(folder, FILE)? else { return Ok(None) };
        let file = folder.file(FILE);
        let mut vocabulary =
            parse(&bytes).map_err(|problem| TokenizerError::Vocabulary { file: file.clone(), problem })?;
        vocabulary.file = file;
        if let Some(config) = JsonFile::read_if_any(folder, "tokenizer_config.json")? {
            vocabulary.apply(&config)?;
        }
        vocabulary.check()?;
        Ok(Some(vocabulary))
    }

    /// Adds the tokens and the choices of `tokenizer_config.json`.
    fn apply(&mut self, config: &JsonFile) -> Result<(), TokenizerError> {
        self.add_bos = config.field("add_bos_token").and_then(Value::as_bool).or(self.add_bos);
        self.add_eos = config.field("add_eos_token").and_then(Value::as_bool).or(self.add_eos);
        const FIELD: &str = "added_tokens_decoder";
        let Some(added) = config.field(FIELD) else { return Ok(()) };
        let wrong = |got: &Value| config.wrong(FIELD, "an object of tokens by their ids", got);
        let mut tokens = Vec::new();
        for (id, token) in added.as_object().ok_or_else(|| wrong(added))? {
            let id = id.parse::<u32>().map_err(|_| wrong(added))?;
            let text = token["content"].as_str().ok_or_else(|| wrong(token))?;
            tokens.push((id, text, token));
        }
        tokens.sort_by_key(|&(id, ..)| id);
        for (id, text, token) in tokens {
            let is = |flag: &str| token[flag].as_bool().unwrap_or(false);
            if is("rstrip") {
                self.strip_after.insert(id);
            }
            if (id as usize) < self.tokens.len() {
                continue;
            }
            if id as usize > self.tokens.len() {
                let problem = format!("{FIELD} has id {id}, but no token {}", self.tokens.len());
                return Err(self.wrong(problem));
            }
            self.tokens.push(text.to_owned());
            self.scores.push(0.0);
            self.types.push(if is("special") { TokenType::Control } else { TokenType::UserDefined });
        }
        Ok(())
    }
}

/// One field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
}

/// The fields of a message, one after the other.
struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(count).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next field with its number; nothing where the message is malformed.
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

/// All fields of the message `bytes`, which is `what`.
fn fields<'a>(bytes: &'a [u8], what: &str) -> Result<Vec<(u64, Field<'a>)>, String> {
    let mut message = Message { rest: bytes };
    let mut fields = Vec::new();
    while !message.rest.is_empty() {
        let left = message.rest.len();
        let field = message.field().ok_or_else(|| {
            format!("no SentencePiece model: {what} is malformed {} bytes into it", bytes.len() - left)
        })?;
        fields.push(field);
    }
    Ok(fields)
}

fn parse(bytes: &[u8]) -> Result<Vocabulary, String> {
    let mut vocabulary = Vocabulary {
        file: Default::default(),
        model: "llama".to_owned(),
        pre: None,
        tokens: Vec::new(),
        scores: Vec::new(),
        types: Vec::new(),
        merges: Vec::new(),
        bos: Some(1),
        eos: vec![2],
        unk: Some(0),
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
        strip_after: HashSet::new(),
    };
    let mut kind = None;
    for field in fields(bytes, "the file")? {
        match field {
            (1, Field::Bytes(piece)) => add_piece(&mut vocabulary, piece)?,
            (2, Field::Bytes(trainer)) => kind = read_trainer(&mut vocabulary, trainer)?,
            (3, Field::Bytes(normalizer)) => read_normalizer(&mut vocabulary, normalizer)?,
            _ => {}
        }
    }
    match kind {
        Some(BPE) => Ok(vocabulary),
        _ => Err("not a BPE model; other SentencePiece models need a tokenizer.json".to_owned()),
    }
}

fn add_piece(vocabulary: &mut Vocabulary, piece: &[u8]) -> Result<(), String> {
    let what = format!("piece {}", vocabulary.tokens.len());
    let (mut text, mut score, mut kind) = (String::new(), 0.0, TokenType::Normal);
    for field in fields(piece, &what)? {
        match field {
            (1, Field::Bytes(bytes)) => {
                let wrong = |_| format!("{what} is not valid UTF-8");
                text = std::str::from_utf8(bytes).map_err(wrong)?.to_owned();
            }
            (2, Field::Float(value)) => score = value,
            (3, Field::Number(number)) => {
                kind = i64::try_from(number)
                    .ok()
                    .and_then(TokenType::from_number)
                    .ok_or_else(|| format!("{what} has type {number}; types are 1 to 6"))?;
            }
            _ => {}
        }
    }
    vocabulary.tokens.push(text);
    vocabulary.scores.push(score);
    vocabulary.types.push(kind);
    Ok(())
}

/// Reads the ids of tokens with a role; returns the kind of model.
fn read_trainer(vocabulary: &mut Vocabulary, trainer: &[u8]) -> Result<Option<u64>, String> {
    let mut kind = None;
    for field in fields(trainer, "the trainer's specification")? {
        // -1 means that there is no such token.
        let id = |number: u64| u32::try_from(number).ok();
        match field {
            (3, Field::Number(number)) => kind = Some(number),
            (40, Field::Number(number)) => vocabulary.unk = id(number),
            (41, Field::Number(number)) => vocabulary.bos = id(number),
            (42, Field::Number(number)) => vocabulary.eos = id(number).into_iter().collect(),
            _ => {}
        }
    }
    Ok(kind)
}

fn read_normalizer(vocabulary: &mut Vocabulary, normalizer: &[u8]) -> Result<(), String> {
    let mut removes_spaces = true;
    for field in fields(normalizer, "the normaliser's specification")? {
        match field {
            (2, Field::Bytes(map)) if !map.is_empty() => {
                return Err("the model normalises characters; that needs a tokenizer.json".to_owned());
            }
            (3, Field::Number(number)) => vocabulary.add_space_prefix = Some(number != 0),
            (4, Field::Number(number)) => removes_spaces = number != 0,
            _ => {}
        }
    }
    if removes_spaces {
        return Err("the model removes repeated spaces; that needs a tokenizer.json".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field that holds bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    /// A BPE model whose spaces are kept.
    fn model(more: &[u8]) -> Vec<u8> {
        [field(2, &[3 << 3, 2]), field(3, &[4 << 3, 0]), more.to_vec()].concat()
    }

    #[test]
    fn pieces_and_roles_are_read() {
        let score = [&[2 << 3 | 5][..], &(-1.5_f32).to_le_bytes()].concat();
        let piece = field(1, &[field(1, "é".as_bytes()), score, vec![3 << 3, 3]].concat());
        let vocabulary = parse(&model(&piece)).unwrap();
        assert_eq!(vocabulary.tokens, ["é"]);
        assert_eq!((vocabulary.scores[0], vocabulary.types[0]), (-1.5, TokenType::Control));
        assert_eq!((vocabulary.unk, vocabulary.bos, vocabulary.eos), (Some(0), Some(1), vec![2]));
    }

    #[test]
    fn problems_are_named() {
        for (bytes, problem) in [
            (field(2, &[3 << 3, 1]), "not a BPE model"),
            (model(&field(1, &field(1, b"\xff"))), "piece 0 is not valid UTF-8"),
            (model(&field(1, &[3 << 3, 9])), "piece 0 has type 9"),
            (model(&field(3, &field(2, b"map"))), "the model normalises characters"),
            (field(3, &[]), "the model removes repeated spaces"),
            (model(&[1 << 3 | 2, 200, 1]), "the file is malformed 8 bytes into it"),
            (model(&[0xff; 12]), "the file is malformed"),
        ] {
            let got = parse(&bytes).unwrap_err();
            assert!(got.contains(problem), "{got}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let parsed = parse(&model(&bytes));
            prop_assert!(parsed.is_err() || parsed.is_ok_and(|vocabulary| vocabulary.tokens.len() <= bytes.len()));
        }
    }
}
