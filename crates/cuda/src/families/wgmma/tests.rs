//! Which tiles are chosen, and what the kernel takes of them.

use mantissa_numerics::Format;

use super::*;

const H200: Capabilities =
    Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block: 232_448 };
const EPILOGUES: [Epilogue; 3] = [Epilogue::Store, Epilogue::SwiGlu, Epilogue::Plain];

fn product(epilogue: Epilogue) -> Product {
    Product { weights: Format::Bf16, activations: Format::Bf16, epilogue }
}

#[test]
fn arguments_are_laid_out_as_the_kernel_declares_them() {
    assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
    assert_eq!((size_of::<Args>(), align_of::<Args>()), (640, 64));
    assert_eq!(std::mem::offset_of!(Args, product), 512);
    assert_eq!((size_of::<QkvArgs>(), align_of::<QkvArgs>()), (512, 64));
    assert_eq!(std::mem::offset_of!(QkvArgs, fused), 256);
}

#[test]
fn every_tile_fits_shared_memory_and_the_limits_of_the_copy_engine() {
    for (size, product) in
        SIZES.into_iter().flat_map(|size| EPILOGUES.map(|epilogue| (size, product(epilogue))))
    {
        let tile = size.staged(H200, |tile| tile.shared(product));
        let more = Tile { stages: tile.stages + 1, ..tile };
        assert!(tile.shared(product) <= H200.shared_per_block as usize, "{tile:?} {product:?}");
        assert!(more.shared(product) > H200.shared_per_block as usize, "{tile:?} {product:?}");
        assert!(tile.stages >= 4 && tile.rows() <= 256 && tile.weight_rows <= 256);
        // Gates and ups each fill whole groups of eight permuted rows.
        assert!(tile.features(product).is_multiple_of(8));
        let (width, boxes) = tile.boxes(product);
        assert_eq!(boxes * rounds(product) * width.bytes(), tile.features(product) * out_bytes(product));
        assert!(width.bytes().is_multiple_of(16) && width.bytes() <= 256, "{tile:?} {product:?}");
    }
}

#[test]
fn boxes_of_outputs() {
    let boxes = |weight_rows, epilogue| {
        Tile { groups: 2, weight_rows, stages: 4, cluster: 1, lone: false }.boxes(product(epilogue))
    };
    assert_eq!(boxes(192, Epilogue::Store), (BoxWidth::Bytes128, 3));
    assert_eq!(boxes(192, Epilogue::SwiGlu), (BoxWidth::Bytes64, 3));
    assert_eq!(boxes(192, Epilogue::Plain), (BoxWidth::Bytes128, 3));
    assert_eq!(boxes(112, Epilogue::Store), (BoxWidth::Plain(224), 1));
    assert_eq!(boxes(112, Epilogue::SwiGlu), (BoxWidth::Plain(112), 1));
    assert_eq!(boxes(160, Epilogue::SwiGlu), (BoxWidth::Plain(160), 1));
}

#[test]
fn tiles_of_the_products_of_qwen_and_llama() {
    let choice = |epilogue, [rows, features, columns]: [usize; 3]| {
        let tile = choose(product(epilogue), Shape { rows, features, columns }, H200);
        [tile.rows(), tile.weight_rows as usize]
    };
    use Epilogue::{Plain, Store, SwiGlu};
    assert_eq!(choice(Plain, [512, 1152, 896]), [64, 128]);
    assert_eq!(choice(Store, [512, 896, 896]), [64, 64]);
    assert_eq!(choice(SwiGlu, [512, 4864, 896]), [128, 160]);
    assert_eq!(choice(SwiGlu, [2048, 4864, 896]), [128, 160]);
    assert_eq!(choice(SwiGlu, [8192, 4864, 896]), [128, 192]);
    assert_eq!(choice(Store, [2048, 896, 4864]), [128, 112]);
    assert_eq!(choice(Store, [1536, 896, 4864]), [128, 112]);
    assert_eq!(choice(Store, [3072, 896, 4864]), [128, 192]);
    assert_eq!(choice(Store, [8192, 896, 4864]), [128, 128]);
    assert_eq!(choice(Plain, [2048, 1152, 896]), [128, 160]);
    assert_eq!(choice(SwiGlu, [8192, 8192, 2048]), [128, 192]);
    assert_eq!(choice(Store, [8192, 2048, 2048]), [128, 128]);
}

#[test]
fn long_products_of_pairs_of_tiles_take_clusters() {
    let cluster = |epilogue, [rows, features, columns]: [usize; 3]| {
        choose(product(epilogue), Shape { rows, features, columns }, H200).cluster
    };
    use Epilogue::{Store, SwiGlu};
    assert_eq!(cluster(SwiGlu, [8192, 4864, 896]), 2);
    assert_eq!(cluster(SwiGlu, [8064, 4864, 896]), 1, "63 tiles of tokens");
    assert_eq!(cluster(Store, [8192, 896, 4864]), 2);
    assert_eq!(cluster(Store, [8192, 896, 896]), 1);
    assert_eq!(cluster(Store, [2176, 896, 4864]), 1);
    assert_eq!(cluster(Store, [2048, 2048, 8192]), 2);
    assert_eq!(cluster(SwiGlu, [2048, 4864, 896]), 1);
    assert_eq!(cluster(SwiGlu, [2048, 8192, 2048]), 2);
    let shape = Shape { rows: 8192, features: 3072, columns: 2048 };
    let cluster = |shape| choose_qkv(product(Epilogue::Plain), shape, 64, H200).map(|tile| tile.cluster);
    assert_eq!([cluster(shape), cluster(Shape { rows: 2048, ..shape })], [Some(2), Some(1)]);
}

#[test]
fn long_tiles_that_are_alone_share_their_input() {
    let chosen = |epilogue, [rows, features, columns]: [usize; 3]| {
        let tile = choose(product(epilogue), Shape { rows, features, columns }, H200);
        (tile.lone, tile.cluster)
    };
    use Epilogue::{Plain, Store};
    assert_eq!(chosen(Store, [2048, 896, 4864]), (true, 2));
    assert_eq!(chosen(Store, [1500, 896, 4864]), (true, 2));
    assert_eq!(chosen(Store, [1024, 2048, 8192]), (true, 2));
    assert_eq!(chosen(Plain, [2048, 896, 4864]), (false, 1));
    assert_eq!(chosen(Store, [2048, 896, 896]), (false, 1), "short");
    assert_eq!(chosen(Store, [2176, 896, 4864]), (false, 1), "136 tiles");
    assert_eq!(chosen(Store, [2048, 784, 4864]), (false, 1), "seven tiles of weights");
    assert_eq!(chosen(Store, [512, 896, 4864]), (false, 1), "halves");
}

#[test]
fn projections_take_tiles_of_whole_heads() {
    let choice = |rows, dim| {
        let shape = Shape { rows, features: 24 * dim, columns: 2048 };
        choose_qkv(product(Epilogue::Plain), shape, dim, H200).map(|tile| tile.weight_rows)
    };
    assert_eq!([512, 8192].map(|rows| choice(rows, 64)), [Some(128), Some(192)]);
    assert_eq!([512, 8192].map(|rows| choice(rows, 128)), [Some(128), Some(128)]);
    assert_eq!([96, 80].map(|dim| choice(8192, dim)), [Some(192), None]);
    let stages = SIZES.map(|size| size.staged(H200, Tile::qkv_shared).stages);
    assert_eq!(stages, [4, 5, 5, 6, 8, 13]);
    let qwen = |rows| {
        let shape = Shape { rows, features: 1152, columns: 896 };
        choose_qkv(product(Epilogue::Plain), shape, 64, H200).map(|tile| [tile.weight_rows, tile.stages])
    };
    let chosen = [1024, 1500, 1800, 2048, 8192].map(qwen);
    assert_eq!(chosen, [[192, 4], [128, 5], [144, 5], [144, 5], [192, 4]].map(Some));
    // Stages of a segment could not share the pairs of such heads.
    assert_eq!(choice(2048, 56), None);
    let other = Capabilities { arch: Arch { major: 10, minor: 0 }, ..H200 };
    let shape = Shape { rows: 512, features: 1152, columns: 896 };
    assert_eq!(choose_qkv(product(Epilogue::Plain), shape, 64, other), None);
}

#[test]
fn a_launch_has_a_block_for_each_tile_or_each_multiprocessor() {
    for epilogue in EPILOGUES {
        let product = product(epilogue);
        for rows in [0, 1, 33, 129, 4096] {
            for features in [8, 896, 128_256] {
                let shape = Shape { rows, features, columns: 896 };
                let tile = choose(product, shape, H200);
                let launch = launch_shape(product, tile, shape, H200);
                let [blocks, 1, 1] = launch.grid else { panic!("{launch:?}") };
                let tiles = rows.div_ceil(tile.rows()) * features.div_ceil(tile.features(product));
                let halved = tile.groups == 2 && tiles <= 66;
                assert_eq!(blocks as usize, if halved { 2 * tiles } else { tiles.min(132) });
                assert!(launch.block == 256 || launch.block == 384);
            }
        }
    }
}
