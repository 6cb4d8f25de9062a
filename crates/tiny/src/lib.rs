//! The files of `mantissa-tiny`, the small model that Mantissa brings along: a Hugging Face folder as data. How it was
//! trained, and on what, is told in `models/tiny/README.md`; this crate only carries it, and knows nothing that reads it.

/// What the model is called.
pub const NAME: &str = "mantissa-tiny";

/// The files of the model's folder: names and contents. The weights start at a multiple of 64 bytes, as those of a mapped
/// file do.
pub const FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../../../models/tiny/checkpoint/config.json")),
    ("generation_config.json", include_bytes!("../../../models/tiny/checkpoint/generation_config.json")),
    ("model.safetensors", &WEIGHTS.0),
    ("tokenizer.json", include_bytes!("../../../models/tiny/checkpoint/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/tiny/checkpoint/tokenizer_config.json")),
];

/// A static, not a constant: the program holds it once.
static WEIGHTS: &Aligned<[u8]> =
    &Aligned(*include_bytes!("../../../models/tiny/checkpoint/model.safetensors"));

/// Puts its content on a boundary of 64 bytes; by themselves, included bytes may lie anywhere.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);
