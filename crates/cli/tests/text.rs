//! The text side by itself: `tokenize`, `detokenize`, `template`, `chat`, `completions` and help.

mod common;

use assert_cmd::Command;
use common::{fixture, ids};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

fn mantissa() -> Command {
    let mut command = Command::cargo_bin("mantissa").expect("the binary");
    command.env_remove("MANTISSA_POLICY");
    command
}

fn read_json(path: &str) -> Value {
    let text = std::fs::read_to_string(fixture(path)).expect("the fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn output_of(command: &mut Command) -> Vec<u8> {
    command.assert().success().get_output().stdout.clone()
}

/// A process for each case would take long: every tenth one shows that the command does what the library does, whose
/// own tests go through all of them.
#[test]
fn tokenize_and_detokenize_agree_with_the_fixtures() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text_file, ids_file) = (folder.path().join("text"), folder.path().join("ids.json"));
    for name in ["bpe_llama3", "bpe_qwen2", "spm_llama"] {
        let cases = read_json(&format!("tokenizers/{name}/cases.json"));
        for case in cases["cases"].as_array().expect("cases").iter().step_by(10) {
            std::fs::write(&text_file, case["text"].as_str().expect("a text")).expect("a file");
            let path = fixture(&format!("tokenizers/{name}"));
            let output = output_of(mantissa().arg("tokenize").arg(&path).arg("--file").arg(&text_file));
            let got: Value = serde_json::from_slice(&output).expect("JSON");
            assert_eq!(got, case["ids_with_special"], "{name}: {}", case["text"]);

            std::fs::write(&ids_file, case["ids_with_special"].to_string()).expect("a file");
            for (option, key) in [(None, "decoded"), (Some("--skip-special"), "decoded_skip_special")] {
                let mut command = mantissa();
                command.arg("detokenize").arg(&path).arg("--ids-file").arg(&ids_file).args(option);
                let text = String::from_utf8(output_of(&mut command)).expect("UTF-8");
                // The fixture decodes the ids without the special tokens around the text.
                assert!(text.ends_with(case[key].as_str().expect("a text")), "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn a_vocabulary_is_enough_to_tokenize() {
    for name in ["gpt-2", "llama-spm", "phi-3"] {
        let stem = format!("tokenizers/ggml-vocab-{name}.gguf");
        let inputs = std::fs::read_to_string(fixture(&format!("{stem}.inp"))).expect("the texts");
        let outputs = std::fs::read_to_string(fixture(&format!("{stem}.out"))).expect("the ids");
        let texts: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let last = texts.len() - 2;
        for index in [0, last / 2, last] {
            let line = outputs.lines().nth(index).expect("a line");
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().expect("an id")).collect();
            let output = output_of(
                mantissa()
                    .arg("tokenize")
                    .arg(fixture(&stem))
                    .args(["--no-special", "--file", "-"])
                    .write_stdin(texts[index]),
            );
            let got: Value = serde_json::from_slice(&output).expect("JSON");
            assert_eq!(ids(&got), expected, "{name}: {:?}", texts[index]);
        }
    }
}

#[test]
fn text_that_is_not_utf8_is_refused_with_its_place() {
    mantissa()
        .arg("tokenize")
        .arg(fixture("tokenizers/bpe_qwen2"))
        .args(["--file", "-"])
        .write_stdin(&b"abc\xff"[..])
        .assert()
        .code(1)
        .stderr(contains("byte 3"));
}

#[test]
fn templates_render_as_the_fixtures() {
    let all = read_json("chat_templates/cases.json");
    let folder = tempfile::tempdir().expect("a folder");
    let chat = folder.path().join("chat.json");
    for case in all["cases"].as_array().expect("cases") {
        let mut variables = all["conversations"][case["conversation"].as_str().expect("a name")].clone();
        for token in ["bos_token", "eos_token"] {
            if case[token].is_string() {
                variables[token] = case[token].clone();
            }
        }
        std::fs::write(&chat, variables.to_string()).expect("a file");
        let template = fixture(&format!("chat_templates/{}", case["template"].as_str().expect("a file")));
        let mut command = mantissa();
        command.arg("template").arg(fixture("models/qwen2")).arg(&chat).arg("--template").arg(template);
        if case["add_generation_prompt"] == false {
            command.arg("--no-generation-prompt");
        }
        match (case["rendered"].as_str(), case["error"].as_str()) {
            (Some(rendered), _) => {
                let got = output_of(&mut command);
                assert_eq!(
                    String::from_utf8_lossy(&got),
                    rendered,
                    "{} {}",
                    case["template"],
                    case["conversation"]
                );
            }
            (None, error) => {
                command.assert().code(1).stdout("").stderr(contains(error.expect("an error")));
            }
        }
    }
}

#[test]
fn a_model_without_a_template_says_how_to_give_one() {
    let mut command = mantissa();
    command.arg("template").arg(fixture("models/mistral")).arg("-").write_stdin("[]");
    command.assert().code(1).stderr(contains("--template"));
    mantissa().arg("chat").arg(fixture("models/mistral")).assert().code(1).stderr(contains("template"));
}

/// A copy of a fixture with a chat template of its own.
fn chat_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixture("models/qwen2")).expect("the fixture") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>";
    std::fs::write(folder.path().join("chat_template.jinja"), template).expect("a file");
    folder
}

#[test]
fn a_conversation_works_through_a_pipe() {
    let model = chat_model();
    let answer = |input: &str| {
        let mut command = mantissa();
        command.arg("chat").arg(model.path()).args(["--greedy", "-n", "6"]).write_stdin(input.to_owned());
        String::from_utf8(output_of(&mut command)).expect("UTF-8")
    };
    let first = answer("Hello\n");
    assert!(!first.is_empty());
    // Forgetting the conversation gives the first answer again; so does a new line that is the same question.
    assert_eq!(answer("Hello\n/reset\nHello\n"), format!("{first}{first}"));
    assert_eq!(answer("/exit\nHello\n"), "");
    let mut command = mantissa();
    command.arg("chat").arg(model.path()).write_stdin("/dance\n");
    command.assert().code(1).stderr(contains("/dance").and(contains("/help")));
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_an_idle_conversation_with_the_code_that_shells_expect() {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    let model = chat_model();
    let mut chat = Command::new(env!("CARGO_BIN_EXE_mantissa"))
        .arg("chat")
        .arg(model.path())
        .args(["--greedy", "-n", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    chat.stdin.as_mut().expect("a pipe").write_all(b"Hello\n").expect("a line");
    // Open until the end: without it the conversation would end by itself.
    let _stdin = chat.stdin.take();
    // The first byte of an answer: everything is set up.
    chat.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("an answer");
    // One that comes while the answer is still being written only ends the answer.
    let mut status = None;
    for _ in 0..100 {
        if status.is_some() {
            break;
        }
        let kill = Command::new("kill").args(["-INT", &chat.id().to_string()]).status().expect("kill");
        assert!(kill.success());
        std::thread::sleep(std::time::Duration::from_millis(200));
        status = chat.try_wait().expect("a status");
    }
    assert_eq!(status.and_then(|status| status.code()), Some(130));
}

#[test]
fn run_puts_a_prompt_into_the_template() {
    let model = chat_model();
    let run = |args: &[&str]| {
        let mut command = mantissa();
        command.arg("run").arg(model.path()).args(args).args(["--greedy", "-n", "6", "--json", "--no-stats"]);
        let output: Value = serde_json::from_slice(&output_of(&mut command)).expect("JSON");
        output["ids"].clone()
    };
    let by_template = run(&["--chat", "--system", "Be brief.", "-p", "Hello"]);
    assert_eq!(by_template, run(&["-p", "<system>Be brief.\n<user>Hello\n<assistant>"]));
}

#[test]
fn completions_and_help_are_there() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        mantissa().args(["completions", shell]).assert().success().stdout(contains("mantissa"));
    }
    mantissa().arg("--help").assert().success().stdout(contains("Examples:").and(contains("--policy")));
    let commands =
        ["run", "chat", "inspect", "plan", "dtypes", "logits", "tokenize", "detokenize", "template", "bench"];
    for command in commands {
        let shared = contains("--policy").and(contains("--device")).and(contains("--threads"));
        mantissa().args([command, "--help"]).assert().success().stdout(shared);
    }
    let object = json!({"unknown": "command"});
    mantissa().arg(object.to_string()).assert().code(2);
}
