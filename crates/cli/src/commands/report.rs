//! `mantissa report`: everything that is measured, in one document.

mod folder;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use mantissa::Options;
use mantissa::eval::{haiku, syllables};
use mantissa::numerics::{PrecisionPolicy, Preset};
use mantissa_lab::machine::Machine;
use mantissa_lab::report::{Extent, Made, Report, Study, Text};
use time::OffsetDateTime;

use crate::args::at_least_one;
use crate::commands::tokenize::read_text;
use crate::context::Context;
use crate::measuring::{self, Measuring};
use crate::model::ModelArgs;
use crate::table::{self, Column};
use crate::{environment, output};
use folder::{Existing, Folder};

/// Contexts where none are named.
const CONTEXTS: [usize; 3] = [512, 8192, 32_768];
/// Words that haiku are asked about where none are named.
const WORDS: usize = 20;

/// Arguments of `mantissa report`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa report --output report                              the built-in model under every preset
  mantissa report --output report --quick                      in a minute or so, with less of everything
  mantissa report ./qwen --output qwen-report --budget 600     more time for long contexts on a slow machine
  mantissa report Qwen/Qwen2.5-0.5B-Instruct --output r --policy f32 --policy bf16 --text book.txt

The folder gets report.md with its plots, report.json, and measurements.csv with every number; it is there whole or not at
all. Policies stand side by side in latency, speed, memory, bytes moved, error against the f64 reference, perplexity and KL
divergence from f32, haiku, and in where the time goes; then each target is said to be met or missed. What this machine or
model cannot do, or what would take longer than --budget, is named with the reason. docs/measuring.md explains the numbers.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,

    /// Replace a report that is there; any other folder with something in it is left alone
    #[arg(long)]
    force: bool,

    /// Tokens of context to measure speed and memory at; 512, 8192 and 32768 where none are given
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    contexts: Vec<NonZeroUsize>,

    /// Seconds that speed at one context may take under one policy; longer contexts are left out, and that is said
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = at_least_one)]
    budget: NonZeroUsize,

    /// How often to time each prompt, at most, and decoding behind it; 3 if not given
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    repetitions: Option<NonZeroUsize>,

    /// Tokens to generate in each timed window
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_one)]
    generate: NonZeroUsize,

    /// A text to predict, for perplexity and KL divergence; the beginning of a novel that is built in if not given
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Windows of 512 tokens of the text to predict, at most; 24 if not given
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    windows: Option<NonZeroUsize>,

    /// A word to ask for a haiku about; may be repeated. 20 words that the built-in model was never asked about, if not
    /// given
    #[arg(long, value_name = "WORD")]
    word: Vec<String>,

    /// Tokens to hold against the f64 reference, which is slow; 16 if not given
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    reference_tokens: Option<NonZeroUsize>,

    /// Measure less: the shortest context alone, once, and fewer windows, words and tokens
    #[arg(long)]
    quick: bool,

    /// Print what report.json holds, as well
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    // Before minutes of measurements.
    let existing = if args.force { Existing::ReplaceReport } else { Existing::Keep };
    let folder = Folder::check(&args.output, existing)?;
    let model = args.model.open()?;
    let options = Options { overflow: args.model.overflow(), ..context.options_under(None) };
    let backend = options.backend()?;
    let policies: Vec<PrecisionPolicy> = match context.policies.as_slice() {
        [] => Preset::ALL.map(Preset::policy).to_vec(),
        policies => policies.to_vec(),
    };
    let progress = Measuring::start(context);
    let study = Study {
        model: &model,
        backend: &*backend,
        options,
        policies,
        contexts: args.contexts(),
        extent: args.extent(),
        text: args.text()?,
        words: args.words()?,
        made: Made {
            machine: Machine::new(&backend.info(), &measuring::build()),
            date: today(),
            command: environment::command_line(),
        },
        progress: &progress,
    };
    let report = study.run()?;
    let files = report.files()?;
    folder.write(&files)?;
    progress.finish();
    if args.json {
        output::json(&report)?;
    } else {
        print(&report, &args.output)?;
    }
    let nothing = |policy: &mantissa_lab::report::UnderPolicy| {
        policy.contexts.iter().all(|at| at.speed.value().is_none())
    };
    if report.policies.iter().all(nothing) {
        bail!("speed was measured under no policy; {} says why", args.output.join("report.md").display());
    }
    Ok(())
}

impl Args {
    /// The contexts, the shortest first.
    fn contexts(&self) -> Vec<usize> {
        let mut contexts: Vec<usize> = match self.contexts.as_slice() {
            [] => CONTEXTS.to_vec(),
            asked => asked.iter().map(|context| context.get()).collect(),
        };
        contexts.sort_unstable();
        contexts.dedup();
        if self.quick {
            contexts.truncate(1);
        }
        contexts
    }

    fn extent(&self) -> Extent {
        let or = |asked: Option<NonZeroUsize>, usual: usize, quick: usize| {
            asked.map_or(if self.quick { quick } else { usual }, NonZeroUsize::get)
        };
        Extent {
            generate: self.generate.get(),
            repetitions: or(self.repetitions, 3, 1),
            windows: or(self.windows, 24, 4),
            reference_tokens: or(self.reference_tokens, 16, 8),
            budget: self.budget.get() as f64,
        }
    }

    fn text(&self) -> Result<Text> {
        let Some(path) = &self.text else { return Ok(Text::built_in()) };
        let content = read_text(path)?;
        if content.is_empty() {
            bail!("{} is empty: there is nothing to predict", path.display());
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Text { name, content })
    }

    fn words(&self) -> Result<Vec<String>> {
        if let Some(word) = self.word.iter().find(|word| syllables::words(word).next().is_none()) {
            bail!("{word:?} is no word: there is no letter in it");
        }
        let words: Vec<String> = match self.word.as_slice() {
            [] => haiku::held_out_words().map(str::to_owned).take(WORDS).collect(),
            asked => asked.to_vec(),
        };
        let most = if self.quick { WORDS / 4 } else { words.len() };
        Ok(words.into_iter().take(most).collect())
    }
}

/// The day, by the calendar of UTC.
fn today() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{:04}-{:02}-{:02}", now.year(), u8::from(now.month()), now.day())
}

/// Says where the report is, and what became of the targets.
fn print(report: &Report, folder: &Path) -> Result<()> {
    let columns = [Column::text("verdict"), Column::text("what"), Column::text("found")];
    let row = |target: &mantissa_lab::report::Target| {
        vec![target.verdict.name().to_owned(), target.what.clone(), target.found.clone()]
    };
    let rows: Vec<Vec<String>> = report.targets.iter().map(row).collect();
    if !rows.is_empty() {
        table::print(&columns, &rows)?;
        writeln!(output::stdout())?;
    }
    writeln!(output::stdout(), "{}", folder.join("report.md").display())?;
    Ok(())
}
