//! Decoding: sequences that generate together, timed in windows of so many tokens each.

use std::time::Instant;

use mantissa::engine::sequence::EndOfText;
use mantissa::ops::cost::{RunShape, SequenceShape};
use mantissa::ops::{CeilingError, Ceilings};
use mantissa::{Flow, GenerateOptions, Generator, Piece, Prompt, Timings};

use crate::LabError;

/// Tokens of each sequence that are not timed.
const WARM_UP: usize = 4;

/// What is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decode {
    /// Tokens that each sequence generates in a window.
    pub tokens: usize,
    /// Tokens of context before the first.
    pub after: usize,
    /// Sequences that generate together.
    pub sequences: usize,
    /// Windows, one after the other.
    pub repetitions: usize,
}

/// One repetition.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// From the token before its first to its last.
    pub seconds: f64,
    /// Bytes per second of streaming reads around it.
    pub read: f64,
    /// Tokens of each sequence when it began.
    pub contexts: Vec<usize>,
}

impl Window {
    /// The shapes of its steps.
    pub fn shapes(&self, tokens: usize) -> impl Iterator<Item = RunShape> {
        (0..tokens).map(|step| RunShape {
            sequences: self
                .contexts
                .iter()
                .map(|context| SequenceShape { rows: 1, context: context + step })
                .collect(),
            outputs: self.contexts.len(),
        })
    }
}

/// Tokens of prompts that every backend runs together.
const LEAST_PROMPT_ROWS: usize = 512;

impl Decode {
    /// The shape of a step at a context of so many tokens, the new one included.
    pub fn shape(&self, context: usize) -> RunShape {
        RunShape {
            sequences: vec![SequenceShape { rows: 1, context }; self.sequences],
            outputs: self.sequences,
        }
    }

    /// Whether it begins with a prompt of so many tokens that is computed alone.
    pub fn begins_with(&self, prompt: usize) -> bool {
        self.sequences == 1 && self.after == prompt
    }

    /// The longest context that a sequence reaches.
    pub fn context(&self) -> usize {
        self.after + self.generated()
    }

    /// Tokens that the first sequence generates, until the last one has generated those that are timed.
    fn generated(&self) -> usize {
        self.stagger() + 1 + WARM_UP + (1 + self.tokens) * self.repetitions
    }

    /// Steps at most from the first sequence's first token to the last one's: prompts wait for room in a batch, and every
    /// sequence that has begun takes one of its rows.
    fn stagger(&self) -> usize {
        let rows = LEAST_PROMPT_ROWS.max(self.sequences);
        (1..self.sequences).map(|begun| self.after.div_ceil(rows - begun)).sum()
    }

    /// Decodes, and reads memory before and after each window: bandwidth drifts on shared machines, so that each window is
    /// held against its own. A window begins with the arrival of a token, not with the end of the reading: a device may
    /// have computed the next one meanwhile. `prompt` gives the tokens of a sequence, by its number and length. Returns the
    /// windows, and the timings of the first sequence's prompt.
    ///
    /// # Errors
    /// Where the generation or the reading of memory fails, or ends before all windows were measured.
    pub fn measure(
        &self,
        generator: &mut Generator,
        prompt: impl Fn(usize, usize) -> Vec<u32>,
        ceilings: &dyn Ceilings,
    ) -> Result<(Vec<Window>, Timings), LabError> {
        let prompts: Vec<Prompt> =
            (0..self.sequences).map(|sequence| Prompt::Ids(prompt(sequence, self.after))).collect();
        let options = GenerateOptions {
            max_tokens: self.generated(),
            end_of_text: EndOfText::Ignore,
            ..GenerateOptions::default().greedy()
        };
        let mut meter = Meter::new(*self, ceilings);
        let done = generator.generate_batch(&prompts, &options, |piece| meter.take(&piece))?;
        if let Some(error) = meter.failed {
            return Err(error.into());
        }
        if meter.windows.len() < self.repetitions {
            let (measured, wanted) = (meter.windows.len(), self.repetitions);
            return Err(LabError::Unfinished { what: "decode", measured, wanted });
        }
        let prompt = done.first().map(|completion| completion.timings).unwrap_or_default();
        Ok((meter.windows, prompt))
    }
}

/// Watches a generation.
struct Meter<'a> {
    decode: Decode,
    ceilings: &'a dyn Ceilings,
    /// Tokens of each sequence.
    contexts: Vec<usize>,
    /// Sequences that have not begun.
    waiting: usize,
    /// Tokens to come before something happens.
    left: usize,
    phase: Phase,
    windows: Vec<Window>,
    failed: Option<CeilingError>,
}

/// What the tokens to come are for.
enum Phase {
    WarmUp,
    /// To see that everybody runs again after memory was read, at this bandwidth.
    Settle {
        read: f64,
    },
    /// To be timed, from this moment, with these contexts at it.
    Timed {
        read: f64,
        start: Instant,
        contexts: Vec<usize>,
    },
}

impl Meter<'_> {
    fn new(decode: Decode, ceilings: &dyn Ceilings) -> Meter<'_> {
        Meter {
            decode,
            ceilings,
            contexts: vec![decode.after; decode.sequences],
            waiting: decode.sequences,
            left: WARM_UP * decode.sequences,
            phase: Phase::WarmUp,
            windows: Vec::new(),
            failed: None,
        }
    }

    /// Takes a token. Windows begin and end when every sequence has its next one.
    fn take(&mut self, piece: &Piece<'_>) -> Flow {
        if piece.token.is_none() {
            return Flow::Continue;
        }
        let now = Instant::now();
        let context = &mut self.contexts[piece.prompt];
        *context += 1;
        if self.waiting > 0 {
            self.waiting -= usize::from(*context == self.decode.after + 1);
            return Flow::Continue;
        }
        self.left -= 1;
        if self.left > 0 {
            return Flow::Continue;
        }
        match self.turn(now) {
            Ok(()) if self.windows.len() < self.decode.repetitions => Flow::Continue,
            Ok(()) => Flow::Cancel,
            Err(error) => {
                self.failed = Some(error);
                Flow::Cancel
            }
        }
    }

    /// Ends a phase, and begins the next.
    fn turn(&mut self, now: Instant) -> Result<(), CeilingError> {
        let Decode { tokens, sequences, .. } = self.decode;
        self.phase = match std::mem::replace(&mut self.phase, Phase::WarmUp) {
            Phase::WarmUp => Phase::Settle { read: self.ceilings.read()? },
            Phase::Settle { read } => Phase::Timed { read, start: now, contexts: self.contexts.clone() },
            Phase::Timed { read: before, start, contexts } => {
                let seconds = now.duration_since(start).as_secs_f64();
                let read = self.ceilings.read()?;
                self.windows.push(Window { seconds, read: f64::midpoint(before, read), contexts });
                Phase::Settle { read }
            }
        };
        let steps = if matches!(self.phase, Phase::Timed { .. }) { tokens } else { 1 };
        self.left = steps * sequences;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads faster each time.
    struct Faster(std::cell::Cell<f64>);

    impl Ceilings for Faster {
        fn read(&self) -> Result<f64, CeilingError> {
            self.0.set(self.0.get() + 10.0);
            Ok(self.0.get())
        }

        fn multiply(&self, unit: mantissa::ops::ceilings::Unit) -> Result<f64, CeilingError> {
            Err(CeilingError::Unit { backend: "test".to_owned(), unit })
        }
    }

    #[test]
    fn windows_begin_when_all_sequences_have_begun() {
        let decode = Decode { tokens: 3, after: 10, sequences: 2, repetitions: 2 };
        let ceilings = Faster(std::cell::Cell::new(0.0));
        let mut meter = Meter::new(decode, &ceilings);
        let mut take = |prompt, token| meter.take(&Piece { prompt, token, text: "" });
        // A chunk of a prompt, then one sequence alone, then both: as the second begins, the first has three tokens.
        assert_eq!(take(0, None), Flow::Continue);
        for prompt in [0, 0, 0, 1] {
            assert_eq!(take(prompt, Some(7)), Flow::Continue);
        }
        let mut taken = 0;
        while take(taken % 2, Some(7)) == Flow::Continue {
            taken += 1;
        }
        assert_eq!(taken + 1, 2 * (WARM_UP + 2 * (1 + 3)));
        let contexts: Vec<&[usize]> = meter.windows.iter().map(|window| &window.contexts[..]).collect();
        assert_eq!(contexts, [[14 + WARM_UP, 12 + WARM_UP], [18 + WARM_UP, 16 + WARM_UP]]);
        let reads: Vec<f64> = meter.windows.iter().map(|window| window.read).collect();
        assert_eq!(reads, [15.0, 25.0]);
        let shapes: Vec<RunShape> = meter.windows[0].shapes(3).collect();
        assert_eq!(shapes.len(), 3);
        assert_eq!(shapes[2].sequences[1], SequenceShape { rows: 1, context: 14 + WARM_UP });
    }

    #[test]
    fn contexts_have_room_for_what_the_first_sequence_generates_while_others_wait() {
        let decode = |after, sequences| Decode { tokens: 8, after, sequences, repetitions: 5 };
        assert_eq!(decode(100, 1).context(), 100 + 1 + WARM_UP + 45);
        // The second prompt needs two batches of 511 rows.
        assert_eq!(decode(1000, 2).context(), 1000 + 2 + 1 + WARM_UP + 45);
    }
}
