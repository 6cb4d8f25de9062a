//! `mantissa bench compare`: what became slower between two files of measurements.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mantissa_lab::bench::compare::{Comparison, Difference, Verdict, compare};
use mantissa_lab::bench::record::{self, Record};
use serde_json::{Value, json};

use crate::output;
use crate::table::{self, Column};

/// Arguments of `mantissa bench compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa bench matmul --repetitions 10 --csv before.csv
  mantissa bench matmul --repetitions 10 --csv after.csv       with the changed program
  mantissa bench compare before.csv after.csv

A test is slower where it is so by the clock and against the ceilings that were measured around each repetition, by more than
repetitions of one test and shifts of other tests differ by themselves. The probability of even one false alarm among all
tests is held below --level. The exit code is not zero where something became slower.")]
pub struct Args {
    /// Measurements before, as --csv wrote them
    before: PathBuf,

    /// Measurements after
    after: PathBuf,

    /// The probability of a false alarm that is accepted
    #[arg(long, value_name = "P", default_value = "0.01", value_parser = probability)]
    level: f64,

    /// Print every test, not only those that differ
    #[arg(long)]
    all: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn probability(text: &str) -> Result<f64, String> {
    let level: Option<f64> = text.parse().ok();
    level
        .filter(|level| *level > 0.0 && *level < 0.5)
        .ok_or_else(|| "it must be a number between 0 and 0.5".to_owned())
}

/// Carries the command out.
pub fn run(args: &Args) -> Result<()> {
    let (before, after) = (records(&args.before)?, records(&args.after)?);
    let found = compare(&before, &after, args.level)?;
    if args.json {
        output::json(&json_of(&found, args.level))?;
    } else {
        print(&found, args)?;
    }
    let slower = found.of(Verdict::Slower).count();
    if slower > 0 {
        bail!("{slower} of {} comparisons became slower, beyond noise", found.differences.len());
    }
    Ok(())
}

fn records(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    record::read(file).with_context(|| format!("{} holds no measurements of bench", path.display()))
}

fn print(found: &Comparison, args: &Args) -> Result<()> {
    let columns = [
        Column::text("what"),
        Column::text("test"),
        Column::number("before"),
        Column::number("after"),
        Column::number("ratio"),
        Column::number("against ceilings"),
        Column::number("would be seen"),
        Column::number("p"),
        Column::text("verdict"),
    ];
    let shown = |difference: &&Difference| {
        args.all || difference.test.is_none() || difference.verdict != Verdict::Noise
    };
    let rows: Vec<Vec<String>> = found.differences.iter().filter(shown).map(cells).collect();
    table::print(&columns, &rows)?;
    let mut out = output::stdout();
    for name in &found.unmatched {
        writeln!(out, "only in one of the files: {name}")?;
    }
    let [slower, faster, noise] =
        [Verdict::Slower, Verdict::Faster, Verdict::Noise].map(|verdict| found.of(verdict).count());
    writeln!(
        out,
        "\n{slower} slower, {faster} faster, {noise} no more than noise; the probability of a false alarm is at most {}",
        args.level
    )?;
    Ok(())
}

fn cells(difference: &Difference) -> Vec<String> {
    let percent = |ratio: f64| format!("{:+.1} %", 100.0 * (ratio - 1.0));
    let microseconds = |seconds: f64| format!("{:.1} us", seconds * 1e6);
    vec![
        difference.group.to_string(),
        difference.test.clone().unwrap_or_else(|| "all tests (geometric mean)".to_owned()),
        microseconds(difference.before.median),
        microseconds(difference.after.median),
        percent(difference.ratio),
        percent(difference.relative_ratio),
        if difference.detectable.is_finite() { percent(difference.detectable) } else { "nothing".to_owned() },
        format!("{:.2e}", difference.probability),
        difference.verdict.name().to_owned(),
    ]
}

fn json_of(found: &Comparison, level: f64) -> Value {
    let difference = |difference: &Difference| {
        json!({
            "benchmark": difference.group.benchmark,
            "model": difference.group.model,
            "policy": difference.group.policy,
            "variant": difference.group.variant,
            "test": difference.test,
            "before_seconds": difference.before.json(),
            "after_seconds": difference.after.json(),
            "ratio": difference.ratio,
            "ratio_against_ceilings": difference.relative_ratio,
            "detectable_ratio": difference.detectable.is_finite().then_some(difference.detectable),
            "probability": difference.probability,
            "verdict": difference.verdict.name(),
        })
    };
    json!({
        "level": level,
        "slower": found.of(Verdict::Slower).count(),
        "faster": found.of(Verdict::Faster).count(),
        "differences": found.differences.iter().map(difference).collect::<Vec<_>>(),
        "unmatched": found.unmatched,
    })
}
