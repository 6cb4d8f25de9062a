//! `config.json`, with the defaults that transformers' configuration classes have.

use std::path::Path;

use mantissa_numerics::{Ecosystem, Format};

use super::{
    Architecture, ConfigError, Keys, MAX_CONTEXT, MAX_LAYERS, MAX_SIZE, ModelConfig,
    fields::{self, Fields},
    rope_json,
};

const KEYS: Keys<'static> = Keys {
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    rotary: "partial_rotary_factor",
};

/// Width of a head where a Qwen3 file names none.
const QWEN3_HEAD_DIM: usize = 128;

/// Sliding window where a Mistral or Qwen file leaves the key out (`null` is another matter).
const DEFAULT_WINDOW: usize = 4096;

/// First layer with a sliding window where a Qwen file names none.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

pub(super) fn read(text: &[u8], file: &Path) -> Result<ModelConfig, ConfigError> {
    let map = fields::parse(text, file)?;
    let root = Fields::new(file, &map);
    let architecture = architecture(root)?;
    refuse_what_cannot_be_expressed(root)?;

    let layers = root.require_size("num_hidden_layers", MAX_LAYERS)?;
    let hidden_size = root.require_size("hidden_size", MAX_SIZE)?;
    let heads = root.require_size(KEYS.heads, MAX_SIZE)?;
    let kv_heads = match (root.size(KEYS.kv_heads, MAX_SIZE)?, architecture) {
        (Some(kv_heads), _) => kv_heads,
        // Files from before grouped queries.
        (None, Architecture::Llama | Architecture::Phi3) => heads,
        (None, _) if root.contains(KEYS.kv_heads) => heads,
        (None, _) => return Err(root.missing(KEYS.kv_heads, format!("a divisor of {heads}"))),
    };
    let head_dim = head_dim(root, architecture, hidden_size, heads)?;
    let max_position_embeddings = root.require_size("max_position_embeddings", MAX_CONTEXT)?;
    ModelConfig {
        architecture,
        vocab_size: root.require_size("vocab_size", MAX_SIZE)?,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: root.require_size("intermediate_size", MAX_SIZE)?,
        rms_norm_eps: root.require_positive("rms_norm_eps")?,
        tie_word_embeddings: root.bool("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings,
        attention_bias: attention_bias(root, architecture)?,
        windows: windows(root, architecture, layers)?,
        rope: rope_json::read(root, architecture, head_dim, max_position_embeddings)?,
        dtype: dtype(root)?,
        bos_token_id: root.token("bos_token_id")?,
        eos_token_ids: root.tokens("eos_token_id")?.unwrap_or_default(),
    }
    .check(file, &KEYS)
}

fn architecture(root: Fields<'_>) -> Result<Architecture, ConfigError> {
    let class = root.texts("architectures")?.and_then(|classes| classes.first().copied());
    let (key, got) = match (class, root.text("model_type")?) {
        (Some(class), _) => ("architectures", class),
        (None, Some(model_type)) => ("model_type", model_type),
        (None, None) => {
            return Err(root.missing("architectures", "a list with the name of the model's class"));
        }
    };
    let known = |architecture: &Architecture| match key {
        "architectures" => architecture.class_name() == got,
        _ => architecture.name() == got,
    };
    Architecture::ALL.into_iter().find(known).ok_or_else(|| {
        let supported = Architecture::ALL.map(Architecture::class_name).join(", ");
        root.unsupported(key, format!("{got:?}"), &supported)
    })
}

fn refuse_what_cannot_be_expressed(root: Fields<'_>) -> Result<(), ConfigError> {
    if let Some(quantization) = root.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unnamed");
        return Err(quantization.unsupported(
            "quant_method",
            format!("{method:?}"),
            "checkpoints that store f32, f16 or bf16",
        ));
    }
    match root.text("hidden_act")? {
        Some("silu" | "swish") | None => {}
        Some(other) => return Err(root.unsupported("hidden_act", format!("{other:?}"), "\"silu\"")),
    }
    if root.bool("mlp_bias")? == Some(true) {
        return Err(root.unsupported("mlp_bias", true, "false"));
    }
    Ok(())
}

fn head_dim(
    root: Fields<'_>,
    architecture: Architecture,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, ConfigError> {
    if let Some(head_dim) = root.size(KEYS.head_dim, MAX_SIZE)? {
        return Ok(head_dim);
    }
    if architecture == Architecture::Qwen3 && !root.contains(KEYS.head_dim) {
        return Ok(QWEN3_HEAD_DIM);
    }
    if !hidden_size.is_multiple_of(heads) {
        return Err(root.invalid(
            "hidden_size",
            format!("a multiple of {} = {heads} (or a {} beside it)", KEYS.heads, KEYS.head_dim),
            hidden_size,
        ));
    }
    Ok(hidden_size / heads)
}

/// Whether queries, keys and values have biases. The checkpoint refuses tensors with biases of the output, which
/// the same key promises in Llama and Qwen3.
fn attention_bias(root: Fields<'_>, architecture: Architecture) -> Result<bool, ConfigError> {
    let given = root.bool("attention_bias")?.unwrap_or(false);
    match architecture {
        Architecture::Llama | Architecture::Qwen3 => Ok(given),
        Architecture::Qwen2 => Ok(true),
        Architecture::Mistral | Architecture::Phi3 => Ok(false),
    }
}

/// The sliding window of each layer.
fn windows(
    root: Fields<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let given = root.size("sliding_window", MAX_CONTEXT)?;
    let or_default = if root.contains("sliding_window") { given } else { Some(DEFAULT_WINDOW) };
    match architecture {
        Architecture::Llama => Ok(vec![None; layers]),
        Architecture::Phi3 => Ok(vec![given; layers]),
        Architecture::Mistral => Ok(vec![or_default; layers]),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let used = root.bool("use_sliding_window")?.unwrap_or(false);
            qwen_windows(root, or_default.filter(|_| used), layers)
        }
    }
}

/// Qwen's windows: in the layers that `layer_types` names, else in those from `max_window_layers` on.
fn qwen_windows(
    root: Fields<'_>,
    window: Option<usize>,
    layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(types) = root.texts("layer_types")? else {
        let from = root.count("max_window_layers")?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= from)).collect());
    };
    if types.len() != layers {
        let wanted = format!("num_hidden_layers = {layers} entries");
        return Err(root.invalid("layer_types", wanted, format!("{} entries", types.len())));
    }
    types
        .into_iter()
        .map(|layer_type| match (layer_type, window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => {
                Err(root.missing("sliding_window", "the window of the layers that layer_types calls sliding"))
            }
            (other, _) => Err(root.unsupported(
                "layer_types",
                format!("{other:?}"),
                "full_attention, sliding_attention",
            )),
        })
        .collect()
}

fn dtype(root: Fields<'_>) -> Result<Option<Format>, ConfigError> {
    let key = if root.contains("dtype") { "dtype" } else { "torch_dtype" };
    let Some(name) = root.text(key)? else { return Ok(None) };
    let bare = name.strip_prefix("torch.").unwrap_or(name);
    match Format::from_name_in(Ecosystem::PyTorch, bare) {
        Some(format @ (Format::F32 | Format::F16 | Format::Bf16)) => Ok(Some(format)),
        _ => Err(root.unsupported(key, format!("{name:?}"), "float32, float16, bfloat16")),
    }
}
