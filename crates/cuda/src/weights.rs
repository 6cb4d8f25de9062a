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

/// Where a weight may start, in bytes: what memory of its own would start at.
const ALIGN: usize = 256;
/// What the memory is called in errors.
const WHAT: &str = "weights";

/// A weight: `[rows][stride]`, of which `columns` count and the others are zero; a vector is one row of f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    address: u64,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl Weight {
    pub fn address(&self) -> u64 {
        self.address
    }

    fn new(spec: &WeightSpec, format: Format, address: u64) -> Weight {
        let (rows, columns, stride) = match spec.kind {
            WeightKind::Vector => (1, spec.len(), spec.len()),
            WeightKind::Matrix | WeightKind::GateUp => {
                (spec.rows, spec.columns, row_stride(spec.columns, format))
            }
        };
        Weight { address, rows, columns, stride }
    }
}

/// All weights of a plan, in one piece of memory: the driver hands out 2 MiB at a time, and would round each of them up.
#[derive(Debug)]
pub(crate) struct Weights {
    weights: Vec<Weight>,
    buffer: DeviceBuffer,
}

/// What loading needs to know.
pub(crate) struct Loader<'a> {
    pub device: &'a Device,
    pub stream: &'a Stream,
    pub source: &'a dyn TensorSource,
    pub overflow: OverflowRule,
    pub progress: &'a dyn Progress,
}

/// Bytes that a weight takes on the device, up to the start of the next one.
fn device_bytes(spec: &WeightSpec, format: Format) -> usize {
    let bytes = match spec.kind {
        WeightKind::Vector => spec.len().saturating_mul(size_of::<f32>()),
        WeightKind::Matrix | WeightKind::GateUp => {
            row_stride(spec.columns, format).saturating_mul(format.bytes()).saturating_mul(spec.rows)
        }
    };
    bytes.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX)
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
        let bytes = usize::try_from(weight_bytes(plan)).unwrap_or(usize::MAX);
        let buffer = loader.device.allocate(bytes, WHAT).map_err(|error| prepare_error(WHAT, error))?;
        let (mut weights, mut rows, mut at) = (Vec::new(), Vec::new(), 0);
        for (spec, parts) in specs.iter().zip(&parts) {
            let weight = Weight::new(spec, format, buffer.address() + at as u64);
            rows.push(WeightRows { spec, stride: weight.stride, at, parts });
            weights.push(weight);
            at += device_bytes(spec, format);
        }
        loader.progress.start(total);
        Upload { loader, format, weights: &rows, to: &buffer }.run(report)?;
        loader.progress.finish();
        Ok(Weights { weights, buffer })
    }

    pub fn get(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }

    pub fn bytes(&self) -> u64 {
        self.buffer.bytes() as u64
    }
}
