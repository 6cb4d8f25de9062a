//! `mantissa bench`: kernels by themselves, measurements in files, and what became slower.

mod common {
    pub mod command;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

use common::command::{json_of, mantissa};

/// A row of a file as a map from heading to text.
fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).expect("a file");
    // No field of these files has a comma in it: policies are presets.
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let headings = lines.next().expect("headings");
    lines
        .map(|fields| {
            assert_eq!(fields.len(), headings.len(), "{fields:?}");
            headings.iter().cloned().zip(fields).collect()
        })
        .collect()
}

/// What every row of every file names.
fn check_row(row: &BTreeMap<String, String>) {
    for name in ["benchmark", "policy", "test", "contract", "limit", "backend", "device", "version", "commit"]
    {
        assert!(!row[name].is_empty(), "{name} of {row:?}");
    }
    for name in ["seconds", "achieved_per_second", "ceiling_per_second", "share"] {
        let number: f64 = row[name].parse().unwrap_or_else(|_| panic!("{name} of {row:?}"));
        assert!(number > 0.0 && number.is_finite(), "{name} of {row:?}");
    }
}

#[test]
fn products_are_swept_in_every_variant_and_one_is_chosen() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rows.csv");
    let report = json_of(
        mantissa()
            .args(["bench", "matmul", "--device", "cpu", "--policy", "bf16", "--policy", "f32", "--json"])
            .args(["--m", "64", "--n", "1,5,20", "--k", "48", "--repetitions", "2", "--limit", "600"])
            .arg("--csv")
            .arg(&path),
    );
    let found = report["rows"].as_array().expect("rows");
    let mut chosen: BTreeMap<(String, String), usize> = BTreeMap::new();
    for row in found {
        let text = |key: &str| row[key].as_str().expect("a text").to_owned();
        assert!(text("kernel").starts_with("matmul."), "{row}");
        assert!(text("kernel").contains(&text("variant")), "{row}");
        *chosen.entry((text("policy"), text("test"))).or_default() += usize::from(row["chosen"] == true);
    }
    // Two policies, three numbers of rows, two factors, with a residual and without.
    assert_eq!(chosen.len(), 2 * 3 * 2 * 2);
    assert!(chosen.values().all(|count| *count == 1), "{chosen:?}");
    assert!(chosen.keys().any(|(_, test)| test == "matmul m=64 n=5 k=48 alpha=0.5 beta=1"), "{chosen:?}");
    assert!(found.iter().any(|row| row["variant"] == "scalar"));
    assert!(report["not_fastest"].is_array());
    let rows = rows(&path);
    let repetitions: usize =
        found.iter().map(|row| row["repetitions"].as_array().expect("repetitions").len()).sum();
    assert_eq!(rows.len(), repetitions);
    rows.iter().for_each(check_row);
}

#[test]
fn attention_is_swept_over_heads_contexts_and_caches() {
    let report = json_of(
        mantissa()
            .args(["bench", "attention", "--device", "cpu", "--json", "--repetitions", "1", "--limit", "600"])
            .args(["--policy", "bf16", "--policy", "bf16,kv_cache=f8e4m3"])
            .args(["--heads", "4/2x16,2/2x32", "--context", "64,600"]),
    );
    let rows = report["rows"].as_array().expect("rows");
    let has = |policy: &str, test: &str| {
        let row =
            rows.iter().find(|row| row["policy"] == policy && row["test"] == test && row["chosen"] == true);
        row.unwrap_or_else(|| panic!("{policy} {test}"))["contract"].as_str().expect("a contract").to_owned()
    };
    for (policy, cache) in [("bf16", "[bf16]"), ("bf16,kv_cache=f8e4m3", "[f8e4m3+f16]")] {
        for test in [
            "attention decode heads=4/2x16 queries=1 context=600",
            "attention prefill heads=2/2x32 queries=64 context=64",
            "attention prefill heads=2/2x32 queries=512 context=600",
        ] {
            assert!(has(policy, test).contains(cache), "{policy} {test}");
        }
    }
}

#[test]
fn a_models_measurements_are_kept_with_everything_they_were_made_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rows.csv");
    mantissa()
        .args(["bench", "--policy", "f16", "--prompt", "8,20", "--generate", "3", "--batch", "1,2"])
        .args(["--repetitions", "2", "--csv"])
        .arg(&path)
        .assert()
        .success()
        .stdout(contains("first token").and(contains("peak, process")).and(contains("mantissa-tiny")));
    let rows = rows(&path);
    // Two prompts and two batches, twice.
    assert_eq!(rows.len(), 8);
    for row in &rows {
        check_row(row);
        assert_eq!((&row["policy"][..], &row["model"][..]), ("f16", "mantissa-tiny (built in)"));
        assert_eq!(row["first_token_seconds"].is_empty(), row["test"].starts_with("decode"), "{row:?}");
    }
    mantissa()
        .args(["bench", "compare"])
        .args([&path, &path])
        .assert()
        .success()
        .stdout(contains("0 slower, 0 faster"));
}

/// Measurements of eight tests in ten rounds on a machine without much noise, the last test slowed by a factor.
fn measurements(folder: &Path, name: &str, factor: f64, device: &str) -> PathBuf {
    let mut text = String::from(
        "benchmark,model,policy,test,variant,chosen,kernel,contract,context,sequences,tokens,repetition,seconds,\
         first_token_seconds,limit,achieved_per_second,ceiling_per_second,share,peak_device_bytes,peak_process_bytes,\
         backend,device,features,driver,threads,version,commit\n",
    );
    for repetition in 0..10 {
        for test in 0..8 {
            // Up to one per cent around one, another sequence in every file.
            let noise = 1.0 + 0.01 * ((repetition * 8 + test + name.len()) as f64 * 0.618).fract();
            let seconds = 1e-4 * noise * if test == 7 { factor } else { 1.0 };
            let share = 5e-5 / seconds;
            text += &format!(
                "matmul,,bf16,test {test},own,yes,kernel,contract,,,,{repetition},{seconds},,memory bandwidth,1,1,{share},\
                 ,,cpu,{device},avx512,,2,0.1.0,abc\n"
            );
        }
    }
    let path = folder.join(name);
    fs::write(&path, text).expect("a file");
    path
}

#[test]
fn what_became_slower_fails_and_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = measurements(folder.path(), "before.csv", 1.0, "here");
    let after = measurements(folder.path(), "afterwards.csv", 1.1, "here");
    let compare =
        |one: &Path, other: &Path| mantissa().args(["bench", "compare"]).args([one, other]).assert();
    compare(&before, &after)
        .failure()
        .stdout(contains("test 7").and(contains("slower")).and(contains("test 6").not()))
        .stderr(contains("became slower, beyond noise"));
    // The other way round it became faster, which is no failure.
    compare(&after, &before).success().stdout(contains("faster"));
    let output =
        mantissa().args(["bench", "compare", "--json"]).args([&before, &after]).output().expect("a result");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let differences = report["differences"].as_array().expect("differences");
    let slow = differences.iter().find(|difference| difference["test"] == "test 7").expect("the test");
    assert_eq!(slow["verdict"], "slower");
    assert!(slow["ratio"].as_f64().is_some_and(|ratio| (ratio - 1.1).abs() < 0.01), "{slow}");
    let same = measurements(folder.path(), "a.csv", 1.0, "here");
    compare(&before, &same).success().stdout(contains("0 slower, 0 faster, 9 no more than noise"));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = measurements(folder.path(), "here.csv", 1.0, "here");
    let there = measurements(folder.path(), "there.csv", 1.0, "there");
    let compare =
        |one: &Path, other: &Path| mantissa().args(["bench", "compare"]).args([one, other]).assert();
    compare(&here, &there).failure().stderr(contains("different machines").and(contains("there")));
    let other = folder.path().join("other.csv");
    fs::write(&other, "a,b\n1,2\n").expect("a file");
    compare(&here, &other).failure().stderr(contains("other.csv holds no measurements of bench"));
    compare(&here, &folder.path().join("none.csv")).failure().stderr(contains("cannot open"));
}

#[test]
fn shapes_that_make_no_sense_are_refused() {
    let refused = |arguments: &[&str], reason: &str| {
        mantissa().arg("bench").args(arguments).assert().failure().stderr(contains(reason));
    };
    refused(&["attention", "--heads", "14x64"], "it must be written like 14/2x64");
    refused(&["attention", "--heads", "14/4x64"], "must be a multiple of key heads");
    refused(&["matmul", "--n", "0"], "at least 1");
    refused(&["matmul", "--limit", "0"], "a number above 0");
    refused(&["compare", "a.csv"], "<AFTER>");
    refused(&["no-such-model"], "no-such-model");
}
