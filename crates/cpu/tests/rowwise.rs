//! RMSNorm, RoPE, softmax, sums and token lookup against f64, in every format, on every machine with the same bits.

mod common;

use common::{Random, STORAGE, Stored, on_every_machine};
use mantissa_cpu::aligned::Arena;
use mantissa_cpu::elementwise::{AddArgs, add, add_assign};
use mantissa_cpu::embedding::{EmbeddingArgs, TokenTable, embedding, embedding_scratch};
use mantissa_cpu::norm::{RmsNormArgs, rms_norm};
use mantissa_cpu::operands::OperandError;
use mantissa_cpu::pack::{Layout, PackRequest, PackSource, PackedMatrix};
use mantissa_cpu::rope::{RopeArgs, RopeError, RopeTables, rope};
use mantissa_cpu::softmax::{SoftmaxArgs, softmax};
use mantissa_numerics::Format;
use mantissa_numerics::convert::Overflow;
use mantissa_numerics::tolerance::{Tolerance, rounding_bound};
use mantissa_ops::batch::{Batch, SequenceRows};
use mantissa_ops::program::{RopeSet, RopeSpec};
use mantissa_ops::rope::FrequencyError;
use mantissa_ops::source::RowOrder;

const WIDTHS: [usize; 8] = [1, 5, 16, 17, 33, 64, 200, 896];

fn assert_close(got: &Stored, expected: &[(f64, Tolerance)], what: &str) {
    let got = got.exact();
    assert_eq!(got.len(), expected.len());
    for (index, (&got, &(exact, tolerance))) in got.iter().zip(expected).enumerate() {
        assert!(
            tolerance.accepts(got, exact),
            "{what}, value {index}: got {got:e}, wanted {exact:e} within {:e}",
            tolerance.bound(exact)
        );
    }
}

/// A value that an f32 kernel reaches by `operations` roundings of relative error, stored as `format`.
fn computed(operations: usize, format: Format) -> Tolerance {
    Tolerance::operations(operations, Format::F32).stored_as(format)
}

#[test]
fn rms_norm_is_that_of_f64() {
    let mut random = Random(1);
    for activations in STORAGE {
        for weights in STORAGE {
            for width in WIDTHS {
                let rows = if width == 200 { 200 } else { 3 };
                let input = Stored::new(activations, &random.numbers(rows * width));
                let weight = Stored::new(weights, &random.numbers(width));
                let eps = 1e-5;
                let out = on_every_machine(|machine| {
                    let mut out = Stored::poisoned(activations, rows * width);
                    let (input, weight) = (input.get(), weight.get());
                    rms_norm(machine, RmsNormArgs { input, residual: None, weight, eps, out: out.get_mut() })
                        .unwrap();
                    vec![out]
                });
                let expected = expected_norm(&input.exact(), &weight.exact(), eps, width + 12, activations);
                assert_close(&out[0], &expected, &format!("{activations} x {weights}, width {width}"));
            }
        }
    }
}

fn expected_norm(
    x: &[f64],
    weight: &[f64],
    eps: f32,
    operations: usize,
    format: Format,
) -> Vec<(f64, Tolerance)> {
    let mut expected = Vec::new();
    for row in x.chunks_exact(weight.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
        let values = row.iter().zip(weight).map(|(x, w)| x * inverse * w);
        expected.extend(values.map(|value| (value, computed(operations, format))));
    }
    expected
}

#[test]
fn rms_norm_normalises_the_unrounded_sum() {
    let mut random = Random(2);
    for activations in STORAGE {
        for width in WIDTHS {
            let (rows, eps) = (4, 1e-6);
            let input = Stored::new(activations, &random.numbers(rows * width));
            let residual = Stored::new(activations, &random.numbers(rows * width));
            let weight = Stored::new(activations, &random.numbers(width));
            let out = on_every_machine(|machine| {
                let mut out = Stored::poisoned(activations, rows * width);
                let mut residual = residual.clone();
                let args = RmsNormArgs {
                    input: input.get(),
                    residual: Some(residual.get_mut()),
                    weight: weight.get(),
                    eps,
                    out: out.get_mut(),
                };
                rms_norm(machine, args).unwrap();
                vec![out, residual]
            });
            let sums: Vec<f32> = input.numbers().iter().zip(residual.numbers()).map(|(a, b)| a + b).collect();
            assert_eq!(out[1], Stored::new(activations, &sums));
            let sums: Vec<f64> = sums.into_iter().map(f64::from).collect();
            let expected = expected_norm(&sums, &weight.exact(), eps, width + 12, activations);
            assert_close(&out[0], &expected, &format!("{activations}, width {width}"));
        }
    }
}

#[test]
fn sums_are_rounded_once() {
    let mut random = Random(3);
    for format in STORAGE {
        for count in [1, 15, 16, 1000, 40_000] {
            let left = Stored::new(format, &random.numbers(count));
            let right = Stored::new(format, &random.numbers(count));
            let out = on_every_machine(|machine| {
                let mut out = Stored::poisoned(format, count);
                add(machine, AddArgs { left: left.get(), right: right.get(), out: out.get_mut() }).unwrap();
                let mut sum = left.clone();
                add_assign(machine, sum.get_mut(), right.get()).unwrap();
                vec![out, sum]
            });
            let sums: Vec<f32> = left.numbers().iter().zip(right.numbers()).map(|(a, b)| a + b).collect();
            assert_eq!(out[0], Stored::new(format, &sums));
            assert_eq!(out[1], out[0]);
        }
    }
}

#[test]
fn softmax_is_that_of_f64() {
    let mut random = Random(4);
    for format in STORAGE {
        for width in WIDTHS {
            let (rows, scale) = (5, 3.7_f32);
            let input = Stored::new(format, &random.numbers(rows * width));
            let out = on_every_machine(|machine| {
                let mut out = Stored::poisoned(format, rows * width);
                softmax(machine, SoftmaxArgs { input: input.get(), width, scale, out: out.get_mut() })
                    .unwrap();
                vec![out]
            });
            let mut expected = Vec::new();
            for row in input.exact().chunks_exact(width) {
                let scores: Vec<f64> = row.iter().map(|x| x * f64::from(scale)).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let magnitude = scores.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                // Products and differences round; the exponential carries that into a relative error.
                let carried = (4.0 * rounding_bound(Format::F32, magnitude)).exp_m1();
                let tolerance = Tolerance::new(0.0, 2.0 * carried)
                    .plus(Tolerance::transcendental(2))
                    .plus(Tolerance::operations(width + 2, Format::F32))
                    .stored_as(format);
                expected.extend(scores.iter().map(|s| ((s - largest).exp() / sum, tolerance)));
            }
            assert_close(&out[0], &expected, &format!("{format}, width {width}"));
        }
    }
}

#[test]
fn softmax_keeps_infinities_and_nan() {
    let rows = [[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], [f32::NAN, 0.0, 1.0], [f32::INFINITY, 0.0, 1.0]];
    let out = on_every_machine(|machine| {
        let input = Stored::new(Format::F32, rows.as_flattened());
        let mut out = Stored::new(Format::F32, &[7.0; 9]);
        softmax(machine, SoftmaxArgs { input: input.get(), width: 3, scale: 1.0, out: out.get_mut() })
            .unwrap();
        // Payloads of NaN may differ.
        vec![Stored::new(
            Format::F32,
            &out.numbers().iter().map(|x| if x.is_nan() { 9.0 } else { *x }).collect::<Vec<_>>(),
        )]
    });
    assert_eq!(out[0].numbers(), [0.0, 1.0, 0.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]);
}

fn spec(rotary_dim: usize, sets: usize) -> RopeSpec {
    let set = |set: usize| RopeSet {
        inverse_frequencies: (0..rotary_dim / 2)
            .map(|i| 10_000_f64.powf(-2.0 * i as f64 / rotary_dim as f64) / (1.0 + set as f64))
            .collect(),
        attention_factor: 1.0 + 0.1 * set as f64,
    };
    RopeSpec { rotary_dim, sets: (0..sets).map(set).collect(), long_beyond: None }
}

#[test]
fn rope_turns_pairs_by_f64_angles() {
    let mut random = Random(5);
    let positions = [0, 1, 2, 3, 4, 500, 501];
    let sequences = [
        SequenceRows { rows: 0..5, block_table: &[], rope_set: 0 },
        SequenceRows { rows: 5..7, block_table: &[], rope_set: 1 },
    ];
    let batch = Batch { tokens: &[0; 7], positions: &positions, sequences: &sequences, outputs: &[] };
    for format in STORAGE {
        for (head_dim, rotary_dim) in [(16, 16), (24, 24), (80, 32), (64, 64), (96, 96), (2, 2), (128, 128)] {
            let (heads, spec) = (3, spec(rotary_dim, 2));
            let width = heads * head_dim;
            let input = Stored::new(format, &random.numbers(positions.len() * width));
            let out = on_every_machine(|machine| {
                let tables = RopeTables::new(&spec, 512, machine.pool).unwrap();
                let mut out = Stored::poisoned(format, positions.len() * width);
                let (input, tables, batch) = (input.get(), &tables, &batch);
                rope(machine, RopeArgs { input, head_dim, tables, batch, out: out.get_mut() }).unwrap();
                vec![out]
            });
            let mut expected = Vec::new();
            for (row, head) in input.exact().chunks_exact(head_dim).enumerate() {
                let row = row / heads;
                let set = &spec.sets[usize::from(row >= 5)];
                expected.extend((0..head_dim).map(|i| {
                    if i >= rotary_dim {
                        return (head[i], Tolerance::EXACT);
                    }
                    let pair = i % (rotary_dim / 2);
                    let angle = f64::from(positions[row]) * set.inverse_frequencies[pair];
                    let (sin, cos) = angle.sin_cos();
                    let (a, b) = (head[pair], head[pair + rotary_dim / 2]);
                    let (x, y) = if i == pair { (a * cos, -b * sin) } else { (b * cos, a * sin) };
                    let factor = set.attention_factor;
                    // Tables, product and sum round once each.
                    let tolerance =
                        Tolerance::sum(3, Format::F32, (x.abs() + y.abs()) * factor).stored_as(format);
                    ((x + y) * factor, tolerance)
                }));
            }
            assert_close(&out[0], &expected, &format!("{format}, head of {head_dim}, {rotary_dim} rotary"));
        }
    }
}

#[test]
fn rope_refuses_what_its_tables_do_not_hold() {
    let pool = common::pool(1);
    let machine = mantissa_cpu::operands::Machine { tier: mantissa_cpu::Tier::detect(), pool: &pool };
    let tables = RopeTables::new(&spec(16, 1), 8, &pool).unwrap();
    let input = Stored::new(Format::F32, &[1.0; 16]);
    for (position, rope_set) in [(8, 0), (0, 1)] {
        let sequences = [SequenceRows { rows: 0..1, block_table: &[], rope_set }];
        let batch = Batch { tokens: &[0], positions: &[position], sequences: &sequences, outputs: &[] };
        let mut out = Stored::poisoned(Format::F32, 16);
        let args =
            RopeArgs { input: input.get(), head_dim: 16, tables: &tables, batch: &batch, out: out.get_mut() };
        assert!(matches!(rope(machine, args), Err(OperandError::Limit { .. })));
    }
    let mut wrong = spec(16, 1);
    wrong.sets[0].inverse_frequencies.pop();
    let error = RopeTables::new(&wrong, 8, &pool).unwrap_err();
    assert_eq!(error, RopeError::Frequencies(FrequencyError { set: 0, wanted: 8, got: 7 }));
    assert!(matches!(RopeTables::new(&spec(16, 1), usize::MAX, &pool), Err(RopeError::Memory(_))));
}

#[test]
fn embedding_looks_up_and_rounds_once() {
    let mut random = Random(6);
    let (vocabulary, width) = (50, 37);
    let tokens = [0, 49, 7, 7, 30];
    for table_format in STORAGE {
        let table = Stored::new(table_format, &random.numbers(vocabulary * width));
        for format in STORAGE {
            let out = on_every_machine(|machine| {
                let table = TokenTable::Rows { values: table.get(), width };
                let mut scratch = vec![0.0; embedding_scratch(machine.pool, &table)];
                let mut out = Stored::poisoned(format, tokens.len() * width);
                let args =
                    EmbeddingArgs { tokens: &tokens, table, scratch: &mut scratch, out: out.get_mut() };
                embedding(machine, args).unwrap();
                vec![out]
            });
            let table = table.numbers();
            let rows: Vec<f32> = tokens
                .iter()
                .flat_map(|&token| table[token as usize * width..][..width].iter().copied())
                .collect();
            assert_eq!(out[0], Stored::new(format, &rows));
        }
    }
}

#[test]
fn a_packed_table_gives_the_same_rows() {
    let mut random = Random(7);
    let (vocabulary, width) = (45, 70);
    let tokens = [44, 0, 31, 32];
    for format in STORAGE {
        let table = Stored::new(format, &random.numbers(vocabulary * width));
        let out = on_every_machine(|machine| {
            let source = PackSource {
                bytes: table.bytes(),
                format,
                tensor_rows: vocabulary,
                rows: 0..vocabulary,
                order: RowOrder::AsStored,
            };
            let request = PackRequest {
                sources: &[source],
                columns: width,
                format,
                layout: Layout::Plain,
                overflow: Overflow::Infinity,
            };
            let packed = PackedMatrix::pack(&request, &mut Arena::default(), machine.pool).unwrap();
            let tables =
                [TokenTable::Packed(&packed.matrix), TokenTable::Rows { values: table.get(), width }];
            tables
                .map(|table| {
                    let mut scratch = vec![0.0; embedding_scratch(machine.pool, &table)];
                    let mut out = Stored::poisoned(Format::F16, tokens.len() * width);
                    let args =
                        EmbeddingArgs { tokens: &tokens, table, scratch: &mut scratch, out: out.get_mut() };
                    embedding(machine, args).unwrap();
                    out
                })
                .to_vec()
        });
        assert_eq!(out[0], out[1]);
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let pool = common::pool(1);
    let machine = mantissa_cpu::operands::Machine { tier: mantissa_cpu::Tier::detect(), pool: &pool };
    let (input, weight) = (Stored::new(Format::F16, &[1.0; 32]), Stored::new(Format::F16, &[1.0; 16]));
    let mut out = Stored::poisoned(Format::Bf16, 32);
    let args = RmsNormArgs {
        input: input.get(),
        residual: None,
        weight: weight.get(),
        eps: 0.0,
        out: out.get_mut(),
    };
    let error = rms_norm(machine, args).unwrap_err();
    assert_eq!(error.to_string(), "output of rms_norm: wanted f16, got bf16");
    let mut out = Stored::poisoned(Format::F16, 31);
    let args = AddArgs { left: input.get(), right: input.get(), out: out.get_mut() };
    assert_eq!(add(machine, args).unwrap_err().to_string(), "sum: wanted 32 values, got 31");
    let table = TokenTable::Rows { values: weight.get(), width: 8 };
    let mut out = Stored::poisoned(Format::F16, 8);
    let args = EmbeddingArgs { tokens: &[2], table, scratch: &mut [0.0; 8], out: out.get_mut() };
    assert_eq!(embedding(machine, args).unwrap_err().to_string(), "token: 2, but the limit is 1");
}
