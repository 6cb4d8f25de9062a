//! Rows come back as they were, wherever they lie in the panels.

use std::num::NonZeroUsize;

use mantissa_numerics::convert::slice::{decode_slice, encode_slice};

use super::*;

const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

fn pool() -> Pool {
    Pool::new(NonZeroUsize::new(2).unwrap()).unwrap()
}

/// Row `r`, column `k` is `r + k / 8`, rounded to `format`, starting at row `first`.
fn table(format: Format, first: usize, rows: usize, columns: usize) -> Vec<u8> {
    let value = |i: usize| (first + i / columns) as f32 + (i % columns) as f32 / 8.0;
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    let mut bytes = vec![0; values.len() * format.bytes()];
    encode_slice(&values, format, &mut bytes).unwrap();
    bytes
}

fn source(format: Format, bytes: &[u8], rows: usize) -> PackSource<'_> {
    PackSource { bytes, format, tensor_rows: rows, rows: 0..rows, order: RowOrder::AsStored }
}

fn row(matrix: &PackedMatrix, row: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; matrix.columns()];
    matrix.row(row, &mut out).unwrap();
    out
}

#[test]
fn rows_come_back_in_every_format_and_layout() {
    let pool = pool();
    for from in FORMATS {
        for format in FORMATS {
            for (rows, columns) in [(2, 1), (6, 3), (34, 17), (64, 32), (70, 1030)] {
                for layout in [Layout::Plain, Layout::GateUp] {
                    let bytes = table(from, 0, rows, columns);
                    let sources = [source(from, &bytes, rows)];
                    let overflow = Overflow::Infinity;
                    let request = PackRequest { sources: &sources, columns, format, layout, overflow };
                    let Packed { matrix, stats } =
                        PackedMatrix::pack(&request, &mut Arena::default(), &pool).unwrap();
                    assert_eq!(stats[0].values, (rows * columns) as u64);
                    assert_eq!((matrix.rows(), matrix.columns()), (rows, columns));
                    let mut values = vec![0.0; rows * columns];
                    decode_slice(&bytes, from, &mut values).unwrap();
                    let mut rounded = vec![0; values.len() * format.bytes()];
                    encode_slice(&values, format, &mut rounded).unwrap();
                    decode_slice(&rounded, format, &mut values).unwrap();
                    for (index, expected) in values.chunks(columns).enumerate() {
                        assert_eq!(row(&matrix, index), expected);
                    }
                }
            }
        }
    }
}

#[test]
fn parts_of_tensors_are_stacked_and_reordered() {
    let (first, second) = (table(Format::F32, 0, 8, 4), table(Format::Bf16, 100, 6, 4));
    let sources = [
        PackSource { order: RowOrder::RopePairs { heads: 2 }, ..source(Format::F32, &first, 8) },
        PackSource { rows: 2..5, ..source(Format::Bf16, &second, 6) },
    ];
    let (format, layout, overflow) = (Format::F16, Layout::Plain, Overflow::Infinity);
    let request = PackRequest { sources: &sources, columns: 4, format, layout, overflow };
    let Packed { matrix, stats } = PackedMatrix::pack(&request, &mut Arena::default(), &pool()).unwrap();
    let firsts: Vec<f32> = (0..matrix.rows()).map(|index| row(&matrix, index)[0]).collect();
    assert_eq!(firsts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0, 102.0, 103.0, 104.0]);
    assert_eq!([stats[0].values, stats[1].values], [32, 12]);
}

#[test]
fn losses_are_counted_per_source() {
    let values: [f32; 4] = [1e6, 1.0, f32::NAN, 1e-30];
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    let fine: &[u8] = bytemuck::cast_slice(&[1.0_f32; 4]);
    let sources = [source(Format::F32, fine, 2), source(Format::F32, bytes, 2)];
    let mut request = PackRequest {
        sources: &sources,
        columns: 2,
        format: Format::F16,
        layout: Layout::Plain,
        overflow: Overflow::Infinity,
    };
    let packed = PackedMatrix::pack(&request, &mut Arena::default(), &pool()).unwrap();
    assert!(packed.stats[0].is_exact());
    let lost = packed.stats[1];
    assert_eq!((lost.overflowed, lost.flushed_to_zero, lost.nan), (1, 1, 1));
    assert_eq!(row(&packed.matrix, 2), [f32::INFINITY, 1.0]);
    request.overflow = Overflow::Saturate;
    let packed = PackedMatrix::pack(&request, &mut Arena::default(), &pool()).unwrap();
    assert_eq!(row(&packed.matrix, 2), [65504.0, 1.0]);
}

#[test]
fn bad_requests_are_errors() {
    let pool = pool();
    let bytes = table(Format::F32, 0, 3, 4);
    let good = source(Format::F32, &bytes, 3);
    let check = |source: PackSource<'_>, columns, format, layout| {
        let overflow = Overflow::Infinity;
        let request = PackRequest { sources: &[source], columns, format, layout, overflow };
        PackedMatrix::pack(&request, &mut Arena::default(), &pool).unwrap_err()
    };
    let (f16, plain) = (Format::F16, Layout::Plain);
    assert_eq!(check(good.clone(), 4, Format::F8E4M3, plain), PackError::Format(Format::F8E4M3));
    assert_eq!(check(good.clone(), 4, f16, Layout::GateUp), PackError::OddGateUp(3));
    for columns in [0, 3, 5, usize::MAX] {
        assert!(matches!(check(good.clone(), columns, f16, plain), PackError::Length { got: 48, .. }));
    }
    let beyond = PackSource { rows: 1..4, ..good.clone() };
    assert_eq!(
        check(beyond, 4, f16, plain).to_string(),
        "source 0: rows 1..4 of a tensor with 3 rows (ordered AsStored)"
    );
    let order = RowOrder::RopePairs { heads: 0 };
    assert!(matches!(check(PackSource { order, ..good }, 4, f16, plain), PackError::Rows { .. }));
}

#[test]
fn rows_that_are_not_there_are_errors() {
    let bytes = table(Format::F32, 0, 3, 4);
    let (format, layout, overflow) = (Format::F32, Layout::Plain, Overflow::Infinity);
    let sources = [source(format, &bytes, 3)];
    let request = PackRequest { sources: &sources, columns: 4, format, layout, overflow };
    let matrix = PackedMatrix::pack(&request, &mut Arena::default(), &pool()).unwrap().matrix;
    assert!(matrix.row(3, &mut [0.0; 4]).is_err());
    let error = matrix.row(2, &mut [0.0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "row 2 of 3, into 3 values of 4");
}
