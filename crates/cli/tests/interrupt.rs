//! Ctrl-C, as the signal that a terminal sends.
#![cfg(unix)]

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::{Value, json};

/// Far beyond what this takes; where the signal is not heeded the test fails instead of waiting forever.
const PATIENCE: Duration = Duration::from_secs(120);

/// The Llama fixture with a context so long that no answer fills it before the signal arrives.
fn patient_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama");
    for name in ["generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(name), folder.path().join(name)).expect("a copy");
    }
    let text = std::fs::read(source.join("config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    config["max_position_embeddings"] = json!(200_000);
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a configuration");
    folder
}

/// Starts a command that takes nearly endless time.
fn start(command: &[&str], folder: &tempfile::TempDir, options: &[&str]) -> Child {
    Command::cargo_bin("mantissa")
        .expect("the binary")
        .args(command)
        .arg(folder.path())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process")
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
}

/// Waits for the end while someone reads what the process writes.
fn end_of(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("a state") {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    panic!("the process went on after Ctrl-C");
}

/// Everything that is still to come, read beside the waiting so that a full pipe stops nobody.
fn rest_of(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("readable");
        bytes
    })
}

#[test]
fn ctrl_c_ends_an_answer_cleanly() {
    let folder = patient_model();
    let options =
        ["-p", "Tokens are numbers", "--greedy", "--ignore-eos", "--max-tokens", "199000", "--no-stats"];
    let mut child = start(&["run"], &folder, &options);
    let mut output = child.stdout.take().expect("a pipe");
    let mut first = [0];
    output.read_exact(&mut first).expect("some text before the signal");
    interrupt(&child);
    let (output, errors) = (rest_of(output), rest_of(child.stderr.take().expect("a pipe")));
    assert_eq!(end_of(&mut child).code(), Some(130));
    let text = [first.to_vec(), output.join().expect("read")].concat();
    let text = String::from_utf8(text).expect("whole characters");
    assert!(text.ends_with('\n'), "the shell's prompt starts on a line of its own");
    let errors = String::from_utf8(errors.join().expect("read")).expect("text");
    assert!(!errors.contains("panicked"), "{errors}");
}

/// Interrupts a command that says on standard error what loading converted, some time after that, and has nothing to say
/// before it has ended.
fn ends_without_a_result(command: &[&str], options: &[&str], after: Duration) {
    let folder = patient_model();
    let mut child = start(command, &folder, &[options, &["--policy", "f32", "--verbose"]].concat());
    let mut errors = child.stderr.take().expect("a pipe");
    errors.read_exact(&mut [0]).expect("a line before the signal");
    std::thread::sleep(after);
    interrupt(&child);
    let (output, errors) = (rest_of(child.stdout.take().expect("a pipe")), rest_of(errors));
    assert_eq!(end_of(&mut child).code(), Some(130));
    assert!(output.join().expect("read").is_empty());
    let errors = String::from_utf8(errors.join().expect("read")).expect("text");
    assert!(!errors.contains("error") && !errors.contains("panicked"), "{errors}");
}

#[test]
fn ctrl_c_ends_haiku_without_a_result() {
    ends_without_a_result(&["eval", "haiku"], &["--word", "owl", "--max-tokens", "199000"], Duration::ZERO);
}

#[test]
fn ctrl_c_ends_perplexity_without_a_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "It goes on and on, as long as anybody listens.\n".repeat(40_000)).expect("a text");
    ends_without_a_result(&["eval", "perplexity"], &[file.to_str().expect("a name")], Duration::ZERO);
}

#[test]
fn ctrl_c_ends_a_profile_without_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let [table, events] = ["table.csv", "events.json"].map(|name| folder.path().join(name));
    let [table, events] = [&table, &events].map(|path| path.to_str().expect("a name"));
    let options = ["--csv", table, "--trace", events, "--device", "cpu", "--prompt", "64"];
    let options = [&options[..], &["--repetitions", "1000000"]].concat();
    // Most likely something is being measured by then.
    ends_without_a_result(&["profile"], &options, Duration::from_millis(1500));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is left behind");
}

#[test]
fn ctrl_c_ends_a_report_without_a_trace() {
    let model = patient_model();
    let parent = tempfile::tempdir().expect("a folder");
    let text = tempfile::tempdir().expect("a folder");
    let file = text.path().join("text.txt");
    std::fs::write(&file, "It goes on and on, as long as anybody listens.\n".repeat(40_000)).expect("a text");
    let output = parent.path().join("report");
    let (output, file) = (output.to_str().expect("a name"), file.to_str().expect("a name"));
    let options = ["--output", output, "--text", file, "--windows", "1000000", "--quick", "--contexts", "64"];
    let options = [&options[..], &["--policy", "f32", "--device", "cpu", "--verbose"]].concat();
    let mut child = start(&["report"], &model, &options);
    let mut errors = child.stderr.take().expect("a pipe");
    errors.read_exact(&mut [0]).expect("a line before the signal");
    // Most likely something is being measured by then.
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    let (printed, errors) = (rest_of(child.stdout.take().expect("a pipe")), rest_of(errors));
    assert_eq!(end_of(&mut child).code(), Some(130));
    assert!(printed.join().expect("read").is_empty());
    let errors = String::from_utf8(errors.join().expect("read")).expect("text");
    assert!(!errors.contains("error") && !errors.contains("panicked"), "{errors}");
    assert_eq!(std::fs::read_dir(parent.path()).expect("a folder").count(), 0, "nothing is left behind");
}
