//! The program, run as a user would run it, but for the variables of whoever runs the tests.

use assert_cmd::Command;
use serde_json::Value;

/// The program.
pub fn mantissa() -> Command {
    let mut command = Command::cargo_bin("mantissa").expect("the binary");
    for variable in ["MANTISSA_POLICY", "MANTISSA_THREADS", "MANTISSA_CPU_ISA"] {
        command.env_remove(variable);
    }
    command
}

/// What it prints, as JSON.
pub fn json_of(command: &mut Command) -> Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).expect("JSON on standard output")
}
