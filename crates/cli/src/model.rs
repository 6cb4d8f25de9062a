//! Models as the commands take them: opened with a bar while downloading, prepared with a bar while loading.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use anyhow::Result;
use indicatif::ProgressBar;
use mantissa::model::hub::DownloadProgress;
use mantissa::numerics::ConversionStats;
use mantissa::ops::backend::{OverflowRule, Progress};
use mantissa::ops::{Backend, LoadReport, Session};
use mantissa::{Generator, Location, Model, Options};

use crate::context::{Context, Verbosity};
use crate::{environment, output};

/// The model of a command.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArg {
    /// Folder, .gguf file or Hugging Face repository; mantissa-tiny, which is built in, if not given
    #[arg(value_name = "MODEL")]
    model: Option<String>,
}

impl ModelArg {
    /// Where the model lies, downloaded where it is a repository.
    pub fn locate(&self) -> Result<Location> {
        self.model.as_deref().map_or(Ok(mantissa::BUILT_IN), locate)
    }

    /// Opens the model, and downloads it first where it is a repository.
    pub fn open(&self) -> Result<Model> {
        Ok(Model::open(self.locate()?)?)
    }
}

/// The model of a command that computes with it.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    #[command(flatten)]
    model: ModelArg,

    /// Load weights that are too large for the policy's format as its largest value, instead of refusing them
    #[arg(long)]
    pub allow_saturation: bool,
}

impl ModelArgs {
    /// Opens the model, and downloads it first where it is a repository.
    pub fn open(&self) -> Result<Model> {
        self.model.open()
    }

    /// What to do with weights beyond the range of the policy's format.
    pub fn overflow(&self) -> OverflowRule {
        if self.allow_saturation { OverflowRule::Saturate } else { OverflowRule::Refuse }
    }
}

/// Where the model of this name lies, downloaded where it is a repository.
pub fn locate(name: &str) -> Result<Location> {
    Ok(mantissa::locate(name, &environment::hub_settings()?, &Downloads::default())?)
}

/// Packs the weights, with a bar, and says what was converted.
pub fn prepare(model: &Model, options: &Options, context: &Context) -> Result<Generator> {
    let generator = model.prepare_with_progress(options, &loading_bar())?;
    say_conversions(generator.report(), context)?;
    Ok(generator)
}

/// As [`prepare`], on a backend of one's own and without an engine.
pub fn session(
    model: &Model,
    options: &Options,
    backend: &dyn Backend,
    context: &Context,
) -> Result<Box<dyn Session>> {
    let session = model.session(options, backend, &loading_bar())?;
    say_conversions(session.report(), context)?;
    Ok(session)
}

fn say_conversions(report: &LoadReport, context: &Context) -> Result<()> {
    if context.verbosity == Verbosity::Verbose || std::io::stderr().is_terminal() {
        for line in conversions(report) {
            writeln!(output::stderr(), "{line}")?;
        }
    }
    Ok(())
}

/// A bar for loading.
fn loading_bar() -> impl Progress {
    Bar(output::byte_bar("Loading"))
}

/// What loading converted: one line for each pair of formats.
pub fn conversions(report: &LoadReport) -> Vec<String> {
    let mut pairs: BTreeMap<(String, String), (usize, ConversionStats)> = BTreeMap::new();
    for conversion in &report.conversions {
        let key = (conversion.from.to_string(), conversion.to.to_string());
        let (tensors, stats) = pairs.entry(key).or_default();
        *tensors += 1;
        stats.merge(&conversion.stats);
    }
    let line = |((from, to), (tensors, stats)): (&(String, String), &(usize, ConversionStats))| {
        let mut line = format!("converted {tensors} tensors {from} -> {to}");
        if stats.is_exact() {
            return line + ", all values exact";
        }
        line += &format!(", largest relative rounding error {:.1e}", stats.max_relative_error);
        line += &format!(", {} flushed to zero", stats.flushed_to_zero);
        if stats.overflowed > 0 {
            line += &format!(", {} saturated", stats.overflowed);
        }
        line
    };
    pairs.iter().map(line).collect()
}

/// Loading as a progress bar.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn start(&self, total_bytes: u64) {
        self.0.set_length(total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Downloads as progress bars, one file after another.
#[derive(Default)]
struct Downloads(RefCell<Option<ProgressBar>>);

impl DownloadProgress for Downloads {
    fn start(&self, file: &str, bytes: u64) {
        let bar = output::byte_bar(format!("Downloading {file}"));
        bar.set_length(bytes);
        self.0.replace(Some(bar));
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.0.borrow() {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.0.take() {
            bar.finish();
        }
    }
}
