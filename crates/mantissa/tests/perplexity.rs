//! Perplexity as users of the library measure it.

use std::path::{Path, PathBuf};

use mantissa::engine::evaluation::WindowRule;
use mantissa::eval::{Evaluated, Perplexity, Predictions};
use mantissa::{Error, Flow, Generator, LogitRows, Model, Options};

const TEXT: &str =
    "It was a bright cold day in the valley, and nobody had thought of bringing a second blanket. ";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn prepare(name: &str, policy: &str, logits: LogitRows) -> Generator {
    let policy = Some(policy.parse().expect("a policy"));
    let options = Options { policy, context: Some(64), logits, ..Options::default() };
    Model::open(fixture(name)).expect("a model").prepare(&options).expect("a generator")
}

fn measurement<'a>(policy: &'a mut Generator, reference: Option<&'a mut Generator>) -> Perplexity<'a> {
    let windows = WindowRule { context: 64, stride: None, limit: None };
    Perplexity { policy, reference, windows, threads: None }
}

#[test]
fn a_callback_sees_every_window_and_can_end_it() {
    let mut policy = prepare("qwen2", "bf16", LogitRows::All);
    let mut seen = Vec::new();
    let text = TEXT.repeat(5);
    let whole = measurement(&mut policy, None).measure(&text, |done| seen.push(done)).expect("predictions");
    let total = whole.windows;
    assert!(total > 2);
    assert_eq!(seen, (0..=total).map(|windows| Evaluated { windows, total }).collect::<Vec<_>>());
    assert_eq!(whole.count(), total * 31);

    let first_two = |done: Evaluated| if done.windows == 2 { Flow::Cancel } else { Flow::Continue };
    let some = measurement(&mut policy, None).measure(&text, first_two).expect("predictions");
    assert_eq!(some.windows, 2);
    assert_eq!(some.policy.log_likelihoods, whole.policy.log_likelihoods[..62]);
}

/// Logits for one row at a time, as generation has them, give the same numbers.
#[test]
fn how_many_rows_are_output_at_once_changes_nothing() {
    let of = |logits| {
        let (mut policy, mut reference) = (prepare("llama", "f16", logits), prepare("llama", "f32", logits));
        let found = measurement(&mut policy, Some(&mut reference)).measure(&TEXT.repeat(3), |_| ());
        let Predictions { policy, against, .. } = found.expect("predictions");
        let against = against.expect("a comparison");
        (policy.log_likelihoods, against.reference.log_likelihoods, against.divergences, against.same_top)
    };
    assert_eq!(of(LogitRows::All), of(LogitRows::Last));
}

#[test]
fn models_that_were_not_prepared_alike_are_not_compared() {
    let mut policy = prepare("qwen2", "bf16", LogitRows::All);
    let mut other = prepare("qwen2", "f32", LogitRows::Last);
    let error =
        measurement(&mut policy, Some(&mut other)).measure(&TEXT.repeat(5), |_| ()).expect_err("unlike");
    assert!(matches!(error, Error::NotAlike { what: "output", .. }), "{error}");
    let mut other = prepare("mistral", "f32", LogitRows::All);
    let error =
        measurement(&mut policy, Some(&mut other)).measure(&TEXT.repeat(5), |_| ()).expect_err("unlike");
    assert!(matches!(error, Error::NotAlike { what: "vocabulary", .. }), "{error}");
}

#[test]
fn nothing_has_no_perplexity() {
    let nothing = Predictions::default();
    assert_eq!(nothing.policy.perplexity(), None);
    assert_eq!(nothing.nats_per_character(&nothing.policy), None);
    assert_eq!((nothing.difference(), nothing.log_ratio()), (None, None));
}
