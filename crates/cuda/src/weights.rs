//! Weights on the device: matrices row by row in the policy's format, vectors decoded to f32.

use mantissa_numerics::{Format, decode_slice};
use mantissa_ops::backend::{LoadReport, OverflowRule, PrepareError, Progress};
use mantissa_ops::load::{load_weight, stored_bytes};
use mantissa_ops::program::{WeightKind, WeightSpec};
use mantissa_ops::{Plan, SourceError, TensorSource, WeightId};

use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::{CudaError, prepare_error};
use crate::session::saturating_sum;
use crate::values::row_stride;

/// A weight: `[rows][stride]`, of which `columns` count and the others are zero; a vector is one row of f32.
#[derive(Debug)]
pub(crate) struct Weight {
    buffer: DeviceBuffer,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl Weight {
    pub fn address(&self) -> u64 {
        self.buffer.address()
    }
}

/// All weights of a plan.
#[derive(Debug)]
pub(crate) struct Weights {
    weights: Vec<Weight>,
}

/// What loading needs to know.
pub(crate) struct Loader<'a> {
    pub device: &'a Device,
    pub stream: &'a Stream,
    pub source: &'a dyn TensorSource,
    pub overflow: OverflowRule,
    pub progress: &'a dyn Progress,
}

/// Bytes that a weight takes on the device.
fn device_bytes(spec: &WeightSpec, format: Format) -> usize {
    match spec.kind {
        WeightKind::Vector => spec.len().saturating_mul(size_of::<f32>()),
        WeightKind::Matrix | WeightKind::GateUp => {
            row_stride(spec.columns, format).saturating_mul(format.bytes()).saturating_mul(spec.rows)
        }
    }
}

/// Bytes that all weights of a plan take on the device.
pub(crate) fn weight_bytes(plan: &Plan) -> u64 {
    let format = plan.policy.weights();
    saturating_sum(plan.program.weights.iter().map(|spec| device_bytes(spec, format) as u64))
}

impl Weights {
    /// Reads, converts and uploads every weight.
    pub fn load(plan: &Plan, loader: &Loader<'_>, report: &mut LoadReport) -> Result<Weights, PrepareError> {
        let format = plan.policy.weights();
        let specs = &plan.program.weights;
        let total = specs.iter().map(|spec| stored_bytes(spec, loader.source)).sum::<Result<u64, _>>()?;
        loader.progress.start(total);
        let mut weights = Vec::with_capacity(specs.len());
        for spec in specs {
            let before = report.bytes_read;
            weights.push(loader.load(spec, format, report)?);
            for part in &spec.parts {
                loader.source.release(&part.tensor);
            }
            loader.progress.advance(report.bytes_read - before);
        }
        loader.progress.finish();
        Ok(Weights { weights })
    }

    pub fn get(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }

    pub fn bytes(&self) -> u64 {
        self.weights.iter().map(|weight| weight.buffer.bytes() as u64).sum()
    }
}

impl Loader<'_> {
    fn load(
        &self,
        spec: &WeightSpec,
        format: Format,
        report: &mut LoadReport,
    ) -> Result<Weight, PrepareError> {
        let stored = load_weight(spec, format, self.source, self.overflow, report)?;
        let failed = |error: CudaError| prepare_error(&spec.name, error);
        let buffer = self.device.allocate(device_bytes(spec, format), &spec.name).map_err(failed)?;
        let (rows, columns) = match spec.kind {
            WeightKind::Vector => (1, spec.len()),
            WeightKind::Matrix | WeightKind::GateUp => (spec.rows, spec.columns),
        };
        if spec.kind == WeightKind::Vector {
            let mut decoded = vec![0.0_f32; spec.len()];
            decode_slice(&stored, format, &mut decoded)
                .map_err(|error| SourceError { message: format!("{}: {error}", spec.name) })?;
            self.stream.upload(bytemuck::cast_slice(&decoded), &buffer, 0).map_err(failed)?;
            return Ok(Weight { buffer, rows, columns, stride: columns });
        }
        let stride = row_stride(columns, format);
        if stride == columns {
            self.stream.upload(&stored, &buffer, 0).map_err(failed)?;
        } else {
            let (row, padded) = (columns * format.bytes(), stride * format.bytes());
            let mut rows_padded = vec![0; padded * rows];
            for (stored, padded) in stored.chunks_exact(row).zip(rows_padded.chunks_exact_mut(padded)) {
                padded[..row].copy_from_slice(stored);
            }
            self.stream.upload(&rows_padded, &buffer, 0).map_err(failed)?;
        }
        Ok(Weight { buffer, rows, columns, stride })
    }
}
