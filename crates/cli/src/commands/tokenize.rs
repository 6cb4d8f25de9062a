//! `mantissa tokenize`.

use anyhow::{Result, bail};

use crate::context::Context;

/// Arguments of `mantissa tokenize`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Carries the command out.
pub fn run(_args: &Args, _context: &Context) -> Result<()> {
    bail!("not there yet")
}
