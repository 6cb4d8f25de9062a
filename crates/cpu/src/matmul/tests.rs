//! Products against the chain that the contract names, bit for bit, and against f64 sums.

use std::num::NonZeroUsize;

use mantissa_numerics::convert::Overflow;
use mantissa_numerics::convert::slice::{decode_slice, encode_slice};
use mantissa_numerics::tolerance::{bound_for, dot_bound};
use mantissa_ops::RowOrder;

use super::*;
use crate::aligned::Arena;
use crate::pack::{PackRequest, PackSource};

const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
}

/// Values of one format, aligned, and what they are exactly.
struct Values {
    format: Format,
    bytes: AlignedBuffer,
    exact: Vec<f32>,
}

impl Values {
    fn new(format: Format, values: &[f32]) -> Values {
        let mut bytes = AlignedBuffer::zeroed(values.len() * format.bytes()).unwrap();
        encode_slice(values, format, &mut bytes).unwrap();
        let mut exact = vec![0.0; values.len()];
        decode_slice(&bytes, format, &mut exact).unwrap();
        Values { format, bytes, exact }
    }

    /// Numbers in -1..1, none of them close to subnormal.
    fn random(format: Format, count: usize, seed: u64) -> Values {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let values: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let value = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                if value.abs() < 1e-3 { 0.5 } else { value }
            })
            .collect();
        Values::new(format, &values)
    }

    fn elements(&self) -> Elements<'_> {
        Elements::from_bytes(self.format, &self.bytes).unwrap()
    }

    fn pack(&self, rows: usize, layout: Layout, pool: &Pool) -> PackedMatrix {
        let source = PackSource {
            bytes: &self.bytes,
            format: self.format,
            tensor_rows: rows,
            rows: 0..rows,
            order: RowOrder::AsStored,
        };
        let columns = self.exact.len() / rows;
        let (format, overflow) = (self.format, Overflow::Infinity);
        let request = PackRequest { sources: &[source], columns, format, layout, overflow };
        PackedMatrix::pack(&request, &mut Arena::default(), pool).unwrap().matrix
    }
}

fn raw(pool: &Pool, tier: Tier, weights: &PackedMatrix, input: Elements<'_>, rows: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows * weights.rows()];
    let epilogue = Epilogue::F32 { out: &mut out };
    let mut scratch = MatmulScratch::default();
    matmul(pool, tier, &mut scratch, Matmul { weights, input, rows, epilogue }).unwrap();
    out
}

/// The chain of sums that the contract names.
fn chain(weights: &[f32], input: &[f32], pairs: bool) -> f32 {
    if !pairs {
        return weights.iter().zip(input).fold(0.0, |sum, (w, x)| w.mul_add(*x, sum));
    }
    weights.chunks(2).zip(input.chunks(2)).fold(0.0, |sum, (w, x)| {
        let second = w.get(1).map_or(sum, |w1| w1.mul_add(x[1], sum));
        w[0].mul_add(x[0], second)
    })
}

struct Case {
    weights: Values,
    input: Values,
    rows: usize,
    columns: usize,
    outputs: usize,
}

impl Case {
    fn new(formats: (Format, Format), rows: usize, columns: usize, outputs: usize) -> Case {
        let seed = (rows * 7919 + columns * 31 + outputs) as u64;
        let weights = Values::random(formats.0, outputs * columns, seed);
        let input = Values::random(formats.1, rows * columns, seed + 1);
        Case { weights, input, rows, columns, outputs }
    }

    /// Checks one result: the bits of the chain, and the distance from the f64 sum.
    fn check(&self, got: &[f32], what: &str) {
        let pairs = self.weights.format == Format::Bf16 && self.input.format == Format::Bf16;
        for (index, got) in got.iter().enumerate() {
            let (row, output) = (index / self.outputs, index % self.outputs);
            let weights = &self.weights.exact[output * self.columns..][..self.columns];
            let input = &self.input.exact[row * self.columns..][..self.columns];
            let expected = chain(weights, input, pairs);
            let shape = (self.rows, self.columns, self.outputs);
            let formats = (self.weights.format, self.input.format);
            assert_eq!(got.to_bits(), expected.to_bits(), "{what} {formats:?} {shape:?} [{row}, {output}]");
            let products = || weights.iter().zip(input).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let bound = dot_bound(self.columns, Format::F32, products().map(f64::abs).sum());
            assert!(
                (f64::from(*got) - products().sum::<f64>()).abs() <= bound,
                "{what} {formats:?} {shape:?}"
            );
        }
    }
}

/// Every combination of formats, or a sum over them that fails.
fn for_all_formats(mut check: impl FnMut((Format, Format))) {
    for weights in FORMATS {
        for input in FORMATS {
            check((weights, input));
        }
    }
}

#[test]
fn every_combination_at_awkward_shapes() {
    let pools = [1, 2, 3].map(pool);
    for_all_formats(|formats| {
        for (columns, outputs) in
            [(1, 1), (2, 5), (3, 16), (17, 31), (17, 100), (63, 33), (63, 64), (64, 32), (130, 1), (896, 33)]
        {
            for rows in [1, 2, 3, 6, 7, 13, 14, 15, 20, 33] {
                let case = Case::new(formats, rows, columns, outputs);
                let weights = case.weights.pack(outputs, Layout::Plain, &pools[1]);
                for tier in Tier::available() {
                    let pool = &pools[(rows + outputs) % 3];
                    let got = raw(pool, tier, &weights, case.input.elements(), rows);
                    case.check(&got, tier.isa().name());
                }
            }
        }
    });
}

#[test]
fn every_small_number_of_rows() {
    let pool = pool(2);
    for formats in [(Format::Bf16, Format::Bf16), (Format::F16, Format::F16), (Format::F32, Format::F32)] {
        for rows in 1..=30 {
            let case = Case::new(formats, rows, 37, 48);
            let weights = case.weights.pack(48, Layout::Plain, &pool);
            for tier in Tier::available() {
                case.check(&raw(&pool, tier, &weights, case.input.elements(), rows), tier.isa().name());
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_rows_or_tier() {
    let pools = [1, 2, 3].map(pool);
    for_all_formats(|formats| {
        // More than one block of rows and more than one chunk of k, of pairs too.
        let (rows, columns, outputs) = (190, 2 * CHUNK + 5, 40);
        let case = Case::new(formats, rows, columns, outputs);
        let weights = case.weights.pack(outputs, Layout::Plain, &pools[2]);
        let first = raw(&pools[0], Tier::detect(), &weights, case.input.elements(), rows);
        case.check(&first[..outputs], "first row");
        for pool in &pools[1..] {
            assert_eq!(raw(pool, Tier::detect(), &weights, case.input.elements(), rows), first);
        }
        for row in [0, 1, 100, rows - 1] {
            let bytes = columns * formats.1.bytes();
            // A row need not be aligned to anything but its values.
            let input = Elements::from_bytes(formats.1, &case.input.bytes[row * bytes..][..bytes]).unwrap();
            for tier in Tier::available() {
                let alone = raw(&pools[1], tier, &weights, input, 1);
                assert_eq!(alone, first[row * outputs..][..outputs], "row {row}, {}", tier.isa());
            }
        }
    });
}

/// P6: sums are kept in f32.
#[test]
fn f16_sums_do_not_overflow_or_stall() {
    let pool = pool(2);
    for (count, value, expected) in
        [(32_768, 1.0, 32_768.0), (131_072, 1.0, 131_072.0), (131_072, 4.0, 2_097_152.0)]
    {
        for_all_formats(|formats| {
            let weights = Values::new(formats.0, &vec![value; count]).pack(1, Layout::Plain, &pool);
            let input = Values::new(formats.1, &vec![value; count]);
            for tier in Tier::available() {
                assert_eq!(raw(&pool, tier, &weights, input.elements(), 1), [expected]);
            }
        });
    }
}

#[test]
fn the_epilogue_rounds_once() {
    let pool = pool(2);
    let (rows, columns, outputs) = (9, 70, 45);
    for_all_formats(|formats| {
        let case = Case::new(formats, rows, columns, outputs);
        let weights = case.weights.pack(outputs, Layout::Plain, &pool);
        let bias = Values::random(Format::F32, outputs, 5).exact;
        let earlier = Values::random(formats.1, rows * outputs, 6);
        let sums = raw(&pool, Tier::detect(), &weights, case.input.elements(), rows);
        let (alpha, beta) = (0.75, -1.5);
        let expected: Vec<f32> = (0..sums.len())
            .map(|i| earlier.exact[i].mul_add(beta, sums[i].mul_add(alpha, bias[i % outputs])))
            .collect();
        let expected = Values::new(formats.1, &expected);
        for tier in Tier::available() {
            for in_place in [false, true] {
                let mut out = AlignedBuffer::zeroed(earlier.bytes.len()).unwrap();
                out.copy_from_slice(&earlier.bytes);
                let values = match in_place {
                    true => ResidualValues::InPlace,
                    false => ResidualValues::Separate(earlier.elements()),
                };
                let epilogue = Epilogue::Store {
                    out: ElementsMut::from_bytes(formats.1, &mut out).unwrap(),
                    alpha,
                    bias: Some(&bias),
                    residual: Some(Residual { beta, values }),
                };
                let product = Matmul { weights: &weights, input: case.input.elements(), rows, epilogue };
                matmul(&pool, tier, &mut MatmulScratch::default(), product).unwrap();
                assert_eq!(out[..], expected.bytes[..], "{formats:?} {} in place: {in_place}", tier.isa());
            }
        }
    });
}

#[test]
fn swiglu_is_fused_and_rounded_once() {
    let pool = pool(2);
    for_all_formats(|formats| {
        for (rows, columns, width) in [(1, 33, 1), (1, 64, 16), (4, 40, 23), (16, 96, 48)] {
            let case = Case::new(formats, rows, columns, 2 * width);
            let plain = case.weights.pack(2 * width, Layout::Plain, &pool);
            let fused = case.weights.pack(2 * width, Layout::GateUp, &pool);
            let sums = raw(&pool, Tier::detect(), &plain, case.input.elements(), rows);
            let mut first: Option<Vec<u8>> = None;
            for tier in Tier::available() {
                let mut bytes = AlignedBuffer::zeroed(rows * width * formats.1.bytes()).unwrap();
                let out = ElementsMut::from_bytes(formats.1, &mut bytes).unwrap();
                let epilogue = Epilogue::SwiGlu { out };
                let product = Matmul { weights: &fused, input: case.input.elements(), rows, epilogue };
                matmul(&pool, tier, &mut MatmulScratch::default(), product).unwrap();
                assert_eq!(first.get_or_insert_with(|| bytes.to_vec())[..], bytes[..], "{}", tier.isa());
                let mut got = vec![0.0; rows * width];
                decode_slice(&bytes, formats.1, &mut got).unwrap();
                for (index, &got) in got.iter().enumerate() {
                    let row = &sums[index / width * 2 * width..];
                    let (gate, up) = (f64::from(row[index % width]), f64::from(row[width + index % width]));
                    let exact = gate / (1.0 + (-gate).exp()) * up;
                    // exp, a sum, a quotient and a product: fewer roundings than 8.
                    let tolerance = bound_for(8, exact.abs(), formats.1);
                    assert!(tolerance.accepts(f64::from(got), exact), "{formats:?} [{index}] {got} {exact}");
                }
            }
        }
    });
}

fn store<'a>(out: &'a mut [f32], bias: Option<&'a [f32]>, values: Elements<'a>) -> Epilogue<'a> {
    let residual = Some(Residual { beta: 1.0, values: ResidualValues::Separate(values) });
    Epilogue::Store { out: ElementsMut::F32(out), alpha: 1.0, bias, residual }
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let pool = pool(1);
    let case = Case::new((Format::F16, Format::F32), 2, 8, 6);
    let weights = case.weights.pack(6, Layout::Plain, &pool);
    let error = |rows: usize, epilogue: Epilogue<'_>| {
        let product = Matmul { weights: &weights, input: case.input.elements(), rows, epilogue };
        matmul(&pool, Tier::detect(), &mut MatmulScratch::default(), product).unwrap_err().to_string()
    };
    let mut out = vec![0.0_f32; 12];
    assert_eq!(error(3, Epilogue::F32 { out: &mut out }), "matmul 3 x 8 by 6: input needs 24 values, got 16");
    assert_eq!(
        error(2, Epilogue::F32 { out: &mut out[..11] }),
        "matmul 2 x 8 by 6: out needs 12 values, got 11"
    );
    assert_eq!(
        error(2, Epilogue::SwiGlu { out: ElementsMut::F32(&mut out[..6]) }),
        "matmul: this epilogue needs weights packed as GateUp, got Plain"
    );
    let half = Values::random(Format::F16, 12, 1);
    assert_eq!(
        error(2, store(&mut out, None, half.elements())),
        "matmul: the residual must be f32, as the output, but is f16"
    );
    let earlier = vec![0.0; 12];
    assert_eq!(
        error(2, store(&mut out, Some(&[1.0; 5]), Elements::F32(&earlier))),
        "matmul 2 x 8 by 6: bias needs 6 values, got 5"
    );
}

#[test]
fn nothing_to_do_is_no_error() {
    let pool = pool(2);
    let weights = Values::random(Format::Bf16, 40, 1).pack(5, Layout::Plain, &pool);
    assert_eq!(raw(&pool, Tier::detect(), &weights, Elements::Bf16(&[]), 0), []);
}

#[test]
fn reserved_scratch_does_not_grow() {
    let pool = pool(2);
    for_all_formats(|formats| {
        let case = Case::new(formats, 20, 31, 40);
        let weights = case.weights.pack(40, Layout::Plain, &pool);
        let mut scratch = MatmulScratch::for_size(20, 31, 2).unwrap();
        let before = scratch.bytes();
        let mut out = vec![0.0; 800];
        let epilogue = Epilogue::F32 { out: &mut out };
        let product = Matmul { weights: &weights, input: case.input.elements(), rows: 20, epilogue };
        matmul(&pool, Tier::detect(), &mut scratch, product).unwrap();
        assert_eq!(scratch.bytes(), before);
    });
}
