//! Logits and hidden states of a given token sequence, of all positions or some.

use std::ops::Range;

use mantissa_ops::{Plan, SequenceRows, StepObserver, ValueReader};

use crate::engine::{BatchParts, Engine, EngineError};
use crate::paging::BlockTable;
use crate::probe::{NonFinite, first_non_finite};

/// Whether hidden states are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hidden {
    /// Logits only.
    #[default]
    Skip,
    /// The residual stream after the embedding and after every layer.
    Keep,
}

/// Logits of every position, and where asked for the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f32>,
    /// `[layers + 1, tokens, hidden]`, empty where skipped.
    pub hidden: Vec<f32>,
    /// Width of the residual stream.
    pub hidden_size: usize,
}

/// Logits of some consecutive positions; the session's own, not copied.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredRows<'a> {
    /// The positions.
    pub positions: Range<usize>,
    /// `[positions, vocabulary]`.
    pub logits: &'a [f32],
}

/// A token sequence that is run from its start, chunk by chunk, for the logits of some of its positions.
///
/// Its pages of the cache are free again when it is dropped.
pub struct Scoring<'a> {
    engine: &'a mut Engine,
    tokens: &'a [u32],
    /// The positions whose logits are wanted; nothing after them is run.
    wanted: Range<usize>,
    table: BlockTable,
    rope_set: usize,
    /// Tokens run so far.
    done: usize,
}

impl Engine {
    /// Begins to run a token sequence from its start, for the logits of the `wanted` positions; those beyond its end are
    /// left out. Only these pass through the last matrix, as many at once as the engine was prepared to output. Other
    /// sequences end.
    ///
    /// # Errors
    /// Where the sequence is empty, too long or outside the vocabulary.
    pub fn scoring<'a>(
        &'a mut self,
        tokens: &'a [u32],
        wanted: Range<usize>,
    ) -> Result<Scoring<'a>, EngineError> {
        self.check_prompt(tokens, 0)?;
        let rope = self.plan().program.rope.as_ref();
        let rope_set = rope.map_or(0, |rope| rope.set_for(tokens.len()));
        let table = self.idle_session()?.1.table();
        let wanted = wanted.start..wanted.end.min(tokens.len());
        Ok(Scoring { engine: self, tokens, wanted, table, rope_set, done: 0 })
    }

    /// Runs a token sequence from its start and returns the logits of every position.
    ///
    /// The engine needs to be prepared with `outputs` equal to its chunk; other sequences end.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn score(&mut self, tokens: &[u32], hidden: Hidden) -> Result<Scores, EngineError> {
        let plan = self.plan().clone();
        let points = &plan.program.hidden;
        let hidden_size = points.first().map_or(0, |point| plan.program.value(point.value).width);
        let layers = match hidden {
            Hidden::Skip => 0,
            Hidden::Keep => points.len(),
        };
        let vocabulary = self.vocabulary();
        let mut scoring = self.scoring(tokens, 0..tokens.len())?;
        let mut scores = Scores {
            logits: Vec::with_capacity(tokens.len() * vocabulary),
            hidden: vec![0.0; layers * tokens.len() * hidden_size],
            hidden_size,
        };
        while let Some(chunk) = scoring.next_chunk() {
            match hidden {
                Hidden::Skip => scoring.run(chunk, None)?,
                Hidden::Keep => {
                    let (start, rows) = (chunk.start, chunk.len());
                    let mut keeper =
                        Keeper { plan: &plan, start, rows, total: tokens.len(), scores: &mut scores };
                    scoring.run(chunk, Some(&mut keeper))?;
                }
            }
            scores.logits.extend_from_slice(scoring.engine.idle_session()?.0.logits()?);
        }
        Ok(scores)
    }
}

impl Scoring<'_> {
    /// Runs on until there are logits of wanted positions, and gives them; nothing where all have been given.
    ///
    /// # Errors
    /// Where a result is not finite: then the first step that made it so is named.
    pub fn next_rows(&mut self) -> Result<Option<ScoredRows<'_>>, EngineError> {
        while let Some(chunk) = self.next_chunk() {
            let positions = chunk.start.max(self.wanted.start)..chunk.end;
            self.run(chunk, None)?;
            if !positions.is_empty() {
                let logits = self.engine.idle_session()?.0.logits()?;
                return Ok(Some(ScoredRows { positions, logits }));
            }
        }
        Ok(None)
    }

    /// The tokens to run next: as many as fit, with no more wanted positions than can be output at once.
    fn next_chunk(&self) -> Option<Range<usize>> {
        let limits = self.engine.session().limits();
        let outputs = self.done.max(self.wanted.start) + limits.outputs;
        let end = (self.done + limits.rows).min(outputs).min(self.wanted.end);
        (end > self.done).then_some(self.done..end)
    }

    fn run(
        &mut self,
        chunk: Range<usize>,
        observer: Option<&mut dyn StepObserver>,
    ) -> Result<(), EngineError> {
        let (session, allocator) = self.engine.idle_session()?;
        allocator.append(&mut self.table, chunk.len())?;
        let first = chunk.start.max(self.wanted.start).min(chunk.end) - chunk.start;
        let block_table = self.table.pages();
        let parts = BatchParts {
            tokens: self.tokens[chunk.clone()].to_vec(),
            positions: (chunk.start as u32..chunk.end as u32).collect(),
            sequences: vec![SequenceRows { rows: 0..chunk.len(), block_table, rope_set: self.rope_set }],
            outputs: (first as u32..chunk.len() as u32).collect(),
        };
        let batch = parts.batch();
        match observer {
            None => session.run(&batch)?,
            Some(observer) => session.run_observed(&batch, observer)?,
        }
        if session.logits()?.iter().any(|logit| !logit.is_finite()) {
            let found = first_non_finite(session, &batch)?;
            return Err(EngineError::NonFinite(found.unwrap_or_else(NonFinite::vanished)));
        }
        self.done = chunk.end;
        Ok(())
    }
}

impl Drop for Scoring<'_> {
    fn drop(&mut self) {
        if let Ok((_, allocator)) = self.engine.idle_session() {
            // The pages are this allocator's own, which is all that could go wrong.
            let _ = allocator.truncate(&mut self.table, 0);
        }
    }
}

/// Copies the residual stream where it is complete.
struct Keeper<'a> {
    plan: &'a Plan,
    start: usize,
    rows: usize,
    total: usize,
    scores: &'a mut Scores,
}

impl StepObserver for Keeper<'_> {
    fn after_step(&mut self, step: usize, values: &dyn ValueReader) {
        let width = self.scores.hidden_size;
        for (layer, point) in self.plan.program.hidden.iter().enumerate() {
            if point.step == step {
                let numbers = values.read(point.value);
                let at = (layer * self.total + self.start) * width;
                self.scores.hidden[at..at + self.rows * width].copy_from_slice(&numbers[..self.rows * width]);
            }
        }
    }
}
