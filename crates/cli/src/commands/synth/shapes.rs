//! The shapes that checkpoints can be made in: those of published models, and small ones for tests.

use anyhow::{Context as _, Result, bail};
use mantissa::model::config::Architecture;
use mantissa::numerics::{Ecosystem, Format};
use serde_json::{Map, Value, json};

/// The sizes of a model, as its `config.json` has them.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What `--arch` calls it.
    pub name: &'static str,
    pub architecture: Architecture,
    hidden: usize,
    intermediate: usize,
    pub layers: usize,
    heads: usize,
    kv_heads: usize,
    /// Where it is not `hidden / heads`.
    head_dim: Option<usize>,
    vocabulary: usize,
    context: usize,
    theta: f64,
    /// The factor of llama3 scaling of a first context of 8192 tokens.
    llama3_factor: Option<f64>,
    window: Option<usize>,
    output: Output,
    bos: Option<u32>,
    eos: u32,
}

/// Where the output matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// It is the embedding's.
    Tied,
    /// It has a tensor of its own.
    Separate,
}

/// What the sizes below leave open.
const BASE: Shape = Shape {
    name: "",
    architecture: Architecture::Llama,
    hidden: 0,
    intermediate: 0,
    layers: 0,
    heads: 0,
    kv_heads: 0,
    head_dim: None,
    vocabulary: 0,
    context: 0,
    theta: 10_000.0,
    llama3_factor: None,
    window: None,
    output: Output::Separate,
    bos: Some(1),
    eos: 2,
};

const QWEN25: Shape = Shape {
    architecture: Architecture::Qwen2,
    vocabulary: 151_936,
    context: 32_768,
    theta: 1e6,
    output: Output::Tied,
    bos: Some(151_643),
    eos: 151_643,
    ..BASE
};

const QWEN3: Shape = Shape {
    architecture: Architecture::Qwen3,
    head_dim: Some(128),
    context: 40_960,
    bos: Some(151_643),
    eos: 151_645,
    ..QWEN25
};

const LLAMA32: Shape = Shape {
    vocabulary: 128_256,
    context: 131_072,
    theta: 500_000.0,
    llama3_factor: Some(32.0),
    output: Output::Tied,
    bos: Some(128_000),
    eos: 128_001,
    ..BASE
};

const TINY: Shape = Shape {
    hidden: 64,
    intermediate: 96,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    vocabulary: 256,
    context: 512,
    ..BASE
};

/// Every shape.
pub const SHAPES: [Shape; 16] = [
    Shape {
        name: "qwen2.5-0.5b",
        hidden: 896,
        intermediate: 4864,
        layers: 24,
        heads: 14,
        kv_heads: 2,
        ..QWEN25
    },
    Shape {
        name: "qwen2.5-1.5b",
        hidden: 1536,
        intermediate: 8960,
        layers: 28,
        heads: 12,
        kv_heads: 2,
        ..QWEN25
    },
    Shape {
        name: "qwen2.5-7b",
        hidden: 3584,
        intermediate: 18_944,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        vocabulary: 152_064,
        output: Output::Separate,
        ..QWEN25
    },
    Shape {
        name: "qwen3-0.6b",
        hidden: 1024,
        intermediate: 3072,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        ..QWEN3
    },
    Shape {
        name: "qwen3-1.7b",
        hidden: 2048,
        intermediate: 6144,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        ..QWEN3
    },
    Shape { name: "qwen3-4b", hidden: 2560, intermediate: 9728, layers: 36, heads: 32, kv_heads: 8, ..QWEN3 },
    Shape {
        name: "llama-3.2-1b",
        hidden: 2048,
        intermediate: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        ..LLAMA32
    },
    Shape {
        name: "llama-3.2-3b",
        hidden: 3072,
        intermediate: 8192,
        layers: 28,
        heads: 24,
        kv_heads: 8,
        ..LLAMA32
    },
    Shape {
        name: "llama-3.1-8b",
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        llama3_factor: Some(8.0),
        output: Output::Separate,
        ..LLAMA32
    },
    Shape {
        name: "mistral-7b",
        architecture: Architecture::Mistral,
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        vocabulary: 32_000,
        context: 32_768,
        window: Some(4096),
        ..BASE
    },
    Shape {
        name: "phi-3-mini",
        architecture: Architecture::Phi3,
        hidden: 3072,
        intermediate: 8192,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        vocabulary: 32_064,
        context: 4096,
        window: Some(2047),
        eos: 32_000,
        ..BASE
    },
    Shape { name: "tiny-llama", ..TINY },
    Shape { name: "tiny-mistral", architecture: Architecture::Mistral, window: Some(24), ..TINY },
    Shape { name: "tiny-qwen2", architecture: Architecture::Qwen2, output: Output::Tied, ..TINY },
    Shape { name: "tiny-qwen3", architecture: Architecture::Qwen3, head_dim: Some(32), ..TINY },
    Shape { name: "tiny-phi3", architecture: Architecture::Phi3, ..TINY },
];

impl Shape {
    /// The shape that `--arch` names.
    pub fn find(name: &str) -> Result<Shape> {
        let names = || SHAPES.map(|shape| shape.name).join(", ");
        let found = SHAPES.into_iter().find(|shape| shape.name == name);
        found.with_context(|| format!("--arch \"{name}\" is unknown; the shapes are {}", names()))
    }

    /// The shape with fewer layers.
    pub fn cut(self, layers: usize) -> Result<Shape> {
        if layers == 0 || layers > self.layers {
            bail!(
                "--layers is {layers}; {} has {} of them, and at least 1 is needed",
                self.name,
                self.layers
            );
        }
        Ok(Shape { layers, ..self })
    }

    /// `config.json`, in the form that transformers 4 writes.
    pub fn config(&self, dtype: Format) -> Value {
        let architecture = self.architecture;
        let mut config = json!({
            "architectures": [architecture.class_name()],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
            "model_type": architecture.name(),
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": match architecture {
                Architecture::Qwen2 | Architecture::Qwen3 => 1e-6,
                Architecture::Llama | Architecture::Mistral | Architecture::Phi3 => 1e-5,
            },
            "rope_theta": self.theta,
            "tie_word_embeddings": self.output == Output::Tied,
            "torch_dtype": dtype.name_in(Ecosystem::PyTorch),
            "transformers_version": "4.57.1",
            "use_cache": true,
            "vocab_size": self.vocabulary,
        });
        if let Value::Object(map) = &mut config {
            self.add_what_differs(map);
        }
        config
    }

    /// The keys that not every architecture has.
    fn add_what_differs(&self, config: &mut Map<String, Value>) {
        if let Some(head_dim) = self.head_dim {
            config.insert("head_dim".to_owned(), json!(head_dim));
        }
        let mut add = |key: &str, value: Value| config.insert(key.to_owned(), value);
        match self.architecture {
            Architecture::Llama => {
                add("attention_bias", json!(false));
                add("mlp_bias", json!(false));
                add("rope_scaling", self.llama3_factor.map_or(Value::Null, llama3_scaling));
            }
            Architecture::Mistral => {
                add("sliding_window", json!(self.window));
            }
            Architecture::Phi3 => {
                add("original_max_position_embeddings", json!(self.context));
                add("rope_scaling", Value::Null);
                add("sliding_window", json!(self.window));
            }
            Architecture::Qwen2 | Architecture::Qwen3 => {
                add("max_window_layers", json!(self.layers));
                add("sliding_window", Value::Null);
                add("use_sliding_window", json!(false));
            }
        }
    }

    /// `generation_config.json`.
    pub fn generation_config(&self) -> Value {
        json!({ "bos_token_id": self.bos, "eos_token_id": self.eos })
    }
}

fn llama3_scaling(factor: f64) -> Value {
    json!({
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mantissa::model::arch;
    use mantissa::model::config::ModelConfig;

    use super::*;

    fn parameters(name: &str) -> usize {
        let config = Shape::find(name).unwrap().config(Format::Bf16).to_string();
        let config = ModelConfig::from_json(config.as_bytes(), Path::new("config.json")).unwrap();
        arch::program(&config).unwrap().parameters()
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        for (name, published) in [
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-1.5b", 1_543_714_304),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-0.6b", 596_049_920),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.1-8b", 8_030_261_248),
            ("mistral-7b", 7_241_732_096),
            ("phi-3-mini", 3_821_079_552),
        ] {
            assert_eq!(parameters(name), published, "{name}");
        }
    }

    #[test]
    fn every_shape_is_a_model() {
        for shape in SHAPES {
            assert!(parameters(shape.name) > 0, "{}", shape.name);
        }
    }

    #[test]
    fn unknown_shapes_and_absurd_cuts_are_refused() {
        let error = Shape::find("gpt-5").unwrap_err().to_string();
        assert!(error.contains("gpt-5") && error.contains("qwen2.5-0.5b"), "{error}");
        let shape = Shape::find("tiny-llama").unwrap();
        assert!(shape.cut(0).is_err() && shape.cut(3).is_err());
        assert_eq!(shape.cut(1).unwrap().layers, 1);
    }
}
