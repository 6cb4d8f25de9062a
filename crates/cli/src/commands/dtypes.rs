//! `mantissa dtypes`: which number formats each kernel supports.

use std::io::Write;

use anyhow::Result;
use mantissa::cpu::{CpuBackend, Isa};
use mantissa::numerics::contract::OpContract;
use mantissa::ops::matrix::{MatrixRow, matrix_of, render_markdown};
use mantissa::{Device, cuda};

use crate::context::Context;
use crate::output;

/// The instruction set whose contracts are published: the best one. What other sets do differently is said in words.
const PUBLISHED: Isa = Isa::Avx512;

/// What stands above the tables, in the documentation and on the terminal.
const INTRODUCTION: &str = "\
# Supported number formats

Each cell names how a kernel forms products and in which order it adds them up; sums are f32 in every cell. A dash means
that the combination is refused when a model is prepared, before the first token, with the nearest combinations that
work.

- `f32 fma`: operands decoded exactly to f32, one fused multiply-add per term.
- `bf16 pairs`: two products of bf16 numbers at a time into an f32 sum, as the instruction `vdpbf16ps` does it. `ftz`: it
  takes subnormal operands and results as zero. That is so with the instruction set avx512; avx2, neon and scalar keep
  them, and give the same bits otherwise.
- `matrix units k16`: the tensor cores of a GPU: sixteen exact products at a time are added to an f32 sum, all terms
  aligned to the largest and cut off below it, which is a bit or two less exact than rounding each sum.
- `copy`: no products.
- `ascending`: one chain over the reduced index. `lanes16`: sixteen interleaved chains, then a fixed tree; `lanes256x4`:
  256 chains of groups of four neighbours. `chains32x4`: the same with the chains added one after the other.
  `segments256`: a chain for each 256 neighbours, the results added in ascending order. `spans512`: one softmax for each
  span of 512 positions, merged in ascending order; `spans64x8`: spans of 64 positions are merged into sections of eight,
  sections in ascending order. No order depends on the number of threads, on the sizes of caches, or on the other rows of
  a batch.
- `softmax weights (two parts)`: the tensor cores take a weight as the sum of two numbers of the activations' format, the
  nearest one and the nearest to what is left: 16 significant bits in bf16, 22 in f16.
- A cache written `f8e4m3+f16` holds f8e4m3 numbers with one f16 scale per head and token.
";

/// What stands above the tables of a device, by the name of its contracts' backend.
const DEVICES: [(&str, &str); 2] = [
    ("cpu", "## CPU\n"),
    (
        "cuda",
        "## CUDA\n\nThe same on every NVIDIA GPU from compute capability 8.0 (Ampere) on. Tensor cores multiply where weights \
         and\nactivations are both f16 or both bf16; in attention, where the cache has the format of the activations, or is\nf8e4m3, \
         which converts to both exactly.\n",
    ),
];

/// How to make the documentation anew.
const COMMENT: &str =
    "<!-- Written by `mantissa dtypes --markdown > docs/dtype-support.md`; a test compares. -->\n";

/// Arguments of `mantissa dtypes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa dtypes                     the tables of all devices
  mantissa dtypes --device cuda:0     those of GPUs
  mantissa dtypes --json              every combination, supported or not, as a JSON array
  mantissa dtypes --cpu-isa avx2      what another instruction set does

The tables do not depend on the machine: they are those of avx512 unless --cpu-isa names another set.")]
pub struct Args {
    /// Print a JSON array with an object for every combination
    #[arg(long, conflicts_with = "markdown")]
    json: bool,

    /// Print the Markdown of docs/dtype-support.md
    #[arg(long)]
    markdown: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let matrices: Vec<(&str, Vec<MatrixRow>)> = DEVICES
        .into_iter()
        .filter(|(name, _)| match context.asked_device() {
            Device::Auto => true,
            Device::Cpu => *name == "cpu",
            Device::Cuda(_) => *name == "cuda",
        })
        .map(|(name, heading)| (heading, matrix_of(name, &contracts_of(name, context))))
        .collect();
    if args.json {
        let rows: Vec<&MatrixRow> = matrices.iter().flat_map(|(_, rows)| rows).collect();
        return output::json(&rows);
    }
    let mut out = output::stdout();
    write!(out, "{}{INTRODUCTION}", if args.markdown { COMMENT } else { "" })?;
    for (heading, rows) in &matrices {
        let tables = render_markdown(rows);
        let tables = if args.markdown { tables } else { aligned(&tables) };
        write!(out, "\n{heading}\n{tables}")?;
    }
    Ok(())
}

/// The contracts of one of [`DEVICES`].
fn contracts_of(name: &str, context: &Context) -> Vec<OpContract> {
    match name {
        "cuda" => cuda::contracts(context.cuda.products),
        _ => CpuBackend::contracts_of(context.cpu_isa.unwrap_or(PUBLISHED)),
    }
}

/// The Markdown with the columns of each table aligned, for reading as it is.
fn aligned(markdown: &str) -> String {
    let lines: Vec<&str> = markdown.lines().collect();
    let tables = lines.chunk_by(|left, right| left.starts_with('|') == right.starts_with('|'));
    let mut text = String::new();
    for chunk in tables {
        if chunk[0].starts_with('|') {
            text.push_str(&aligned_table(chunk));
        } else {
            text.extend(chunk.iter().flat_map(|line| [line, "\n"]));
        }
    }
    text
}

fn aligned_table(lines: &[&str]) -> String {
    let cells = |line: &&str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace("\\\\", "\\")).collect()
    };
    let rows: Vec<Vec<String>> = lines.iter().filter(|line| !line.starts_with("|---")).map(cells).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("  {}", padded.collect::<Vec<_>>().join("   ")).trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_the_rest_is_kept() {
        let markdown = "### a\n\n| w \\\\ a | f32 |\n|---|---|\n| bf16 | long cell |\n\nafter\n";
        assert_eq!(aligned(markdown), "### a\n\n  w \\ a   f32\n  bf16    long cell\n\nafter\n");
    }
}
