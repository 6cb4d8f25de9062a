//! The command line, as clap sees it.

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser};

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
    #[arg(long, global = true, value_name = "N", env = "MANTISSA_THREADS", hide_env_values = true)]
    pub threads: Option<std::num::NonZeroUsize>,

    /// CPU instruction set: avx512, avx2, neon or scalar; the best there is if not given
    #[arg(long, global = true, value_name = "ISA", env = "MANTISSA_CPU_ISA", hide_env_values = true)]
    pub cpu_isa: Option<String>,

    /// Where kernels compiled for a GPU are kept; $XDG_CACHE_HOME/mantissa/kernels or ~/.cache/mantissa/kernels if not
    /// given
    #[arg(long, global = true, value_name = "FOLDER", env = "MANTISSA_KERNEL_CACHE", hide_env_values = true)]
    pub kernel_cache: Option<std::path::PathBuf>,

    /// NVRTC, the library that compiles kernels for a GPU; looked for where libraries are if not given
    #[arg(long, global = true, value_name = "FILE", env = "MANTISSA_NVRTC", hide_env_values = true)]
    pub nvrtc: Option<std::path::PathBuf>,

    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_default_value = true)]
    pub color: anstream_color::Choice,

    /// Say more on standard error, such as what loading converted
    #[arg(long, short, global = true)]
    pub verbose: bool,
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
