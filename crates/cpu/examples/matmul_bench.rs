//! Matrix products of Qwen2.5-0.5B as shares of what the machine can do.
//!
//! `cargo run --release -p mantissa-cpu --example matmul_bench -- [threads] [instruction set] [rows,rows,...]`
//!
//! Weights are random, never zero. With one row each product reads its weights from memory: GB/s and the share of the
//! measured streaming reads. With many: GFLOP/s and the share of the measured peak of the unit used. The order of
//! the products is that of a token through 24 layers, so that nothing is still in the caches from last time; a row
//! of the table is the median over rounds of the sum over layers.

use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Instant;

use half::{bf16, f16};
use mantissa_cpu::aligned::AlignedBuffer;
use mantissa_cpu::aligned::Arena;
use mantissa_cpu::elements::{Elements, ElementsMut};
use mantissa_cpu::matmul::{Epilogue, Matmul, MatmulScratch, matmul};
use mantissa_cpu::pack::{Layout, PackRequest, PackSource, PackedMatrix};
use mantissa_cpu::{CpuBackend, CpuOptions, Isa, Pool};
use mantissa_numerics::Format;
use mantissa_numerics::convert::Overflow;
use mantissa_numerics::convert::slice::encode_slice;
use mantissa_ops::ceilings::Unit;
use mantissa_ops::{Backend, CeilingError, RowOrder};

const LAYERS: usize = 24;

/// Name, outputs, inputs, layout, how often in a model.
const SHAPES: [(&str, usize, usize, Layout, usize); 5] = [
    ("qkv", 1152, 896, Layout::Plain, LAYERS),
    ("o", 896, 896, Layout::Plain, LAYERS),
    ("gate_up", 9728, 896, Layout::GateUp, LAYERS),
    ("down", 896, 4864, Layout::Plain, LAYERS),
    ("lm_head", 151_936, 896, Layout::Plain, 1),
];

/// Bytes that the ceiling of reads is measured with, and how often each ceiling is measured.
const READ_BYTES: usize = 1 << 30;
const CEILING_SAMPLES: usize = 5;

struct Bench {
    backend: CpuBackend,
    scratch: MatmulScratch,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads =
        arguments.next().map_or(Ok(Pool::default_threads()), |text| text.parse::<NonZeroUsize>())?;
    let isa = arguments.next().map_or(Ok(Isa::detect()), |text| text.parse())?;
    let rows = arguments.next().unwrap_or_else(|| "1,512".into());
    let rows = rows.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let backend =
        CpuBackend::new(CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() })?;
    let mut bench = Bench { backend, scratch: MatmulScratch::default() };
    println!("{threads} threads, {isa}");
    for format in [Format::Bf16, Format::F16, Format::F32] {
        bench.format(format, &rows)?;
    }
    Ok(())
}

/// The middle one of several measurements.
fn median(measure: impl Fn() -> Result<f64, CeilingError>) -> Result<f64, CeilingError> {
    let mut all = (0..CEILING_SAMPLES).map(|_| measure()).collect::<Result<Vec<f64>, _>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[CEILING_SAMPLES / 2])
}

/// Random bytes of values between 1/2 and 2 in magnitude.
fn random(format: Format, count: usize, seed: u64) -> Result<AlignedBuffer, Box<dyn Error>> {
    let mut state = seed | 1;
    let mut block = vec![0.0_f32; 4096];
    let mut bytes = AlignedBuffer::zeroed(count * format.bytes())?;
    for out in bytes.chunks_mut(block.len() * format.bytes()) {
        for value in &mut block {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *value = f32::from_bits(((state >> 32) as u32 & 0x80ff_ffff) | 0x3f00_0000);
        }
        encode_slice(&block[..out.len() / format.bytes()], format, out)?;
    }
    Ok(bytes)
}

impl Bench {
    fn weights(&self, format: Format) -> Result<Vec<Vec<PackedMatrix>>, Box<dyn Error>> {
        let mut all = Vec::new();
        let (mut bytes_packed, mut seconds) = (0, 0.0);
        for (_, outputs, inputs, layout, count) in SHAPES {
            let bytes = random(format, outputs * inputs, 1)?;
            let source = PackSource {
                bytes: &bytes,
                format,
                tensor_rows: outputs,
                rows: 0..outputs,
                order: RowOrder::AsStored,
            };
            let overflow = Overflow::Infinity;
            let request = PackRequest { sources: &[source], columns: inputs, format, layout, overflow };
            let mut layers = Vec::new();
            for _ in 0..count {
                let start = Instant::now();
                layers.push(PackedMatrix::pack(&request, &mut Arena::default(), self.backend.pool())?.matrix);
                seconds += start.elapsed().as_secs_f64();
                bytes_packed += bytes.len();
            }
            all.push(layers);
        }
        println!("packing: {:.2} GB/s", bytes_packed as f64 / seconds / 1e9);
        Ok(all)
    }

    fn format(&mut self, format: Format, rows: &[usize]) -> Result<(), Box<dyn Error>> {
        println!("\n{format} weights and activations");
        let weights = self.weights(format)?;
        for &rows in rows {
            let (reads, multiply) = {
                let ceilings = self.backend.ceilings(READ_BYTES)?;
                let unit = if format == Format::Bf16 { Unit::Bf16Pairs } else { Unit::F32Fma };
                (median(|| ceilings.read())?, median(|| ceilings.multiply(unit))?)
            };
            println!("ceiling reads: {:.1} GB/s", reads / 1e9);
            println!("ceiling multiply-add: {:.1} GFLOP/s", multiply / 1e9);
            let rounds = if rows < 16 { 15 } else { 5 };
            let mut times = vec![Vec::new(); SHAPES.len() + 1];
            for _ in 0..rounds {
                let round = self.round(format, rows, &weights)?;
                for (times, time) in times.iter_mut().zip(round.iter().chain([&round.iter().sum()])) {
                    times.push(*time);
                }
            }
            for (index, times) in times.iter_mut().enumerate() {
                times.sort_by(f64::total_cmp);
                let time = times[times.len() / 2];
                let selected = SHAPES.get(index).map_or(&SHAPES[..], std::slice::from_ref);
                let values: usize = selected.iter().map(|shape| shape.1 * shape.2 * shape.4).sum();
                let name = SHAPES.get(index).map_or("token", |shape| shape.0);
                let (bytes, operations) = (values * format.bytes(), 2 * values * rows);
                let read = bytes as f64 / time;
                let rate = operations as f64 / time;
                println!(
                    "{name:>8} x {rows:<4} {:9.3} ms  {:6.1} GB/s {:5.1} %  {:7.1} GFLOP/s {:5.1} %",
                    time * 1e3,
                    read / 1e9,
                    100.0 * read / reads,
                    rate / 1e9,
                    100.0 * rate / multiply
                );
            }
        }
        Ok(())
    }

    /// Seconds of every shape, summed over its layers.
    fn round(
        &mut self,
        format: Format,
        rows: usize,
        weights: &[Vec<PackedMatrix>],
    ) -> Result<Vec<f64>, Box<dyn Error>> {
        let mut buffers = Vec::new();
        for (_, outputs, inputs, ..) in SHAPES {
            let mut out = AlignedBuffer::zeroed(rows * outputs * size_of::<f32>())?;
            // Writing the pages for the first time is not the product's time.
            out.fill(1);
            buffers.push((random(format, rows * inputs, 3)?, out));
        }
        let mut seconds = vec![0.0; SHAPES.len()];
        // One more before the clock counts: the threads are awake in the middle of a token.
        for layer in (0..1).chain(0..LAYERS) {
            if layer == 0 {
                seconds.fill(0.0);
            }
            for ((layers, (input, out)), seconds) in weights.iter().zip(&mut buffers).zip(&mut seconds) {
                let Some(weights) = layers.get(layer) else { continue };
                let input = Elements::from_bytes(format, input)?;
                let epilogue = epilogue(weights, format, rows, out);
                let start = Instant::now();
                matmul(
                    self.backend.pool(),
                    self.backend.tier(),
                    &mut self.scratch,
                    Matmul { weights, input, rows, epilogue },
                )?;
                *seconds += start.elapsed().as_secs_f64();
            }
        }
        Ok(seconds)
    }
}

fn epilogue<'a>(
    matrix: &PackedMatrix,
    format: Format,
    rows: usize,
    out: &'a mut AlignedBuffer,
) -> Epilogue<'a> {
    let swiglu = matrix.layout() == Layout::GateUp;
    let count = rows * if swiglu { matrix.rows() / 2 } else { matrix.rows() };
    let out = match format {
        Format::F16 => ElementsMut::F16(&mut bytemuck::cast_slice_mut::<u8, f16>(out)[..count]),
        Format::Bf16 => ElementsMut::Bf16(&mut bytemuck::cast_slice_mut::<u8, bf16>(out)[..count]),
        _ => ElementsMut::F32(&mut bytemuck::cast_slice_mut::<u8, f32>(out)[..count]),
    };
    match out {
        out if swiglu => Epilogue::SwiGlu { out },
        out => Epilogue::Store { out, alpha: 1.0, bias: None, residual: None },
    }
}
