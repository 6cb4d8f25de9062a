//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja as Hugging Face transformers renders it: block trimming, loop controls, JSON as Python writes
//! it, and the methods of Python's strings and dictionaries.

mod json;
mod python;
mod time;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig};
use serde_json::{Map, Value as Json};

use crate::{
    gguf::{Gguf, GgufError},
    location::Location,
    tokenizer::{FileError, JsonFile, NamedTokens, read_text, read_text_if_any},
};

/// Name of the template for every conversation.
const DEFAULT: &str = "default";

/// Name of the template for conversations with tools, where a model has one of its own for them.
const TOOL_USE: &str = "tool_use";

/// Whether the text ends with the beginning of the assistant's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model answers.
    Add,
    /// It ends with the last message.
    Omit,
}

/// A template that cannot be found, parsed or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file is unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// GGUF metadata has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model has no chat template.
    #[error("{}: no chat template: {looked}; give one with --template FILE.jinja", model.display())]
    Missing {
        /// The folder or file.
        model: PathBuf,
        /// Where one could have been.
        looked: &'static str,
    },
    /// The template is no valid Jinja.
    #[error("{origin}: chat template cannot be parsed: {reason}")]
    Syntax {
        /// The file.
        origin: String,
        /// What is wrong, with its line.
        reason: String,
    },
    /// The template itself refuses the conversation.
    #[error("{origin}: the chat template refuses this conversation: {message}")]
    Refused {
        /// The file.
        origin: String,
        /// What the template says.
        message: String,
    },
    /// The template fails.
    #[error("{origin}: chat template cannot be rendered: {reason}")]
    Render {
        /// The file.
        origin: String,
        /// What is wrong, with its line.
        reason: String,
    },
    /// The conversation is neither a list of messages nor an object that has one.
    #[error(
        "a conversation is a list of messages, or an object with such a list as `messages`; this is {got}"
    )]
    Conversation {
        /// What it is.
        got: &'static str,
    },
}

/// What a template raised by itself; travels as the source of the engine's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// A parsed chat template, with the tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    tokens: NamedTokens,
}

impl ChatTemplate {
    /// The template of a folder: `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json` or in
    /// `chat_template.json`.
    ///
    /// # Errors
    /// [`TemplateError`] where there is none, or it cannot be read or parsed.
    pub fn from_folder(folder: impl Into<Location>) -> Result<ChatTemplate, TemplateError> {
        const FILE: &str = "chat_template.jinja";
        let folder = &folder.into();
        let tokens = NamedTokens::from_folder(folder)?;
        if let Some(source) = read_text_if_any(folder, FILE)? {
            return ChatTemplate::parse(&folder.file(FILE), [(DEFAULT.to_owned(), source)], tokens);
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let Some(file) = JsonFile::read_if_any(folder, name)? else { continue };
            let Some(field) = file.field("chat_template") else { continue };
            return ChatTemplate::parse(&file.file, named_templates(&file, field)?, tokens);
        }
        Err(TemplateError::Missing {
            model: folder.path().into_owned(),
            looked: "neither chat_template.jinja nor `chat_template` in tokenizer_config.json or chat_template.json",
        })
    }

    /// The template that a GGUF file carries.
    ///
    /// # Errors
    /// [`TemplateError`] where there is none, or it cannot be parsed.
    pub fn from_gguf(gguf: &Gguf) -> Result<ChatTemplate, TemplateError> {
        let default = gguf.get::<&str>("tokenizer.chat_template")?.map(|text| (DEFAULT, text));
        let tool_use = gguf.get::<&str>("tokenizer.chat_template.tool_use")?.map(|text| (TOOL_USE, text));
        if default.is_none() {
            return Err(TemplateError::Missing {
                model: gguf.file().to_owned(),
                looked: "metadata key \"tokenizer.chat_template\" is missing",
            });
        }
        let sources = default.into_iter().chain(tool_use);
        let sources = sources.map(|(name, text)| (name.to_owned(), text.to_owned()));
        ChatTemplate::parse(gguf.file(), sources, NamedTokens::from_gguf(gguf)?)
    }

    /// The template in `file`, for a model whose tokens are `tokens`.
    ///
    /// # Errors
    /// [`TemplateError`] where it cannot be read or parsed.
    pub fn from_file(file: &Path, tokens: NamedTokens) -> Result<ChatTemplate, TemplateError> {
        let source = read_text(file)?;
        ChatTemplate::parse(file, [(DEFAULT.to_owned(), source)], tokens)
    }

    fn parse(
        file: &Path,
        sources: impl IntoIterator<Item = (String, String)>,
        tokens: NamedTokens,
    ) -> Result<ChatTemplate, TemplateError> {
        let origin = file.display().to_string();
        let syntax =
            |error: Error| TemplateError::Syntax { origin: origin.clone(), reason: with_sources(&error) };
        let mut environment = environment().map_err(syntax)?;
        for (name, source) in sources {
            environment.add_template_owned(name, without_generation_blocks(&source)).map_err(syntax)?;
        }
        Ok(ChatTemplate { environment, origin, tokens })
    }

    /// Renders a conversation: a list of messages as the OpenAI API has them, or an object with `messages` and other
    /// variables, such as `tools`. Variables of the object take the place of those that are set here:
    /// `add_generation_prompt`, and `bos_token` and others as the tokenizer names them.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] with the template's words where it raises an error, [`TemplateError::Render`] where
    /// it fails, [`TemplateError::Conversation`] where `conversation` is none.
    pub fn render(
        &self,
        conversation: &Json,
        generation_prompt: GenerationPrompt,
    ) -> Result<String, TemplateError> {
        let variables = self.variables(conversation, generation_prompt)?;
        let has_tools = variables["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        let tool_use = has_tools.then(|| self.environment.get_template(TOOL_USE).ok()).flatten();
        let template = match tool_use {
            Some(template) => Ok(template),
            None => self.environment.get_template(DEFAULT),
        };
        template
            .and_then(|template| template.render(Value::from_pairs(values(variables))))
            .map_err(|error| self.render_error(&error))
    }

    fn variables(
        &self,
        conversation: &Json,
        generation_prompt: GenerationPrompt,
    ) -> Result<Map<String, Json>, TemplateError> {
        let mut variables = Map::new();
        variables.insert("tools".to_owned(), Json::Null);
        variables.insert("documents".to_owned(), Json::Null);
        let add = generation_prompt == GenerationPrompt::Add;
        variables.insert("add_generation_prompt".to_owned(), Json::Bool(add));
        let NamedTokens { bos, eos, unk, pad } = &self.tokens;
        for (name, token) in [("bos_token", bos), ("eos_token", eos), ("unk_token", unk), ("pad_token", pad)]
        {
            if let Some(token) = token {
                variables.insert(name.to_owned(), Json::String(token.clone()));
            }
        }
        match conversation {
            Json::Array(_) => {
                variables.insert("messages".to_owned(), conversation.clone());
            }
            Json::Object(object) if object.get("messages").is_some_and(Json::is_array) => {
                variables.extend(object.clone());
            }
            other => return Err(TemplateError::Conversation { got: describe(other) }),
        }
        Ok(variables)
    }

    fn render_error(&self, error: &Error) -> TemplateError {
        let origin = self.origin.clone();
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = source {
            if let Some(Raised(message)) = cause.downcast_ref() {
                return TemplateError::Refused { origin, message: message.clone() };
            }
            source = cause.source();
        }
        TemplateError::Render { origin, reason: with_sources(error) }
    }
}

/// `chat_template` is one template, or a list of named ones.
fn named_templates(file: &JsonFile, field: &Json) -> Result<Vec<(String, String)>, FileError> {
    let wrong = || {
        file.wrong(
            "chat_template",
            "a template, or a list of {name, template} with one called default",
            field,
        )
    };
    let templates = match field {
        Json::String(source) => vec![(DEFAULT.to_owned(), source.clone())],
        Json::Array(list) => {
            let entry = |entry: &Json| -> Option<(String, String)> {
                Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()))
            };
            list.iter().map(|value| entry(value).ok_or_else(wrong)).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    if templates.iter().any(|(name, _)| name == DEFAULT) { Ok(templates) } else { Err(wrong()) }
}

fn values(object: Map<String, Json>) -> impl Iterator<Item = (String, Value)> {
    object.into_iter().map(|(key, value)| (key, value_of(value)))
}

fn value_of(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Value::from(integer),
            (None, Some(integer), _) => Value::from(integer),
            (None, None, float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(list) => Value::from(list.into_iter().map(value_of).collect::<Vec<Value>>()),
        Json::Object(object) => Value::from_pairs(values(object)),
    }
}

fn describe(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a truth value",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object without a list `messages`",
    }
}

/// Jinja as transformers sets it up.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::print);
    minijinja_contrib::add_to_environment(&mut environment);
    environment.add_filter("length", python::length);
    environment.add_filter("count", python::length);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        time::strftime(SystemTime::now(), format)
            .map_err(|problem| Error::new(ErrorKind::InvalidOperation, problem))
    });
    Ok(environment)
}

/// Replaces `{% generation %}` blocks, which mark the assistant's words for training, by blocks without effect.
fn without_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, block) = rest.split_at(start + 2);
        result.push_str(before);
        let Some(end) = block.find("%}") else {
            rest = block;
            break;
        };
        let (inside, after) = block.split_at(end);
        let word = inside.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        match word {
            "generation" => result.push_str(&inside.replace(word, "if true")),
            "endgeneration" => result.push_str(&inside.replace(word, "endif")),
            _ => result.push_str(inside),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

/// An error with all that caused it, on one line.
fn with_sources(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_are_transparent() {
        let source = "a{%- generation -%} b {% endgeneration %}c{% if x %}{{ '%}' }}{% endif %}{%";
        let expected = "a{%- if true -%} b {% endif %}c{% if x %}{{ '%}' }}{% endif %}{%";
        assert_eq!(without_generation_blocks(source), expected);
    }
}
