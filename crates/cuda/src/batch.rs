//! A batch on its way to the device: laid out in page-locked memory, from where one kernel brings it.
//!
//! Parts lie close together, in places that follow from the numbers of rows, outputs, sequences and tiles, so that kernels
//! find them at the same addresses in every batch of one shape, and a token of one sequence takes few words. Tokens come
//! first, and block tables last.

mod layout;

use mantissa_ops::batch::{Batch, Limits, SequenceRows};
use mantissa_ops::op::Heads;
use mantissa_ops::program::RunRows;
use mantissa_ops::{Op, Program};

use self::layout::{ALIGN, Extent, Layout, Lists, Parts, WORD, fill, most_words};
use crate::device::{Device, DeviceBuffer, HostBuffer};
use crate::error::CudaError;
use crate::families::attention::{Route, SPAN, Work};
use crate::families::batch::{Args, BatchView};
use crate::graph::MOST_SHAPES;

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

/// Bytes of a batch on the device.
pub(crate) fn batch_bytes(limits: &Limits, kinds: usize) -> u64 {
    (Layout::most(limits, kinds).end as u64).saturating_mul(WORD as u64)
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
        let layout = Layout::most(limits, kinds.len());
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

    /// The one row of several whose logits are wanted, as a batch whose token is the number of this row, and about as many spans
    /// of positions as it has.
    pub fn wanted_row(&self, rows: RunRows) -> Option<(BatchView, usize)> {
        if rows.outputs != 1 || rows.tokens == 1 {
            return None;
        }
        let spans = self.work.iter().map(|[_, wanted]| wanted.span_bucket).max()?;
        let (view, skipped) = (self.view(), (self.first_wanted * WORD) as u64);
        let (positions, row_sequence) = (view.positions + skipped, view.row_sequence + skipped);
        Some((BatchView { tokens: view.outputs, positions, row_sequence, ..view }, spans))
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
        self.layout =
            Layout::new(Extent::of(batch), self.work.iter().map(|parts| parts.each_ref().map(Lists::of)));
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
