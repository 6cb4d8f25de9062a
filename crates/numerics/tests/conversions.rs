//! Properties of the conversions: nearest by exhaustive search, monotonic, and counted right over whole slices.

use mantissa_numerics::{
    ConversionStats, ConvertError, Format,
    convert::{Overflow, Rounding, decode, encode},
    convert_slice, decode_slice, encode_slice,
};
use proptest::{collection::vec, prelude::*, sample::select};

/// Formats whose values can all be listed.
const SMALL: [Format; 5] = [Format::F16, Format::Bf16, Format::F8E4M3, Format::F8E5M2, Format::F4E2M1];

fn nearest(value: f64, format: Format, overflow: Overflow) -> u32 {
    encode(value, format, Rounding::NearestEven, overflow).expect("not NaN")
}

/// Finite values spread evenly over the exponents around the range of every format, signs and subnormals included.
fn spread() -> impl Strategy<Value = f64> {
    (any::<bool>(), -160..135_i32, 1.0..2.0_f64).prop_map(|(negative, exponent, significand)| {
        let magnitude = significand * 2f64.powi(exponent);
        if negative { -magnitude } else { magnitude }
    })
}

/// Values within one f64 step of a tie between two neighbours, where double rounding would show.
fn near_ties() -> impl Strategy<Value = (Format, f64)> {
    (select(SMALL.to_vec()), any::<u32>(), -1..=1_i64).prop_map(|(format, seed, step)| {
        let code = seed % nearest(format.max_finite(), format, Overflow::Saturate);
        let (low, high) = (f64::from(decode(code, format)), f64::from(decode(code + 1, format)));
        let tie = (low + high) / 2.0;
        (format, f64::from_bits((tie.to_bits() as i64 + step) as u64))
    })
}

/// The nearest finite code by bisection over the ordered codes; the even one of two.
fn search(magnitude: f64, format: Format) -> u32 {
    let value = |code: u32| f64::from(decode(code, format));
    let (mut low, mut high) = (0, nearest(format.max_finite(), format, Overflow::Saturate));
    while high - low > 1 {
        let middle = (low + high) / 2;
        if value(middle) <= magnitude { low = middle } else { high = middle }
    }
    let (below, above) = (magnitude - value(low), value(high) - magnitude);
    if below < above || (below == above && low % 2 == 0) { low } else { high }
}

/// What one value contributes to the statistics, straight from the definition.
fn stats_of(value: f32, to: Format, overflow: Overflow) -> ConversionStats {
    let mut stats = ConversionStats { values: 1, ..Default::default() };
    if value.is_nan() {
        stats.nan = 1;
    } else if value.is_infinite() {
        stats.inf = 1;
    } else {
        let stored = decode(nearest(f64::from(value), to, overflow), to);
        // Rounded as if the exponent had no end: overflow is what that carries beyond the largest finite value.
        let last = f64::from(decode(nearest(to.max_finite(), to, Overflow::Saturate) - 1, to));
        let quantum = to.max_finite() - last;
        let unbounded = (f64::from(value.abs()) / quantum).round_ties_even() * quantum;
        if unbounded > to.max_finite() {
            stats.overflowed = 1;
        } else if value != 0.0 && stored == 0.0 {
            stats.flushed_to_zero = 1;
        } else if value != 0.0 {
            let error = (f64::from(stored) - f64::from(value)) / f64::from(value);
            stats.max_relative_error = error.abs();
        }
    }
    stats
}

fn bytes_of(values: &[f32], format: Format) -> Vec<u8> {
    let mut bytes = vec![0; format.bytes_for(values.len()).expect("a small slice")];
    encode_slice(values, format, &mut bytes).expect("lengths agree");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn encoding_finds_the_nearest_value(value in spread()) {
        for format in SMALL {
            let code = nearest(value, format, Overflow::Saturate);
            let sign = u32::from(value < 0.0) << (format.bits() - 1);
            prop_assert_eq!(code, sign | search(value.abs(), format), "{} to {}", value, format);
        }
        let single = nearest(value, Format::F32, Overflow::Infinity);
        // The hardware's rounding of f64 to f32 is the reference here.
        prop_assert_eq!(single, (value as f32).to_bits());
    }

    #[test]
    fn values_beside_ties_round_once((format, value) in near_ties()) {
        let code = nearest(value, format, Overflow::Saturate);
        prop_assert_eq!(code, search(value, format), "{:e} to {}", value, format);
    }

    #[test]
    fn encoding_is_monotonic(a in spread(), b in spread()) {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        for format in Format::ALL {
            for rounding in [Rounding::NearestEven, Rounding::TowardZero] {
                let value = |x| decode(encode(x, format, rounding, Overflow::Infinity).expect("not NaN"), format);
                prop_assert!(value(low) <= value(high));
            }
        }
    }

    #[test]
    fn rounding_toward_zero_never_grows(value in spread()) {
        for format in Format::ALL {
            let code = encode(value, format, Rounding::TowardZero, Overflow::Infinity).expect("not NaN");
            let stored = f64::from(decode(code, format)).abs();
            prop_assert!(stored <= value.abs());
            let next = f64::from(decode((code & !(1 << (format.bits() - 1))) + 1, format));
            prop_assert!(stored == format.max_finite() || next > value.abs(), "{} to {}", value, format);
        }
    }
}

proptest! {
    #[test]
    fn slices_count_what_single_values_lose(
        values in vec(prop_oneof![8 => spread().prop_map(|x| x as f32), 1 => any::<f32>()], 0..3000),
        from in select(Format::ALL.to_vec()),
        to in select(Format::ALL.to_vec()),
        overflow in select(vec![Overflow::Infinity, Overflow::Saturate]),
    ) {
        // Without NaN where a format has none, and an even number of values so that E2M1 fills its bytes.
        let keep = |x: &f32| !x.is_nan() || (from.has_nan() && to.has_nan());
        let mut values: Vec<f32> = values.into_iter().filter(keep).collect();
        values.truncate(values.len() / 2 * 2);
        let source = bytes_of(&values, from);
        decode_slice(&source, from, &mut values).expect("lengths agree");

        let mut converted = vec![0; to.bytes_for(values.len()).expect("a small slice")];
        let stats = convert_slice(&source, from, &mut converted, to, overflow).expect("no NaN to E2M1");
        let mut back = vec![0.0; values.len()];
        decode_slice(&converted, to, &mut back).expect("lengths agree");

        let mut expected = ConversionStats::default();
        for (&value, &got) in values.iter().zip(&back) {
            if value.is_nan() {
                prop_assert!(got.is_nan());
            } else {
                let want = decode(nearest(f64::from(value), to, overflow), to);
                prop_assert_eq!(got.to_bits(), want.to_bits(), "{} from {} to {}", value, from, to);
            }
            expected.merge(&stats_of(value, to, overflow));
        }
        let error = (stats.max_relative_error - expected.max_relative_error).abs();
        // The error is kept to f32 precision.
        prop_assert!(error <= expected.max_relative_error * Format::F32.unit_roundoff());
        prop_assert_eq!(
            ConversionStats { max_relative_error: 0.0, ..stats },
            ConversionStats { max_relative_error: 0.0, ..expected }
        );
        if to.represents(from) {
            prop_assert!(stats.is_exact());
        }
    }

    #[test]
    fn unaligned_bytes_convert_alike(values in vec(any::<f32>(), 1..2500), to in select(Format::ALL[..5].to_vec())) {
        let source = bytes_of(&values, Format::F32);
        let mut aligned = vec![0; values.len() * to.bytes()];
        let stats = convert_slice(&source, Format::F32, &mut aligned, to, Overflow::Infinity).expect("has NaN");

        let mut shifted_source = vec![0];
        shifted_source.extend(&source);
        let mut shifted = vec![0; aligned.len() + 1];
        let again = convert_slice(&shifted_source[1..], Format::F32, &mut shifted[1..], to, Overflow::Infinity);
        prop_assert_eq!(again, Ok(stats));
        prop_assert_eq!(&shifted[1..], &aligned[..]);

        let mut decoded = vec![0.0; values.len()];
        let mut decoded_shifted = decoded.clone();
        decode_slice(&aligned, to, &mut decoded).expect("lengths agree");
        decode_slice(&shifted[1..], to, &mut decoded_shifted).expect("lengths agree");
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&decoded), bits(&decoded_shifted));
    }
}

#[test]
fn overflow_follows_the_rule_and_is_counted() {
    let values = [1e6_f32, -1e6, f32::INFINITY, 65519.0, 65520.0, 1e-9, f32::NAN, 1.0];
    let source = bytes_of(&values, Format::F32);
    let mut stored = [0; 16];
    for (overflow, end) in [(Overflow::Infinity, f32::INFINITY), (Overflow::Saturate, 65504.0)] {
        let stats = convert_slice(&source, Format::F32, &mut stored, Format::F16, overflow).expect("has NaN");
        let counts = (stats.values, stats.overflowed, stats.flushed_to_zero, stats.nan, stats.inf);
        assert_eq!(counts, (8, 3, 1, 1, 1));
        assert!(!stats.is_exact());
        let mut back = [0.0; 8];
        decode_slice(&stored, Format::F16, &mut back).expect("lengths agree");
        assert_eq!(back[..6], [end, -end, f32::INFINITY, 65504.0, end, 0.0]);
        assert!(back[6].is_nan() && back[7] == 1.0);
    }
}

#[test]
fn wrong_lengths_are_refused_with_numbers() {
    let mut out = [0; 6];
    let error = convert_slice(&[0; 8], Format::F32, &mut out, Format::Bf16, Overflow::Infinity);
    assert_eq!(error.expect_err("too long").to_string(), "2 values in bf16 take 4 bytes, got 6");
    let error = convert_slice(&[0; 7], Format::F32, &mut out[..2], Format::Bf16, Overflow::Infinity);
    assert_eq!(error.expect_err("cut").to_string(), "1 values in f32 take 4 bytes, got 7");
    assert!(decode_slice(&[0; 3], Format::F16, &mut [0.0]).is_err());
    assert!(encode_slice(&[0.0; 3], Format::F4E2M1, &mut [0; 1]).is_err());
    // Half a byte may stay empty at the end of a packed slice.
    assert!(encode_slice(&[6.0, -0.5, 1.0], Format::F4E2M1, &mut out[..2]).is_ok());
    assert_eq!(out[..2], [0x97, 0x02]);
    assert!(
        convert_slice(&out[..2], Format::F4E2M1, &mut [0; 3], Format::F8E4M3, Overflow::Infinity).is_ok()
    );
}

#[test]
fn nan_to_a_format_without_one_is_an_error() {
    let error = encode_slice(&[1.0, f32::NAN], Format::F4E2M1, &mut [0]).expect_err("E2M1 has no NaN");
    assert!(matches!(error, ConvertError::Nan(_)));
    assert_eq!(
        error.to_string(),
        "NaN has no code in f4e2m1; use a format that has one, or remove the NaN first"
    );
}
