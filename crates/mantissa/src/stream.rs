//! Text of tokens that arrive one by one, up to a stop string.

use mantissa_engine::stop::StopMatcher;
use mantissa_model::tokenizer::{DecodeSpecial, DecodeStream, Tokenizer};

use crate::error::Error;

/// Incremental detokenization with stop strings; special tokens are left out.
pub(crate) struct TextStream<'t> {
    decode: DecodeStream<'t>,
    stop: StopMatcher,
}

/// Whether a stop string was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    No,
    Yes,
}

impl<'t> TextStream<'t> {
    pub fn new(tokenizer: &'t Tokenizer, stop: &[String]) -> Result<TextStream<'t>, Error> {
        let decode = tokenizer.decode_stream(DecodeSpecial::Skip);
        Ok(TextStream { decode, stop: StopMatcher::new(stop.to_vec())? })
    }

    /// Takes a token and returns the text that is certain now.
    pub fn push(&mut self, token: u32) -> Result<(String, Stopped), Error> {
        let piece = self.decode.push(token)?;
        Ok(matched(&mut self.stop, &piece))
    }

    /// Returns what was held back, because nothing follows.
    pub fn finish(mut self) -> Result<(String, Stopped), Error> {
        let piece = self.decode.finish()?;
        let (mut text, stopped) = matched(&mut self.stop, &piece);
        text.push_str(&self.stop.finish());
        Ok((text, stopped))
    }
}

fn matched(stop: &mut StopMatcher, piece: &str) -> (String, Stopped) {
    let outcome = stop.push(piece);
    (outcome.emit, if outcome.matched.is_some() { Stopped::Yes } else { Stopped::No })
}
