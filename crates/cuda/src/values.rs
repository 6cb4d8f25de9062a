//! The values of a program on the device: one buffer each, for the largest batch.
//!
//! Rows start at multiples of 16 bytes; what pads them is never read.

use std::sync::Arc;

use mantissa_numerics::{Format, decode_slice, encode_slice};
use mantissa_ops::program::{RunRows, ValueRole, ValueSpec};
use mantissa_ops::{Limits, Plan, RunError, ValueId};

use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::CudaError;
use crate::needs::saturating_sum;

/// All values of a session.
#[derive(Debug)]
pub(crate) struct Values {
    slots: Vec<Slot>,
    stream: Arc<Stream>,
}

/// Where a value is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub address: u64,
    /// Values per row.
    pub width: u32,
    /// Values from one row to the next.
    pub stride: u32,
}

#[derive(Debug)]
struct Slot {
    name: String,
    format: Format,
    width: usize,
    stride: usize,
    role: ValueRole,
    rows: usize,
    buffer: DeviceBuffer,
}

/// Values of a row with what pads it to 16 bytes.
pub(crate) fn row_stride(width: usize, format: Format) -> usize {
    let each = 16 / format.bytes().max(1);
    width.next_multiple_of(each.max(1))
}

/// Bytes that the values of a plan need.
pub(crate) fn value_bytes(plan: &Plan, limits: &Limits) -> u64 {
    let bytes = |(index, spec): (usize, &ValueSpec)| {
        slot_bytes(spec, plan.value_format(ValueId(index)), limits) as u64
    };
    saturating_sum(plan.program.values.iter().enumerate().map(bytes))
}

fn slot_bytes(spec: &ValueSpec, format: Format, limits: &Limits) -> usize {
    let rows = RunRows { tokens: limits.rows, outputs: limits.outputs }.of(spec.role);
    row_stride(spec.width, format).saturating_mul(format.bytes()).saturating_mul(rows)
}

impl Values {
    pub fn new(
        plan: &Plan,
        limits: &Limits,
        device: &Device,
        stream: &Arc<Stream>,
    ) -> Result<Values, CudaError> {
        let slot = |(index, spec): (usize, &ValueSpec)| {
            let format = plan.value_format(ValueId(index));
            let buffer =
                device.allocate(slot_bytes(spec, format, limits), &format!("value {}", spec.name))?;
            Ok(Slot {
                name: spec.name.clone(),
                format,
                width: spec.width,
                stride: row_stride(spec.width, format),
                role: spec.role,
                rows: RunRows { tokens: limits.rows, outputs: limits.outputs }.of(spec.role),
                buffer,
            })
        };
        let slots: Result<_, CudaError> = plan.program.values.iter().enumerate().map(slot).collect();
        Ok(Values { slots: slots?, stream: Arc::clone(stream) })
    }

    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.buffer.bytes() as u64).sum()
    }

    pub fn place(&self, id: ValueId) -> Place {
        let slot = &self.slots[id.0];
        Place { address: slot.buffer.address(), width: slot.width as u32, stride: slot.stride as u32 }
    }

    /// All rows of a run, decoded.
    pub fn decoded(&self, id: ValueId, rows: RunRows) -> Result<Vec<f32>, CudaError> {
        let slot = &self.slots[id.0];
        let (rows, row_bytes) = (rows.of(slot.role), slot.stride * slot.format.bytes());
        let mut stored = vec![0; rows * row_bytes];
        self.stream.download(&slot.buffer, 0, &mut stored)?;
        let mut numbers = vec![f32::NAN; rows * slot.width];
        let used = slot.width * slot.format.bytes();
        for (stored, numbers) in
            stored.chunks_exact(row_bytes.max(1)).zip(numbers.chunks_exact_mut(slot.width))
        {
            // Lengths agree and the formats of values decode, so nothing is left to fail.
            let _ = decode_slice(&stored[..used], slot.format, numbers);
        }
        Ok(numbers)
    }

    /// The f32 rows of a value that is stored without padding, into memory of the host.
    pub fn download_f32(&self, id: ValueId, rows: usize, to: &mut [u8]) -> Result<usize, CudaError> {
        let slot = &self.slots[id.0];
        let row_bytes = slot.width * size_of::<f32>();
        if slot.stride == slot.width {
            let bytes = rows * row_bytes;
            self.stream.download(&slot.buffer, 0, &mut to[..bytes])?;
            return Ok(bytes);
        }
        for (row, to) in to.chunks_exact_mut(row_bytes.max(1)).take(rows).enumerate() {
            self.stream.download(&slot.buffer, row * slot.stride * size_of::<f32>(), to)?;
        }
        Ok(rows * row_bytes)
    }

    /// Sets the first rows of a value.
    pub fn write(&self, id: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        let slot = &self.slots[id.0];
        let value = || slot.name.clone();
        let wanted = slot.rows * slot.width;
        if numbers.len() > wanted || !numbers.len().is_multiple_of(slot.width) {
            return Err(RunError::ValueLength { value: value(), wanted, got: numbers.len() });
        }
        let size = slot.format.bytes();
        let (row_bytes, used) = (slot.stride * size, slot.width * size);
        let rows = numbers.len() / slot.width;
        let mut bytes = vec![0xff; rows * row_bytes];
        let mut back = vec![0.0; slot.width];
        for (numbers, bytes) in numbers.chunks_exact(slot.width).zip(bytes.chunks_exact_mut(row_bytes)) {
            let stored = encode_slice(numbers, slot.format, &mut bytes[..used])
                .and_then(|()| decode_slice(&bytes[..used], slot.format, &mut back));
            let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
            let lost = numbers.iter().zip(&back).find(|&pair| !same(pair)).map(|(number, _)| *number);
            if stored.is_err() || lost.is_some() {
                let number = lost.unwrap_or(f32::NAN);
                return Err(RunError::NotRepresentable { value: value(), number, format: slot.format });
            }
        }
        self.stream
            .upload(&bytes, &slot.buffer, 0)
            .map_err(|error| RunError::Kernel { step: value(), message: error.to_string() })
    }
}
