//! `mantissa profile`: what it names, what it adds up, and the files that it writes.

#[path = "common/command.rs"]
mod command;

use std::path::Path;

use command::{json_of, mantissa};
use mantissa::Model;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

/// A profile of the built-in model on the CPU, as JSON.
fn profile(arguments: &[&str]) -> Value {
    let fixed = ["profile", "--device", "cpu", "--json", "--prompt", "40", "--generate", "3"];
    json_of(mantissa().args(fixed).args(["--repetitions", "2"]).args(arguments))
}

fn phase<'a>(profile: &'a Value, name: &str) -> &'a Value {
    let phases = profile["phases"].as_array().expect("phases");
    phases.iter().find(|phase| phase["phase"] == name).expect("a phase")
}

fn rows(phase: &Value) -> &[Value] {
    phase["rows"].as_array().expect("rows")
}

/// The sum of a kind of bytes over the rows of a phase.
fn bytes(phase: &Value, kind: &str) -> u64 {
    rows(phase).iter().map(|row| row["cost"][kind].as_u64().expect("bytes")).sum()
}

#[test]
fn bytes_of_the_built_in_model_are_those_of_its_sizes() {
    let profile = profile(&["--policy", "bf16"]);
    let model = Model::built_in().expect("the built-in model");
    let config = model.config();
    let (hidden, layers) = (config.hidden_size, config.layers);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let qkv = (queries + 2 * keys) * (hidden + usize::from(config.attention_bias));
    let layer = qkv + queries * hidden + 3 * hidden * config.intermediate_size + 2 * hidden;
    // Every matrix, bias and norm once a token, with a row of the embedding; two bytes each.
    let weights = 2 * (layers * layer + hidden + config.vocab_size * hidden + hidden);
    let token = 2 * 2 * layers * keys;
    let decode = phase(&profile, "decode");
    assert_eq!(bytes(decode, "weights"), 3 * weights as u64);
    assert_eq!(bytes(decode, "cache_read"), ((41 + 42 + 43) * token) as u64);
    assert_eq!(bytes(decode, "cache_written"), (3 * token) as u64);
    assert_eq!(bytes(phase(&profile, "prefill"), "cache_written"), (40 * token) as u64);
}

#[test]
fn times_add_up_and_every_row_says_what_it_is() {
    let profile = profile(&["--by", "step"]);
    let plan = json_of(mantissa().args(["plan", "--device", "cpu", "--json"]));
    let steps: Vec<&Value> =
        plan["steps"].as_array().expect("steps").iter().map(|step| &step["step"]).collect();
    for name in ["prefill", "decode"] {
        let phase = phase(&profile, name);
        let named: Vec<&Value> = rows(phase).iter().map(|row| &row["name"]).collect();
        assert_eq!(named, steps);
        let mean = |value: &Value| value["mean"].as_f64().expect("seconds");
        let parts: f64 = rows(phase).iter().map(|row| mean(&row["seconds"])).sum();
        let whole = mean(&phase["traced_seconds"]);
        let rest = mean(&phase["between_seconds"]) + mean(&phase["sampling_seconds"]);
        assert!((parts + rest - whole).abs() <= 1e-9 * whole, "{parts} + {rest} of {whole}");
        assert!(mean(&phase["untraced_seconds"]) > 0.0 && phase["overhead"]["median"].is_f64());
        for row in rows(phase) {
            assert!(mean(&row["seconds"]) > 0.0 && row["bound"]["share"].as_f64() > Some(0.0), "{row}");
            for key in ["backend", "kernel", "contract", "shape", "strides"] {
                assert!(row["label"][key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {row}");
            }
        }
    }
    assert!(profile["machine"]["commit"].is_string() && profile["machine"]["threads"].is_u64());
}

#[test]
fn files_hold_what_was_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (table, events, plots) = (path("rows.csv"), path("events.json"), path("plots"));
    let profile = profile(&["--csv", &table, "--trace", &events, "--plot", &plots]);

    let mut reader = csv::Reader::from_path(&table).expect("a table");
    let headings = reader.headers().expect("headings").clone();
    let column = |name: &str| headings.iter().position(|heading| heading == name).expect("a column");
    let (kind, phase_column, total) = (column("kind"), column("phase"), column("weight_bytes"));
    let records: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().expect("records");
    let of_decode = records.iter().filter(|row| &row[kind] == "operation" && &row[phase_column] == "decode");
    let sum: u64 = of_decode.map(|row| row[total].parse::<u64>().expect("bytes")).sum();
    assert_eq!(sum, bytes(phase(&profile, "decode"), "weights"));
    for name in ["device", "commit", "policy"] {
        assert!(records.iter().all(|row| !row[column(name)].is_empty()), "{name}");
    }

    check_events(&std::fs::read_to_string(&events).expect("events"));
    for name in ["roofline", "prefill", "decode"] {
        let picture = |ending: &str| std::fs::read(Path::new(&plots).join(format!("{name}.{ending}")));
        assert!(picture("png").expect("a picture").starts_with(b"\x89PNG"), "{name}");
        assert!(picture("svg").expect("a picture").starts_with(b"<svg"), "{name}");
    }
}

/// Every run is around its steps, which follow each other, and around nothing else.
fn check_events(text: &str) {
    let file: Value = serde_json::from_str(text).expect("JSON");
    let mut open = (0.0, 0.0);
    let mut steps = 0;
    for event in file["traceEvents"].as_array().expect("events") {
        if event["ph"] != "X" {
            assert_eq!(event["ph"], "M", "{event}");
            continue;
        }
        let number = |key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{key} in {event}"));
        let (start, end) = (number("ts"), number("ts") + number("dur"));
        assert!(start >= 0.0 && end >= start && event["tid"].is_u64() && event["pid"].is_u64(), "{event}");
        match event["cat"].as_str().expect("a category") {
            "run" => open = (start, end),
            "kernel" => {
                // Times have thousandths of a microsecond.
                assert!(start >= open.0 - 1e-6 && end <= open.1 + 1e-6, "{event} in {open:?}");
                open.0 = end;
                steps += 1;
            }
            other => assert_eq!(other, "sampling"),
        }
    }
    assert!(steps > 0);
}

#[test]
fn prompts_beyond_the_context_are_refused() {
    let profile = mantissa().args(["profile", "--prompt", "510", "--generate", "3"]).assert();
    profile.failure().stderr(contains("a prompt of 510 tokens and 3 behind it").and(contains("512")));
}

#[test]
fn places_that_cannot_be_written_are_refused_before_anything_is_measured() {
    for command in [&["profile"][..], &["bench"], &["parity"], &["bench", "matmul"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("missing").join("rows.csv");
        // The model that is not there would be the next mistake, but for the sweep, which takes none.
        let model = (command.len() == 1).then_some("no-such-model");
        let command = mantissa().args(command).args(model).arg("--csv").arg(&file).assert();
        command.failure().stdout("").stderr(contains("cannot write").and(contains("no-such-model").not()));
        let left = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(left, 0);
    }
}
