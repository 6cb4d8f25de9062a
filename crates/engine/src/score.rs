//! Logits and hidden states of a given token sequence, all positions.

use mantissa_ops::{Plan, SequenceRows, StepObserver, ValueReader};

use crate::engine::{BatchParts, Engine, EngineError};
use crate::probe::first_non_finite;

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

impl Engine {
    /// Runs a token sequence from its start and returns the logits of every position.
    ///
    /// The engine needs to be prepared with `outputs` equal to its chunk; other sequences end.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn score(&mut self, tokens: &[u32], hidden: Hidden) -> Result<Scores, EngineError> {
        self.check_prompt(tokens, 0)?;
        let plan = self.plan().clone();
        let points = &plan.program.hidden;
        let hidden_size = points.first().map_or(0, |point| plan.program.value(point.value).width);
        let layers = match hidden {
            Hidden::Skip => 0,
            Hidden::Keep => points.len(),
        };
        let mut scores = Scores {
            logits: Vec::with_capacity(tokens.len() * self.vocabulary()),
            hidden: vec![0.0; layers * tokens.len() * hidden_size],
            hidden_size,
        };
        let rope_set = plan.program.rope.as_ref().map_or(0, |rope| rope.set_for(tokens.len()));
        let (session, allocator) = self.idle_session()?;
        let chunk = session.limits().rows.min(session.limits().outputs);
        let mut table = allocator.table();
        for start in (0..tokens.len()).step_by(chunk) {
            let end = (start + chunk).min(tokens.len());
            allocator.append(&mut table, end - start)?;
            let parts = BatchParts {
                tokens: tokens[start..end].to_vec(),
                positions: (start as u32..end as u32).collect(),
                sequences: vec![SequenceRows { rows: 0..end - start, block_table: table.pages(), rope_set }],
                outputs: (0..(end - start) as u32).collect(),
            };
            let batch = parts.batch();
            match hidden {
                Hidden::Skip => session.run(&batch)?,
                Hidden::Keep => {
                    let mut keeper = Keeper {
                        plan: &plan,
                        start,
                        rows: end - start,
                        total: tokens.len(),
                        scores: &mut scores,
                    };
                    session.run_observed(&batch, &mut keeper)?;
                }
            }
            if session.logits().iter().any(|logit| !logit.is_finite())
                && let Some(found) = first_non_finite(session, &batch)?
            {
                allocator.release(table)?;
                return Err(EngineError::NonFinite(found));
            }
            scores.logits.extend_from_slice(session.logits());
        }
        allocator.release(table)?;
        Ok(scores)
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
