//! Preferences about kernels: read from options and the environment, wrong ones refused by name.

#[path = "common/command.rs"]
mod command;

use command::{json_of, mantissa};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

const PREFERENCES: [(&str, &str, &[&str]); 6] = [
    ("MANTISSA_MATMUL_BACKEND", "--matmul-backend", &["auto, cublaslt and own"]),
    ("MANTISSA_MATMUL_VARIANT", "--matmul-variant", &["auto, smalln and gemm"]),
    ("MANTISSA_SMALLN_MAX_N", "--smalln-max-n", &["0 to 65535"]),
    ("MANTISSA_SOFTMAX_VARIANT", "--softmax-variant", &["auto, vec and block"]),
    ("MANTISSA_SOFTMAX_GROUP", "--softmax-group", &["auto, 32, 64 and 128"]),
    ("MANTISSA_CPU_ISA", "--cpu-isa", &["avx512", "avx2", "neon", "scalar"]),
];

#[test]
fn wrong_values_are_refused_with_the_right_ones() {
    for (variable, option, allowed) in PREFERENCES {
        let from_environment = mantissa().args(["plan", "--device", "cpu"]).env(variable, "wrong").assert();
        let from_option = mantissa().args(["plan", "--device", "cpu", option, "wrong"]).assert();
        for outcome in [from_environment, from_option] {
            let mut outcome = outcome.failure();
            for text in allowed.iter().chain([&variable, &option, &"\"wrong\""]) {
                outcome = outcome.stderr(contains(*text));
            }
        }
    }
}

#[test]
fn right_values_are_taken() {
    let values = ["cublaslt", "gemm", "8", "block", "64", "scalar"];
    let mut command = mantissa();
    for ((variable, _, _), value) in PREFERENCES.iter().zip(values) {
        command.env(variable, value);
    }
    command.args(["plan", "--device", "cpu"]).assert().success().stderr("");
}

#[test]
fn plans_of_the_processor_do_not_depend_on_the_batch() {
    let plan = json_of(mantissa().args(["plan", "--device", "cpu", "--batch-invariant", "--json"]));
    assert!(plan["steps"].as_array().is_some_and(|steps| !steps.is_empty()));
}

#[test]
fn variables_that_mean_nothing_are_named() {
    mantissa().args(["plan", "--device", "cpu"]).env("MANTISSA_MATMUL_BAKCEND", "own").assert().stderr(
        contains("warning: MANTISSA_MATMUL_BAKCEND means nothing").and(contains("MANTISSA_POLICY").not()),
    );
}
