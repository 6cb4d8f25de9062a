//! `mantissa eval haiku` as a person would use it.

#[path = "common/command.rs"]
mod command;

use std::path::{Path, PathBuf};

use command::{json_of, mantissa};
use predicates::prelude::*;
use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// A chat model that has learned nothing.
fn untrained() -> String {
    fixture("models/qwen2").display().to_string()
}

/// The same with one weight that f16 does not reach.
fn beyond_f16() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let source = fixture(&format!("models/qwen2/{name}"));
        std::fs::copy(source, folder.path().join(name)).expect("a copy");
    }
    let mut weights = std::fs::read(fixture("models/qwen2/model.safetensors")).expect("weights");
    let tensors = SafeTensors::deserialize(&weights).expect("safetensors");
    let norm = tensors.tensor("model.norm.weight").expect("a tensor");
    assert_eq!(norm.dtype(), Dtype::BF16);
    let place = norm.data().as_ptr().addr() - weights.as_ptr().addr();
    // 999,424 in bf16.
    weights[place..place + 2].copy_from_slice(&0x4974u16.to_le_bytes());
    std::fs::write(folder.path().join("model.safetensors"), weights).expect("a file");
    folder
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().expect("an array")
}

#[test]
fn a_model_that_has_learned_nothing_fails_in_good_order() {
    let assert = mantissa()
        .args(["eval", "haiku", &untrained(), "--word", "owl", "--word", "snow", "--max-tokens", "12"])
        .assert()
        .success();
    let text = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    let rows: Vec<&str> = text.lines().skip(2).take(6).collect();
    assert!(rows[0].starts_with("policy"), "{text}");
    for column in ["words", "pass", "text", "lines", "word", "syllables", "no repetition", "tokens/s"] {
        assert!(rows[0].contains(column), "{column} is not in {}", rows[0]);
    }
    for (row, policy) in rows[1..].iter().zip(["f32", "f16", "bf16", "memory-efficient", "high-precision"]) {
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[..4], [policy, "2", "0.0", "%"], "{row}");
    }
    assert!(text.contains("\nowl, ") && text.contains("\nsnow, ") && text.contains(": fails: "), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn json_has_every_answer_which_no_other_word_changes() {
    let run = |words: &[&str]| {
        let mut command = mantissa();
        command.args([
            "eval",
            "haiku",
            &untrained(),
            "--policy",
            "bf16,kv_cache=f8e4m3",
            "-n",
            "9",
            "--json",
        ]);
        command.args(words.iter().flat_map(|word| ["--word", word]));
        json_of(&mut command)
    };
    let words: Vec<String> = (0..20).map(|n| format!("w{}", "o".repeat(n))).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let all = run(&words);
    let policy = &array(&all["policies"])[0];
    assert_eq!(policy["policy"], "bf16,kv_cache=f8e4m3");
    assert_eq!(policy["pass_percent"], 0.0);
    assert_eq!(all["words"], 20);
    let answers = array(&policy["answers"]);
    assert_eq!(answers.len(), 20);
    let tokens: u64 = answers.iter().map(|answer| answer["tokens"].as_u64().expect("a count")).sum();
    assert_eq!(policy["tokens"], tokens);
    for (word, answer) in words.iter().zip(answers) {
        assert_eq!(answer["word"], *word);
        assert_eq!(answer["passes"], false);
        assert!(answer["verdict"]["syllable_counts"].is_array() && answer["verdict"]["lines"].is_boolean());
    }
    for index in [0, 17] {
        let alone = run(&[words[index]]);
        assert_eq!(alone["policies"][0]["answers"][0]["text"], answers[index]["text"]);
    }
}

#[test]
fn a_policy_that_is_refused_does_not_spoil_the_others() {
    let folder = beyond_f16();
    let run = |extra: &[&str]| {
        let mut command = mantissa();
        command.args(["eval", "haiku"]).arg(folder.path());
        command.args(["--word", "owl", "-n", "4", "--policy", "f16", "--policy", "bf16"]).args(extra);
        command
    };
    let refused = contains("f16 is refused: ").and(contains("model.norm.weight"));
    run(&[]).assert().success().stdout(refused);
    let json = json_of(&mut run(&["--json"]));
    assert!(
        json["policies"][0]["refused"].as_str().is_some_and(|reason| reason.contains("model.norm.weight"))
    );
    assert_eq!(array(&json["policies"][1]["answers"]).len(), 1);
    let below = contains("fewer than 50 %").and(contains("f16 (refused), bf16 (0.0 %)"));
    run(&["--at-least", "50"]).assert().code(1).stderr(below);
    run(&["--at-least", "0"]).assert().code(1).stderr(contains("f16 (refused)").and(contains("bf16").not()));
}

#[test]
fn words_come_from_a_file_and_the_draws_from_a_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("words.txt");
    std::fs::write(&file, "# birds\nowl\n\n wren \n").expect("a file");
    let run = |extra: &[&str]| {
        let mut command = mantissa();
        command.args(["eval", "haiku", &untrained(), "--policy", "f32", "-n", "6", "--json", "--words"]);
        let json = json_of(command.arg(&file).args(extra));
        let answers = array(&json["policies"][0]["answers"]);
        let of = |field: &str| answers.iter().map(|answer| answer[field].clone()).collect::<Vec<_>>();
        (of("word"), of("text"), json["sampling"]["temperature"].as_f64())
    };
    let (words, greedy, temperature) = run(&[]);
    assert_eq!(words, ["owl", "wren"]);
    assert_eq!(temperature, Some(0.0));
    let drawn = run(&["--sample", "--seed", "3"]);
    assert_eq!(drawn, run(&["--sample", "--seed", "3"]));
    assert_ne!(drawn.1, greedy);
    assert_eq!(run(&["--temperature", "0.5", "--seed", "3"]).2, Some(0.5));
}

#[test]
fn what_cannot_be_asked_is_one_clear_line() {
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let (empty, model) = (empty.path().display().to_string(), untrained());
    let bare = fixture("models/mistral").display().to_string();
    let cases: [(&[&str], &[&str]); 6] = [
        (&[&bare], &["no chat template", "--template"]),
        (&[&model, "--prompt", "Write a haiku."], &["--prompt", "{word}"]),
        (&[&model, "--words", &empty], &["no words"]),
        (&[&model, "--word", "?!"], &["\"?!\" is no word"]),
        (&[&model, "--words", "no/such/file"], &["no/such/file"]),
        (&[&model, "--word", "owl", "--top-p", "2"], &["top_p", "0 to 1"]),
    ];
    for (args, parts) in cases {
        let assert = mantissa().args(["eval", "haiku"]).args(args).assert().code(1);
        let message = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(message.starts_with("error: "), "{args:?}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?}: {part} is not in {message}");
        }
    }
    for percent in ["101", "-1", "NaN", "many"] {
        let args = ["eval", "haiku", &model, "--at-least", percent];
        mantissa().args(args).assert().code(2);
    }
}

/// What the training of the built-in model aimed at, under every policy: that no policy, and no change to a kernel, takes
/// from it what it has learned.
#[test]
fn no_policy_costs_the_built_in_model_its_haiku() {
    let policies = ["f32", "f16", "bf16", "memory-efficient", "bf16,kv_cache=f8e4m3"];
    let mut command = mantissa();
    command.args(["eval", "haiku", "--json"]);
    let json = json_of(command.args(policies.iter().flat_map(|policy| ["--policy", policy])));
    assert!(json["words"].as_u64() >= Some(150));
    let shares: Vec<f64> = array(&json["policies"])
        .iter()
        .map(|policy| policy["pass_percent"].as_f64().expect("a share"))
        .collect();
    let [f32_share, f16, bf16, f16_with_f8_cache, bf16_with_f8_cache] = shares[..] else {
        panic!("{shares:?}")
    };
    assert!([f32_share, f16, bf16].iter().all(|&share| share >= 90.0), "{shares:?}");
    assert!((f16 - f32_share).abs() <= 3.0 && (bf16 - f32_share).abs() <= 3.0, "{shares:?}");
    assert!((f16_with_f8_cache - f16).abs() <= 3.0, "{shares:?}");
    assert!((bf16_with_f8_cache - bf16).abs() <= 3.0, "{shares:?}");
}
