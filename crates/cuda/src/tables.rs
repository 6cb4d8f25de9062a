//! Rotary tables on the device: `[set][position][pair]` in f32, cosines and sines apart.

use std::num::NonZeroUsize;

use mantissa_ops::backend::PrepareError;
use mantissa_ops::program::RopeSpec;

use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::prepare_error;

const WHAT: &str = "rotary tables";

/// Cosines and sines of every position below the longest context.
#[derive(Debug)]
pub(crate) struct RopeTables {
    cos: DeviceBuffer,
    sin: DeviceBuffer,
    pub pairs: u32,
    pub context: u32,
}

/// Bytes of the tables.
pub(crate) fn table_bytes(spec: &RopeSpec, context: usize) -> u64 {
    (2 * size_of::<f32>() * spec.sets.len()) as u64 * (spec.pairs() as u64).saturating_mul(context as u64)
}

impl RopeTables {
    pub fn new(
        spec: &RopeSpec,
        context: usize,
        device: &Device,
        stream: &Stream,
    ) -> Result<RopeTables, PrepareError> {
        spec.check().map_err(|error| PrepareError::Part { what: WHAT, message: error.to_string() })?;
        let (cos, sin) = computed(spec, context)?;
        let upload = |values: &[f32]| {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            let buffer = device.allocate(bytes.len(), WHAT)?;
            stream.upload(bytes, &buffer, 0)?;
            Ok(buffer)
        };
        let failed = |error| prepare_error(WHAT, error);
        Ok(RopeTables {
            cos: upload(&cos).map_err(failed)?,
            sin: upload(&sin).map_err(failed)?,
            pairs: spec.pairs() as u32,
            context: context as u32,
        })
    }

    pub fn cos(&self) -> u64 {
        self.cos.address()
    }

    pub fn sin(&self) -> u64 {
        self.sin.address()
    }

    pub fn bytes(&self) -> u64 {
        (self.cos.bytes() + self.sin.bytes()) as u64
    }
}

/// Cosines and sines, computed on all processors.
fn computed(spec: &RopeSpec, context: usize) -> Result<(Vec<f32>, Vec<f32>), PrepareError> {
    let pairs = spec.pairs();
    let length = pairs.saturating_mul(context).saturating_mul(spec.sets.len());
    let bytes = (2 * size_of::<f32>() as u64).saturating_mul(length as u64);
    let zeros = || {
        let mut values: Vec<f32> = Vec::new();
        let memory = |_| PrepareError::OutOfMemory { what: WHAT.to_owned(), bytes };
        values.try_reserve_exact(length).map_err(memory)?;
        values.resize(length, 0.0);
        Ok::<_, PrepareError>(values)
    };
    let (mut cos, mut sin) = (zeros()?, zeros()?);
    if length == 0 {
        return Ok((cos, sin));
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let positions = context.div_ceil(threads);
    std::thread::scope(|scope| {
        let sets = cos.chunks_mut(pairs * context).zip(sin.chunks_mut(pairs * context)).zip(&spec.sets);
        for ((cos, sin), set) in sets {
            let parts = cos.chunks_mut(pairs * positions).zip(sin.chunks_mut(pairs * positions));
            for (part, (cos, sin)) in parts.enumerate() {
                scope.spawn(move || {
                    let rows = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs));
                    for (row, (cos, sin)) in rows.enumerate() {
                        set.rotation(part * positions + row, cos, sin);
                    }
                });
            }
        }
    });
    Ok((cos, sin))
}

#[cfg(test)]
mod tests {
    use mantissa_ops::program::RopeSet;

    use super::*;

    #[test]
    fn every_position_of_every_set_is_computed() {
        let set = |factor| RopeSet { inverse_frequencies: vec![1.0, 0.5, 0.1], attention_factor: factor };
        let spec = RopeSpec { rotary_dim: 6, sets: vec![set(1.0), set(2.0)], long_beyond: Some(8) };
        let (cos, sin) = computed(&spec, 37).unwrap();
        assert_eq!((cos.len(), table_bytes(&spec, 37)), (2 * 37 * 3, 2 * 37 * 3 * 8));
        for (index, set) in spec.sets.iter().enumerate() {
            for position in 0..37 {
                let (mut c, mut s) = ([0.0; 3], [0.0; 3]);
                set.rotation(position, &mut c, &mut s);
                let at = (index * 37 + position) * 3;
                assert_eq!((&cos[at..at + 3], &sin[at..at + 3]), (c.as_slice(), s.as_slice()));
            }
        }
        let empty = RopeSpec { rotary_dim: 0, sets: vec![], long_beyond: None };
        assert_eq!(computed(&empty, 5).unwrap().0.len(), 0);
    }
}
