//! The pre-norm decoder that Llama and its relatives share.

use mantissa_ops::builder::{AttentionArgs, FfnArgs, HeadNormTensors, QkvArgs};
use mantissa_ops::op::{Heads, Mask};
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, WeightPart};
use mantissa_ops::{Program, ProgramBuilder};

use crate::config::ModelConfig;
use crate::rope::{RopeError, RopeTable};

/// A configuration that no program expresses.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ArchError {
    #[error(transparent)]
    Rope(#[from] RopeError),
}

/// How the query, key and value matrices are stored.
pub(super) enum QkvTensors {
    /// `q_proj`, `k_proj` and `v_proj`.
    Separate,
    /// `qkv_proj`, rows in this order.
    Fused,
}

/// How the gate and up matrices are stored.
pub(super) enum GateUpTensors {
    /// `gate_proj` and `up_proj`.
    Separate,
    /// `gate_up_proj`, rows in this order.
    Fused,
}

/// Whether the projections of an attention layer have biases.
pub(super) enum QkvBias {
    Absent,
    Present,
}

/// Whether queries and keys are normalised head by head before RoPE.
pub(super) enum HeadNorm {
    Absent,
    Present,
}

/// In what one architecture differs from another.
pub(super) struct Decoder {
    pub name: &'static str,
    pub qkv: QkvTensors,
    pub qkv_bias: QkvBias,
    pub head_norm: HeadNorm,
    pub gate_up: GateUpTensors,
}

impl Decoder {
    /// The whole model: embedding, layers, final norm, logits.
    pub fn program(&self, config: &ModelConfig) -> Result<Program, ArchError> {
        let heads = Heads { query: config.heads, key_value: config.kv_heads, dim: config.head_dim };
        let eps = config.rms_norm_eps as f32;
        let mut b = ProgramBuilder::new(self.name, config.max_position_embeddings);
        b.cache(CacheSpec { layers: config.layers, heads });
        b.rope(rope_spec(config)?);

        let embedding = "model.embed_tokens.weight";
        let residual = b.embedding(embedding, config.vocab_size, config.hidden_size);
        for (layer, window) in config.windows.iter().enumerate() {
            let mask = window.map_or(Mask::Causal, |window| Mask::SlidingWindow { window });
            let tensors = format!("model.layers.{layer}");
            let step = format!("layers.{layer}");

            let norm = format!("{tensors}.input_layernorm.weight");
            let x = b.rms_norm(&format!("{step}.attention_norm"), &norm, residual, eps);
            let query = b.qkv(&format!("{step}.qkv"), x, self.qkv_args(config, heads, layer));
            let scale = (1.0 / (heads.dim as f64).sqrt()) as f32;
            let args = AttentionArgs { heads, scale, mask, layer };
            let attended = b.attention(&format!("{step}.attention"), query, args);
            let output = format!("{tensors}.self_attn.o_proj.weight");
            b.project_into(&format!("{step}.attention_output"), &output, attended, residual);

            let norm = format!("{tensors}.post_attention_layernorm.weight");
            let x = b.rms_norm(&format!("{step}.ffn_norm"), &norm, residual, eps);
            b.ffn_into(&format!("{step}.ffn"), x, residual, self.ffn_args(config, &tensors));
            b.hidden_point(step, residual);
        }
        let x = b.rms_norm("final_norm", "model.norm.weight", residual, eps);
        let output = if config.tie_word_embeddings { embedding } else { "lm_head.weight" };
        b.logits(output, x, config.vocab_size);
        Ok(b.finish())
    }

    fn qkv_args(&self, config: &ModelConfig, heads: Heads, layer: usize) -> QkvArgs {
        let attention = format!("model.layers.{layer}.self_attn");
        let widths = [("q", heads.query_width()), ("k", heads.kv_width()), ("v", heads.kv_width())];
        let separate = |suffix: &str| {
            widths
                .map(|(name, rows)| WeightPart::whole(format!("{attention}.{name}_proj.{suffix}"), rows))
                .to_vec()
        };
        let weights = match self.qkv {
            QkvTensors::Separate => separate("weight"),
            QkvTensors::Fused => {
                let rows = widths.iter().map(|(_, rows)| rows).sum();
                vec![WeightPart::whole(format!("{attention}.qkv_proj.weight"), rows)]
            }
        };
        let biases = match self.qkv_bias {
            QkvBias::Absent => None,
            QkvBias::Present => Some(separate("bias")),
        };
        let head_norms = match self.head_norm {
            HeadNorm::Absent => None,
            HeadNorm::Present => Some(HeadNormTensors {
                query: format!("{attention}.q_norm.weight"),
                key: format!("{attention}.k_norm.weight"),
                eps: config.rms_norm_eps as f32,
            }),
        };
        QkvArgs { weights, biases, head_norms, heads, layer }
    }

    fn ffn_args(&self, config: &ModelConfig, tensors: &str) -> FfnArgs {
        let intermediate = config.intermediate_size;
        let gate_up = match self.gate_up {
            GateUpTensors::Separate => vec![
                WeightPart::whole(format!("{tensors}.mlp.gate_proj.weight"), intermediate),
                WeightPart::whole(format!("{tensors}.mlp.up_proj.weight"), intermediate),
            ],
            GateUpTensors::Fused => {
                vec![WeightPart::whole(format!("{tensors}.mlp.gate_up_proj.weight"), 2 * intermediate)]
            }
        };
        FfnArgs { gate_up, down: format!("{tensors}.mlp.down_proj.weight"), intermediate }
    }
}

/// The rotary embedding: one frequency set, or for longrope a short and a long one.
fn rope_spec(config: &ModelConfig) -> Result<RopeSpec, ArchError> {
    let set = |table: RopeTable| RopeSet {
        inverse_frequencies: table.inverse_frequencies,
        attention_factor: table.attention_factor,
    };
    Ok(RopeSpec {
        rotary_dim: config.rope.rotary_dim,
        sets: config.rope.tables()?.into_iter().map(set).collect(),
        long_beyond: config.rope.long_beyond(),
    })
}
