//! Times the products of two small models on a GPU, beside what the machine can do at most.
//!
//! `cargo run --release -p mantissa-cuda --example product_bench [-- NVRTC-LIBRARY]`
//!
//! First, on every shape, that all variants of a product give the same bits. Then each shape in each format for 1, 8,
//! 16 and 512 rows: time of one launch in a row of many over weights that are not in the L2, bytes of weights per second
//! as a share of a streaming read (up to 16 rows), or operations per second as a share of bare matrix steps. Then every
//! number of rows near which the choice between the variant for few rows and the tiled one turns, in both: where the one that
//! is chosen takes more than a twentieth longer than the other, `NOT THE FASTEST` says so.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mantissa_cuda::compile::{Arch, Nvrtc};
use mantissa_cuda::device::{Device, DeviceBuffer, Kernel, Stream};
use mantissa_cuda::families::ceilings::{self, CeilingArgs};
use mantissa_cuda::families::products::{
    self, Capabilities, Epilogue, Preferences, Product, ProductArgs, Shape, SmallMatrix, Variant,
    VariantPreference,
};
use mantissa_cuda::families::wgmma;
use mantissa_cuda::kernel::{KernelSpec, Launch};
use mantissa_cuda::kernel_cache::KernelCache;
use mantissa_numerics::Format;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Name, what becomes of the sums, outputs, columns.
const SHAPES: [(&str, Epilogue, usize, usize); 10] = [
    ("qwen qkv", Epilogue::Plain, 1152, 896),
    ("qwen o", Epilogue::Store, 896, 896),
    ("qwen gate_up", Epilogue::SwiGlu, 4864, 896),
    ("qwen down", Epilogue::Store, 896, 4864),
    ("qwen logits", Epilogue::Plain, 151_936, 896),
    ("llama qkv", Epilogue::Plain, 3072, 2048),
    ("llama o", Epilogue::Store, 2048, 2048),
    ("llama gate_up", Epilogue::SwiGlu, 8192, 2048),
    ("llama down", Epilogue::Store, 2048, 8192),
    ("llama logits", Epilogue::Plain, 128_256, 2048),
];

/// Weights and activations.
const FORMATS: [(Format, Format); 4] = [
    (Format::Bf16, Format::Bf16),
    (Format::F16, Format::F16),
    (Format::F32, Format::F32),
    (Format::Bf16, Format::F32),
];

const ROWS: [usize; 4] = [1, 8, 16, 512];
/// Rows for which both kinds of variants are timed.
const TURNING: [usize; 9] = [4, 8, 16, 24, 32, 33, 48, 64, 128];
/// How much longer than another the chosen variant may take.
const TOLERATED: f64 = 1.05;
/// Rows for which variants are compared, the most first.
const COMPARED: [usize; 7] = [33, 32, 16, 8, 4, 2, 1];

/// Bytes from which weights are taken, one matrix after the other.
const ARENA: usize = 2 << 30;
/// Bytes of the input and of the output.
const SIDE: usize = 640 << 20;
/// Seconds of one timing, about.
const SECONDS: f64 = 0.02;

struct Bench {
    device: Device,
    stream: Stream,
    nvrtc: Nvrtc,
    kernels: HashMap<KernelSpec, Kernel>,
    weights: DeviceBuffer,
    input: DeviceBuffer,
    output: DeviceBuffer,
    /// Bytes per second of a streaming read.
    read: f64,
    /// Operations per second of bare matrix steps, by format.
    matrix: HashMap<Format, f64>,
}

/// Finite numbers of a format, between 1/16 and 1 in magnitude.
fn random_bytes(format: Format, bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // The two upper bits of the exponent's offset choose among four powers of two.
    let number = |bits: u64, mantissa: u32, bias: u64| {
        let sign = bits & 1;
        let exponent = bias - 4 + (bits >> 1 & 3);
        let fraction = bits >> 8 & ((1 << mantissa) - 1);
        (sign, exponent << mantissa | fraction)
    };
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let bits = next();
        match format {
            Format::F32 => {
                let (sign, rest) = number(bits, 23, 127);
                out.extend(((sign << 31 | rest) as u32).to_le_bytes());
            }
            Format::F16 => {
                let (sign, rest) = number(bits, 10, 15);
                out.extend(((sign << 15 | rest) as u16).to_le_bytes());
            }
            _ => {
                let (sign, rest) = number(bits, 7, 127);
                out.extend(((sign << 15 | rest) as u16).to_le_bytes());
            }
        }
    }
    out
}

impl Bench {
    fn new(nvrtc: Option<&Path>) -> Result<Bench> {
        let device = Device::open(0)?;
        let stream = device.stream()?;
        let nvrtc = Nvrtc::load(nvrtc)?;
        let weights = device.allocate(ARENA, "weights")?;
        let input = device.allocate(SIDE, "input")?;
        let output = device.allocate(SIDE, "output")?;
        let (kernels, matrix) = (HashMap::new(), HashMap::new());
        Ok(Bench { device, stream, nvrtc, kernels, weights, input, output, read: 0.0, matrix })
    }

    fn fill(&self, buffer: &DeviceBuffer, format: Format) -> Result<()> {
        let piece = random_bytes(format, 32 << 20);
        for at in (0..buffer.bytes()).step_by(piece.len()) {
            let length = piece.len().min(buffer.bytes() - at);
            self.stream.upload(&piece[..length], buffer, at)?;
        }
        Ok(())
    }

    /// Compiles on all processors, and loads.
    fn prepare(&mut self, mut specs: Vec<KernelSpec>) -> Result<()> {
        let mut seen = HashSet::new();
        specs.retain(|spec| !self.kernels.contains_key(spec) && seen.insert(spec.clone()));
        let (next, cubins) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let (arch, nvrtc) = (self.device.info().arch, &self.nvrtc);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, NonZeroUsize::get) {
                scope.spawn(|| {
                    while let Some(spec) = specs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let cubin = KernelCache::none().cubin(spec, arch, nvrtc);
                        cubins.lock().unwrap_or_else(PoisonError::into_inner).push((spec, cubin));
                    }
                });
            }
        });
        for (spec, cubin) in cubins.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.kernels.insert(spec.clone(), self.device.load(spec, &cubin?)?);
        }
        Ok(())
    }

    /// Every kernel of a product that is compared or timed.
    fn specs(&self, product: Product, shape: Shape) -> Vec<KernelSpec> {
        let mut specs = Vec::new();
        for rows in COMPARED.into_iter().chain(ROWS).chain(TURNING) {
            let shape = Shape { rows, ..shape };
            let variant = products::choose(product, shape, self.capabilities(), Preferences::default());
            let variants = self.compared(product, shape).into_iter().chain([variant]);
            specs.extend(variants.map(|variant| products::spec(product, variant, shape.columns)));
        }
        specs
    }

    /// The variants that are compared: the tiled one of this device and that of any, and the one for few rows.
    fn compared(&self, product: Product, shape: Shape) -> [Variant; 3] {
        let device = self.capabilities();
        let any = Capabilities { arch: Arch::OLDEST, ..device };
        let preferred = [
            (VariantPreference::Gemm, device),
            (VariantPreference::Gemm, any),
            (VariantPreference::SmallN, device),
        ];
        preferred.map(|(variant, device)| {
            products::choose(product, shape, device, Preferences { variant, ..Preferences::default() })
        })
    }

    /// Asks for a product whose weights start at `offset` in the arena.
    fn launch(&self, product: Product, variant: Variant, shape: Shape, offset: usize) -> Result<()> {
        let kernel = &self.kernels[&products::spec(product, variant, shape.columns)];
        let launch = products::launch_shape(product, variant, shape, self.capabilities());
        let args = self.args(product, shape, offset);
        // SAFETY: the arguments are those of the product, and the buffers hold its shape.
        unsafe {
            match variant {
                Variant::Wgmma(tile) => {
                    self.stream.launch(kernel, launch, &wgmma::args(product, tile, &args)?)?;
                }
                Variant::SmallMatrix(_) | Variant::SmallFma { .. } | Variant::Gemm { .. } => {
                    self.stream.launch(kernel, launch, &args)?
                }
            }
        }
        Ok(())
    }

    /// As [`Bench::time`], of a kernel of the ceilings with the arguments that `args` gives it.
    fn time_ceiling(
        &self,
        spec: &KernelSpec,
        launch: Launch,
        args: impl Fn(usize) -> CeilingArgs,
    ) -> Result<f64> {
        self.time(|index| {
            // SAFETY: callers give the arguments of the kernel, over the buffers of this benchmark.
            Ok(unsafe { self.stream.launch(&self.kernels[spec], launch, &args(index)) }?)
        })
    }

    /// Seconds of one of many launches in a row, the `index`th of which `launch` asks for.
    ///
    /// The launches are asked for while a long kernel still runs, so that the device never waits for the host.
    fn time(&self, launch: impl Fn(usize) -> Result<()>) -> Result<f64> {
        let run = |count: usize| -> Result<f64> {
            let delay = ceilings::matrix_steps(Format::Bf16);
            let (shape, operations) = ceilings::matrix_shape(self.device.info().multiprocessors, 1);
            // Six microseconds for each launch at the rate measured first.
            let rate = self.matrix.get(&Format::Bf16).copied().unwrap_or(0.0);
            let steps = (count as f64 * 6e-6 * rate / operations) as u32;
            if steps > 0 {
                // SAFETY: the arguments are the kernel's; it writes less than the output holds.
                unsafe { self.stream.launch(&self.kernels[&delay], shape, &self.ceiling_args(steps))? };
            }
            let start = self.stream.record()?;
            for index in 0..count {
                launch(index)?;
            }
            let end = self.stream.record()?;
            Ok(start.seconds_until(&end)? / count as f64)
        };
        let first = run(3)?;
        let count = (SECONDS / first).clamp(3.0, 500.0) as usize;
        let mut times = [run(count)?, run(count)?, run(count)?];
        times.sort_by(f64::total_cmp);
        Ok(times[1])
    }

    fn ceiling_args(&self, steps: u32) -> CeilingArgs {
        CeilingArgs { input: self.weights.address(), out: self.output.address(), steps, unused: 0 }
    }

    fn measure_ceilings(&mut self) -> Result<()> {
        self.fill(&self.weights, Format::Bf16)?;
        for format in [Format::Bf16, Format::F16] {
            let spec = ceilings::matrix_steps(format);
            self.prepare(vec![spec.clone()])?;
            let (launch, operations) = ceilings::matrix_shape(self.device.info().multiprocessors, 20_000);
            let seconds = self.time_ceiling(&spec, launch, |_| self.ceiling_args(20_000))?;
            self.matrix.insert(format, operations / seconds);
            println!("{format} matrix steps: {:.0} TFLOP/s", operations / seconds / 1e12);
        }
        let spec = ceilings::read_stream();
        self.prepare(vec![spec.clone()])?;
        for bytes in [64 << 20, 256 << 20, 1 << 30] {
            let seconds = self.time_ceiling(&spec, ceilings::stream_shape(bytes), |index| {
                let at = index as u64 * bytes % (ARENA as u64 - bytes + 1);
                CeilingArgs { input: self.weights.address() + at / 16 * 16, ..self.ceiling_args(0) }
            })?;
            self.read = self.read.max(bytes as f64 / seconds);
            println!("streaming read of {} MiB: {:.0} GB/s", bytes >> 20, bytes as f64 / seconds / 1e9);
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        let info = self.device.info();
        Capabilities {
            arch: info.arch,
            multiprocessors: info.multiprocessors,
            shared_per_block: info.shared_per_block,
        }
    }

    /// Arguments of a product whose weights start at `offset` in the arena.
    fn args(&self, product: Product, shape: Shape, offset: usize) -> ProductArgs {
        let residual = if product.epilogue == Epilogue::Store { self.input.address() } else { 0 };
        ProductArgs {
            weights: self.weights.address() + offset as u64,
            input: self.input.address(),
            wanted: 0,
            bias: 0,
            residual,
            out: self.output.address(),
            weight_stride: shape.columns as u64,
            input_stride: shape.columns as u64,
            residual_stride: shape.features as u64,
            out_stride: shape.features as u64,
            features: shape.features as u32,
            columns: shape.columns as u32,
            rows: shape.rows as u32,
            alpha: 1.0,
        }
    }

    /// Whether every variant gives the bits of the tiled one.
    fn compare(&self, product: Product, shape: Shape) -> Result<()> {
        let width = match product.epilogue {
            Epilogue::Plain => 4,
            Epilogue::Store | Epilogue::SwiGlu => product.activations.bits() as usize / 8,
        };
        let mut wanted: Option<Vec<u8>> = None;
        for rows in COMPARED {
            let shape = Shape { rows, ..shape };
            for variant in self.compared(product, shape) {
                self.launch(product, variant, shape, 0)?;
                let mut got = vec![0; rows * shape.features * width];
                self.stream.download(&self.output, 0, &mut got)?;
                let wanted = wanted.get_or_insert_with(|| got.clone());
                if got != wanted[..got.len()] {
                    let first = got.iter().zip(wanted.iter()).position(|(a, b)| a != b).unwrap_or(0) / width;
                    println!(
                        "DIFFERENT BITS: {product:?} {shape:?} {variant:?}: first at row {} output {}",
                        first / shape.features,
                        first % shape.features
                    );
                }
            }
        }
        Ok(())
    }

    fn bench(&self, name: &str, product: Product, shape: Shape) -> Result<()> {
        let bytes = weight_bytes(product, shape);
        let variant = products::choose(product, shape, self.capabilities(), Preferences::default());
        let spec = products::spec(product, variant, shape.columns);
        let places = ARENA / bytes;
        let seconds = self.time(|index| self.launch(product, variant, shape, index % places * bytes))?;
        let operations = 2.0 * shape.rows as f64 * (parts(product) * shape.features * shape.columns) as f64;
        let (rate, unit, share) = if shape.rows <= 16 {
            let rate = bytes as f64 / seconds;
            (rate / 1e9, "GB/s", Some(rate / self.read))
        } else {
            let rate = operations / seconds;
            (rate / 1e12, "TFLOP/s", self.matrix_ceiling(product).map(|ceiling| rate / ceiling))
        };
        let share = share.map_or_else(|| "     ".to_owned(), |share| format!("{:4.0}%", 100.0 * share));
        let Product { weights, activations, .. } = product;
        println!(
            "{name:14} {weights:>4}x{activations:<4} {:4} rows {:10.2} us {rate:8.1} {unit:7} {share}  {}, {} registers",
            shape.rows,
            seconds * 1e6,
            described(variant),
            self.kernels[&spec].registers(),
        );
        Ok(())
    }

    /// Times the variant for few rows and the tiled one, and says which is chosen.
    fn turn(&self, name: &str, product: Product, shape: Shape) -> Result<()> {
        let choose = |variant| {
            let preferences = Preferences { variant, ..Preferences::default() };
            products::choose(product, shape, self.capabilities(), preferences)
        };
        let chosen = choose(VariantPreference::Auto);
        let [few, tiled] = [VariantPreference::SmallN, VariantPreference::Gemm].map(choose);
        let bytes = weight_bytes(product, shape);
        let time = |variant| {
            self.time(|index| self.launch(product, variant, shape, index % (ARENA / bytes) * bytes))
        };
        let (few_seconds, tiled_seconds) = (time(few)?, time(tiled)?);
        let ratio = if chosen == few { few_seconds / tiled_seconds } else { tiled_seconds / few_seconds };
        let Product { weights, activations, .. } = product;
        println!(
            "{name:14} {weights:>4}x{activations:<4} {:4} rows {:10.2} us for few, {:10.2} us tiled; chosen: {}{}",
            shape.rows,
            few_seconds * 1e6,
            tiled_seconds * 1e6,
            described(chosen),
            if ratio > TOLERATED { format!("; NOT THE FASTEST: {ratio:.2} times") } else { String::new() },
        );
        Ok(())
    }

    fn matrix_ceiling(&self, product: Product) -> Option<f64> {
        let same = product.weights == product.activations;
        self.matrix.get(&product.weights).copied().filter(|_| same)
    }
}

/// Rows of the weights for each output.
fn parts(product: Product) -> usize {
    if product.epilogue == Epilogue::SwiGlu { 2 } else { 1 }
}

fn weight_bytes(product: Product, shape: Shape) -> usize {
    parts(product) * shape.features * shape.columns * product.weights.bits() as usize / 8
}

fn described(variant: Variant) -> String {
    match variant {
        Variant::SmallMatrix(small) => {
            let SmallMatrix { bucket, weight_rows, warps, slots, input } = small;
            format!("{} by {weight_rows}, {warps} warps, {slots} slots, {input:?}", bucket.rows())
        }
        Variant::SmallFma { bucket, weight_rows } => format!("{} by {weight_rows}", bucket.rows()),
        Variant::Gemm { tile, stages } => format!("tiles of {tile}, {stages} stages"),
        Variant::Wgmma(tile) => {
            format!("wgmma tiles of {} by {}, {} stages", tile.rows(), tile.weight_rows, tile.stages)
        }
    }
}

fn main() -> Result<()> {
    let nvrtc = std::env::args_os().nth(1);
    let mut bench = Bench::new(nvrtc.as_deref().map(Path::new))?;
    println!("{:?}", bench.device.info());
    bench.measure_ceilings()?;
    for (weights, activations) in FORMATS {
        let product = |epilogue| Product { weights, activations, epilogue };
        let specs = SHAPES.iter().flat_map(|&(_, epilogue, features, columns)| {
            bench.specs(product(epilogue), Shape { rows: 0, features, columns })
        });
        let specs = specs.collect();
        bench.prepare(specs)?;
        bench.fill(&bench.weights, weights)?;
        bench.fill(&bench.input, activations)?;
        for (name, epilogue, features, columns) in SHAPES {
            let product = product(epilogue);
            // Logits take long to compare, and differ from qkv in nothing but their number.
            if features < 100_000 {
                bench.compare(product, Shape { rows: 0, features, columns })?;
            }
            for rows in ROWS {
                bench.bench(name, product, Shape { rows, features, columns })?;
            }
            for rows in TURNING {
                bench.turn(name, product, Shape { rows, features, columns })?;
            }
        }
    }
    Ok(())
}
