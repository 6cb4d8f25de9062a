//! Mistral 7B and Nemo (Jiang et al. 2023): Llama with a sliding window in every layer.

use super::decoder::{Decoder, GateUpTensors, HeadNorm, QkvBias, QkvTensors};

pub(super) fn decoder() -> Decoder {
    Decoder {
        name: "mistral",
        qkv: QkvTensors::Separate,
        qkv_bias: QkvBias::Absent,
        head_norm: HeadNorm::Absent,
        gate_up: GateUpTensors::Separate,
    }
}
