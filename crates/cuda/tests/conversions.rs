//! The prelude's conversions and exponentials on a device, against `mantissa_numerics` and f64. Without a device or
//! NVRTC each test says why it was skipped.

#[path = "gpu/selftest.rs"]
mod selftest;

use half::{bf16, f16};
use mantissa_cuda::compile::Nvrtc;
use mantissa_cuda::device::Device;
use mantissa_cuda::kernel::Launch;
use mantissa_numerics::{E4M3, Element, Format};
use mantissa_ops::conformance::or_skip;

/// A device and a compiler for it, or why there is none.
fn machine() -> Result<(Device, Nvrtc), String> {
    let device = Device::open(0).map_err(|error| error.to_string())?;
    Ok((device, selftest::nvrtc()?))
}

/// Runs an entry of the self-test on every word; `None`, with the reason printed, where there is no device.
fn run(entry: &'static str, format: Format, words: &[u32]) -> Option<Vec<u32>> {
    const THREADS: usize = 256;
    let (device, nvrtc) = or_skip(machine())?;
    let kernel = selftest::load(&device, &nvrtc, entry, format);
    let stream = device.stream().expect("a stream");
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let from = device.allocate(bytes.len(), "words").expect("memory");
    let to = device.allocate(bytes.len(), "results").expect("memory");
    stream.upload(bytes, &from, 0).expect("upload");
    let args =
        selftest::Args { from: from.address(), to: to.address(), count: words.len() as u32, unused: 0 };
    let blocks = words.len().div_ceil(THREADS) as u32;
    let launch = Launch { grid: [blocks, 1, 1], block: THREADS as u32, shared: 0 };
    // SAFETY: `Args` mirrors the kernel's; both buffers hold a word for each of its threads that does anything.
    unsafe { stream.launch(&kernel, launch, &args) }.expect("launch");
    let mut results = vec![0_u32; words.len()];
    stream.download(&to, 0, bytemuck::cast_slice_mut(&mut results)).expect("download");
    Some(results)
}

/// Bits of a number, every NaN the same.
fn canonical(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

fn decodes<T: Element>(code: fn(u32) -> T) {
    let codes: Vec<u32> = (0..1 << T::FORMAT.bits()).collect();
    let Some(results) = run("decode_codes", T::FORMAT, &codes) else { return };
    for (word, result) in codes.into_iter().zip(results) {
        let wanted = canonical(code(word).to_f32());
        assert_eq!(canonical(f32::from_bits(result)), wanted, "{} {word:#x}", T::FORMAT);
    }
}

/// f32 bits that are hard to round to a format: its numbers, the middles between neighbours and what lies beside them,
/// and every upper half with some lower halves.
fn hard_numbers<T: Element>(code: fn(u32) -> T) -> Vec<u32> {
    let mut words = Vec::new();
    for word in 0..(1_u32 << T::FORMAT.bits()) - 1 {
        let (value, next) = (code(word).to_f32(), code(word + 1).to_f32());
        let middle = ((f64::from(value) + f64::from(next)) / 2.0) as f32;
        for number in [value, middle] {
            let bits = number.to_bits();
            words.extend([bits.wrapping_sub(1), bits, bits.wrapping_add(1)]);
        }
    }
    words.extend(every_upper_half());
    words
}

fn every_upper_half() -> impl Iterator<Item = u32> {
    const LOWER: [u32; 8] = [0, 1, 0x0fff, 0x1000, 0x7fff, 0x8000, 0x8001, 0xffff];
    (0..=0xffff_u32).flat_map(|upper| LOWER.map(|lower| upper << 16 | lower))
}

fn encodes<T: Element>(code: fn(u32) -> T) {
    let words = hard_numbers(code);
    let Some(results) = run("encode_numbers", T::FORMAT, &words) else { return };
    for (word, result) in words.into_iter().zip(results) {
        let number = f32::from_bits(word);
        assert_eq!(result >> T::FORMAT.bits(), 0, "{} of {number:e}: alone and in a pair differ", T::FORMAT);
        let (got, wanted) = (code(result).to_f32(), T::from_f32(number).to_f32());
        assert_eq!(canonical(got), canonical(wanted), "{} of {number:e} ({word:#x})", T::FORMAT);
    }
}

fn f16_of(code: u32) -> f16 {
    f16::from_bits(code as u16)
}

fn bf16_of(code: u32) -> bf16 {
    bf16::from_bits(code as u16)
}

fn e4m3_of(code: u32) -> E4M3 {
    E4M3(code as u8)
}

#[test]
fn every_code_is_decoded_exactly() {
    decodes(f16_of);
    decodes(bf16_of);
    decodes(e4m3_of);
}

#[test]
fn numbers_are_rounded_to_nearest_even() {
    encodes(f16_of);
    encodes(bf16_of);
    encodes(e4m3_of);
}

/// Units in the last place between a result and the truth; what f32 cannot hold must be its infinity or nearly zero.
fn ulps(got: f32, truth: f64) -> f64 {
    let rounded = truth as f32;
    if rounded.is_infinite() {
        return if got == rounded { 0.0 } else { f64::INFINITY };
    }
    let unit = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
    (f64::from(got) - truth).abs() / unit
}

#[test]
fn exponentials_are_accurate() {
    let words: Vec<u32> = every_upper_half().collect();
    let below: Vec<u32> = words.iter().copied().filter(|&word| f32::from_bits(word) <= 0.0).collect();
    for (entry, words) in [("exponentials", &words), ("exponentials_below_one", &below)] {
        let Some(results) = run(entry, Format::F16, words) else { return };
        for (&word, result) in words.iter().zip(results) {
            let (x, got) = (f32::from_bits(word), f32::from_bits(result));
            if x.is_nan() {
                assert!(got.is_nan(), "{entry} of NaN");
            } else if entry == "exponentials_below_one" {
                let truth = f64::from(x).exp();
                let lost = if truth < f64::from(f32::MIN_POSITIVE) { truth } else { 0.0 };
                let allowed = 2.0 * f64::from(f32::EPSILON) * truth + lost;
                assert!((f64::from(got) - truth).abs() <= allowed, "{entry} of {x:e}: {got:e}");
            } else {
                assert!(ulps(got, f64::from(x).exp()) <= 2.0, "{entry} of {x:e}: {got:e}");
            }
        }
    }
}

#[test]
fn silu_is_accurate() {
    let words: Vec<u32> = every_upper_half().collect();
    let kernels = [("silus_in_f32", Format::F32), ("silus", Format::F16), ("silus", Format::Bf16)];
    for (entry, format) in kernels {
        let alias = if format == Format::F32 { Format::F16 } else { format };
        let Some(results) = run(entry, alias, &words) else { return };
        for (&word, result) in words.iter().zip(results) {
            assert_silu(f32::from_bits(word), f32::from_bits(result), format);
        }
    }
}

/// Whether a silu that is to be rounded to `format` is as near as the kernels' file says.
fn assert_silu(x: f32, got: f32, format: Format) {
    if x.is_nan() || x == f32::NEG_INFINITY {
        assert!(got.is_nan(), "silu of {x:e} for {format}: {got:e}");
        return;
    }
    let truth = if x == f32::INFINITY { f64::INFINITY } else { f64::from(x) / (1.0 + (-f64::from(x)).exp()) };
    // Where the exponential leaves the normal range it has fewer digits.
    let lost = (f64::from(x.abs()) * f64::from(f32::MIN_POSITIVE)).max(f64::from(f32::MIN_POSITIVE));
    let argument = if format.bits() == 16 { f64::from((-x).max(0.0)) } else { 0.0 };
    let allowed = (4.0 + argument) * f64::from(f32::EPSILON) * truth.abs() + lost;
    let close = f64::from(got) == truth || (f64::from(got) - truth).abs() <= allowed;
    assert!(close, "silu of {x:e} for {format}: {got:e}, not {truth:e}");
}
