//! Instruction sets: their names, which of them this machine has, and the proof that one may be used.

use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86-64 with AVX-512 (F, BW, DQ, VL) and its BF16 dot product.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AArch64 with Advanced SIMD.
    Neon,
    /// Plain Rust, on every machine; slow, and the same bits.
    Scalar,
}

impl Isa {
    /// Every instruction set, best first.
    pub const ALL: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Scalar];

    /// The name in preferences and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Scalar => "scalar",
        }
    }

    /// The best set that this machine has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// Whether this machine has every feature of the set.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Isa::Scalar => true,
            #[allow(unreachable_patterns, reason = "which sets remain depends on the target")]
            _ => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no instruction set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown instruction set \"{0}\"; the sets are {names}", names = names(&Isa::ALL))]
pub struct UnknownIsa(pub String);

/// An instruction set that this machine does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this machine has no {0}; it has {available}", available = available_names())]
pub struct UnavailableIsa(pub Isa);

fn names(sets: &[Isa]) -> String {
    sets.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

fn available_names() -> String {
    let available: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect();
    names(&available)
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(text: &str) -> Result<Isa, UnknownIsa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == text).ok_or_else(|| UnknownIsa(text.to_owned()))
    }
}

/// An instruction set known to be available here: what [`dispatch`](crate::simd::dispatch) takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tier(Isa);

impl Tier {
    /// The best one.
    pub fn detect() -> Tier {
        Tier(Isa::detect())
    }

    /// A chosen one.
    ///
    /// # Errors
    /// [`UnavailableIsa`] where this machine does not have it.
    pub fn new(isa: Isa) -> Result<Tier, UnavailableIsa> {
        if isa.is_available() { Ok(Tier(isa)) } else { Err(UnavailableIsa(isa)) }
    }

    /// Every one that this machine has, best first.
    pub fn available() -> impl Iterator<Item = Tier> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Tier)
    }

    /// Its name.
    pub const fn isa(self) -> Isa {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        let error = "sse".parse::<Isa>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown instruction set \"sse\"; the sets are avx512, avx2, neon, scalar"
        );
    }

    #[test]
    fn only_available_sets_become_tiers() {
        assert!(Isa::Scalar.is_available());
        assert!(Isa::detect().is_available());
        for isa in Isa::ALL {
            assert_eq!(Tier::new(isa).is_ok(), isa.is_available());
        }
        // No machine has both.
        let missing = if Isa::Neon.is_available() { Isa::Avx2 } else { Isa::Neon };
        let error = Tier::new(missing).unwrap_err().to_string();
        assert!(error.starts_with(&format!("this machine has no {missing}; it has ")), "{error}");
        assert!(error.ends_with("scalar"), "{error}");
    }
}
