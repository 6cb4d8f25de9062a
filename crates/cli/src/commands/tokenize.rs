//! `mantissa tokenize`: text in, token ids out.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mantissa::model::tokenizer::SpecialTokens;

use crate::context::Context;
use crate::model::ModelArg;
use crate::output;

/// Arguments of `mantissa tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa tokenize ./Qwen2.5-0.5B --text \"Hello, world\"
  mantissa tokenize model.gguf --file book.txt --no-special > ids.json

Prints a JSON array. MODEL may also be a folder with nothing but tokenizer files or a .gguf file with nothing but a \
vocabulary.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// File with the text; - for standard input
    #[arg(long, short, value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    file: Option<PathBuf>,

    /// The text
    #[arg(long, short, value_name = "TEXT")]
    text: Option<String>,

    /// Neither add special tokens nor recognise them in the text
    #[arg(long)]
    no_special: bool,
}

/// Carries the command out.
pub fn run(args: &Args, _context: &Context) -> Result<()> {
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => bail!("no text: give --file FILE or --text TEXT"),
    };
    let tokenizer = mantissa::open_tokenizer(args.model.locate()?)?;
    let special = if args.no_special { SpecialTokens::IGNORE } else { SpecialTokens::ADD };
    output::json(&tokenizer.encode(&text, special)?)
}

/// The text of a file, or of standard input where it is `-`; with the place where it is not UTF-8, if there is one.
pub fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    String::from_utf8(bytes).map_err(|error| {
        anyhow::anyhow!(
            "{} is not UTF-8: byte {} starts no character",
            path.display(),
            error.utf8_error().valid_up_to()
        )
    })
}
