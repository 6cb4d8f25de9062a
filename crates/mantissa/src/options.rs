//! What a library user can ask for.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use mantissa_cpu::{CpuBackend, CpuOptions, Experimental, Isa};
use mantissa_cuda::{CudaBackend, CudaError, CudaOptions};
use mantissa_engine::sampling::SamplingOptions;
use mantissa_engine::sequence::EndOfText;
use mantissa_numerics::PrecisionPolicy;
use mantissa_ops::Backend;
use mantissa_ops::backend::OverflowRule;

use crate::error::Error;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The best that this build and this machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA GPU with this number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no device \"{0}\"; there are cpu, cuda:N for the NVIDIA GPU with number N, and auto, which takes cuda:0 \
     where it can be used, and else cpu"
)]
pub struct UnknownDevice(pub String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Device, UnknownDevice> {
        let ordinal = || text.strip_prefix("cuda:")?.parse().ok();
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            _ => ordinal().map(Device::Cuda).ok_or_else(|| UnknownDevice(text.to_owned())),
        }
    }
}

/// What [`Device::Auto`] stands for on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The device, never [`Device::Auto`].
    pub device: Device,
    /// Why it is not a GPU.
    pub no_gpu: Option<CudaError>,
}

/// How to make a model ready.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// In which formats numbers are kept; the process-wide default
    /// ([`default_policy`](mantissa_numerics::default_policy)) where none is given.
    pub policy: Option<PrecisionPolicy>,
    /// Where to compute.
    pub device: Device,
    /// Threads of the processor; as many as it has cores where none are given. No result depends on it.
    pub threads: Option<NonZeroUsize>,
    /// Instruction set of the processor; the best it has where none is given.
    pub cpu_isa: Option<Isa>,
    /// An experimental kernel of the processor to take in the place of the usual one.
    pub experimental: Option<Experimental>,
    /// Where compiled kernels of a GPU are kept, where its libraries are, and which kernels are preferred.
    pub cuda: CudaOptions,
    /// Whether the numbers of a row may depend on what else is in its batch.
    pub batch: BatchRule,
    /// Tokens that prompt and answer may have together; where nothing is given, what the model was made for, but no
    /// more than [`Options::DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Prompts that run at the same time, 1 where nothing is given; more of them wait for their turn.
    pub sequences: Option<usize>,
    /// Whether the logits of every position are wanted ([`Generator::score`](crate::Generator::score)) or those of the
    /// next token only.
    pub logits: LogitRows,
    /// What to do with weights beyond the range of the policy's format.
    pub overflow: OverflowRule,
}

impl Options {
    /// The longest context that is prepared without being asked for: its cache takes memory.
    pub const DEFAULT_CONTEXT: usize = 4096;

    /// The backend that they ask for.
    ///
    /// # Errors
    /// Where the machine does not have it.
    pub fn backend(&self) -> Result<Box<dyn Backend>, Error> {
        let cuda = |ordinal| CudaBackend::new(ordinal, &self.cuda);
        let not_there =
            |device| self.experimental.map(|kernel| Error::ExperimentalElsewhere { kernel, device });
        match self.device {
            Device::Cuda(ordinal) => match not_there(self.device) {
                Some(error) => return Err(error),
                None => return Ok(Box::new(cuda(ordinal)?)),
            },
            Device::Auto => match cuda(0) {
                Ok(gpu) => return not_there(Device::Cuda(0)).map_or(Ok(Box::new(gpu)), Err),
                // A library that was asked for by name is not done without.
                Err(error @ CudaError::CublasLtMissing { .. }) => return Err(error.into()),
                Err(_) => {}
            },
            Device::Cpu => {}
        }
        Ok(Box::new(CpuBackend::new(CpuOptions {
            threads: self.threads,
            isa: self.cpu_isa,
            experimental: self.experimental,
        })?))
    }

    /// The device that they mean: the one named, or what [`Device::Auto`] stands for here.
    pub fn chosen_device(&self) -> Chosen {
        match self.device {
            Device::Auto => match CudaBackend::new(0, &self.cuda) {
                // Whoever opens the device is told what is missing.
                Ok(_) | Err(CudaError::CublasLtMissing { .. }) => {
                    Chosen { device: Device::Cuda(0), no_gpu: None }
                }
                Err(error) => Chosen { device: Device::Cpu, no_gpu: Some(error) },
            },
            device => Chosen { device, no_gpu: None },
        }
    }

    /// The policy that they ask for, or the process-wide default.
    pub fn policy(&self) -> PrecisionPolicy {
        mantissa_numerics::resolve(self.policy)
    }
}

/// Whether the numbers of a row may depend on what else is in its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchRule {
    /// As the contracts of the plan have it.
    #[default]
    Any,
    /// They may not: a plan in which they could is refused.
    Invariant,
}

/// Which rows of a run have logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogitRows {
    /// The last of each sequence, from which the next token is chosen.
    #[default]
    Last,
    /// All of them.
    All,
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen. What is left open here is taken from the checkpoint's recommendation, and what that leaves
    /// open from [`SamplingParams`](mantissa_engine::sampling::SamplingParams).
    pub sampling: SamplingOptions,
    /// Tokens to generate at most; 0 generates none.
    pub max_tokens: usize,
    /// Texts that end the answer and are no part of it.
    pub stop: Vec<String>,
    /// Whether the model's end-of-text tokens end the answer.
    pub end_of_text: EndOfText,
}

impl Default for GenerateOptions {
    fn default() -> GenerateOptions {
        GenerateOptions {
            sampling: SamplingOptions::default(),
            max_tokens: 256,
            stop: Vec::new(),
            end_of_text: EndOfText::Stop,
        }
    }
}

impl GenerateOptions {
    /// The most probable token each time.
    #[must_use]
    pub fn greedy(mut self) -> GenerateOptions {
        self.sampling.temperature = Some(0.0);
        self
    }

    /// At most this many tokens.
    #[must_use]
    pub fn max_tokens(mut self, tokens: usize) -> GenerateOptions {
        self.max_tokens = tokens;
        self
    }
}
