//! What every command is given: the shared options, checked, and the environment, read once.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};
use mantissa::cpu::{Experimental, Isa};
use mantissa::cuda::families::{products, softmax};
use mantissa::cuda::preferences::UnknownPreference;
use mantissa::cuda::{CudaError, CudaOptions};
use mantissa::numerics::PrecisionPolicy;
use mantissa::{BatchRule, Chosen, Device, Options};

use crate::args::{Global, Gpu};
use crate::interrupt::Interrupt;
use crate::output;

/// Shared options and environment.
#[derive(Debug)]
pub struct Context {
    /// Policies asked for, in order; empty where none was.
    pub policies: Vec<PrecisionPolicy>,
    /// Where to compute, as asked for.
    asked: Device,
    /// Options about GPUs that were written on the command line.
    for_gpus: Vec<String>,
    /// Where to compute, found out when it is first needed: opening a GPU takes time.
    device: OnceLock<Device>,
    /// How to use a GPU.
    pub cuda: CudaOptions,
    /// Whether the numbers of a row may depend on its batch.
    batch: BatchRule,
    /// Threads asked for.
    pub threads: Option<NonZeroUsize>,
    /// Instruction set asked for.
    pub cpu_isa: Option<Isa>,
    /// Experimental kernel asked for.
    experimental: Option<Experimental>,
    /// Whether to say more.
    pub verbosity: Verbosity,
    /// Ctrl-C.
    pub interrupt: Interrupt,
}

/// How much to say on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Results, warnings and errors.
    Normal,
    /// What was done on the way, too.
    Verbose,
}

impl Context {
    /// Checks the shared options and reads the environment. `for_gpus` are the options about GPUs that were written on the
    /// command line: unlike variables, which hold for many runs, they mean this one.
    pub fn new(global: &Global, for_gpus: Vec<String>) -> Result<Context> {
        let policies = global.policy.iter().map(|text| policy(text)).collect::<Result<_>>()?;
        let isa = global.cpu_isa.as_deref().map(str::parse).transpose();
        let experimental = global.experimental.as_deref().map(str::parse::<Experimental>).transpose();
        let experimental = experimental.context("--experimental or MANTISSA_EXPERIMENTAL")?;
        if let Some(kernel) = experimental {
            // Nobody shall take its numbers or its speed for those of the usual kernel.
            writeln!(
                output::stderr(),
                "warning: the experimental kernel {kernel} takes the place of the usual one"
            )?;
        }
        let asked = global.device.parse().context("--device")?;
        let cuda = cuda_options(&global.gpu)?;
        if asked == Device::Cpu && !for_gpus.is_empty() {
            bail!("{}: of no account on the cpu, which --device asks for", for_gpus.join(", "));
        }
        Ok(Context {
            policies,
            asked,
            for_gpus,
            device: OnceLock::new(),
            cuda,
            batch: if global.batch_invariant { BatchRule::Invariant } else { BatchRule::Any },
            threads: global.threads,
            cpu_isa: isa.context("--cpu-isa or MANTISSA_CPU_ISA")?,
            experimental,
            verbosity: if global.verbose { Verbosity::Verbose } else { Verbosity::Normal },
            interrupt: Interrupt::install()?,
        })
    }

    /// The shared options as the library takes them.
    pub fn options(&self) -> Result<Options> {
        Ok(self.options_under(self.policy()?))
    }

    /// The shared options with a policy of one's own, for commands that go through several.
    pub fn options_under(&self, policy: Option<PrecisionPolicy>) -> Options {
        Options {
            policy,
            device: self.device(),
            threads: self.threads,
            cpu_isa: self.cpu_isa,
            experimental: self.experimental,
            cuda: self.cuda.clone(),
            batch: self.batch,
            ..Options::default()
        }
    }

    /// The device as asked for, without looking whether it is there.
    pub fn asked_device(&self) -> Device {
        self.asked
    }

    /// Where to compute, never [`Device::Auto`]. Where the best device is asked for, a GPU that is there but cannot be used
    /// is named on standard error.
    pub fn device(&self) -> Device {
        *self.device.get_or_init(|| {
            let options = Options { device: self.asked, cuda: self.cuda.clone(), ..Options::default() };
            let Chosen { device, no_gpu } = options.chosen_device();
            let missing =
                matches!(no_gpu, Some(CudaError::DriverMissing { .. } | CudaError::NoSuchDevice { .. }));
            let verbose = self.verbosity == Verbosity::Verbose;
            // Nothing depends on these lines: where they cannot be written, the device is the same.
            let _ = match no_gpu {
                Some(reason) if verbose || !missing => {
                    writeln!(output::stderr(), "running on the cpu: {reason}")
                }
                None if verbose => writeln!(output::stderr(), "running on {device}"),
                _ => Ok(()),
            };
            if device == Device::Cpu && !self.for_gpus.is_empty() {
                let options = self.for_gpus.join(", ");
                let _ = writeln!(output::stderr(), "warning: {options}: of no account on the cpu");
            }
            device
        })
    }

    /// The one policy that was asked for, if any.
    pub fn policy(&self) -> Result<Option<PrecisionPolicy>> {
        match self.policies.as_slice() {
            [] => Ok(None),
            [policy] => Ok(Some(*policy)),
            more => bail!("--policy was given {} times, but this command works under one", more.len()),
        }
    }
}

/// How to use a GPU, by the options and the environment.
fn cuda_options(gpu: &Gpu) -> Result<CudaOptions> {
    let rows = |text: &String| {
        let rows: Result<u16, _> = text.parse();
        rows.map(usize::from)
            .map_err(|_| anyhow!("there is no number of rows \"{text}\"; it is one of 0 to {}", u16::MAX))
    };
    let most = gpu.smalln_max_n.as_ref().map(rows).transpose();
    let most = most.context("--smalln-max-n or MANTISSA_SMALLN_MAX_N")?;
    Ok(CudaOptions {
        kernel_cache: gpu.kernel_cache.clone().or_else(kernel_cache),
        nvrtc: gpu.nvrtc.clone(),
        cublaslt: gpu.cublaslt.clone(),
        products: products::Preferences {
            backend: preference(&gpu.matmul_backend, "--matmul-backend or MANTISSA_MATMUL_BACKEND")?,
            variant: preference(&gpu.matmul_variant, "--matmul-variant or MANTISSA_MATMUL_VARIANT")?,
            small_n_max: most,
        },
        softmax: softmax::Preferences {
            variant: preference(&gpu.softmax_variant, "--softmax-variant or MANTISSA_SOFTMAX_VARIANT")?,
            group: preference(&gpu.softmax_group, "--softmax-group or MANTISSA_SOFTMAX_GROUP")?,
        },
        decode: preference(&gpu.decode_variant, "--decode-variant or MANTISSA_DECODE_VARIANT")?,
    })
}

/// A choice by its name, or the default where there is none.
fn preference<T>(name: &Option<String>, option: &'static str) -> Result<T>
where
    T: Default + FromStr<Err = UnknownPreference>,
{
    let choice = name.as_deref().map(str::parse::<T>).transpose().context(option)?;
    Ok(choice.unwrap_or_default())
}

/// Where compiled kernels are kept if nothing else is said.
fn kernel_cache() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(cache.join("mantissa").join("kernels"))
}

/// A policy as it is written on the command line or in `MANTISSA_POLICY`.
pub fn policy(text: &str) -> Result<PrecisionPolicy> {
    if !text.ends_with(".toml") {
        return text.parse().with_context(|| format!("policy {text:?}"));
    }
    let path = PathBuf::from(text);
    let toml =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read the policy file {text}"))?;
    PrecisionPolicy::from_toml(&toml).with_context(|| format!("policy file {text}"))
}
