//! Loads a weight row by row into the policy's format: what every backend must check and report, for those that do
//! not pack from the checkpoint directly.

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
    let stacked: usize = spec.parts.iter().map(|part| part.rows.len()).sum();
    if stacked != spec.rows {
        let (wanted, got) = (vec![spec.rows, spec.columns], vec![stacked, spec.columns]);
        return Err(PrepareError::Shape { tensor: spec.name.clone(), wanted, got });
    }
    let row_bytes = format.bytes_for(spec.columns).unwrap_or(usize::MAX);
    let mut bytes = filled(0, row_bytes.saturating_mul(spec.rows), &spec.name)?;
    let mut rest = bytes.as_mut_slice();
    for part in &spec.parts {
        let (rows, after) = std::mem::take(&mut rest).split_at_mut(row_bytes * part.rows.len());
        rest = after;
        let view = source.tensor(&part.tensor)?;
        check_shape(spec, part, &view)?;
        let order = checked_order(source.row_order(&part.tensor), part)?;
        let stats = convert_part(part, &view, order, Target { bytes: rows, format, overflow })?;
        check_values(spec, part, &stats, Formats { from: view.format(), to: format }, overflow)?;
        report.bytes_read += (view.len() / part.tensor_rows * part.rows.len() * view.format().bytes()) as u64;
        if view.format() != format {
            record(
                report,
                Conversion { tensor: part.tensor.clone(), from: view.format(), to: format, stats },
            );
        }
    }
    Ok(bytes)
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

struct Target<'a> {
    bytes: &'a mut [u8],
    format: Format,
    overflow: OverflowRule,
}

fn convert_part(
    part: &WeightPart,
    view: &View<'_>,
    order: RowOrder,
    target: Target<'_>,
) -> Result<ConversionStats, PrepareError> {
    let unreadable = |message: String| SourceError { message: format!("tensor {}: {message}", part.tensor) };
    let bytes = view.as_bytes().ok_or_else(|| unreadable("its values do not lie row by row".into()))?;
    let overflow = match target.overflow {
        OverflowRule::Refuse => Overflow::Infinity,
        OverflowRule::Saturate => Overflow::Saturate,
    };
    let stored_row = bytes.len() / part.tensor_rows;
    let convert = |stored: &[u8], out: &mut [u8]| {
        convert_slice(stored, view.format(), out, target.format, overflow)
            .map_err(|error: ConvertError| unreadable(error.to_string()))
    };
    if order == RowOrder::AsStored {
        let stored = &bytes[part.rows.start * stored_row..part.rows.end * stored_row];
        return Ok(convert(stored, target.bytes)?);
    }
    let mut stats = ConversionStats::default();
    let out_row = target.bytes.len().checked_div(part.rows.len()).unwrap_or(0).max(1);
    for (row, out) in part.rows.clone().zip(target.bytes.chunks_exact_mut(out_row)) {
        let from = order.stored_row(row, part.tensor_rows) * stored_row;
        stats.merge(&convert(&bytes[from..from + stored_row], out)?);
    }
    Ok(stats)
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
