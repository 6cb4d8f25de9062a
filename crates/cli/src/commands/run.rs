//! `mantissa run`: text generated from a prompt.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use mantissa::engine::sequence::{EndOfText, FinishReason};
use mantissa::model::template::GenerationPrompt;
use mantissa::{Completion, Flow, GenerateOptions, Generator, Location, Model, Prompt};
use serde_json::{Value, json};

use crate::commands::tokenize::read_text;
use crate::context::Context;
use crate::ids::IdsArgs;
use crate::interrupt::Interrupted;
use crate::model::{self, ModelArgs};
use crate::sampling::SamplingArgs;
use crate::{output, stats};

/// Arguments of `mantissa run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa run
  mantissa run --chat -p \"Write a haiku about rain.\"
  mantissa run ./Qwen2.5-0.5B -p \"Once upon a time\"
  mantissa run Qwen/Qwen2.5-0.5B-Instruct --chat -p \"Why is the sky blue?\" --policy f16
  mantissa run model.gguf -f prompt.txt --greedy --max-tokens 100
  mantissa run ./model -p \"One\" -p \"Two\" --json               two prompts in one batch

The answer goes to standard output; speed, memory and policy go to standard error, on one line. Ctrl-C ends the answer.
Without a model, the built-in one runs, and without a prompt too, it continues \"Once upon a time\".")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Print one JSON object (with several prompts, an array of them) instead of the text
    #[arg(long)]
    json: bool,

    /// Do not measure and print speed and memory
    #[arg(long)]
    no_stats: bool,

    #[command(flatten)]
    prompt: PromptArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    limits: LimitArgs,
}

/// What the built-in model continues where nothing is given: a newcomer sees it write before reading any help.
const DEFAULT_PROMPT: &str = "Once upon a time";

/// What to continue.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prompt")]
struct PromptArgs {
    /// Text to continue; repeat it to run several prompts in one batch; - for standard input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// File with the text to continue; - for standard input
    #[arg(long, short, value_name = "FILE")]
    file: Vec<PathBuf>,

    #[command(flatten)]
    ids: IdsArgs,

    /// Put the prompt into the model's chat template, as a message of the user
    #[arg(long)]
    chat: bool,

    /// Instructions for the model that come before the user's message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
}

/// When to end.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Length")]
struct LimitArgs {
    /// Tokens to generate at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// Go on after end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,

    /// Tokens of prompt and answer together; as many as they need, if not given
    #[arg(long, value_name = "N")]
    context: Option<usize>,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let model = args.model.open()?;
    let default = args.prompt.default_of(&model);
    let prompts = match default {
        Some(text) => vec![Prompt::from(text)],
        None => args.prompt.read(&model)?,
    };
    let options = GenerateOptions {
        sampling: args.sampling.options(),
        max_tokens: args.limits.max_tokens,
        stop: args.limits.stop.clone(),
        end_of_text: if args.limits.ignore_eos { EndOfText::Ignore } else { EndOfText::Stop },
    };
    let prepared = mantissa::Options {
        context: Some(args.limits.context(&model, &prompts)?),
        sequences: Some(prompts.len()),
        overflow: args.model.overflow(),
        ..context.options()?
    };
    let mut generator = model::prepare(&model, &prepared, context)?;
    // Nobody typed the default prompt: without it, the answer would begin in the middle of a sentence.
    let lead = default.unwrap_or_default();
    let completions = args.generate(&mut generator, &prompts, lead, &options, context)?;
    if args.json {
        let objects: Vec<Value> = completions.iter().map(|done| object(done, &generator)).collect();
        match objects.as_slice() {
            [one] => output::json(one)?,
            all => output::json(&all)?,
        }
    }
    if !args.no_stats {
        let summary = stats::Summary::new(&generator, &completions);
        // The weights leave before the measurement of the bandwidth adds a buffer, so that the peak stays theirs.
        drop(generator);
        summary.print(&prepared);
    }
    if completions.iter().any(|done| done.finish_reason == FinishReason::Cancelled) {
        return Err(Interrupted.into());
    }
    Ok(())
}

impl Args {
    /// Generates, and prints on the way where that is wanted: an answer that is printed alone after `lead`.
    fn generate(
        &self,
        generator: &mut Generator,
        prompts: &[Prompt],
        lead: &str,
        options: &GenerateOptions,
        context: &Context,
    ) -> Result<Vec<Completion>> {
        let guard = context.interrupt.guard();
        let stream = !self.json && prompts.len() == 1;
        let mut printed = Printer::default();
        if stream {
            printed.text(lead);
        }
        let outcome = generator.generate_batch(prompts, options, |piece| {
            if stream {
                printed.text(piece.text);
            }
            if guard.requested() || printed.failed.is_some() { Flow::Cancel } else { Flow::Continue }
        });
        printed.end()?;
        let completions = outcome?;
        match completions.as_slice() {
            _ if self.json => {}
            [done] if done.text.is_some() => {}
            [done] => writeln!(output::raw_stdout(), "{}", text_or_ids(done))?,
            all => print_all(all)?,
        }
        Ok(completions)
    }
}

impl PromptArgs {
    /// The prompts, of whichever kind were given.
    fn read(&self, model: &Model) -> Result<Vec<Prompt>> {
        let ids = self.ids.read()?;
        let mut texts = Vec::new();
        for text in &self.prompt {
            texts.push(if text == "-" { read_text(Path::new("-"))? } else { text.clone() });
        }
        for path in &self.file {
            texts.push(read_text(path)?);
        }
        match ids {
            Some(_) if !texts.is_empty() => bail!("give token ids or text as the prompt, not both"),
            Some(_) if self.chat => {
                bail!("--chat takes a text: give -p TEXT or -f FILE instead of token ids")
            }
            Some(ids) => Ok(vec![Prompt::Ids(ids)]),
            None if texts.is_empty() => bail!("no prompt: give -p TEXT, -f FILE or --ids 1,2,3"),
            None if texts.iter().any(String::is_empty) => bail!("the prompt is empty"),
            None if self.chat => texts.iter().map(|text| self.rendered(model, text)).collect(),
            None => Ok(texts.into_iter().map(Prompt::Text).collect()),
        }
    }

    /// What to continue where nothing was given and the model is the built-in one.
    fn default_of(&self, model: &Model) -> Option<&'static str> {
        let texts = !self.prompt.is_empty() || !self.file.is_empty();
        let ids = self.ids.ids.is_some() || self.ids.ids_file.is_some();
        let built_in = matches!(model.location(), Location::Embedded(_));
        (built_in && !texts && !ids && !self.chat).then_some(DEFAULT_PROMPT)
    }

    fn rendered(&self, model: &Model, text: &str) -> Result<Prompt> {
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": text}));
        let text = model.chat_template()?.render(&Value::Array(messages), GenerationPrompt::Add)?;
        Ok(Prompt::Rendered(text))
    }
}

impl LimitArgs {
    /// The context to prepare: what the longest prompt and its answer need, unless it was given.
    fn context(&self, model: &Model, prompts: &[Prompt]) -> Result<usize> {
        if let Some(context) = self.context {
            return Ok(context);
        }
        let mut longest = 1;
        for prompt in prompts {
            longest = longest.max(model.encode(prompt)?.len());
        }
        Ok(longest.saturating_add(self.max_tokens).min(model.config().max_position_embeddings))
    }
}

/// Prints a stream of text. Keeps the first error instead of failing in the middle of a generation.
#[derive(Default)]
struct Printer {
    failed: Option<std::io::Error>,
    /// Whether the last character printed ended a line; nothing was printed if unset.
    at_line_start: Option<bool>,
}

impl Printer {
    fn text(&mut self, text: &str) {
        if let Err(error) = self.write(text) {
            self.failed.get_or_insert(error);
        }
    }

    fn write(&mut self, text: &str) -> std::io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.at_line_start = Some(text.ends_with('\n'));
        let mut out = output::raw_stdout();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Ends the line.
    fn end(&mut self) -> Result<()> {
        if self.failed.is_none() && self.at_line_start == Some(false) {
            writeln!(output::raw_stdout())?;
        }
        match self.failed.take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Prints the answers to several prompts, each under its number.
fn print_all(completions: &[Completion]) -> Result<()> {
    let mut out = output::raw_stdout();
    for (index, done) in completions.iter().enumerate() {
        writeln!(out, "[{}]", index + 1)?;
        writeln!(out, "{}", text_or_ids(done))?;
    }
    Ok(())
}

/// The text, or the ids where the model has no tokenizer.
fn text_or_ids(done: &Completion) -> String {
    match &done.text {
        Some(text) => text.clone(),
        None => done.ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
    }
}

fn object(done: &Completion, generator: &Generator) -> Value {
    let timings = &done.timings;
    json!({
        "ids": done.ids,
        "text": done.text,
        "finish_reason": done.finish_reason,
        "timings": {
            "prompt_tokens": timings.prompt_tokens,
            "generated_tokens": timings.generated_tokens,
            "prefill_seconds": timings.prefill_seconds,
            "decode_seconds": timings.decode_seconds,
            "first_token_seconds": timings.first_token_seconds,
        },
        "policy": generator.plan().policy.to_string(),
        "seed": done.seed,
    })
}
