//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on query, key and value.

use super::decoder::{Decoder, GateUpTensors, HeadNorm, QkvBias, QkvTensors};

pub(super) fn decoder() -> Decoder {
    Decoder {
        name: "qwen2",
        qkv: QkvTensors::Separate,
        qkv_bias: QkvBias::Present,
        head_norm: HeadNorm::Absent,
        gate_up: GateUpTensors::Separate,
    }
}
