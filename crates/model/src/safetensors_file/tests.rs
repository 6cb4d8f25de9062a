use proptest::prelude::*;

use super::*;

/// A file with this header and `data` bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn tensor(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

fn small() -> Vec<u8> {
    let a = tensor("a", "BF16", "[2,3]", 0, 12);
    let b = tensor("b", "F32", "[4]", 12, 28);
    file(&format!(r#"{{"__metadata__":{{"format":"pt"}},{b},{a}}}  "#), 28)
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, TensorInfo>, SafetensorsError> {
    super::parse(bytes, Path::new("model.safetensors"))
}

fn error(bytes: &[u8]) -> String {
    let text = parse(bytes).expect_err("must be refused").to_string();
    text.strip_prefix("model.safetensors: ").expect("names the file").to_owned()
}

#[test]
fn a_small_file_is_read() {
    let bytes = small();
    let tensors = parse(&bytes).expect("sound");
    assert_eq!(tensors.len(), 2);
    assert_eq!(tensors["a"].shape, [2, 3]);
    assert_eq!(tensors["a"].dtype.format(), Some(Format::Bf16));
    assert_eq!(tensors["b"].range, bytes.len() - 16..bytes.len());
    assert!(parse(&file("{}", 0)).expect("empty, but sound").is_empty());
}

#[test]
fn dtypes_have_the_bits_of_their_formats() {
    for dtype in DTYPES {
        assert!(dtype.format().is_none_or(|format| format.bits() as usize == dtype.bits), "{}", dtype.name);
    }
    assert_eq!(DTYPES.iter().filter(|dtype| dtype.format().is_some()).count(), 6);
}

#[test]
fn truncation_anywhere_is_an_error() {
    let bytes = small();
    for length in 0..bytes.len() {
        assert!(parse(&bytes[..length]).is_err(), "{length} of {} bytes were accepted", bytes.len());
    }
}

#[test]
fn header_lengths_are_checked() {
    assert!(error(b"abc").starts_with("not a safetensors file: it has 3 bytes"));
    for claimed in [u64::MAX, 1 << 40, MAX_HEADER + 1, 100] {
        let mut bytes = small();
        bytes.truncate(50);
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        assert!(
            error(&bytes)
                .starts_with(&format!("the header claims {claimed} bytes, but the file has 42 left"))
        );
    }
}

#[test]
fn malformed_headers_name_the_tensor() {
    assert!(error(&file("[1]", 0)).contains("expected an object of tensors"));
    assert!(error(&file("{\"a\":", 0)).contains("EOF"));
    assert!(error(&file(r#"{"a":{"dtype":"F32"}}"#, 0)).contains("tensor \"a\": missing field `shape`"));
    assert!(
        error(&file(&format!("{{{}}}", tensor("a", "F32", "[-1]", 0, 4)), 4))
            .contains("tensor \"a\": invalid")
    );
    let twice = format!("{{{},{}}}", tensor("a", "F32", "[1]", 0, 4), tensor("a", "F32", "[1]", 4, 8));
    assert!(error(&file(&twice, 8)).contains("tensor \"a\" occurs twice"));
    let mut invalid = file(r#"{"aaaa":{}}"#, 0);
    invalid[12] = 0xff;
    assert!(error(&invalid).starts_with("the header cannot be read: "));
    assert!(error(&file(&"[".repeat(100_000), 0)).starts_with("the header cannot be read: "));
    assert!(error(&file(r#"{"__metadata__":{"format":["pt"]}}"#, 0)).contains("expected a string"));
    let deep = format!("{{\"a\":{{\"extra\":{}", "[".repeat(100_000));
    assert!(error(&file(&deep, 0)).starts_with("the header cannot be read: tensor \"a\":"));
}

#[test]
fn malformed_tensors_are_named() {
    let one = |dtype, shape, start, end, data| {
        error(&file(&format!("{{{}}}", tensor("w", dtype, shape, start, end)), data))
    };
    assert_eq!(one("Q4", "[1]", 0, 4, 4), "tensor \"w\" has the unknown type \"Q4\"");
    assert_eq!(
        one("F32", "[4294967296,4294967296]", 0, 4, 4),
        "tensor \"w\" has shape [4294967296, 4294967296] of F32, which is no number of bytes that fits a memory"
    );
    assert!(one("F4", "[3]", 0, 2, 2).contains("no number of bytes"));
    assert_eq!(one("F16", "[4]", 0, 4, 4), "tensor \"w\" has shape [4] of F16, 8 bytes, but lies at 0..4");
    assert!(one("F16", "[4]", 8, 0, 8).contains("lies at 8..0"));
    assert_eq!(one("F16", "[4]", 0, 8, 6), "tensor \"w\" lies at 0..8, but the file has 6 bytes of data");
    assert!(one("U8", "[1]", u64::MAX - 1, u64::MAX, 6).contains("but the file has 6 bytes"));
    assert_eq!(one("F16", "[4]", 2, 10, 10), "2 bytes of data before tensor \"w\" belong to no tensor");
    assert_eq!(one("F16", "[4]", 0, 8, 9), "1 bytes of data before the end of the file belong to no tensor");
    let overlap = format!("{{{},{}}}", tensor("a", "U8", "[8]", 0, 8), tensor("b", "U8", "[8]", 4, 12));
    assert_eq!(error(&file(&overlap, 12)), "tensors \"a\" and \"b\" overlap");
}

#[test]
fn the_fixtures_are_read() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
    let mut read = 0;
    for folder in std::fs::read_dir(models).expect("a folder") {
        for entry in std::fs::read_dir(folder.expect("an entry").path()).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                assert!(
                    !super::parse(&std::fs::read(&path).expect("a file"), &path).expect("sound").is_empty()
                );
                read += 1;
            }
        }
    }
    assert!(read >= 13, "{read}");
}

/// Whether the `safetensors` crate accepts the file, and what it finds.
fn by_the_crate(bytes: &[u8]) -> Option<BTreeMap<String, Vec<usize>>> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).ok()?;
    Some(tensors.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect())
}

proptest! {
    /// What is accepted here is accepted by the reference implementation, and reads the same.
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = small();
        for (place, byte) in edits {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(tensors) = parse(&bytes) {
            let shapes: BTreeMap<_, _> = tensors.into_iter().map(|(name, info)| (name, info.shape)).collect();
            prop_assert_eq!(by_the_crate(&bytes), Some(shapes));
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "[\\[\\]{}\":,0-9a-z_\\\\]{0,60}", data in 0..64_usize) {
        if let Ok(tensors) = parse(&file(&header, data)) {
            prop_assert!(tensors.is_empty());
        }
    }
}
