//! The `mantissa` command: the only place that reads the environment and picks a backend.

mod args;
mod commands;
mod context;
mod environment;
mod ids;
mod interrupt;
mod memory;
mod model;
mod output;
mod sampling;
mod stats;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::context::Context;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.global.color.write_global();
    let outcome = Context::new(&cli.global).and_then(|context| commands::run(&cli.command, &context));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error),
    }
}
