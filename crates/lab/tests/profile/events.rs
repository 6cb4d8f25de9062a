//! Profiles in the trace event format.

use std::collections::BTreeMap;

use mantissa::ops::{Grain, Plan, Scope, Trace};
use mantissa_lab::machine::{Build, Machine};
use mantissa_lab::profile::Workload;
use serde_json::Value;

use crate::session::{Idle, SMALL, by_step, plan};

const WORKLOAD: Workload = Workload { prompt: 70, generate: 3, sequences: 2 };

fn machine() -> Machine {
    Machine {
        backend: "cpu".to_owned(),
        device: "a machine".to_owned(),
        features: String::new(),
        driver: None,
        threads: None,
        build: Build { version: "0".to_owned(), commit: "0".to_owned() },
    }
}

/// Holds a file to the rules of the format, and gives its complete events by thread: name, start and end in nanoseconds.
fn checked(text: &str) -> BTreeMap<u64, Vec<(String, i64, i64)>> {
    let file: Value = serde_json::from_str(text).expect("JSON");
    let mut threads: BTreeMap<u64, Vec<(String, i64, i64)>> = BTreeMap::new();
    let mut named = Vec::new();
    for event in file["traceEvents"].as_array().expect("events") {
        let number = |key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{key} in {event}"));
        let (pid, tid) = (event["pid"].as_u64().expect("pid"), event["tid"].as_u64().expect("tid"));
        let name = event["name"].as_str().expect("a name");
        assert!(number("ts") >= 0.0 && event["args"].is_object(), "{event}");
        match event["ph"].as_str().expect("a phase") {
            "X" => {
                assert!(number("dur") >= 0.0, "{event}");
                let [start, end] = [number("ts"), number("ts") + number("dur")]
                    .map(|microseconds| (microseconds * 1e3).round() as i64);
                threads.entry(tid).or_default().push((name.to_owned(), start, end));
            }
            "M" => {
                assert!(["process_name", "thread_name"].contains(&name), "{event}");
                assert!(event["args"]["name"].as_str().is_some_and(|name| !name.is_empty()), "{event}");
                named.push((name.to_owned(), pid, tid));
            }
            other => panic!("a phase {other}"),
        }
    }
    assert!(named.iter().any(|(what, ..)| what == "process_name"));
    for (tid, events) in &mut threads {
        assert!(named.iter().any(|(what, _, named)| what == "thread_name" && named == tid), "thread {tid}");
        events.sort_by_key(|(_, start, end)| (*start, -*end));
        let mut open: Vec<i64> = Vec::new();
        for (name, start, end) in events.iter() {
            open.retain(|outer| outer > start);
            assert!(open.iter().all(|outer| end <= outer), "{name} on thread {tid} overlaps another event");
            open.push(*end);
        }
    }
    threads
}

#[test]
fn every_run_is_an_event_around_those_of_its_steps() {
    let plan = plan(SMALL, "f16");
    let profile = Idle::new(&plan, &WORKLOAD, by_step).profile(WORKLOAD);
    let text = serde_json::to_string(&profile.chrome_trace(&machine())).expect("text");
    let threads = checked(&text);
    // Prefill and decode.
    assert_eq!(threads.len(), 2);
    let decode = threads.values().last().expect("decode");
    let runs: Vec<&(String, i64, i64)> =
        decode.iter().filter(|(name, ..)| name.starts_with("decode ")).collect();
    assert_eq!(runs.len(), 3);
    for (_, start, end) in runs {
        let steps: Vec<i64> = decode
            .iter()
            .filter(|(name, begin, _)| name != "sampling" && begin >= start && begin < end)
            .filter(|(name, ..)| !name.starts_with("decode "))
            .map(|(_, begin, end)| end - begin)
            .collect();
        assert_eq!(steps.len(), plan.steps.len());
        // Rounded to a nanosecond each.
        assert!((steps.iter().sum::<i64>() - (end - start)).abs() <= steps.len() as i64);
    }
    let label = serde_json::from_str::<Value>(&text).expect("JSON")["traceEvents"]
        .as_array()
        .and_then(|events| events.iter().find(|event| event["name"] == "layers.1.attention").cloned())
        .expect("attention");
    for key in ["backend", "kernel", "dtypes", "contract", "shape", "strides", "flags", "bytes", "operations"]
    {
        assert!(!label["args"][key].is_null(), "{key} of {label}");
    }
    assert_eq!(label["args"]["flags"][0], "causal");
}

#[test]
fn what_overlaps_is_on_threads_of_its_own() {
    /// Each step begins when the one before is half done.
    fn overlapping(plan: &Plan, rows: usize, grain: Grain) -> Trace {
        let trace = by_step(plan, rows, grain);
        let scopes: Vec<Scope> =
            trace.scopes.into_iter().map(|scope| Scope { start: scope.start / 2.0, ..scope }).collect();
        Trace { scopes, ..trace }
    }
    let plan = plan(SMALL, "f16");
    let profile = Idle::new(&plan, &WORKLOAD, overlapping).profile(WORKLOAD);
    let text = serde_json::to_string(&profile.chrome_trace(&machine())).expect("text");
    assert!(checked(&text).len() > 2);
}
