//! `mantissa template`: a conversation rendered with the chat template.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use mantissa::model::template::GenerationPrompt;
use serde_json::Value;

use crate::commands::tokenize::read_text;
use crate::context::Context;
use crate::model::ModelArg;
use crate::output;

/// Arguments of `mantissa template`.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "\
Examples:
  mantissa template chat.json
  mantissa template ./Qwen2.5-0.5B-Instruct chat.json
  mantissa template model.gguf - --no-generation-prompt < chat.json

CHAT.json is a list of messages as the OpenAI API has them, or an object with `messages` and other variables of the \
template, such as `tools`. The rendered text is printed exactly, without a line end of its own.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// The conversation; - for standard input
    #[arg(value_name = "CHAT.json")]
    chat: PathBuf,

    /// Do not append the beginning of the assistant's answer
    #[arg(long)]
    no_generation_prompt: bool,

    /// A template to use instead of the model's
    #[arg(long, value_name = "FILE.jinja")]
    template: Option<PathBuf>,
}

/// Carries the command out.
pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let chat: Value = serde_json::from_str(&read_text(&args.chat)?)
        .with_context(|| format!("{} is no JSON", args.chat.display()))?;
    let model = args.model.locate()?;
    let template = match &args.template {
        Some(file) => mantissa::chat_template_from_file(model, file)?,
        None => mantissa::open_chat_template(model)?,
    };
    let generation = if args.no_generation_prompt { GenerationPrompt::Omit } else { GenerationPrompt::Add };
    let text = template.render(&chat, generation)?;
    let mut out = output::raw_stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
