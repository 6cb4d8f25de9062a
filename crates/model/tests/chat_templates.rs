//! Chat templates against the reference fixtures, and the ways a model can carry one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mantissa_model::{
    gguf::Gguf,
    template::{ChatTemplate, GenerationPrompt, TemplateError},
    tokenizer::NamedTokens,
};
use serde_json::{Value, json};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn gguf(path: &str) -> Gguf {
    let file = fixture(path);
    Gguf::parse(&fs::read(&file).unwrap(), &file).unwrap()
}

#[test]
fn published_templates_render_as_in_transformers() {
    let text = fs::read_to_string(fixture("chat_templates/cases.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let token = |name: &str| case[name].as_str().map(str::to_owned);
        let tokens =
            NamedTokens { bos: token("bos_token"), eos: token("eos_token"), ..NamedTokens::default() };
        let template = ChatTemplate::from_file(&fixture("chat_templates").join(name), tokens).unwrap();
        let conversation = &file["conversations"][case["conversation"].as_str().unwrap()];
        let generation_prompt = match case["add_generation_prompt"].as_bool().unwrap() {
            true => GenerationPrompt::Add,
            false => GenerationPrompt::Omit,
        };
        let rendered = template.render(conversation, generation_prompt);
        match case["error"].as_str() {
            Some(error) => assert!(rendered.unwrap_err().to_string().contains(error), "{name}"),
            None => assert_eq!(rendered.unwrap(), case["rendered"].as_str().unwrap(), "{name}"),
        }
    }
}

fn hello() -> Value {
    json!([{"role": "user", "content": "Hello"}])
}

#[test]
fn model_folders_and_files_carry_templates() {
    let render = |template: ChatTemplate| template.render(&hello(), GenerationPrompt::Add).unwrap();
    assert_eq!(
        render(ChatTemplate::from_folder(fixture("models/llama")).unwrap()),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(
        render(ChatTemplate::from_gguf(&gguf("gguf/qwen2-F32.gguf")).unwrap()),
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render(ChatTemplate::from_gguf(&gguf("tokenizers/ggml-vocab-phi-3.gguf")).unwrap()),
        "<s><|user|>\nHello<|end|>\n<|assistant|>\n"
    );
}

/// A folder with the files given by name and content.
fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn open(files: &[(&str, &str)]) -> Result<ChatTemplate, TemplateError> {
    ChatTemplate::from_folder(folder_of(files).path())
}

/// What `source` renders for a conversation.
fn render(source: &str, conversation: &Value) -> Result<String, TemplateError> {
    open(&[("chat_template.jinja", source)])?.render(conversation, GenerationPrompt::Omit)
}

#[test]
fn a_template_file_comes_before_the_configuration() {
    let config = r#"{"chat_template": "configured {{ bos_token }}", "bos_token": {"content": "<s>"}}"#;
    let text = |files: &[(&str, &str)]| open(files).unwrap().render(&hello(), GenerationPrompt::Add).unwrap();
    assert_eq!(text(&[("tokenizer_config.json", config)]), "configured <s>");
    let jinja = ("chat_template.jinja", "file {{ bos_token }}");
    assert_eq!(text(&[("tokenizer_config.json", config), jinja]), "file <s>");
    let separate = ("chat_template.json", r#"{"chat_template": "separate"}"#);
    assert_eq!(text(&[separate]), "separate");
    let map = ("special_tokens_map.json", r#"{"eos_token": "</s>"}"#);
    assert_eq!(text(&[("chat_template.jinja", "{{ eos_token }}"), map]), "</s>");
}

#[test]
fn named_templates_are_chosen_by_the_tools() {
    let config = r#"{"chat_template": [{"name": "default", "template": "plain"},
                                       {"name": "tool_use", "template": "with {{ tools[0].name }}"}]}"#;
    let template = open(&[("tokenizer_config.json", config)]).unwrap();
    let text = |conversation: &Value| template.render(conversation, GenerationPrompt::Add).unwrap();
    assert_eq!(text(&hello()), "plain");
    assert_eq!(text(&json!({"messages": [], "tools": [{"name": "f"}]})), "with f");
    assert_eq!(text(&json!({"messages": [], "tools": []})), "plain");
}

#[test]
fn other_variables_reach_the_template() {
    let source = "{{ style }} {{ add_generation_prompt }} {{ tools is none }} {{ documents }} {{ missing }}|";
    let conversation = json!({"messages": [], "style": "short", "add_generation_prompt": true});
    assert_eq!(render(source, &conversation).unwrap(), "short True True None |");
}

#[test]
fn python_habits_work() {
    let conversation = json!([{"role": "user", "content": " a,b ", "extra": {"z": 1, "a": 2.0}}]);
    for (source, expected) in [
        ("{% for k, v in messages[0].extra.items() %}{{ k }}={{ v }};{% endfor %}", "z=1;a=2.0;"),
        ("{{ messages[0]['content'].strip().split(',')[-1] }}", "b"),
        ("{{ messages[1:]|length }}{{ messages[::-1][0].role }}", "0user"),
        ("{{ messages[0].get('name', 'none') }}{{ messages[0].get('name') }}", "noneNone"),
        ("{{ messages[0].name is defined }}{{ messages[0].role is string }}", "FalseTrue"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ 'abc'.startswith('ab') and 'x' in 'xyz' }}", "True"),
        ("{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.y'.removesuffix('.y') }}", "xx"),
        ("{{ ['a', 1, none, true, {'k': 'v'}] }}", "['a', 1, None, True, {'k': 'v'}]"),
        ("{{ messages[0].extra | tojson }}", r#"{"z": 1, "a": 2.0}"#),
        ("{% if true %}\n  {% set x = 1 %}\n  x\n{% endif %}\n", "  x\n"),
        ("{% generation %}\nyes\n{% endgeneration %}\n", "yes\n"),
        ("{{ '<b>' }}\n", "<b>"),
    ] {
        assert_eq!(render(source, &conversation).unwrap(), expected, "{source}");
    }
}

#[test]
fn the_date_is_at_hand() {
    let text =
        render("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", &hello()).unwrap();
    assert!(text.parse::<u32>().unwrap() >= 2024, "{text}");
}

#[test]
fn errors_say_what_is_wrong() {
    let message = |result: Result<String, TemplateError>| result.unwrap_err().to_string();
    let refused = render("{{ raise_exception('Roles must alternate') }}", &hello()).unwrap_err();
    assert!(matches!(&refused, TemplateError::Refused { message, .. } if message == "Roles must alternate"));
    assert!(refused.to_string().contains("chat_template.jinja: the chat template refuses"), "{refused}");
    let text = message(render("\n{{ messages[0].role.nothing() }}", &hello()));
    assert!(text.contains("cannot be rendered") && text.contains(":2)"), "{text}");
    let text = message(render("{% for %}", &hello()));
    assert!(text.contains("cannot be parsed") && text.contains(":1)"), "{text}");
    let text = message(render("", &json!({"message": []})));
    assert!(text.ends_with("this is an object without a list `messages`"), "{text}");
    let text = message(render("", &json!("Hello")));
    assert!(text.ends_with("this is a text"), "{text}");
}

#[test]
fn a_missing_template_is_an_error_that_helps() {
    let message = |error: Result<ChatTemplate, TemplateError>| error.err().unwrap().to_string();
    let text = message(open(&[("tokenizer_config.json", "{}")]));
    assert!(
        text.contains("no chat template") && text.ends_with("give one with --template FILE.jinja"),
        "{text}"
    );
    let text = message(ChatTemplate::from_gguf(&gguf("gguf/llama-F32.gguf")));
    assert!(text.contains("llama-F32.gguf: no chat template") && text.contains("--template"), "{text}");
    let text = message(ChatTemplate::from_file(Path::new("absent.jinja"), NamedTokens::default()));
    assert!(text.starts_with("absent.jinja: "), "{text}");
    let text = message(open(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "x"}]}"#)]));
    assert!(text.contains("chat_template should be a template, or a list"), "{text}");
}
