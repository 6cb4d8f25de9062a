//! A tokenizer of the `tokenizers` library, with special tokens recognised or not from call to call.

use std::collections::HashSet;

use tokenizers::{AddedVocabulary, Model, ModelWrapper, OffsetType, PreTokenizer, Tokenizer};

use super::{Around, Recognise};

/// A pipeline of the library.
pub(super) struct Pipeline {
    tokenizer: Tokenizer,
    /// The added tokens once more, set to leave special ones in a text alone. The library has that as a setting of
    /// a tokenizer, and a second whole tokenizer would be large.
    literal: AddedVocabulary,
    special: HashSet<u32>,
}

impl Pipeline {
    pub fn new(mut tokenizer: Tokenizer) -> tokenizers::Result<Pipeline> {
        // Settings of whoever trained the tokenizer, which would cut or fill up every text.
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(false);
        let mut literal = tokenizer.get_added_vocabulary().clone();
        literal.set_encode_special_tokens(true);
        let added = literal.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        Ok(Pipeline { tokenizer, literal, special })
    }

    /// The library's tokenizer, for what needs no choice.
    pub fn library(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What kind of model it has.
    pub fn kind(&self) -> &'static str {
        match self.tokenizer.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::Unigram(_) => "Unigram",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
        }
    }

    /// All ids are below this.
    pub fn vocab_size(&self) -> usize {
        let added = self.literal.get_added_tokens_decoder().keys().max();
        self.tokenizer.get_vocab_size(true).max(added.map_or(0, |&id| id as usize + 1))
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    pub fn encode(&self, text: &str, around: Around, recognise: Recognise) -> tokenizers::Result<Vec<u32>> {
        let added = match recognise {
            Recognise::Special => self.tokenizer.get_added_vocabulary(),
            Recognise::Nothing => &self.literal,
        };
        let mut pieces = added.extract_and_normalize(self.tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        self.tokenizer.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
        let encoding = self.tokenizer.post_process(encoding, None, around == Around::Add)?;
        Ok(encoding.get_ids().to_vec())
    }
}
