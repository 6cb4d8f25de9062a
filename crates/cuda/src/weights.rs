//! Weights on the device: matrices row by row in the policy's format, vectors decoded to f32.

use mantissa_numerics::Format;
use mantissa_ops::backend::{LoadReport, OverflowRule, PrepareError, Progress};
use mantissa_ops::load::{find_parts, stored_bytes};
use mantissa_ops::program::{WeightKind, WeightSpec};
use mantissa_ops::{Plan, TensorSource, WeightId};

use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::prepare_error;
use crate::needs::saturating_sum;
use crate::upload::{Upload, WeightRows};
use crate::values::row_stride;

/// A weight: `[rows][stride]`, of which `columns` count and the others are zero; a vector is one row of f32.
#[derive(Debug)]
pub(crate) struct Weight {
    pub buffer: DeviceBuffer,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl Weight {
    pub fn address(&self) -> u64 {
        self.buffer.address()
    }

    /// Memory for a weight.
    fn new(spec: &WeightSpec, format: Format, device: &Device) -> Result<Weight, PrepareError> {
        let buffer = device
            .allocate(device_bytes(spec, format), &spec.name)
            .map_err(|error| prepare_error(&spec.name, error))?;
        let (rows, columns, stride) = match spec.kind {
            WeightKind::Vector => (1, spec.len(), spec.len()),
            WeightKind::Matrix | WeightKind::GateUp => {
                (spec.rows, spec.columns, row_stride(spec.columns, format))
            }
        };
        Ok(Weight { buffer, rows, columns, stride })
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
        // Whatever is missing or of another shape shows before anything is read.
        let parts =
            specs.iter().map(|spec| find_parts(spec, loader.source)).collect::<Result<Vec<_>, _>>()?;
        let weights = specs
            .iter()
            .map(|spec| Weight::new(spec, format, loader.device))
            .collect::<Result<Vec<_>, _>>()?;
        let rows = specs.iter().zip(&weights).zip(&parts);
        let rows: Vec<_> = rows.map(|((spec, weight), parts)| WeightRows { spec, weight, parts }).collect();
        loader.progress.start(total);
        Upload { loader, format, weights: &rows }.run(report)?;
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
