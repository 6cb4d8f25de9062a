//! The program, run as a user would run it, but for the preferences of whoever runs the tests.

use assert_cmd::Command;
use serde_json::Value;

/// The program.
pub fn mantissa() -> Command {
    let mut command = Command::cargo_bin("mantissa").expect("the binary");
    // Where libraries and compiled kernels lie is the machine's matter.
    const PATHS: [&str; 3] = ["MANTISSA_KERNEL_CACHE", "MANTISSA_NVRTC", "MANTISSA_CUBLASLT"];
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MANTISSA_") && !PATHS.iter().any(|path| name == *path) {
            command.env_remove(name);
        }
    }
    command
}

/// What it prints, as JSON.
pub fn json_of(command: &mut Command) -> Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).expect("JSON on standard output")
}
