//! `mantissa plan`: what would be computed, step by step.

mod fold;

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::ValueEnum;
use mantissa::Options;
use mantissa::numerics::contract::CacheFormat;
use mantissa::ops::backend::KernelChoice;
use mantissa::ops::cost::{Cost, RunShape, SequenceShape};
use mantissa::ops::{Plan, ShapeClass, Step};
use mantissa_lab::label;
use mantissa_lab::profile::cost_json;
use serde_json::{Value, json};

use crate::context::Context;
use crate::model::ModelArg;
use crate::output;
use crate::table::{self, Column};
use fold::{Folded, fold};

/// Arguments of `mantissa plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa plan ./Qwen2.5-0.5B                                one token after 512
  mantissa plan ./Qwen2.5-0.5B --shape prefill --rows 2048    a prompt of 2048 tokens
  mantissa plan ./Qwen2.5-0.5B --policy f16,kv_cache=f8e4m3 --full

A contract reads: weights x activations [cache] > result, how products are formed / the format of sums, and the order of
the sums. Bytes and operations are what a perfect machine would have to move and compute.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// What runs together: one token, a token each of a few sequences, or a prompt
    #[arg(long, value_enum)]
    shape: Option<Shape>,

    /// Rows of the batch: 1 for decode, 2 to 16 for small-batch, more for prefill
    #[arg(long, value_name = "N")]
    rows: Option<usize>,

    /// Tokens in the cache of each sequence afterwards
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Print every step of every layer, and why its kernel was chosen
    #[arg(long)]
    full: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A class of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// One token
    Decode,
    /// A token each of a few sequences
    SmallBatch,
    /// A prompt
    Prefill,
}

impl Shape {
    fn class(self) -> ShapeClass {
        match self {
            Shape::Decode => ShapeClass::Decode,
            Shape::SmallBatch => ShapeClass::SmallBatch,
            Shape::Prefill => ShapeClass::Prefill,
        }
    }

    fn usual_rows(self) -> usize {
        match self {
            Shape::Decode => 1,
            Shape::SmallBatch => 8,
            Shape::Prefill => 512,
        }
    }
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let model = args.model.open()?;
    let options: Options = context.options()?;
    let plan: Arc<Plan> = model.plan(&options)?;
    let (class, shape) = run_shape(args, plan.program.max_context)?;
    let rows: Vec<Row> = plan.steps.iter().map(|step| Row::new(&plan, step, class, &shape)).collect();
    if args.json { print_json(&plan, &shape, class, &rows) } else { print(args, &plan, &shape, class, rows) }
}

/// The batch that the arguments describe.
fn run_shape(args: &Args, max_context: usize) -> Result<(ShapeClass, RunShape)> {
    let rows = args.rows.unwrap_or(args.shape.unwrap_or(Shape::Decode).usual_rows()).min(max_context.max(1));
    let class = ShapeClass::of(rows);
    if let Some(shape) = args.shape
        && (rows == 0 || shape.class() != class)
    {
        bail!(
            "--rows {rows} is no {} batch; decode has 1 row, small-batch 2 to 16, prefill more",
            shape.class().name()
        );
    }
    if rows == 0 {
        bail!("--rows is 0; a batch has at least one row");
    }
    let (sequences, rows) = match class {
        ShapeClass::Decode | ShapeClass::SmallBatch => (rows, 1),
        ShapeClass::Prefill => (1, rows),
    };
    let context = args.context.unwrap_or(rows.max(512).min(max_context));
    if context < rows || context > max_context {
        bail!(
            "--context is {context}; it must be from {rows}, the rows of a sequence, to {max_context}, the model's longest"
        );
    }
    let sequences = vec![SequenceShape { rows, context }; sequences];
    let outputs = sequences.len();
    Ok((class, RunShape { sequences, outputs }))
}

/// A step as it is shown.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: String,
    family: &'static str,
    contract: String,
    kernel: String,
    why: String,
    shape: String,
    cost: Cost,
}

impl Row {
    fn new(plan: &Plan, step: &Step, class: ShapeClass, shape: &RunShape) -> Row {
        let choice = step.kernel(class);
        Row {
            name: step.name.clone(),
            family: step.op.family().name(),
            contract: step.contract.to_string(),
            kernel: choice.kernel.clone(),
            why: choice.why.clone(),
            shape: label::shape(plan, &step.op, shape),
            cost: plan.step_cost(step, shape),
        }
    }
}

fn print(args: &Args, plan: &Plan, shape: &RunShape, class: ShapeClass, rows: Vec<Row>) -> Result<()> {
    let cost = plan.cost(shape);
    let context = shape.sequences.first().map_or(0, |sequence| sequence.context);
    writeln!(
        output::stdout(),
        "{} under {} on {} ({}, {}), {}: rows {}, context {context}\n",
        plan.program.name,
        plan.policy,
        plan.backend.name,
        plan.backend.device,
        plan.backend.features,
        class.name(),
        shape.rows(),
    )?;
    let folded = if args.full { rows.into_iter().map(Folded::single).collect() } else { fold(rows) };
    let mut columns = ["step", "times", "op", "contract", "kernel", "shape", "bytes", "operations"]
        .map(|heading| match heading {
            "times" | "bytes" | "operations" => Column::number(heading),
            _ => Column::text(heading),
        })
        .to_vec();
    if args.full {
        columns.push(Column::text("why"));
    }
    let cells = |step: &Folded| {
        let times = step.times as u64;
        let row = &step.row;
        let mut cells = vec![
            step.name.clone(),
            times.to_string(),
            row.family.to_owned(),
            row.contract.clone(),
            row.kernel.clone(),
            row.shape.clone(),
            table::bytes(row.cost.bytes() * times),
            table::count(row.cost.operations * times),
        ];
        if args.full {
            cells.push(row.why.clone());
        }
        cells
    };
    table::print(&columns, &folded.iter().map(cells).collect::<Vec<_>>())?;
    if let Some(KernelChoice { kernel, why }) = plan.launch(class) {
        writeln!(output::stdout(), "\nlaunched as {kernel}: {why}")?;
    }
    let memory = plan.memory(context * shape.sequences.len());
    writeln!(
        output::stdout(),
        "\ntotal: {} steps, {} moved (weights {}, activations {}, cache {}), {} operations\n\
         memory: weights {}, cache {} in {}",
        plan.steps.len(),
        table::bytes(cost.bytes()),
        table::bytes(cost.weights),
        table::bytes(cost.activations),
        table::bytes(cost.cache_read + cost.cache_written),
        table::count(cost.operations),
        table::bytes(memory.weights),
        table::bytes(memory.cache),
        plan.cache_format(),
    )?;
    Ok(())
}

fn print_json(plan: &Plan, shape: &RunShape, class: ShapeClass, rows: &[Row]) -> Result<()> {
    let steps: Vec<Value> = plan.steps.iter().zip(rows).map(|(step, row)| step_json(step, row)).collect();
    let context = shape.sequences.first().map_or(0, |sequence| sequence.context);
    let memory = plan.memory(context * shape.sequences.len());
    output::json(&json!({
        "model": plan.program.name,
        "policy": plan.policy.to_string(),
        "backend": {
            "name": plan.backend.name,
            "device": plan.backend.device,
            "features": plan.backend.features,
            "threads": plan.backend.threads,
        },
        "shape": {
            "class": class.name(),
            "rows": shape.rows(),
            "sequences": shape.sequences.len(),
            "context": context,
            "outputs": shape.outputs,
        },
        "steps": steps,
        "launched_as": plan.launch(class).map(|launch| json!({ "kernel": launch.kernel, "why": launch.why })),
        "total": cost_json(&plan.cost(shape)),
        "memory": { "weights": memory.weights, "cache": memory.cache },
    }))
}

fn step_json(step: &Step, row: &Row) -> Value {
    let query = &step.contract.query;
    json!({
        "step": row.name,
        "op": row.family,
        "contract": {
            "text": row.contract,
            "weights": query.weights,
            "activations": query.activations,
            "cache": query.cache.as_ref().map(CacheFormat::to_string),
            "accumulate": query.accumulate,
            "output": step.contract.output,
        },
        "kernel": row.kernel,
        "why": row.why,
        "shape": row.shape,
        "cost": cost_json(&row.cost),
    })
}
