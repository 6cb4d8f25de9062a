//! `mantissa completions`: what a shell needs to complete commands and options.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::context::Context;
use crate::output;

/// Arguments of `mantissa completions`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  mantissa completions bash > ~/.local/share/bash-completion/completions/mantissa"
)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Carries the command out.
pub fn run(args: &Args, _context: &Context) -> Result<()> {
    // Into memory first: clap_complete panics where the stream it writes to is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mantissa", &mut script);
    output::stdout().write_all(&script)?;
    Ok(())
}
