//! `mantissa eval perplexity` against its definition, computed here from what `tokenize` and `logits` give.

#[path = "common/command.rs"]
mod command;
mod common;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use command::{json_of, mantissa};
use common::{fixture, ids};
use predicates::str::contains;
use safetensors::SafeTensors;
use serde_json::Value;

/// English of one byte a character, so that tokens can be counted in characters one by one.
fn text() -> String {
    let text = std::fs::read_to_string(fixture("README.md")).expect("a text");
    text.chars().filter(char::is_ascii).take(1200).collect()
}

/// A folder with the text in it.
fn text_file(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text.txt");
    std::fs::write(&file, text).expect("a file");
    (folder, file)
}

fn perplexity(model: &Path, file: &Path) -> Command {
    let mut command = mantissa();
    command.args(["eval", "perplexity"]).arg(model).arg(file).arg("--json");
    command
}

/// Log-probabilities of every position of a window, `[tokens][vocabulary]`.
fn log_probabilities(model: &Path, tokens: &[u32], policy: &str, folder: &Path) -> Vec<Vec<f64>> {
    let (list, output) = (folder.join("ids.json"), folder.join("logits.safetensors"));
    std::fs::write(&list, serde_json::to_vec(tokens).expect("JSON")).expect("a file");
    let mut command = mantissa();
    command.arg("logits").arg(model).arg("--ids-file").arg(list).arg("--output").arg(&output);
    command.args(["--policy", policy]).assert().success();
    let bytes = std::fs::read(output).expect("the logits");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let logits = tensors.tensor("logits").expect("logits");
    let numbers: Vec<f64> =
        logits.data().as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect();
    let log_softmax = |row: &[f64]| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - max).exp()).sum();
        row.iter().map(|logit| logit - max - sum.ln()).collect()
    };
    numbers.chunks_exact(logits.shape()[1]).map(log_softmax).collect()
}

/// What the definition says of every prediction.
#[derive(Default)]
struct Expected {
    policy: Vec<f64>,
    reference: Vec<f64>,
    divergences: Vec<f64>,
    same_top: usize,
    predicted: Vec<u32>,
}

impl Expected {
    /// `windows` are starts and the first predicted token of each, all of them `context` tokens long.
    fn of(
        model: &Path,
        tokens: &[u32],
        bos: Option<u32>,
        context: usize,
        windows: &[(usize, usize)],
    ) -> Expected {
        let folder = tempfile::tempdir().expect("a folder");
        let mut expected = Expected::default();
        for &(start, first) in windows {
            let mut window = tokens[start..start + context].to_vec();
            window[0] = bos.unwrap_or(window[0]);
            let policy = log_probabilities(model, &window, "f16", folder.path());
            let reference = log_probabilities(model, &window, "f32", folder.path());
            for target in first - start..context {
                let (q, p) = (&policy[target - 1], &reference[target - 1]);
                let token = window[target];
                expected.policy.push(-q[token as usize]);
                expected.reference.push(-p[token as usize]);
                expected.divergences.push(p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum());
                let top = |row: &[f64]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                expected.same_top += usize::from(top(p) == top(q));
                expected.predicted.push(token);
            }
        }
        expected
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// `sqrt((E[x^2] - E[x]^2) / (n - 1))`, as llama.cpp has it.
fn error(numbers: &[f64]) -> f64 {
    let squares: Vec<f64> = numbers.iter().map(|number| number * number).collect();
    ((mean(&squares) - mean(numbers).powi(2)) / (numbers.len() - 1) as f64).sqrt()
}

fn close(found: &Value, expected: f64, what: &str) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{what}: {found}"));
    let tolerance = 2e-6 * expected.abs().max(1e-3);
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
}

/// Everything that is reported, by its definition.
fn check(found: &Value, expected: &Expected, characters: usize) {
    let (ours, theirs) = (&expected.policy, &expected.reference);
    let count = ours.len();
    assert_eq!(found["predicted"], count);
    assert_eq!(found["characters"], characters);
    close(&found["nats_per_token"]["value"], mean(ours), "mean");
    close(&found["nats_per_token"]["error"], error(ours), "error of the mean");
    close(&found["perplexity"]["value"], mean(ours).exp(), "perplexity");
    close(&found["perplexity"]["error"], mean(ours).exp() * error(ours), "error of the perplexity");
    close(&found["nats_per_character"], mean(ours) * count as f64 / characters as f64, "characters");

    let against = &found["against"];
    close(&against["perplexity"]["value"], mean(theirs).exp(), "perplexity of the reference");
    let (difference, ratio) = (mean(ours).exp() - mean(theirs).exp(), (mean(ours) - mean(theirs)).exp());
    close(&against["ratio"]["value"], ratio, "ratio");
    // A difference of large numbers.
    assert!((against["difference"]["value"].as_f64().expect("a number") - difference).abs() < 2e-3);
    let each: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect();
    // Differences of log-likelihoods that were rounded to f32.
    let found = against["log_ratio"]["error"].as_f64().expect("a number");
    assert!((found / error(&each) - 1.0).abs() < 1e-3, "error of the ratio's logarithm: {found}");

    let mut sorted = expected.divergences.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |fraction: f64| {
        let place = fraction * (count - 1) as f64;
        let lower = sorted[place as usize];
        lower + place.fract() * (sorted[(place as usize + 1).min(count - 1)] - lower)
    };
    let divergence = &against["kl_divergence"];
    for (found, expected, what) in [
        (&divergence["mean"]["value"], mean(&sorted), "mean"),
        (&divergence["mean"]["error"], error(&sorted), "error of the mean"),
        (&divergence["median"], at(0.5), "median"),
        (&divergence["p99"], at(0.99), "99th percentile"),
        (&divergence["max"], at(1.0), "maximum"),
    ] {
        let found = found.as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-6 * expected, "{what} of KL: {found}, expected {expected}");
    }
    close(&against["same_top"]["value"], expected.same_top as f64 / count as f64, "agreement");
}

/// The Llama fixture's tokenizer puts a token before a text, that of Qwen2 does not.
#[test]
fn everything_is_as_the_definition_says() {
    let text = text();
    let (_folder, file) = text_file(text.as_bytes());
    for name in ["llama", "qwen2"] {
        let model = fixture(&format!("models/{name}"));
        let tokens = ids(&json_of(mantissa().arg("tokenize").arg(&model).arg("--file").arg(&file)));
        let plain =
            json_of(mantissa().arg("tokenize").arg(&model).arg("--file").arg(&file).arg("--no-special"));
        let bos = (tokens.len() > ids(&plain).len()).then(|| tokens[0]);
        assert_eq!(bos.is_some(), name == "llama");
        let context = 96;

        let halves = [(0, 49), (96, 96 + 49), (192, 192 + 49)];
        let strided = [(0, 96 - 40), (40, 40 + 96 - 40), (80, 80 + 96 - 40)];
        for (windows, stride) in [(halves, None), (strided, Some("40"))] {
            let expected = Expected::of(&model, &tokens, bos, context, &windows);
            let mut command = perplexity(&model, &file);
            command.args(["--policy", "f16", "--against", "f32", "--context", "96", "--windows", "3"]);
            let found =
                json_of(command.args(stride.map(|stride| ["--stride", stride]).into_iter().flatten()));
            let predicted = expected.predicted.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let mut detokenize = mantissa();
            let output =
                detokenize.arg("detokenize").arg(&model).args(["--ids", &predicted]).assert().success();
            let shown = String::from_utf8(output.get_output().stdout.clone()).expect("text");
            check(&found["total"], &expected, shown.len());
            assert_eq!(found["texts"][0]["tokens"], tokens.len());
            assert_eq!(found["policy"]["policy"]["kv_cache"], "f16");
            assert_eq!(found["against"]["policy"]["name"], "f32");
        }
    }
}

#[test]
fn a_policy_agrees_with_itself() {
    let (_folder, file) = text_file(text().as_bytes());
    for policy in ["f32", "bf16,kv_cache=f8e4m3"] {
        let mut command = perplexity(&fixture("models/qwen2"), &file);
        let found = json_of(command.args(["--policy", policy, "--against", policy, "--context", "128"]));
        let against = &found["total"]["against"];
        assert_eq!(against["perplexity"], found["total"]["perplexity"]);
        assert_eq!(against["same_top"]["value"], 1.0);
        assert_eq!(against["ratio"]["value"], 1.0);
        assert_eq!(against["difference"]["value"], 0.0);
        for name in ["median", "p99", "max"] {
            assert_eq!(against["kl_divergence"][name], 0.0);
        }
    }
}

/// Neither the number of threads nor a comparison beside it changes a bit.
#[test]
fn what_is_found_does_not_depend_on_how() {
    let (_folder, file) = text_file(text().as_bytes());
    let of = |arguments: &[&str]| {
        let mut command = perplexity(&fixture("models/qwen2"), &file);
        let found = json_of(command.args(["--policy", "bf16", "--context", "200"]).args(arguments));
        found["total"]["perplexity"].clone()
    };
    let alone = of(&[]);
    assert_eq!(of(&["--threads", "1"]), alone);
    assert_eq!(of(&["--threads", "3"]), alone);
    assert_eq!(of(&["--against", "f32"]), alone);
}

#[test]
fn several_texts_are_measured_by_themselves_and_together() {
    let (_one, first) = text_file(text().as_bytes());
    let (_two, second) = text_file(text().to_uppercase().as_bytes());
    let model = fixture("models/qwen2");
    let of = |files: &[&PathBuf]| {
        let mut command = mantissa();
        command.args(["eval", "perplexity"]).arg(&model).args(files);
        json_of(command.args(["--context", "100", "--against", "f32", "--json"]))
    };
    let (both, alone) = (of(&[&first, &second]), [of(&[&first]), of(&[&second])]);
    for (index, alone) in alone.iter().enumerate() {
        assert_eq!(both["texts"][index]["perplexity"], alone["total"]["perplexity"]);
        assert_eq!(
            both["texts"][index]["against"]["kl_divergence"],
            alone["total"]["against"]["kl_divergence"]
        );
    }
    for count in ["tokens", "windows", "predicted", "characters"] {
        let sum = alone.iter().map(|alone| alone["total"][count].as_u64().expect("a count")).sum::<u64>();
        assert_eq!(both["total"][count], sum, "{count}");
    }
    let nats = |value: &Value| {
        let predicted = value["predicted"].as_f64().expect("a count");
        value["nats_per_token"]["value"].as_f64().expect("a number") * predicted
    };
    close(&nats(&both["total"]).into(), alone.iter().map(|alone| nats(&alone["total"])).sum(), "nats");

    let table = mantissa()
        .args(["eval", "perplexity"])
        .arg(&model)
        .args([&first, &second])
        .args(["--context", "100", "--against", "f32", "--policy", "bf16,kv_cache=f8e4m3"])
        .assert()
        .success();
    let table = String::from_utf8(table.get_output().stdout.clone()).expect("text");
    for part in
        ["perplexity", "nats/character", "99 % KL", "same top token", "cache per token", "all ", " ± "]
    {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let (_folder, file) = text_file(b"Only a few words.");
    let qwen2 = fixture("models/qwen2");
    let fails = |command: &mut Command, said: &str| {
        command.assert().failure().code(1).stderr(contains(said));
    };
    fails(&mut perplexity(&qwen2, &file), "at least 512");
    fails(perplexity(&qwen2, &file).args(["--stride", "7", "--context", "64"]), "at least 65");
    fails(perplexity(&qwen2, &file).args(["--stride", "8", "--context", "8"]), "a stride of 8");
    fails(perplexity(&qwen2, &file).args(["--context", "2"]), "at least 3");
    fails(perplexity(&qwen2, &file).args(["--context", "513"]), "512");
    fails(perplexity(&qwen2, &file).args(["--against", "f31"]), "f31");
    fails(perplexity(&qwen2, &file).args(["--policy", "f16,kv_cache=f31"]), "f31");
    fails(&mut perplexity(&qwen2, Path::new("no-such-text.txt")), "no-such-text.txt");
    fails(mantissa().args(["eval", "perplexity"]).arg(&qwen2), "name the text");
    fails(&mut perplexity(&fixture("models/phi3"), &file), "no tokenizer");
    let (_empty, empty) = text_file(b"");
    fails(&mut perplexity(&qwen2, &empty), "is empty");
    let (_binary, binary) = text_file(b"abc\xff\xfe");
    fails(&mut perplexity(&qwen2, &binary), "not UTF-8: byte 3");
    mantissa().args(["eval", "perplexity"]).assert().failure().code(2);
}
