//! The answers of the fixtures.

use safetensors::SafeTensors;
use serde_json::Value;

use crate::common::{fixture, ids};

/// A fixture's answers: the JSON file and the bytes of the safetensors file.
pub struct Expected {
    /// `expected.json`.
    pub json: Value,
    bytes: Vec<u8>,
}

impl Expected {
    /// Of `fixtures/models/llama` as `models/llama/expected`, of `fixtures/gguf/llama-*.gguf` as `gguf/llama.expected`.
    pub fn read(stem: &str) -> Expected {
        let text =
            std::fs::read_to_string(fixture(&format!("{stem}.json"))).expect("the JSON of the fixture");
        let bytes =
            std::fs::read(fixture(&format!("{stem}.safetensors"))).expect("the tensors of the fixture");
        Expected { json: serde_json::from_str(&text).expect("JSON"), bytes }
    }

    /// Token ids of every prompt.
    pub fn prompts(&self) -> Vec<Vec<u32>> {
        let prompts = self.json["prompts"].as_array().expect("prompts");
        prompts.iter().map(|prompt| ids(&prompt["input_ids"])).collect()
    }

    /// An f32 tensor.
    pub fn tensor(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).expect("safetensors");
        let view = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        numbers(view.data())
    }
}

/// The numbers of an f32 tensor's bytes, which need not be aligned.
pub fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}
