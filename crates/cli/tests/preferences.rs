//! Preferences about kernels: read from options and the environment, wrong ones refused by name.

#[path = "common/command.rs"]
mod command;

use command::{json_of, mantissa};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

const PREFERENCES: [(&str, &str, &[&str]); 8] = [
    ("MANTISSA_MATMUL_BACKEND", "--matmul-backend", &["auto, cublaslt and own"]),
    ("MANTISSA_MATMUL_VARIANT", "--matmul-variant", &["auto, smalln and gemm"]),
    ("MANTISSA_SMALLN_MAX_N", "--smalln-max-n", &["0 to 65535"]),
    ("MANTISSA_SOFTMAX_VARIANT", "--softmax-variant", &["auto, vec and block"]),
    ("MANTISSA_SOFTMAX_GROUP", "--softmax-group", &["auto, 32, 64 and 128"]),
    ("MANTISSA_DECODE_VARIANT", "--decode-variant", &["auto, graph and token"]),
    ("MANTISSA_CPU_ISA", "--cpu-isa", &["avx512", "avx2", "neon", "scalar"]),
    ("MANTISSA_EXPERIMENTAL", "--experimental", &["wrong-rms-norm", "slow-matmul"]),
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
    let values = ["cublaslt", "gemm", "8", "block", "64", "graph", "scalar", "slow-matmul"];
    let mut command = mantissa();
    for ((variable, _, _), value) in PREFERENCES.iter().zip(values) {
        command.env(variable, value);
    }
    let warning = "warning: the experimental kernel slow-matmul takes the place of the usual one\n";
    command.args(["plan", "--device", "cpu"]).assert().success().stderr(warning);
}

#[test]
fn options_for_a_gpu_are_refused_where_the_processor_is_asked_for() {
    let refused =
        |options: &[&str]| mantissa().args(["plan", "--device", "cpu"]).args(options).assert().failure();
    refused(&["--matmul-backend", "cublaslt", "--softmax-group", "64"])
        .stderr(contains("--matmul-backend, --softmax-group: of no account on the cpu"));
    let before = ["--matmul-variant", "gemm", "plan", "--device", "cpu"];
    mantissa().args(before).assert().failure().stderr(contains("--matmul-variant: of no account"));
    // What the environment says holds for many runs, and an option about the processor is one for this.
    mantissa()
        .args(["plan", "--device", "cpu", "--cpu-isa", "scalar"])
        .env("MANTISSA_MATMUL_BACKEND", "cublaslt")
        .assert()
        .success()
        .stderr("");
}

#[test]
fn numbers_that_cannot_be_zero_say_so() {
    for arguments in [["bench", "--batch", "0"], ["bench", "--prompt", "4,0"], ["plan", "--threads", "0"]] {
        mantissa().args(arguments).assert().failure().stderr(
            contains("invalid value '0'")
                .and(contains(arguments[1]))
                .and(contains("it must be a whole number of at least 1")),
        );
    }
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

#[test]
fn a_plan_names_experimental_kernels_where_they_compute() {
    let kernels = |name: &str| {
        let plan = json_of(mantissa().args(["plan", "--device", "cpu", "--json", "--experimental", name]));
        let steps = plan["steps"].as_array().expect("steps").clone();
        let named =
            |step: &&serde_json::Value| step["kernel"].as_str().is_some_and(|kernel| kernel.contains(name));
        let mut ops: Vec<String> =
            steps.iter().filter(named).map(|step| step["op"].as_str().expect("an op").to_owned()).collect();
        ops.sort();
        ops.dedup();
        ops
    };
    assert_eq!(kernels("wrong-rms-norm"), ["rms_norm"]);
    assert_eq!(kernels("slow-matmul"), ["ffn", "logits", "matmul", "qkv"]);
}

#[test]
fn an_experimental_kernel_of_the_processor_is_refused_elsewhere() {
    mantissa()
        .args(["plan", "--device", "cuda:0", "--experimental", "slow-matmul"])
        .assert()
        .failure()
        .stderr(contains(
            "slow-matmul is a kernel of the cpu, and cuda:0 is to compute; choose the device cpu",
        ));
}
