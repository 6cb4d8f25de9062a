//! Tokenizers against the reference fixtures, and properties that hold for every text.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use mantissa_model::{
    gguf::Gguf,
    tokenizer::{DecodeSpecial, SpecialTokens, TokenType, Tokenizer, TokenizerError, Vocabulary},
};
use proptest::prelude::*;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn folder(path: &str) -> Tokenizer {
    Tokenizer::from_folder(fixture(path)).unwrap()
}

fn gguf(path: &str) -> Gguf {
    let file = fixture(path);
    Gguf::parse(&fs::read(&file).unwrap(), &file).unwrap()
}

fn from_gguf(path: &str) -> Tokenizer {
    Tokenizer::from_gguf(&gguf(path)).unwrap()
}

fn json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Decodes ids one by one.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], special: DecodeSpecial) -> String {
    let mut stream = tokenizer.decode_stream(special);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

/// Checks every case of a folder's `cases.json` with `tokenizer`.
fn check_cases(tokenizer: &Tokenizer, name: &str) {
    let cases = json(&format!("tokenizers/{name}/cases.json"));
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 71);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, SpecialTokens::RECOGNISE).unwrap(), expected, "{text:?}");
        let with_special = tokenizer.encode(text, SpecialTokens::ADD).unwrap();
        assert_eq!(with_special, ids(&case["ids_with_special"]), "{text:?}");
        for (special, key) in
            [(DecodeSpecial::Keep, "decoded"), (DecodeSpecial::Skip, "decoded_skip_special")]
        {
            let decoded = case[key].as_str().unwrap();
            assert_eq!(tokenizer.decode(&expected, special).unwrap(), decoded, "{key}");
            assert_eq!(streamed(tokenizer, &expected, special), decoded, "{key}, one by one");
        }
        if let Some(plain) = case.get("sentencepiece_ids") {
            // SentencePiece knows nothing of the special tokens that were added to it.
            let got = tokenizer.encode(text, SpecialTokens::IGNORE).unwrap();
            assert_eq!(got, ids(plain), "{text:?} without special tokens");
        }
    }
}

#[test]
fn byte_level_bpe_of_llama3() {
    let tokenizer = folder("tokenizers/bpe_llama3");
    check_cases(&tokenizer, "bpe_llama3");
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(995), &[999][..]));
    assert_eq!(tokenizer.vocab_size(), 1000);
}

#[test]
fn byte_level_bpe_of_qwen2() {
    let tokenizer = folder("tokenizers/bpe_qwen2");
    check_cases(&tokenizer, "bpe_qwen2");
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (None, &[1197][..]));
    assert_eq!(tokenizer.vocab_size(), 1200);
}

#[test]
fn sentencepiece_as_tokenizer_json() {
    let tokenizer = folder("tokenizers/spm_llama");
    check_cases(&tokenizer, "spm_llama");
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(1), &[2][..]));
    assert_eq!(tokenizer.vocab_size(), 803);
}

/// The SentencePiece fixture without its `tokenizer.json`.
fn spm_model() -> Tokenizer {
    let [model, config] = ["tokenizer.model", "tokenizer_config.json"]
        .map(|name| (name, fs::read(fixture("tokenizers/spm_llama").join(name)).unwrap()));
    let folder = folder_of(&[(model.0, &model.1), (config.0, &config.1)]);
    Tokenizer::from_folder(folder.path()).unwrap()
}

#[test]
fn sentencepiece_as_tokenizer_model() {
    let tokenizer = spm_model();
    check_cases(&tokenizer, "spm_llama");
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(1), &[2][..]));
    assert_eq!(tokenizer.vocab_size(), 803);

    let content = fs::read(fixture("tokenizers/spm_llama/tokenizer.model")).unwrap();
    let cut = folder_of(&[("tokenizer.model", &content[..1000])]);
    let error = Tokenizer::from_folder(cut.path()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.model: no SentencePiece model: the file is malformed"), "{error}");
}

/// Checks llama.cpp's `.inp` and `.out` files; the README of the fixtures says how they are read.
fn check_llama_cpp(name: &str) {
    let tokenizer = from_gguf(&format!("tokenizers/ggml-vocab-{name}.gguf"));
    let read = |kind: &str| {
        fs::read_to_string(fixture(&format!("tokenizers/ggml-vocab-{name}.gguf.{kind}"))).unwrap()
    };
    let (texts, answers) = (read("inp"), read("out"));
    let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!((texts.len(), answers.len()), (46, 46));
    for (text, answer) in texts.into_iter().zip(answers) {
        let expected: Vec<u32> = answer.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, SpecialTokens::IGNORE).unwrap(), expected, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&expected, DecodeSpecial::Keep).unwrap(), text, "{name}");
        assert_eq!(streamed(&tokenizer, &expected, DecodeSpecial::Keep), text, "{name}, one by one");
    }
}

#[test]
fn gguf_vocabulary_of_gpt2() {
    check_llama_cpp("gpt-2");
}

#[test]
fn gguf_vocabulary_of_llama2() {
    check_llama_cpp("llama-spm");
}

#[test]
fn gguf_vocabulary_of_phi3() {
    check_llama_cpp("phi-3");
    let tokenizer = from_gguf("tokenizers/ggml-vocab-phi-3.gguf");
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.eos_ids(), [32000, 32007], "the end of the turn beside the end of the text");
    let text = "<|user|>\nHello world<|end|>\n<|assistant|>\n";
    let expected = [32010, 15043, 3186, 32007, 32001];
    assert_eq!(tokenizer.encode(text, SpecialTokens::RECOGNISE).unwrap(), expected);
    assert_eq!(tokenizer.encode(text, SpecialTokens::ADD).unwrap()[..2], [1, 32010]);
    let literal = tokenizer.encode(text, SpecialTokens::IGNORE).unwrap();
    assert!(literal.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&literal, DecodeSpecial::Skip).unwrap(), text);
}

/// What a GGUF file would hold for the `tokenizer.json` of a folder.
fn as_vocabulary(name: &str, pre: &str) -> Vocabulary {
    let file = json(&format!("tokenizers/{name}/tokenizer.json"));
    let mut entries: Vec<(u32, String, TokenType)> = Vec::new();
    let id = |id: &Value| u32::try_from(id.as_u64().unwrap()).unwrap();
    for (token, number) in file["model"]["vocab"].as_object().unwrap() {
        entries.push((id(number), token.clone(), TokenType::Normal));
    }
    for token in file["added_tokens"].as_array().unwrap() {
        let special = token["special"].as_bool().unwrap();
        let kind = if special { TokenType::Control } else { TokenType::UserDefined };
        entries.push((id(&token["id"]), token["content"].as_str().unwrap().to_owned(), kind));
    }
    entries.sort_by_key(|(id, ..)| *id);
    let merge = |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    Vocabulary {
        file: "twin.gguf".into(),
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        types: entries.iter().map(|entry| entry.2).collect(),
        tokens: entries.into_iter().map(|entry| entry.1).collect(),
        scores: Vec::new(),
        merges: file["model"]["merges"].as_array().unwrap().iter().map(merge).collect(),
        bos: (pre == "llama-bpe").then_some(995),
        eos: vec![999],
        unk: None,
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
        strip_after: HashSet::new(),
    }
}

#[test]
fn gguf_vocabularies_equal_their_tokenizer_json() {
    for (name, pre) in [("bpe_llama3", "llama-bpe"), ("bpe_qwen2", "qwen2")] {
        let tokenizer = Tokenizer::from_vocabulary(&as_vocabulary(name, pre)).unwrap();
        check_cases(&tokenizer, name);
    }
}

#[test]
fn contradictory_vocabularies_are_refused() {
    let message = |change: &dyn Fn(&mut Vocabulary)| {
        let mut vocabulary = as_vocabulary("bpe_qwen2", "qwen2");
        change(&mut vocabulary);
        Tokenizer::from_vocabulary(&vocabulary).err().unwrap().to_string()
    };
    for (text, wanted) in [
        (
            message(&|v| v.pre = Some("new".into())),
            "pre-tokenizer \"new\" is unknown; known are gpt-2, phi-2",
        ),
        (message(&|v| v.pre = None), "\"tokenizer.ggml.pre\" is missing"),
        (message(&|v| v.model = "rwkv".into()), "tokenizer of kind \"rwkv\"; known are"),
        (message(&|v| v.types.truncate(3)), "1200 tokens, but 3 token types"),
        (message(&|v| v.bos = Some(1200)), "the bos token is 1200, but there are only 1200 tokens"),
        (message(&|v| v.eos = vec![u32::MAX]), "the eos token is 4294967295"),
        (
            message(&|v| v.add_bos = Some(true)),
            "the bos token is to be added to each text, but no token is named",
        ),
        (message(&|v| v.merges[5] = "one".into()), "merge 5 is \"one\""),
        (message(&|v| v.merges[5] = "absent ab".into()), "the merges do not fit the tokens: Token `absent`"),
        (message(&|v| v.model = "llama".into()), "needs scores"),
    ] {
        assert!(text.starts_with("twin.gguf: ") && text.contains(wanted), "{text}");
    }
}

/// A SentencePiece vocabulary with these tokens and scores.
fn pieces(tokens: &[(&str, f32, TokenType)]) -> Vocabulary {
    Vocabulary {
        model: "llama".to_owned(),
        tokens: tokens.iter().map(|token| token.0.to_owned()).collect(),
        scores: tokens.iter().map(|token| token.1).collect(),
        types: tokens.iter().map(|token| token.2).collect(),
        bos: None,
        eos: Vec::new(),
        add_space_prefix: Some(false),
        ..as_vocabulary("bpe_qwen2", "qwen2")
    }
}

#[test]
fn sentencepiece_joins_by_score_then_from_the_left() {
    use TokenType::{Normal, Unused, UserDefined};
    let encode = |tokens: &[(&str, f32, TokenType)], text: &str| {
        let tokenizer = Tokenizer::from_vocabulary(&pieces(tokens)).unwrap();
        tokenizer.encode(text, SpecialTokens::IGNORE)
    };
    let tokens = [("a", 0.0, Normal), ("b", 0.0, Normal), ("ab", -2.0, Normal), ("ba", -1.0, Normal)];
    assert_eq!(encode(&tokens, "aba").unwrap(), [0, 3], "the better score first");
    let tokens = [("a", 0.0, Normal), ("aa", -1.0, Normal), ("aaa", -1.0, Normal)];
    assert_eq!(encode(&tokens, "aaaaa").unwrap(), [2, 1], "the leftmost of equals");
    let tokens = [("a", 0.0, Normal), ("b", 0.0, Normal), ("ab", -1.0, Unused), ("abb", -2.0, Normal)];
    assert_eq!(
        encode(&tokens, "ababb").unwrap(),
        [0, 1, 3],
        "unused tokens lead to others, or are taken apart"
    );
    let tokens = [("a", 0.0, Normal), ("aa", 0.0, UserDefined), ("aaa", f32::NAN, Normal)];
    assert_eq!(encode(&tokens, "aaa").unwrap(), [1, 0], "a user-defined token is never cut");
    let error = encode(&tokens, "ab").unwrap_err();
    assert!(matches!(&error, TokenizerError::NoToken { text, .. } if text == "b"), "{error}");
}

#[test]
fn text_prompts_of_model_files() {
    for (name, text) in [("llama", "gguf/llama.expected.json"), ("qwen2", "gguf/qwen2.expected.json")] {
        let tokenizer = from_gguf(&format!("gguf/{name}-F32.gguf"));
        check_text_prompt(&tokenizer, &json(text), name);
    }
    for name in ["llama", "qwen2"] {
        let tokenizer = folder(&format!("models/{name}"));
        check_text_prompt(&tokenizer, &json(&format!("models/{name}/expected.json")), name);
    }
}

fn check_text_prompt(tokenizer: &Tokenizer, expected: &Value, name: &str) {
    let prompt = &expected["text_prompt"];
    let text = prompt["text"].as_str().unwrap();
    let index = usize::try_from(prompt["prompt"].as_u64().unwrap()).unwrap();
    let expected = ids(&expected["prompts"][index]["input_ids"]);
    assert_eq!(tokenizer.encode(text, SpecialTokens::ADD).unwrap(), expected, "{name}");
    assert_eq!(tokenizer.decode(&expected, DecodeSpecial::Skip).unwrap(), text, "{name}");
}

#[test]
fn ends_come_from_the_generation_configuration() {
    assert_eq!(folder("models/llama").eos_ids(), [376, 379]);
    assert_eq!(from_gguf("gguf/qwen2-F32.gguf").eos_ids(), [313, 311]);
}

#[test]
fn special_tokens_are_text_where_ignored() {
    let tokenizer = folder("tokenizers/bpe_qwen2");
    let text = "<|im_start|>user<tool_call>";
    let literal = tokenizer.encode(text, SpecialTokens::IGNORE).unwrap();
    assert!(!literal.contains(&1196), "a special token");
    assert_eq!(literal.last(), Some(&1198), "an added token that is not special");
    assert_eq!(tokenizer.decode(&literal, DecodeSpecial::Skip).unwrap(), text);
    assert_eq!(tokenizer.encode(text, SpecialTokens::RECOGNISE).unwrap()[0], 1196);
}

#[test]
fn tokens_have_names() {
    let bpe = from_gguf("tokenizers/ggml-vocab-gpt-2.gguf");
    assert_eq!(bpe.token(995).as_deref(), Some("Ġworld"));
    assert_eq!(bpe.id("Ġworld"), Some(995));
    assert_eq!((bpe.token(50257), bpe.vocab_size()), (None, 50257));
    let spm = from_gguf("tokenizers/ggml-vocab-llama-spm.gguf");
    assert_eq!(spm.token(3186).as_deref(), Some("▁world"));
    assert_eq!(spm.id("▁world"), Some(3186));
    assert_eq!((spm.token(32000), spm.vocab_size()), (None, 32000));
    assert!(spm.is_special(0) && !spm.is_special(3186));
}

#[test]
fn half_characters_are_held_back() {
    let tokenizer = from_gguf("tokenizers/ggml-vocab-llama-spm.gguf");
    let mut stream = tokenizer.decode_stream(DecodeSpecial::Keep);
    let bytes = "é".bytes().map(|byte| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap());
    let pieces: Vec<String> = bytes.map(|id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["", "é"]);
    assert_eq!(stream.push(tokenizer.id("<0xF0>").unwrap()).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn unknown_ids_are_no_text() {
    let tokenizer = folder("tokenizers/bpe_llama3");
    let known = tokenizer.encode("ab", SpecialTokens::IGNORE).unwrap();
    let mut ids = vec![u32::MAX, 1000];
    ids.extend(known);
    assert_eq!(tokenizer.decode(&ids, DecodeSpecial::Keep).unwrap(), "ab");
}

/// A folder with the files given by name and content.
fn folder_of(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn error_of(files: &[(&str, &[u8])]) -> String {
    let folder = folder_of(files);
    Tokenizer::from_folder(folder.path()).err().unwrap().to_string()
}

#[test]
fn a_lone_tokenizer_json_is_enough() {
    let content = fs::read(fixture("tokenizers/bpe_llama3/tokenizer.json")).unwrap();
    let folder = folder_of(&[("tokenizer.json", &content)]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("Äpfel", SpecialTokens::ADD).unwrap(), [995, 127, 226, 79, 69, 429]);
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (None, &[][..]));
}

#[test]
fn truncation_and_padding_of_training_do_not_apply() {
    let mut content = json("tokenizers/bpe_llama3/tokenizer.json");
    content["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    );
    content["padding"] = serde_json::json!(
        {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
         "pad_type_id": 0, "pad_token": "!"}
    );
    let folder = folder_of(&[("tokenizer.json", content.to_string().as_bytes())]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("Äpfel", SpecialTokens::ADD).unwrap(), [995, 127, 226, 79, 69, 429]);
}

#[test]
fn broken_files_are_named() {
    let good = fs::read(fixture("tokenizers/bpe_llama3/tokenizer.json")).unwrap();
    let message = error_of(&[]);
    assert!(message.contains("no tokenizer here") && message.contains("tokenizer.json"), "{message}");
    let message = error_of(&[("tokenizer.json", b"{\"version\": \"\xff\"}")]);
    assert!(message.contains("tokenizer.json: byte 13 starts no UTF-8 character"), "{message}");
    let message = error_of(&[("tokenizer.json", b"{")]);
    assert!(message.contains("tokenizer.json: "), "{message}");
    let message = error_of(&[("tokenizer.json", &good), ("tokenizer_config.json", b"[")]);
    assert!(message.contains("tokenizer_config.json: not valid JSON"), "{message}");
    let message = error_of(&[("tokenizer.json", &good), ("tokenizer_config.json", b"{\"bos_token\": 7}")]);
    assert!(message.ends_with("bos_token should be the text of a token, but is 7"), "{message}");
    let message =
        error_of(&[("tokenizer.json", &good), ("generation_config.json", b"{\"eos_token_id\": [-1]}")]);
    assert!(
        message.ends_with("eos_token_id should be a token id or a list of them, but is [-1]"),
        "{message}"
    );
}

#[test]
fn templates_with_undefined_tokens_are_refused() {
    let message = |change: &dyn Fn(&mut Value)| {
        let mut content = json("tokenizers/bpe_llama3/tokenizer.json");
        change(&mut content["post_processor"]["processors"][1]);
        error_of(&[("tokenizer.json", content.to_string().as_bytes())])
    };
    let text = message(&|template| template["special_tokens"] = serde_json::json!({}));
    assert!(text.ends_with("the template has \"<|begin_of_text|>\", special_tokens does not"), "{text}");
    let text = message(&|template| template["single"][1]["Sequence"]["id"] = "B".into());
    assert!(text.ends_with("the template for a single text names a second one"), "{text}");
}

#[test]
fn model_files_without_a_vocabulary_say_so() {
    // A header without metadata.
    let bytes = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &[0; 16]].concat();
    let gguf = Gguf::parse(&bytes, Path::new("empty.gguf")).unwrap();
    let error = Tokenizer::from_gguf(&gguf).err().unwrap();
    assert!(matches!(error, TokenizerError::MissingInGguf { .. }));
    assert!(error.to_string().starts_with("empty.gguf: no tokenizer in this file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_bpe_loses_nothing(text in "\\PC{0,40}|[ -~\r\n\t]{0,80}|(?s).{0,40}") {
        thread_local! {
            static LLAMA3: Tokenizer = folder("tokenizers/bpe_llama3");
            static QWEN2: Tokenizer = folder("tokenizers/bpe_qwen2");
        }
        LLAMA3.with(|tokenizer| {
            let ids = tokenizer.encode(&text, SpecialTokens::IGNORE).unwrap();
            assert_eq!(tokenizer.decode(&ids, DecodeSpecial::Keep).unwrap(), text);
        });
        QWEN2.with(|tokenizer| {
            let ids = tokenizer.encode(&text, SpecialTokens::IGNORE).unwrap();
            // The library's tables of Unicode are older than those here, so its normal form is normalised again.
            let decoded = tokenizer.decode(&ids, DecodeSpecial::Keep).unwrap();
            assert_eq!(decoded.nfc().collect::<String>(), text.nfc().collect::<String>());
        });
    }

    #[test]
    fn sentencepiece_loses_nothing(text in "[ -~▁\r\n\t]{0,80}|(?s).{0,40}") {
        thread_local! {
            static GGUF: Tokenizer = from_gguf("tokenizers/ggml-vocab-llama-spm.gguf");
        }
        GGUF.with(|tokenizer| {
            let ids = tokenizer.encode(&text, SpecialTokens::IGNORE).unwrap();
            // U+2581 is its sign for a space.
            assert_eq!(tokenizer.decode(&ids, DecodeSpecial::Keep).unwrap(), text.replace('▁', " "));
        });
    }

    #[test]
    fn both_sentencepiece_encoders_agree(text in "([ a-z▁é🦙\n]|<s>|</s>|<\\|user\\|>){0,40}|(?s).{0,40}") {
        thread_local! {
            static BOTH: (Tokenizer, Tokenizer) = (folder("tokenizers/spm_llama"), spm_model());
        }
        BOTH.with(|(library, own)| {
            for special in [SpecialTokens::ADD, SpecialTokens::RECOGNISE, SpecialTokens::IGNORE] {
                assert_eq!(own.encode(&text, special).unwrap(), library.encode(&text, special).unwrap());
            }
        });
    }

    #[test]
    fn streams_give_what_decoding_at_once_does(ids in prop::collection::vec(0_u32..1300, 0..60)) {
        thread_local! {
            static ALL: Vec<Tokenizer> = vec![
                folder("tokenizers/bpe_llama3"),
                folder("tokenizers/bpe_qwen2"),
                folder("tokenizers/spm_llama"),
                from_gguf("tokenizers/ggml-vocab-llama-spm.gguf"),
            ];
        }
        ALL.with(|tokenizers| for tokenizer in tokenizers {
            for special in [DecodeSpecial::Keep, DecodeSpecial::Skip] {
                assert_eq!(
                    streamed(tokenizer, &ids, special),
                    tokenizer.decode(&ids, special).unwrap()
                );
            }
        });
    }
}
