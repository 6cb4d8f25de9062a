//! The run that starts before the tokens that it takes are known to the host.

use mantissa_ops::SequenceRows;

use crate::engine::{BatchParts, Share};
use crate::paging::BlockTable;
use crate::sequence::{Sequence, SequenceId};

/// Sequences with which a step may start the next run. One that ends unforeseen has started a run in vain, which costs
/// more the more there are, while what is gained, the host's time between two tokens, becomes a smaller part.
pub(crate) const MOST_SEQUENCES: usize = 8;

/// What a run that was started depends on: it serves a step only if all of it is as it was foreseen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    rows: Vec<Row>,
}

/// The rows of one sequence.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    sequence: SequenceId,
    first: usize,
    count: usize,
    samples: Samples,
    rope_set: usize,
}

/// Whether logits are wanted of a sequence's last row.
#[derive(Debug, PartialEq, Eq)]
enum Samples {
    Yes,
    No,
}

impl Ahead {
    /// The run of a schedule.
    pub fn of(sequences: &[(Sequence, BlockTable)], schedule: &[Share]) -> Ahead {
        let row = |share: &Share| {
            let (sequence, _) = &sequences[share.index];
            Row {
                sequence: sequence.id,
                first: sequence.cached,
                count: share.rows,
                samples: if share.samples { Samples::Yes } else { Samples::No },
                rope_set: sequence.rope_set,
            }
        };
        Ahead { rows: schedule.iter().map(row).collect() }
    }

    /// The run behind that of a schedule, with one further token of every sequence.
    pub fn behind(sequences: &[(Sequence, BlockTable)], schedule: &[Share]) -> Ahead {
        let mut ahead = Ahead::of(sequences, schedule);
        for row in &mut ahead.rows {
            row.first += row.count;
            row.count = 1;
        }
        ahead
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
