//! Every tier against the scalar one and against the conversions of `numerics`, bit for bit.

use half::{bf16, f16};
use mantissa_numerics::{E4M3, Element};

use super::*;

/// xorshift64*, enough for test data.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A normal f32 with an exponent within `spread` of zero.
    fn normal(&mut self, spread: u64) -> f32 {
        let exponent = 127 - spread / 2 + self.next() % spread.max(1);
        f32::from_bits((self.next() as u32 & 0x807f_ffff) | ((exponent as u32) << 23))
    }
}

/// Runs a generic function as a kernel on every available tier and demands the scalar tier's answer.
macro_rules! same_on_every_tier {
    ($($name:ident: $type:ty)|*, |$simd:ident| -> $output:ty $body:block) => {{
        struct Case<'a> { $($name: &'a $type,)* }
        impl Kernel for Case<'_> {
            type Output = $output;
            #[inline(always)]
            fn run<S: Simd>(self, $simd: S) -> $output {
                let Case { $($name,)* } = self;
                $body
            }
        }
        let expected = Case { $($name: &$name,)* }.run(scalar::Scalar);
        for tier in Tier::available() {
            let got = dispatch(tier, Case { $($name: &$name,)* });
            assert_eq!(got, expected, "{}", tier.isa());
        }
        expected
    }};
}

#[inline(always)]
fn lanes<S: Simd>(simd: S, value: S::F32) -> [f32; 16] {
    let mut out = [0.0; 16];
    simd.store(value, &mut out);
    out
}

#[test]
fn every_code_decodes_exactly() {
    for start in (0..=u16::MAX).step_by(16) {
        let codes: [u16; 16] = std::array::from_fn(|lane| start + lane as u16);
        let (half, brain) = (codes.map(f16::from_bits), codes.map(bf16::from_bits));
        let eight = codes.map(|code| E4M3(code as u8));
        let got = same_on_every_tier!(half: [f16; 16] | brain: [bf16; 16] | eight: [E4M3; 16],
            |simd| -> [[u32; 16]; 3] {
            [
                // Hardware makes signalling NaNs quiet: compare them so.
                lanes(simd, simd.load_f16(half)).map(quiet_bits),
                lanes(simd, simd.load_bf16(brain)).map(f32::to_bits),
                lanes(simd, simd.load_e4m3(eight)).map(f32::to_bits),
            ]
        });
        assert_eq!(got[0], half.map(|value| quiet_bits(Element::to_f32(value))));
        assert_eq!(got[1], brain.map(|value| Element::to_f32(value).to_bits()));
        assert_eq!(got[2], eight.map(|value| Element::to_f32(value).to_bits()));
    }
}

fn quiet_bits(value: f32) -> u32 {
    if value.is_nan() { value.to_bits() | 0x0040_0000 } else { value.to_bits() }
}

#[test]
fn stores_round_once_to_nearest_even() {
    let mut random = Random(7);
    let special =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, 1e-40, 65519.9, 65520.0];
    for round in 0..20_000 {
        let mut values: [f32; 16] = std::array::from_fn(|_| f32::from_bits(random.next() as u32));
        if round % 2 == 0 {
            // Near the ties and the subnormals of f16.
            values = std::array::from_fn(|_| random.normal(40));
        }
        if round == 0 {
            values[..special.len()].copy_from_slice(&special);
        }
        let got = same_on_every_tier!(values: [f32; 16], |simd| -> [[u16; 16]; 2] {
            let value = simd.load(values);
            let (mut half, mut brain) = ([f16::ZERO; 16], [bf16::ZERO; 16]);
            simd.store_f16(value, &mut half);
            simd.store_bf16(value, &mut brain);
            [half.map(f16::to_bits), brain.map(bf16::to_bits)]
        });
        for (lane, value) in values.into_iter().enumerate() {
            assert_eq!(got[0][lane], <f16 as Element>::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(got[1][lane], <bf16 as Element>::from_f32(value).to_bits(), "{value:e}");
        }
    }
}

#[test]
fn arithmetic_agrees() {
    let mut random = Random(11);
    for round in 0..5_000 {
        let spread = 1 + round % 60;
        let mut a: [f32; 16] = std::array::from_fn(|_| random.normal(spread));
        let b: [f32; 16] = std::array::from_fn(|_| random.normal(spread));
        let c: [f32; 16] = std::array::from_fn(|_| random.normal(spread));
        if round % 7 == 0 {
            a[round as usize % 16] = f32::NEG_INFINITY;
        }
        same_on_every_tier!(a: [f32; 16] | b: [f32; 16] | c: [f32; 16], |simd| -> Vec<u32> {
            let [x, y, z] = [a, b, c].map(|values| simd.load(values));
            let count = (a[0].to_bits() >> 9) as usize % 18;
            let positive = simd.max(x, simd.sub(simd.zero(), x));
            let results = [
                simd.add(x, y),
                simd.sub(x, y),
                simd.mul(x, y),
                simd.div(x, y),
                simd.fma(x, y, z),
                simd.sqrt(positive),
                simd.max(x, y),
                simd.min(x, y),
                simd.select_first(count, x, y),
            ];
            let mut out = vec![simd.reduce_add(x).to_bits(), simd.reduce_max(x).to_bits()];
            for result in results {
                out.extend(lanes(simd, result).map(quiet_nan_only));
            }
            out
        });
    }
}

#[test]
fn nan_is_the_second_operand_of_max_and_min() {
    let a = [f32::NAN; 16];
    let b = [1.0_f32; 16];
    let got = same_on_every_tier!(a: [f32; 16] | b: [f32; 16], |simd| -> [bool; 4] {
        let (x, y) = (simd.load(a), simd.load(b));
        [simd.max(x, y), simd.max(y, x), simd.min(x, y), simd.min(y, x)].map(|v| lanes(simd, v)[3].is_nan())
    });
    assert_eq!(got, [false, true, false, true]);
}

/// On a machine with `vdpbf16ps` this compares the instruction with its emulation.
#[test]
fn bf16_dot_products_agree_on_normal_numbers() {
    let mut random = Random(13);
    for round in 0..50_000 {
        let spread = 1 + round % 50;
        let a: [bf16; 32] = std::array::from_fn(|_| Element::from_f32(random.normal(spread)));
        let b: [bf16; 32] = std::array::from_fn(|_| Element::from_f32(random.normal(spread)));
        let c: [f32; 16] = std::array::from_fn(|_| random.normal(spread));
        same_on_every_tier!(a: [bf16; 32] | b: [bf16; 32] | c: [f32; 16], |simd| -> [[u32; 16]; 2] {
            let (x, y, sum) = (simd.load_bf16_pairs(a), simd.load_bf16_pairs(b), simd.load(c));
            let one = simd.splat_bf16_pair([b[0], b[1]]);
            [simd.dot_bf16(sum, x, y), simd.dot_bf16(sum, x, one)].map(|v| lanes(simd, v).map(f32::to_bits))
        });
    }
}

/// Distance in units in the last place of the exact value.
fn ulps(got: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let unit = f64::from(nearest.next_up()) - f64::from(nearest);
    (f64::from(got) - exact).abs() / unit
}

#[test]
fn exponentials_are_within_two_units() {
    let mut worst = 0.0_f64;
    for start in (-87 * 512..88 * 512).step_by(16) {
        let x: [f32; 16] = std::array::from_fn(|lane| (start + lane as i32) as f32 / 512.0 + 1e-4);
        let got = same_on_every_tier!(x: [f32; 16], |simd| -> [[u32; 16]; 3] {
            let v = simd.load(x);
            [exp(simd, v), sigmoid(simd, v), silu(simd, v)].map(|v| lanes(simd, v).map(f32::to_bits))
        });
        for lane in 0..16 {
            let exact = f64::from(x[lane]);
            worst = worst.max(ulps(f32::from_bits(got[0][lane]), exact.exp()));
            assert!(
                ulps(f32::from_bits(got[1][lane]), 1.0 / (1.0 + (-exact).exp())) < 4.0,
                "sigmoid({exact})"
            );
            assert!(
                ulps(f32::from_bits(got[2][lane]), exact / (1.0 + (-exact).exp())) < 4.0,
                "silu({exact})"
            );
        }
    }
    assert!(worst < 2.0, "{worst} units");
}

#[test]
fn exponentials_at_the_edges() {
    let x: [f32; 16] = [
        f32::NEG_INFINITY,
        -1000.0,
        -104.0,
        -103.0,
        -88.0,
        -0.0,
        0.0,
        88.72,
        88.73,
        89.0,
        1000.0,
        f32::INFINITY,
        f32::NAN,
        -f32::NAN,
        1.0,
        -100.0,
    ];
    let got = same_on_every_tier!(x: [f32; 16], |simd| -> [u32; 16] {
        lanes(simd, exp(simd, simd.load(x))).map(quiet_nan_only)
    });
    for (x, bits) in x.into_iter().zip(got) {
        let (got, exact) = (f32::from_bits(bits), f64::from(x).exp() as f32);
        let close = got == exact || (got - exact).abs() <= exact * 2e-7 || (got - exact).abs() < 2e-45;
        assert!(close || got.is_nan() && exact.is_nan(), "exp({x}) = {got:e}, not {exact:e}");
    }
    assert_eq!(f32::from_bits(got[0]).to_bits(), 0);
}

/// The payload of a NaN is not part of the definition.
fn quiet_nan_only(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

#[test]
fn partial_vectors_are_filled_with_zeros() {
    let source: [f32; 20] = std::array::from_fn(|i| i as f32 + 1.0);
    for count in 0..=20 {
        let part = source[..count].to_vec();
        let got = same_on_every_tier!(part: Vec<f32>, |simd| -> (Vec<u32>, Vec<u16>) {
            let value = f32::load_partial(simd, part);
            let mut out = vec![f16::NAN; part.len()];
            f16::store_partial(simd, value, &mut out);
            (lanes(simd, value).map(f32::to_bits).to_vec(), out.iter().map(|v| v.to_bits()).collect())
        });
        let mut expected = [0.0; 16];
        expected[..count.min(16)].copy_from_slice(&source[..count.min(16)]);
        assert_eq!(got.0, expected.map(f32::to_bits));
        let stored: Vec<f32> = got.1.iter().map(|&code| f16::from_bits(code).to_f32()).collect();
        assert_eq!(&stored[..count.min(16)], &source[..count.min(16)]);
        assert!(stored[count.min(16)..].iter().all(|value| value.is_nan()));
    }
}
