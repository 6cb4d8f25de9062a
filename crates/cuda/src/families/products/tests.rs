use std::collections::HashSet;

use super::*;

const A100: Capabilities = device(8, 108, 163);
const H200: Capabilities = device(9, 132, 227);
const RTX: Capabilities = device(12, 170, 99);
const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];
const EPILOGUES: [Epilogue; 3] = [Epilogue::Store, Epilogue::SwiGlu, Epilogue::Plain];
const WIDTHS: [usize; 9] = [1, 8, 63, 130, 896, 4864, 8192, 16_384, 151_936];

const fn device(major: u32, multiprocessors: u32, shared_kib: u32) -> Capabilities {
    Capabilities { arch: Arch { major, minor: 0 }, multiprocessors, shared_per_block: shared_kib * 1024 }
}

fn product(format: Format, epilogue: Epilogue) -> Product {
    Product { weights: format, activations: format, epilogue }
}

fn auto(product: Product, shape: [usize; 3]) -> Variant {
    choose(product, shaped(shape), H200, Preferences::default())
}

fn shaped([rows, features, columns]: [usize; 3]) -> Shape {
    Shape { rows, features, columns }
}

fn small(bucket: Bucket, weight_rows: u32, warps: u32, slots: u32, input: Input) -> Variant {
    Variant::SmallMatrix(SmallMatrix { bucket, weight_rows, warps, slots, input })
}

fn small_fma(bucket: Bucket, weight_rows: u32) -> Variant {
    Variant::SmallFma { bucket, weight_rows }
}

/// Every product, shape and device of the tests, with its variant.
fn all() -> Vec<(Product, Shape, Capabilities, Variant)> {
    let mut all = Vec::new();
    for weights in FORMATS {
        for activations in FORMATS {
            for epilogue in EPILOGUES {
                let product = Product { weights, activations, epilogue };
                for rows in [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 129, 512, 8192] {
                    for features in WIDTHS {
                        for columns in WIDTHS {
                            for device in [A100, H200, RTX] {
                                let shape = Shape { rows, features, columns };
                                let variant = choose(product, shape, device, Preferences::default());
                                all.push((product, shape, device, variant));
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

#[test]
fn arguments_are_laid_out_as_the_kernel_declares_them() {
    assert_eq!((size_of::<ProductArgs>(), align_of::<ProductArgs>()), (96, 8));
    assert_eq!(std::mem::offset_of!(ProductArgs, weight_stride), 48);
    assert_eq!(std::mem::offset_of!(ProductArgs, features), 80);
    assert_eq!(std::mem::offset_of!(ProductArgs, alpha), 92);
}

#[test]
fn decode_shapes_of_qwen_and_llama() {
    use Bucket::{Eight, One, Sixteen};
    use Input::{Segment, Whole};
    let store = product(Format::Bf16, Epilogue::Store);
    assert_eq!(auto(store, [1, 896, 896]), small(One, 16, 4, 1, Whole));
    // A tile of sixteen whole rows would take 165 KB.
    assert_eq!(auto(store, [1, 896, 4864]), small(One, 8, 19, 1, Whole));
    assert_eq!(auto(store, [8, 896, 4864]), small(Eight, 16, 10, 1, Whole));
    assert_eq!(auto(store, [2, 2048, 8192]), small(Eight, 16, 16, 1, Segment));
    assert_eq!(auto(store, [8, 2048, 2048]), small(Eight, 16, 8, 1, Whole));
    assert_eq!(auto(store, [9, 151_936, 896]), small(Sixteen, 16, 4, 1, Whole));
    // One block a multiprocessor, and tiles for more than one.
    assert_eq!(auto(product(Format::F16, Epilogue::SwiGlu), [1, 8192, 4096]), small(One, 16, 16, 1, Whole));
    assert_eq!(auto(store, [32, 2048, 2047]), small(Sixteen, 16, 8, 1, Whole));
    assert_eq!(auto(product(Format::F32, Epilogue::Store), [1, 896, 896]), small_fma(One, 1));
    assert_eq!(auto(product(Format::F32, Epilogue::Plain), [1, 151_936, 896]), small_fma(One, 2));
    assert_eq!(auto(product(Format::F32, Epilogue::SwiGlu), [1, 4864, 896]), small_fma(One, 2));
}

#[test]
fn rows_of_weights_are_shared_out_among_multiprocessors() {
    use Bucket::{Eight, Four, One, Two};
    let [store, swiglu] = [Epilogue::Store, Epilogue::SwiGlu].map(|epilogue| product(Format::F32, epilogue));
    let halves = Product { weights: Format::Bf16, ..store };
    for (product, shape, variant) in [
        (store, [8, 896, 4864], small_fma(Eight, 2)),
        (store, [8, 2048, 8192], small_fma(Eight, 2)),
        (store, [8, 3072, 2048], small_fma(Eight, 4)),
        (swiglu, [8, 4864, 896], small_fma(Eight, 4)),
        // Further passes are further blocks.
        (store, [16, 896, 4864], small_fma(Eight, 2)),
        (store, [20, 896, 896], small_fma(Eight, 4)),
        (store, [4, 896, 896], small_fma(Four, 1)),
        (store, [4, 3072, 2048], small_fma(Four, 2)),
        (store, [2, 2048, 2048], small_fma(Two, 1)),
        (store, [2, 4096, 1024], small_fma(Two, 2)),
        (halves, [1, 896, 4864], small_fma(One, 1)),
        (halves, [1, 2048, 2048], small_fma(One, 2)),
        (halves, [2, 2048, 2048], small_fma(Two, 2)),
        (halves, [4, 4096, 1024], small_fma(Four, 4)),
        // An output has a gate and an up.
        (swiglu, [8, 64, 64], small_fma(Eight, 2)),
        (swiglu, [2, 64, 64], small_fma(Two, 2)),
    ] {
        assert_eq!(auto(product, shape), variant, "{shape:?}");
    }
}

#[test]
fn few_rows_are_those_for_which_passes_over_the_weights_are_faster_than_tiles() {
    let few =
        |product, shape| matches!(auto(product, shape), Variant::SmallMatrix(_) | Variant::SmallFma { .. });
    let bf16 = |epilogue| product(Format::Bf16, epilogue);
    for (product, [features, columns], most) in [
        (bf16(Epilogue::Plain), [1152, 896], 32),
        (bf16(Epilogue::Store), [896, 4864], 80),
        (bf16(Epilogue::SwiGlu), [4864, 896], 16),
        (bf16(Epilogue::Plain), [3072, 2048], 16),
        (bf16(Epilogue::Store), [2048, 2048], 32),
        (bf16(Epilogue::Store), [2048, 8192], 32),
        (bf16(Epilogue::Plain), [128_256, 2048], 16),
        (product(Format::F32, Epilogue::Store), [896, 4864], 64),
    ] {
        let found: Vec<usize> = (1..=200).filter(|&rows| few(product, [rows, features, columns])).collect();
        assert_eq!(found, (1..=most).collect::<Vec<_>>(), "{features} by {columns}");
    }
}

#[test]
fn many_rows_are_tiled() {
    let store = product(Format::F16, Epilogue::Store);
    let on = |device, shape| choose(store, shaped(shape), device, Preferences::default());
    assert_eq!(on(A100, [33, 896, 896]), Variant::Gemm { tile: 64, stages: 4 });
    assert_eq!(on(A100, [2048, 2048, 2048]), Variant::Gemm { tile: 128, stages: 4 });
    assert_eq!(on(RTX, [2048, 2048, 2048]), Variant::Gemm { tile: 128, stages: 3 });
    let f32s = product(Format::F32, Epilogue::Store);
    assert!(matches!(auto(f32s, [2048, 2048, 2048]), Variant::Gemm { tile: 128, .. }));
}

#[test]
fn preferences_decide() {
    let store = product(Format::Bf16, Epilogue::Store);
    let gemm = Preferences { variant: VariantPreference::Gemm, ..Preferences::default() };
    let small = Preferences { variant: VariantPreference::SmallN, ..Preferences::default() };
    let limit = Preferences { small_n_max: Some(4), ..Preferences::default() };
    let kind = |rows, preferences| {
        matches!(choose(store, shaped([rows, 896, 896]), H200, preferences), Variant::SmallMatrix(_))
    };
    assert_eq!([1, 100].map(|rows| kind(rows, gemm)), [false, false]);
    assert_eq!([1, 100].map(|rows| kind(rows, small)), [true, true]);
    assert_eq!([4, 5].map(|rows| kind(rows, limit)), [true, false]);
}

#[test]
fn launches_cover_every_output_within_the_limits_of_a_block() {
    for (product, shape, device, variant) in all() {
        let launch = launch_shape(product, variant, shape, device);
        let [features, rows] = match variant {
            Variant::SmallMatrix(_) => {
                check_small_matrix(product, shape, device, variant, launch);
                continue;
            }
            Variant::SmallFma { bucket, weight_rows } => {
                let features = weight_rows * FMA_WARPS / product.parts();
                [(launch.grid[0], features), (launch.grid[1], bucket.rows())]
            }
            Variant::Gemm { tile, .. } => [(launch.grid[1], tile / product.parts()), (launch.grid[0], tile)],
            // Tested beside its choice.
            Variant::Wgmma(_) => continue,
        };
        for ((blocks, each), wanted) in [(features, shape.features), (rows, shape.rows)] {
            let (blocks, each) = (blocks as usize, each as usize);
            assert!(blocks * each >= wanted && (blocks - 1) * each < wanted, "{variant:?} {shape:?}");
        }
        assert!(launch.grid[1] <= 65_535 && launch.block <= 512, "{launch:?}");
        assert!(launch.shared <= device.shared_per_block, "{launch:?}");
    }
}

/// Blocks take tiles in turns, all of them about as many, for each bucket of rows.
fn check_small_matrix(
    product: Product,
    shape: Shape,
    device: Capabilities,
    variant: Variant,
    launch: Launch,
) {
    let Variant::SmallMatrix(small) = variant else { return };
    let passes = shape.rows.div_ceil(small.bucket.rows() as usize) as u32;
    let tiles = shape.features.div_ceil((small.weight_rows / product.parts()) as usize) as u32;
    assert!(launch.grid[0].is_multiple_of(passes) && launch.grid[1..] == [1, 1], "{small:?} {shape:?}");
    let blocks = launch.grid[0] / passes;
    let each = tiles.div_ceil(blocks);
    assert!((1..=tiles).contains(&blocks) && (blocks - 1) * each < tiles, "{small:?} {shape:?}");
    let segments = shape.columns.div_ceil(SEGMENT) as u32;
    assert!((1..=segments).contains(&small.warps) && launch.block == small.warps * 32, "{small:?} {shape:?}");
    assert!(launch.block <= 1024 && launch.shared <= device.shared_per_block, "{small:?} {launch:?}");
}

#[test]
fn no_rows_launch_no_blocks() {
    let store = product(Format::F16, Epilogue::Store);
    let shape = shaped([0, 896, 896]);
    let variant = choose(store, shape, H200, Preferences::default());
    assert!(launch_shape(store, variant, shape, H200).grid.contains(&0));
}

#[test]
fn different_kernels_have_different_names() {
    let mut kernels = HashSet::new();
    for (product, shape, _, variant) in all() {
        let unit = product.unit();
        let variant = match (variant, unit) {
            // Of no account there.
            (Variant::Gemm { tile, .. }, Unit::Fma) => Variant::Gemm { tile, stages: 0 },
            (variant, _) => variant,
        };
        // Where whole rows are copied their ends are not the kernel's business.
        let even = matches!(variant, Variant::Wgmma(_)) || shape.columns.is_multiple_of(8);
        kernels.insert((product, variant, even));
    }
    let names: HashSet<String> = kernels
        .iter()
        .map(|&(product, variant, even)| spec(product, variant, if even { 8 } else { 9 }).to_string())
        .collect();
    assert_eq!(names.len(), kernels.len());
}

#[test]
fn every_variant_is_listed_once() {
    let store = product(Format::Bf16, Epilogue::Store);
    let listed = variants(store, shaped([1100, 2048, 2048]), H200, Preferences::default());
    assert!((1..=1100).all(|rows| listed.contains(&auto(store, [rows, 2048, 2048]))));
    let few = listed.iter().filter(|variant| matches!(variant, Variant::SmallMatrix(_)));
    assert_eq!(few.count(), 3);
    assert_eq!(listed.iter().collect::<HashSet<_>>().len(), listed.len());
}

#[test]
fn the_contract_follows_from_the_formats() {
    let segments = (Compute::MatrixUnits { depth: 16 }, Order::Segments { length: 256 });
    let chains = |group| (Compute::F32Fma, Order::Lanes { lanes: 32, group, merge: Merge::Ascending });
    assert_eq!(compute(Format::Bf16, Format::Bf16), segments);
    assert_eq!(compute(Format::F16, Format::F16), segments);
    assert_eq!(compute(Format::F32, Format::Bf16), chains(4));
    assert_eq!(compute(Format::Bf16, Format::F32), chains(8));
    assert_eq!(compute(Format::F16, Format::Bf16), chains(8));
}
