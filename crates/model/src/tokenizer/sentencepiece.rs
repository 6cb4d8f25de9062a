//! SentencePiece's BPE with byte fallback, as Llama 2, Mistral and Phi-3 use it.
//!
//! Own code, because joining by scores is not the same as joining by a list of merges: where two joins have the same
//! score, the leftmost one comes first. Algorithm: <https://github.com/google/sentencepiece>, `bpe_model.cc`; how
//! special tokens cut a text, and the space before each piece of it, as in `tokenizer.json` files of such models.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap, HashSet},
    path::PathBuf,
};

use super::{
    Recognise,
    error::TokenizerError,
    vocabulary::{TokenType, Vocabulary},
};

/// What stands for a space within tokens: U+2581.
pub(super) const SPACE: char = '\u{2581}';

/// Whether a text gets a space before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    Add,
    Omit,
}

/// An encoder with its vocabulary.
pub(super) struct SentencePiece {
    file: PathBuf,
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<TokenType>,
    ids: HashMap<String, u32>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    /// Tokens that cut a text, by their first byte, longest first.
    cutting: Vec<Vec<u32>>,
    strip_after: HashSet<u32>,
    prefix: SpacePrefix,
}

impl SentencePiece {
    pub fn new(vocabulary: &Vocabulary) -> Result<SentencePiece, TokenizerError> {
        if vocabulary.scores.is_empty() && !vocabulary.tokens.is_empty() {
            return Err(
                vocabulary.wrong("a tokenizer of kind \"llama\" needs scores, but has none".to_owned())
            );
        }
        let mut ids = HashMap::with_capacity(vocabulary.tokens.len());
        let mut bytes = [None; 256];
        let mut cutting: Vec<Vec<u32>> = vec![Vec::new(); 256];
        for (id, text, kind) in vocabulary.entries() {
            ids.entry(text.to_owned()).or_insert(id);
            if kind == TokenType::Unknown && vocabulary.unk != Some(id) {
                // Fills up the vocabulary, and stands for nothing.
                continue;
            }
            match kind {
                TokenType::Byte => {
                    let byte = byte_of(text).ok_or_else(|| {
                        vocabulary.wrong(format!("byte token {id} is {text:?}; it should be like \"<0x41>\""))
                    })?;
                    bytes[usize::from(byte)] = Some(id);
                }
                TokenType::Control | TokenType::UserDefined | TokenType::Unknown => {
                    if let Some(&first) = text.as_bytes().first() {
                        cutting[usize::from(first)].push(id);
                    }
                }
                TokenType::Normal | TokenType::Unused => {}
            }
        }
        for ids in &mut cutting {
            ids.sort_by_key(|&id| Reverse(vocabulary.tokens[id as usize].len()));
        }
        Ok(SentencePiece {
            file: vocabulary.file.clone(),
            tokens: vocabulary.tokens.clone(),
            scores: vocabulary.scores.clone(),
            types: vocabulary.types.clone(),
            ids,
            bytes,
            unk: vocabulary.unk,
            cutting,
            strip_after: vocabulary.strip_after.clone(),
            prefix: match vocabulary.add_space_prefix {
                Some(false) => SpacePrefix::Omit,
                Some(true) | None => SpacePrefix::Add,
            },
        })
    }

    pub fn prefix(&self) -> SpacePrefix {
        self.prefix
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Whether a token is no text. Unused ones are none either: they only fill up a vocabulary.
    pub fn is_special(&self, id: u32) -> bool {
        !matches!(
            self.types.get(id as usize),
            Some(TokenType::Normal | TokenType::UserDefined | TokenType::Byte)
        )
    }

    /// Cuts `text` at user-defined tokens, and on request at special ones, and encodes what is between them.
    pub fn encode(&self, text: &str, recognise: Recognise) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        let mut rest = text;
        while let Some((start, id)) = self.find_cutting(rest, recognise) {
            self.encode_piece(&rest[..start], &mut ids)?;
            ids.push(id);
            rest = &rest[start + self.tokens[id as usize].len()..];
            if self.strip_after.contains(&id) {
                rest = rest.trim_start();
            }
        }
        self.encode_piece(rest, &mut ids)?;
        Ok(ids)
    }

    /// The first token in `text` that cuts it, the longest where several begin there: its place and id.
    fn find_cutting(&self, text: &str, recognise: Recognise) -> Option<(usize, u32)> {
        let cuts = |id: u32| match self.types[id as usize] {
            TokenType::Control | TokenType::Unknown => recognise == Recognise::Special,
            _ => true,
        };
        // A token starts with a whole character, so that a match of bytes is one of characters.
        text.bytes().enumerate().find_map(|(start, byte)| {
            let found = self.cutting[usize::from(byte)].iter().copied().find(|&id| {
                cuts(id) && text.as_bytes()[start..].starts_with(self.tokens[id as usize].as_bytes())
            })?;
            Some((start, found))
        })
    }

    fn encode_piece(&self, piece: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut text = String::with_capacity(piece.len() + SPACE.len_utf8());
        if self.prefix == SpacePrefix::Add {
            text.push(SPACE);
        }
        text.extend(piece.chars().map(|c| if c == ' ' { SPACE } else { c }));

        let mut joiner = Joiner::new(self, &text);
        joiner.join_all();
        let mut symbol = Some(0);
        while let Some(index) = symbol {
            let Symbol { start, end, next, .. } = joiner.symbols[index];
            self.emit(&text[start..end], &joiner.cuts, ids)?;
            symbol = next;
        }
        Ok(())
    }

    /// The id of a token that joining may make, with its score.
    fn joinable(&self, text: &str) -> Option<u32> {
        self.id(text).filter(|&id| {
            matches!(self.types[id as usize], TokenType::Normal | TokenType::UserDefined | TokenType::Unused)
        })
    }

    /// Appends the token of a symbol: its own, or where that is unused those it was joined from, or its bytes.
    fn emit(
        &self,
        symbol: &str,
        cuts: &HashMap<&str, usize>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut parts = vec![symbol];
        while let Some(part) = parts.pop() {
            let id = self.joinable(part);
            if let Some(id) = id.filter(|&id| self.types[id as usize] != TokenType::Unused) {
                ids.push(id);
            } else if let Some(&cut) = cuts.get(part) {
                parts.push(&part[cut..]);
                parts.push(&part[..cut]);
            } else {
                self.emit_bytes(part, ids)?;
            }
        }
        Ok(())
    }

    fn emit_bytes(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let bytes = text.bytes().map(|byte| self.bytes[usize::from(byte)]).collect::<Option<Vec<u32>>>();
        match (bytes, self.unk) {
            (Some(bytes), _) => ids.extend(bytes),
            (None, Some(unk)) => ids.push(unk),
            (None, None) => {
                return Err(TokenizerError::NoToken { file: self.file.clone(), text: text.to_owned() });
            }
        }
        Ok(())
    }
}

/// The byte that a token such as `<0x41>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// A run of the text that is one token so far. Empty once it was joined to the one before it.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbouring symbols that form a token together.
#[derive(PartialEq, Eq)]
struct Join {
    score: Score,
    left: Reverse<usize>,
    right: usize,
    /// Bytes of both when the join was found: another length now means that one of them has changed.
    bytes: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Join) -> Ordering {
        (&self.score, self.left).cmp(&(&other.score, other.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Join) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A score in a total order, so that not even NaN in a file unsettles the heap.
struct Score(f32);

impl PartialEq for Score {
    fn eq(&self, other: &Score) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Score) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Score) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Joins characters to tokens, best score first, leftmost first among equals.
struct Joiner<'a> {
    model: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    joins: BinaryHeap<Join>,
    /// Where unused tokens were joined, to take them apart again.
    cuts: HashMap<&'a str, usize>,
}

impl<'a> Joiner<'a> {
    fn new(model: &'a SentencePiece, text: &'a str) -> Joiner<'a> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                end: start + c.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        Joiner { model, text, symbols, joins: BinaryHeap::new(), cuts: HashMap::new() }
    }

    fn join_all(&mut self) {
        for right in 1..self.symbols.len() {
            self.consider(Some(right - 1), Some(right));
        }
        while let Some(join) = self.joins.pop() {
            let Reverse(left) = join.left;
            let right = self.symbols[join.right];
            let bytes = self.symbols[left].end - self.symbols[left].start + right.end - right.start;
            let gone = |symbol: Symbol| symbol.start == symbol.end;
            if gone(self.symbols[left]) || gone(right) || bytes != join.bytes {
                continue;
            }
            self.symbols[left].end = right.end;
            self.symbols[left].next = right.next;
            if let Some(next) = right.next {
                self.symbols[next].previous = Some(left);
            }
            self.symbols[join.right].end = right.start;
            self.consider(self.symbols[left].previous, Some(left));
            self.consider(Some(left), right.next);
        }
    }

    /// Adds the join of two neighbours where they form a token.
    fn consider(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (start, end) = (self.symbols[left].start, self.symbols[right].end);
        let text = &self.text[start..end];
        let Some(id) = self.model.joinable(text) else { return };
        if self.model.types[id as usize] == TokenType::Unused {
            self.cuts.insert(text, self.symbols[left].end - start);
        }
        let score = Score(self.model.scores[id as usize]);
        self.joins.push(Join { score, left: Reverse(left), right, bytes: end - start });
    }
}
