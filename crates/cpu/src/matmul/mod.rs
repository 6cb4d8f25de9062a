//! Products of activations with packed weights: `y[t][n] = epilogue(sum over k of x[t][k] * w[n][k])`.
//!
//! Every output is one chain of sums over ascending k in f32, whatever the number of rows, the tile it falls into,
//! the thread and the instruction set: the same row gives the same bits in a product of one row and of a thousand.
//! - bf16 weights with bf16 activations: [`Simd::dot_bf16`](crate::simd::Simd::dot_bf16) over pairs of inputs;
//! - all others: both decoded exactly to f32, then one fused multiply-add for each k.
//!
//! The work is cut into blocks of rows times panels of 32 outputs. Within a block the weights of a panel stay in the
//! second-level cache while tiles of up to 14 rows pass over them; sums live in registers within a chunk of k and in
//! scratch between chunks.

mod block;
mod epilogue;
mod input;
mod tile;

#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use mantissa_numerics::Format;

use crate::aligned::{AlignedBuffer, OutOfMemory};
use crate::elements::{Elements, ElementsMut};
use crate::isa::{Isa, Tier};
use crate::pack::{Layout, PANEL, PackedMatrix};
use crate::pool::Pool;
use crate::simd::{LANES, SimdElement, dispatch};

use block::Block;
use epilogue::Writer;
use input::{PackInput, Unit};
use tile::{Fma, Pairs, PairsFma, Product};

/// Most rows of a block.
const BLOCK_ROWS: usize = 168;
/// Steps of k between which sums leave the registers, and the most that are decoded at a time.
const CHUNK: usize = 1024;
/// Bytes of weights, each time they are read, from which a task is worth its start.
const TASK_BYTES: usize = 512 * 1024;
/// Tasks that every thread gets at least, where there are as many panels: so that threads end together.
const TASKS_PER_THREAD: usize = 8;
/// Activations below which preparing them is not worth waking other threads.
const SERIAL_INPUT: usize = 16 * 1024;

/// A product to compute.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// `[N, K]`, packed.
    pub weights: &'a PackedMatrix,
    /// `[rows, K]`, row-major.
    pub input: Elements<'a>,
    /// Rows, T.
    pub rows: usize,
    /// What becomes of the sums.
    pub epilogue: Epilogue<'a>,
}

/// What becomes of the f32 sums. Everything is computed in f32 and rounded once, when it is stored.
#[derive(Debug)]
pub enum Epilogue<'a> {
    /// Stored as they are, `[rows, N]`.
    F32 {
        /// Receives the sums.
        out: &'a mut [f32],
    },
    /// `alpha * sum + bias + beta * residual`, `[rows, N]`: one fused multiply-add for `bias` (a product where there
    /// is none), another for the residual.
    Store {
        /// Receives the rounded values.
        out: ElementsMut<'a>,
        /// Factor of the sums.
        alpha: f32,
        /// `[N]`, added to every row.
        bias: Option<&'a [f32]>,
        /// Added last.
        residual: Option<Residual<'a>>,
    },
    /// `silu(gate) * up`, `[rows, N / 2]`, of weights packed as [`Layout::GateUp`].
    SwiGlu {
        /// Receives the rounded values.
        out: ElementsMut<'a>,
    },
}

/// `beta` times earlier values.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// Factor.
    pub beta: f32,
    /// The values, `[rows, N]`, in the format of the output.
    pub values: ResidualValues<'a>,
}

/// Where a residual is.
#[derive(Clone, Copy, Debug)]
pub enum ResidualValues<'a> {
    /// In the output itself, which is replaced.
    InPlace,
    /// Elsewhere.
    Separate(Elements<'a>),
}

/// A product whose parts do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatmulError {
    /// An operand of the wrong length.
    #[error("matmul {rows} x {columns} by {outputs}: {operand} needs {wanted} values, got {got}")]
    Length {
        /// Which operand.
        operand: &'static str,
        /// Rows of the input.
        rows: usize,
        /// Columns of the input.
        columns: usize,
        /// Outputs of the weights.
        outputs: usize,
        /// Values it should have.
        wanted: usize,
        /// Values it has.
        got: usize,
    },
    /// An epilogue for weights that are packed in another way.
    #[error("matmul: this epilogue needs weights packed as {wanted:?}, got {got:?}")]
    Layout {
        /// The layout of the epilogue.
        wanted: Layout,
        /// The layout of the weights.
        got: Layout,
    },
    /// A residual in another format than the output.
    #[error("matmul: the residual must be {wanted}, as the output, but is {got}")]
    ResidualFormat {
        /// Format of the output.
        wanted: Format,
        /// Format of the residual.
        got: Format,
    },
    /// No memory for scratch.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Memory that products use and keep for the next one.
#[derive(Debug, Default)]
pub struct MatmulScratch {
    /// Activations as the tiles read them.
    input: AlignedBuffer,
    /// One for each thread, locked by the thread that has it.
    workers: Vec<Mutex<WorkerScratch>>,
}

/// What one thread needs.
#[derive(Debug)]
struct WorkerScratch {
    /// `[BLOCK_ROWS][PANEL]` f32.
    sums: AlignedBuffer,
    /// `[CHUNK][PANEL]` f32.
    weights: AlignedBuffer,
}

impl MatmulScratch {
    /// Enough for products of up to `rows` by `columns` activations on `threads` threads: no later product of that
    /// size allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn for_size(rows: usize, columns: usize, threads: usize) -> Result<MatmulScratch, OutOfMemory> {
        let mut scratch = MatmulScratch::default();
        let padded = columns.checked_next_multiple_of(2 * LANES);
        let values = padded.and_then(|columns| columns.checked_mul(rows));
        let bytes = values.and_then(|values| values.checked_mul(size_of::<f32>()));
        scratch.reserve(bytes.ok_or(OutOfMemory { bytes: usize::MAX })?, threads)?;
        Ok(scratch)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let worker = (BLOCK_ROWS + CHUNK) * PANEL * size_of::<f32>();
        self.input.len() + self.workers.len() * worker
    }

    fn reserve(&mut self, bytes: usize, threads: usize) -> Result<(), OutOfMemory> {
        if self.input.len() < bytes {
            // The old one goes first, so that both never exist together.
            self.input = AlignedBuffer::empty();
            self.input = AlignedBuffer::zeroed(bytes)?;
        }
        while self.workers.len() < threads {
            self.workers.push(Mutex::new(WorkerScratch {
                sums: AlignedBuffer::zeroed(BLOCK_ROWS * PANEL * size_of::<f32>())?,
                weights: AlignedBuffer::zeroed(CHUNK * PANEL * size_of::<f32>())?,
            }));
        }
        Ok(())
    }
}

/// A range cut into parts whose lengths differ by one at most.
#[derive(Clone, Copy, Debug)]
struct Split {
    parts: usize,
    length: usize,
    longer: usize,
}

impl Split {
    /// The fewest parts of at most `limit`.
    fn new(total: usize, limit: usize) -> Split {
        let parts = total.div_ceil(limit).max(1);
        Split { parts, length: total / parts, longer: total % parts }
    }

    /// Start of part `index`, which may be the end of the last.
    fn start(&self, index: usize) -> usize {
        index * self.length + index.min(self.longer)
    }
}

/// Most rows of a tile and vectors side by side in it: as many sums as there are registers for.
const fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 14,
        Isa::Avx2 | Isa::Neon | Isa::Scalar => 6,
    }
}

/// Computes a product on all threads of `pool` with the instructions of `tier`.
///
/// # Errors
/// [`MatmulError`] where lengths, layouts or formats do not fit, before anything is written.
pub fn matmul(
    pool: &Pool,
    tier: Tier,
    scratch: &mut MatmulScratch,
    product: Matmul<'_>,
) -> Result<(), MatmulError> {
    check(&product)?;
    if product.rows == 0 || product.weights.rows() == 0 {
        return Ok(());
    }
    let mut run = Run { pool, tier, scratch, product };
    match (run.product.weights.format(), run.product.input) {
        (Format::Bf16, Elements::Bf16(input)) => match tier.isa() {
            Isa::Avx512 => run.compute::<Pairs, bf16>(input),
            // Without the instruction: the same chain, with activations decoded once instead of in every tile.
            Isa::Avx2 | Isa::Neon | Isa::Scalar => run.compute::<PairsFma<1>, bf16>(input),
        },
        (_, Elements::F32(input)) => run.fma(input),
        (_, Elements::F16(input)) => run.fma(input),
        (_, Elements::Bf16(input)) => run.fma(input),
    }
}

fn check(product: &Matmul<'_>) -> Result<(), MatmulError> {
    let Matmul { weights, input, rows, epilogue } = product;
    let (rows, columns, outputs) = (*rows, weights.columns(), weights.rows());
    let length = |operand, height: usize, width: usize, got| {
        // A length that overflows is one that no slice has.
        let wanted = height.saturating_mul(width);
        if wanted == got {
            Ok(())
        } else {
            Err(MatmulError::Length { operand, rows, columns, outputs, wanted, got })
        }
    };
    length("input", rows, columns, input.len())?;
    let layout = match epilogue {
        Epilogue::SwiGlu { out } => {
            length("out", rows, outputs / 2, out.len())?;
            Layout::GateUp
        }
        Epilogue::F32 { out } => {
            length("out", rows, outputs, out.len())?;
            Layout::Plain
        }
        Epilogue::Store { out, bias, residual, .. } => {
            length("out", rows, outputs, out.len())?;
            if let Some(bias) = bias {
                length("bias", 1, outputs, bias.len())?;
            }
            if let Some(Residual { values: ResidualValues::Separate(values), .. }) = residual {
                length("residual", rows, outputs, values.len())?;
                if values.format() != out.format() {
                    let (wanted, got) = (out.format(), values.format());
                    return Err(MatmulError::ResidualFormat { wanted, got });
                }
            }
            Layout::Plain
        }
    };
    if layout != weights.layout() {
        return Err(MatmulError::Layout { wanted: layout, got: weights.layout() });
    }
    Ok(())
}

/// A checked product on its way.
struct Run<'a> {
    pool: &'a Pool,
    tier: Tier,
    scratch: &'a mut MatmulScratch,
    product: Matmul<'a>,
}

impl Run<'_> {
    fn fma<X: SimdElement>(&mut self, input: &[X]) -> Result<(), MatmulError> {
        match self.product.weights.format() {
            Format::F32 => self.compute::<Fma<f32>, X>(input),
            Format::F16 => self.compute::<Fma<f16>, X>(input),
            _ => self.compute::<PairsFma<0>, X>(input),
        }
    }

    fn compute<P: Product, X: SimdElement>(&mut self, input: &[X]) -> Result<(), MatmulError>
    where
        P::Input: Unit<X>,
    {
        let Matmul { weights, rows, .. } = self.product;
        let steps = weights.columns().div_ceil(<P::Input as Unit<X>>::VALUES);
        let tiles = Split::new(rows, tile_rows(self.tier.isa()));
        let padded_steps = steps.next_multiple_of(LANES);
        let job = Job { pool: self.pool, tier: self.tier, steps, padded_steps, tiles };
        let bytes = padded_steps.saturating_mul(rows).saturating_mul(size_of::<P::Input>());
        let whole_row = if rows == 1 { P::Input::same(input) } else { None };
        let prepared_bytes = if whole_row.is_some() { 0 } else { bytes };
        self.scratch.reserve(prepared_bytes, self.pool.threads())?;
        let prepared = bytemuck::cast_slice_mut(&mut self.scratch.input[..prepared_bytes]);
        let input = match whole_row {
            Some(row) => row,
            None => {
                job.prepare(input, weights.columns(), prepared);
                &*prepared
            }
        };
        let writer = Writer::new(&mut self.product.epilogue, weights.rows());
        job.multiply::<P>(weights, input, &writer, &self.scratch.workers);
        Ok(())
    }
}

/// How a product is cut up.
struct Job<'a> {
    pool: &'a Pool,
    tier: Tier,
    /// Steps over k.
    steps: usize,
    /// The same in whole groups.
    padded_steps: usize,
    /// Rows of the tiles.
    tiles: Split,
}

impl Job<'_> {
    /// Reorders the activations for the tiles, decoded unless they stay bf16.
    fn prepare<X: SimdElement, I: Unit<X>>(&self, input: &[X], columns: usize, out: &mut [I]) {
        let packer = PackInput { input, columns, steps: self.padded_steps, tiles: self.tiles };
        if out.len() < SERIAL_INPUT {
            packer.all(self.tier, out);
        } else {
            packer.parallel(self.tier, self.pool, out);
        }
    }

    fn multiply<P: Product>(
        &self,
        weights: &PackedMatrix,
        input: &[P::Input],
        writer: &Writer<'_>,
        workers: &[Mutex<WorkerScratch>],
    ) {
        let blocks = Split::new(self.tiles.parts, BLOCK_ROWS / tile_rows(self.tier.isa()));
        let panels = weights.panels();
        let group = self.panels_per_task(weights, blocks);
        let groups = panels.div_ceil(group);
        let all: &[P::Weight] = bytemuck::cast_slice(weights.bytes());
        self.pool.run(groups * blocks.parts, |task| {
            // A panic while it was held left nothing that is read again before it is written.
            let mut worker = workers[task.worker].lock().unwrap_or_else(PoisonError::into_inner);
            let WorkerScratch { sums, weights: decoded } = &mut *worker;
            let (block, first) = (task.index / groups, task.index % groups * group);
            dispatch(
                self.tier,
                Block::<P> {
                    panels: first..(first + group).min(panels),
                    weights: all,
                    input,
                    steps: self.steps,
                    padded_steps: self.padded_steps,
                    tiles: self.tiles,
                    parts: blocks.start(block)..blocks.start(block + 1),
                    sums: bytemuck::cast_slice_mut(sums),
                    decoded: bytemuck::cast_slice_mut(decoded),
                    writer,
                },
            );
        });
    }

    /// As many panels as make the start of a task small beside its work, and leave every thread several tasks.
    fn panels_per_task(&self, weights: &PackedMatrix, blocks: Split) -> usize {
        let tiles = self.tiles.parts.div_ceil(blocks.parts);
        let panel_work = (weights.bytes().len() / weights.panels().max(1)).saturating_mul(tiles);
        let fair = weights.panels() * blocks.parts / (TASKS_PER_THREAD * self.pool.threads());
        (TASK_BYTES / panel_work.max(1)).min(fair).max(1)
    }
}
