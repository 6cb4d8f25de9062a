//! The example in `examples/generate.rs` works on a checkpoint of the fixtures.

use std::path::Path;
use std::process::Command;

#[test]
fn the_example_generates() {
    // cargo puts examples beside the folder that this test lies in.
    let test = std::env::current_exe().expect("this test");
    let example = test.parent().and_then(Path::parent).expect("the target folder").join("examples/generate");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama");
    let output = Command::new(example.with_extension(std::env::consts::EXE_EXTENSION))
        .arg(&model)
        .args(["f16", "Tokens are numbers"])
        .output()
        .expect("cargo test builds the examples; with --test, give --examples too");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.trim_end().ends_with("tokens/s"), "{text}");

    let refused = Command::new(example).arg(&model).args(["f17", "text"]).output().expect("a run");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("f17"));
}
