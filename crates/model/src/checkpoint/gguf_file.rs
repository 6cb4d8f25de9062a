//! GGUF files as checkpoints: names, row orders and the tensors that belong to the configuration.

use std::{collections::BTreeMap, path::Path};

use mantissa_numerics::Format;
use mantissa_ops::RowOrder;

use super::{Checkpoint, CheckpointError, Entry, MappedFile};
use crate::{
    config::{Architecture, GenerationDefaults, ModelConfig, RopeFactors},
    gguf::{Gguf, TensorInfo},
};

/// Tensors outside the layers: name in GGUF, Hugging Face name.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Tensors of a layer, without `.weight` or `.bias`: name in GGUF, Hugging Face name.
const INNER: [(&str, &str); 12] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// As [`INNER`], in Phi-3 alone: gate and up are one tensor there, under the name that the up matrix has elsewhere.
const PHI3_UP: (&str, &str) = ("ffn_up", "mlp.gate_up_proj");

pub(super) fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let file =
        MappedFile::open(path).map_err(|source| CheckpointError::Io { file: path.to_owned(), source })?;
    if !file.bytes().starts_with(b"GGUF") && path.extension().is_none_or(|extension| extension != "gguf") {
        return Err(CheckpointError::NotGguf { file: path.to_owned() });
    }
    let gguf = Gguf::parse(file.bytes(), path)?;
    let factors = |name| factors(&gguf, &file, name);
    let rope_factors = RopeFactors {
        all: factors("rope_freqs.weight")?,
        short: factors("rope_factors_short.weight")?,
        long: factors("rope_factors_long.weight")?,
    };
    let config = ModelConfig::from_gguf(&gguf, rope_factors)?;
    let mut tensors = BTreeMap::new();
    for info in gguf.tensors() {
        let name = canonical_name(&info.name, config.architecture).unwrap_or_else(|| info.name.clone());
        let row_order = row_order(&name, &config);
        // A hostile file may hold both a GGUF name and the Hugging Face name that it stands for.
        if tensors.insert(name, entry(info, row_order)).is_some() {
            let (tensor, first) = (info.name.clone(), path.to_owned());
            return Err(CheckpointError::DuplicateTensor { tensor, second: first.clone(), first });
        }
    }
    Ok(Checkpoint {
        path: path.to_owned(),
        config,
        generation: GenerationDefaults::default(),
        gguf: Some(gguf),
        files: vec![file],
        tensors,
    })
}

fn entry(info: &TensorInfo, row_order: RowOrder) -> Entry {
    Entry {
        file: 0,
        stored_name: info.name.clone(),
        dtype: info.ggml_type.name(),
        format: info.ggml_type.format(),
        shape: info.shape.clone(),
        range: info.range.clone(),
        row_order,
    }
}

/// The divisors of rotary frequencies in tensor `name`, where the file has it.
fn factors(gguf: &Gguf, file: &MappedFile, name: &str) -> Result<Option<Vec<f64>>, CheckpointError> {
    let Some(info) = gguf.tensor(name) else { return Ok(None) };
    if info.ggml_type.format() != Some(Format::F32) {
        return Err(CheckpointError::UnreadableType {
            file: gguf.file().to_owned(),
            tensor: name.to_owned(),
            dtype: info.ggml_type.name(),
        });
    }
    let (numbers, _) = file.bytes()[info.range.clone()].as_chunks::<4>();
    Ok(Some(numbers.iter().map(|&number| f64::from(f32::from_le_bytes(number))).collect()))
}

/// The Hugging Face name of the GGUF tensor `name`, where it has one.
fn canonical_name(name: &str, architecture: Architecture) -> Option<String> {
    if let Some((_, outer)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*outer).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // Only the plain form of a number, so that no two names become one.
    let layer: usize = layer.parse().ok().filter(|number: &usize| number.to_string() == layer)?;
    let (stem, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (_, inner) = inner_names(architecture).find(|(gguf, _)| *gguf == stem)?;
    Some(format!("model.layers.{layer}.{inner}.{kind}"))
}

/// The GGUF name of the tensor with the Hugging Face name `name`, for errors; `name` itself where there is none.
pub(super) fn stored_name(name: &str, architecture: Architecture) -> String {
    if let Some((gguf, _)) = OUTER.iter().find(|(_, outer)| *outer == name) {
        return (*gguf).to_owned();
    }
    let parts = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (stem, kind) = rest.rsplit_once('.')?;
        let (gguf, _) = inner_names(architecture).find(|(_, inner)| *inner == stem)?;
        Some(format!("blk.{layer}.{gguf}.{kind}"))
    };
    parts().unwrap_or_else(|| name.to_owned())
}

fn inner_names(architecture: Architecture) -> impl Iterator<Item = (&'static str, &'static str)> {
    INNER.into_iter().map(move |pair| match architecture {
        Architecture::Phi3 if pair.0 == PHI3_UP.0 => PHI3_UP,
        _ => pair,
    })
}

/// llama.cpp's converter interleaves the rotary pairs of Llama's queries and keys, biases included, and leaves those
/// of the other architectures as they are.
fn row_order(name: &str, config: &ModelConfig) -> RowOrder {
    let ends_with =
        |stem: &str| ["weight", "bias"].iter().any(|kind| name.ends_with(&format!("{stem}.{kind}")));
    match config.architecture {
        Architecture::Llama if ends_with("self_attn.q_proj") => RowOrder::RopePairs { heads: config.heads },
        Architecture::Llama if ends_with("self_attn.k_proj") => {
            RowOrder::RopePairs { heads: config.kv_heads }
        }
        _ => RowOrder::AsStored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (name, architecture, wanted) in [
            ("token_embd.weight", Architecture::Llama, "model.embed_tokens.weight"),
            ("output.weight", Architecture::Qwen2, "lm_head.weight"),
            ("blk.17.attn_q.bias", Architecture::Qwen2, "model.layers.17.self_attn.q_proj.bias"),
            ("blk.0.attn_k_norm.weight", Architecture::Qwen3, "model.layers.0.self_attn.k_norm.weight"),
            ("blk.3.ffn_up.weight", Architecture::Llama, "model.layers.3.mlp.up_proj.weight"),
            ("blk.3.ffn_up.weight", Architecture::Phi3, "model.layers.3.mlp.gate_up_proj.weight"),
            ("blk.3.attn_qkv.weight", Architecture::Phi3, "model.layers.3.self_attn.qkv_proj.weight"),
        ] {
            assert_eq!(canonical_name(name, architecture).as_deref(), Some(wanted));
            assert_eq!(stored_name(wanted, architecture), name);
        }
    }

    #[test]
    fn other_names_have_none() {
        for name in
            ["rope_freqs.weight", "blk.01.attn_q.weight", "blk.+1.attn_q.weight", "blk.0.attn_q", "blk.0"]
        {
            assert_eq!(canonical_name(name, Architecture::Llama), None, "{name}");
        }
        assert_eq!(stored_name("model.other", Architecture::Llama), "model.other");
    }
}
