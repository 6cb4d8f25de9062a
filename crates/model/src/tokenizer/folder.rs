//! Tokenizers of Hugging Face folders.

use serde_json::Value;

use super::{
    Encoder, Tokenizer,
    decode::Decoding,
    error::TokenizerError,
    files::{FileError, JsonFile, NamedTokens, read_text_if_any},
    pipeline::Pipeline,
    vocabulary::Vocabulary,
};
use crate::location::Location;

impl Tokenizer {
    /// The tokenizer of a folder: `tokenizer.json`, or else `tokenizer.model`, with `tokenizer_config.json` and
    /// `generation_config.json` where they are there. Nothing else is needed.
    ///
    /// # Errors
    /// [`TokenizerError`] where there is no tokenizer, or a file is unreadable or malformed.
    pub fn from_folder(folder: impl Into<Location>) -> Result<Tokenizer, TokenizerError> {
        const FILE: &str = "tokenizer.json";
        let folder = &folder.into();
        let Some(text) = read_text_if_any(folder, FILE)? else {
            return from_model_file(folder);
        };
        let file = folder.file(FILE);
        let library = |error: tokenizers::Error| TokenizerError::Library {
            file: file.clone(),
            reason: error.to_string(),
        };
        let tokenizer = tokenizers::Tokenizer::from_bytes(&text).map_err(library)?;
        let post_processor = serde_json::to_value(tokenizer.get_post_processor()).unwrap_or(Value::Null);
        check_post_processor(&post_processor)
            .map_err(|problem| TokenizerError::Vocabulary { file: file.clone(), problem })?;
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or(Value::Null);
        let pipeline = Pipeline::new(tokenizer).map_err(library)?;
        let names = NamedTokens::from_folder(folder)?;
        let id = |token: Option<String>| token.and_then(|token| pipeline.library().token_to_id(&token));
        let bos = id(names.bos);
        let mut eos = generation_eos(folder)?;
        eos.extend(id(names.eos).filter(|id| !eos.contains(id)));
        Ok(Tokenizer {
            decoding: Decoding::of(&decoder),
            vocab_size: pipeline.vocab_size(),
            encoder: Encoder::Pipeline(Box::new(pipeline)),
            bos,
            eos,
            before: None,
            after: None,
            file,
        })
    }
}

/// Checks what the library takes for granted and would panic over: that each special token of a template is defined,
/// and that the template for one text uses no second one.
fn check_post_processor(processor: &Value) -> Result<(), String> {
    for step in processor["processors"].as_array().into_iter().flatten() {
        check_post_processor(step)?;
    }
    for piece in processor["single"].as_array().into_iter().flatten() {
        if piece["Sequence"]["id"] == "B" {
            return Err("post_processor: the template for a single text names a second one".to_owned());
        }
        if let Some(token) = piece["SpecialToken"]["id"].as_str()
            && processor["special_tokens"].get(token).is_none()
        {
            return Err(format!("post_processor: the template has {token:?}, special_tokens does not"));
        }
    }
    Ok(())
}

fn from_model_file(folder: &Location) -> Result<Tokenizer, TokenizerError> {
    let Some(vocabulary) = Vocabulary::from_model_file(folder)? else {
        return Err(TokenizerError::Missing { folder: folder.path().into_owned() });
    };
    let mut tokenizer = Tokenizer::from_vocabulary(&vocabulary)?;
    for id in generation_eos(folder)? {
        if !tokenizer.eos.contains(&id) {
            tokenizer.eos.push(id);
        }
    }
    Ok(tokenizer)
}

/// Where generation ends, as `generation_config.json` says, or else `config.json`.
fn generation_eos(folder: &Location) -> Result<Vec<u32>, FileError> {
    const FIELD: &str = "eos_token_id";
    for name in ["generation_config.json", "config.json"] {
        let Some(file) = JsonFile::read_if_any(folder, name)? else { continue };
        let Some(value) = file.field(FIELD) else { continue };
        let wrong = || file.wrong(FIELD, "a token id or a list of them", value);
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
        return match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            _ => Ok(vec![id(value)?]),
        };
    }
    Ok(Vec::new())
}
