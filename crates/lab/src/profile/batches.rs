//! The batches of a workload, as the engine would form them.

use std::ops::Range;

use mantissa::ops::cost::{RunShape, SequenceShape};
use mantissa::ops::{Batch, Limits, Plan, SequenceRows};

use super::Workload;

/// Where each sequence's keys and values lie, and how it rotates.
pub(super) struct Places {
    tables: Vec<Vec<u32>>,
    rope_set: usize,
}

impl Places {
    /// Pages one after the other for sequences of a workload.
    pub fn new(workload: &Workload, limits: &Limits, plan: &Plan) -> Places {
        let context = workload.context();
        let pages = Limits::pages_for(limits.page_size, context);
        let table = |sequence: usize| (0..pages).map(|page| (sequence * pages + page) as u32).collect();
        let rope_set = plan.program.rope.as_ref().map_or(0, |rope| rope.set_for(context));
        Places { tables: (0..workload.sequences).map(table).collect(), rope_set }
    }
}

/// Rows of one sequence in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    sequence: usize,
    rows: Range<usize>,
}

/// One batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    shares: Vec<Share>,
    outputs: Vec<u32>,
}

impl Run {
    /// Rows whose logits are wanted.
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Its shape.
    pub fn shape(&self) -> RunShape {
        let of = |share: &Share| {
            let context = self.positions[share.rows.end - 1] as usize + 1;
            SequenceShape { rows: share.rows.len(), context }
        };
        RunShape { sequences: self.shares.iter().map(of).collect(), outputs: self.outputs() }
    }

    /// The rows of its sequences, to make a [`Batch`] of.
    pub fn sequences<'a>(&self, places: &'a Places) -> Vec<SequenceRows<'a>> {
        let rows = |share: &Share| SequenceRows {
            rows: share.rows.clone(),
            block_table: &places.tables[share.sequence],
            rope_set: places.rope_set,
        };
        self.shares.iter().map(rows).collect()
    }

    /// The batch.
    pub fn batch<'a>(&'a self, sequences: &'a [SequenceRows<'a>]) -> Batch<'a> {
        Batch { tokens: &self.tokens, positions: &self.positions, sequences, outputs: &self.outputs }
    }

    /// Whether it is one further token of each sequence of the run before it.
    pub fn follows(&self, before: &Run) -> bool {
        let last = |share: &Share| (share.sequence, before.positions[share.rows.end - 1] + 1);
        let own = |share: &Share| (share.sequence, self.positions[share.rows.start]);
        self.tokens.len() == self.shares.len()
            && before.outputs() == before.shares.len()
            && self.shares.iter().map(own).eq(before.shares.iter().map(last))
    }

    /// Further rows of a sequence, from a position on.
    fn take(&mut self, sequence: usize, tokens: &[u32], position: usize) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|position| position as u32));
        self.shares.push(Share { sequence, rows: start..start + tokens.len() });
    }

    /// Wants the logits of the last row.
    fn want_last(&mut self) {
        self.outputs.push((self.tokens.len() - 1) as u32);
    }
}

/// The batches of prompts: as many rows in each as the session takes, in the order of the sequences, as the engine runs
/// prompts that arrive together.
pub(super) fn prefill(prompts: &[Vec<u32>], limits: &Limits) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut run = Run::default();
    for (sequence, prompt) in prompts.iter().enumerate() {
        let mut done = 0;
        while done < prompt.len() {
            let rows = (limits.rows - run.tokens.len()).min(prompt.len() - done);
            run.take(sequence, &prompt[done..done + rows], done);
            done += rows;
            if done == prompt.len() {
                run.want_last();
            }
            if run.tokens.len() == limits.rows {
                runs.push(std::mem::take(&mut run));
            }
        }
    }
    if !run.tokens.is_empty() {
        runs.push(run);
    }
    runs
}

/// The batch of one further token of each sequence.
pub(super) fn decode(tokens: &[u32], position: usize) -> Run {
    let mut run = Run::default();
    for (sequence, &token) in tokens.iter().enumerate() {
        run.take(sequence, &[token], position);
        run.want_last();
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rows: 8, outputs: 3, sequences: 3, pages: 6, page_size: 16, context: 32 };

    #[test]
    fn prompts_fill_batches_and_want_the_logits_of_their_last_rows() {
        let prompts = [vec![1; 5], vec![2; 10], vec![3; 5]];
        let runs = prefill(&prompts, &LIMITS);
        let shapes: Vec<Vec<(usize, usize)>> = runs
            .iter()
            .map(|run| run.shape().sequences.iter().map(|shape| (shape.rows, shape.context)).collect())
            .collect();
        assert_eq!(shapes, [vec![(5, 5), (3, 3)], vec![(7, 10), (1, 1)], vec![(4, 5)]]);
        let outputs: Vec<&[u32]> = runs.iter().map(|run| &run.outputs[..]).collect();
        assert_eq!(outputs, [&[4][..], &[6], &[3]]);
        assert_eq!(runs[1].positions, [3, 4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(runs[1].shares, [Share { sequence: 1, rows: 0..7 }, Share { sequence: 2, rows: 7..8 }]);
    }

    #[test]
    fn a_further_token_of_each_sequence() {
        let run = decode(&[7, 8], 20);
        assert_eq!((&run.tokens, &run.positions, &run.outputs), (&vec![7, 8], &vec![20, 20], &vec![0, 1]));
        assert!(decode(&[1, 2], 21).follows(&run));
        assert!(!decode(&[1, 2], 22).follows(&run));
        assert!(!decode(&[1], 21).follows(&run));
        assert!(!prefill(&[vec![1; 5], vec![2; 10]], &LIMITS)[1].follows(&run));
    }
}
