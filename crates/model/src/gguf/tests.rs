use std::path::Path;

use mantissa_numerics::Format;
use proptest::prelude::*;

use super::{testing::Builder, *};

const F32: u32 = 0;
const F16: u32 = 1;
const Q4_K: u32 = 12;

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(bytes, Path::new("model.gguf"))
}

/// The error's text, which must name the file.
fn error(builder: &Builder) -> String {
    error_of(&builder.build())
}

fn error_of(bytes: &[u8]) -> String {
    let text = parse(bytes).expect_err("must be refused").to_string();
    text.strip_prefix("model.gguf: ").expect("names the file").to_owned()
}

fn small() -> Builder {
    Builder::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10000.0)
        .strings("tokenizer.ggml.tokens", &["a", "bc", ""])
        .tensor("token_embd.weight", &[4, 3], F16, &[7; 24])
        .tensor("output_norm.weight", &[4], F32, &[9; 16])
}

#[test]
fn a_small_file_is_read_back() {
    for version in [2, 3] {
        let bytes = small().version(version).build();
        let gguf = parse(&bytes).expect("sound");
        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.require::<&str>("general.architecture"), Ok("llama"));
        assert_eq!(gguf.require::<u64>("llama.block_count"), Ok(2));
        assert_eq!(gguf.get::<f64>("llama.rope.freq_base"), Ok(Some(10000.0)));
        assert_eq!(gguf.require::<&[String]>("tokenizer.ggml.tokens").map(|t| t.len()), Ok(3));
        assert_eq!(gguf.get::<u64>("absent"), Ok(None));
        let embedding = gguf.tensor("token_embd.weight").expect("there");
        assert_eq!(embedding.shape, [3, 4]);
        assert_eq!(embedding.ggml_type.format(), Some(Format::F16));
        assert_eq!(bytes[embedding.range.clone()], [7; 24]);
        assert_eq!(bytes[gguf.tensors()[1].range.clone()], [9; 16]);
    }
}

#[test]
fn every_value_type_is_read() {
    let array = |element: u32, count: u64, bytes: &[u8]| {
        [&element.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
    };
    let nested = array(9, 2, &[array(0, 2, &[1, 2]), array(1, 1, &[0xff])].concat());
    let bytes = Builder::new()
        .entry("u8", 0, &[200])
        .entry("i8", 1, &[0x80])
        .entry("u16", 2, &500_u16.to_le_bytes())
        .entry("i16", 3, &(-500_i16).to_le_bytes())
        .entry("i32", 5, &(-7_i32).to_le_bytes())
        .entry("bool", 7, &[1])
        .entry("u64", 10, &u64::MAX.to_le_bytes())
        .entry("i64", 11, &i64::MIN.to_le_bytes())
        .entry("f64", 12, &0.1_f64.to_le_bytes())
        .entry("i32s", 9, &array(5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]))
        .entry("bools", 9, &array(7, 2, &[0, 1]))
        .entry("nested", 9, &nested)
        .build();
    let gguf = parse(&bytes).expect("sound");
    assert_eq!(gguf.require::<u64>("u8"), Ok(200));
    assert_eq!(gguf.require::<i64>("i8"), Ok(-128));
    assert_eq!(gguf.require::<i64>("i16"), Ok(-500));
    assert_eq!(gguf.require::<u64>("u64"), Ok(u64::MAX));
    assert_eq!(gguf.require::<i64>("i64"), Ok(i64::MIN));
    assert_eq!(gguf.require::<f64>("f64"), Ok(0.1));
    assert_eq!(gguf.require::<bool>("bool"), Ok(true));
    assert_eq!(gguf.require::<Vec<i64>>("i32s"), Ok(vec![1, -1]));
    assert_eq!(gguf.metadata()["bools"], Value::Array(Array::Bool(vec![false, true])));
    let inner = vec![Array::U8(vec![1, 2]), Array::I8(vec![-1])];
    assert_eq!(gguf.metadata()["nested"], Value::Array(Array::Array(inner)));
}

#[test]
fn wrong_and_missing_keys_are_named() {
    let gguf = parse(&small().entry("negative", 5, &(-1_i32).to_le_bytes()).build()).expect("sound");
    let message = |result: Result<u64, GgufError>| result.expect_err("wrong").to_string();
    assert_eq!(
        message(gguf.require("general.architecture")),
        "model.gguf: metadata key \"general.architecture\" holds a value of type string, not a non-negative integer"
    );
    assert_eq!(
        message(gguf.require("llama.context_length")),
        "model.gguf: metadata key \"llama.context_length\" is missing; it should hold a non-negative integer"
    );
    assert_eq!(
        message(gguf.require("negative")),
        "model.gguf: metadata key \"negative\" holds a value of type i32, not a non-negative integer"
    );
}

#[test]
fn truncation_anywhere_is_an_error() {
    let bytes = small().build();
    for length in 0..bytes.len() {
        assert!(parse(&bytes[..length]).is_err(), "{length} of {} bytes were accepted", bytes.len());
    }
}

#[test]
fn foreign_files_and_versions_are_named() {
    assert_eq!(
        error_of(b"PK\x03\x04 zip"),
        "not a GGUF file: it starts with [50, 4b, 03, 04], not with \"GGUF\""
    );
    assert_eq!(error_of(b""), "not a GGUF file: it starts with [], not with \"GGUF\"");
    assert!(error(&small().version(1)).starts_with("GGUF version 1; versions 2 and 3 can be read"));
    assert!(error(&small().version(3_u32.swap_bytes())).contains("big-endian"));
}

#[test]
fn absurd_counts_and_lengths_allocate_nothing() {
    let header = |tensors: u64, entries: u64| {
        [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    };
    assert_eq!(
        error_of(&header(0, u64::MAX)),
        "the metadata claims 18446744073709551615 entries of at least 13 bytes at byte 24, but the file has 0 left"
    );
    assert!(error_of(&header(1 << 60, 0)).starts_with("the tensor list claims 1152921504606846976 entries"));
    let strings = [&8_u32.to_le_bytes()[..], &(u64::MAX / 8).to_le_bytes()].concat();
    assert!(
        error(&Builder::new().entry("tokens", 9, &strings)).starts_with("the value of \"tokens\" claims")
    );
    let long = u64::MAX.to_le_bytes();
    assert_eq!(
        error(&Builder::new().entry("name", 8, &long)),
        "the value of \"name\" at byte 48 needs 18446744073709551615 bytes, but the file has 0 left"
    );
    let key = [b'k'; 70_000];
    assert!(
        error(&Builder::new().entry(key, 0, &[1])).contains("has 70000 bytes; at most 65535 are allowed")
    );
}

#[test]
fn malformed_metadata_names_its_key() {
    assert_eq!(
        error(&Builder::new().entry(b"a\xff", 0, &[1])),
        "metadata key 0 at byte 32 is not valid UTF-8"
    );
    let invalid = testing::text(b"\xc3\x28");
    assert_eq!(
        error(&Builder::new().entry("k", 8, &invalid)),
        "the value of \"k\" at byte 45 is not valid UTF-8"
    );
    let strings = [&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &testing::text("a"), &invalid].concat();
    assert!(
        error(&Builder::new().entry("k", 9, &strings)).starts_with("element 1 of the value of \"k\" at byte")
    );
    assert_eq!(
        error(&small().u32("llama.block_count", 3)),
        "metadata key \"llama.block_count\" occurs twice"
    );
    assert_eq!(
        error(&Builder::new().entry("k", 13, &[0; 16])),
        "the value of \"k\" has value type 13; the specification has types 0 to 12"
    );
    assert_eq!(
        error(&Builder::new().entry("k", 7, &[2])),
        "the value of \"k\" holds 2 as a bool; only 0 and 1 are"
    );
    let level = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    assert!(
        error(&Builder::new().entry("k", 9, &level.repeat(1000))).contains("nests arrays more than 4 deep")
    );
    assert_eq!(
        error(&small().u32("general.alignment", 24)),
        "general.alignment is 24; it must be a power of two"
    );
    assert_eq!(
        error(&small().u32("general.alignment", 0)),
        "general.alignment is 0; it must be a power of two"
    );
    assert!(error(&small().string("general.alignment", "32")).contains("not a u32"));
}

#[test]
fn malformed_tensors_are_named() {
    let one = |dims: &[u64], type_id, offset| error(&Builder::new().place("w", dims, type_id, offset));
    assert_eq!(
        one(&[u64::MAX, 2], F32, 0),
        "tensor \"w\" has shape [2, 18446744073709551615], outermost first, which is larger than any memory"
    );
    assert!(one(&[1 << 32, 1 << 31], F32, 0).contains("larger than any memory"));
    assert!(one(&[4, 0, 1 << 63], F32, 0).contains("which is empty"));
    assert_eq!(one(&[1; 5], F32, 0), "tensor \"w\" has 5 dimensions; ggml has at most 4");
    assert_eq!(
        one(&[4], 4, 0),
        "tensor \"w\" has ggml type 4, which is unknown here or was removed from ggml"
    );
    assert_eq!(
        one(&[100, 2], Q4_K, 0),
        "tensor \"w\" is Q4_K with rows of 100 values, no multiple of the block size 256"
    );
    assert_eq!(one(&[4], F32, 8), "tensor \"w\" has offset 8, no multiple of the file's alignment 32");
    assert_eq!(
        one(&[4], F32, 32),
        "tensor \"w\" of 16 bytes at offset 32 lies beyond the data section, which has 0 bytes"
    );
    assert!(one(&[4], F32, u64::MAX - 31).contains("lies beyond the data section"));
}

#[test]
fn duplicates_and_overlaps_are_named() {
    let twice = Builder::new().tensor("w", &[4], F32, &[0; 16]).tensor("w", &[4], F32, &[0; 16]);
    assert_eq!(error(&twice), "tensor \"w\" occurs twice");
    let overlap = Builder::new().tensor("a", &[16], F32, &[0; 64]).place("b", &[4], F32, 32);
    let message = error(&overlap);
    assert!(message.starts_with("tensors \"a\" and \"b\" overlap: one ends at byte"), "{message}");
    assert!(
        error(&Builder::new().tensor("a", &[4], F32, &[0; 16]).place("b", &[2], F32, 0)).contains("overlap")
    );
}

#[test]
fn the_files_own_alignment_counts() {
    let bytes =
        Builder::new().aligned(64).u32("general.alignment", 64).tensor("w", &[2], F32, &[5; 8]).build();
    let gguf = parse(&bytes).expect("sound");
    assert_eq!(gguf.tensors()[0].range.start % 64, 0);
    assert_eq!(bytes[gguf.tensors()[0].range.clone()], [5; 8]);
}

#[test]
fn the_fixtures_are_read() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let mut read = 0;
    for folder in ["gguf", "tokenizers"] {
        for entry in std::fs::read_dir(fixtures.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "gguf") {
                let bytes = std::fs::read(&path).expect("a file");
                let gguf = Gguf::parse(&bytes, &path).expect("sound");
                assert!(gguf.require::<&str>("general.architecture").is_ok());
                let named_by_type = path.to_string_lossy().ends_with("llama-Q4_0.gguf");
                assert!(!named_by_type || gguf.tensors().iter().any(|t| t.ggml_type.name() == "Q4_0"));
                read += 1;
            }
        }
    }
    assert_eq!(read, 13);
}

proptest! {
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small().build();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(gguf) = parse(&bytes) {
            for tensor in gguf.tensors() {
                prop_assert!(bytes.get(tensor.range.clone()).is_some());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = [&b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"[..], &tail].concat();
        if let Ok(gguf) = parse(&bytes) {
            prop_assert!(gguf.tensors().len() == 1);
        }
    }
}
