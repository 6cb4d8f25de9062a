//! The tokens that a model is run over where no text is given.

use mantissa::{Model, Prompt};

use crate::LabError;
use crate::prompts::random_ids;

/// Plain prose, so that activations are those of ordinary use.
const PASSAGE: &str = "\
The river had been rising since the early morning, and by noon the lower road was under water. An old man stood at the
window of the mill and watched the branches go by. He had seen two floods in his life, one as a boy and one in the year
his daughter was born, and he knew what the brown colour meant. It had rained in the hills, and what fell there in the
night would be here before the evening. \"We should take the flour upstairs,\" he said. Nobody answered, for the others
had gone out to look at the bridge. So he tied his sleeves, took the first sack on his shoulder and began to climb, slowly,
counting the steps as he had always done. There were seventeen of them, and at the ninth he rested. Through the small
window he could see the church, the three poplars, and behind them the long grey line of the dike. When he came down
again the dog was lying across the door, and the floor was dark where the first water had come in.";

/// Which tokens were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// A text of the user's.
    Text,
    /// The passage of this crate.
    Passage,
    /// Random ones: the model has no tokenizer, or the passage is too short.
    Random,
}

/// The first `count` tokens of a text, of the built-in passage where there is none, or random ones.
///
/// # Errors
/// Where a text is given, and the model has no tokenizer or the text too few tokens.
pub fn tokens(model: &Model, text: Option<&str>, count: usize) -> Result<(Vec<u32>, TokenSource), LabError> {
    let encode = |text: &str| model.encode(&Prompt::Text(text.to_owned()));
    if let Some(text) = text {
        let mut ids = encode(text)?;
        if ids.len() < count {
            return Err(LabError::ShortText { tokens: ids.len(), wanted: count });
        }
        ids.truncate(count);
        return Ok((ids, TokenSource::Text));
    }
    if model.tokenizer()?.is_some() {
        let mut ids = encode(PASSAGE)?;
        if ids.len() >= count {
            ids.truncate(count);
            return Ok((ids, TokenSource::Passage));
        }
    }
    Ok((random_ids(model.config().vocab_size, count, 0), TokenSource::Random))
}
