//! The run that starts before the tokens that it takes are known to the host.

use mantissa_ops::SequenceRows;

use crate::engine::{BatchParts, Share};
use crate::paging::BlockTable;
use crate::sequence::{Sequence, SequenceId};

/// A run that was started: one row of each of some sequences.
#[derive(Debug)]
pub(crate) struct Ahead {
    rows: Vec<Row>,
}

/// What the row of a sequence depends on.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    sequence: SequenceId,
    position: usize,
    rope_set: usize,
}

impl Row {
    /// The row of a sequence's last token, if that is all there is to run.
    fn next(sequence: &Sequence) -> Option<Row> {
        let row = Row { sequence: sequence.id, position: sequence.cached, rope_set: sequence.rope_set };
        (sequence.pending() == 1).then_some(row)
    }
}

impl Ahead {
    /// The run behind that of a schedule, with one further token of every sequence.
    pub fn behind(sequences: &[(Sequence, BlockTable)], schedule: &[Share]) -> Ahead {
        let row = |share: &Share| {
            let (sequence, _) = &sequences[share.index];
            let position = sequence.cached + share.rows;
            Row { sequence: sequence.id, position, rope_set: sequence.rope_set }
        };
        Ahead { rows: schedule.iter().map(row).collect() }
    }

    /// Rows of the run, each with logits.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The shares of the sequences that the run serves. It has rows of sequences that have ended meanwhile, which no one needs;
    /// others that are not in it have to wait. Nothing where it serves none, or where one is not as was foreseen.
    pub fn shares(&self, sequences: &[(Sequence, BlockTable)]) -> Option<Vec<Share>> {
        let mut shares = Vec::new();
        for (output, row) in self.rows.iter().enumerate() {
            let found = sequences.iter().position(|(sequence, _)| sequence.id == row.sequence);
            let Some(index) = found else { continue };
            if Row::next(&sequences[index].0).as_ref() != Some(row) {
                return None;
            }
            shares.push(Share { index, rows: 1, output: Some(output) });
        }
        (!shares.is_empty()).then_some(shares)
    }
}

/// The batch of that run. Its tokens are not known yet: zeros stand in their place.
pub(crate) fn parts<'a>(sequences: &'a [(Sequence, BlockTable)], schedule: &[Share]) -> BatchParts<'a> {
    let mut parts = BatchParts::default();
    for (row, share) in schedule.iter().enumerate() {
        let (sequence, table) = &sequences[share.index];
        parts.tokens.push(0);
        parts.positions.push((sequence.cached + share.rows) as u32);
        let rows = row..row + 1;
        parts.sequences.push(SequenceRows { rows, block_table: table.pages(), rope_set: sequence.rope_set });
        parts.outputs.push(row as u32);
    }
    parts
}
