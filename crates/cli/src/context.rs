//! What every command is given: the shared options, checked, and the environment, read once.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use mantissa::cpu::Isa;
use mantissa::numerics::PrecisionPolicy;
use mantissa::{Device, Options};

use crate::args::Global;
use crate::interrupt::Interrupt;

/// Shared options and environment.
#[derive(Debug)]
pub struct Context {
    /// Policies asked for, in order; empty where none was.
    pub policies: Vec<PrecisionPolicy>,
    /// Where to compute.
    pub device: Device,
    /// Threads asked for.
    pub threads: Option<NonZeroUsize>,
    /// Instruction set asked for.
    pub cpu_isa: Option<Isa>,
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
    /// Checks the shared options and reads the environment.
    pub fn new(global: &Global) -> Result<Context> {
        let policies = global.policy.iter().map(|text| policy(text)).collect::<Result<_>>()?;
        let isa = global.cpu_isa.as_deref().map(str::parse).transpose();
        Ok(Context {
            policies,
            device: global.device.parse().context("--device")?,
            threads: global.threads,
            cpu_isa: isa.context("--cpu-isa or MANTISSA_CPU_ISA")?,
            verbosity: if global.verbose { Verbosity::Verbose } else { Verbosity::Normal },
            interrupt: Interrupt::install()?,
        })
    }

    /// The shared options as the library takes them.
    pub fn options(&self) -> Result<Options> {
        Ok(Options {
            policy: self.policy()?,
            device: self.device,
            threads: self.threads,
            cpu_isa: self.cpu_isa,
            ..Options::default()
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
