//! `mantissa eval`: what a policy does to a model, judged by text.

mod haiku;
mod perplexity;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;

/// Arguments of `mantissa eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    judge: Judge,
}

/// By what a policy is judged.
#[derive(Debug, Subcommand)]
enum Judge {
    /// How well the model predicts a text, and how far one policy is from another
    Perplexity(perplexity::Args),
    /// Whether haiku that the model writes have their form
    Haiku(haiku::Args),
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    match &args.judge {
        Judge::Perplexity(args) => perplexity::run(args, context),
        Judge::Haiku(args) => haiku::run(args, context),
    }
}
