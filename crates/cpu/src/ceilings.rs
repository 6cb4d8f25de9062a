//! What this machine can do at best, measured: the rate at which all threads together read memory, and the rate at
//! which they multiply and add. Every benchmark states its results as shares of these, from the same run.

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use half::bf16;
use mantissa_numerics::Element;
use mantissa_ops::ceilings::{CeilingError, Ceilings, Unit};

use crate::aligned::{AlignedBuffer, OutOfMemory};
use crate::isa::{Isa, Tier};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Bytes read by one task: about as much as a panel of weights, contiguous.
const STRETCH: usize = 128 << 10;
/// Time for one measurement of a rate.
const RATE_TIME: Duration = Duration::from_millis(40);
/// How far ahead of the additions memory is asked for, in bytes.
const PREFETCH: usize = 4096;
/// Steps between looks at the clock.
const RATE_STEPS: usize = 2_000;

/// How products are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Multiply {
    /// Fused multiply-add in f32; what f32 and f16 storage use.
    F32Fma,
    /// Pairs of bf16 into f32.
    Bf16Pairs,
}

/// The ceilings of one processor, number of threads and instruction set.
#[derive(Debug)]
pub(crate) struct CpuCeilings<'a> {
    pub pool: &'a Pool,
    pub tier: Tier,
    pub probe: ReadProbe,
}

impl Ceilings for CpuCeilings<'_> {
    fn read(&self) -> Result<f64, CeilingError> {
        Ok(self.probe.pass(self.pool, self.tier))
    }

    fn multiply(&self, unit: Unit) -> Result<f64, CeilingError> {
        let kind = match unit {
            Unit::F32Fma => Multiply::F32Fma,
            Unit::Bf16Pairs => Multiply::Bf16Pairs,
            Unit::Matrix(_) => return Err(CeilingError::Unit { backend: "cpu".to_owned(), unit }),
        };
        Ok(multiply_rate(self.pool, self.tier, kind))
    }
}

/// A buffer to read.
#[derive(Debug)]
pub(crate) struct ReadProbe {
    buffer: AlignedBuffer,
}

impl ReadProbe {
    /// A buffer of ones, of whole stretches.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(bytes: usize) -> Result<ReadProbe, OutOfMemory> {
        let mut buffer = AlignedBuffer::zeroed(bytes.max(STRETCH) / STRETCH * STRETCH)?;
        let values: &mut [f32] = bytemuck::cast_slice_mut(&mut buffer);
        // Pages that nobody wrote are all the same zero page, which the caches hold.
        values.fill(1.0);
        Ok(ReadProbe { buffer })
    }

    /// Reads everything once; bytes per second of all threads, each at the pace of the middle one of all stretches: when
    /// the system gives a processor to somebody else for a while, only the stretch at hand takes longer.
    fn pass(&self, pool: &Pool, tier: Tier) -> f64 {
        let values: &[f32] = bytemuck::cast_slice(&self.buffer);
        let stretches: Vec<&[f32]> = values.chunks_exact(STRETCH / size_of::<f32>()).collect();
        let nanoseconds: Vec<AtomicU64> = stretches.iter().map(|_| AtomicU64::new(0)).collect();
        let total = Mutex::new(0.0);
        pool.run(stretches.len(), |task| {
            let start = Instant::now();
            let sum = dispatch(tier, Read { values: stretches[task.index] });
            let taken = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            nanoseconds[task.index].store(taken, Ordering::Relaxed);
            // Together with the use of the total this keeps the reads.
            if sum == 0.0 {
                *total.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = sum;
            }
        });
        black_box(total);
        let times = nanoseconds.into_iter().map(|time| time.into_inner() as f64 * 1e-9).collect();
        (pool.threads().min(stretches.len()) * STRETCH) as f64 / middle(times)
    }
}

/// The middle one of some times.
fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Operations per second of register-only loops on all threads, each at the pace of the middle one of its loops.
fn multiply_rate(pool: &Pool, tier: Tier, kind: Multiply) -> f64 {
    let rates = Mutex::new(Vec::new());
    pool.run(pool.threads(), |_| {
        let start = Instant::now();
        let (mut times, mut elapsed) = (Vec::new(), Duration::ZERO);
        while elapsed < RATE_TIME {
            black_box(dispatch(tier, Rate { kind, seed: black_box(1e-3), steps: RATE_STEPS }));
            let now = start.elapsed();
            times.push((now - elapsed).as_secs_f64());
            elapsed = now;
        }
        let per_lane = match kind {
            Multiply::F32Fma => 2,
            Multiply::Bf16Pairs => 4,
        };
        let operations = (RATE_STEPS * chains(tier.isa()) * LANES * per_lane) as f64;
        let rate = operations / middle(times);
        rates.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(rate);
    });
    rates.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().sum()
}

/// Adds up a stretch.
struct Read<'a> {
    values: &'a [f32],
}

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        const WIDTH: usize = 8;
        let mut sums = [simd.zero(); WIDTH];
        let (vectors, _) = self.values.as_chunks::<LANES>();
        let (groups, _) = vectors.as_chunks::<WIDTH>();
        for group in groups {
            for (sum, vector) in sums.iter_mut().zip(group) {
                simd.prefetch(vector.as_ptr().wrapping_byte_add(PREFETCH));
                *sum = simd.add(*sum, simd.load(vector));
            }
        }
        sums.into_iter().map(|sum| simd.reduce_add(sum)).sum()
    }
}

/// Multiplies and adds in registers.
struct Rate {
    kind: Multiply,
    seed: f32,
    steps: usize,
}

impl Kernel for Rate {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        match chains(S::ISA) {
            MANY_CHAINS => self.chains::<S, MANY_CHAINS>(simd),
            _ => self.chains::<S, FEW_CHAINS>(simd),
        }
    }
}

impl Rate {
    #[inline(always)]
    fn chains<S: Simd, const CHAINS: usize>(self, simd: S) -> f32 {
        let mut sums = [simd.zero(); CHAINS];
        let factor = simd.splat(self.seed);
        let pair = [<bf16 as Element>::from_f32(self.seed); 2];
        let pair = simd.splat_bf16_pair(pair);
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = match self.kind {
                    Multiply::F32Fma => simd.fma(factor, factor, *sum),
                    Multiply::Bf16Pairs => simd.dot_bf16(*sum, pair, pair),
                };
            }
        }
        sums.into_iter().map(|sum| simd.reduce_add(sum)).sum()
    }
}

/// Sums that do not wait for each other: enough to hide the latency of any unit, few enough for the registers.
const fn chains(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => MANY_CHAINS,
        // A vector takes two or four registers.
        Isa::Avx2 | Isa::Neon | Isa::Scalar => FEW_CHAINS,
    }
}

const MANY_CHAINS: usize = 24;
const FEW_CHAINS: usize = 6;

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use mantissa_numerics::Format;

    use super::*;

    #[test]
    fn every_tier_measures_something() {
        let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
        for tier in Tier::available() {
            let ceilings = CpuCeilings { pool: &pool, tier, probe: ReadProbe::new(4 << 20).unwrap() };
            let rates =
                [ceilings.read(), ceilings.multiply(Unit::F32Fma), ceilings.multiply(Unit::Bf16Pairs)];
            for rate in rates {
                assert!(rate.is_ok_and(|rate| rate.is_finite() && rate > 0.0));
            }
            let matrix = Unit::Matrix(Format::Bf16);
            let error = CeilingError::Unit { backend: "cpu".to_owned(), unit: matrix };
            assert_eq!(ceilings.multiply(matrix), Err(error));
        }
    }
}
