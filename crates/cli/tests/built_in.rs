//! `mantissa-tiny`, the model within the binary: where it is used, and under which names.

#[path = "common/command.rs"]
mod command;
mod common;

use std::path::Path;

use assert_cmd::Command;
use command::{json_of, mantissa};
use common::{fixture, ids};
use predicates::prelude::*;
use predicates::str::contains;

/// A file of `models/tiny`.
fn tiny(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny").join(path);
    path.display().to_string()
}

fn text_of(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).expect("UTF-8")
}

/// The program on a machine that has nothing: no cache of models, no network.
fn offline() -> Command {
    let mut command = mantissa();
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nowhere");
    command
}

#[test]
fn it_writes_without_a_word_on_the_command_line() {
    let text = text_of(offline().args(["run"]));
    assert!(text.starts_with("Once upon a time") && text.ends_with('\n'), "{text}");
    assert!(text.split_whitespace().count() > 20, "{text}");
    let args = ["run", "--greedy", "-n", "12", "--no-stats"];
    let given = text_of(offline().args(args).args(["-p", "Once upon a time"]));
    assert_eq!(text_of(offline().args(args)), format!("Once upon a time{given}"));
}

#[test]
fn other_models_and_templates_need_a_prompt() {
    let llama = fixture("models/llama").display().to_string();
    offline().args(["run", &llama]).assert().code(1).stdout("").stderr(contains("-p TEXT"));
    offline().args(["run", "--chat"]).assert().code(1).stdout("").stderr(contains("-p TEXT"));
}

#[test]
fn its_name_its_folder_and_no_name_at_all_are_the_same_model() {
    let run = |model: &[&str]| {
        let args = ["-p", "The old man", "--greedy", "-n", "24", "--json", "--no-stats"];
        let done = json_of(offline().arg("run").args(model).args(args));
        assert!(done["text"].is_string());
        ids(&done["ids"])
    };
    let built_in = run(&[]);
    assert_eq!(built_in, run(&["mantissa-tiny"]));
    assert_eq!(built_in, run(&[&tiny("checkpoint")]));
}

#[test]
fn a_folder_of_its_name_is_reached_as_a_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("mantissa-tiny");
    std::fs::create_dir(&copy).expect("a folder");
    for entry in std::fs::read_dir(fixture("models/llama")).expect("the fixture") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, copy.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let inspect = |model: &str| {
        json_of(offline().current_dir(folder.path()).args(["inspect", model, "--json"]))["architecture"]
            .clone()
    };
    assert_eq!(inspect("mantissa-tiny"), "qwen2");
    assert_eq!(inspect("./mantissa-tiny"), "llama");
}

#[test]
fn every_command_takes_it_where_no_model_is_named() {
    let inspected = json_of(offline().args(["inspect", "--json"]));
    assert_eq!((&inspected["architecture"], &inspected["chat_template"]), (&"qwen2".into(), &true.into()));
    assert_eq!(inspected["path"], "mantissa-tiny (built in)");
    assert_eq!(json_of(offline().args(["plan", "--json"]))["shape"]["class"], "decode");
    offline().args(["bench", "--prompt", "600"]).assert().code(1).stderr(contains("a prompt of 600 tokens"));

    let tokens = json_of(offline().args(["tokenize", "--text", "Rain on the window"]));
    let list = ids(&tokens).iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    assert_eq!(text_of(offline().args(["detokenize", "--ids", &list])), "Rain on the window");

    let folder = tempfile::tempdir().expect("a folder");
    let logits = folder.path().join("logits.safetensors");
    offline().args(["logits", "--ids", &list, "--output"]).arg(&logits).assert().success();
    assert!(logits.exists());

    let answer = text_of(offline().args(["chat", "--greedy", "-n", "24"]).write_stdin("Tell me a story.\n"));
    assert!(!answer.trim().is_empty());
}

#[test]
fn a_conversation_is_rendered_with_and_without_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let chat = folder.path().join("chat.json");
    std::fs::write(&chat, r#"[{"role": "user", "content": "Write a haiku about rain."}]"#).expect("a file");
    let rendered = text_of(offline().arg("template").arg(&chat));
    assert!(rendered.contains("user\nWrite a haiku about rain."), "{rendered}");
    for model in ["mantissa-tiny", &tiny("checkpoint")] {
        assert_eq!(text_of(offline().args(["template", model]).arg(&chat)), rendered);
    }
    let llama = text_of(offline().arg("template").arg(fixture("models/llama")).arg(&chat));
    assert!(llama.contains("Write a haiku about rain.") && llama != rendered, "{llama}");
    offline().arg("template").assert().code(2).stderr(contains("<CHAT.json>"));
}

#[test]
fn help_says_what_runs_where_no_model_is_named() {
    for command in ["run", "chat", "inspect", "plan", "logits", "tokenize", "detokenize", "template", "bench"]
    {
        let text = contains("[MODEL]").and(contains("mantissa-tiny"));
        mantissa().args([command, "--help"]).assert().success().stdout(text);
    }
    mantissa().arg("--help").assert().success().stdout(contains("mantissa-tiny"));
}
