//! A folder within the program is read as the same folder on disk.

use std::path::Path;

use mantissa_model::{
    checkpoint::{Checkpoint, CheckpointError},
    location::{EmbeddedFolder, Location},
    template::{ChatTemplate, GenerationPrompt},
    tokenizer::{SpecialTokens, Tokenizer, TokenizerError},
};
use serde_json::json;

macro_rules! llama {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../fixtures/models/llama/", $name)) as &[u8])
    };
}

const FILES: &[(&str, &[u8])] = &[
    llama!("config.json"),
    llama!("generation_config.json"),
    llama!("model.safetensors"),
    llama!("tokenizer.json"),
    llama!("tokenizer_config.json"),
];

fn embedded(files: &'static [(&'static str, &'static [u8])]) -> EmbeddedFolder {
    EmbeddedFolder { name: "llama-in-a-test", files }
}

fn on_disk() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama")
}

#[test]
fn checkpoints_are_the_same() {
    let (here, there) = (Checkpoint::open(embedded(FILES)).unwrap(), Checkpoint::open(on_disk()).unwrap());
    assert_eq!(here.config(), there.config());
    assert_eq!(here.generation_defaults(), there.generation_defaults());
    assert_eq!(here.tensors().len(), there.tensors().len());
    for tensor in there.tensors() {
        assert_eq!(here.tensor(tensor.name).unwrap(), there.tensor(tensor.name).unwrap(), "{}", tensor.name);
    }
    // Letting go of what is part of the program changes nothing.
    here.files()[0].release(0..here.files()[0].bytes().len());
    assert_eq!(here.files()[0].bytes(), there.files()[0].bytes());
    assert_eq!(here.files()[0].path(), Path::new("llama-in-a-test (built in)/model.safetensors"));
}

#[test]
fn tokenizers_and_templates_are_the_same() {
    let location = Location::from(embedded(FILES));
    let (here, there) =
        (Tokenizer::from_folder(&location).unwrap(), Tokenizer::from_folder(on_disk()).unwrap());
    assert_eq!((here.bos(), here.eos_ids()), (there.bos(), there.eos_ids()));
    let text = "Tokens are numbers 🦙 <|eot_id|>";
    let encode = |tokenizer: &Tokenizer| tokenizer.encode(text, SpecialTokens::ADD).unwrap();
    assert_eq!(encode(&here), encode(&there));
    let chat = json!([{"role": "user", "content": "Hello"}]);
    let render = |template: ChatTemplate| template.render(&chat, GenerationPrompt::Add).unwrap();
    assert_eq!(
        render(ChatTemplate::from_folder(location).unwrap()),
        render(ChatTemplate::from_folder(on_disk()).unwrap())
    );
}

#[test]
fn errors_say_that_the_file_is_built_in() {
    let error = |files| Checkpoint::open(embedded(files)).unwrap_err();
    let empty = error(&[]);
    assert!(
        matches!(&empty, CheckpointError::Io { file, source }
            if file == Path::new("llama-in-a-test (built in)/config.json")
                && source.kind() == std::io::ErrorKind::NotFound),
        "{empty}"
    );
    let text = error(&[("config.json", b"[]")]).to_string();
    assert_eq!(text, "llama-in-a-test (built in)/config.json: holds [], not an object");
    let text = error(&[llama!("config.json")]).to_string();
    assert!(text.starts_with("llama-in-a-test (built in): neither model.safetensors nor"), "{text}");
    let text = error(&[llama!("config.json"), ("model.safetensors", b"short")]).to_string();
    assert!(
        text.starts_with("llama-in-a-test (built in)/model.safetensors: not a safetensors file"),
        "{text}"
    );

    let missing = Tokenizer::from_folder(embedded(&[])).err().unwrap();
    assert!(matches!(missing, TokenizerError::Missing { .. }), "{missing}");
    let not_text = Tokenizer::from_folder(embedded(&[("tokenizer.json", b"{\xff")])).err().unwrap();
    assert_eq!(
        not_text.to_string(),
        "llama-in-a-test (built in)/tokenizer.json: byte 1 starts no UTF-8 character"
    );
    let none = ChatTemplate::from_folder(embedded(&[])).err().unwrap().to_string();
    assert!(none.starts_with("llama-in-a-test (built in): no chat template"), "{none}");
}

#[test]
fn shards_are_found_among_the_files() {
    const INDEX: &[u8] = br#"{"weight_map": {"x": "model-00001.safetensors"}}"#;
    let files: &'static [(&str, &[u8])] = &[llama!("config.json"), ("model.safetensors.index.json", INDEX)];
    let text = Checkpoint::open(embedded(files)).unwrap_err().to_string();
    assert_eq!(
        text,
        "llama-in-a-test (built in)/model.safetensors.index.json: tensor \"x\" is in \
         \"model-00001.safetensors\", which is missing"
    );
}

#[test]
fn a_location_shows_names_and_not_contents() {
    let location = Location::from(embedded(&[("config.json", b"{}")]));
    assert_eq!(location.to_string(), "llama-in-a-test (built in)");
    assert_eq!(
        format!("{location:?}"),
        r#"Embedded(EmbeddedFolder { name: "llama-in-a-test", files: ["config.json"] })"#
    );
    assert_eq!(Location::from("a/b").to_string(), "a/b");
}
