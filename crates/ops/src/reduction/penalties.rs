//! Penalties on tokens that occurred before.

/// A token of a sequence's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The token.
    pub token: u32,
    /// How often it was generated; 0 where the prompt alone holds it.
    pub generated: u32,
}

/// Repetition, frequency and presence penalties, and whom they meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties<'a> {
    /// Divides positive and multiplies negative logits of all tokens seen; finite, above 0.
    pub repetition: f32,
    /// Subtracted once for each time that a token was generated; finite.
    pub frequency: f32,
    /// Subtracted from tokens that were generated; finite.
    pub presence: f32,
    /// The tokens, each once.
    pub seen: &'a [Seen],
}

impl Penalties<'_> {
    /// Replaces the logits of the tokens seen, in f32, and notes in `before` what they were. A finite logit stays finite.
    pub fn apply(&self, logits: &mut [f32], before: &mut Vec<f32>) {
        before.clear();
        for &Seen { token, generated } in self.seen {
            let logit = &mut logits[token as usize];
            before.push(*logit);
            *logit = self.penalise(*logit, generated);
        }
    }

    fn penalise(&self, logit: f32, generated: u32) -> f32 {
        // Minus infinity says "never", and no negative penalty may change that.
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let mut penalised = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        if generated > 0 {
            penalised -= self.frequency * generated as f32;
            penalised -= self.presence;
        }
        // An extreme repetition penalty may leave the range of f32.
        penalised.clamp(f32::MIN, f32::MAX)
    }
}
