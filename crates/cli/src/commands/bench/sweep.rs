//! `mantissa bench matmul` and `mantissa bench attention`: kernels by themselves, in every variant.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::op::Heads;
use mantissa_lab::bench::record;
use mantissa_lab::bench::sweep::attention::Attentions;
use mantissa_lab::bench::sweep::matmul::Products;
use mantissa_lab::bench::sweep::{Chosen, Family, Row, Setup, Sweep, Variant, sweep};
use mantissa_lab::bench::variants;
use mantissa_lab::machine::Machine;
use serde_json::{Value, json};

use super::write_csv;
use crate::args::at_least_one;
use crate::context::Context;
use crate::measuring::{self, Measuring};
use crate::output;
use crate::table::{self, Column};

/// The probability of even one false alarm among all comparisons of variants.
const LEVEL: f64 = 0.01;

/// What the sweeps have in common.
#[derive(Debug, clap::Args)]
struct Common {
    /// How often to measure everything; more rounds tell smaller differences from noise
    #[arg(long, value_name = "N", default_value = "6", value_parser = at_least_one)]
    repetitions: NonZeroUsize,

    /// A few shapes only
    #[arg(long)]
    quick: bool,

    /// Leave out what would take longer than this in one run
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = positive)]
    limit: f64,

    /// Write every repetition to a file, for `bench compare`
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `mantissa bench matmul`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa bench matmul                                        45 shapes, alpha 1 and 0.5, with and without residual
  mantissa bench matmul --quick --csv before.csv
  mantissa bench matmul --policy f16 --m 896,4864 --k 896 --n 1,32,256

Computed is out = alpha * input * weight^T + beta * residual: n rows of k numbers by a weight of m rows of k numbers. That
is the only layout: a backend packs weights when it loads them, so that no kernel sees how a file stored them, and inputs lie
row by row. Files in which a weight is stored transposed are refused. The weights of many layers are used in turn, so that
none is still in a cache. Times are those that the fastest tenth of a round's repetitions stay below. A star marks the variant
that the backend takes by itself; one that is more than four times slower than the fastest is measured in one round only.")]
pub struct MatmulArgs {
    /// Output features; 128, 512 and 2048 where none are given
    #[arg(long, value_name = "M,...", value_delimiter = ',', value_parser = at_least_one)]
    m: Vec<NonZeroUsize>,

    /// Rows of the input; 1, 2, 4, 8 and 16 where none are given
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    n: Vec<NonZeroUsize>,

    /// Input features; 1024, 2048 and 4096 where none are given
    #[arg(long, value_name = "K,...", value_delimiter = ',', value_parser = at_least_one)]
    k: Vec<NonZeroUsize>,

    #[command(flatten)]
    common: Common,
}

/// Arguments of `mantissa bench attention`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa bench attention                                     one query, and the last 512 of a prompt
  mantissa bench attention --policy bf16 --policy bf16,kv_cache=f8e4m3 --csv attention.csv
  mantissa bench attention --heads 28/4x128 --context 1024,16384

The policy decides how the cache is kept. A star marks the variant that the backend takes by itself.")]
pub struct AttentionArgs {
    /// Query heads, key heads and values of a head; 14/2x64, 32/8x64 and 32/8x128 where none are given
    #[arg(long, value_name = "Q/KxD,...", value_delimiter = ',', value_parser = heads)]
    heads: Vec<Heads>,

    /// Tokens of context; 512, 2048, 8192 and 32768 where none are given
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    context: Vec<NonZeroUsize>,

    #[command(flatten)]
    common: Common,
}

/// Heads as they are written.
fn heads(text: &str) -> Result<Heads, String> {
    let parse = || {
        let (query, rest) = text.split_once('/')?;
        let (key_value, dim) = rest.split_once('x')?;
        let [query, key_value, dim] = [query, key_value, dim].map(|part| part.parse::<NonZeroUsize>().ok());
        Some(Heads { query: query?.get(), key_value: key_value?.get(), dim: dim?.get() })
    };
    let heads = parse().ok_or("it must be written like 14/2x64: query heads, key heads, values of a head")?;
    if !heads.query.is_multiple_of(heads.key_value) || !heads.dim.is_multiple_of(2) {
        return Err(
            "query heads must be a multiple of key heads, and a head's values an even number".to_owned()
        );
    }
    Ok(heads)
}

fn positive(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds.filter(|seconds| *seconds > 0.0).ok_or_else(|| "it must be a number above 0".to_owned())
}

/// Carries `bench matmul` out.
pub fn matmul(args: &MatmulArgs, context: &Context) -> Result<()> {
    let set = |values: &mut Vec<usize>, asked: &[NonZeroUsize]| {
        if !asked.is_empty() {
            *values = asked.iter().map(|value| value.get()).collect();
        }
    };
    let mut products = if args.common.quick { Products::quick() } else { Products::default() };
    set(&mut products.outputs, &args.m);
    set(&mut products.rows, &args.n);
    set(&mut products.inputs, &args.k);
    let (variants, missing) = variants::of_products(&context.options_under(None))?;
    let request = Request { benchmark: "matmul", common: &args.common, variants, missing };
    measure(&products, request, context)
}

/// Carries `bench attention` out.
pub fn attention(args: &AttentionArgs, context: &Context) -> Result<()> {
    let mut attentions = if args.common.quick { Attentions::quick() } else { Attentions::default() };
    if !args.heads.is_empty() {
        attentions.heads.clone_from(&args.heads);
    }
    if !args.context.is_empty() {
        attentions.contexts = args.context.iter().map(|context| context.get()).collect();
    }
    let variants = variants::of_attention(&context.options_under(None))?;
    let request = Request { benchmark: "attention", common: &args.common, variants, missing: Vec::new() };
    measure(&attentions, request, context)
}

/// What was asked for.
struct Request<'a> {
    benchmark: &'static str,
    common: &'a Common,
    variants: Vec<Variant>,
    /// Variants that are not there, and why.
    missing: Vec<String>,
}

fn measure(family: &dyn Family, request: Request<'_>, context: &Context) -> Result<()> {
    let Request { benchmark, common, variants, missing } = request;
    output::check_writable(&common.csv)?;
    let policies = match context.policies.as_slice() {
        [] => vec![PrecisionPolicy::default()],
        policies => policies.to_vec(),
    };
    let dispatcher = context.options_under(None).backend()?;
    let progress = Measuring::start(context);
    let setup = Setup {
        dispatcher: &*dispatcher,
        variants: &variants,
        policies,
        rounds: common.repetitions.get(),
        limit_seconds: common.limit,
        progress: &progress,
    };
    let swept = sweep(family, &setup)?;
    progress.finish();
    let machine = Machine::new(&dispatcher.info(), &measuring::build());
    if let Some(path) = &common.csv {
        write_csv(path, &record::of_sweep(benchmark, &swept, &machine))?;
    }
    if common.json {
        output::json(&json_of(benchmark, &swept, &machine, &missing))?;
    } else {
        print(&swept, &machine, common.repetitions.get())?;
        for reason in missing {
            writeln!(output::stderr(), "not there: {reason}")?;
        }
    }
    if swept.rows.is_empty() {
        bail!("nothing was measured: every run would take longer than --limit {}", common.limit);
    }
    Ok(())
}

fn print(swept: &Sweep, machine: &Machine, rounds: usize) -> Result<()> {
    writeln!(output::stdout(), "{}; medians of {rounds} rounds\n", machine.describe())?;
    let columns = [
        Column::text("test"),
        Column::text("policy"),
        Column::text("variant"),
        Column::number("time"),
        Column::number("min..max"),
        Column::number("reached"),
        Column::number("ceiling"),
        Column::number("share"),
        Column::text("kernel"),
    ];
    let rows: Vec<Vec<String>> = swept.rows.iter().filter_map(cells).collect();
    table::print(&columns, &rows)?;
    let mut out = output::stdout();
    for left in &swept.left_out {
        writeln!(out, "left out: {}, {}, {}: {}", left.group, left.policy, left.variant, left.reason)?;
    }
    let slower = swept.slower(LEVEL);
    writeln!(out, "\nchosen variants that were not the fastest, beyond noise: {}", none_or(slower.len()))?;
    for slower in slower {
        writeln!(
            out,
            "  {}, {}: {} takes {:.2} times as long as {} (p = {:.1e})",
            slower.test, slower.policy, slower.chosen, slower.ratio, slower.faster, slower.probability
        )?;
    }
    Ok(())
}

fn none_or(count: usize) -> String {
    if count == 0 { "none".to_owned() } else { count.to_string() }
}

fn cells(row: &Row) -> Option<Vec<String>> {
    let (seconds, bound) = (row.seconds()?, row.bound()?);
    let unit = bound.limit.unit();
    let mark = match row.chosen {
        Chosen::Yes => " *",
        Chosen::No => "",
    };
    Some(vec![
        row.test.clone(),
        row.policy.to_string(),
        format!("{}{mark}", row.variant),
        format!("{:.1} us", seconds.median * 1e6),
        format!("{:.1}..{:.1}", seconds.min * 1e6, seconds.max * 1e6),
        format!("{}{unit}", table::rate(bound.achieved)),
        format!("{}{unit}", table::rate(bound.ceiling)),
        format!("{:.1} %", 100.0 * bound.share),
        row.kernel.clone(),
    ])
}

fn json_of(benchmark: &str, swept: &Sweep, machine: &Machine, missing: &[String]) -> Value {
    let row = |row: &Row| {
        let bound = row.bound();
        json!({
            "test": row.test,
            "policy": row.policy.to_string(),
            "variant": row.variant,
            "chosen": row.chosen == Chosen::Yes,
            "kernel": row.kernel,
            "contract": row.contract,
            "seconds": row.seconds().map(|seconds| seconds.json()),
            "bound": bound.map(|bound| bound.limit.name()),
            "achieved_per_second": bound.map(|bound| bound.achieved),
            "ceiling_per_second": bound.map(|bound| bound.ceiling),
            "share": bound.map(|bound| bound.share),
            "repetitions": row.repetitions.iter().map(|repetition| {
                json!({ "seconds": repetition.seconds, "share": repetition.bound.share })
            }).collect::<Vec<_>>(),
        })
    };
    let left = swept.left_out.iter().map(|left| {
        json!({
            "group": left.group,
            "policy": left.policy.to_string(),
            "variant": left.variant,
            "reason": left.reason,
        })
    });
    let slower = swept.slower(LEVEL).into_iter().map(|slower| {
        json!({
            "test": slower.test,
            "policy": slower.policy.to_string(),
            "chosen": slower.chosen,
            "faster": slower.faster,
            "ratio": slower.ratio,
            "probability": slower.probability,
        })
    });
    json!({
        "benchmark": benchmark,
        "machine": machine,
        "rows": swept.rows.iter().map(row).collect::<Vec<_>>(),
        "left_out": left.collect::<Vec<_>>(),
        "missing_variants": missing,
        "not_fastest": slower.collect::<Vec<_>>(),
    })
}
