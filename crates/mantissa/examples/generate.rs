//! Loads a model, sets a policy, and prints what it generates as it comes.
//!
//! `cargo run --release --example generate -- fixtures/models/llama f16 "Tokens are numbers"`

use std::error::Error;
use std::io::{Write, stdout};

use mantissa::{GenerateOptions, Model, Options};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, policy, prompt] = arguments.as_slice() else {
        return Err("give a model, a policy and a prompt".into());
    };
    let model = Model::open(model)?;
    let options = Options { policy: Some(policy.parse()?), ..Options::default() };
    let mut generator = model.prepare(&options)?;
    let done = generator.generate(prompt.as_str(), &GenerateOptions::default().max_tokens(48), |piece| {
        print!("{piece}");
        // A failure here shows again in the next line that is printed.
        let _ = stdout().flush();
    })?;
    println!("\n{} tokens at {:.1} tokens/s", done.ids.len(), done.timings.decode_rate().unwrap_or(0.0));
    Ok(())
}
