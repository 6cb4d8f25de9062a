//! `mantissa bench [MODEL]`: how fast a model reads prompts and generates.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use mantissa::Options;
use mantissa::numerics::{PrecisionPolicy, Preset};
use mantissa_lab::LabError;
use mantissa_lab::bench::generation::Setup;
use mantissa_lab::decode::Decode;
use mantissa_lab::machine::Machine;

use super::report::Report;
use super::write_csv;
use crate::args::at_least_one;
use crate::context::{Context, Verbosity};
use crate::measuring::{self, Measuring};
use crate::model::ModelArgs;
use crate::output;

/// Prompts that are measured where none are named, as far as the model's context goes.
const PROMPTS: [usize; 3] = [128, 512, 2048];
/// Policies that are measured where none are named.
const POLICIES: [Preset; 3] = [Preset::Bf16, Preset::F16, Preset::F32];

/// What stands below the options.
pub const HELP: &str = "\
Examples:
  mantissa synth --arch qwen2.5-0.5b --dtype bf16 ./qwen       a model to measure, if there is none at hand
  mantissa bench ./qwen                                        bf16, f16 and f32 side by side
  mantissa bench ./qwen --policy bf16 --policy bf16,kv_cache=f8e4m3 --prompt 512 --json
  mantissa bench ./qwen --prompt 512 --decode-after 512,8192 --batch 1,8,32
                                                               longer contexts, and sequences decoded together
  mantissa bench ./qwen --csv before.csv                       every repetition, for mantissa bench compare
  mantissa bench matmul                                        kernels by themselves: see also bench attention

Each round measures every test once. The ceilings are measured in the same run and on the same device, between the rounds,
and memory again before and after each decode: how fast memory is read, and how fast the units multiply and add that the
policy's contracts name. Prefill is compared with the time that its products take at their peak rates. Decode is compared with the longer of
two times: of reading weights and cache, and of the products.";

/// Arguments of the measurement of a model.
#[derive(Debug, clap::Args)]
#[group(id = "generation")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Lengths of the prompts, in tokens; 128, 512 and 2048 where none are given
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    prompt: Vec<NonZeroUsize>,

    /// Tokens to generate in each repetition, one at a time
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_one)]
    generate: NonZeroUsize,

    /// Tokens of context after which they are generated; the shortest prompt where none are given
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    decode_after: Vec<NonZeroUsize>,

    /// Sequences that are decoded together
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1", value_parser = at_least_one)]
    batch: Vec<NonZeroUsize>,

    /// How often to measure each
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    repetitions: NonZeroUsize,

    /// Write every repetition to a file, for `bench compare`
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    output::check_writable(&args.csv)?;
    let model = args.model.open()?;
    let (prompts, decodes) = args.tests(model.config().max_position_embeddings)?;
    let policies: Vec<PrecisionPolicy> = if context.policies.is_empty() {
        POLICIES.map(Preset::policy).to_vec()
    } else {
        context.policies.clone()
    };
    let longest = prompts.iter().map(|length| length + 1).chain(decodes.iter().map(Decode::context)).max();
    let options = Options {
        context: longest,
        sequences: decodes.iter().map(|decode| decode.sequences).max(),
        overflow: args.model.overflow(),
        ..context.options_under(None)
    };
    let backend = options.backend()?;
    let repetitions = args.repetitions.get();
    let progress = &Measuring::start(context);
    let setup = Setup { model: &model, backend: &*backend, options, prompts, decodes, repetitions, progress };
    // One policy that cannot be carried out does not spoil the others.
    let mut outcomes = Vec::new();
    for policy in policies {
        match setup.measure(policy) {
            Err(LabError::Cancelled) => return Err(LabError::Cancelled.into()),
            outcome => outcomes.push((policy, outcome)),
        }
    }
    progress.finish();
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
    let machine = Machine::new(&backend.info(), &measuring::build());
    let report = Report { model: &model, machine: &machine, repetitions, outcomes: &outcomes };
    if let Some(path) = &args.csv {
        write_csv(path, &report.records())?;
    }
    if context.verbosity == Verbosity::Verbose {
        report.print_conversions()?;
    }
    if args.json {
        output::json(&report.json())?
    } else {
        report.print()?
    }
    if failed > 0 {
        bail!("{failed} of {} policies could not be measured", outcomes.len());
    }
    Ok(())
}

impl Args {
    /// The prompts and the decodings to measure, all of which fit the model's context.
    fn tests(&self, max_context: usize) -> Result<(Vec<usize>, Vec<Decode>)> {
        let decode = |after: usize, sequences: NonZeroUsize| Decode {
            tokens: self.generate.get(),
            after,
            sequences: sequences.get(),
            repetitions: 1,
        };
        let all = |after: &[usize]| -> Vec<Decode> {
            after
                .iter()
                .flat_map(|&after| self.batch.iter().map(move |&batch| decode(after, batch)))
                .collect()
        };
        let fits = |decode: &Decode| decode.context() <= max_context;
        let prompts = lengths(&self.prompt).unwrap_or_else(|| {
            let fitting = |length: &usize| *length < max_context && all(&[*length]).iter().all(fits);
            let fitting: Vec<usize> = PROMPTS.into_iter().filter(fitting).collect();
            // A model with less room than that for any of them is given what it has.
            if fitting.is_empty() { vec![room(max_context, &all(&[0]))] } else { fitting }
        });
        if let Some(length) = prompts.iter().find(|&&length| length == 0 || length >= max_context) {
            bail!(
                "a prompt of {length} tokens and a new one do not fit the {max_context} that the model was made for"
            );
        }
        let shortest = prompts.iter().copied().min().unwrap_or(1);
        let decodes = all(&lengths(&self.decode_after).unwrap_or_else(|| vec![shortest]));
        if let Some(decode) = decodes.iter().find(|decode| !fits(decode)) {
            bail!(
                "{} tokens generated after {} ones need a context of {}, warming up included, and the model was made \
                 for {max_context}",
                decode.tokens,
                decode.after,
                decode.context()
            );
        }
        Ok((prompts, decodes))
    }
}

/// What was asked for, if anything was.
fn lengths(asked: &[NonZeroUsize]) -> Option<Vec<usize>> {
    (!asked.is_empty()).then(|| asked.iter().map(|length| length.get()).collect())
}

/// What is left of a context beside what decoding without any prompt needs.
fn room(max_context: usize, decodes: &[Decode]) -> usize {
    let needed = decodes.iter().map(Decode::context).max().unwrap_or(0);
    max_context.saturating_sub(needed)
}
