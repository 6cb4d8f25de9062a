//! Phi-3 and Phi-3.5 (Abdin et al. 2024): Llama with query, key and value in one tensor, gate and up in another.

use super::decoder::{Decoder, GateUpTensors, HeadNorm, QkvBias, QkvTensors};

pub(super) fn decoder() -> Decoder {
    Decoder {
        name: "phi3",
        qkv: QkvTensors::Fused,
        qkv_bias: QkvBias::Absent,
        head_norm: HeadNorm::Absent,
        gate_up: GateUpTensors::Fused,
    }
}
