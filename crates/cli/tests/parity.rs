//! Whole models against the f64 oracle of the fixtures, under every policy, and against what Hugging Face transformers
//! reaches in the same format.

mod common;
#[path = "common/expected.rs"]
mod expected;

use std::path::Path;

use common::{fixture, ids};
use expected::Expected;
use mantissa::cuda::CudaOptions;
use mantissa::engine::score::Hidden;
use mantissa::engine::sequence::EndOfText;
use mantissa::{Device, GenerateOptions, Generator, LogitRows, Model, Options};

/// f32 must be closer to the oracle than this: the bounds of `fixtures/README.md`.
const F32_MEAN: f64 = 5e-6;
const F32_MAX: f64 = 2e-5;

/// bf16 and f16 may be as far from the oracle as transformers, and this much further.
const ALLOWANCE: f64 = 1.05;

/// Differences to the oracle over all prompts and positions, as `fixtures/README.md` defines them.
#[derive(Default)]
struct Errors {
    sum_difference: f64,
    sum_oracle: f64,
    max_difference: f64,
    max_oracle: f64,
    sum_kl: f64,
    positions: usize,
}

impl Errors {
    fn add(&mut self, run: &[f32], oracle: &[f32], vocabulary: usize) {
        assert_eq!(run.len(), oracle.len());
        for (&x, &o) in run.iter().zip(oracle) {
            assert!(x.is_finite());
            let difference = (f64::from(x) - f64::from(o)).abs();
            self.sum_difference += difference;
            self.max_difference = self.max_difference.max(difference);
            self.sum_oracle += f64::from(o).abs();
            self.max_oracle = self.max_oracle.max(f64::from(o).abs());
        }
        for (run, oracle) in run.chunks_exact(vocabulary).zip(oracle.chunks_exact(vocabulary)) {
            self.sum_kl += kl(oracle, run);
            self.positions += 1;
        }
    }

    fn mean_relative(&self) -> f64 {
        self.sum_difference / self.sum_oracle
    }

    fn max_relative(&self) -> f64 {
        self.max_difference / self.max_oracle
    }

    fn mean_kl(&self) -> f64 {
        self.sum_kl / self.positions as f64
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - f64::from(max) - sum.ln()).collect()
}

/// KL divergence of `run` from `oracle` in nats.
fn kl(oracle: &[f32], run: &[f32]) -> f64 {
    let (p, q) = (log_softmax(oracle), log_softmax(run));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Where the tests compute: on the processor, or on the device named in `MANTISSA_TEST_DEVICE`.
fn test_device() -> Device {
    match std::env::var("MANTISSA_TEST_DEVICE") {
        Ok(name) => name.parse().expect("a device"),
        Err(_) => Device::Cpu,
    }
}

fn prepare(path: &Path, policy: &str) -> Generator {
    let options = Options {
        policy: Some(policy.parse().expect("a policy")),
        threads: std::num::NonZeroUsize::new(1),
        logits: LogitRows::All,
        context: Some(160),
        device: test_device(),
        cuda: CudaOptions {
            kernel_cache: std::env::var_os("MANTISSA_KERNEL_CACHE").map(Into::into),
            nvrtc: std::env::var_os("MANTISSA_NVRTC").map(Into::into),
            ..CudaOptions::default()
        },
        ..Options::default()
    };
    let model = Model::open(path).expect("the model opens");
    model.prepare(&options).expect("the model is prepared")
}

fn logits(generator: &mut Generator, tokens: &[u32]) -> Vec<f32> {
    generator.score(tokens, Hidden::Skip).expect("finite logits").logits
}

/// Errors of a model under a policy over all prompts of its fixture; `oracle` names the tensor of a prompt.
fn errors(generator: &mut Generator, expected: &Expected, oracle: impl Fn(usize) -> String) -> Errors {
    let mut errors = Errors::default();
    for (index, prompt) in expected.prompts().iter().enumerate() {
        let run = logits(generator, prompt);
        errors.add(&run, &expected.tensor(&oracle(index)), run.len() / prompt.len());
    }
    errors
}

fn oracle_of_model(index: usize) -> String {
    format!("p{index}.logits.f64")
}

fn check_f32(errors: &Errors, what: &str) {
    println!("{what} f32: mean {:.2e}, max {:.2e}", errors.mean_relative(), errors.max_relative());
    assert!(errors.mean_relative() < F32_MEAN, "{what}: mean relative error {:e}", errors.mean_relative());
    assert!(errors.max_relative() < F32_MAX, "{what}: largest relative error {:e}", errors.max_relative());
}

/// Tokens taken greedily after every prompt equal those of the fixture.
fn check_greedy(generator: &mut Generator, expected: &Expected, greedy: &serde_json::Value, what: &str) {
    let options = GenerateOptions { end_of_text: EndOfText::Ignore, ..GenerateOptions::default() };
    let options = options.greedy().max_tokens(48);
    let prompts = expected.prompts();
    let lists = greedy.as_array().expect("greedy lists");
    assert_eq!(lists.len(), prompts.len());
    for list in lists {
        let index = usize::try_from(list["prompt"].as_u64().expect("an index")).expect("an index");
        let done = generator.generate(prompts[index].as_slice(), &options, |_| ()).expect("a completion");
        assert_eq!(done.ids, ids(&list["ids"]), "{what}, prompt {index}");
    }
}

/// The f32 run: logits within the bounds, greedy tokens equal.
fn check_model_f32(name: &str) {
    let expected = Expected::read(&format!("models/{name}/expected"));
    let mut generator = prepare(&fixture(&format!("models/{name}")), "f32");
    check_f32(&errors(&mut generator, &expected, oracle_of_model), name);
    check_greedy(&mut generator, &expected, &expected.json["greedy"], name);
}

/// A narrow run: no further from the oracle than transformers in the same format.
fn check_model_narrow(name: &str, policy: &str) {
    let expected = Expected::read(&format!("models/{name}/expected"));
    let mut generator = prepare(&fixture(&format!("models/{name}")), policy);
    let errors = errors(&mut generator, &expected, oracle_of_model);
    let theirs = &expected.json["errors_vs_oracle"][policy];
    let their_mean = theirs["mean_rel_err"].as_f64().expect("a number");
    let their_kl = theirs["kl_mean"].as_f64().expect("a number");
    let (mean, kl) = (errors.mean_relative(), errors.mean_kl());
    println!(
        "{name} {policy}: mean {mean:.3e} ({:.2} of transformers), KL {kl:.3e} ({:.2})",
        mean / their_mean,
        kl / their_kl
    );
    assert!(
        mean <= ALLOWANCE * their_mean,
        "{name} {policy}: mean relative error {mean:e}, theirs {their_mean:e}"
    );
    assert!(kl <= ALLOWANCE * their_kl, "{name} {policy}: mean KL divergence {kl:e}, theirs {their_kl:e}");
}

macro_rules! model_tests {
    ($($name:ident: $($policy:ident)*;)*) => {$(
        mod $name {
            #[test]
            fn f32() {
                super::check_model_f32(stringify!($name));
            }
            $(#[test]
            fn $policy() {
                super::check_model_narrow(stringify!($name), stringify!($policy));
            })*
        }
    )*};
}

model_tests! {
    llama: bf16 f16;
    llama_bf16_range: bf16;
    mistral: bf16 f16;
    phi3: bf16 f16;
    phi3_longrope: bf16 f16;
    qwen2: bf16 f16;
    qwen3: bf16 f16;
}

#[test]
fn gguf_files_of_unquantised_types_agree_with_their_oracle() {
    for name in ["llama", "qwen2"] {
        let expected = Expected::read(&format!("gguf/{name}.expected"));
        for dtype in ["F32", "F16", "BF16"] {
            let file = format!("{name}-{dtype}.gguf");
            let mut generator = prepare(&fixture(&format!("gguf/{file}")), "f32");
            let oracle = |index| format!("p{index}.logits.exact.f64");
            check_f32(&errors(&mut generator, &expected, oracle), &file);
            check_greedy(&mut generator, &expected, &expected.json["sets"]["exact"]["greedy"], &file);
        }
    }
}

/// Under every policy the logits have the same bits, whatever the checkpoint's own format, for the numbers are the same.
#[test]
fn the_same_numbers_in_other_formats_give_the_same_bits() {
    for name in ["mistral", "qwen2"] {
        let prompts = Expected::read(&format!("models/{name}/expected")).prompts();
        for policy in ["f32", "bf16", "f16"] {
            let mut original = prepare(&fixture(&format!("models/{name}")), policy);
            for dtype in ["f16", "f32"] {
                let mut other = prepare(&fixture(&format!("models/{name}-{dtype}")), policy);
                for prompt in &prompts {
                    assert_eq!(
                        logits(&mut original, prompt),
                        logits(&mut other, prompt),
                        "{name}-{dtype} {policy}"
                    );
                }
            }
        }
    }
}

/// `config.json` as transformers 4 wrote it gives the same model, bit for bit.
#[test]
fn configurations_of_transformers_4_and_5_give_the_same_bits() {
    for name in ["llama", "llama_bf16_range", "mistral", "phi3", "phi3_longrope", "qwen2", "qwen3"] {
        let original = fixture(&format!("models/{name}"));
        let copy = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(&original).expect("the fixture") {
            let path = entry.expect("an entry").path();
            let target = copy.path().join(path.file_name().expect("a name"));
            std::fs::copy(&path, target).expect("a copy");
        }
        std::fs::rename(copy.path().join("config.v4.json"), copy.path().join("config.json"))
            .expect("the older form");
        let (mut new, mut old) = (prepare(&original, "f32"), prepare(copy.path(), "f32"));
        for prompt in Expected::read(&format!("models/{name}/expected")).prompts() {
            assert_eq!(logits(&mut new, &prompt), logits(&mut old, &prompt), "{name}");
        }
    }
}

#[test]
fn overflow_in_f16_names_the_first_layer_that_is_not_finite() {
    let mut generator = prepare(&fixture("models/llama_bf16_range"), "f16");
    for prompt in Expected::read("models/llama_bf16_range/expected").prompts() {
        let error = generator.score(&prompt, Hidden::Skip).expect_err("an overflow");
        let text = error.to_string();
        assert!(text.contains("layers.1."), "{text}");
        let error = generator.generate(prompt, &GenerateOptions::default(), |_| ()).expect_err("an overflow");
        assert!(error.to_string().contains("layers.1."), "{error}");
    }
}

/// No answer depends on the others in its batch, and waiting for a turn changes nothing.
#[test]
fn batches_give_what_single_prompts_give() {
    let model = Model::open(fixture("models/qwen2")).expect("the model opens");
    let expected = Expected::read("models/qwen2/expected");
    let prompts: Vec<mantissa::Prompt> = expected.prompts().into_iter().map(Into::into).collect();
    let options = GenerateOptions { end_of_text: EndOfText::Ignore, ..GenerateOptions::default() };
    let options = options.greedy().max_tokens(24);
    for sequences in [1, 2, 3] {
        let prepared = Options { sequences: Some(sequences), context: Some(160), ..Options::default() };
        let mut generator = model.prepare(&prepared).expect("the model is prepared");
        let together = generator.generate_batch(&prompts, &options, |_| ()).expect("completions");
        for (prompt, done) in prompts.iter().zip(together) {
            let alone = generator.generate(prompt.clone(), &options, |_| ()).expect("a completion");
            assert_eq!(alone.ids, done.ids, "{sequences} at once");
        }
    }
}
