//! Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024): grouped-query attention, SwiGLU, RoPE.

use super::decoder::{Decoder, GateUpTensors, HeadNorm, QkvBias, QkvTensors};
use crate::config::ModelConfig;

pub(super) fn decoder(config: &ModelConfig) -> Decoder {
    Decoder {
        name: "llama",
        qkv: QkvTensors::Separate,
        qkv_bias: if config.attention_bias { QkvBias::Present } else { QkvBias::Absent },
        head_norm: HeadNorm::Absent,
        gate_up: GateUpTensors::Separate,
    }
}
