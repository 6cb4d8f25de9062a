//! `mantissa bench`: speed against what the machine can do.

mod compare;
mod generation;
mod report;
mod sweep;

use std::path::Path;

use anyhow::Result;
use mantissa_lab::bench::record::{self, Record};

use crate::context::Context;
use crate::output;

/// Arguments of `mantissa bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = generation::HELP)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,

    #[command(flatten)]
    generation: generation::Args,
}

/// What is measured or compared beside a model's generation. A model in a folder of one of these names is `./matmul`.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Measure matrix products of few rows by themselves, in every variant there is
    Matmul(sweep::MatmulArgs),
    /// Measure attention by itself, in every variant there is
    Attention(sweep::AttentionArgs),
    /// Say what became slower between two files of measurements, beyond noise
    Compare(compare::Args),
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    match &args.other {
        None => generation::run(&args.generation, context),
        Some(Other::Matmul(args)) => sweep::matmul(args, context),
        Some(Other::Attention(args)) => sweep::attention(args, context),
        Some(Other::Compare(args)) => compare::run(args),
    }
}

/// Writes measurements to a file, whole or not at all.
fn write_csv(path: &Path, records: &[Record]) -> Result<()> {
    output::write_atomically(path, |file| Ok(record::write(records, file)?))
}
