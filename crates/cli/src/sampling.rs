//! Sampling options of `run` and `chat`.

use clap::Args;
use mantissa::engine::sampling::SamplingOptions;

/// How tokens are chosen; what is not given is as the checkpoint's generation_config.json recommends.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Choosing tokens")]
pub struct SamplingArgs {
    /// Take the most probable token each time
    #[arg(long, conflicts_with = "temperature")]
    pub greedy: bool,

    /// Divide the logits by this: 1, the default, leaves them; less is more predictable, 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,

    /// Choose among the K most probable tokens; 0 for all
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,

    /// Choose among the fewest tokens whose probabilities reach P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Drop tokens less probable than P times the most probable one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Divide the logits of tokens that occurred by this; 1 for none
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,

    /// Subtract this from the logits of tokens that were generated
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,

    /// Subtract this from the logits of generated tokens, once for each time
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,

    /// Seed of the random draws, for the same answer again
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// As the library takes them.
    pub fn options(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: if self.greedy { Some(0.0) } else { self.temperature },
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..SamplingOptions::default()
        }
    }
}
