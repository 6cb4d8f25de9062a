//! `mantissa synth` and `mantissa bench`: checkpoints that can be loaded, run and measured.

#[path = "common/command.rs"]
mod command;

use std::fs;
use std::path::Path;

use command::{json_of, mantissa};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn synth(arguments: &[&str], folder: &Path) -> assert_cmd::assert::Assert {
    mantissa().arg("synth").args(arguments).arg(folder).assert()
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = |name: &str, arguments: &[&str]| {
        let path = folder.path().join(name);
        // Large enough for several threads to take part.
        let fixed = ["--arch", "qwen2.5-0.5b", "--layers", "1", "--dtype", "f16"];
        synth(&[&fixed, arguments].concat(), &path).success();
        fs::read(path.join("model.safetensors")).expect("weights")
    };
    let one = bytes("one", &["--seed", "5", "--threads", "1"]);
    assert_eq!(one, bytes("three", &["--seed", "5", "--threads", "3"]));
    let other = bytes("other", &["--seed", "6", "--threads", "3"]);
    assert_eq!(one.len(), other.len());
    assert_ne!(one, other);
}

#[test]
fn every_architecture_loads_and_runs_under_every_preset() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arch, dtype) in
        [("llama", "bf16"), ("mistral", "f32"), ("qwen2", "f16"), ("qwen3", "f32"), ("phi3", "bf16")]
    {
        let path = folder.path().join(arch);
        synth(&["--arch", &format!("tiny-{arch}"), "--dtype", dtype], &path).success();
        for policy in ["f32", "f16", "bf16", "memory-efficient", "high-precision"] {
            let done = json_of(
                mantissa()
                    .args(["run", &path.display().to_string(), "--ids", "5,6,7,8,9", "--policy", policy])
                    .args(["--max-tokens", "12", "--ignore-eos", "--greedy", "--json", "--no-stats"]),
            );
            let ids = done["ids"].as_array().expect("ids");
            assert_eq!(ids.len(), 12, "{arch} {policy}");
            // Random weights that made one token win always would measure nothing.
            assert!(ids.iter().any(|id| id != &ids[0]), "{arch} {policy}: {ids:?}");
        }
    }
}

#[test]
fn a_folder_with_files_is_left_alone_unless_forced() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("model");
    let tiny = ["--arch", "tiny-llama"];
    synth(&tiny, &folder).success().stderr(contains("no tokenizer").and(contains("--ids")));
    fs::write(folder.join("notes.txt"), "mine").expect("a file");
    synth(&tiny, &folder).failure().stderr(contains("is not empty").and(contains("--force")));
    synth(&["--arch", "tiny-phi3", "--force"], &folder).success();
    let config = fs::read_to_string(folder.join("config.json")).expect("a configuration");
    assert!(config.contains("\"phi3\""));
    assert_eq!(fs::read_to_string(folder.join("notes.txt")).expect("a file"), "mine");
    // Nothing is left of what was written on the way.
    let names = |path: &Path| fs::read_dir(path).expect("a folder").count();
    assert_eq!((names(parent.path()), names(&folder)), (1, 4));
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_nothing_behind() {
    let parent = tempfile::tempdir().expect("a folder");
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("mantissa"))
        .args(["synth", "--arch", "llama-3.1-8b"])
        .arg(parent.path().join("model"))
        .spawn()
        .expect("the program");
    let partial =
        || fs::read_dir(parent.path()).expect("a folder").flatten().next().map(|entry| entry.path());
    let begun = || partial().is_some_and(|path| fs::read_dir(path).is_ok_and(|files| files.count() > 0));
    while !begun() {
        assert_eq!(child.try_wait().expect("a status"), None, "it ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let id = i32::try_from(child.id()).expect("a process id");
    // SAFETY: a signal to a child that has not been waited for, whose id therefore belongs to no other process.
    assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
    assert_eq!(child.wait().expect("a status").code(), Some(130));
    assert_eq!(partial(), None);
}

#[test]
fn shapes_and_formats_that_do_not_exist_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    synth(&["--arch", "gpt-5"], &path).failure().stderr(contains("gpt-5").and(contains("qwen2.5-0.5b")));
    synth(&["--arch", "tiny-llama", "--dtype", "f8e4m3"], &path)
        .failure()
        .stderr(contains("bf16, f16 or f32"));
    synth(&["--arch", "tiny-llama", "--layers", "9"], &path).failure().stderr(contains("--layers is 9"));
    assert!(!path.exists());
}

#[test]
fn bench_states_everything_in_every_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    synth(&["--arch", "tiny-qwen2"], &path).success();
    let report = json_of(
        mantissa()
            .args(["bench", &path.display().to_string(), "--json", "--policy", "bf16", "--policy", "f32"])
            .args(["--prompt", "8,20", "--generate", "3", "--repetitions", "2", "--threads", "2"]),
    );
    let policies = report["policies"].as_array().expect("policies");
    assert_eq!(policies.len(), 2);
    for (policy, compute) in policies.iter().zip(["bf16-pairs", "fma"]) {
        let rows = policy["rows"].as_array().expect("rows");
        let tests: Vec<&Value> = rows.iter().map(|row| &row["test"]).collect();
        assert_eq!(tests, ["prefill", "prefill", "decode"]);
        for row in rows {
            assert_eq!(row["policy"], policy["policy"]);
            assert_eq!(row["machine"]["threads"], 2);
            assert!(row["contract"].as_str().is_some_and(|contract| contract.contains(compute)), "{row}");
            for key in ["backend", "device", "features", "version", "commit"] {
                assert!(row["machine"][key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {row}");
            }
            assert_eq!(row["repetitions"].as_array().map(Vec::len), Some(2), "{row}");
            assert_eq!(row["first_token_seconds"].is_object(), row["test"] == "prefill", "{row}");
            let speed = &row["tokens_per_second"];
            let [min, median, max] =
                ["min", "median", "max"].map(|key| speed[key].as_f64().expect("a number"));
            assert!(0.0 < min && min <= median && median <= max, "{speed}");
            assert!(row["share"].as_f64().is_some_and(|share| share > 0.0), "{row}");
        }
        for (_, ceiling) in policy["ceilings"].as_object().expect("ceilings") {
            assert!(ceiling["median"].as_f64().is_some_and(|median| median > 1e6), "{ceiling}");
        }
        assert!(policy["memory"]["weights"].as_u64().is_some_and(|bytes| bytes > 0));
    }
}

#[test]
fn bench_decodes_sequences_together_after_several_contexts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    synth(&["--arch", "tiny-qwen2"], &path).success();
    let report = json_of(
        mantissa()
            .args(["bench", &path.display().to_string(), "--json", "--policy", "bf16", "--prompt", "8"])
            .args(["--decode-after", "4,30", "--batch", "1,5", "--generate", "3", "--repetitions", "2"]),
    );
    let rows = report["policies"][0]["rows"].as_array().expect("rows");
    let decode = rows.iter().filter(|row| row["test"] == "decode");
    let of = |row: &Value, key: &str| row[key].as_u64().expect("a number");
    let tests: Vec<[u64; 3]> =
        decode.clone().map(|row| ["prompt_tokens", "sequences", "tokens"].map(|key| of(row, key))).collect();
    assert_eq!(tests, [[4, 1, 3], [4, 5, 3], [30, 1, 3], [30, 5, 3]]);
    for row in decode {
        let (seconds, rate) = (&row["seconds"]["median"], &row["tokens_per_second"]["median"]);
        let tokens = seconds.as_f64().expect("seconds") * rate.as_f64().expect("a rate");
        assert!((tokens - 3.0 * of(row, "sequences") as f64).abs() < 1e-6, "{row}");
        assert!(row["share"].as_f64().is_some_and(|share| share > 0.0), "{row}");
    }
}

#[test]
fn bench_refuses_prompts_beyond_the_context() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    synth(&["--arch", "tiny-llama"], &path).success();
    let bench = mantissa().args(["bench", &path.display().to_string(), "--prompt", "600"]).assert();
    bench.failure().stderr(contains("a prompt of 600 tokens").and(contains("512")));
    let after = ["bench", &path.display().to_string(), "--prompt", "8", "--decode-after", "500"];
    let bench = mantissa().args(after).assert();
    bench.failure().stderr(contains("after 500 ones").and(contains("512")));
}
