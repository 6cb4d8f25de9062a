//! The commands, one file each.

mod bench;
mod chat;
mod completions;
mod detokenize;
mod dtypes;
mod eval;
mod inspect;
mod logits;
mod parity;
mod plan;
mod profile;
mod report;
mod run;
mod synth;
mod template;
mod tokenize;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text from a prompt, and say how fast it went
    Run(run::Args),
    /// Talk with a model
    Chat(chat::Args),
    /// Show what is in a model and what each policy would cost
    Inspect(inspect::Args),
    /// Show every step that would be computed: its contract, kernel, bytes and operations
    Plan(plan::Args),
    /// Show which number formats each kernel supports
    Dtypes(dtypes::Args),
    /// Write the logits of given tokens, and the hidden states, to a safetensors file
    Logits(logits::Args),
    /// Turn text into token ids
    Tokenize(tokenize::Args),
    /// Turn token ids into text
    Detokenize(detokenize::Args),
    /// Render a conversation with the model's chat template
    Template(template::Args),
    /// Judge a policy by text: perplexity, and distance from another policy
    Eval(eval::Args),
    /// Show where the time of a prompt and of a token goes
    Profile(profile::Args),
    /// Check computed numbers against f64: kernel by kernel, and layer by layer
    Parity(parity::Args),
    /// Measure speed against what the machine can do
    Bench(bench::Args),
    /// Write one document with everything that is measured, policies side by side
    Report(report::Args),
    /// Write a checkpoint of a known shape with random weights
    Synth(synth::Args),
    /// Print completions for a shell
    Completions(completions::Args),
}

/// Carries a command out.
pub fn run(command: &Command, context: &Context) -> Result<()> {
    match command {
        Command::Run(args) => run::run(args, context),
        Command::Chat(args) => chat::run(args, context),
        Command::Inspect(args) => inspect::run(args, context),
        Command::Plan(args) => plan::run(args, context),
        Command::Dtypes(args) => dtypes::run(args, context),
        Command::Logits(args) => logits::run(args, context),
        Command::Tokenize(args) => tokenize::run(args, context),
        Command::Detokenize(args) => detokenize::run(args, context),
        Command::Template(args) => template::run(args, context),
        Command::Eval(args) => eval::run(args, context),
        Command::Profile(args) => profile::run(args, context),
        Command::Parity(args) => parity::run(args, context),
        Command::Bench(args) => bench::run(args, context),
        Command::Report(args) => report::run(args, context),
        Command::Synth(args) => synth::run(args, context),
        Command::Completions(args) => completions::run(args, context),
    }
}
