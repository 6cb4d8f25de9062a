//! `mantissa profile`: where the time of a prompt and of a token goes.

mod report;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use mantissa::Options;
use mantissa_lab::machine::Machine;
use mantissa_lab::profile::{By, Profile, Profiler, Workload};

use crate::args::at_least_one;
use crate::context::Context;
use crate::measuring::{self, Measuring};
use crate::model::{self, ModelArgs};
use crate::output;
use report::Report;

/// Tokens of a prompt where nothing is said, as far as the model goes.
const PROMPT: usize = 512;

/// Arguments of `mantissa profile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa profile                                             the built-in model
  mantissa profile ./qwen --policy bf16 --prompt 2048          a longer prompt, and tokens behind it
  mantissa profile ./qwen --by step --csv steps.csv            every step of every layer, as a table
  mantissa profile ./qwen --trace qwen.json                    events for chrome://tracing or https://ui.perfetto.dev
  mantissa profile ./qwen --plot plots                         a roofline, and the time of each operation, PNG and SVG

Prefill runs the prompts in batches as the engine does; decode runs one token of each sequence at a time. Each is run
without a trace, with every kernel timed, and, where the device launches several kernels as one, with those timed as they
are launched: on a GPU by events on the device, on the CPU by the clock before and after each step. Times are means of the
middle third of the repetitions, so that parts add up to the whole. A share of a ceiling is of the nearer one: how fast memory is read, or how fast the units multiply that
the contract names, both measured between the repetitions. Bytes and operations are what a perfect machine would move and
compute. docs/measuring.md explains every column.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Tokens of each prompt; 512 if not given, or as many as fit the model's context
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    prompt: Option<NonZeroUsize>,

    /// Tokens to generate behind it, one at a time
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least_one)]
    generate: NonZeroUsize,

    /// Sequences that run together
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    batch: NonZeroUsize,

    /// How often to measure each phase
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    repetitions: NonZeroUsize,

    /// What to sum up as one
    #[arg(long, value_enum, default_value = "operation")]
    by: Grouping,

    /// Write every row with all that is known of it to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Write the events of one repetition to a file for chrome://tracing or https://ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Write plots into a folder, as PNG and as SVG: a roofline, and the time of each row of prefill and of decode
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is summed up as one.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Grouping {
    /// The same step of all layers
    Operation,
    /// Every step by itself
    Step,
    /// Every kernel by its name
    Kernel,
}

impl Grouping {
    fn by(self) -> By {
        match self {
            Grouping::Operation => By::Operation,
            Grouping::Step => By::Step,
            Grouping::Kernel => By::Kernel,
        }
    }
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    output::check_writable(args.csv.iter().chain(&args.trace))?;
    let model = args.model.open()?;
    let workload = args.workload(model.config().max_position_embeddings)?;
    let options = Options {
        context: Some(workload.context()),
        sequences: Some(workload.sequences),
        overflow: args.model.overflow(),
        ..context.options()?
    };
    let backend = options.backend()?;
    let machine = Machine::new(&backend.info(), &measuring::build());
    let mut session = model::session(&model, &options, &*backend, context)?;
    let progress = Measuring::start(context);
    let profiler = Profiler { workload, repetitions: args.repetitions.get() };
    let mut profile = profiler.measure(&mut *session, &*backend, &progress)?;
    profile.model = model.location().to_string();
    progress.finish();
    args.write_files(&profile, &machine)?;
    let by = args.by.by();
    if args.json {
        return output::json(&profile.json(&machine, by));
    }
    Report { machine: &machine, profile: &profile, by }.print()
}

impl Args {
    /// What to run, which fits the model's context.
    fn workload(&self, max_context: usize) -> Result<Workload> {
        let generate = self.generate.get();
        let room = max_context.saturating_sub(generate);
        let prompt = self.prompt.map_or(PROMPT.min(room), NonZeroUsize::get);
        if prompt == 0 || prompt > room {
            bail!(
                "a prompt of {} tokens and {generate} behind it do not fit the {max_context} that the model was made for; \
                 --prompt and --generate say how many there are",
                prompt.max(1)
            );
        }
        Ok(Workload { prompt, generate, sequences: self.batch.get() })
    }

    fn write_files(&self, profile: &Profile, machine: &Machine) -> Result<()> {
        if let Some(path) = &self.csv {
            let records = profile.records(machine, self.by.by());
            output::write_atomically(path, |writer| {
                let mut table = csv::Writer::from_writer(writer);
                records.iter().try_for_each(|record| table.serialize(record))?;
                Ok(table.flush()?)
            })?;
        }
        if let Some(path) = &self.trace {
            let trace = profile.chrome_trace(machine);
            output::write_atomically(path, |writer| Ok(serde_json::to_writer(writer, &trace)?))?;
        }
        if let Some(folder) = &self.plot {
            output::write_picture(folder, "roofline", &profile.roofline().draw()?)?;
            for phase in &profile.phases {
                if let Some(bars) = profile.bars(phase, self.by.by()) {
                    output::write_picture(folder, phase.kind.name(), &bars.draw()?)?;
                }
            }
        }
        Ok(())
    }
}
