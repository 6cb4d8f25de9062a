//! `mantissa synth`: a checkpoint of a known shape with random weights.

mod folder;
mod shapes;
mod values;
mod weights;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::HumanBytes;
use mantissa::cpu::Pool;
use mantissa::model::arch;
use mantissa::model::config::ModelConfig;
use mantissa::numerics::Format;

use crate::context::Context;
use crate::output;
use folder::{CONFIG, Occupied, Staging};
use shapes::Shape;
use values::Values;
use weights::{SHARD_BYTES, Writer, write_json};

/// Arguments of `mantissa synth`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
Shapes:
{}

Examples:
  mantissa synth --arch qwen2.5-0.5b --dtype bf16 ./qwen-synth
  mantissa bench ./qwen-synth
  mantissa run ./qwen-synth --ids 1,2,3

Speed and memory are those of the real model; what it generates means nothing. There is no tokenizer: give --ids.",
    shape_names()))]
pub struct Args {
    /// Shape of the model, such as qwen2.5-0.5b
    #[arg(long, value_name = "SHAPE")]
    arch: String,

    /// Format of the weights: bf16, f16 or f32
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    dtype: Format,

    /// Folder to write
    dir: PathBuf,

    /// Seed of the weights: the same seed gives the same bytes, whatever the number of threads
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Write only this many of the layers
    #[arg(long, value_name = "N")]
    layers: Option<usize>,

    /// Replace a checkpoint that is in the folder already
    #[arg(long)]
    force: bool,
}

fn shape_names() -> String {
    let names = shapes::SHAPES.map(|shape| shape.name);
    names.chunks(6).map(|line| format!("  {}", line.join(", "))).collect::<Vec<_>>().join(",\n")
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    if !matches!(args.dtype, Format::F32 | Format::F16 | Format::Bf16) {
        bail!("--dtype is {}; checkpoints are written in bf16, f16 or f32", args.dtype);
    }
    let mut shape = Shape::find(&args.arch)?;
    if let Some(layers) = args.layers {
        shape = shape.cut(layers)?;
    }
    let config = shape.config(args.dtype);
    let parsed = ModelConfig::from_json(config.to_string().as_bytes(), &args.dir.join(CONFIG))?;
    let program = arch::program(&parsed)?;

    let start = Instant::now();
    let interrupt = context.interrupt.guard();
    let occupied = if args.force { Occupied::Replace } else { Occupied::Refuse };
    let staging = Staging::new(&args.dir, occupied)?;
    let bar = output::byte_bar("Writing");
    let writer = Writer {
        folder: staging.folder(),
        values: &Values::new(args.dtype, args.seed, parsed.hidden_size)?,
        pool: &Pool::new(context.threads.unwrap_or_else(Pool::default_threads))?,
        bar: &bar,
        interrupt: &interrupt,
        shard_bytes: SHARD_BYTES,
    };
    let bytes = writer.write(&weights::tensors(&program))?;
    write_json(&staging.folder().join("generation_config.json"), &shape.generation_config())?;
    write_json(&staging.folder().join(CONFIG), &config)?;
    staging.finish()?;
    bar.finish_and_clear();

    writeln!(
        output::stderr(),
        "wrote {}: {} parameters in {}, {} in {:.1} s; it has no tokenizer, so give --ids",
        args.dir.display(),
        program.parameters(),
        args.dtype,
        HumanBytes(bytes),
        start.elapsed().as_secs_f64(),
    )?;
    Ok(())
}
