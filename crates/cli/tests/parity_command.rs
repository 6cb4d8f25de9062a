//! `mantissa parity`: kernels and the built-in model against f64, and what it says of a wrong kernel.

#[path = "common/command.rs"]
mod command;

use assert_cmd::Command;
use command::{json_of, mantissa};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

fn parity(arguments: &[&str]) -> Command {
    let mut command = mantissa();
    command.args(["parity", "--device", "cpu"]).args(arguments);
    command
}

/// Relative errors behind the embedding and every layer.
fn errors(comparison: &Value) -> Vec<f64> {
    let points = comparison["points"].as_array().expect("points");
    points.iter().map(|point| point["relative_error"].as_f64().expect("a number")).collect()
}

#[test]
fn kernels_hold_at_the_shapes_of_the_model() {
    let found = json_of(&mut parity(&["--policy", "f16", "--op", "rms_norm,matmul,attention", "--json"]));
    assert_eq!((&found["shapes"]["hidden"], &found["shapes"]["intermediate"]), (&256.into(), &640.into()));
    let kernels = found["kernels"].as_array().expect("kernels");
    let ops: Vec<&str> = kernels.iter().map(|kernel| kernel["op"].as_str().expect("an op")).collect();
    assert_eq!(ops, ["rms_norm", "matmul", "attention"]);
    for (kernel, figure) in kernels.iter().zip([None, Some(1e-3), Some(1e-2)]) {
        assert_eq!(kernel["holds"], true);
        assert_eq!(kernel["figure"].as_f64(), figure);
        let error = kernel["relative_error"].as_f64().expect("it was measured");
        assert!(error > 1e-5 && error < 1e-2, "{kernel}");
        assert!(kernel["bound_used"].as_f64().is_some_and(|share| share > 0.0 && share <= 1.0), "{kernel}");
    }
    assert_eq!(found["summary"]["contracts_that_hold"], 3);
    assert_eq!(found["comparisons"], Value::Array(Vec::new()));
}

#[test]
fn a_wrong_kernel_is_named_with_the_first_number_that_differs() {
    let wrong =
        ["--experimental", "wrong-rms-norm", "--op", "rms_norm", "--policy", "bf16", "--policy", "f32"];
    let line = "value out row 0 column";
    parity(&wrong)
        .assert()
        .failure()
        .stdout(contains("rms_norm bf16xbf16>bf16 fma/f32 lanes16 does not hold"))
        .stdout(contains("at 17 rows of 256").and(contains(line)).and(contains("the contract allows")))
        .stdout(contains("1 of 2 contracts hold"))
        .stderr(contains("1 of 2 contracts do not hold"));
    let assert = parity(&wrong).arg("--json").assert().failure();
    let found: Value = serde_json::from_slice(&assert.get_output().stdout).expect("JSON");
    for kernel in found["kernels"].as_array().expect("kernels") {
        // In f32 the second rounding rounds nothing.
        let right = kernel["contract"].as_str().is_some_and(|contract| contract.starts_with("f32xf32>f32"));
        assert_eq!(kernel["holds"], right, "{kernel}");
        let first = &kernel["failures"][0]["first"];
        assert_eq!(first["value"] == "out" && first["got"] != first["wanted"], !right, "{kernel}");
    }
}

#[test]
fn the_model_is_followed_from_layer_to_layer() {
    let policies = ["--policy", "f32", "--policy", "f16", "--policy", "bf16", "--policy", "memory-efficient"];
    let found = json_of(parity(&["--only", "model", "--tokens", "16", "--json"]).args(policies));
    let comparisons = found["comparisons"].as_array().expect("comparisons");
    assert_eq!(comparisons.len(), 4);
    let mut before = vec![0.0; 6];
    for comparison in comparisons {
        assert_eq!(comparison["holds"], true, "{comparison}");
        let errors = errors(comparison);
        // The coarser the format, the larger the error, behind every layer but not behind the embedding, which is exact.
        assert_eq!(errors.len(), before.len());
        assert_eq!(errors[0], 0.0);
        assert!(errors[1..].iter().zip(&before[1..]).all(|(error, before)| error > before), "{errors:?}");
        let fastest = comparison["fastest"]["name"].as_str().expect("a layer");
        assert!(fastest.starts_with("layers."), "{fastest}");
        let divergence = comparison["logits"]["divergence"].as_f64().expect("a number");
        assert!((0.0..1e-2).contains(&divergence), "{divergence}");
        before = errors;
    }
    // A cache of 8 bits is held to no figure.
    let figures: Vec<Option<f64>> = comparisons.iter().map(|one| one["figure"].as_f64()).collect();
    assert_eq!(figures, [Some(1e-2), Some(1e-2), Some(1e-2), None]);
}

#[test]
fn policies_devices_and_kernels_are_held_against_each_other() {
    let against = json_of(&mut parity(&[
        "--policy",
        "f16",
        "--against",
        "f32",
        "--with-reference",
        "--tokens",
        "8",
        "--json",
    ]));
    let comparisons = against["comparisons"].as_array().expect("comparisons");
    let names: Vec<(&str, &str)> = comparisons
        .iter()
        .map(|one| (one["subject"].as_str().expect("a name"), one["against"].as_str().expect("a name")))
        .collect();
    let truth = "f64 reference";
    assert_eq!(names, [("f16 on cpu", "f32 on cpu"), ("f16 on cpu", truth), ("f32 on cpu", truth)]);
    assert_eq!(against["kernels"], Value::Array(Vec::new()));
    // The same device gives the same bits, and so does a kernel that is only slow.
    for other in
        [&["--against-device", "cpu"][..], &["--against-device", "cpu", "--experimental", "slow-matmul"]]
    {
        let same = json_of(parity(&["--tokens", "8", "--json"]).args(other));
        assert!(errors(&same["comparisons"][0]).iter().all(|&error| error == 0.0), "{same}");
        assert_eq!(same["comparisons"][0]["logits"]["same_top"], 8);
    }
}

#[test]
fn tables_and_plots_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let (csv, plots) = (folder.path().join("parity.csv"), folder.path().join("plots"));
    parity(&["--only", "model", "--tokens", "4", "--csv"])
        .arg(&csv)
        .arg("--plot")
        .arg(&plots)
        .assert()
        .success()
        .stdout(
            contains("the error grows fastest at layers.")
                .and(contains("1 of 1 comparisons of the model hold")),
        );
    let table = std::fs::read_to_string(csv).expect("the table");
    assert!(table.starts_with("device,features,driver,commit,model,part,subject,against,name,"), "{table}");
    // A heading, the embedding, five layers, the logits.
    assert_eq!(table.lines().count(), 8);
    assert!(table.contains(",stream,bf16 on cpu,f64 reference,layers.4,"), "{table}");
    let drawn = std::fs::read_to_string(plots.join("error-by-layer.svg")).expect("the plot");
    assert!(drawn.contains("bf16 on cpu against f64 reference"));
    assert!(plots.join("error-by-layer.png").is_file());
}

#[test]
fn what_cannot_be_checked_is_refused() {
    for (arguments, message) in [
        (&["--op", "rmsnorm"][..], "there is no op \"rmsnorm\"; there are embedding, rms_norm"),
        (&["--only", "kernels", "--against", "f32"], "--against is about the model"),
        (&["--only", "model", "--op", "matmul"], "--op is about kernels"),
        (&["--with-reference"], "--with-reference: the reference is always there"),
        (&["--against", "f32", "--policy", "f16", "--policy", "bf16"], "--policy was given 2 times"),
        (&["--only", "model", "--tokens", "1000000"], "context of 1000000"),
        (&["--against-device", "tpu"], "there is no device \"tpu\""),
    ] {
        parity(arguments).assert().failure().stderr(contains(message));
    }
    let short = ["--only", "model", "--text", "-", "--tokens", "50"];
    parity(&short).write_stdin("A few words.").assert().failure().stderr(contains("and 50 are to be run"));
}

#[test]
fn the_first_layer_that_is_not_finite_is_named() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama_bf16_range");
    let on_model = |policy| {
        let mut command = parity(&["--only", "model", "--tokens", "8", "--policy", policy, "--json"]);
        let output = command.arg(model).output().expect("it runs");
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.success(), found["comparisons"][0].clone())
    };
    let (success, found) = on_model("f16");
    let step = found["first_non_finite"].as_str().expect("a step");
    assert!(!success && found["holds"] == false && step.starts_with("layers.1."), "{found}");
    let (_, found) = on_model("bf16");
    assert_eq!(found["first_non_finite"], Value::Null, "{found}");
}
