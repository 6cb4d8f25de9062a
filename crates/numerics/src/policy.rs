//! What the user asks for: in which format weights, activations, sums, scales and the KV cache are kept.
//!
//! A policy is written as a preset name, as a preset with overrides, or as a TOML table:
//!
//! ```
//! use mantissa_numerics::{Field, Format, PrecisionPolicy};
//!
//! let policy: PrecisionPolicy = "bf16, kv_cache = f8e4m3".parse()?;
//! assert_eq!(policy.get(Field::KvCache), Format::F8E4M3);
//! assert_eq!(policy.to_string(), "bf16,kv_cache=f8e4m3");
//! assert_eq!(PrecisionPolicy::from_toml("preset = 'bf16'\nkv_cache = 'f8e4m3'")?, policy);
//! # Ok::<(), mantissa_numerics::PolicyError>(())
//! ```

mod default;
mod text;

use std::fmt;

pub use default::{default_policy, reset_default_policy, resolve, set_default_policy};

use crate::format::{Format, join_names};

/// One field of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// Weights, after dequantisation where they are stored in blocks.
    Weights,
    /// Activations between kernels, the residual stream included.
    Activations,
    /// Sums.
    Accumulation,
    /// Scales of quantised weights and of an 8-bit KV cache.
    Scales,
    /// Keys and values of past tokens.
    KvCache,
}

impl Field {
    /// Every field, in the order in which they are printed.
    pub const ALL: [Field; 5] =
        [Field::Weights, Field::Activations, Field::Accumulation, Field::Scales, Field::KvCache];

    /// The name in texts, tables and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Field::Weights => "weights",
            Field::Activations => "activations",
            Field::Accumulation => "accumulation",
            Field::Scales => "scales",
            Field::KvCache => "kv_cache",
        }
    }

    /// The formats that the field may have.
    pub const fn allowed(self) -> &'static [Format] {
        match self {
            Field::Weights | Field::Activations => &[Format::F32, Format::F16, Format::Bf16],
            Field::Accumulation => &[Format::F32],
            Field::Scales => &[Format::F16, Format::F32],
            Field::KvCache => &[Format::F32, Format::F16, Format::Bf16, Format::F8E4M3],
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A policy with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Preset {
    /// f32 throughout.
    F32,
    /// f16 throughout.
    F16,
    /// bf16 throughout, f16 scales: the default.
    Bf16,
    /// f16 with an 8-bit cache.
    MemoryEfficient,
    /// bf16 with f32 scales.
    HighPrecision,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 5] =
        [Preset::F32, Preset::F16, Preset::Bf16, Preset::MemoryEfficient, Preset::HighPrecision];

    /// The name in texts.
    pub const fn name(self) -> &'static str {
        match self {
            Preset::F32 => "f32",
            Preset::F16 => "f16",
            Preset::Bf16 => "bf16",
            Preset::MemoryEfficient => "memory-efficient",
            Preset::HighPrecision => "high-precision",
        }
    }

    /// One line for help texts.
    pub const fn description(self) -> &'static str {
        match self {
            Preset::F32 => "everything in f32: slowest, most memory, no rounding of weights or activations",
            Preset::F16 => "everything in f16: finer than bf16, but values beyond 65504 overflow",
            Preset::Bf16 => "everything in bf16, scales in f16: the default",
            Preset::MemoryEfficient => "f16 with an f8e4m3 KV cache: about half the cache of f16",
            Preset::HighPrecision => "bf16 with scales in f32",
        }
    }

    /// The policy that the name stands for.
    pub const fn policy(self) -> PrecisionPolicy {
        let (storage, scales, kv_cache) = match self {
            Preset::F32 => (Format::F32, Format::F32, Format::F32),
            Preset::F16 => (Format::F16, Format::F16, Format::F16),
            Preset::Bf16 => (Format::Bf16, Format::F16, Format::Bf16),
            Preset::MemoryEfficient => (Format::F16, Format::F16, Format::F8E4M3),
            Preset::HighPrecision => (Format::Bf16, Format::F32, Format::Bf16),
        };
        PrecisionPolicy {
            weights: storage,
            activations: storage,
            accumulation: Format::F32,
            scales,
            kv_cache,
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// In which format each kind of value is kept. Only allowed combinations can be built: start from a [`Preset`] (or
/// the default, [`Preset::Bf16`]) and [`set`](PrecisionPolicy::set) what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrecisionPolicy {
    weights: Format,
    activations: Format,
    accumulation: Format,
    scales: Format,
    kv_cache: Format,
}

impl Default for PrecisionPolicy {
    fn default() -> PrecisionPolicy {
        Preset::Bf16.policy()
    }
}

impl From<Preset> for PrecisionPolicy {
    fn from(preset: Preset) -> PrecisionPolicy {
        preset.policy()
    }
}

impl PrecisionPolicy {
    /// Format of the weights, after dequantisation.
    pub const fn weights(&self) -> Format {
        self.weights
    }

    /// Format of the activations.
    pub const fn activations(&self) -> Format {
        self.activations
    }

    /// Format of sums: f32.
    pub const fn accumulation(&self) -> Format {
        self.accumulation
    }

    /// Format of scales.
    pub const fn scales(&self) -> Format {
        self.scales
    }

    /// Format of the KV cache.
    pub const fn kv_cache(&self) -> Format {
        self.kv_cache
    }

    /// The format of one field.
    pub const fn get(&self, field: Field) -> Format {
        match field {
            Field::Weights => self.weights,
            Field::Activations => self.activations,
            Field::Accumulation => self.accumulation,
            Field::Scales => self.scales,
            Field::KvCache => self.kv_cache,
        }
    }

    /// Changes one field.
    ///
    /// # Errors
    /// [`PolicyError::NotAllowed`] where the field cannot have that format; the policy is then unchanged.
    pub fn set(&mut self, field: Field, format: Format) -> Result<(), PolicyError> {
        if !field.allowed().contains(&format) {
            return Err(PolicyError::NotAllowed { field, value: format.name().to_owned() });
        }
        match field {
            Field::Weights => self.weights = format,
            Field::Activations => self.activations = format,
            Field::Accumulation => self.accumulation = format,
            Field::Scales => self.scales = format,
            Field::KvCache => self.kv_cache = format,
        }
        Ok(())
    }

    /// The policy with one field changed, for chains.
    ///
    /// # Errors
    /// As [`PrecisionPolicy::set`].
    pub fn with(mut self, field: Field, format: Format) -> Result<PrecisionPolicy, PolicyError> {
        self.set(field, format)?;
        Ok(self)
    }

    /// The preset that the policy equals, if any.
    pub fn preset(&self) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.policy() == *self)
    }

    /// The fields in which the policy differs from `preset`.
    fn overrides(&self, preset: Preset) -> impl Iterator<Item = (Field, Format)> {
        let (base, policy) = (preset.policy(), *self);
        Field::ALL
            .into_iter()
            .filter(move |&field| policy.get(field) != base.get(field))
            .map(move |field| (field, policy.get(field)))
    }

    /// The preset from which the policy is told in the fewest overrides, the shortest name where several do.
    fn nearest_preset(&self) -> Preset {
        let cost = |preset: &Preset| (self.overrides(*preset).count(), preset.name().len());
        Preset::ALL.into_iter().min_by_key(cost).unwrap_or(Preset::Bf16)
    }

    /// Reads a TOML table: optionally `preset`, then any of the fields.
    ///
    /// # Errors
    /// [`PolicyError::Toml`] with the place and the reason; where a field is wrong, the reason names it, its value
    /// and the allowed ones.
    pub fn from_toml(text: &str) -> Result<PrecisionPolicy, PolicyError> {
        toml::from_str(text).map_err(|error| PolicyError::Toml(error.to_string()))
    }
}

/// A policy that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A field with a value it may not have.
    #[error("{field} cannot be \"{value}\"; allowed: {}", join_names(.field.allowed()))]
    NotAllowed {
        /// The field.
        field: Field,
        /// What was asked for.
        value: String,
    },
    /// A field that does not exist.
    #[error("a policy has no field \"{0}\"; the fields are {names}", names = join(Field::ALL.map(Field::name)))]
    UnknownField(String),
    /// A word that is no preset.
    #[error(
        "\"{0}\" is no policy preset; the presets are {names}, and overrides are written field=format",
        names = join(Preset::ALL.map(Preset::name))
    )]
    UnknownPreset(String),
    /// A preset after the first place, where it would undo what stands before it.
    #[error("preset \"{0}\" must stand first in a policy")]
    PresetNotFirst(Preset),
    /// A field that is given twice.
    #[error("{0} is given twice in a policy")]
    Repeated(Field),
    /// Nothing between two commas, or nothing at all.
    #[error(
        "a part of the policy is empty; write a preset ({}) or overrides such as bf16,kv_cache=f8e4m3",
        join(Preset::ALL.map(Preset::name))
    )]
    Empty,
    /// A table that cannot be read.
    #[error("the policy table cannot be read: {0}")]
    Toml(String),
}

fn join(names: [&str; 5]) -> String {
    names.join(", ")
}
