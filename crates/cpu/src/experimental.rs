//! Kernels that no plan takes unless a user names one: for trials, and to see that measurements notice what they should.
//!
//! They exist where the Cargo feature `experimental` is on, which it is not by default. One stands in the place of the usual
//! kernel and claims its contract, which nobody has checked; a plan shows its name in every step that it computes.

#[cfg(feature = "experimental")]
mod kernels;

use std::fmt;
use std::str::FromStr;

use mantissa_ops::Op;
use mantissa_ops::backend::KernelChoice;

use crate::isa::Tier;
use crate::matmul::{Matmul, MatmulError, MatmulScratch, matmul};
use crate::norm::{RmsNormArgs, rms_norm};
use crate::operands::{Machine, OperandError};
use crate::pool::Pool;

/// A kernel that is taken only where it is named. Without the feature `experimental` there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Experimental {
    /// RMSNorm that rounds to storage before it multiplies by the weight, and then again: a mistake, which `parity` finds.
    #[cfg(feature = "experimental")]
    WrongRmsNorm,
    /// Products with the usual bits that take a tenth longer, which `bench compare` finds.
    #[cfg(feature = "experimental")]
    SlowMatmul,
}

impl Experimental {
    /// Every one of this build.
    pub const ALL: &'static [Experimental] = &[
        #[cfg(feature = "experimental")]
        Experimental::WrongRmsNorm,
        #[cfg(feature = "experimental")]
        Experimental::SlowMatmul,
    ];

    /// The name by which it is chosen.
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "experimental")]
            Experimental::WrongRmsNorm => "wrong-rms-norm",
            #[cfg(feature = "experimental")]
            Experimental::SlowMatmul => "slow-matmul",
        }
    }

    /// Itself as the kernel of an op, or nothing where it leaves the usual one in its place.
    pub(crate) fn choice(self, op: &Op, usual: &KernelChoice) -> Option<KernelChoice> {
        let why = self.why(op)?;
        Some(KernelChoice {
            kernel: format!("{}.experimental.{self}", usual.kernel),
            why: format!("asked for by name: {why}"),
        })
    }

    /// What it does instead of an op's usual kernel.
    fn why(self, op: &Op) -> Option<&'static str> {
        // Without the feature there is nothing to look at the op for.
        let _ = op;
        match self {
            #[cfg(feature = "experimental")]
            Experimental::WrongRmsNorm => {
                matches!(op, Op::RmsNorm(_)).then_some("rounds before it multiplies by the weight, and again")
            }
            #[cfg(feature = "experimental")]
            Experimental::SlowMatmul => {
                matches!(op, Op::Matmul(_) | Op::Qkv(_) | Op::SwiGlu(_) | Op::Ffn(_) | Op::Logits(_))
                    .then_some("takes a tenth longer")
            }
        }
    }
}

impl fmt::Display for Experimental {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no experimental kernel of this build has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no experimental kernel \"{name}\"; {}", registered(.names))]
pub struct UnknownKernel {
    /// The name given.
    pub name: String,
    /// The names there are.
    pub names: Vec<&'static str>,
}

fn registered(names: &[&str]) -> String {
    match names.split_last() {
        None => "this build has none, they come with the Cargo feature experimental".to_owned(),
        Some((last, [])) => format!("there is {last}"),
        Some((last, others)) => format!("there are {} and {last}", others.join(", ")),
    }
}

impl FromStr for Experimental {
    type Err = UnknownKernel;

    fn from_str(text: &str) -> Result<Experimental, UnknownKernel> {
        let found = Experimental::ALL.iter().copied().find(|kernel| kernel.name() == text);
        found.ok_or_else(|| UnknownKernel {
            name: text.to_owned(),
            names: Experimental::ALL.iter().map(|kernel| kernel.name()).collect(),
        })
    }
}

/// A kernel of [`rms_norm`]'s operands.
pub(crate) type RmsNormKernel = fn(Machine<'_>, RmsNormArgs<'_>) -> Result<(), OperandError>;

/// A kernel of [`matmul`]'s operands.
pub(crate) type MatmulKernel = fn(&Pool, Tier, &mut MatmulScratch, Matmul<'_>) -> Result<(), MatmulError>;

/// The kernels of a session that an experimental one may replace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    pub rms_norm: RmsNormKernel,
    pub matmul: MatmulKernel,
}

impl Kernels {
    /// The usual ones, or what was named in the place of one.
    pub fn new(named: Option<Experimental>) -> Kernels {
        let usual = Kernels { rms_norm, matmul };
        match named {
            None => usual,
            #[cfg(feature = "experimental")]
            Some(Experimental::WrongRmsNorm) => Kernels { rms_norm: kernels::wrong_rms_norm, ..usual },
            #[cfg(feature = "experimental")]
            Some(Experimental::SlowMatmul) => Kernels { matmul: kernels::slow_matmul, ..usual },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_refused_with_those_there_are() {
        let refused = "right-rms-norm".parse::<Experimental>().unwrap_err();
        for kernel in Experimental::ALL {
            assert!(refused.to_string().contains(kernel.name()), "{refused}");
            assert_eq!(kernel.name().parse(), Ok(*kernel));
        }
        let without = UnknownKernel { name: "x".to_owned(), names: Vec::new() };
        assert_eq!(
            without.to_string(),
            "there is no experimental kernel \"x\"; this build has none, they come with the Cargo feature experimental"
        );
    }
}
