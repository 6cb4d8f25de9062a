//! `mantissa bench`: speed against what the machine can do.

mod measure;
mod report;
mod stats;

use std::num::NonZeroUsize;

use anyhow::{Result, bail};
use mantissa::cpu::{CpuBackend, CpuOptions};
use mantissa::numerics::{PrecisionPolicy, Preset};
use mantissa::{Device, Options};

use crate::context::Context;
use crate::model::ModelArgs;
use crate::output;
use measure::{Measured, Setup};
use report::Report;

/// Prompts that are measured where none are named, as far as the model's context goes.
const PROMPTS: [usize; 3] = [128, 512, 2048];
/// Policies that are measured where none are named.
const POLICIES: [Preset; 3] = [Preset::Bf16, Preset::F16, Preset::F32];

/// Arguments of `mantissa bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa synth --arch qwen2.5-0.5b --dtype bf16 ./qwen       a model to measure, if there is none at hand
  mantissa bench ./qwen                                        bf16, f16 and f32 side by side
  mantissa bench ./qwen --policy bf16 --policy bf16,kv_cache=f8e4m3 --prompt 512 --json

The ceilings are measured before and after each policy, on the same threads, and memory again between the repetitions of
decode: how fast they read memory, and how fast they
multiply and add. Decode is compared with the time that reading weights and cache takes at the former, prefill with the
time that the products take at the latter, at the rate of the instructions that the contract names. Of a GPU no ceilings are
measured.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Lengths of the prompts, in tokens; 128, 512 and 2048 where none are given
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    prompt: Vec<NonZeroUsize>,

    /// Tokens to generate after the shortest prompt, one at a time
    #[arg(long, value_name = "N", default_value = "64")]
    generate: NonZeroUsize,

    /// How often to measure each
    #[arg(long, value_name = "N", default_value = "5")]
    repetitions: NonZeroUsize,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let model = args.model.open()?;
    let prompts = prompts(args, model.config().max_position_embeddings)?;
    let policies: Vec<PrecisionPolicy> = if context.policies.is_empty() {
        POLICIES.map(Preset::policy).to_vec()
    } else {
        context.policies.clone()
    };
    let device = context.device();
    let processor = match device {
        Device::Cpu | Device::Auto => {
            Some(CpuBackend::new(CpuOptions { threads: context.threads, isa: context.cpu_isa })?)
        }
        Device::Cuda(_) => None,
    };
    let shortest = prompts.iter().copied().min().unwrap_or(1);
    let longest = prompts.iter().copied().max().unwrap_or(1);
    let (generate, repetitions) = (args.generate.get(), args.repetitions.get());
    let setup = Setup {
        model: &model,
        processor: processor.as_ref(),
        options: Options {
            device,
            threads: context.threads,
            cpu_isa: context.cpu_isa,
            cuda: context.cuda.clone(),
            context: Some((longest + 1).max(shortest + 1 + generate)),
            overflow: args.model.overflow(),
            ..Options::default()
        },
        prompts,
        shortest,
        generate,
        repetitions,
        bar: &output::spinner(),
    };
    // One policy that cannot be carried out does not spoil the others.
    let outcomes: Vec<(PrecisionPolicy, Result<Measured>)> =
        policies.into_iter().map(|policy| (policy, setup.measure(policy, context))).collect();
    setup.bar.finish_and_clear();
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
    let report =
        Report { model: &model, info: &setup.options.backend()?.info(), repetitions, outcomes: &outcomes };
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

/// The prompts to measure, which must leave room for the tokens to generate.
fn prompts(args: &Args, max_context: usize) -> Result<Vec<usize>> {
    let room = max_context.saturating_sub(args.generate.get() + 1);
    if args.prompt.is_empty() {
        let fitting: Vec<usize> = PROMPTS.into_iter().filter(|&length| length <= room).collect();
        match fitting.is_empty() {
            false => return Ok(fitting),
            true if room > 0 => return Ok(vec![room]),
            true => {}
        }
    }
    let lengths: Vec<usize> = args.prompt.iter().map(|length| length.get()).collect();
    match lengths.iter().find(|&&length| length > room) {
        None if room > 0 => Ok(lengths),
        found => bail!(
            "a prompt of {} tokens and {} generated ones are beyond the {max_context} that the model was made for",
            found.copied().unwrap_or(1),
            args.generate
        ),
    }
}
