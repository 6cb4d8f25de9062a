//! A batch on its way to the device: laid out in page-locked memory, from where one kernel brings it.
//!
//! Parts lie close together, in places that follow from the numbers of rows, outputs and sequences, so that kernels find
//! them at the same addresses in every batch of one shape, and a token of one sequence takes few words. Tokens come
//! first, and block tables last.

use mantissa_ops::batch::{Batch, Limits, SequenceRows};
use mantissa_ops::op::Heads;
use mantissa_ops::program::RunRows;
use mantissa_ops::{Op, Program};

use crate::device::{Device, DeviceBuffer, HostBuffer};
use crate::error::CudaError;
use crate::families::attention::{Route, SPAN, Work};
use crate::families::batch::{Args, BatchView, Sequence};
use crate::families::tiles::Tile;
use crate::graph::MOST_SHAPES;

const WORD: usize = size_of::<u32>();
/// Words that parts are aligned to: a pack.
const ALIGN: usize = 4;

/// The heads of a program's attention, and which kernels they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionKind {
    pub heads: Heads,
    pub route: Route,
}

/// The distinct heads of a program's attention.
pub(crate) fn attention_heads(program: &Program) -> Vec<Heads> {
    let mut all: Vec<Heads> = Vec::new();
    for step in &program.steps {
        if let Op::Attention(op) = &step.op
            && !all.contains(&op.heads)
        {
            all.push(op.heads);
        }
    }
    all
}

/// How much there is in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
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
    fn of(batch: &Batch<'_>) -> Extent {
        let (outputs, sequences) = (batch.outputs.len(), batch.sequences.len());
        Extent { rows: batch.rows(), outputs, sequences, pages: 0 }
    }
}

/// Where parts start, in words. It grows with every number of an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    tokens: usize,
    positions: usize,
    row_sequence: usize,
    outputs: usize,
    sequences: usize,
    /// Rows on their own and tiles, for each kind of attention: those of all rows, then those of the wanted ones.
    work: Vec<[(usize, usize); 2]>,
    block_tables: usize,
    end: usize,
}

impl Layout {
    fn new(extent: Extent, kinds: usize) -> Layout {
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
        let mut lists = || (take(extent.rows), take(extent.rows.saturating_mul(tile)));
        let work = (0..kinds).map(|_| [lists(), lists()]).collect();
        let block_tables = take(extent.pages);
        Layout { tokens, positions, row_sequence, outputs, sequences, work, block_tables, end: next }
    }
}

/// Bytes of a batch on the device.
pub(crate) fn batch_bytes(limits: &Limits, kinds: usize) -> u64 {
    (Layout::new(Extent::most(limits), kinds).end as u64).saturating_mul(WORD as u64)
}

/// Which rows of a batch a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Every one.
    All,
    /// Those from [`DeviceBatch::first_wanted`] on.
    Wanted,
}

/// What a batch asks of one kind of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionWork<'a> {
    pub kind: AttentionKind,
    pub work: &'a Work,
    /// Device addresses of its rows and tiles.
    pub rows: u64,
    pub tiles: u64,
}

/// The shape of a batch that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RepeatedShape {
    tokens: usize,
    outputs: usize,
    /// That of [`Work`]; the largest of all kinds of attention, which differ in how they divide rows only.
    span_bucket: usize,
}

impl RepeatedShape {
    /// The shapes that decoding within limits has, those of few sequences first, as many as there are graphs for.
    pub fn expected(limits: &Limits) -> Vec<RepeatedShape> {
        let most = limits.sequences.min(limits.rows).min(limits.outputs);
        let spans = limits.context.div_ceil(SPAN).next_power_of_two();
        let buckets = spans.trailing_zeros() + 1;
        let shape =
            |tokens, bucket| RepeatedShape { tokens, outputs: tokens, span_bucket: 1_usize << bucket };
        let shapes = (1..=most).flat_map(|tokens| (0..buckets).map(move |bucket| shape(tokens, bucket)));
        shapes.take(MOST_SHAPES).collect()
    }

    /// Whether it is a token of one sequence.
    pub fn is_token(self) -> bool {
        self.tokens == 1 && self.outputs == 1
    }

    /// Rows of the values.
    pub fn rows(self) -> RunRows {
        RunRows { tokens: self.tokens, outputs: self.outputs }
    }

    /// About as many spans of positions as the longest sequence has: the next power of two.
    pub fn spans(self) -> usize {
        self.span_bucket
    }
}

/// Where a kernel finds a batch that is laid out for it, and where it brings it: the same for all batches of one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NextBatch {
    /// Address on the host.
    pub host: u64,
    /// Address on the device.
    pub device: u64,
    /// The first word to bring. Those before it are tokens, which the kernel writes itself.
    pub first: u32,
    /// Where the words end that a batch of the shape can have.
    pub end: u32,
}

/// Memory for a session's batches.
#[derive(Debug)]
pub(crate) struct DeviceBatch {
    /// That of the batch that was laid out last.
    layout: Layout,
    page_size: usize,
    /// What is brought as it is, and what a choice of tokens brings while that may be on its way.
    uploaded: HostBuffer,
    handed_over: HostBuffer,
    device: DeviceBuffer,
    kinds: Vec<AttentionKind>,
    /// What the batch that was uploaded last asks of each kind of attention, for all rows and for the wanted ones.
    work: Vec<[Work; 2]>,
    /// Sequences of that batch.
    sequences: usize,
    /// Its first row whose logits are wanted, or the end of its rows; zero where every sequence has one row.
    first_wanted: usize,
}

impl DeviceBatch {
    pub fn new(
        device: &Device,
        limits: &Limits,
        kinds: Vec<AttentionKind>,
    ) -> Result<DeviceBatch, CudaError> {
        let layout = Layout::new(Extent::most(limits), kinds.len());
        let bytes = layout.end.saturating_mul(WORD);
        Ok(DeviceBatch {
            uploaded: device.allocate_host(bytes, "batch")?,
            handed_over: device.allocate_host(bytes, "batch")?,
            device: device.allocate(bytes, "batch")?,
            page_size: limits.page_size,
            work: vec![Default::default(); kinds.len()],
            sequences: 0,
            first_wanted: 0,
            layout,
            kinds,
        })
    }

    pub fn bytes(&self) -> u64 {
        self.device.bytes() as u64
    }

    /// Device addresses of the parts.
    pub fn view(&self) -> BatchView {
        BatchView {
            tokens: self.address(self.layout.tokens),
            positions: self.address(self.layout.positions),
            row_sequence: self.address(self.layout.row_sequence),
            sequences: self.address(self.layout.sequences),
            block_tables: self.address(self.layout.block_tables),
            outputs: self.address(self.layout.outputs),
        }
    }

    /// What attention with these heads has to do for some of the rows.
    pub fn attention(&self, heads: Heads, rows: Rows) -> Option<AttentionWork<'_>> {
        let index = self.kinds.iter().position(|kind| kind.heads == heads)?;
        let part = rows as usize;
        let (rows, tiles) = self.layout.work[index][part];
        Some(AttentionWork {
            kind: self.kinds[index],
            work: &self.work[index][part],
            rows: self.address(rows),
            tiles: self.address(tiles),
        })
    }

    /// The first of the rows.
    pub fn first(&self, rows: Rows) -> usize {
        match rows {
            Rows::All => 0,
            Rows::Wanted => self.first_wanted,
        }
    }

    /// What all launches for the uploaded batch depend on, where every sequence has one row, as in decoding, so that
    /// further batches of the same shape are to be expected.
    pub fn repeated_shape(&self, rows: RunRows) -> Option<RepeatedShape> {
        let RunRows { tokens, outputs } = rows;
        let span_bucket = self.span_bucket()?;
        (tokens == self.sequences).then_some(RepeatedShape { tokens, outputs, span_bucket })
    }

    /// The next power of two to the spans that the longest sequence has whose rows are on their own: 0 where all are in tiles,
    /// and nothing where there is no attention.
    fn span_bucket(&self) -> Option<usize> {
        self.work.iter().flatten().map(|work| work.span_bucket).max()
    }

    fn address(&self, word: usize) -> u64 {
        self.device.address() + (word * WORD) as u64
    }

    /// Lays a batch out, which must have been checked against the limits, and says what brings it to the device. No other may
    /// be on its way.
    pub fn lay_out(&mut self, batch: &Batch<'_>) -> Args {
        self.divide(batch);
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut self.uploaded);
        let parts = Parts { page_size: self.page_size, work: &self.work };
        let count = fill(words, &self.layout, batch, parts);
        // Buffers have whole packs.
        let packs = count.div_ceil(ALIGN) as u32;
        Args { host: self.uploaded.address(), device: self.device.address(), packs, unused: 0 }
    }

    /// Lays a batch out like [`DeviceBatch::lay_out`], for the kernel that chooses its tokens to bring it to the device, as it
    /// must have brought the one before.
    pub fn hand_over(&mut self, batch: &Batch<'_>) {
        self.divide(batch);
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut self.handed_over);
        fill(words, &self.layout, batch, Parts { page_size: self.page_size, work: &self.work });
    }

    /// Where the kernel finds it.
    pub fn handed_over(&self) -> NextBatch {
        let end = most_words(&self.layout, self.sequences, self.span_bucket(), self.page_size);
        NextBatch {
            host: self.handed_over.address(),
            device: self.device.address(),
            first: self.layout.positions as u32,
            end: end.min(self.device.bytes() / WORD) as u32,
        }
    }

    /// Divides some batch of a shape, for its launches to be recorded.
    pub fn divide_shape(&mut self, shape: RepeatedShape, limits: &Limits) {
        let position = (shape.span_bucket * SPAN).min(limits.context) - 1;
        let rows = |row: usize| SequenceRows { rows: row..row + 1, block_table: &[], rope_set: 0 };
        let sequences: Vec<SequenceRows<'_>> = (0..shape.tokens).map(rows).collect();
        let outputs: Vec<u32> = (0..shape.outputs as u32).collect();
        let (tokens, positions) = (vec![0; shape.tokens], vec![position as u32; shape.tokens]);
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        self.divide(&batch);
    }

    /// Plans what there is to do for a batch, and where its parts lie.
    fn divide(&mut self, batch: &Batch<'_>) {
        self.sequences = batch.sequences.len();
        self.first_wanted = first_wanted(batch);
        let divide = |kind: &AttentionKind| {
            [0, self.first_wanted].map(|first| Work::divide(batch, first, kind.heads, kind.route))
        };
        self.work = self.kinds.iter().map(divide).collect();
        self.layout = Layout::new(Extent::of(batch), self.kinds.len());
    }
}

/// The first row whose logits are wanted, or the end of the rows. Tokens that are decoded are wanted together: all rows then,
/// so that launches stay the same.
fn first_wanted(batch: &Batch<'_>) -> usize {
    if batch.sequences.len() == batch.rows() {
        return 0;
    }
    batch.outputs.iter().min().map_or(batch.rows(), |&row| row as usize)
}

/// The words that a batch of so many sequences has at most, none of which has more spans of positions; that is not known of
/// those whose rows are all in tiles.
fn most_words(layout: &Layout, sequences: usize, span_bucket: Option<usize>, page_size: usize) -> usize {
    match span_bucket {
        None | Some(0) => usize::MAX,
        Some(spans) => {
            let pages = Limits::pages_for(page_size, spans.saturating_mul(SPAN)).saturating_mul(sequences);
            (layout.block_tables + pages).next_multiple_of(ALIGN)
        }
    }
}

/// What a layout is filled from beside the batch.
struct Parts<'a> {
    page_size: usize,
    work: &'a [[Work; 2]],
}

/// Writes all parts and returns the number of words used.
fn fill(words: &mut [u32], layout: &Layout, batch: &Batch<'_>, parts: Parts<'_>) -> usize {
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
    fn shapes_of_decoding_are_known_beforehand() {
        let limits = Limits { rows: 512, outputs: 3, sequences: 4, pages: 80, page_size: 64, context: 1000 };
        let shapes = RepeatedShape::expected(&limits);
        // Three rows have outputs; 16 spans are five powers of two.
        assert_eq!(shapes.len(), 3 * 5);
        assert_eq!(shapes[14], RepeatedShape { tokens: 3, outputs: 3, span_bucket: 16 });
        assert_eq!(shapes.iter().filter(|shape| shape.is_token()).count(), 5);
        let many = Limits { sequences: 128, outputs: 128, ..limits };
        assert_eq!(RepeatedShape::expected(&many).len(), MOST_SHAPES);
    }

    #[test]
    fn parts_lie_where_the_layout_says() {
        let limits = Limits { rows: 6, outputs: 2, sequences: 3, pages: 9, page_size: 16, context: 64 };
        let layout = Layout::new(Extent::most(&limits), 1);
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
        let smaller = Layout::new(Extent::of(&batch), 1);
        assert_eq!((smaller.positions, smaller.outputs, smaller.block_tables), (4, 12, 48));
        let all = Work {
            rows: vec![3],
            tiles: vec![Tile { first_row: 0, tokens: 3 }],
            span_bucket: 1,
            ..Work::default()
        };
        let wanted = Work { rows: vec![2, 3], ..Work::default() };
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

    #[test]
    fn rows_before_the_first_that_is_wanted_are_left_out() {
        let prompt = |rows| SequenceRows { rows, block_table: &[0], rope_set: 0 };
        let first = |sequences: &[SequenceRows<'_>], outputs: &[u32]| {
            let rows = sequences.last().map_or(0, |sequence| sequence.rows.end);
            let positions = vec![0; rows];
            first_wanted(&Batch { tokens: &positions, positions: &positions, sequences, outputs })
        };
        let two = [prompt(0..5), prompt(5..7)];
        assert_eq!(first(&two, &[6]), 6);
        assert_eq!(first(&two, &[6, 4]), 4);
        assert_eq!(first(&two, &[]), 7);
        assert_eq!(first(&[prompt(0..1), prompt(1..2)], &[1]), 0);
    }
}
