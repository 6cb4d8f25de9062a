//! From the checkpoint's bytes to the device's: several threads convert rows into page-locked memory, from where they are
//! copied while the next ones are converted.
//!
//! Weights are cut into pieces of whole rows. Each thread takes the next piece that nobody has, converts it into one of
//! its two [`Stage`]s and starts the copy; before it writes a stage again it waits for the copy from it. So reading,
//! converting and copying overlap, in bounded memory, however large the model.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mantissa_numerics::{ConversionStats, Format, decode_slice};
use mantissa_ops::SourceError;
use mantissa_ops::backend::{LoadReport, OverflowRule, PrepareError};
use mantissa_ops::load::FoundPart;
use mantissa_ops::program::{WeightKind, WeightSpec};

use crate::device::{Device, DeviceBuffer, Event, HostBuffer, Stream};
use crate::error::{CudaError, prepare_error};
use crate::weights::Loader;

/// Bytes of a stage, where rows are not longer: large enough that a copy runs at full speed.
const STAGE_BYTES: usize = 2 << 20;
/// Threads at most: together their stages take 64 MiB.
const THREADS: usize = 16;
/// Bytes on the device for which one more thread is started.
const THREAD_BYTES: usize = 8 << 20;

/// A weight on its way: its place on the device, and the checkpoint's rows.
#[derive(Clone, Copy)]
pub(crate) struct WeightRows<'a> {
    pub spec: &'a WeightSpec,
    /// Values from one row of a matrix to the next, on the device.
    pub stride: usize,
    /// Where it starts, in bytes from the start of all weights.
    pub at: usize,
    /// In the order of its rows.
    pub parts: &'a [FoundPart<'a>],
}

/// All weights on their way.
pub(crate) struct Upload<'a> {
    pub loader: &'a Loader<'a>,
    pub format: Format,
    pub weights: &'a [WeightRows<'a>],
    pub to: &'a DeviceBuffer,
}

/// Rows of a part of a weight that are converted and copied together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    weight: usize,
    part: usize,
    /// Counted from the first of the part.
    rows: Range<usize>,
    /// Where they go, in bytes from the start of all weights.
    at: usize,
    /// The first piece that is not of this part.
    part_end: usize,
}

/// A part that is cut.
struct Part {
    weight: usize,
    part: usize,
    rows: usize,
    /// Bytes of a row on the device.
    row_bytes: usize,
    /// Where it starts, in bytes from the start of all weights.
    at: usize,
}

/// Appends the pieces of a part.
fn cut(pieces: &mut Vec<Piece>, Part { weight, part, rows, row_bytes, at }: Part) {
    let each = (STAGE_BYTES / row_bytes.max(1)).max(1);
    let part_end = pieces.len() + rows.div_ceil(each);
    for start in (0..rows).step_by(each) {
        let rows = start..(start + each).min(rows);
        pieces.push(Piece { weight, part, rows, at: at + start * row_bytes, part_end });
    }
}

/// What the threads share.
struct Shared<'a> {
    upload: &'a Upload<'a>,
    pieces: &'a [Piece],
    stage_bytes: usize,
    next: AtomicUsize,
    /// Pieces from here on are not begun: an earlier part is refused.
    end: AtomicUsize,
    /// Pieces of each weight that are not done yet.
    left: Vec<AtomicUsize>,
    /// Of each part of each weight.
    stats: Vec<Mutex<Vec<ConversionStats>>>,
}

/// Which part of which weight could not be brought, and why.
type Failure = ((usize, usize), PrepareError);

impl Upload<'_> {
    /// Brings all rows to the device. Of several failures that of the first part is returned, whichever thread came
    /// first.
    pub fn run(&self, report: &mut LoadReport) -> Result<(), PrepareError> {
        let pieces = self.pieces();
        let mut left = vec![0; self.weights.len()];
        let mut stage_bytes = 0;
        for piece in &pieces {
            left[piece.weight] += 1;
            stage_bytes = stage_bytes.max(piece.rows.len() * self.device_row(piece.weight));
        }
        let stats = |rows: &WeightRows<'_>| Mutex::new(vec![ConversionStats::default(); rows.parts.len()]);
        let shared = Shared {
            upload: self,
            pieces: &pieces,
            stage_bytes,
            next: AtomicUsize::new(0),
            end: AtomicUsize::new(pieces.len()),
            left: left.into_iter().map(AtomicUsize::new).collect(),
            stats: self.weights.iter().map(stats).collect(),
        };
        let failures = self.on_threads(|| shared.work());
        let first = failures.into_iter().min_by_key(|(place, _)| *place);
        for (weight, (rows, stats)) in self.weights.iter().zip(shared.stats).enumerate() {
            let stats = stats.into_inner().unwrap_or_else(PoisonError::into_inner);
            for (part, (found, stats)) in rows.parts.iter().zip(stats).enumerate() {
                match &first {
                    Some((place, error)) if *place == (weight, part) => return Err(error.clone()),
                    _ => found.check(&stats, self.format, self.loader.overflow, report)?,
                }
            }
        }
        Ok(())
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (weight, rows) in self.weights.iter().enumerate() {
            let (mut at, row_bytes) = (rows.at, self.device_row(weight));
            for (part, found) in rows.parts.iter().enumerate() {
                cut(&mut pieces, Part { weight, part, rows: found.rows(), row_bytes, at });
                at += found.rows() * row_bytes;
            }
        }
        pieces
    }

    /// Bytes of a row on the device.
    fn device_row(&self, weight: usize) -> usize {
        let WeightRows { spec, stride, .. } = self.weights[weight];
        match spec.kind {
            WeightKind::Vector => size_of::<f32>(),
            WeightKind::Matrix | WeightKind::GateUp => stride * self.format.bytes(),
        }
    }

    /// Does the work on this thread and on as many others as the weights are worth.
    fn on_threads(&self, work: impl Fn() -> Vec<Failure> + Sync) -> Vec<Failure> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = processors.min(THREADS).min(1 + self.to.bytes() / THREAD_BYTES);
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
            let mut failures = work();
            for helper in helpers {
                match helper.join() {
                    Ok(more) => failures.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            failures
        })
    }
}

impl Shared<'_> {
    /// Brings pieces until none is left.
    fn work(&self) -> Vec<Failure> {
        let device = self.upload.loader.device;
        let stage = || Stage::new(device, self.stage_bytes);
        let mut stages = match device.bind().and_then(|()| Ok([stage()?, stage()?])) {
            Ok(stages) => stages,
            Err(error) => return vec![((0, 0), prepare_error("loading", error))],
        };
        let mut failures = Vec::new();
        for turn in 0.. {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.end.load(Ordering::Relaxed) {
                break;
            }
            let piece = &self.pieces[index];
            if let Err(error) = self.bring(piece, &mut stages[turn % 2]) {
                self.end.fetch_min(piece.part_end, Ordering::Relaxed);
                failures.push(((piece.weight, piece.part), error));
            }
        }
        for mut stage in stages {
            if let Err(error) = stage.free() {
                failures.push(((0, 0), prepare_error("loading", error)));
            }
        }
        failures
    }

    fn bring(&self, piece: &Piece, stage: &mut Stage) -> Result<(), PrepareError> {
        let Upload { loader, format, weights, to } = *self.upload;
        let WeightRows { spec, parts, .. } = weights[piece.weight];
        let found = &parts[piece.part];
        let failed = |error| prepare_error(&spec.name, error);
        let bytes = piece.rows.len() * self.upload.device_row(piece.weight);
        let staged = &mut stage.free().map_err(failed)?[..bytes];
        let stats = match spec.kind {
            WeightKind::Vector => decoded(found, piece.rows.clone(), staged, format, loader.overflow)?,
            WeightKind::Matrix | WeightKind::GateUp => {
                padded(found, piece.rows.clone(), staged, format, loader.overflow)?
            }
        };
        stage.send(bytes, loader.stream, to, piece.at).map_err(failed)?;
        if stats.overflowed > 0 && loader.overflow == OverflowRule::Refuse {
            self.end.fetch_min(piece.part_end, Ordering::Relaxed);
        }
        // A panic while the lock is held leaves whole counts.
        let mut all = self.stats[piece.weight].lock().unwrap_or_else(PoisonError::into_inner);
        all[piece.part].merge(&stats);
        drop(all);
        loader.progress.advance((piece.rows.len() * found.stored_row()) as u64);
        // The last one sees what the others have read: the file's pages may go.
        if self.left[piece.weight].fetch_sub(1, Ordering::AcqRel) == 1 {
            spec.parts.iter().for_each(|part| loader.source.release(&part.tensor));
        }
        Ok(())
    }
}

/// Converts rows of a matrix, each of which fills its share of `out` from the start; zeros follow.
fn padded(
    part: &FoundPart<'_>,
    rows: Range<usize>,
    out: &mut [u8],
    format: Format,
    overflow: OverflowRule,
) -> Result<ConversionStats, PrepareError> {
    let row = part.columns() * format.bytes();
    let stride = out.len() / rows.len().max(1);
    if row == stride {
        return part.convert(rows, out, format, overflow);
    }
    let mut stats = ConversionStats::default();
    for (index, out) in rows.zip(out.chunks_exact_mut(stride)) {
        let (values, padding) = out.split_at_mut(row);
        stats.merge(&part.convert(index..index + 1, values, format, overflow)?);
        padding.fill(0);
    }
    Ok(stats)
}

/// Converts values of a vector, and decodes them to f32.
fn decoded(
    part: &FoundPart<'_>,
    rows: Range<usize>,
    out: &mut [u8],
    format: Format,
    overflow: OverflowRule,
) -> Result<ConversionStats, PrepareError> {
    let mut stored = vec![0; rows.len() * format.bytes()];
    let stats = part.convert(rows, &mut stored, format, overflow)?;
    let decoded = decode_slice(&stored, format, bytemuck::cast_slice_mut(out));
    decoded.map_err(|error| SourceError { message: error.to_string() })?;
    Ok(stats)
}

/// Page-locked memory and the copy from it that is under way.
struct Stage {
    host: HostBuffer,
    copied: Option<Event>,
}

impl Stage {
    fn new(device: &Device, bytes: usize) -> Result<Stage, CudaError> {
        Ok(Stage { host: device.allocate_host(bytes, "stage of weights")?, copied: None })
    }

    /// The memory, when nothing reads it any more.
    fn free(&mut self) -> Result<&mut [u8], CudaError> {
        if let Some(copied) = self.copied.take() {
            copied.wait()?;
        }
        Ok(&mut self.host)
    }

    /// Starts the copy of the first `bytes` bytes.
    fn send(&mut self, bytes: usize, stream: &Stream, to: &DeviceBuffer, at: usize) -> Result<(), CudaError> {
        stream.upload_later(&self.host, bytes, to, at)?;
        self.copied = Some(stream.record()?);
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The copy must end before the memory goes; what went wrong in it shows elsewhere.
        let _ = self.free();
    }
}

#[cfg(test)]
mod tests {
    use mantissa_ops::RowOrder;
    use mantissa_ops::conformance::data::MemorySource;
    use mantissa_ops::load::{find_parts, load_weight};
    use mantissa_ops::program::WeightPart;

    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|index| index as f32 * 0.37 - 5.0).collect()
    }

    /// Twelve rows of five columns: all of one tensor, whose rotary pairs are interleaved, and some of another.
    fn stacked() -> (WeightSpec, MemorySource) {
        let mut source = MemorySource::default();
        source.add("a", &[8, 5], Format::F32, &numbers(40));
        source.set_order("a", RowOrder::RopePairs { heads: 2 });
        source.add("b", &[6, 5], Format::F16, &numbers(30));
        let taken = WeightPart { tensor: "b".to_owned(), tensor_rows: 6, rows: 1..5 };
        let parts = vec![WeightPart::whole("a", 8), taken];
        let kind = WeightKind::Matrix;
        (WeightSpec { name: "w".to_owned(), rows: 12, columns: 5, kind, parts }, source)
    }

    #[test]
    fn pieces_are_the_rows_of_the_whole_weight_with_zeros_after_them() {
        let (spec, source) = stacked();
        let (format, refuse) = (Format::Bf16, OverflowRule::Refuse);
        let mut report = LoadReport::default();
        let whole = load_weight(&spec, format, &source, refuse, &mut report).unwrap();
        let (row, stride) = (5 * format.bytes(), 8 * format.bytes());
        let mut pieces = Vec::new();
        let mut piecewise = LoadReport::default();
        for part in find_parts(&spec, &source).unwrap() {
            let mut stats = ConversionStats::default();
            for start in (0..part.rows()).step_by(3) {
                let rows = start..(start + 3).min(part.rows());
                let mut out = vec![0xff; rows.len() * stride];
                stats.merge(&padded(&part, rows, &mut out, format, refuse).unwrap());
                pieces.extend(out);
            }
            part.check(&stats, format, refuse, &mut piecewise).unwrap();
        }
        assert_eq!(pieces.len(), 12 * stride);
        for (piece, expected) in pieces.chunks(stride).zip(whole.chunks(row)) {
            assert_eq!(&piece[..row], expected);
            assert_eq!(&piece[row..], [0; 6]);
        }
        assert_eq!(piecewise, report);
    }

    #[test]
    fn vectors_are_rounded_to_the_format_and_decoded() {
        let mut source = MemorySource::default();
        source.add("norm", &[7], Format::F32, &numbers(7));
        let parts = vec![WeightPart::whole("norm", 7)];
        let spec =
            WeightSpec { name: "norm".to_owned(), rows: 7, columns: 1, kind: WeightKind::Vector, parts };
        let mut expected = MemorySource::default();
        expected.add("rounded", &[7], Format::Bf16, &numbers(7));
        let found = find_parts(&spec, &source).unwrap();
        let mut out = [f32::NAN; 4];
        let bytes = bytemuck::cast_slice_mut(&mut out);
        let stats = decoded(&found[0], 2..6, bytes, Format::Bf16, OverflowRule::Refuse).unwrap();
        assert_eq!(out, expected.numbers("rounded")[2..6]);
        assert!(stats.max_relative_error > 0.0);
    }

    #[test]
    fn parts_are_cut_into_pieces_that_fill_a_stage() {
        let mut pieces = Vec::new();
        let row_bytes = STAGE_BYTES / 4;
        cut(&mut pieces, Part { weight: 3, part: 0, rows: 9, row_bytes, at: 100 });
        cut(&mut pieces, Part { weight: 3, part: 1, rows: 1, row_bytes: 5 * STAGE_BYTES, at: 200 });
        let piece = |part, rows: Range<usize>, at, part_end| Piece { weight: 3, part, rows, at, part_end };
        let expected = [
            piece(0, 0..4, 100, 3),
            piece(0, 4..8, 100 + STAGE_BYTES, 3),
            piece(0, 8..9, 100 + 2 * STAGE_BYTES, 3),
            piece(1, 0..1, 200, 4),
        ];
        assert_eq!(pieces, expected);
    }
}
