use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{config::Architecture, gguf::testing::Builder, rope::RopeScaling};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(fixtures().join(path)).expect("sound")
}

/// The error's text, which must name something in `folder`.
fn error(folder: &TempDir, path: &str) -> String {
    let path = if path.is_empty() { folder.path().to_owned() } else { folder.path().join(path) };
    let text = Checkpoint::open(&path).expect_err("must be refused").to_string();
    let folder = folder.path().to_str().expect("UTF-8");
    assert!(text.contains(folder), "{text}");
    text.replace(&format!("{folder}/"), "").replace(folder, "folder")
}

/// A copy of a fixture that may be changed.
fn copy(model: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    for entry in fs::read_dir(fixtures().join("models").join(model)).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

/// A safetensors file with one-byte-a-value tensors.
fn safetensors(tensors: &[&str]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for name in tensors {
        let info = json!({"dtype": "U8", "shape": [2], "data_offsets": [end, end + 2]});
        header.insert((*name).to_owned(), info);
        end += 2;
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; end]].concat()
}

#[test]
fn folders_and_shards_are_opened() {
    let llama = open("models/llama");
    assert_eq!(llama.config().architecture, Architecture::Llama);
    assert_eq!(llama.eos_token_ids(), [376, 379]);
    assert_eq!(llama.files().len(), 1);
    let embedding = llama.expect_tensor("model.embed_tokens.weight", &[384, 64]).expect("there");
    assert_eq!((embedding.format(), embedding.len()), (Format::Bf16, 384 * 64));
    assert!(llama.has("lm_head.weight") && llama.gguf().is_none());
    assert_eq!(llama.total_bytes(), llama.tensors().map(|tensor| tensor.bytes as u64).sum::<u64>());

    let qwen3 = open("models/qwen3");
    assert_eq!((qwen3.files().len(), qwen3.total_bytes()), (3, 224_128));
    assert!(qwen3.expect_tensor("lm_head.weight", &[200, 64]).is_ok());
    assert_eq!(qwen3.generation_defaults().eos_token_ids, Some(vec![2]));
}

#[test]
fn gguf_files_have_hugging_face_names_and_shapes() {
    let llama = open("gguf/llama-BF16.gguf");
    let config = llama.config();
    assert_eq!((config.layers, config.heads, config.kv_heads, config.head_dim), (2, 4, 2, 16));
    assert_eq!((config.vocab_size, config.dtype), (320, Some(Format::Bf16)));
    assert!(!config.tie_word_embeddings && !config.attention_bias);
    let RopeScaling::FrequencyFactors(factors) = &config.rope.scaling else { panic!("no factors") };
    assert_eq!(factors.len(), 8);
    assert!(config.rope.tables().is_ok());
    let key = "model.layers.1.self_attn.k_proj.weight";
    assert_eq!(llama.expect_tensor(key, &[32, 64]).expect("there").format(), Format::Bf16);
    assert_eq!(llama.row_order(key), RowOrder::RopePairs { heads: 2 });
    assert_eq!(llama.row_order("model.layers.1.self_attn.q_proj.weight"), RowOrder::RopePairs { heads: 4 });
    assert_eq!(llama.row_order("model.layers.1.self_attn.v_proj.weight"), RowOrder::AsStored);
    assert_eq!(llama.eos_token_ids(), [2]);

    let qwen2 = open("gguf/qwen2-F16.gguf");
    assert!(qwen2.config().tie_word_embeddings && qwen2.config().attention_bias);
    assert_eq!(qwen2.row_order("model.layers.0.self_attn.q_proj.bias"), RowOrder::AsStored);
    let bias = qwen2.expect_tensor("model.layers.0.self_attn.q_proj.bias", &[64]).expect("there");
    assert_eq!(bias.format(), Format::F32);
    assert!(qwen2.gguf().is_some());
}

#[test]
fn a_vocabulary_without_tensors_is_opened() {
    let phi3 = open("tokenizers/ggml-vocab-phi-3.gguf");
    assert_eq!((phi3.tensors().len(), phi3.total_bytes(), phi3.config().vocab_size), (0, 0, 32_064));
    let error = phi3.tensor("lm_head.weight").expect_err("no tensors").to_string();
    assert!(error.ends_with("ggml-vocab-phi-3.gguf: tensor \"output.weight\" is missing"), "{error}");
}

#[test]
fn block_formats_are_refused_by_name() {
    let llama = open("gguf/llama-Q4_0.gguf");
    let error = llama.tensor("model.layers.0.mlp.up_proj.weight").expect_err("blocks").to_string();
    assert!(
        error.ends_with(
            "llama-Q4_0.gguf: tensor \"blk.0.ffn_up.weight\" is Q4_0; types that can be read are F32, F16 and BF16"
        ),
        "{error}"
    );
    let up = llama.tensors().find(|tensor| tensor.name == "model.layers.0.mlp.up_proj.weight");
    let up = up.expect("listed all the same");
    assert_eq!((up.dtype, up.format, up.stored_name), ("Q4_0", None, "blk.0.ffn_up.weight"));
}

#[test]
fn released_pages_come_back_with_the_same_bytes() {
    let llama = open("models/llama");
    let name = "model.embed_tokens.weight";
    let before = llama.tensor(name).expect("there").as_bytes().expect("contiguous").to_vec();
    TensorSource::release(&llama, name);
    TensorSource::release(&llama, "no such tensor");
    llama.files()[0].release(0..usize::MAX);
    assert_eq!(llama.tensor(name).expect("there").as_bytes(), Some(&before[..]));
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let llama = open("models/llama");
    let missing = TensorSource::tensor(&llama, "model.layers.9.input_layernorm.weight").expect_err("missing");
    assert!(missing.message.ends_with("llama: tensor \"model.layers.9.input_layernorm.weight\" is missing"));
    let wrong = llama.expect_tensor("model.norm.weight", &[63]).expect_err("wrong").to_string();
    assert!(
        wrong.ends_with("model.safetensors: tensor \"model.norm.weight\" has shape [64], not [63]"),
        "{wrong}"
    );
    let folder = copy("llama");
    fs::write(folder.path().join("model.safetensors"), safetensors(&["model.norm.weight"])).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("sound");
    let bytes = checkpoint.tensor("model.norm.weight").expect_err("integers").to_string();
    assert!(bytes.contains("tensor \"model.norm.weight\" is U8; types that can be read"), "{bytes}");
}

#[test]
fn folders_without_a_checkpoint_say_what_is_missing() {
    let folder = TempDir::new().expect("a folder");
    assert!(error(&folder, "").starts_with("folder: no config.json and no .gguf file"));
    assert!(error(&folder, "absent").starts_with("absent: No such file"));
    fs::write(folder.path().join("notes.txt"), "hello").expect("written");
    assert!(error(&folder, "notes.txt").starts_with("notes.txt: not a GGUF file"));
    for name in ["b.gguf", "a.gguf"] {
        fs::write(folder.path().join(name), "GGUF").expect("written");
    }
    assert!(error(&folder, "").ends_with("2 GGUF files and no config.json; name one: a.gguf, b.gguf"));
    fs::remove_file(folder.path().join("b.gguf")).expect("removed");
    assert!(error(&folder, "").starts_with("a.gguf: the version at byte 4"));
    fs::copy(fixtures().join("models/llama/config.json"), folder.path().join("config.json")).expect("a copy");
    assert_eq!(error(&folder, ""), "folder: neither model.safetensors nor model.safetensors.index.json");
    fs::write(folder.path().join("pytorch_model.bin"), "").expect("written");
    assert!(error(&folder, "").contains("convert it to safetensors first"));
    fs::write(folder.path().join("model.safetensors"), "").expect("written");
    assert!(error(&folder, "").starts_with("model.safetensors: not a safetensors file: it has 0 bytes"));
    fs::write(folder.path().join("generation_config.json"), "{").expect("written");
    assert!(error(&folder, "").starts_with("generation_config.json: not valid JSON"));
}

#[test]
fn a_gguf_file_alone_in_a_folder_is_opened() {
    let folder = TempDir::new().expect("a folder");
    fs::copy(fixtures().join("gguf/llama-F32.gguf"), folder.path().join("model.gguf")).expect("a copy");
    assert_eq!(Checkpoint::open(folder.path()).expect("sound").config().layers, 2);
}

#[test]
fn malformed_indices_are_named() {
    let folder = copy("qwen3");
    let index = |map: serde_json::Value| {
        let text = json!({"weight_map": map}).to_string();
        fs::write(folder.path().join("model.safetensors.index.json"), text).expect("written");
        error(&folder, "")
    };
    let shard = "model-00001-of-00003.safetensors";
    assert_eq!(
        index(json!({"a": "absent.safetensors"})),
        "model.safetensors.index.json: tensor \"a\" is in \"absent.safetensors\", which is missing"
    );
    assert_eq!(
        index(json!({"a": shard})),
        format!("model.safetensors.index.json: tensor \"a\" should be in {shard:?}, which does not have it")
    );
    for outside in ["../x.safetensors", "/etc/passwd", ""] {
        assert!(index(json!({"a": outside})).contains("which is no file name within the folder"));
    }
    assert!(index(json!({"a": 1})).contains("invalid type: integer"));
    fs::copy(folder.path().join(shard), folder.path().join("again.safetensors")).expect("a copy");
    let twice = index(json!({"model.embed_tokens.weight": shard, "x": "again.safetensors"}));
    assert!(twice.ends_with(&format!("is both in {shard} and in again.safetensors")), "{twice}");
}

#[test]
fn biases_that_would_be_left_out_are_refused() {
    let folder = copy("llama");
    let bias = "model.layers.0.self_attn.o_proj.bias";
    fs::write(folder.path().join("model.safetensors"), safetensors(&[bias])).expect("written");
    assert!(
        error(&folder, "").contains(&format!("tensor {bias:?} is a bias that llama models here do not have"))
    );
}

fn small_gguf() -> Builder {
    Builder::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("token_embd.weight", &[8, 3], 1, &[0; 48])
}

/// The error of opening the file, or nothing where it opens.
fn refused(builder: &Builder) -> Option<String> {
    let folder = TempDir::new().expect("a folder");
    fs::write(folder.path().join("m.gguf"), builder.build()).expect("written");
    match Checkpoint::open(folder.path().join("m.gguf")) {
        Ok(_) => None,
        Err(_) => Some(error(&folder, "m.gguf")),
    }
}

#[test]
fn gguf_metadata_is_checked() {
    assert_eq!(refused(&small_gguf()), None);
    let refused = |builder: Builder| refused(&builder).expect("must be refused");
    assert_eq!(
        refused(Builder::new().string("general.architecture", "gpt2")),
        "m.gguf: general.architecture \"gpt2\" is not supported; supported: llama, qwen2, qwen3, phi3"
    );
    assert!(refused(Builder::new()).contains("metadata key \"general.architecture\" is missing"));
    assert!(
        refused(small_gguf().u32("llama.expert_count", 8)).contains("llama.expert_count 8 is not supported")
    );
    assert!(refused(small_gguf().u32("split.count", 3)).contains("split.count 3 is not supported"));
    assert!(
        refused(small_gguf().u32("llama.attention.head_count_kv", 0)).contains("head_count_kv\" holds 0")
    );
    assert!(
        refused(small_gguf().u32("llama.attention.key_length", 5)).contains("holds 5, not an even number")
    );
    assert!(refused(small_gguf().u32("llama.attention.value_length", 2)).contains("that of keys, 4"));
    assert!(refused(small_gguf().u32("llama.rope.dimension_count", 6)).contains("at most 4"));
    assert!(refused(small_gguf().f32("llama.rope.freq_base", f32::NAN)).contains("freq_base\" holds NaN"));
    assert!(refused(small_gguf().string("llama.rope.scaling.type", "dynamic")).contains("\"dynamic\""));
    assert!(
        refused(small_gguf().string("llama.rope.scaling.type", "yarn"))
            .contains("scaling.factor\" is missing")
    );
    assert!(
        refused(small_gguf().tensor("blk.0.attn_output.bias", &[8], 0, &[0; 32]))
            .contains("tensor \"blk.0.attn_output.bias\" is a bias")
    );
    assert!(
        refused(small_gguf().tensor("model.embed_tokens.weight", &[8], 0, &[0; 32]))
            .contains("is both in m.gguf")
    );
    assert!(refused(small_gguf().tensor("rope_freqs.weight", &[2], 1, &[0; 4])).contains("is F16"));
}

#[test]
fn gguf_rope_scaling_is_read() {
    let rope = |builder: Builder| {
        let folder = TempDir::new().expect("a folder");
        fs::write(folder.path().join("m.gguf"), builder.build()).expect("written");
        Checkpoint::open(folder.path().join("m.gguf")).expect("sound").config().rope.clone()
    };
    let scaled = |kind: &str| {
        small_gguf().string("llama.rope.scaling.type", kind).f32("llama.rope.scaling.factor", 2.0)
    };
    assert_eq!(rope(small_gguf()).scaling, RopeScaling::Default);
    assert_eq!(rope(scaled("none")).scaling, RopeScaling::Default);
    assert_eq!(rope(scaled("linear")).scaling, RopeScaling::Linear { factor: 2.0 });
    let yarn = rope(scaled("yarn").u32("llama.rope.scaling.original_context_length", 64));
    assert!(matches!(yarn.scaling, RopeScaling::Yarn(yarn) if yarn.original_context == 64));
    let ones = [1_f32, 1.0].map(f32::to_le_bytes).concat();
    let longrope = scaled("longrope")
        .u32("llama.rope.scaling.original_context_length", 32)
        .tensor("rope_factors_short.weight", &[2], 0, &ones)
        .tensor("rope_factors_long.weight", &[2], 0, &ones);
    let longrope = rope(longrope);
    assert_eq!((longrope.long_beyond(), longrope.tables().map(|tables| tables.len())), (Some(32), Ok(2)));
}

#[test]
fn truncated_checkpoints_are_errors_everywhere() {
    let folder = TempDir::new().expect("a folder");
    let (whole, path) = (small_gguf().build(), folder.path().join("m.gguf"));
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("written");
        assert!(error(&folder, "m.gguf").starts_with("m.gguf: "));
    }
}
