//! Every bit of the reference tables, and the fast conversions against the oracle.

use std::{fs, path::Path};

use half::{bf16, f16};
use mantissa_numerics::{
    E4M3, Element, Format,
    convert::{Overflow, Rounding, decode, e8m0_to_f32, encode, slice::decode_slice, slice::encode_slice},
};
use safetensors::SafeTensors;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/numeric")).join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn nearest(value: f32, format: Format) -> u32 {
    encode(f64::from(value), format, Rounding::NearestEven, Overflow::Infinity).expect("the format has NaN")
}

fn is_nan(code: u32, format: Format) -> bool {
    decode(code, format).is_nan()
}

#[test]
fn decoding_matches_the_tables() {
    let file = fixture("formats.safetensors");
    let tables = SafeTensors::deserialize(&file).expect("a valid file");
    let rows = [("f8_e4m3fn", Format::F8E4M3), ("f8_e5m2", Format::F8E5M2), ("f4_e2m1", Format::F4E2M1)];
    for (name, format) in rows {
        let expected = words(tables.tensor(name).expect("a table").data());
        assert_eq!(expected.len(), 1 << format.bits());
        for (code, &bits) in (0..).zip(&expected) {
            let got = decode(code, format);
            let same = got.to_bits() == bits || got.is_nan() && f32::from_bits(bits).is_nan();
            assert!(same, "{format} {code:#x}: {got} against {}", f32::from_bits(bits));
        }
    }
    let scales = words(tables.tensor("f8_e8m0").expect("a table").data());
    assert_eq!(scales.len(), 256);
    for (code, &bits) in (0..=255).zip(&scales) {
        let got = e8m0_to_f32(code);
        assert!(got.to_bits() == bits || got.is_nan() && f32::from_bits(bits).is_nan(), "e8m0 {code}: {got}");
    }
}

#[test]
fn encoding_matches_the_hard_cases() {
    let file = fixture("convert.safetensors");
    let tables = SafeTensors::deserialize(&file).expect("a valid file");
    let inputs = words(tables.tensor("f32_bits").expect("the inputs").data());
    assert_eq!(inputs.len(), 2039);
    let rows = [
        ("bf16_bits", Format::Bf16),
        ("f16_bits", Format::F16),
        ("e4m3fn_saturating", Format::F8E4M3),
        ("e5m2", Format::F8E5M2),
    ];
    for (name, format) in rows {
        let table = tables.tensor(name).expect("a table");
        let expected = table.data().chunks_exact(format.bytes());
        assert_eq!(expected.len(), inputs.len());
        let values: Vec<f32> = inputs.iter().copied().map(f32::from_bits).collect();
        let mut stored = vec![0; table.data().len()];
        encode_slice(&values, format, &mut stored).expect("lengths agree");
        for ((&value, want), slice) in values.iter().zip(expected).zip(stored.chunks_exact(format.bytes())) {
            let code = |bytes: &[u8]| bytes.iter().rev().fold(0, |code, &byte| code << 8 | u32::from(byte));
            for got in [nearest(value, format), code(slice)] {
                let same = got == code(want) || is_nan(got, format) && is_nan(code(want), format);
                assert!(same, "{value:e} ({:#x}) to {format}: {got:#x}", value.to_bits());
            }
        }
    }
}

#[test]
fn every_code_survives_a_round_trip() {
    for format in Format::ALL.into_iter().filter(|format| format.bits() <= 16) {
        for code in 0..1_u32 << format.bits() {
            let value = decode(code, format);
            if value.is_nan() {
                assert!(is_nan(nearest(value, format), format));
            } else {
                assert_eq!(nearest(value, format), code, "{format} {code:#x}");
            }
        }
    }
}

#[test]
fn fast_decoding_equals_the_oracle_for_every_code() {
    fn check<T: Element>(make: impl Fn(u32) -> T) {
        for code in 0..1 << T::FORMAT.bits() {
            let (got, want) = (make(code).to_f32(), decode(code, T::FORMAT));
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{} {code:#x}",
                T::FORMAT
            );
        }
    }
    check(|code| f16::from_bits(code as u16));
    check(|code| bf16::from_bits(code as u16));
    check(|code| E4M3(code as u8));

    for format in Format::ALL.into_iter().filter(|format| format.bits() <= 16) {
        let bytes: Vec<u8> = match format.bits() {
            16 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
            _ => (0..=u8::MAX).collect(),
        };
        let mut values = vec![0.0; bytes.len() * 8 / format.bits() as usize];
        decode_slice(&bytes, format, &mut values).expect("lengths agree");
        for (index, &got) in values.iter().enumerate() {
            let code = match format {
                Format::F4E2M1 => u32::from(bytes[index / 2]) >> (4 * (index % 2)) & 15,
                _ => index as u32,
            };
            let want = decode(code, format);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{format} {code:#x}");
        }
    }
}

/// All upper halves of f32 with the lower halves that decide a rounding to 16 and to 8 bits.
#[test]
fn fast_encoding_equals_the_oracle_for_every_upper_half() {
    fn check<T: Element>(value: f32, code: impl Fn(T) -> u32) {
        let (got, want) = (code(T::from_f32(value)), nearest(value, T::FORMAT));
        let same = got == want || is_nan(got, T::FORMAT) && is_nan(want, T::FORMAT);
        assert!(same, "{value:e} ({:#x}) to {}: {got:#x}, not {want:#x}", value.to_bits(), T::FORMAT);
    }
    for upper in 0..=0xffff_u32 {
        for lower in [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let value = f32::from_bits(upper << 16 | lower);
            check::<f16>(value, |x| u32::from(x.to_bits()));
            check::<bf16>(value, |x| u32::from(x.to_bits()));
            check::<E4M3>(value, |x| u32::from(x.0));
        }
    }
}
