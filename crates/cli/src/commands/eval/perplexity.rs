//! `mantissa eval perplexity`: how well the model predicts a text under one policy, and how far that is from another.

mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mantissa::engine::evaluation::WindowRule;
use mantissa::eval::{Evaluated, Perplexity, Predictions};
use mantissa::model::hub::RepoId;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::backend::OverflowRule;
use mantissa::{Flow, Generator, Location, LogitRows, Model, Options};

use crate::args::at_least_one;
use crate::commands::tokenize::read_text;
use crate::context::{self, Context};
use crate::interrupt::{Guard, Interrupted};
use crate::{model, output};
use report::{Report, Under};

/// Tokens of a window where nothing is said, as far as the model goes.
const CONTEXT: usize = 512;

/// Arguments of `mantissa eval perplexity`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "mantissa eval perplexity [OPTIONS] [MODEL] FILE...",
    after_help = "\
Examples:
  mantissa eval perplexity book.txt                                        the built-in model under bf16
  mantissa eval perplexity ./Qwen2.5-0.5B book.txt --policy f16 --against f32
  mantissa eval perplexity book.txt --policy bf16,kv_cache=f8e4m3 --against bf16 --json

Perplexity is exp of the mean negative log-likelihood of the predicted tokens, as llama.cpp's llama-perplexity defines \
it: the text is cut into windows of --context tokens, the first of which gives way to the BOS token where the tokenizer \
puts one before a text, and the second half of each window is predicted (of 512 tokens the last 255). With --stride S a \
window starts every S tokens and its last S tokens are predicted, as with --ppl-stride S there; but llama.cpp enlarges \
the context by S/2 then, so that its -c 512 --ppl-stride 256 is --context 640 --stride 256 here. Errors are one standard \
error.

With --against, every prediction is compared: the KL divergence of the policy's distribution from the reference's, in \
nats, the ratio of the perplexities, and how often both find the same token the most probable. docs/precision.md has the \
definitions in full."
)]
pub struct Args {
    /// Texts, with the model before them: a folder, a .gguf file, a Hugging Face repository or mantissa-tiny, which is
    /// built in and used where no model is named. A single name is always a text; - is standard input
    #[arg(value_name = "FILE", required = true)]
    names: Vec<String>,

    /// A policy to compare with, such as f32
    #[arg(long, value_name = "P")]
    against: Option<String>,

    /// Tokens of a window; 512 if not given, or as many as the model takes
    #[arg(long, short, value_name = "N")]
    context: Option<usize>,

    /// Start a window every so many tokens, and predict so many at its end
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    stride: Option<NonZeroUsize>,

    /// Windows of each text at most
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    windows: Option<NonZeroUsize>,

    /// Load weights that are too large for the policy's format as its largest value, instead of refusing them
    #[arg(long)]
    allow_saturation: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (model, files) = split(&args.names);
    let texts = files.iter().map(|file| text(file)).collect::<Result<Vec<_>>>()?;
    let against =
        args.against.as_deref().map(|text| context::policy(text).context("--against")).transpose()?;
    let options = context.options()?;
    let model = Model::open(model.map_or(Ok(mantissa::BUILT_IN), model::locate)?)?;
    let windows = WindowRule {
        context: args.context.unwrap_or(CONTEXT.min(model.config().max_position_embeddings)),
        stride: args.stride,
        limit: args.windows,
    };
    windows.counted_rows()?;
    let options = Options {
        context: Some(windows.context),
        logits: LogitRows::All,
        overflow: if args.allow_saturation { OverflowRule::Saturate } else { OverflowRule::Refuse },
        ..options
    };
    let prepare = |policy: Option<PrecisionPolicy>| {
        let options = Options { policy: policy.or(options.policy), ..options.clone() };
        model::prepare(&model, &options, context)
    };
    let mut policy = prepare(None)?;
    let mut reference = against.map(|policy| prepare(Some(policy))).transpose()?;
    let measurement =
        Perplexity { policy: &mut policy, reference: reference.as_mut(), windows, threads: context.threads };
    let texts = measure(measurement, &files, &texts, &context.interrupt.guard())?;
    let report = Report {
        model: &model,
        policy: Under::of(&policy),
        reference: reference.as_ref().map(Under::of),
        windows,
        texts: &texts,
    };
    if args.json { output::json(&report.json()) } else { report.print() }
}

/// The model, where the first name is one, and the texts.
fn split(names: &[String]) -> (Option<&str>, Vec<&Path>) {
    let (model, files) = match names {
        [first, rest @ ..] if !rest.is_empty() && is_model(first) => (Some(first.as_str()), rest),
        files => (None, files),
    };
    (model, files.iter().map(Path::new).collect())
}

/// Whether a name before a text means a model: the built-in one, a folder, a GGUF file, or a repository. What could be
/// a repository and is a file, or ends as a text does, is a text.
fn is_model(name: &str) -> bool {
    let path = Path::new(name);
    let ends = |extension: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    let built_in = matches!(mantissa::BUILT_IN, Location::Embedded(folder) if folder.name == name);
    if built_in || path.is_dir() || ends("gguf") {
        return true;
    }
    !path.is_file() && !ends("txt") && name.parse::<RepoId>().is_ok()
}

/// A text that has something in it.
fn text(file: &Path) -> Result<String> {
    if file.is_dir() {
        bail!("{} is a folder: name the text to evaluate on after the model", file.display());
    }
    let text = read_text(file)?;
    if text.is_empty() {
        bail!("{} is empty: there is nothing to predict", file.display());
    }
    Ok(text)
}

/// Measures every text, with a bar.
fn measure(
    mut measurement: Perplexity<'_>,
    files: &[&Path],
    texts: &[String],
    guard: &Guard,
) -> Result<Vec<(PathBuf, Predictions)>> {
    let mut measured = Vec::new();
    for (file, text) in files.iter().zip(texts) {
        let bar = output::count_bar(file.display().to_string(), "windows");
        let on_window = |done: Evaluated| {
            bar.set_length(done.total as u64);
            bar.set_position(done.windows as u64);
            if guard.requested() { Flow::Cancel } else { Flow::Continue }
        };
        let predictions = measurement.measure(text, on_window);
        bar.finish_and_clear();
        if guard.requested() {
            return Err(Interrupted.into());
        }
        measured.push((file.to_path_buf(), predictions.with_context(|| file.display().to_string())?));
    }
    Ok(measured)
}

impl Under {
    /// What a prepared model says of itself.
    fn of(generator: &Generator) -> Under {
        Under { plan: generator.plan().clone(), memory: generator.memory() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_names_may_be_the_model() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().to_str().expect("a name");
        for model in [folder, "model.gguf", "mantissa-tiny", "Qwen/Qwen2.5-0.5B"] {
            let names = names(&[model, "a.txt", "b.txt"]);
            assert_eq!(split(&names), (Some(model), vec![Path::new("a.txt"), Path::new("b.txt")]));
            let alone = [model.to_owned()];
            assert_eq!(split(&alone), (None, vec![Path::new(model)]));
        }
        for text in ["a.txt", "texts/a.txt", "-", "Cargo.toml", "src/main.rs"] {
            let names = names(&[text, "b.txt"]);
            assert_eq!(split(&names), (None, vec![Path::new(text), Path::new("b.txt")]));
        }
    }
}
