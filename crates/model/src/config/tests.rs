use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::rope::{LongRope, RopeScaling};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models")
}

fn fixture(model: &str, file: &str) -> ModelConfig {
    let path = models().join(model).join(file);
    ModelConfig::from_json(&std::fs::read(&path).expect("a file"), &path).expect("sound")
}

/// The Llama fixture's configuration with some keys replaced; `null` removes one.
fn changed(changes: Value) -> Result<ModelConfig, String> {
    let text = std::fs::read(models().join("llama/config.v4.json")).expect("a file");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    for (key, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => config.as_object_mut().expect("an object").remove(key),
            value => config.as_object_mut().expect("an object").insert(key.clone(), value.clone()),
        };
    }
    from(config.to_string().as_bytes())
}

fn from(text: &[u8]) -> Result<ModelConfig, String> {
    ModelConfig::from_json(text, Path::new("config.json"))
        .map_err(|error| error.to_string().strip_prefix("config.json: ").expect("names the file").to_owned())
}

fn error(changes: Value) -> String {
    changed(changes).expect_err("must be refused")
}

#[test]
fn both_spellings_of_every_fixture_are_equal() {
    let mut compared = 0;
    for entry in std::fs::read_dir(models()).expect("a folder") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        let (v4, v5) = (fixture(&name, "config.v4.json"), fixture(&name, "config.json"));
        assert_eq!(v4, v5, "{name}");
        assert!(v4.rope.tables().is_ok(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn the_fixtures_say_what_they_are() {
    let llama = fixture("llama", "config.json");
    assert_eq!(llama.architecture, Architecture::Llama);
    assert_eq!((llama.layers, llama.heads, llama.kv_heads, llama.head_dim), (3, 4, 2, 16));
    assert_eq!(llama.eos_token_ids, [376, 379]);
    assert_eq!(llama.dtype, Some(Format::Bf16));
    assert!(matches!(&llama.rope.scaling, RopeScaling::Llama3(l) if l.original_context == 64));
    assert!(!llama.attention_bias && !llama.tie_word_embeddings);

    assert_eq!(fixture("mistral", "config.json").windows, [Some(12); 2]);
    let qwen2 = fixture("qwen2", "config.json");
    assert!(qwen2.attention_bias && qwen2.tie_word_embeddings);
    assert_eq!((qwen2.windows, qwen2.bos_token_id), (vec![None; 2], None));
    assert_eq!(fixture("qwen3", "config.json").head_dim, 32);

    let phi3 = fixture("phi3_longrope", "config.v4.json");
    assert_eq!(phi3.rope.rotary_dim, 12);
    let RopeScaling::LongRope(LongRope { factor, original_context, .. }) = phi3.rope.scaling else {
        panic!("not longrope");
    };
    assert_eq!((factor, original_context), (8.0, 32));
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let llama = changed(json!({"num_key_value_heads": null, "head_dim": null, "rope_theta": null,
        "rope_scaling": null, "tie_word_embeddings": null, "torch_dtype": null, "eos_token_id": null}));
    let llama = llama.expect("sound");
    assert_eq!((llama.kv_heads, llama.head_dim, llama.rope.theta), (4, 16, 1e4));
    assert_eq!((llama.dtype, llama.eos_token_ids, llama.tie_word_embeddings), (None, vec![], false));
    let mistral = changed(json!({"architectures": ["MistralForCausalLM"]})).expect("sound");
    assert_eq!(mistral.windows, [Some(4096); 3]);
    let qwen3 = changed(json!({"architectures": ["Qwen3ForCausalLM"], "head_dim": null})).expect("sound");
    assert_eq!(qwen3.head_dim, 128);
    assert_eq!(changed(json!({"architectures": null})).expect("sound").architecture, Architecture::Llama);
}

#[test]
fn qwen_windows_follow_their_switches() {
    let windows = |more: Value| {
        let mut changes = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8});
        changes.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        changed(changes).map(|config| config.windows)
    };
    assert_eq!(windows(json!({})), Ok(vec![None; 3]));
    let used = windows(json!({"use_sliding_window": true, "max_window_layers": 1}));
    assert_eq!(used, Ok(vec![None, Some(8), Some(8)]));
    let types = json!(["sliding_attention", "full_attention", "full_attention"]);
    let listed = windows(json!({"use_sliding_window": true, "layer_types": types}));
    assert_eq!(listed, Ok(vec![Some(8), None, None]));
    assert!(windows(json!({"layer_types": types})).is_err());
    let short = windows(json!({"layer_types": ["full_attention"]}));
    assert!(short.expect_err("too short").contains("num_hidden_layers = 3 entries"));
}

#[test]
fn unknown_architectures_and_variants_are_named() {
    assert_eq!(
        error(json!({"architectures": ["MixtralForCausalLM"]})),
        "architectures \"MixtralForCausalLM\" is not supported; supported: LlamaForCausalLM, MistralForCausalLM, \
         Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM"
    );
    assert!(error(json!({"architectures": null, "model_type": "gemma"})).starts_with("model_type \"gemma\""));
    assert!(error(json!({"hidden_act": "gelu"})).starts_with("hidden_act \"gelu\" is not supported"));
    assert!(error(json!({"mlp_bias": true})).starts_with("mlp_bias true is not supported"));
    let gptq = error(json!({"quantization_config": {"quant_method": "gptq"}}));
    assert!(gptq.starts_with("quantization_config.quant_method \"gptq\" is not supported"), "{gptq}");
    assert!(error(json!({"torch_dtype": "float8_e4m3fn"})).contains("float32, float16, bfloat16"));
}

#[test]
fn rope_types_are_read_or_named() {
    assert_eq!(
        error(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})),
        "rope_scaling.type \"dynamic\" is not supported; supported: default, linear, llama3, yarn, longrope"
    );
    assert!(
        error(json!({"rope_scaling": null, "rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}))
            .starts_with("rope_parameters.rope_type \"mrope\"")
    );
    let linear = changed(json!({"rope_scaling": {"type": "linear", "factor": 2}})).expect("sound");
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
    let yarn = changed(json!({"rope_scaling": yarn})).expect("sound");
    assert!(
        matches!(yarn.rope.scaling, RopeScaling::Yarn(y) if y.factor == 4.0 && y.original_context == 128)
    );
    assert_eq!(
        error(json!({"rope_scaling": {"type": "linear"}})),
        "key \"rope_scaling.factor\" is missing; it should hold a positive number"
    );
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4});
    assert!(error(json!({"rope_scaling": llama3})).contains("a number above low_freq_factor = 4"));
    assert!(error(json!({"rope_theta": 1.0})).contains("a number above 1"));
    assert!(error(json!({"partial_rotary_factor": 0.5})).starts_with("partial_rotary_factor 0.5"));
    let nested = json!({"full_attention": {"rope_type": "default"}});
    assert!(error(json!({"rope_scaling": nested})).contains("one set for all layers"));
    let su = json!({"type": "su", "short_factor": [1.0], "long_factor": [2.0]});
    let phi3 = changed(json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling": su})).expect("sound");
    assert!(phi3.rope.tables().is_err(), "one factor for eight pairs");
}

#[test]
fn absurd_sizes_name_their_key() {
    for key in ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "intermediate_size"]
    {
        for bad in [json!(0), json!(-1), json!(u64::MAX), json!(1.5), json!("64"), json!([64])] {
            let message = error(json!({key: bad}));
            assert!(
                message.starts_with(&format!("key {key:?} holds {bad}, not an integer from 1 to")),
                "{message}"
            );
        }
        let message = error(json!({key: null}));
        assert!(message.starts_with(&format!("key {key:?} is missing")), "{message}");
    }
    assert_eq!(
        error(json!({"num_key_value_heads": 3})),
        "key \"num_key_value_heads\" holds 3, not a divisor of num_attention_heads = 4"
    );
    assert_eq!(error(json!({"head_dim": 15})), "key \"head_dim\" holds 15, not an even number");
    assert!(error(json!({"head_dim": MAX_SIZE})).contains("not at most"));
    assert!(error(json!({"num_attention_heads": 5, "head_dim": null})).contains("a multiple of"));
    assert!(error(json!({"rms_norm_eps": 0})).contains("a positive number"));
    assert!(error(json!({"eos_token_id": -1})).contains("a token id or a list of them"));
    assert!(error(json!({"max_position_embeddings": 1_u64 << 40})).contains("max_position_embeddings"));
}

#[test]
fn what_is_no_json_object_says_so() {
    assert!(
        from(b"{\"a\": NaN}").expect_err("Python only").contains("(NaN occurs, which JSON does not have)")
    );
    assert!(from(b"{").expect_err("cut off").starts_with("not valid JSON: EOF"));
    assert_eq!(from(b"[1, 2]").expect_err("a list"), "holds [1,2], not an object");
    assert!(from(b"{\"a\": \"\xff\"}").expect_err("no UTF-8").starts_with("not valid JSON"));
    assert!(from(&[b'['; 10_000]).expect_err("too deep").contains("recursion"));
}

#[test]
fn generation_defaults_are_read() {
    let path = Path::new("generation_config.json");
    let read = |text: &str| GenerationDefaults::from_json(text.as_bytes(), path);
    let qwen = read(
        r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "bos_token_id": 1,
        "repetition_penalty": 1.05, "eos_token_id": [2, 3], "transformers_version": "4.37.0"}"#,
    );
    let wanted = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.7),
        top_k: Some(20),
        top_p: Some(0.8),
        min_p: None,
        repetition_penalty: Some(1.05),
        bos_token_id: Some(1),
        eos_token_ids: Some(vec![2, 3]),
    };
    assert_eq!(qwen, Ok(wanted));
    assert_eq!(read("{}"), Ok(GenerationDefaults::default()));
    let message = read(r#"{"top_k": 0.5}"#).expect_err("no count").to_string();
    assert_eq!(message, "generation_config.json: key \"top_k\" holds 0.5, not a non-negative integer");
}
