//! `mantissa run` and `mantissa logits` as a program would use them.

mod common;
#[path = "common/expected.rs"]
mod expected;

use std::path::Path;

use assert_cmd::Command;
use common::{fixture, ids};
use expected::{Expected, numbers};
use predicates::prelude::*;
use predicates::str::contains;
use safetensors::SafeTensors;
use serde_json::Value;

const DENSE: [&str; 7] = ["llama", "llama_bf16_range", "mistral", "phi3", "phi3_longrope", "qwen2", "qwen3"];

fn mantissa() -> Command {
    let mut command = Command::cargo_bin("mantissa").expect("the binary");
    for variable in ["MANTISSA_POLICY", "MANTISSA_THREADS", "MANTISSA_CPU_ISA"] {
        command.env_remove(variable);
    }
    command
}

fn model(name: &str) -> String {
    fixture(&format!("models/{name}")).display().to_string()
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn json_of(command: &mut Command) -> Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).expect("JSON on standard output")
}

#[test]
fn greedy_ids_are_those_of_the_fixtures() {
    for name in DENSE {
        let expected = Expected::read(&format!("models/{name}/expected"));
        let prompt = &expected.prompts()[1];
        let done = json_of(
            mantissa()
                .args(["run", &model(name), "--ids", &list(prompt), "--greedy", "--max-tokens", "48"])
                .args(["--ignore-eos", "--json", "--no-stats", "--policy", "f32"]),
        );
        assert_eq!(ids(&done["ids"]), ids(&expected.json["greedy"][1]["ids"]), "{name}");
        assert_eq!(done["finish_reason"], "length");
        assert_eq!(done["policy"], "f32");
        assert_eq!(done["timings"]["prompt_tokens"], prompt.len());
        assert_eq!(done["timings"]["generated_tokens"], 48);
        assert!(done["timings"]["decode_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
        let has_tokenizer = fixture(&format!("models/{name}/tokenizer.json")).exists();
        assert_eq!(done["text"].is_string(), has_tokenizer, "{name}");
    }
}

#[test]
fn a_gguf_file_continues_a_text_with_its_own_vocabulary() {
    for name in ["llama", "qwen2"] {
        let expected = Expected::read(&format!("gguf/{name}.expected"));
        let prompt = &expected.json["text_prompt"];
        let text = prompt["text"].as_str().expect("a text");
        let done = json_of(mantissa().arg("run").arg(fixture(&format!("gguf/{name}-F16.gguf"))).args([
            "-p",
            text,
            "--greedy",
            "-n",
            "48",
            "--ignore-eos",
            "--json",
            "--no-stats",
            "--policy",
            "f32",
        ]));
        let lists = expected.json["sets"]["exact"]["greedy"].as_array().expect("lists");
        let list = lists.iter().find(|list| list["prompt"] == prompt["prompt"]).expect("a list");
        assert_eq!(ids(&done["ids"]), ids(&list["ids"]), "{name}");
        assert!(done["text"].is_string());
    }
}

#[test]
fn a_text_streams_to_standard_output_and_one_line_of_statistics_to_standard_error() {
    let run = |policy: &str| {
        let assert = mantissa()
            .args(["run", &model("llama"), "-p", "Tokens are", "--greedy", "-n", "8", "--ignore-eos"])
            .args(["--policy", policy])
            .assert()
            .success();
        let output = assert.get_output();
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (text, stats) = run("bf16,kv_cache=f8e4m3");
    assert!(!text.trim().is_empty());
    assert_eq!(stats.trim_end().lines().count(), 1, "{stats}");
    for part in ["prefill", "decode", "tokens/s", "memory bandwidth", "first token", "peak memory"] {
        assert!(stats.contains(part), "{part} is not in {stats}");
    }
    assert!(stats.trim_end().ends_with("policy bf16,kv_cache=f8e4m3"), "{stats}");
}

#[test]
fn without_a_tokenizer_the_ids_are_printed() {
    mantissa()
        .args(["run", &model("mistral"), "--ids", "5,6", "--greedy", "-n", "3", "--ignore-eos", "--no-stats"])
        .assert()
        .success()
        .stdout(predicate::str::is_match(r"^\d+ \d+ \d+\n$").expect("a pattern"))
        .stderr("");
    mantissa()
        .args(["run", &model("mistral"), "-p", "text"])
        .assert()
        .failure()
        .stderr(contains("has no tokenizer"));
}

#[test]
fn several_prompts_run_in_one_batch() {
    let args =
        ["-p", "One", "-p", "Two and three", "--greedy", "-n", "6", "--ignore-eos", "--json", "--no-stats"];
    let both = json_of(mantissa().args(["run", &model("qwen2")]).args(args));
    assert_eq!(both.as_array().map(Vec::len), Some(2));
    for (index, prompt) in ["One", "Two and three"].iter().enumerate() {
        let args = ["-p", prompt, "--greedy", "-n", "6", "--ignore-eos", "--json", "--no-stats"];
        let alone = json_of(mantissa().args(["run", &model("qwen2")]).args(args));
        assert_eq!(alone["ids"], both[index]["ids"]);
        assert_eq!(alone["text"], both[index]["text"]);
    }
}

#[test]
fn a_seed_repeats_the_answer_and_a_stop_string_ends_it() {
    let args = ["-p", "Once", "--seed", "7", "-n", "24", "--ignore-eos", "--json", "--no-stats"];
    let first = json_of(mantissa().args(["run", &model("llama")]).args(args));
    let again = json_of(mantissa().args(["run", &model("llama"), "--threads", "1"]).args(args));
    assert_eq!(first["ids"], again["ids"]);
    assert_eq!(first["seed"], 7);
    let text = first["text"].as_str().expect("a text");
    let stop: String = text.chars().skip(4).take(3).collect();
    let stopped = json_of(mantissa().args(["run", &model("llama"), "--stop", &stop]).args(args));
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"].as_str(), text.find(&stop).map(|end| &text[..end]));
}

#[test]
fn a_policy_comes_from_the_environment_and_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.toml");
    std::fs::write(&file, "preset = \"f16\"\nkv_cache = \"f32\"\n").expect("a file");
    let args = ["run", &model("qwen2"), "--ids", "1", "-n", "1", "--json", "--no-stats"];
    let from_file = json_of(mantissa().args(args).arg("--policy").arg(&file));
    assert_eq!(from_file["policy"], "f16,kv_cache=f32");
    let from_environment = json_of(mantissa().args(args).env("MANTISSA_POLICY", "high-precision"));
    assert_eq!(from_environment["policy"], "high-precision");
    let option_wins = json_of(mantissa().args(args).args(["--policy", "f32"]).env("MANTISSA_POLICY", "f16"));
    assert_eq!(option_wins["policy"], "f32");
}

fn write_logits(name: &str, prompt: &[u32], output: &Path) {
    let ids = output.with_extension("json");
    std::fs::write(&ids, serde_json::to_string(prompt).expect("JSON")).expect("a file");
    let mut command = mantissa();
    command.args(["logits", &model(name), "--policy", "f32", "--hidden", "--ids-file"]).arg(ids);
    command.arg("--output").arg(output).assert().success().stdout("");
}

/// Largest difference as a share of the largest number.
fn relative(numbers: &[f32], oracle: &[f32]) -> f32 {
    assert_eq!(numbers.len(), oracle.len());
    let largest = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(0.0, |max: f32, x| max.max(x.abs()));
    let difference = largest(&mut numbers.iter().zip(oracle).map(|(x, o)| x - o));
    difference / largest(&mut oracle.iter().copied())
}

#[test]
fn logits_and_hidden_states_are_those_of_the_oracle() {
    for name in DENSE {
        let expected = Expected::read(&format!("models/{name}/expected"));
        let with_hidden = expected.json["hidden_states_of_prompt"].as_u64().expect("a prompt") as usize;
        let prompt = &expected.prompts()[with_hidden];
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("logits.safetensors");
        write_logits(name, prompt, &file);
        let bytes = std::fs::read(&file).expect("the file");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");

        let logits = tensors.tensor("logits").expect("logits");
        assert_eq!(logits.shape()[0], prompt.len());
        let error =
            relative(&numbers(logits.data()), &expected.tensor(&format!("p{with_hidden}.logits.f64")));
        assert!(error < 2e-5, "{name}: {error:e}");

        let hidden = tensors.tensor("hidden").expect("hidden");
        let [points, tokens, width] = hidden.shape()[..] else { panic!("{:?}", hidden.shape()) };
        assert_eq!(tokens, prompt.len());
        let states = numbers(hidden.data());
        for point in 0..points {
            let place = match point.checked_sub(1) {
                None => "embed".to_owned(),
                Some(layer) => format!("layer{layer}.out"),
            };
            let oracle = expected.tensor(&format!("p{with_hidden}.hidden.{place}"));
            let error = relative(&states[point * tokens * width..(point + 1) * tokens * width], &oracle);
            assert!(error < 2e-5, "{name} {place}: {error:e}");
        }
        // Nothing but the file and its prompt is left in the folder.
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 2);
    }
}

#[test]
fn overflow_names_the_first_step_and_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("logits.safetensors");
    mantissa()
        .args(["logits", &model("llama_bf16_range"), "--ids", "3,4,5", "--policy", "f16", "--output"])
        .arg(&file)
        .assert()
        .code(1)
        .stderr(contains("layers.1.").and(contains("f16")));
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn what_cannot_be_done_is_one_clear_line() {
    let qwen2 = model("qwen2");
    let long = list(&[1; 513]);
    let cases: [(&[&str], &[&str]); 12] = [
        (
            &["run", &qwen2, "--ids", "1", "--policy", "bf16,weights=f8e4m3"],
            &["weights", "f8e4m3", "f32, f16, bf16"],
        ),
        (&["run", &qwen2, "--ids", "1", "--policy", "bf17"], &["bf17", "memory-efficient"]),
        (&["run", "no/such/model", "--ids", "1"], &["no/such/model"]),
        (&["run", &qwen2, "-p", ""], &["prompt is empty"]),
        (&["run", &qwen2, "--ids", ""], &["prompt is empty"]),
        (&["run", &qwen2], &["-p TEXT"]),
        (&["run", &qwen2, "--ids", &long], &["513", "512"]),
        (&["run", &qwen2, "--ids", "1,384"], &["384", "vocabulary"]),
        (&["run", &qwen2, "--ids", "1", "--context", "513"], &["513", "512"]),
        (&["run", &qwen2, "--ids", "1", "--device", "cuda"], &["cuda", "cpu"]),
        (&["run", &qwen2, "--ids", "1", "--cpu-isa", "sse9"], &["sse9", "scalar"]),
        (&["run", &qwen2, "--ids", "1", "--top-p", "1.5"], &["top_p", "1.5"]),
    ];
    for (args, parts) in cases {
        let assert = mantissa().args(args).env("HF_HUB_OFFLINE", "1").assert().code(1).stdout("");
        let message = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(message.starts_with("error: "), "{args:?}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?}: {part} is not in {message}");
        }
    }
}

#[test]
fn every_instruction_set_and_number_of_threads_gives_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Vec::new();
    for (index, extra) in
        [&["--threads", "1"][..], &["--threads", "3"], &["--cpu-isa", "scalar"]].iter().enumerate()
    {
        let file = folder.path().join(format!("{index}.safetensors"));
        let mut command = mantissa();
        command.args(["logits", &model("qwen3"), "--ids", "9,8,7,6,5", "--policy", "f16"]).args(*extra);
        command.arg("--output").arg(&file).assert().success();
        files.push(std::fs::read(file).expect("the file"));
    }
    assert!(files.iter().all(|file| *file == files[0]));
}
