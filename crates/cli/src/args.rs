//! The command line, as clap sees it.

use std::num::NonZeroUsize;

use clap::builder::styling::{AnsiColor, Styles};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command as Clap, Parser};

use crate::commands::Command;

/// Runs large language models in exactly the number formats you ask for.
#[derive(Debug, Parser)]
#[command(
    name = "mantissa",
    version,
    styles = STYLES,
    disable_help_subcommand = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  mantissa run                                               see the built-in model write
  mantissa run ./Qwen2.5-0.5B -p \"Once upon a time\"          continue a text
  mantissa run Qwen/Qwen2.5-0.5B-Instruct --chat -p \"Hi\"     download a model and ask it
  mantissa chat model.gguf --policy f16                      talk, with everything in f16
  mantissa inspect ./Qwen2.5-0.5B                            what is in it, and what each policy would cost

MODEL is a Hugging Face folder, a .gguf file, or a repository id such as Qwen/Qwen2.5-0.5B-Instruct. Without one, it is
mantissa-tiny, a small model that this program carries; a folder of that name is ./mantissa-tiny.";

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Number formats: a preset (f32, f16, bf16, memory-efficient, high-precision), overrides of one
    /// (bf16,kv_cache=f8e4m3), or a .toml file
    #[arg(long, global = true, value_name = "P", env = "MANTISSA_POLICY", hide_env_values = true)]
    pub policy: Vec<String>,

    /// Where to compute: cpu, cuda:N for an NVIDIA GPU, or auto for cuda:0 where it can be used and else cpu
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto", hide_default_value = true)]
    pub device: String,

    /// Threads to compute with; all cores if not given. The result does not depend on it
    #[arg(
        long,
        global = true,
        value_name = "N",
        env = "MANTISSA_THREADS",
        hide_env_values = true,
        value_parser = at_least_one
    )]
    pub threads: Option<NonZeroUsize>,

    /// CPU instruction set: avx512, avx2, neon or scalar; the best there is if not given
    #[arg(long, global = true, value_name = "ISA", env = "MANTISSA_CPU_ISA", hide_env_values = true)]
    pub cpu_isa: Option<String>,

    /// A kernel of the CPU that is taken only where it is named, in builds with the Cargo feature experimental:
    /// wrong-rms-norm, which parity finds, or slow-matmul, which bench compare finds
    #[arg(long, global = true, value_name = "NAME", env = "MANTISSA_EXPERIMENTAL", hide_env_values = true)]
    pub experimental: Option<String>,

    /// Refuse a plan in which the numbers of a row could depend on what else is in its batch
    #[arg(long, global = true)]
    pub batch_invariant: bool,

    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    pub color: anstream_color::Choice,

    /// Say more on standard error, such as what loading converted
    #[arg(long, short, global = true)]
    pub verbose: bool,

    /// How to use a GPU.
    #[command(flatten)]
    pub gpu: Gpu,
}

/// How to use an NVIDIA GPU.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "NVIDIA GPUs")]
pub struct Gpu {
    /// Where compiled kernels are kept; $XDG_CACHE_HOME/mantissa/kernels or ~/.cache/mantissa/kernels if not given
    #[arg(long, global = true, value_name = "FOLDER", env = "MANTISSA_KERNEL_CACHE", hide_env_values = true)]
    pub kernel_cache: Option<std::path::PathBuf>,

    /// NVRTC, the library that compiles kernels; looked for where libraries are if not given
    #[arg(long, global = true, value_name = "FILE", env = "MANTISSA_NVRTC", hide_env_values = true)]
    pub nvrtc: Option<std::path::PathBuf>,

    /// cuBLASLt, NVIDIA's matrix library; looked for where libraries are, if it is wanted and not given
    #[arg(long, global = true, value_name = "FILE", env = "MANTISSA_CUBLASLT", hide_env_values = true)]
    pub cublaslt: Option<std::path::PathBuf>,

    /// Who multiplies matrices: own kernels; cublaslt for many rows, where a row's numbers then depend on its batch;
    /// auto, which is own
    #[arg(long, global = true, value_name = "WHO", env = "MANTISSA_MATMUL_BACKEND", hide_env_values = true)]
    pub matmul_backend: Option<String>,

    /// Kind of matrix kernel: smalln, made for few rows; gemm, made for many; auto, by the number of rows
    #[arg(long, global = true, value_name = "KIND", env = "MANTISSA_MATMUL_VARIANT", hide_env_values = true)]
    pub matmul_variant: Option<String>,

    /// Most rows for which auto takes the kernels made for few; by formats and shape if not given
    #[arg(long, global = true, value_name = "ROWS", env = "MANTISSA_SMALLN_MAX_N", hide_env_values = true)]
    pub smalln_max_n: Option<String>,

    /// Kind of softmax kernel: vec, which keeps a row in registers where it fits; block, which reads it three times;
    /// auto, by the width
    #[arg(
        long,
        global = true,
        value_name = "KIND",
        env = "MANTISSA_SOFTMAX_VARIANT",
        hide_env_values = true
    )]
    pub softmax_variant: Option<String>,

    /// Threads that share a row in the softmax kernel vec: 32, 64, 128, or auto, by the width
    #[arg(
        long,
        global = true,
        value_name = "THREADS",
        env = "MANTISSA_SOFTMAX_GROUP",
        hide_env_values = true
    )]
    pub softmax_group: Option<String>,

    /// How a token of one sequence is computed: token, by one kernel that goes through the whole model; graph, kernel by
    /// kernel in one graph; auto, by one kernel where there is one for the model, the formats and the device
    #[arg(long, global = true, value_name = "KIND", env = "MANTISSA_DECODE_VARIANT", hide_env_values = true)]
    pub decode_variant: Option<String>,
}

impl Gpu {
    /// Those of the options that were written on the command line, as they are written there.
    pub fn written(matches: &ArgMatches) -> Vec<String> {
        let options = Gpu::augment_args(Clap::new("gpu"));
        let written = |argument: &&clap::Arg| {
            matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
        };
        let name = |argument: &clap::Arg| argument.get_long().map(|name| format!("--{name}"));
        options.get_arguments().filter(written).filter_map(name).collect()
    }
}

/// A number that cannot be 0.
pub fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "it must be a whole number of at least 1".to_owned())
}

mod anstream_color {
    //! `--color`, as clap parses it and anstream obeys it.

    /// When to use colours.
    #[derive(Clone, Copy, Debug, clap::ValueEnum)]
    pub enum Choice {
        /// On a terminal, unless NO_COLOR is set.
        Auto,
        /// Always.
        Always,
        /// Never.
        Never,
    }

    impl Choice {
        /// Makes every stream of this process obey.
        pub fn write_global(self) {
            match self {
                Choice::Auto => anstream::ColorChoice::Auto,
                Choice::Always => anstream::ColorChoice::Always,
                Choice::Never => anstream::ColorChoice::Never,
            }
            .write_global();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use mantissa::cuda::families::{products, softmax, token};

    use super::Cli;

    /// The rows of the table in the documentation: every option that the environment sets as well.
    fn rows() -> Vec<String> {
        let command = Cli::command();
        let row = |argument: &clap::Arg| {
            let variable = argument.get_env()?.to_str()?;
            let (name, value) = (argument.get_long()?, argument.get_value_names()?.first()?);
            let help = argument.get_help()?.to_string();
            Some(format!("| `--{name} {value}` | `{variable}` | {help} |"))
        };
        command.get_arguments().filter_map(row).collect()
    }

    #[test]
    fn the_documentation_lists_every_preference() {
        let documented = include_str!("../../../docs/gpu.md");
        let table =
            documented.lines().filter(|line| line.starts_with("| `--") && line.contains("| `MANTISSA_"));
        assert_eq!(
            table.collect::<Vec<_>>(),
            rows(),
            "copy the rows into docs/gpu.md:\n{}",
            rows().join("\n")
        );
    }

    #[test]
    fn every_choice_is_named_where_its_option_is_explained() {
        let rows = rows();
        let explained = |option: &str, names: Vec<&str>| {
            let row = rows.iter().find(|row| row.starts_with(&format!("| `--{option} "))).unwrap();
            assert!(names.iter().all(|name| row.contains(name)), "{row}: {names:?}");
        };
        explained(
            "matmul-backend",
            products::MatmulBackend::ALL.iter().map(|choice| choice.name()).collect(),
        );
        explained(
            "matmul-variant",
            products::VariantPreference::ALL.iter().map(|choice| choice.name()).collect(),
        );
        explained(
            "softmax-variant",
            softmax::VariantPreference::ALL.iter().map(|choice| choice.name()).collect(),
        );
        explained(
            "softmax-group",
            softmax::GroupPreference::ALL.iter().map(|choice| choice.name()).collect(),
        );
        explained("decode-variant", token::DecodeVariant::ALL.iter().map(|choice| choice.name()).collect());
        explained(
            "experimental",
            mantissa::cpu::Experimental::ALL.iter().map(|kernel| kernel.name()).collect(),
        );
        explained("cpu-isa", mantissa::cpu::Isa::ALL.iter().map(|isa| isa.name()).collect());
    }
}
