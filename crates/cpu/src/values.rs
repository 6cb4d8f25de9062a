//! The values of a program in memory: one buffer each, for the largest batch.

use mantissa_numerics::{Format, decode_slice, encode_slice};
use mantissa_ops::program::{RunRows, ValueRole};
use mantissa_ops::{Limits, Plan, PrepareError, RunError, ValueId};

use crate::aligned::AlignedBuffer;
use crate::elements::{Elements, ElementsError, ElementsMut};

/// Written into fresh buffers: NaN in every format, so that a value read before it is written shows.
pub(crate) const POISON: u8 = 0xff;

/// All values of a session.
#[derive(Debug)]
pub(crate) struct Values {
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    format: Format,
    width: usize,
    role: ValueRole,
    buffer: AlignedBuffer,
}

/// A poisoned buffer.
pub(crate) fn poisoned(bytes: usize, what: &str) -> Result<AlignedBuffer, PrepareError> {
    let mut buffer = AlignedBuffer::zeroed(bytes)
        .map_err(|error| PrepareError::OutOfMemory { what: what.to_owned(), bytes: error.bytes as u64 })?;
    buffer.fill(POISON);
    Ok(buffer)
}

impl Values {
    pub fn new(plan: &Plan, limits: &Limits) -> Result<Values, PrepareError> {
        let rows = RunRows { tokens: limits.rows, outputs: limits.outputs };
        let slot = |(index, spec): (usize, &mantissa_ops::program::ValueSpec)| {
            let format = plan.value_format(ValueId(index));
            let bytes = format.bytes().saturating_mul(spec.width).saturating_mul(rows.of(spec.role));
            let buffer = poisoned(bytes, &format!("value {}", spec.name))?;
            Ok(Slot { name: spec.name.clone(), format, width: spec.width, role: spec.role, buffer })
        };
        let slots: Result<_, PrepareError> = plan.program.values.iter().enumerate().map(slot).collect();
        Ok(Values { slots: slots? })
    }

    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.buffer.len() as u64).sum()
    }

    pub fn width(&self, id: ValueId) -> usize {
        self.slots[id.0].width
    }

    pub fn format(&self, id: ValueId) -> Format {
        self.slots[id.0].format
    }

    /// The rows of a run, to read.
    pub fn get(&self, id: ValueId, rows: RunRows) -> Result<Elements<'_>, ElementsError> {
        let slot = &self.slots[id.0];
        Elements::from_bytes(slot.format, &slot.buffer[..slot.bytes(rows)])
    }

    /// The rows of a run, to write.
    pub fn get_mut(&mut self, id: ValueId, rows: RunRows) -> Result<ElementsMut<'_>, ElementsError> {
        self.slots[id.0].rows_mut(rows)
    }

    /// Values to read and one to write, all different.
    pub fn disjoint<const N: usize>(
        &mut self,
        inputs: [ValueId; N],
        output: ValueId,
        rows: RunRows,
    ) -> Result<([Elements<'_>; N], ElementsMut<'_>), AccessError> {
        if inputs.contains(&output) {
            return Err(AccessError::Overlap(self.slots[output.0].name.clone()));
        }
        let (before, rest) = self.slots.split_at_mut(output.0);
        let Some((written, after)) = rest.split_first_mut() else {
            return Err(AccessError::Overlap(format!("{output:?}")));
        };
        let slot_of = |id: ValueId| {
            if id.0 < output.0 { &before[id.0] } else { &after[id.0 - output.0 - 1] }
        };
        let mut read = [Elements::F32(&[]); N];
        for (place, id) in read.iter_mut().zip(inputs) {
            let slot = slot_of(id);
            *place = Elements::from_bytes(slot.format, &slot.buffer[..slot.bytes(rows)])?;
        }
        Ok((read, written.rows_mut(rows)?))
    }

    /// A value to read and two to write, all different.
    pub fn disjoint_pair(
        &mut self,
        input: ValueId,
        outputs: [ValueId; 2],
        rows: RunRows,
    ) -> Result<(Elements<'_>, [ElementsMut<'_>; 2]), AccessError> {
        let overlap = AccessError::Overlap(self.slots[input.0].name.clone());
        let indices = [input.0, outputs[0].0, outputs[1].0];
        let [read, first, second] = self.slots.get_disjoint_mut(indices).map_err(|_| overlap)?;
        let input = Elements::from_bytes(read.format, &read.buffer[..read.bytes(rows)])?;
        Ok((input, [first.rows_mut(rows)?, second.rows_mut(rows)?]))
    }

    /// All bytes of a value's buffer.
    pub fn bytes_of(&self, id: ValueId) -> &[u8] {
        &self.slots[id.0].buffer
    }

    /// All rows of a run, decoded.
    pub fn decoded(&self, id: ValueId, rows: RunRows) -> Vec<f32> {
        let slot = &self.slots[id.0];
        let mut numbers = vec![0.0; slot.width * rows.of(slot.role)];
        // Lengths agree and the formats of values decode, so nothing is left to fail.
        let _ = decode_slice(&slot.buffer[..slot.bytes(rows)], slot.format, &mut numbers);
        numbers
    }

    /// The f32 rows of a value that is stored as f32.
    pub fn as_f32(&self, id: ValueId, rows: RunRows) -> &[f32] {
        let slot = &self.slots[id.0];
        bytemuck::try_cast_slice(&slot.buffer[..slot.bytes(rows)]).unwrap_or_default()
    }

    /// Sets the first rows of a value.
    pub fn write(&mut self, id: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        let slot = &mut self.slots[id.0];
        let wanted = slot.buffer.len() / slot.format.bytes();
        if numbers.len() > wanted || !numbers.len().is_multiple_of(slot.width) {
            return Err(RunError::ValueLength { value: slot.name.clone(), wanted, got: numbers.len() });
        }
        let bytes = &mut slot.buffer[..numbers.len() * slot.format.bytes()];
        let mut back = vec![0.0; numbers.len()];
        let stored = encode_slice(numbers, slot.format, bytes)
            .and_then(|()| decode_slice(bytes, slot.format, &mut back));
        let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
        match numbers.iter().zip(&back).find(|&pair| !same(pair)) {
            None if stored.is_ok() => Ok(()),
            lost => {
                let number = lost.map_or(f32::NAN, |(number, _)| *number);
                Err(RunError::NotRepresentable { value: slot.name.clone(), number, format: slot.format })
            }
        }
    }
}

impl Slot {
    fn rows_mut(&mut self, rows: RunRows) -> Result<ElementsMut<'_>, ElementsError> {
        let bytes = self.bytes(rows);
        ElementsMut::from_bytes(self.format, &mut self.buffer[..bytes])
    }

    fn bytes(&self, rows: RunRows) -> usize {
        self.width * rows.of(self.role) * self.format.bytes()
    }
}

/// Values that a step cannot use together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    /// A value read and written by a step that needs them apart.
    #[error("value {0} is read and written by the same step")]
    Overlap(String),
    /// A format in which activations are not stored.
    #[error(transparent)]
    Elements(#[from] ElementsError),
}
