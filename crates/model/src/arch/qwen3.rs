//! Qwen3 (Yang et al. 2025): no biases, but RMSNorm of every query and key head before RoPE.

use super::decoder::{Decoder, GateUpTensors, HeadNorm, QkvBias, QkvTensors};
use crate::config::ModelConfig;

pub(super) fn decoder(config: &ModelConfig) -> Decoder {
    Decoder {
        name: "qwen3",
        qkv: QkvTensors::Separate,
        qkv_bias: if config.attention_bias { QkvBias::Present } else { QkvBias::Absent },
        head_norm: HeadNorm::Present,
        gate_up: GateUpTensors::Separate,
    }
}
