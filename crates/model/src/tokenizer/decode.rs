//! From ids back to text, whole or as they arrive.

use serde_json::{Value, json};

use super::{
    Encoder, Tokenizer,
    error::TokenizerError,
    sentencepiece::{SPACE, byte_of},
};

/// What becomes of special tokens in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeSpecial {
    /// They appear by their names, such as `<|im_end|>`.
    Keep,
    /// They are left out.
    Skip,
}

/// Whether the space before a text, which the encoder put there, is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeadingSpace {
    Keep,
    Remove,
}

/// How tokens become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoding {
    /// Each character of a token stands for a byte (GPT-2).
    ByteLevel,
    /// U+2581 is a space, `<0x41>` is a byte.
    SentencePiece(LeadingSpace),
    /// Another way that the library knows.
    Library,
}

impl Decoding {
    /// Recognises the `decoder` of a `tokenizer.json`.
    pub fn of(decoder: &Value) -> Decoding {
        if decoder["type"] == "ByteLevel" {
            return Decoding::ByteLevel;
        }
        let Some(steps) = decoder["decoders"].as_array() else { return Decoding::Library };
        let replace = json!({"type": "Replace", "pattern": {"String": SPACE.to_string()}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let bytes = [replace, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        match steps.strip_prefix(&bytes) {
            Some([]) => Decoding::SentencePiece(LeadingSpace::Keep),
            Some([last]) if *last == strip => Decoding::SentencePiece(LeadingSpace::Remove),
            _ => Decoding::Library,
        }
    }

    /// Appends what `token` stands for.
    fn append(self, token: &str, bytes: &mut Vec<u8>) {
        match self {
            Decoding::ByteLevel => {
                // Tokens outside the alphabet were added as plain text.
                match token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>() {
                    Some(mapped) => bytes.extend(mapped),
                    None => bytes.extend(token.as_bytes()),
                }
            }
            Decoding::SentencePiece(_) => match byte_of(token) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend(token.replace(SPACE, " ").as_bytes()),
            },
            Decoding::Library => bytes.extend(token.as_bytes()),
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 characters stand for themselves, the
/// other 68 bytes, in order, are U+0100 and following.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Decodes ids one by one, and never gives out half a character. All pieces together, with that of
/// [`finish`](DecodeStream::finish), are what [`Tokenizer::decode`] makes of all ids together.
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    special: DecodeSpecial,
    state: State,
}

enum State {
    /// Bytes that form no whole character yet.
    Bytes { pending: Vec<u8>, space: LeadingSpace },
    /// For decoders whose text depends on neighbouring tokens: ids of the last piece and those since.
    Window { ids: Vec<u32>, given: usize },
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, special: DecodeSpecial) -> DecodeStream<'t> {
        let bytes = |space| State::Bytes { pending: Vec::new(), space };
        let state = match tokenizer.decoding {
            Decoding::ByteLevel => bytes(LeadingSpace::Keep),
            Decoding::SentencePiece(space) => bytes(space),
            Decoding::Library => State::Window { ids: Vec::new(), given: 0 },
        };
        DecodeStream { tokenizer, special, state }
    }

    /// Takes the next id and returns the text that is certain now, often empty. Ids that the vocabulary does not
    /// have are no text.
    ///
    /// # Errors
    /// [`TokenizerError::Library`] where the library's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        match &mut self.state {
            State::Bytes { pending, space } => {
                let skipped = self.special == DecodeSpecial::Skip && self.tokenizer.is_special(id);
                if let Some(token) = self.tokenizer.token(id).filter(|_| !skipped) {
                    self.tokenizer.decoding.append(&token, pending);
                }
                let mut text = take_characters(pending);
                remove_leading_space(&mut text, space);
                Ok(text)
            }
            State::Window { ids, given } => {
                ids.push(id);
                let old = self.tokenizer.decode_by_library(&ids[..*given], self.special)?;
                let new = self.tokenizer.decode_by_library(ids, self.special)?;
                match new.strip_prefix(&old) {
                    // The replacement character at the end may be the first half of a character.
                    Some(text) if !text.is_empty() && !text.ends_with(char::REPLACEMENT_CHARACTER) => {
                        ids.drain(..*given);
                        *given = ids.len();
                        Ok(text.to_owned())
                    }
                    _ => Ok(String::new()),
                }
            }
        }
    }

    /// Ends the text: returns what was held back, with U+FFFD for a character that was never completed.
    ///
    /// # Errors
    /// As [`push`](DecodeStream::push).
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        match &mut self.state {
            State::Bytes { pending, space } => {
                let mut text = String::from_utf8_lossy(&std::mem::take(pending)).into_owned();
                remove_leading_space(&mut text, space);
                Ok(text)
            }
            State::Window { ids, given } => {
                let old = self.tokenizer.decode_by_library(&ids[..*given], self.special)?;
                let new = self.tokenizer.decode_by_library(ids, self.special)?;
                *given = ids.len();
                Ok(new.strip_prefix(&old).unwrap_or_default().to_owned())
            }
        }
    }
}

/// Takes all whole characters from the front, and U+FFFD for what can become none. Leaves the beginning of a
/// character at the end.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let rest = pending.utf8_chunks().last().map_or(0, |last| {
        let tail = last.invalid();
        let may_grow = matches!(std::str::from_utf8(tail), Err(error) if error.error_len().is_none());
        if may_grow { tail.len() } else { 0 }
    });
    let whole = pending.len() - rest;
    let text = String::from_utf8_lossy(&pending[..whole]).into_owned();
    pending.drain(..whole);
    text
}

fn remove_leading_space(text: &mut String, space: &mut LeadingSpace) {
    if *space == LeadingSpace::Remove && !text.is_empty() {
        *space = LeadingSpace::Keep;
        if text.starts_with(' ') {
            text.remove(0);
        }
    }
}

impl Tokenizer {
    /// The text of `ids`. Ids that the vocabulary does not have are no text; bytes that form no character become
    /// U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Library`] where the library's decoder fails.
    pub fn decode(&self, ids: &[u32], special: DecodeSpecial) -> Result<String, TokenizerError> {
        if self.decoding == Decoding::Library {
            return self.decode_by_library(ids, special);
        }
        let mut stream = self.decode_stream(special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// Begins a text whose ids arrive one by one.
    pub fn decode_stream(&self, special: DecodeSpecial) -> DecodeStream<'_> {
        DecodeStream::new(self, special)
    }

    fn decode_by_library(&self, ids: &[u32], special: DecodeSpecial) -> Result<String, TokenizerError> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline
                .library()
                .decode(ids, special == DecodeSpecial::Skip)
                .map_err(|error| self.library_error(&*error)),
            // Decodes by its own rule, never by the library.
            Encoder::SentencePiece(_) => Ok(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_has_every_byte_once() {
        let mut bytes: Vec<u8> = ('\0'..='\u{1ff}').filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
    }

    #[test]
    fn characters_are_taken_whole() {
        let mut pending = b"a\xe2\x82".to_vec();
        assert_eq!(take_characters(&mut pending), "a");
        assert_eq!(pending, b"\xe2\x82");
        pending.push(b'b');
        assert_eq!(take_characters(&mut pending), "\u{fffd}b");
        pending.extend(b"\xff\xf0\x9f");
        assert_eq!(take_characters(&mut pending), "\u{fffd}");
        assert_eq!(pending, b"\xf0\x9f");
    }

    #[test]
    fn decoders_are_recognised() {
        let steps = r#"{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                       {"type": "ByteFallback"}, {"type": "Fuse"}"#;
        let of = |text: &str| Decoding::of(&serde_json::from_str(text).unwrap());
        let sequence = |more: &str| of(&format!(r#"{{"type": "Sequence", "decoders": [{steps}{more}]}}"#));
        assert_eq!(of(r#"{"type": "ByteLevel", "use_regex": true}"#), Decoding::ByteLevel);
        assert_eq!(of(r#"{"type": "Metaspace"}"#), Decoding::Library);
        assert_eq!(of("null"), Decoding::Library);
        assert_eq!(sequence(""), Decoding::SentencePiece(LeadingSpace::Keep));
        let strip = r#", {"type": "Strip", "content": " ", "start": 1, "stop": 0}"#;
        assert_eq!(sequence(strip), Decoding::SentencePiece(LeadingSpace::Remove));
        assert_eq!(
            sequence(r#", {"type": "Strip", "content": "_", "start": 1, "stop": 0}"#),
            Decoding::Library
        );
    }
}
