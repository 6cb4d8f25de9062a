//! Sets a policy and prints what a model generates as it comes. Without arguments, it is the built-in model.
//!
//! `cargo run --release --example generate`
//!
//! `cargo run --release --example generate -- f16 "Tokens are numbers" fixtures/models/llama`

use std::error::Error;
use std::io::{Write, stdout};

use mantissa::{GenerateOptions, Model, Options};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let policy = arguments.next().unwrap_or("bf16".to_owned());
    let prompt = arguments.next().unwrap_or("Once upon a time".to_owned());
    let model = match arguments.next() {
        Some(path) => Model::open(path)?,
        None => Model::built_in()?,
    };
    let options = Options { policy: Some(policy.parse()?), ..Options::default() };
    let mut generator = model.prepare(&options)?;
    let done = generator.generate(prompt, &GenerateOptions::default().max_tokens(48), |piece| {
        print!("{piece}");
        // A failure here shows again in the next line that is printed.
        let _ = stdout().flush();
    })?;
    println!("\n{} tokens at {:.1} tokens/s", done.ids.len(), done.timings.decode_rate().unwrap_or(0.0));
    Ok(())
}
