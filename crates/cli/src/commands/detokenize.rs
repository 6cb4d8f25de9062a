//! `mantissa detokenize`: token ids in, text out.

use std::io::Write;

use anyhow::{Result, bail};
use mantissa::model::tokenizer::DecodeSpecial;

use crate::context::Context;
use crate::ids::IdsArgs;
use crate::model::ModelArg;
use crate::output;

/// Arguments of `mantissa detokenize`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  mantissa detokenize ./Qwen2.5-0.5B --ids 9707,11,1879\n\nThe text is printed exactly, without a line end of its own."
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    ids: IdsArgs,

    /// Leave special tokens out
    #[arg(long)]
    skip_special: bool,
}

/// Carries the command out.
pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let Some(ids) = args.ids.read()? else {
        bail!("no tokens: give --ids 1,2,3 or --ids-file FILE");
    };
    let tokenizer = mantissa::open_tokenizer(args.model.locate()?)?;
    let special = if args.skip_special { DecodeSpecial::Skip } else { DecodeSpecial::Keep };
    let text = tokenizer.decode(&ids, special)?;
    let mut out = output::raw_stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
