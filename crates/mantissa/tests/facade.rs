//! The library as its users see it.

use std::path::{Path, PathBuf};

use mantissa::engine::sequence::{EndOfText, FinishReason};
use mantissa::numerics::{PrecisionPolicy, Preset, default_policy, reset_default_policy, set_default_policy};
use mantissa::{Device, Error, Flow, GenerateOptions, Generator, Model, Options, Prompt};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn prepare(name: &str) -> Generator {
    let options = Options { policy: Some(Preset::F32.into()), sequences: Some(2), ..Options::default() };
    Model::open(fixture(name)).expect("a model").prepare(&options).expect("a generator")
}

/// 24 tokens, taken greedily.
fn options() -> GenerateOptions {
    GenerateOptions { end_of_text: EndOfText::Ignore, ..GenerateOptions::default() }.greedy().max_tokens(24)
}

#[test]
fn the_pieces_of_every_answer_are_its_text_and_its_ids() {
    let mut generator = prepare("llama");
    let prompts = ["One", "Two llamas", "Three of them 🦙"].map(Prompt::from);
    let mut texts = vec![String::new(); 3];
    let mut ids = vec![Vec::new(); 3];
    let done = generator
        .generate_batch(&prompts, &options(), |piece| {
            texts[piece.prompt].push_str(piece.text);
            ids[piece.prompt].extend(piece.token);
        })
        .expect("completions");
    for (index, completion) in done.iter().enumerate() {
        assert_eq!(completion.text.as_deref(), Some(texts[index].as_str()));
        assert_eq!(completion.ids, ids[index]);
        assert_eq!(completion.ids.len(), 24);
        assert_eq!(completion.finish_reason, FinishReason::Length);
        assert!(completion.timings.first_token_seconds >= completion.timings.prefill_seconds);
    }
}

#[test]
fn a_callback_can_cancel_and_the_generator_goes_on() {
    let mut generator = prepare("qwen2");
    let whole = generator.generate("Once", &options(), |_| ()).expect("a completion");
    let mut tokens = 0;
    let cut = generator
        .generate("Once", &options(), |piece| {
            tokens += usize::from(piece.token.is_some());
            if tokens == 5 { Flow::Cancel } else { Flow::Continue }
        })
        .expect("a completion");
    assert_eq!(cut.finish_reason, FinishReason::Cancelled);
    assert_eq!(cut.ids, whole.ids[..5]);
    let again = generator.generate("Once", &options(), |_| ()).expect("a completion");
    assert_eq!(again.ids, whole.ids);
}

#[test]
fn a_stop_string_is_never_shown() {
    let mut generator = prepare("llama");
    let whole = generator.generate("Once", &options(), |_| ()).expect("a completion");
    let text = whole.text.expect("a text");
    let stop: String = text.chars().skip(6).take(4).collect();
    let mut shown = String::new();
    let stopping = GenerateOptions { stop: vec![stop.clone()], ..options() };
    let done =
        generator.generate("Once", &stopping, |piece| shown.push_str(piece.text)).expect("a completion");
    assert_eq!(done.finish_reason, FinishReason::Stop);
    assert_eq!(done.text.as_deref(), text.find(&stop).map(|end| &text[..end]));
    assert_eq!(done.text, Some(shown));
}

#[test]
fn the_process_wide_default_policy_is_used_where_none_is_given() {
    assert_eq!(default_policy(), PrecisionPolicy::default());
    set_default_policy(Preset::HighPrecision.into());
    let model = Model::open(fixture("qwen3")).expect("a model");
    let plan = model.plan(&Options::default()).expect("a plan");
    let given = Options { policy: Some(Preset::F16.into()), ..Options::default() };
    let other = model.plan(&given).expect("a plan");
    reset_default_policy();
    assert_eq!(plan.policy, Preset::HighPrecision.into());
    assert_eq!(other.policy, Preset::F16.into());
}

#[test]
fn a_model_without_a_tokenizer_takes_ids_only() {
    let mut generator = prepare("phi3");
    let done = generator.generate(vec![3, 4, 5], &options().max_tokens(2), |_| ()).expect("a completion");
    assert_eq!((done.ids.len(), done.text), (2, None));
    let error = generator.generate("text", &options(), |_| ()).expect_err("no tokenizer");
    assert!(matches!(error, Error::NoTokenizer(_)), "{error}");
    let stopping = GenerateOptions { stop: vec!["x".to_owned()], ..options() };
    let error = generator.generate(vec![3], &stopping, |_| ()).expect_err("no tokenizer");
    assert!(matches!(error, Error::StopWithoutTokenizer), "{error}");
}

#[test]
fn all_prompts_are_checked_before_the_first_runs() {
    let mut generator = prepare("qwen2");
    let prompts = [Prompt::Ids(vec![1, 2]), Prompt::Ids(Vec::new())];
    let mut called = 0;
    let error = generator.generate_batch(&prompts, &options(), |_| called += 1).expect_err("an empty prompt");
    assert!(error.to_string().contains("empty"), "{error}");
    assert_eq!(called, 0);
    let none = generator.generate(vec![1, 2], &options().max_tokens(0), |_| ()).expect("a completion");
    assert_eq!((none.ids.len(), none.finish_reason), (0, FinishReason::Length));
}

#[test]
fn devices_are_named() {
    assert_eq!("cpu".parse(), Ok(Device::Cpu));
    assert_eq!("auto".parse(), Ok(Device::Auto));
    assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
    assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
    for text in ["cuda", "cuda:", "cuda:-1", "gpu"] {
        let error = text.parse::<Device>().expect_err("no such device").to_string();
        assert!(error.contains(text) && error.contains("cpu") && error.contains("cuda:N"), "{error}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_and_not_a_panic() {
    let options = Options { device: Device::Cuda(1 << 20), ..Options::default() };
    let error = options.backend().err().expect("an error").to_string();
    // Without a driver that is what is missing; with one, the device is.
    assert!(error.contains("no NVIDIA driver") || error.contains("cuda:1048576"), "{error}");
    let automatic = Options::default().chosen_device();
    assert_ne!(automatic.device, Device::Auto);
    assert_eq!(automatic.device == Device::Cpu, automatic.no_gpu.is_some());
}

#[test]
fn a_path_to_nothing_says_what_a_model_is() {
    let error = Model::open("no/such/place").err().expect("an error");
    assert!(error.to_string().contains("no/such/place"), "{error}");
}

#[test]
fn an_error_about_a_tensor_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(fixture("qwen2-f32").join(file), folder.path().join(file)).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    // Every number of the file becomes NaN; what is not finite is first missed in a norm or bias.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let options = Options { policy: Some("f32".parse().unwrap()), ..Options::default() };
    let error = Model::open(folder.path()).unwrap().prepare(&options).err().unwrap().to_string();
    assert!(error.starts_with(&format!("{}: tensor model.", weights.display())), "{error}");
    assert!(error.ends_with("a norm or bias must be finite"), "{error}");
}
