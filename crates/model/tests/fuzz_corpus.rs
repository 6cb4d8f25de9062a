//! Runs the corpus of the fuzz targets through the parsers, so that every test run on stable covers it.

use std::{fs, path::Path};

use mantissa_model::{gguf::Gguf, safetensors_file};

/// Every file of a corpus: its name and its content. Names of files that must be accepted start with `ok`.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a corpus")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(path).expect("a file"))
        })
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{} files in the corpus of {target}", files.len());
    files
}

#[test]
fn gguf_headers() {
    for (name, bytes) in corpus("gguf_header") {
        let parsed = Gguf::parse(&bytes, Path::new(&name));
        assert_eq!(parsed.is_ok(), name.starts_with("ok"), "{name}: {:?}", parsed.err());
        if let Ok(gguf) = parsed {
            assert!(gguf.tensors().iter().all(|tensor| bytes.get(tensor.range.clone()).is_some()), "{name}");
        }
    }
}

#[test]
fn safetensors_headers() {
    for (name, bytes) in corpus("safetensors_header") {
        let parsed = safetensors_file::parse(&bytes, Path::new(&name));
        assert_eq!(parsed.is_ok(), name.starts_with("ok"), "{name}: {:?}", parsed.err());
        if let Ok(tensors) = parsed {
            assert!(tensors.values().all(|tensor| bytes.get(tensor.range.clone()).is_some()), "{name}");
        }
    }
}
