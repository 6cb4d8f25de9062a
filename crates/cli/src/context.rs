//! What every command is given: the shared options, checked, and the environment, read once.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use mantissa::numerics::PrecisionPolicy;

use crate::args::Global;
use crate::interrupt::Interrupt;

/// Shared options and environment.
#[derive(Debug)]
pub struct Context {
    /// Policies asked for, in order; empty where none was.
    pub policies: Vec<PrecisionPolicy>,
    /// Threads asked for.
    pub threads: Option<usize>,
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
        if global.threads == Some(0) {
            bail!("--threads 0: at least one thread is needed");
        }
        Ok(Context {
            policies,
            threads: global.threads,
            verbosity: if global.verbose { Verbosity::Verbose } else { Verbosity::Normal },
            interrupt: Interrupt::install()?,
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
fn policy(text: &str) -> Result<PrecisionPolicy> {
    if !text.ends_with(".toml") {
        return text.parse().with_context(|| format!("policy {text:?}"));
    }
    let path = PathBuf::from(text);
    let toml =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read the policy file {text}"))?;
    PrecisionPolicy::from_toml(&toml).with_context(|| format!("policy file {text}"))
}
