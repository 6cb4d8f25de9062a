//! `mantissa inspect`: what is in a model, and what each policy would cost.

mod losses;
mod memory;
mod report;

use anyhow::Result;
use mantissa::Options;
use mantissa::cpu::Pool;
use mantissa::model::arch;
use mantissa::numerics::{Format, PrecisionPolicy, Preset};

use crate::context::Context;
use crate::model::ModelArg;
use crate::output;
use losses::{Losses, Measure};
use memory::Memory;
use report::Report;

/// Models up to this many bytes of tensors are converted for every policy without being asked: it takes seconds.
const QUICK_BYTES: u64 = 4 << 30;

/// Arguments of `mantissa inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa inspect ./Qwen2.5-0.5B                          all presets
  mantissa inspect ./Qwen2.5-0.5B --policy f16             one policy
  mantissa inspect Qwen/Qwen2.5-7B-Instruct --all --json   measure the losses of all presets, however large the model

What a policy loses is measured by converting the weights as loading would: the largest relative rounding error, and how
many values would overflow or become zero. The memory is that of the device: on a GPU it is all that a run takes of it, but
for the driver's own and the code of kernels.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Convert the weights for every policy, even where the model is large
    #[arg(long)]
    all: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let model = args.model.open()?;
    let checkpoint = model.checkpoint();
    let program = arch::program(model.config())?;
    let policies: Vec<PrecisionPolicy> = if context.policies.is_empty() {
        Preset::ALL.map(Preset::policy).to_vec()
    } else {
        context.policies.clone()
    };
    let every = args.all || !context.policies.is_empty() || checkpoint.total_bytes() <= QUICK_BYTES;
    let mut targets: Vec<(Format, Measure)> = Vec::new();
    for policy in &policies {
        let wanted = every || *policy == PrecisionPolicy::default();
        let measure = if wanted { Measure::Convert } else { Measure::Skip };
        match targets.iter_mut().find(|(format, _)| *format == policy.weights()) {
            Some((_, known)) if wanted => *known = measure,
            Some(_) => {}
            None => targets.push((policy.weights(), measure)),
        }
    }
    let pool = Pool::new(context.threads.unwrap_or_else(Pool::default_threads))?;
    let bar = output::byte_bar("Converting");
    let losses = Losses::of(&program, checkpoint, &targets, &pool, &bar)?;
    bar.finish_and_clear();
    let backend = context.options_under(None).backend()?;
    let memory: Vec<Memory> = policies
        .iter()
        .map(|&policy| {
            Memory::of(&program, &policy, |length| {
                let options = Options { context: Some(length), ..context.options_under(Some(policy)) };
                model.memory(&options, &*backend).ok()?
            })
        })
        .collect();
    let info = &backend.info();
    let report = Report {
        model: &model,
        program: &program,
        policies: &policies,
        memory: &memory,
        info,
        losses: &losses,
    };
    if args.json { output::json(&report.json()) } else { report.print() }
}
