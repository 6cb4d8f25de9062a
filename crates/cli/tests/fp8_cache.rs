//! What docs/precision.md claims of the FP8 cache, on the whole of both validation books: perplexity within 0.05 of that
//! with a bf16 cache, and at most 0.55 of f16's bytes. A part of the books would be quicker and tell nothing: over a
//! fifth of them the difference is uncertain by more than a quarter of the bound.

#[path = "common/command.rs"]
mod command;

use std::path::{Path, PathBuf};

use command::{json_of, mantissa};
use serde_json::Value;

fn books() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/validation");
    ["the-railway-children.txt", "the-time-machine.txt"].map(|book| folder.join(book)).into()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn compared(policy: &str, against: &str) -> Value {
    let mut command = mantissa();
    command.args(["eval", "perplexity"]).args(books()).arg("--json");
    json_of(command.args(["--policy", policy, "--against", against]))
}

#[test]
fn the_fp8_cache_keeps_perplexity_and_halves_the_bytes() {
    let found = compared("bf16,kv_cache=f8e4m3", "bf16");
    let against = &found["total"]["against"];
    let (difference, error) =
        (number(&against["difference"]["value"]), number(&against["difference"]["error"]));
    println!("difference {difference:.4} ± {error:.4}");
    assert!(difference.abs() <= 0.05, "perplexity differs by {difference:.4} ± {error:.4}");
    assert!(error < 0.01, "too few tokens to tell: ± {error:.4}");
    // It is another computation, and the divergence sees it.
    assert!(number(&against["kl_divergence"]["mean"]["value"]) > 0.0);

    let bytes = |side: &str| number(&found[side]["memory"]["cache_per_token"]);
    // A bf16 cache is as large as an f16 one.
    assert!(bytes("policy") <= 0.55 * bytes("against"), "{} of {}", bytes("policy"), bytes("against"));
    let allocated = |side: &str| number(&found[side]["memory"]["cache"]);
    assert!(allocated("policy") <= 0.55 * allocated("against"), "what is allocated keeps to it");
}
