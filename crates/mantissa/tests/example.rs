//! The example in `examples/generate.rs` works, on the built-in model and on a checkpoint of the fixtures.

use std::path::Path;
use std::process::{Command, Output};

fn example(arguments: &[&str]) -> Output {
    // cargo puts examples beside the folder that this test lies in.
    let test = std::env::current_exe().expect("this test");
    let example = test.parent().and_then(Path::parent).expect("the target folder").join("examples/generate");
    Command::new(example.with_extension(std::env::consts::EXE_EXTENSION))
        .args(arguments)
        .output()
        .expect("cargo test builds the examples; with --test, give --examples too")
}

#[test]
fn the_example_generates() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama");
    let model = model.to_str().expect("a path of text");
    for arguments in [&[][..], &["f16", "Tokens are numbers"], &["f16", "Tokens are numbers", model]] {
        let output = example(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.trim_end().ends_with("tokens/s"), "{text}");
    }
    let refused = example(&["f17", "text"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("f17"));
}
