//! The `mantissa` command: the only place that reads the environment and picks a backend.

mod args;
mod commands;
mod context;
mod environment;
mod ids;
mod interrupt;
mod measuring;
mod model;
mod output;
mod sampling;
mod stats;
mod table;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Gpu};
use crate::context::Context;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli.global.color.write_global();
    name_unknown_variables();
    let outcome = Context::new(&cli.global, Gpu::written(&matches))
        .and_then(|context| commands::run(&cli.command, &context));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error),
    }
}

/// Says which variables of the environment look like this program's and mean nothing to it.
fn name_unknown_variables() {
    let command = Cli::command();
    let known: Vec<_> =
        command.get_arguments().filter_map(|argument| argument.get_env()).map(Into::into).collect();
    for name in environment::unknown_variables(&known) {
        // Nothing depends on this line: where it cannot be written, the result is the same.
        let _ = writeln!(output::stderr(), "warning: {name} means nothing to this program; is it misspelt?");
    }
}
