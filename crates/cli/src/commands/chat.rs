//! `mantissa chat`: a conversation.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use mantissa::engine::sequence::FinishReason;
use mantissa::model::template::{ChatTemplate, GenerationPrompt};
use mantissa::{Flow, GenerateOptions, Generator, Options, Prompt};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use crate::context::Context;
use crate::model::{self, ModelArgs};
use crate::sampling::SamplingArgs;
use crate::{environment, output, stats};

/// Arguments of `mantissa chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa chat ./Qwen2.5-0.5B-Instruct
  mantissa chat Qwen/Qwen2.5-0.5B-Instruct --system \"Answer in French.\" --policy f16

Ctrl-C ends an answer, Ctrl-D the conversation. Type /help for commands.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Instructions for the model that come before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Tokens of one answer at most; as many as the context has room for, if not given
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<usize>,

    /// End an answer before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// Tokens of the whole conversation; 4096 if not given, or fewer where the model was made for fewer
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Print speed and memory after every answer
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "\
/help           this list
/reset          forget the conversation
/system TEXT    give new instructions and forget the conversation; without a text, drop them
/exit           leave, as Ctrl-D does
Ctrl-C ends an answer.";

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let model = args.model.open()?;
    // Before the weights are loaded: a model without a template cannot chat.
    let template = model.chat_template()?;
    let options = Options { context: args.context, overflow: args.model.overflow(), ..context.options()? };
    let generator = model::prepare(&model, &options, context)?;
    let mut chat = Chat { args, context, options, template, generator, messages: Vec::new() };
    chat.reset(args.system.as_deref());
    if std::io::stdin().is_terminal() { chat.talk() } else { chat.answer_lines() }
}

/// A conversation.
struct Chat<'a> {
    args: &'a Args,
    context: &'a Context,
    options: Options,
    template: ChatTemplate,
    generator: Generator,
    messages: Vec<Value>,
}

/// What a line that was typed leads to.
enum Next {
    /// The next line.
    Line,
    /// The end.
    Exit,
}

impl Chat<'_> {
    /// With a person at a terminal: line editing, history, and errors that do not end the conversation.
    fn talk(&mut self) -> Result<()> {
        let mut editor = DefaultEditor::new().context("cannot set up line editing")?;
        let history = environment::history_file();
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        writeln!(output::stderr(), "Type a message, or /help. Ctrl-D ends the conversation.")?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
                Err(error) => return Err(error).context("cannot read a line"),
            };
            if !line.trim().is_empty() {
                editor.add_history_entry(line.trim()).context("cannot remember the line")?;
            }
            match self.line(&line) {
                Ok(Next::Line) => {}
                Ok(Next::Exit) => break,
                Err(error) => {
                    output::report(&error);
                }
            }
        }
        if let Some(path) = history {
            save_history(&mut editor, &path);
        }
        Ok(())
    }

    /// With a program at the other end of a pipe: every line is a message; the first error ends the conversation.
    fn answer_lines(&mut self) -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            let line = line.context("cannot read standard input")?;
            if let Next::Exit = self.line(&line)? {
                break;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<Next> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => {}
            "/help" => writeln!(output::stderr(), "{HELP}")?,
            "/exit" | "/quit" => return Ok(Next::Exit),
            "/reset" => {
                let system = self.system().map(str::to_owned);
                self.reset(system.as_deref());
            }
            "/system" => self.reset(Some(rest.trim()).filter(|text| !text.is_empty())),
            command if command.starts_with('/') => {
                anyhow::bail!("there is no command {command}; /help lists them")
            }
            _ => self.answer(line)?,
        }
        Ok(Next::Line)
    }

    fn system(&self) -> Option<&str> {
        let first = self.messages.first()?;
        if first["role"] == "system" { first["content"].as_str() } else { None }
    }

    fn reset(&mut self, system: Option<&str>) {
        self.messages.clear();
        if let Some(text) = system {
            self.messages.push(json!({"role": "system", "content": text}));
        }
    }

    /// Asks the model and prints its answer. The question is forgotten where there is no answer.
    fn answer(&mut self, question: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": question}));
        match self.generate() {
            Ok(text) => {
                self.messages.push(json!({"role": "assistant", "content": text}));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    fn generate(&mut self) -> Result<String> {
        let text = self.template.render(&Value::Array(self.messages.clone()), GenerationPrompt::Add)?;
        let options = GenerateOptions {
            sampling: self.args.sampling.options(),
            max_tokens: self.args.max_tokens.unwrap_or(usize::MAX),
            stop: self.args.stop.clone(),
            ..GenerateOptions::default()
        };
        let guard = self.context.interrupt.guard();
        let mut failed = None;
        let done = self.generator.generate(Prompt::Rendered(text), &options, |piece| {
            let mut out = output::raw_stdout();
            if let Err(error) = write!(out, "{piece}").and_then(|()| out.flush()) {
                failed.get_or_insert(error);
            }
            if failed.is_some() || guard.requested() { Flow::Cancel } else { Flow::Continue }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        writeln!(output::raw_stdout())?;
        if done.finish_reason == FinishReason::Context {
            writeln!(output::stderr(), "The context is full: /reset, or start with a larger --context.")?;
        }
        if self.args.stats {
            stats::Summary::new(&self.generator, std::slice::from_ref(&done)).print(&self.options);
        }
        Ok(done.text.unwrap_or_default())
    }
}

/// Keeps the lines for the next conversation; one that cannot is not worth an error.
fn save_history(editor: &mut DefaultEditor, path: &PathBuf) {
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    let _ = editor.save_history(path);
}
