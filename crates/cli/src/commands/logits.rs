//! `mantissa logits`: logits and hidden states of given tokens, for other programs to compare.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use mantissa::LogitRows;
use mantissa::engine::score::{Hidden, Scores};
use safetensors::tensor::{Dtype, TensorView};

use crate::context::Context;
use crate::ids::IdsArgs;
use crate::model::{self, ModelArgs};
use crate::output;

/// Arguments of `mantissa logits`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mantissa logits ./Qwen2.5-0.5B --ids 9707,11,1879 --policy f32 --output logits.safetensors

The file holds `logits`, f32 [tokens, vocabulary], and with --hidden also `hidden`, f32 [layers + 1, tokens, hidden]: the \
residual stream after the embedding and after every layer.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    ids: IdsArgs,

    /// Where to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Write the hidden states, too
    #[arg(long)]
    hidden: bool,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let Some(ids) = args.ids.read()? else {
        bail!("no tokens: give --ids 1,2,3 or --ids-file FILE");
    };
    let model = args.model.open()?;
    let options = mantissa::Options {
        context: Some(ids.len().max(1)),
        logits: LogitRows::All,
        overflow: args.model.overflow(),
        ..context.options()?
    };
    let mut generator = model::prepare(&model, &options, context)?;
    let hidden = if args.hidden { Hidden::Keep } else { Hidden::Skip };
    let scores = generator.score(&ids, hidden)?;
    let bytes = serialize(&scores, ids.len(), generator.plan().program.hidden.len(), hidden)?;
    output::write_atomically(&args.output, |file| Ok(file.write_all(&bytes)?))
}

fn serialize(scores: &Scores, tokens: usize, points: usize, hidden: Hidden) -> Result<Vec<u8>> {
    let vocabulary = scores.logits.len() / tokens;
    let logits = bytemuck::cast_slice(&scores.logits);
    let states = bytemuck::cast_slice(&scores.hidden);
    let mut tensors = BTreeMap::new();
    tensors.insert("logits", TensorView::new(Dtype::F32, vec![tokens, vocabulary], logits)?);
    if hidden == Hidden::Keep {
        let shape = vec![points, tokens, scores.hidden_size];
        tensors.insert("hidden", TensorView::new(Dtype::F32, shape, states)?);
    }
    safetensors::serialize(tensors, None).context("cannot write the tensors as safetensors")
}
