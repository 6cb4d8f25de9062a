//! What loading would convert, and what that would lose, found by doing it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use indicatif::ProgressBar;
use mantissa::cpu::Pool;
use mantissa::model::checkpoint::Checkpoint;
use mantissa::numerics::convert::{ConvertError, Overflow};
use mantissa::numerics::{ConversionStats, Format, convert_slice};
use mantissa::ops::Program;
use serde_json::{Value, json};

/// Values converted by one task.
const CHUNK: usize = 1 << 20;

/// Whether to find out what is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Convert everything.
    Convert,
    /// Only say what would be converted.
    Skip,
}

/// Tensors of one stored type on their way to one format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversion {
    /// How many.
    pub tensors: usize,
    /// Bytes in the file.
    pub bytes: u64,
    /// What is lost; nothing where that was not measured.
    pub stats: Option<ConversionStats>,
}

/// The conversions into each format, by the type that tensors are stored in.
#[derive(Debug, Default)]
pub struct Losses {
    by_target: Vec<(Format, BTreeMap<&'static str, Conversion>)>,
    /// Tensors of types that no kernel reads yet, by type.
    pub unreadable: BTreeMap<&'static str, usize>,
}

/// A tensor that the program loads.
struct Stored<'a> {
    dtype: &'static str,
    format: Format,
    name: &'a str,
    bytes: u64,
}

impl Stored<'_> {
    /// Whether `to` lacks some value of the stored format. Where it lacks none, nothing need be read to know the loss.
    fn is_lossy(&self, to: Format) -> bool {
        !to.represents(self.format)
    }
}

impl Losses {
    /// Looks at every tensor that the program loads, once.
    pub fn of(
        program: &Program,
        checkpoint: &Checkpoint,
        targets: &[(Format, Measure)],
        pool: &Pool,
        bar: &ProgressBar,
    ) -> Result<Losses> {
        let parts = program.weights.iter().flat_map(|weight| &weight.parts);
        let wanted: BTreeSet<&str> = parts.map(|part| part.tensor.as_str()).collect();
        let mut losses = Losses::default();
        let mut stored = Vec::new();
        for tensor in checkpoint.tensors().filter(|tensor| wanted.contains(tensor.name)) {
            match tensor.format {
                Some(format @ (Format::F32 | Format::F16 | Format::Bf16)) => {
                    let (dtype, name, bytes) = (tensor.dtype, tensor.name, tensor.bytes as u64);
                    stored.push(Stored { dtype, format, name, bytes });
                }
                _ => *losses.unreadable.entry(tensor.dtype).or_default() += 1,
            }
        }
        let measured = targets.iter().filter(|(_, measure)| *measure == Measure::Convert);
        let read = measured.flat_map(|&(to, _)| stored.iter().filter(move |tensor| tensor.is_lossy(to)));
        bar.set_length(read.map(|tensor| tensor.bytes).sum());
        for &(to, measure) in targets {
            let mut conversions: BTreeMap<&'static str, Conversion> = BTreeMap::new();
            for tensor in stored.iter().filter(|tensor| tensor.format != to) {
                let stats = match measure {
                    _ if !tensor.is_lossy(to) => Some(ConversionStats::default()),
                    Measure::Skip => None,
                    Measure::Convert => {
                        let view = checkpoint.tensor(tensor.name)?;
                        let bytes = view.as_bytes().ok_or_else(|| anyhow!("{} has gaps", tensor.name))?;
                        Some(convert(bytes, tensor.format, to, pool, bar)?)
                    }
                };
                conversions.entry(tensor.dtype).or_default().add(tensor.bytes, stats);
            }
            losses.by_target.push((to, conversions));
        }
        Ok(losses)
    }

    /// Conversions into a format, by stored type.
    pub fn into(&self, target: Format) -> impl Iterator<Item = (&'static str, &Conversion)> {
        let found = self.by_target.iter().filter(move |(format, _)| *format == target);
        found.flat_map(|(_, conversions)| conversions.iter().map(|(dtype, conversion)| (*dtype, conversion)))
    }
}

/// Converts a tensor in chunks, on all threads, and keeps only the counts.
fn convert(
    bytes: &[u8],
    from: Format,
    to: Format,
    pool: &Pool,
    bar: &ProgressBar,
) -> Result<ConversionStats> {
    let chunks: Vec<&[u8]> = bytes.chunks(CHUNK * from.bytes()).collect();
    let buffers: Vec<Mutex<Vec<u8>>> = (0..pool.threads()).map(|_| Mutex::new(Vec::new())).collect();
    let total: Mutex<Result<ConversionStats, ConvertError>> = Mutex::new(Ok(ConversionStats::default()));
    pool.run(chunks.len(), |task| {
        let chunk = chunks[task.index];
        // Nobody else has this worker's buffer, and what is in it does not matter.
        let mut buffer = buffers[task.worker].lock().unwrap_or_else(PoisonError::into_inner);
        buffer.resize(chunk.len() / from.bytes() * to.bytes(), 0);
        let converted = convert_slice(chunk, from, &mut buffer, to, Overflow::Infinity);
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        match (total.as_mut(), converted) {
            (Ok(all), Ok(stats)) => all.merge(&stats),
            (Ok(_), Err(error)) => *total = Err(error),
            (Err(_), _) => {}
        }
        bar.inc(chunk.len() as u64);
    });
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner)?)
}

impl Conversion {
    /// Adds a tensor. All tensors of one stored type are measured, or none.
    fn add(&mut self, bytes: u64, stats: Option<ConversionStats>) {
        self.stats = match (self.stats, stats) {
            (Some(mut all), Some(stats)) => {
                all.merge(&stats);
                Some(all)
            }
            (all, stats) => all.or(stats),
        };
        self.tensors += 1;
        self.bytes += bytes;
    }

    /// What is lost, in words.
    pub fn loss(&self) -> String {
        let Some(stats) = &self.stats else { return "not measured; --all does".to_owned() };
        if stats.is_exact() {
            return "nothing".to_owned();
        }
        let mut words = vec![format!("largest relative rounding error {:.1e}", stats.max_relative_error)];
        if stats.flushed_to_zero > 0 {
            words.push(format!("{} values become zero", stats.flushed_to_zero));
        }
        if stats.overflowed > 0 {
            words.push(format!("{} values overflow: refused without --allow-saturation", stats.overflowed));
        }
        words.join(", ")
    }

    /// As JSON.
    pub fn json(&self, from: &str, to: Format) -> Value {
        let stats = self.stats.map(|stats| {
            json!({
                "max_relative_error": stats.max_relative_error,
                "overflowed": stats.overflowed,
                "flushed_to_zero": stats.flushed_to_zero,
                "nan": stats.nan,
                "infinite": stats.inf,
            })
        });
        json!({ "from": from, "to": to, "tensors": self.tensors, "bytes": self.bytes, "loss": stats })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn chunks_on_threads_count_like_one_slice() {
        let values: Vec<f32> = (0..CHUNK as u32 * 2 + 77).map(|i| (i as f32 - 1e6) * 0.137).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let mut out = vec![0; values.len() * 2];
        let whole = convert_slice(bytes, Format::F32, &mut out, Format::F16, Overflow::Infinity).unwrap();
        assert!(whole.overflowed > 0);
        for threads in [1, 3] {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
            let parts = convert(bytes, Format::F32, Format::F16, &pool, &ProgressBar::hidden()).unwrap();
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn losses_are_told_in_words() {
        let conversion = |stats| Conversion { tensors: 1, bytes: 4, stats };
        assert_eq!(conversion(Some(ConversionStats::default())).loss(), "nothing");
        assert!(conversion(None).loss().contains("--all"));
        let stats = ConversionStats { overflowed: 2, max_relative_error: 0.25, ..Default::default() };
        let words = conversion(Some(stats)).loss();
        assert!(words.starts_with("largest relative rounding error 2.5e-1, 2 values overflow"), "{words}");
    }
}
