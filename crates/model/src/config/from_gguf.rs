//! GGUF metadata, with the keys and defaults of llama.cpp.

use mantissa_numerics::Format;

use super::{Architecture, ConfigError, Keys, MAX_CONTEXT, MAX_LAYERS, MAX_SIZE, ModelConfig};
use crate::{
    gguf::{FromValue, Gguf},
    rope::{LongRope, RopeConfig, RopeScaling, Yarn, YarnRamp},
};

/// Base of the rotary frequencies where the file names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Factors of rotary frequencies, which GGUF keeps in tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RopeFactors {
    /// `rope_freqs.weight`.
    pub all: Option<Vec<f64>>,
    /// `rope_factors_short.weight`.
    pub short: Option<Vec<f64>>,
    /// `rope_factors_long.weight`.
    pub long: Option<Vec<f64>>,
}

/// The metadata of one architecture: keys start with its name.
struct Section<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl<'a> Section<'a> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        Ok(self.gguf.get(&self.key(key))?)
    }

    fn invalid(&self, key: &str, wanted: impl Into<String>, got: impl ToString) -> ConfigError {
        ConfigError::Invalid {
            file: self.gguf.file().to_owned(),
            key: self.key(key),
            wanted: wanted.into(),
            got: got.to_string(),
        }
    }

    fn unsupported(&self, key: String, got: impl ToString, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.gguf.file().to_owned(),
            key,
            got: got.to_string(),
            supported: supported.to_owned(),
        }
    }

    /// An integer from 1 to `limit`.
    fn size(&self, key: &str, limit: usize) -> Result<Option<usize>, ConfigError> {
        let Some(got) = self.get::<u64>(key)? else { return Ok(None) };
        match usize::try_from(got) {
            Ok(size) if (1..=limit).contains(&size) => Ok(Some(size)),
            _ => Err(self.invalid(key, format!("an integer from 1 to {limit}"), got)),
        }
    }

    fn require_size(&self, key: &str, limit: usize) -> Result<usize, ConfigError> {
        self.size(key, limit)?.ok_or_else(|| ConfigError::Missing {
            file: self.gguf.file().to_owned(),
            key: self.key(key),
            wanted: format!("an integer from 1 to {limit}"),
        })
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.get::<f64>(key)? {
            Some(got) if !(got.is_finite() && got > 0.0) => Err(self.invalid(key, "a positive number", got)),
            number => Ok(number),
        }
    }
}

/// Reads the configuration of the model in `gguf`.
pub(crate) fn read(gguf: &Gguf, factors: RopeFactors) -> Result<ModelConfig, ConfigError> {
    let prefix: &str = gguf.require("general.architecture")?;
    let section = Section { gguf, prefix };
    let architecture = architecture(&section)?;
    refuse_what_cannot_be_expressed(&section)?;

    let layers = section.require_size("block_count", MAX_LAYERS)?;
    let hidden_size = section.require_size("embedding_length", MAX_SIZE)?;
    let heads = section.require_size("attention.head_count", MAX_SIZE)?;
    let head_dim = match section.size("attention.key_length", MAX_SIZE)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let wanted = format!("a multiple of {} = {heads}", section.key("attention.head_count"));
            return Err(section.invalid("embedding_length", wanted, hidden_size));
        }
    };
    if let Some(value_length) = section.size("attention.value_length", MAX_SIZE)?
        && value_length != head_dim
    {
        return Err(section.invalid(
            "attention.value_length",
            format!("that of keys, {head_dim}"),
            value_length,
        ));
    }
    let max_position_embeddings = section.require_size("context_length", MAX_CONTEXT)?;
    let window = match section.get::<u64>("attention.sliding_window")? {
        Some(0) | None => None,
        Some(_) => section.size("attention.sliding_window", MAX_CONTEXT)?,
    };
    let rope = rope(&section, head_dim, max_position_embeddings, factors)?;
    let config = ModelConfig {
        architecture,
        vocab_size: vocab_size(&section)?,
        hidden_size,
        layers,
        heads,
        kv_heads: section.size("attention.head_count_kv", MAX_SIZE)?.unwrap_or(heads),
        head_dim,
        intermediate_size: section.require_size("feed_forward_length", MAX_SIZE)?,
        rms_norm_eps: rms_norm_eps(&section)?,
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        max_position_embeddings,
        attention_bias: gguf.tensor("blk.0.attn_q.bias").is_some(),
        windows: vec![window; layers],
        rope,
        dtype: dtype(gguf)?,
        bos_token_id: token(gguf, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids: eos_token_ids(gguf)?,
    };
    let keys = Keys {
        heads: &section.key("attention.head_count"),
        kv_heads: &section.key("attention.head_count_kv"),
        head_dim: &section.key("attention.key_length"),
        rotary: &section.key("rope.dimension_count"),
    };
    config.check(gguf.file(), &keys)
}

fn architecture(section: &Section<'_>) -> Result<Architecture, ConfigError> {
    // llama.cpp's converter writes Mistral as "llama"; there is no "mistral".
    let readable = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3, Architecture::Phi3];
    readable.into_iter().find(|architecture| architecture.name() == section.prefix).ok_or_else(|| {
        let supported = readable.map(Architecture::name).join(", ");
        section.unsupported("general.architecture".to_owned(), format!("{:?}", section.prefix), &supported)
    })
}

fn refuse_what_cannot_be_expressed(section: &Section<'_>) -> Result<(), ConfigError> {
    if let Some(experts) = section.get::<u64>("expert_count")?
        && experts != 0
    {
        return Err(section.unsupported(section.key("expert_count"), experts, "models without experts"));
    }
    if let Some(parts) = section.gguf.get::<u64>("split.count")?
        && parts > 1
    {
        return Err(section.unsupported(
            "split.count".to_owned(),
            parts,
            "a single file (llama.cpp's gguf-split --merge makes one)",
        ));
    }
    Ok(())
}

fn vocab_size(section: &Section<'_>) -> Result<usize, ConfigError> {
    let rows = section.gguf.tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    if let Some(rows) = rows.filter(|&rows| rows <= MAX_SIZE) {
        return Ok(rows);
    }
    match section.gguf.get::<&[String]>("tokenizer.ggml.tokens")? {
        Some(tokens) if (1..=MAX_SIZE).contains(&tokens.len()) => Ok(tokens.len()),
        _ => section.require_size("vocab_size", MAX_SIZE),
    }
}

fn rms_norm_eps(section: &Section<'_>) -> Result<f64, ConfigError> {
    const KEY: &str = "attention.layer_norm_rms_epsilon";
    section.positive(KEY)?.ok_or_else(|| ConfigError::Missing {
        file: section.gguf.file().to_owned(),
        key: section.key(KEY),
        wanted: "a positive number".to_owned(),
    })
}

fn rope(
    section: &Section<'_>,
    head_dim: usize,
    context: usize,
    factors: RopeFactors,
) -> Result<RopeConfig, ConfigError> {
    let theta = section.positive("rope.freq_base")?.unwrap_or(DEFAULT_THETA);
    if theta <= 1.0 {
        return Err(section.invalid("rope.freq_base", "a number above 1", theta));
    }
    let rotary_dim = section.size("rope.dimension_count", MAX_SIZE)?.unwrap_or(head_dim);
    Ok(RopeConfig { theta, rotary_dim, scaling: scaling(section, context, factors)? })
}

fn scaling(section: &Section<'_>, context: usize, factors: RopeFactors) -> Result<RopeScaling, ConfigError> {
    const TYPE: &str = "rope.scaling.type";
    let kind = section.get::<&str>(TYPE)?;
    let original_context = match section.size("rope.scaling.original_context_length", MAX_CONTEXT)? {
        Some(1) => return Err(section.invalid("rope.scaling.original_context_length", "at least 2", 1)),
        given => given.unwrap_or(context),
    };
    let attention_factor = section.positive("rope.scaling.attn_factor")?;
    match (kind, factors) {
        (Some("longrope") | None, RopeFactors { short: Some(short_factor), long: Some(long_factor), .. }) => {
            let factor = context as f64 / original_context as f64;
            Ok(RopeScaling::LongRope(LongRope {
                short_factor,
                long_factor,
                factor,
                attention_factor,
                original_context,
            }))
        }
        (Some("none") | None, RopeFactors { all: Some(factors), .. }) => {
            Ok(RopeScaling::FrequencyFactors(factors))
        }
        (Some("none") | None, _) => Ok(RopeScaling::Default),
        (Some("linear"), RopeFactors { all: None, .. }) => {
            Ok(RopeScaling::Linear { factor: require_factor(section)? })
        }
        (Some("yarn"), RopeFactors { all: None, .. }) => {
            let factor = require_factor(section)?;
            // llama.cpp multiplies its attention factor onto the computed one.
            let computed = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                beta_fast: section.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: section.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: attention_factor.map(|given| given * computed),
                mscale: None,
                original_context,
                ramp: YarnRamp::WholeDimensions,
            }))
        }
        (Some(kind), _) => Err(section.unsupported(
            section.key(TYPE),
            format!("{kind:?} with the tensors beside it"),
            "none (with or without rope_freqs.weight), linear, yarn, longrope with both rope_factors tensors",
        )),
    }
}

fn require_factor(section: &Section<'_>) -> Result<f64, ConfigError> {
    const KEY: &str = "rope.scaling.factor";
    section.positive(KEY)?.ok_or_else(|| ConfigError::Missing {
        file: section.gguf.file().to_owned(),
        key: section.key(KEY),
        wanted: "a positive number".to_owned(),
    })
}

/// The scalar type that most tensors have, after llama.cpp's `llama_ftype`.
fn dtype(gguf: &Gguf) -> Result<Option<Format>, ConfigError> {
    Ok(match gguf.get::<u64>("general.file_type")? {
        Some(0) => Some(Format::F32),
        Some(1) => Some(Format::F16),
        Some(32) => Some(Format::Bf16),
        _ => None,
    })
}

fn token(gguf: &Gguf, key: &str) -> Result<Option<u32>, ConfigError> {
    let Some(id) = gguf.get::<u64>(key)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(ConfigError::Invalid {
            file: gguf.file().to_owned(),
            key: key.to_owned(),
            wanted: "a token id".to_owned(),
            got: id.to_string(),
        }),
    }
}

/// The end of a text, of a turn and of a message: any of them ends a generation.
fn eos_token_ids(gguf: &Gguf) -> Result<Vec<u32>, ConfigError> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(id) = token(gguf, &format!("tokenizer.ggml.{key}"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}
