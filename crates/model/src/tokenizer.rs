//! Tokenizers: text to ids and back, as the checkpoint defines it.
//!
//! A folder's `tokenizer.json` runs through the `tokenizers` library; so does byte-level BPE from a GGUF file.
//! SentencePiece vocabularies (GGUF, `tokenizer.model`) have an encoder of their own.

mod bpe;
mod decode;
mod error;
mod files;
mod folder;
mod model_file;
mod pipeline;
mod sentencepiece;
mod vocabulary;

use std::path::PathBuf;

use bpe::ByteLevelBpe;
pub use decode::{DecodeSpecial, DecodeStream};
use decode::{Decoding, LeadingSpace};
pub use error::TokenizerError;
pub use files::{FileError, NamedTokens};
pub(crate) use files::{JsonFile, read_text, read_text_if_any};
use pipeline::Pipeline;
use sentencepiece::{SentencePiece, SpacePrefix};
pub use vocabulary::{TokenType, Vocabulary};

use crate::gguf::Gguf;

/// Whether the tokens that the tokenizer puts around a text, such as BOS, are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Around {
    /// As the tokenizer's post-processor, or the GGUF file, says.
    Add,
    /// The text's own tokens alone.
    Omit,
}

/// Whether names of special tokens within a text mean these tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognise {
    /// `<|im_end|>` in a text is that token.
    Special,
    /// `<|im_end|>` in a text is ten characters. Added tokens that are not special, such as `<tool_call>`, are
    /// recognised all the same.
    Nothing,
}

/// What [`Tokenizer::encode`] does about special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Around the text.
    pub around: Around,
    /// Within the text.
    pub within: Recognise,
}

impl SpecialTokens {
    /// Add them around the text and recognise them in it: for a prompt.
    pub const ADD: SpecialTokens = SpecialTokens { around: Around::Add, within: Recognise::Special };

    /// Recognise them in the text but add none: for what a chat template rendered, which holds its own.
    pub const RECOGNISE: SpecialTokens = SpecialTokens { around: Around::Omit, within: Recognise::Special };

    /// Neither: for text that is only text.
    pub const IGNORE: SpecialTokens = SpecialTokens { around: Around::Omit, within: Recognise::Nothing };
}

/// A tokenizer with the roles of its tokens.
pub struct Tokenizer {
    /// The file it comes from, for errors.
    file: PathBuf,
    encoder: Encoder,
    decoding: Decoding,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Ids before and after a text, where the encoder itself adds none.
    before: Option<u32>,
    after: Option<u32>,
}

enum Encoder {
    Pipeline(Box<Pipeline>),
    SentencePiece(Box<SentencePiece>),
}

impl Tokenizer {
    /// The tokenizer that a GGUF file carries. The file may be a vocabulary without tensors.
    ///
    /// # Errors
    /// [`TokenizerError`] where the file carries none, one of an unknown kind, or a malformed one.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_vocabulary(&Vocabulary::from_gguf(gguf)?)
    }

    /// The tokenizer of a vocabulary.
    ///
    /// # Errors
    /// [`TokenizerError`] where the vocabulary is of an unknown kind or contradicts itself.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Tokenizer, TokenizerError> {
        vocabulary.check()?;
        let (encoder, decoding, add_bos) = match vocabulary.model.as_str() {
            "gpt2" => {
                let ByteLevelBpe { tokenizer, add_bos } = ByteLevelBpe::new(vocabulary)?;
                let pipeline = Pipeline::new(tokenizer).map_err(|error| TokenizerError::Library {
                    file: vocabulary.file.clone(),
                    reason: error.to_string(),
                })?;
                (Encoder::Pipeline(Box::new(pipeline)), Decoding::ByteLevel, add_bos)
            }
            "llama" => {
                let model = SentencePiece::new(vocabulary)?;
                let space = match model.prefix() {
                    SpacePrefix::Add => LeadingSpace::Remove,
                    SpacePrefix::Omit => LeadingSpace::Keep,
                };
                let add_bos = vocabulary.add_bos.unwrap_or(true);
                (Encoder::SentencePiece(Box::new(model)), Decoding::SentencePiece(space), add_bos)
            }
            kind => {
                return Err(TokenizerError::Kind { file: vocabulary.file.clone(), got: kind.to_owned() });
            }
        };
        let eos = vocabulary.eos.first().copied();
        let add_eos = vocabulary.add_eos.unwrap_or(false);
        for (role, asked, id) in
            [("bos", vocabulary.add_bos, vocabulary.bos), ("eos", vocabulary.add_eos, eos)]
        {
            if asked == Some(true) && id.is_none() {
                let problem = format!("the {role} token is to be added to each text, but no token is named");
                return Err(vocabulary.wrong(problem));
            }
        }
        Ok(Tokenizer {
            file: vocabulary.file.clone(),
            encoder,
            decoding,
            vocab_size: vocabulary.tokens.len(),
            bos: vocabulary.bos,
            eos: vocabulary.eos.clone(),
            before: vocabulary.bos.filter(|_| add_bos),
            after: eos.filter(|_| add_eos),
        })
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`TokenizerError`] where the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        let ids = match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline
                .encode(text, special.around, special.within)
                .map_err(|error| self.library_error(&*error))?,
            Encoder::SentencePiece(model) => model.encode(text, special.within)?,
        };
        match special.around {
            Around::Add => Ok(self.before.into_iter().chain(ids).chain(self.after).collect()),
            Around::Omit => Ok(ids),
        }
    }

    /// The token that begins a sequence, if the tokenizer names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// All tokens that end an answer. Of a folder: `eos_token_id` of `generation_config.json`, or else of
    /// `config.json`, and `eos_token` of `tokenizer_config.json`. Of a GGUF file: its end of sequence, turn and
    /// message, and control tokens that are well known as the end of a turn.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// What kind of tokenizer it is, for listings.
    pub fn kind(&self) -> &'static str {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.kind(),
            Encoder::SentencePiece(_) => "SentencePiece",
        }
    }

    /// All ids are below this. A model may have more rows than that.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token `id` as the vocabulary writes it: `Ġworld`, `▁world`, `<0x0A>`.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.library().id_to_token(id),
            Encoder::SentencePiece(model) => model.token(id).map(str::to_owned),
        }
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.library().token_to_id(token),
            Encoder::SentencePiece(model) => model.id(token),
        }
    }

    /// Whether the token is special: no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.is_special(id),
            Encoder::SentencePiece(model) => model.is_special(id),
        }
    }

    fn library_error(&self, error: &(dyn std::error::Error + Send + Sync)) -> TokenizerError {
        TokenizerError::Library { file: self.file.clone(), reason: error.to_string() }
    }
}
