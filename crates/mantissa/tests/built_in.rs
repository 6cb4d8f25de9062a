//! The model that the library brings along.

use std::path::{Path, PathBuf};

use mantissa::model::hub::{HubSettings, NoDownloadProgress};
use mantissa::model::template::GenerationPrompt;
use mantissa::model::tokenizer::SpecialTokens;
use mantissa::{
    BUILT_IN, EmbeddedFolder, GenerateOptions, Location, Model, Options, chat_template_from_file, locate,
    open_chat_template, open_tokenizer,
};
use serde_json::json;

/// The same files on disk.
fn on_disk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/checkpoint")
}

fn locate_offline(name: &str) -> Result<Location, mantissa::Error> {
    locate(name, &HubSettings { offline: true, ..HubSettings::default() }, &NoDownloadProgress)
}

#[test]
fn its_name_locates_it_and_paths_are_paths() {
    let Location::Embedded(EmbeddedFolder { name, .. }) = locate_offline("mantissa-tiny").unwrap() else {
        panic!("not embedded")
    };
    assert_eq!(name, "mantissa-tiny");
    assert!(matches!(locate_offline(env!("CARGO_MANIFEST_DIR")), Ok(Location::Path(_))));
    let error = locate_offline("./mantissa-tiny").err().unwrap().to_string();
    assert!(error.contains("./mantissa-tiny") && error.contains("built in"), "{error}");
}

#[test]
fn its_weights_lie_as_those_of_a_mapped_file_and_fit_the_budget() {
    let model = Model::built_in().unwrap();
    let [file] = model.checkpoint().files() else { panic!("several files") };
    assert_eq!(file.bytes().as_ptr().addr() % 64, 0);
    assert!(file.bytes().len() <= 9_000_000, "{} bytes", file.bytes().len());
    assert_eq!(model.location().to_string(), "mantissa-tiny (built in)");
}

#[test]
fn it_generates_what_its_files_on_disk_generate() {
    let text = |model: Model| {
        let options = GenerateOptions::default().greedy().max_tokens(24);
        let mut generator = model.prepare(&Options::default()).unwrap();
        generator.generate("The old man looked at", &options, |_| ()).unwrap().text.unwrap()
    };
    let built_in = text(Model::built_in().unwrap());
    assert_eq!(built_in, text(Model::open(on_disk()).unwrap()));
    assert!(built_in.split_whitespace().count() > 8, "{built_in}");
}

#[test]
fn its_tokenizer_and_template_open_by_themselves() {
    let encode = |location: Location| {
        open_tokenizer(location).unwrap().encode("Once upon a time", SpecialTokens::ADD).unwrap()
    };
    assert_eq!(encode(BUILT_IN), encode(on_disk().into()));

    let chat = json!([{"role": "user", "content": "Write a haiku about rain."}]);
    let rendered = open_chat_template(BUILT_IN).unwrap().render(&chat, GenerationPrompt::Add).unwrap();
    assert!(rendered.contains("Write a haiku about rain."), "{rendered}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.jinja");
    std::fs::write(&file, "{{ messages[0].content }}{{ eos_token }}").unwrap();
    let own = chat_template_from_file(BUILT_IN, &file).unwrap();
    let rendered = own.render(&chat, GenerationPrompt::Omit).unwrap();
    let end = rendered.strip_prefix("Write a haiku about rain.").unwrap();
    assert!(!end.is_empty(), "the template sees the model's tokens");
}
