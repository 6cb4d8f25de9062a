//! `mantissa inspect` and `mantissa plan` on the fixtures.

#[path = "common/command.rs"]
mod command;

use std::path::Path;

use command::{json_of, mantissa};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path).display().to_string()
}

fn inspect(path: &str, arguments: &[&str]) -> Value {
    json_of(mantissa().args(["inspect", &fixture(path), "--json"]).args(arguments))
}

fn plan(path: &str, arguments: &[&str]) -> Value {
    json_of(mantissa().args(["plan", &fixture(path), "--json"]).args(arguments))
}

/// The entry of a policy.
fn policy<'a>(report: &'a Value, name: &str) -> &'a Value {
    let policies = report["policies"].as_array().expect("policies");
    policies.iter().find(|entry| entry["policy"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn sizes_files_and_tokenizers_are_shown() {
    let report = inspect("models/llama", &[]);
    assert_eq!(report["architecture"], "llama");
    assert_eq!(report["parameters"], 141_760);
    assert_eq!((&report["layers"], &report["context"]), (&Value::from(3), &Value::from(512)));
    assert_eq!(report["rope"]["kind"], "llama3");
    assert_eq!(report["tokenizer"]["kind"], "BPE");
    assert_eq!(report["chat_template"], true);
    assert_eq!(report["tensors"][0]["dtype"], "BF16");
    assert_eq!(report["tensors"][0]["bytes"], 2 * 141_760);

    let sharded = inspect("models/qwen3", &[]);
    assert_eq!(sharded["files"].as_array().map(Vec::len), Some(3));
    assert_eq!(sharded["tokenizer"], Value::Null);
    assert_eq!(inspect("models/mistral", &[])["sliding_windows"], serde_json::json!([12, 12]));
    assert_eq!(inspect("gguf/llama-F16.gguf", &[])["architecture"], "llama");
}

#[test]
fn memory_counts_the_scales_of_the_cache() {
    // Three layers, two key and value heads of 16: 32 vectors of keys and values a token.
    let report = inspect("models/llama", &[]);
    let memory = |name: &str| &policy(&report, name)["memory"];
    assert_eq!(memory("f32")["weights"], 4 * 141_760);
    assert_eq!(memory("bf16")["weights"], 2 * 141_760);
    assert_eq!(memory("f32")["cache_per_token"], 12 * 16 * 4);
    assert_eq!(memory("memory-efficient")["cache_per_token"], 12 * (16 + 2));
    let at_512 = &memory("bf16")["contexts"][0];
    assert_eq!(at_512["cache"], 512 * 12 * 32);
    assert_eq!(at_512["total"], 512 * 12 * 32 + 2 * 141_760);
}

#[test]
fn losses_are_those_of_loading() {
    let exact = inspect("models/qwen2", &["--policy", "f32"]);
    let conversion = &policy(&exact, "f32")["conversions"][0];
    assert_eq!((&conversion["from"], &conversion["to"]), (&Value::from("BF16"), &Value::from("f32")));
    assert_eq!(conversion["loss"]["max_relative_error"], 0.0);
    assert!(
        policy(&inspect("models/qwen2", &[]), "bf16")["conversions"].as_array().is_some_and(Vec::is_empty)
    );

    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model").display().to_string();
    mantissa().args(["synth", "--arch", "tiny-llama", "--dtype", "f32", &model]).assert().success();
    let rounded = json_of(mantissa().args(["inspect", &model, "--json", "--policy", "bf16"]));
    let loss = &policy(&rounded, "bf16")["conversions"][0]["loss"];
    let error = loss["max_relative_error"].as_f64().expect("a number");
    // Half a unit in the last place of eight bits, as seen from the original.
    assert!(error > 1e-4 && error <= 1.0 / 256.0, "{error}");
}

#[test]
fn people_see_tables_and_quantised_files_are_named() {
    let inspect = |path: &str| mantissa().args(["inspect", &fixture(path)]).assert().success();
    let words = contains("cache/token").and(contains("bf16 -> f16")).and(contains("chat template  yes"));
    inspect("models/llama").stdout(words.and(contains('\x1b').not()));
    inspect("gguf/llama-Q8_0.gguf").stdout(contains("tensors are Q8_0, which no kernel reads"));
}

#[test]
fn plans_add_up_and_fold() {
    let whole = plan("models/llama", &["--policy", "f16", "--rows", "20"]);
    assert_eq!(whole["shape"]["class"], "prefill");
    let steps = whole["steps"].as_array().expect("steps");
    // The embedding, six steps a layer, the final norm and the logits.
    assert_eq!(steps.len(), 1 + 3 * 6 + 2);
    for field in ["bytes", "operations"] {
        let sum: u64 = steps.iter().filter_map(|step| step["cost"][field].as_u64()).sum();
        assert_eq!(whole["total"][field], sum);
    }
    assert!(steps.iter().all(|step| step["contract"]["activations"] == "f16"));

    let table =
        |arguments: &[&str]| mantissa().args(["plan", &fixture("models/llama")]).args(arguments).assert();
    let once = contains("layers.0-2.qkv").and(contains("layers.1.qkv").not());
    table(&[]).success().stdout(once.and(contains("total: 21 steps")));
    table(&["--full"]).success().stdout(contains("layers.1.qkv").and(contains("why")));
}

#[test]
fn shapes_that_contradict_themselves_are_refused() {
    let plan =
        |arguments: &[&str]| mantissa().args(["plan", &fixture("models/llama")]).args(arguments).assert();
    plan(&["--shape", "decode", "--rows", "5"]).failure().stderr(contains("--rows 5 is no decode batch"));
    plan(&["--rows", "0"]).failure().stderr(contains("at least one row"));
    plan(&["--context", "513"]).failure().stderr(contains("--context is 513").and(contains("512")));
    let batch =
        json_of(mantissa().args(["plan", &fixture("models/llama"), "--json", "--shape", "small-batch"]));
    assert_eq!((&batch["shape"]["sequences"], &batch["shape"]["rows"]), (&Value::from(8), &Value::from(8)));
}
