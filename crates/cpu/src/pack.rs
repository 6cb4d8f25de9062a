//! Weight matrices in the layout of the multiply-add units.
//!
//! A matrix of N output features by K inputs becomes panels of [`PANEL`] outputs that lie side by side for each
//! input, so that a vector holds the same input's weight of sixteen outputs and each output is one chain of sums:
//! `[panel][k][32]` for f32 and f16, `[panel][k / 2][32][2]` for bf16 (the operand of a pair product). The last panel
//! is filled up with zero rows, an odd K with a zero input. Packing reads the stored tensors once, converts and
//! reorders panel by panel in parallel, and needs no second copy of the matrix.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use mantissa_numerics::convert::Overflow;
use mantissa_numerics::convert::slice::{ConversionStats, ConvertError, convert_slice};
use mantissa_numerics::{Element, Format};
use mantissa_ops::source::RowOrder;

use crate::aligned::{AlignedBuffer, Arena, OutOfMemory};
use crate::pool::Pool;

/// Outputs of a panel: two vectors.
pub const PANEL: usize = 32;

/// Inputs reordered at a time: 32 rows of them stay in the second-level cache.
const COLUMNS: usize = 1024;

/// Which output is where in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Panel `p` holds rows `32 p ..`.
    Plain,
    /// The first half of the rows are gates, the second half the matching up projections: panel `p` holds gates
    /// `16 p ..` in its first vector and their up rows in its second.
    GateUp,
}

/// Rows of one stored tensor, row-major.
#[derive(Clone, Debug)]
pub struct PackSource<'a> {
    /// All bytes of the tensor.
    pub bytes: &'a [u8],
    /// Their format.
    pub format: Format,
    /// Rows of the whole tensor.
    pub tensor_rows: usize,
    /// Rows wanted, in the order that `order` establishes.
    pub rows: Range<usize>,
    /// How the stored rows are ordered.
    pub order: RowOrder,
}

/// What to pack.
#[derive(Clone, Copy, Debug)]
pub struct PackRequest<'a> {
    /// Tensors stacked along their rows.
    pub sources: &'a [PackSource<'a>],
    /// Inputs, K.
    pub columns: usize,
    /// Format of the packed weights: f32, f16 or bf16.
    pub format: Format,
    /// Arrangement of the rows.
    pub layout: Layout,
    /// What becomes of values beyond the range of `format`.
    pub overflow: Overflow,
}

/// A matrix that cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A format without a kernel.
    #[error("weights cannot be packed as {0}; they can be as f32, f16, bf16")]
    Format(Format),
    /// A tensor whose bytes are not those of its shape.
    #[error("source {index}: {rows} x {columns} values of {format} do not fill {got} bytes")]
    Length {
        /// Which of the sources.
        index: usize,
        /// Rows of the tensor.
        rows: usize,
        /// Values of a row.
        columns: usize,
        /// Format of the values.
        format: Format,
        /// Bytes given.
        got: usize,
    },
    /// Rows that the tensor does not have.
    #[error("source {index}: rows {start}..{end} of a tensor with {rows} rows (ordered {order:?})")]
    Rows {
        /// Which of the sources.
        index: usize,
        /// First row wanted.
        start: usize,
        /// One past the last row wanted.
        end: usize,
        /// Rows of the tensor.
        rows: usize,
        /// Its row order.
        order: RowOrder,
    },
    /// Gates without their up rows.
    #[error("{0} rows do not split into gate and up halves")]
    OddGateUp(usize),
    /// More bytes than there are addresses.
    #[error("a packed matrix of {rows} x {columns} in {format} has no size in bytes on this machine")]
    Size {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Format.
        format: Format,
    },
    /// No memory for the packed matrix.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// Values that do not convert.
    #[error("source {index}: {error}")]
    Convert {
        /// Which of the sources.
        index: usize,
        /// Why not.
        error: ConvertError,
    },
}

/// A row that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} of {rows}, into {got} values of {columns}")]
pub struct RowError {
    /// Row wanted.
    pub row: usize,
    /// Rows of the matrix.
    pub rows: usize,
    /// Values asked for.
    pub got: usize,
    /// Values of a row.
    pub columns: usize,
}

/// A packed matrix, and what its conversion did.
#[derive(Debug)]
pub struct Packed {
    /// The matrix.
    pub matrix: PackedMatrix,
    /// What was lost, for each source.
    pub stats: Vec<ConversionStats>,
}

/// Weights `[rows, columns]` in panels; see the [module](self).
#[derive(Debug)]
pub struct PackedMatrix {
    bytes: AlignedBuffer,
    shape: Shape,
}

/// Where everything is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    columns: usize,
    format: Format,
    layout: Layout,
}

impl Shape {
    /// Inputs of a panel, padding included.
    fn padded_columns(&self) -> usize {
        match self.format {
            Format::Bf16 => self.columns.next_multiple_of(2),
            _ => self.columns,
        }
    }

    fn panel_bytes(&self) -> Option<usize> {
        self.padded_columns().checked_mul(PANEL)?.checked_mul(self.format.bytes())
    }

    /// Bytes between the rows that are reordered together: no multiple of a page, which would put them all in the
    /// same sets of the cache.
    fn scratch_stride(&self) -> usize {
        COLUMNS * self.format.bytes() + 64
    }

    fn panels(&self) -> usize {
        match self.layout {
            Layout::Plain => self.rows.div_ceil(PANEL),
            Layout::GateUp => (self.rows / 2).div_ceil(PANEL / 2),
        }
    }

    /// The row in a place of a panel, if it is not padding.
    fn row_at(&self, panel: usize, place: usize) -> Option<usize> {
        match self.layout {
            Layout::Plain => Some(panel * PANEL + place).filter(|&row| row < self.rows),
            Layout::GateUp => {
                let (half, width) = (PANEL / 2, self.rows / 2);
                let within = Some(panel * half + place % half).filter(|&row| row < width)?;
                Some(if place < half { within } else { width + within })
            }
        }
    }

    /// Panel and place of a row.
    fn place_of(&self, row: usize) -> (usize, usize) {
        match self.layout {
            Layout::Plain => (row / PANEL, row % PANEL),
            Layout::GateUp => {
                let (half, width) = (PANEL / 2, self.rows / 2);
                if row < width {
                    (row / half, row % half)
                } else {
                    ((row - width) / half, half + (row - width) % half)
                }
            }
        }
    }
}

impl PackedMatrix {
    /// Converts and reorders stored tensors, into memory of this arena.
    ///
    /// # Errors
    /// [`PackError`], before anything is read except for values that do not convert.
    pub fn pack(request: &PackRequest<'_>, memory: &mut Arena, pool: &Pool) -> Result<Packed, PackError> {
        let shape = check(request)?;
        let size = PackError::Size { rows: shape.rows, columns: shape.columns, format: shape.format };
        let Some(panel_bytes) = shape.panel_bytes() else { return Err(size) };
        let Some(total) = panel_bytes.checked_mul(shape.panels()) else { return Err(size) };
        let mut bytes = memory.zeroed(total)?;
        let stats = Mutex::new(vec![ConversionStats::default(); request.sources.len()]);
        let failure = Mutex::new(None);
        {
            let mut scratch = Vec::new();
            for _ in 0..pool.threads() {
                scratch.push(Mutex::new(AlignedBuffer::zeroed(PANEL * shape.scratch_stride())?));
            }
            // Each panel is locked once: a safe way to hand disjoint parts to the threads.
            let panels: Vec<Mutex<&mut [u8]>> =
                bytes.chunks_exact_mut(panel_bytes.max(1)).map(Mutex::new).collect();
            pool.run(panels.len(), |task| {
                let mut scratch = lock(&scratch[task.worker]);
                let mut panel = lock(&panels[task.index]);
                let packer = Packer { request, shape, panel: task.index };
                match packer.pack(&mut scratch, &mut panel) {
                    Ok(found) => {
                        let mut stats = lock(&stats);
                        for (index, part) in found {
                            stats[index].merge(&part);
                        }
                    }
                    Err(error) => *lock(&failure) = Some(error),
                }
            });
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let stats = stats.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Packed { matrix: PackedMatrix { bytes, shape }, stats })
    }

    /// Output features, N.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Inputs, K.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }

    /// Format of the weights.
    pub fn format(&self) -> Format {
        self.shape.format
    }

    /// Arrangement of the rows.
    pub fn layout(&self) -> Layout {
        self.shape.layout
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.shape.panels()
    }

    /// All bytes, panel after panel.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decodes one row exactly: the lookup of a token in a table that is also the output matrix.
    ///
    /// # Errors
    /// [`RowError`] where the row is not there or `out` has another length than a row.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), RowError> {
        let Shape { rows, columns, .. } = self.shape;
        if row >= rows || out.len() != columns {
            return Err(RowError { row, rows, got: out.len(), columns });
        }
        let (panel, place) = self.shape.place_of(row);
        let size = self.shape.panel_bytes().unwrap_or(0);
        let panel = &self.bytes[panel * size..(panel + 1) * size];
        match self.format() {
            Format::F32 => gather::<f32>(panel, place, out),
            Format::F16 => gather::<f16>(panel, place, out),
            _ => {
                let pairs: &[[bf16; 2]] = bytemuck::cast_slice(panel);
                for (out, pair) in out.chunks_mut(2).zip(pairs[place..].iter().step_by(PANEL)) {
                    for (out, value) in out.iter_mut().zip(pair) {
                        *out = Element::to_f32(*value);
                    }
                }
            }
        }
        Ok(())
    }
}

fn gather<T: Element>(panel: &[u8], place: usize, out: &mut [f32]) {
    let values: &[T] = bytemuck::cast_slice(panel);
    for (out, value) in out.iter_mut().zip(values[place..].iter().step_by(PANEL)) {
        *out = value.to_f32();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere ends the whole run; what it left here is not used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(request: &PackRequest<'_>) -> Result<Shape, PackError> {
    let PackRequest { sources, columns, format, layout, .. } = *request;
    if !matches!(format, Format::F32 | Format::F16 | Format::Bf16) {
        return Err(PackError::Format(format));
    }
    let mut rows = 0_usize;
    for (index, source) in sources.iter().enumerate() {
        let tensor = source.tensor_rows.checked_mul(columns).and_then(|count| source.format.bytes_for(count));
        let whole_rows = source.format.bits().is_multiple_of(8);
        if tensor != Some(source.bytes.len()) || !whole_rows {
            let (rows, got) = (source.tensor_rows, source.bytes.len());
            return Err(PackError::Length { index, rows, columns, format: source.format, got });
        }
        let Range { start, end } = source.rows.clone();
        let ordered = match source.order {
            RowOrder::AsStored => true,
            RowOrder::RopePairs { heads } => heads > 0 && source.tensor_rows.is_multiple_of(2 * heads),
        };
        if start > end || end > source.tensor_rows || !ordered {
            let (rows, order) = (source.tensor_rows, source.order);
            return Err(PackError::Rows { index, start, end, rows, order });
        }
        rows = rows.checked_add(end - start).ok_or(PackError::Size { rows: usize::MAX, columns, format })?;
    }
    if layout == Layout::GateUp && !rows.is_multiple_of(2) {
        return Err(PackError::OddGateUp(rows));
    }
    // With this, rounding up below cannot overflow.
    if rows > usize::MAX / 2 || columns > usize::MAX / 2 {
        return Err(PackError::Size { rows, columns, format });
    }
    Ok(Shape { rows, columns, format, layout })
}

/// Packs one panel.
struct Packer<'a> {
    request: &'a PackRequest<'a>,
    shape: Shape,
    panel: usize,
}

impl Packer<'_> {
    /// Fills `panel`, and says what the conversion did to which source.
    fn pack(&self, scratch: &mut [u8], panel: &mut [u8]) -> Result<Vec<(usize, ConversionStats)>, PackError> {
        let (size, stride) = (self.shape.format.bytes(), self.shape.scratch_stride());
        let mut found = Vec::new();
        let width = self.shape.padded_columns();
        for start in (0..width).step_by(COLUMNS) {
            let columns = start..(start + COLUMNS).min(width);
            for (place, row) in scratch.chunks_exact_mut(stride).enumerate() {
                let row = &mut row[..columns.len() * size];
                found.extend(self.convert(place, columns.clone(), row)?);
            }
            let out = &mut panel[start * size * PANEL..columns.end * size * PANEL];
            match self.shape.format {
                Format::F16 => interleave::<u16>(scratch, stride, out),
                // A pair of bf16 moves as one.
                _ => interleave::<u32>(scratch, stride, out),
            }
        }
        Ok(found)
    }

    /// Converts some columns of the row in `place`; padding becomes zero.
    fn convert(
        &self,
        place: usize,
        columns: Range<usize>,
        out: &mut [u8],
    ) -> Result<Option<(usize, ConversionStats)>, PackError> {
        let Some((index, bytes)) = self.row_bytes(place) else {
            out.fill(0);
            return Ok(None);
        };
        let source = &self.request.sources[index];
        let size = source.format.bytes();
        let end = columns.end.min(self.shape.columns);
        let (out, padding) = out.split_at_mut((end - columns.start) * self.shape.format.bytes());
        padding.fill(0);
        let bytes = &bytes[columns.start * size..end * size];
        let stats = convert_slice(bytes, source.format, out, self.shape.format, self.request.overflow)
            .map_err(|error| PackError::Convert { index, error })?;
        Ok(Some((index, stats)))
    }

    /// The source and the stored bytes of the row in `place`, unless that is padding.
    fn row_bytes(&self, place: usize) -> Option<(usize, &[u8])> {
        let mut row = self.shape.row_at(self.panel, place)?;
        for (index, source) in self.request.sources.iter().enumerate() {
            if row < source.rows.len() {
                let stored = source.order.stored_row(source.rows.start + row, source.tensor_rows);
                let bytes = self.shape.columns * source.format.bytes();
                return Some((index, &source.bytes[stored * bytes..(stored + 1) * bytes]));
            }
            row -= source.rows.len();
        }
        None
    }
}

/// `out[k][place] = rows[place][k]`, in units of `T`, by squares that stay in registers and first-level cache.
fn interleave<T: bytemuck::Pod>(rows: &[u8], stride: usize, out: &mut [u8]) {
    const SIDE: usize = 16;
    let rows: &[T] = bytemuck::cast_slice(rows);
    let stride = stride / size_of::<T>();
    let (out, _) = bytemuck::cast_slice_mut::<u8, T>(out).as_chunks_mut::<PANEL>();
    for (group, out) in out.chunks_mut(SIDE).enumerate() {
        for (place, row) in rows.chunks_exact(stride).enumerate().take(PANEL) {
            // The stride has room for whole groups.
            let Some(row) = row[group * SIDE..].first_chunk::<SIDE>() else { continue };
            for (out, value) in out.iter_mut().zip(row) {
                out[place] = *value;
            }
        }
    }
}
