//! `mantissa-tiny` against Hugging Face transformers: the same ids, the same logits within the bounds of f32, the same
//! greedy tokens. The reference is what `models/tiny/reference.py` wrote.

mod common;

use std::path::PathBuf;

use common::{fixture, ids};
use mantissa::engine::score::Hidden;
use mantissa::engine::sequence::EndOfText;
use mantissa::{GenerateOptions, LogitRows, Model, Options};
use safetensors::SafeTensors;
use serde_json::Value;

/// The bounds of the other models' parity tests, which `fixtures/README.md` states.
const F32_MEAN: f64 = 5e-6;
const F32_MAX: f64 = 2e-5;

/// A file of `models/tiny`.
fn tiny(path: &str) -> PathBuf {
    fixture("../models/tiny").join(path)
}

#[test]
fn it_agrees_with_transformers() {
    let text = std::fs::read_to_string(tiny("reference.json")).expect("the reference");
    let reference: Value = serde_json::from_str(&text).expect("JSON");
    let bytes = std::fs::read(tiny("reference.safetensors")).expect("the logits");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let options = Options {
        policy: Some("f32".parse().expect("a policy")),
        logits: LogitRows::All,
        ..Options::default()
    };
    let mut generator = Model::built_in().expect("a model").prepare(&options).expect("a generator");
    let greedy = GenerateOptions { end_of_text: EndOfText::Ignore, ..GenerateOptions::default() }.greedy();
    let (mut difference, mut sum, mut largest_difference, mut largest) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    for prompt in reference["prompts"].as_array().expect("prompts") {
        let name = prompt["name"].as_str().expect("a name");
        let text = prompt["text"].as_str().expect("a text");
        let prompt_ids = ids(&prompt["ids"]);
        let encoded = generator.encode(&mantissa::Prompt::Rendered(text.to_owned())).expect("ids");
        assert_eq!(encoded, prompt_ids, "{name}");

        let ours = generator.score(&prompt_ids, Hidden::Skip).expect("logits").logits;
        let theirs = tensors.tensor(&format!("{name}.logits")).expect("logits");
        assert_eq!(ours.len() * 4, theirs.data().len(), "{name}");
        for (ours, theirs) in ours.iter().zip(theirs.data().as_chunks().0) {
            let theirs = f64::from(f32::from_le_bytes(*theirs));
            let error = (f64::from(*ours) - theirs).abs();
            difference += error;
            sum += theirs.abs();
            largest_difference = largest_difference.max(error);
            largest = largest.max(theirs.abs());
        }

        let expected = ids(&prompt["greedy"]);
        let done = generator
            .generate(prompt_ids, &greedy.clone().max_tokens(expected.len()), |_| ())
            .expect("a completion");
        assert_eq!(done.ids, expected, "{name}");
    }
    println!("mean {:.2e}, max {:.2e}", difference / sum, largest_difference / largest);
    assert!(difference / sum < F32_MEAN, "mean relative error {:e}", difference / sum);
    assert!(largest_difference / largest < F32_MAX, "largest error {:e}", largest_difference / largest);
}
