//! Loads a weight row by row into the policy's format: what every backend must check and report, for those that do
//! not pack from the checkpoint directly.

use std::ops::Range;

use mantissa_numerics::Format;
use mantissa_numerics::convert::slice::{ConvertError, convert_slice};
use mantissa_numerics::convert::{ConversionStats, Overflow};

use crate::backend::{Conversion, LoadReport, OverflowRule, PrepareError};
use crate::op::Op;
use crate::program::{Program, WeightId, WeightKind, WeightPart, WeightSpec};
use crate::source::{RowOrder, SourceError, TensorSource};
use crate::view::View;

/// Reads the parts of a weight, stacked along their rows, as `[rows, columns]` row-major numbers of `format`.
///
/// Adds what was lost to `report`: one entry per tensor whose format changed.
///
/// # Errors
/// [`PrepareError`] where a tensor is missing, has another shape, does not fit memory, holds a NaN or infinity in a
/// norm or bias, or holds finite values beyond the range of `format` while `overflow` refuses them.
pub fn load_weight(
    spec: &WeightSpec,
    format: Format,
    source: &dyn TensorSource,
    overflow: OverflowRule,
    report: &mut LoadReport,
) -> Result<Vec<u8>, PrepareError> {
    let parts = find_parts(spec, source)?;
    let row_bytes = format.bytes_for(spec.columns).unwrap_or(usize::MAX);
    let mut bytes = filled(0, row_bytes.saturating_mul(spec.rows), &spec.name)?;
    let mut rest = bytes.as_mut_slice();
    for part in &parts {
        let (rows, after) = std::mem::take(&mut rest).split_at_mut(row_bytes * part.rows());
        rest = after;
        let stats = part.convert(0..part.rows(), rows, format, overflow)?;
        part.check(&stats, format, overflow, report)?;
    }
    Ok(bytes)
}

/// Looks up all parts of a weight, in the order of its rows.
///
/// # Errors
/// [`PrepareError`] where a tensor is missing, has another shape or does not lie row by row, or the rows of all of them
/// are not those of the weight.
pub fn find_parts<'a>(
    spec: &'a WeightSpec,
    source: &'a dyn TensorSource,
) -> Result<Vec<FoundPart<'a>>, PrepareError> {
    let stacked: usize = spec.parts.iter().map(|part| part.rows.len()).sum();
    if stacked != spec.rows {
        let (wanted, got) = (vec![spec.rows, spec.columns], vec![stacked, spec.columns]);
        return Err(PrepareError::Shape { tensor: spec.name.clone(), wanted, got });
    }
    spec.parts.iter().map(|part| FoundPart::find(spec, part, source)).collect()
}

/// A part of a weight that was found in the checkpoint in the shape that it should have.
#[derive(Clone, Debug)]
pub struct FoundPart<'a> {
    spec: &'a WeightSpec,
    part: &'a WeightPart,
    format: Format,
    bytes: &'a [u8],
    order: RowOrder,
}

impl<'a> FoundPart<'a> {
    fn find(
        spec: &'a WeightSpec,
        part: &'a WeightPart,
        source: &'a dyn TensorSource,
    ) -> Result<FoundPart<'a>, PrepareError> {
        let view = source.tensor(&part.tensor)?;
        check_shape(spec, part, &view)?;
        let order = checked_order(source.row_order(&part.tensor), part)?;
        let scattered = || unreadable(part, "its values do not lie row by row");
        let bytes = view.as_bytes().ok_or_else(scattered)?;
        Ok(FoundPart { spec, part, format: view.format(), bytes, order })
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.part.rows.len()
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.spec.columns
    }

    /// Bytes of one row as it is stored.
    pub fn stored_row(&self) -> usize {
        self.bytes.len() / self.part.tensor_rows
    }

    /// Converts some rows of the part, counted from its first, into as many rows of `format`, one after the other.
    ///
    /// # Errors
    /// Where a value has no counterpart at all in `format`, or `out` is of another length.
    pub fn convert(
        &self,
        rows: Range<usize>,
        out: &mut [u8],
        format: Format,
        overflow: OverflowRule,
    ) -> Result<ConversionStats, PrepareError> {
        let overflow = match overflow {
            OverflowRule::Refuse => Overflow::Infinity,
            OverflowRule::Saturate => Overflow::Saturate,
        };
        let convert = |stored: &[u8], out: &mut [u8]| {
            convert_slice(stored, self.format, out, format, overflow)
                .map_err(|error: ConvertError| unreadable(self.part, &error.to_string()))
        };
        let stored_row = self.stored_row();
        let first = self.part.rows.start;
        if self.order == RowOrder::AsStored {
            let stored = (first + rows.start) * stored_row..(first + rows.end) * stored_row;
            return Ok(convert(&self.bytes[stored], out)?);
        }
        let mut stats = ConversionStats::default();
        let out_row = out.len().checked_div(rows.len()).unwrap_or(0).max(1);
        for (row, out) in rows.zip(out.chunks_exact_mut(out_row)) {
            let from = self.order.stored_row(first + row, self.part.tensor_rows) * stored_row;
            stats.merge(&convert(&self.bytes[from..from + stored_row], out)?);
        }
        Ok(stats)
    }

    /// Checks what converting all of its rows met, and adds it to the report.
    ///
    /// # Errors
    /// As [`check_values`].
    pub fn check(
        &self,
        stats: &ConversionStats,
        format: Format,
        overflow: OverflowRule,
        report: &mut LoadReport,
    ) -> Result<(), PrepareError> {
        let FoundPart { spec, part, format: from, .. } = *self;
        check_values(spec, part, stats, Formats { from, to: format }, overflow)?;
        report.bytes_read += (self.stored_row() * part.rows.len()) as u64;
        if from != format {
            let conversion = Conversion { tensor: part.tensor.clone(), from, to: format, stats: *stats };
            record(report, conversion);
        }
        Ok(())
    }
}

fn unreadable(part: &WeightPart, message: &str) -> SourceError {
    SourceError { message: format!("tensor {}: {message}", part.tensor) }
}

/// Memory filled with `value`, or an error where there is not that much.
pub(crate) fn filled<T: Clone>(value: T, length: usize, what: &str) -> Result<Vec<T>, PrepareError> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(length).map_err(|_| PrepareError::OutOfMemory {
        what: what.to_owned(),
        bytes: (length as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    memory.resize(length, value);
    Ok(memory)
}

/// Checks a part of a weight against the tensor that should hold it.
///
/// # Errors
/// [`PrepareError::Shape`] naming the tensor.
pub fn check_shape(spec: &WeightSpec, part: &WeightPart, view: &View<'_>) -> Result<(), PrepareError> {
    let wanted = match spec.kind {
        WeightKind::Matrix | WeightKind::GateUp => vec![part.tensor_rows, spec.columns],
        WeightKind::Vector => vec![part.tensor_rows],
    };
    let inside = part.rows.start <= part.rows.end && part.rows.end <= part.tensor_rows;
    if view.shape() != wanted || !inside || view.is_empty() {
        let got = view.shape().to_vec();
        return Err(PrepareError::Shape { tensor: part.tensor.clone(), wanted, got });
    }
    Ok(())
}

/// Checks that the rows of a part can be in the order that the source states.
///
/// # Errors
/// [`PrepareError::Limit`] where heads and rows do not fit.
pub fn checked_order(order: RowOrder, part: &WeightPart) -> Result<RowOrder, PrepareError> {
    match order {
        RowOrder::RopePairs { heads } if heads == 0 || !part.tensor_rows.is_multiple_of(2 * heads) => {
            Err(PrepareError::Limit {
                what: "heads of a tensor with interleaved rotary pairs",
                got: heads,
                wanted: format!("a divisor of half of the {} rows of {}", part.tensor_rows, part.tensor),
            })
        }
        order => Ok(order),
    }
}

/// A conversion's formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// As stored.
    pub from: Format,
    /// As wanted by the policy.
    pub to: Format,
}

/// Checks what a conversion met: norms and biases must be finite, and nothing may overflow unless that is allowed.
///
/// # Errors
/// [`PrepareError::NotFinite`] and [`PrepareError::Overflow`] naming the tensor.
pub fn check_values(
    spec: &WeightSpec,
    part: &WeightPart,
    stats: &ConversionStats,
    formats: Formats,
    overflow: OverflowRule,
) -> Result<(), PrepareError> {
    let tensor = part.tensor.clone();
    let count = stats.nan + stats.inf;
    if spec.kind == WeightKind::Vector && count > 0 {
        return Err(PrepareError::NotFinite { tensor, count });
    }
    if stats.overflowed > 0 && overflow == OverflowRule::Refuse {
        let Formats { from, to } = formats;
        return Err(PrepareError::Overflow { tensor, from, to, count: stats.overflowed });
    }
    Ok(())
}

/// Adds a conversion to a report: one entry per tensor, whatever the number of its parts.
pub fn record(report: &mut LoadReport, conversion: Conversion) {
    match report.conversions.iter_mut().find(|known| known.tensor == conversion.tensor) {
        Some(known) => known.stats.merge(&conversion.stats),
        None => report.conversions.push(conversion),
    }
}

/// Bytes that the checkpoint holds for a weight.
///
/// # Errors
/// Where a tensor is missing.
pub fn stored_bytes(spec: &WeightSpec, source: &dyn TensorSource) -> Result<u64, SourceError> {
    let part_bytes = |part: &WeightPart| {
        let view = source.tensor(&part.tensor)?;
        Ok((view.format().bytes() * spec.columns * part.rows.len()) as u64)
    };
    spec.parts.iter().map(part_bytes).sum()
}

/// Demands that matrices stand where ops read matrices, gates where they read gates, and vectors elsewhere.
///
/// # Errors
/// [`PrepareError::Limit`] naming the step and the weight.
pub fn check_kinds(program: &Program) -> Result<(), PrepareError> {
    let matrix = |id: WeightId| (id, WeightKind::Matrix);
    let vector = |id: WeightId| (id, WeightKind::Vector);
    for step in &program.steps {
        let wanted: Vec<(WeightId, WeightKind)> = match &step.op {
            Op::Embedding(op) => vec![matrix(op.table)],
            Op::RmsNorm(op) => vec![vector(op.weight)],
            Op::Matmul(op) => std::iter::once(matrix(op.weight)).chain(op.bias.map(vector)).collect(),
            Op::Qkv(op) => {
                let norms = op.head_norms.into_iter().flat_map(|norms| [norms.query, norms.key]);
                std::iter::once(matrix(op.weight))
                    .chain(op.bias.into_iter().chain(norms).map(vector))
                    .collect()
            }
            Op::SwiGlu(op) => vec![(op.weight, WeightKind::GateUp)],
            Op::Ffn(op) => vec![(op.gate_up, WeightKind::GateUp), matrix(op.down)],
            Op::Logits(op) => vec![matrix(op.weight)],
            Op::Rope(_) | Op::Softmax(_) | Op::Sdpa(_) | Op::Attention(_) | Op::Residual(_) => vec![],
        };
        if let Some((id, kind)) = wanted.into_iter().find(|(id, kind)| program.weight(*id).kind != *kind) {
            let weight = program.weight(id);
            return Err(PrepareError::Limit {
                what: "weight of a step",
                got: id.0,
                wanted: format!("{kind:?} for {}, but {} is {:?}", step.name, weight.name, weight.kind),
            });
        }
    }
    Ok(())
}
