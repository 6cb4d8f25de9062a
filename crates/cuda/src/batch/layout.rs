//! Where the parts of a batch lie, and their words.

use mantissa_ops::batch::{Batch, Limits};

use crate::families::attention::{SPAN, Work};
use crate::families::batch::Sequence;
use crate::families::tiles::Tile;

pub(super) const WORD: usize = size_of::<u32>();
/// Words that parts are aligned to: a pack.
pub(super) const ALIGN: usize = 4;

/// How much there is in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    rows: usize,
    outputs: usize,
    sequences: usize,
    /// Of all block tables.
    pages: usize,
}

impl Extent {
    /// The most that a session's batches have.
    fn most(limits: &Limits) -> Extent {
        let Limits { rows, outputs, sequences, .. } = *limits;
        let pages = Limits::pages_for(limits.page_size, limits.context).saturating_mul(sequences);
        Extent { rows, outputs, sequences, pages }
    }

    /// What a batch has beside its pages, whose table ends with them.
    pub fn of(batch: &Batch<'_>) -> Extent {
        let (outputs, sequences) = (batch.outputs.len(), batch.sequences.len());
        Extent { rows: batch.rows(), outputs, sequences, pages: 0 }
    }
}

/// How long the lists of one kind of attention are, for some of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lists {
    rows: usize,
    tiles: usize,
}

impl Lists {
    /// Longer ones there are not.
    fn most(limits: &Limits) -> Lists {
        Lists { rows: limits.rows, tiles: limits.rows }
    }

    pub fn of(work: &Work) -> Lists {
        Lists { rows: work.rows.len(), tiles: work.tiles.len() }
    }
}

/// Where parts start, in words. It grows with every number of an extent and of lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub tokens: usize,
    pub positions: usize,
    pub row_sequence: usize,
    pub outputs: usize,
    pub sequences: usize,
    /// Rows on their own and tiles, for each kind of attention: those of all rows, then those of the wanted ones.
    pub work: Vec<[(usize, usize); 2]>,
    pub block_tables: usize,
    pub end: usize,
}

impl Layout {
    pub fn new(extent: Extent, lists: impl Iterator<Item = [Lists; 2]>) -> Layout {
        let mut next = 0_usize;
        let mut take = |words: usize| {
            let start = next;
            next = next.saturating_add(words).min(usize::MAX - (ALIGN - 1)).next_multiple_of(ALIGN);
            start
        };
        let [tokens, positions, row_sequence] = [(); 3].map(|()| take(extent.rows));
        let outputs = take(extent.outputs);
        let sequences = take(extent.sequences.saturating_mul(size_of::<Sequence>() / WORD));
        let tile = size_of::<Tile>() / WORD;
        let mut place = |Lists { rows, tiles }: Lists| (take(rows), take(tiles.saturating_mul(tile)));
        let work = lists.map(|parts| parts.map(&mut place)).collect();
        let block_tables = take(extent.pages);
        Layout { tokens, positions, row_sequence, outputs, sequences, work, block_tables, end: next }
    }

    /// That of the most that a session's batches have.
    pub fn most(limits: &Limits, kinds: usize) -> Layout {
        Layout::new(Extent::most(limits), std::iter::repeat_n([Lists::most(limits); 2], kinds))
    }
}

/// The words that a batch of so many sequences has at most, none of which has more spans of positions; that is not known of
/// those whose rows are all in tiles.
pub(super) fn most_words(
    layout: &Layout,
    sequences: usize,
    span_bucket: Option<usize>,
    page_size: usize,
) -> usize {
    match span_bucket {
        None | Some(0) => usize::MAX,
        Some(spans) => {
            let pages = Limits::pages_for(page_size, spans.saturating_mul(SPAN)).saturating_mul(sequences);
            (layout.block_tables + pages).next_multiple_of(ALIGN)
        }
    }
}

/// What a layout is filled from beside the batch.
pub(super) struct Parts<'a> {
    pub page_size: usize,
    pub work: &'a [[Work; 2]],
}

/// Writes all parts and returns the number of words used.
pub(super) fn fill(words: &mut [u32], layout: &Layout, batch: &Batch<'_>, parts: Parts<'_>) -> usize {
    let mut put = |start: usize, values: &[u32]| words[start..start + values.len()].copy_from_slice(values);
    put(layout.tokens, batch.tokens);
    put(layout.positions, batch.positions);
    put(layout.outputs, batch.outputs);
    for ((rows, tiles), work) in layout.work.iter().flatten().zip(parts.work.iter().flatten()) {
        put(*rows, &work.rows);
        put(*tiles, bytemuck::cast_slice(&work.tiles));
    }
    let mut next = 0;
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let last = batch.positions[sequence.rows.end - 1] as usize;
        let pages = Limits::pages_for(parts.page_size, last + 1).min(sequence.block_table.len());
        put(layout.block_tables + next, &sequence.block_table[..pages]);
        let described = Sequence {
            first_row: sequence.rows.start as u32,
            end_row: sequence.rows.end as u32,
            rope_set: sequence.rope_set as u32,
            block_table: next as u32,
        };
        let size = size_of::<Sequence>() / WORD;
        put(layout.sequences + index * size, bytemuck::cast_slice(&[described]));
        next += pages;
    }
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let rows = &mut words[layout.row_sequence..][sequence.rows.clone()];
        rows.fill(index as u32);
    }
    layout.block_tables + next
}

#[cfg(test)]
mod tests {
    use mantissa_ops::SequenceRows;

    use super::*;

    #[test]
    fn parts_lie_where_the_layout_says() {
        let limits = Limits { rows: 6, outputs: 2, sequences: 3, pages: 9, page_size: 16, context: 64 };
        let layout = Layout::most(&limits, 1);
        let starts = [
            layout.tokens,
            layout.positions,
            layout.row_sequence,
            layout.outputs,
            layout.sequences,
            layout.work[0][0].0,
            layout.work[0][0].1,
            layout.work[0][1].0,
            layout.work[0][1].1,
            layout.block_tables,
            layout.end,
        ];
        assert_eq!(starts, [0, 8, 16, 24, 28, 40, 48, 60, 68, 80, 92]);

        let sequences = [
            SequenceRows { rows: 0..3, block_table: &[7, 8, 6, 5], rope_set: 1 },
            SequenceRows { rows: 3..4, block_table: &[2, 3], rope_set: 0 },
        ];
        let batch = Batch {
            tokens: &[11, 12, 13, 14],
            positions: &[15, 16, 17, 0],
            sequences: &sequences,
            outputs: &[2, 3],
        };
        let all = Work {
            rows: vec![3],
            tiles: vec![Tile { first_row: 0, tokens: 3 }],
            span_bucket: 1,
            ..Work::default()
        };
        let wanted = Work { rows: vec![2, 3], ..Work::default() };
        let lists = [&all, &wanted].map(Lists::of);
        let smaller = Layout::new(Extent::of(&batch), [lists].into_iter());
        assert_eq!((smaller.positions, smaller.outputs, smaller.block_tables), (4, 12, 36));
        let mut words = vec![99; layout.end];
        let used = fill(&mut words, &layout, &batch, Parts { page_size: 16, work: &[[all, wanted]] });
        // Positions up to 17 need two pages of the first sequence; the second needs one.
        assert_eq!(used, layout.block_tables + 3);
        // A span has up to four.
        assert_eq!(most_words(&layout, 2, Some(1), 16), layout.block_tables + 8);
        assert_eq!(most_words(&layout, 1, Some(1), 48), layout.block_tables + 4);
        // Else all that there is room for.
        assert_eq!([None, Some(0)].map(|spans| most_words(&layout, 2, spans, 16)), [usize::MAX; 2]);
        let at = |start: usize, length: usize| words[start..start + length].to_vec();
        assert_eq!(at(layout.tokens, 5), [11, 12, 13, 14, 99]);
        assert_eq!(at(layout.positions, 4), [15, 16, 17, 0]);
        assert_eq!(at(layout.row_sequence, 4), [0, 0, 0, 1]);
        assert_eq!(at(layout.outputs, 2), [2, 3]);
        assert_eq!(at(layout.sequences, 8), [0, 3, 1, 0, 3, 4, 0, 2]);
        assert_eq!(at(layout.work[0][0].0, 1), [3]);
        assert_eq!(at(layout.work[0][0].1, 2), [0, 3]);
        assert_eq!(at(layout.work[0][1].0, 2), [2, 3]);
        assert_eq!(at(layout.block_tables, 3), [7, 8, 2]);
    }
}
