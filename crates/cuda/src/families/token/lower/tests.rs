use mantissa_ops::builder::{AttentionArgs, FfnArgs, QkvArgs};
use mantissa_ops::op::Mask;
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, WeightKind, WeightPart};
use mantissa_ops::{Op, ProgramBuilder, op};

use super::*;
use crate::compile::Arch;
use crate::families::token::spec;
use crate::kernel::Alias;

const H200: Capabilities =
    Capabilities { arch: Arch { major: 9, minor: 0 }, multiprocessors: 132, shared_per_block: 232_448 };

const BF16: CacheFormat = CacheFormat::plain(Format::Bf16);
const SECTIONS: usize = 64;
/// Address of descriptions.
const MAPS: u64 = 1 << 60;

/// A model's sizes.
#[derive(Clone, Copy)]
struct Model {
    layers: usize,
    heads: Heads,
    width: usize,
    inner: usize,
    vocabulary: usize,
    biases: usize,
}

const QWEN: Model = Model {
    layers: 24,
    heads: Heads { query: 14, key_value: 2, dim: 64 },
    width: 896,
    inner: 4864,
    vocabulary: 151_936,
    biases: 1,
};

const LLAMA: Model = Model {
    layers: 16,
    heads: Heads { query: 32, key_value: 8, dim: 64 },
    width: 2048,
    inner: 8192,
    vocabulary: 128_256,
    biases: 0,
};

impl Model {
    fn program(&self) -> Program {
        let &Model { layers, heads, width, inner, vocabulary, biases } = self;
        let mut b = ProgramBuilder::new("decoder", 4096);
        b.cache(CacheSpec { layers, heads });
        let set = RopeSet { inverse_frequencies: vec![1.0; heads.dim / 2], attention_factor: 1.0 };
        b.rope(RopeSpec { rotary_dim: heads.dim, sets: vec![set], long_beyond: None });
        let stream = b.embedding("embedding", vocabulary, width);
        for layer in 0..layers {
            let name = |part: &str| format!("layers.{layer}.{part}");
            let whole = |part: &str, rows: usize| vec![WeightPart::whole(name(part), rows)];
            let x = b.rms_norm(&name("attention_norm"), &name("norm1"), stream, 1e-6);
            let rows = heads.query_width() + 2 * heads.kv_width();
            let biases = (biases > 0).then(|| whole("b", rows));
            let args = QkvArgs { weights: whole("w", rows), biases, head_norms: None, heads, layer };
            let query = b.qkv(&name("qkv"), x, args);
            let args = AttentionArgs { heads, scale: 0.125, mask: Mask::Causal, layer };
            let attended = b.attention(&name("attention"), query, args);
            b.project_into(&name("output"), &name("o"), attended, stream);
            let x = b.rms_norm(&name("ffn_norm"), &name("norm2"), stream, 1e-6);
            let gate_up = [whole("gate", inner), whole("up", inner)].concat();
            b.ffn_into(&name("ffn"), x, stream, FfnArgs { gate_up, down: name("down"), intermediate: inner });
        }
        let x = b.rms_norm("last_norm", "norm", stream, 1e-6);
        b.logits("embedding", x, vocabulary);
        b.finish()
    }
}

fn refusal(program: &Program) -> String {
    let refused = Chain::of(program).and_then(|chain| Sizes::of(program, &chain, BF16, H200)?.ranges(1));
    refused.unwrap_err().to_string()
}

fn lowered(program: &Program) -> (Sizes, Lowered) {
    let chain = Chain::of(program).unwrap();
    let sizes = Sizes::of(program, &chain, BF16, H200).unwrap();
    let weight = |id: WeightId| {
        let spec = program.weight(id);
        ((id.0 as u64 + 1) << 32, if spec.kind == WeightKind::Vector { spec.rows } else { spec.columns })
    };
    let cache = |layer: usize| {
        let values = layer as u64 + 1;
        (CacheLayer { values, stride: 64, page_shift: 5, ..CacheLayer::default() }, 1000)
    };
    let places = Places { weight: &weight, cache: &cache, maps: MAPS };
    let lowered = Lowered::new(program, &chain, &sizes, SECTIONS, &places).unwrap();
    (sizes, lowered)
}

/// The tiles of a phase for a number of sections.
fn tiles(phase: &Phase, sections: usize, lowered: &Lowered, sizes: &Sizes) -> Vec<TileRange> {
    let row = table(sections) * KINDS + phase.range as usize;
    lowered.ranges[row * sizes.blocks..][..sizes.blocks].to_vec()
}

#[test]
fn every_output_of_every_phase_has_one_block() {
    for (model, phases) in [(QWEN, 24 * 5 + 1), (LLAMA, 16 * 5 + 1)] {
        let program = model.program();
        let (sizes, lowered) = lowered(&program);
        assert_eq!((lowered.phases.len(), sizes.phases()), (phases, phases));
        assert_eq!(lowered.ranges.len(), tables(SECTIONS) * KINDS * sizes.blocks);
        let products = lowered.phases.iter().filter(|phase| phase.kind != Kind::Attention as u32);
        for (phase, sections) in
            products.flat_map(|phase| [1, 2, 7, SECTIONS].map(|sections| (phase, sections)))
        {
            let mut tiles = vec![0; (phase.features as usize).div_ceil(OUTPUTS)];
            for TileRange { first, count } in self::tiles(phase, sections, &lowered, &sizes) {
                tiles[first as usize..(first + count) as usize].iter_mut().for_each(|times| *times += 1);
                let rows = if [Kind::Qkv as u32, Kind::GateUp as u32].contains(&phase.kind) { 16 } else { 8 };
                let sums = count as usize * 2 * (phase.columns as usize).div_ceil(512) * rows * 4;
                assert!(sums <= SUM_BYTES || phase.kind == Kind::Logits as u32, "{phase:?}");
                let all_write = [Kind::GateUp as u32, Kind::Logits as u32].contains(&phase.kind);
                assert!(count > 0 || !all_write, "{phase:?}");
            }
            assert!(tiles.iter().all(|&times| times == 1), "{phase:?}");
        }
    }
}

#[test]
fn more_copies_are_under_way_where_layers_are_long() {
    for (model, flight, last) in [(QWEN, 6, 10), (LLAMA, 7, 7)] {
        let spec = spec(Format::Bf16, &lowered(&model.program()).0);
        for alias in [Alias::count("FLIGHT", flight), Alias::count("LAST_FLIGHT", last)] {
            assert!(spec.aliases.contains(&alias), "{:?}", spec.aliases);
        }
    }
}

#[test]
fn blocks_read_about_as_much_of_a_layer_each() {
    // With the keys and values of the longest context of a table.
    for (model, table) in
        [QWEN, LLAMA].into_iter().flat_map(|model| (0..tables(SECTIONS)).map(move |table| (model, table)))
    {
        let sections = 1 << table;
        let program = model.program();
        let (sizes, lowered) = lowered(&program);
        let beside = Beside { units: model.heads.key_value * sections, bytes: 2 * SECTION * SPAN * DIM * 2 };
        let mut bytes: Vec<usize> =
            (0..sizes.blocks).map(|block| beside.of_block(block, sizes.blocks)).collect();
        for phase in &lowered.phases[..LAYER_PHASES] {
            let rows = if [Kind::Qkv as u32, Kind::GateUp as u32].contains(&phase.kind) { 16 } else { 8 };
            for (bytes, range) in bytes.iter_mut().zip(tiles(phase, sections, &lowered, &sizes)) {
                *bytes += range.count as usize * rows * phase.columns as usize * 2;
            }
        }
        let (most, all) = (bytes.iter().max().unwrap(), bytes.iter().sum::<usize>());
        let over = *most as f64 * sizes.blocks as f64 / all as f64;
        assert!(over < 1.12, "{over} with {sections} sections");
    }
}

#[test]
fn tables_suit_the_middle_of_their_contexts_where_the_longest_suffer_nothing() {
    for (model, sections, suited) in [(QWEN, 8, 8), (LLAMA, 64, 64), (LLAMA, 16, 12)] {
        let (sizes, lowered) = lowered(&model.program());
        let layer = sizes.layer_tiles();
        let phases = layer.map(|(_, tiles)| tiles);
        let starts = shares::divide(&phases, sizes.beside(suited), Dealing::Largest, sizes.blocks, WARPS);
        for ((kind, _), starts) in layer.iter().zip(&starts) {
            let phase = lowered.phases.iter().find(|phase| phase.kind == *kind as u32).unwrap();
            let first: Vec<u32> =
                tiles(phase, sections, &lowered, &sizes).iter().map(|range| range.first).collect();
            assert_eq!(first, starts[..sizes.blocks], "{kind:?} of {sections} sections");
        }
    }
}

#[test]
fn blocks_go_past_a_projection_beside_attention_where_most_attend() {
    let (sizes, lowered) = lowered(&QWEN.program());
    let units = sizes.beside(SECTIONS).units;
    let counts = |phase: usize| -> Vec<u32> {
        tiles(&lowered.phases[phase], SECTIONS, &lowered, &sizes).iter().map(|range| range.count).collect()
    };
    let (before, behind) = (counts(0), counts(2));
    assert!(before.iter().all(|&count| count <= 1));
    assert!((0..units).all(|block| (before[block] == 0) != (behind[block] == 0)));
    // With two units for some blocks, and with longer layers, tiles are dealt by size.
    let (long, _) = self::lowered(&LLAMA.program());
    for (sizes, sections) in [(sizes, 2 * SECTIONS), (long, SECTIONS / 4)] {
        let phases = sizes.layer_tiles().map(|(_, tiles)| tiles);
        let by_size = [sections, 3 * sections / 4].map(|sections| {
            shares::divide(&phases, sizes.beside(sections), Dealing::Largest, sizes.blocks, WARPS)
        });
        assert!(by_size.contains(&sizes.starts(sections)));
    }
}

#[test]
fn no_block_has_more_than_an_even_share_where_there_is_one_section() {
    for model in [QWEN, LLAMA] {
        let (sizes, lowered) = lowered(&model.program());
        for phase in lowered.phases[..LAYER_PHASES].iter().filter(|phase| phase.weights != 0) {
            let counts: Vec<u32> =
                tiles(phase, 1, &lowered, &sizes).iter().map(|range| range.count).collect();
            let (most, all) = (counts.iter().max().unwrap(), counts.iter().sum::<u32>());
            assert_eq!(*most, all.div_ceil(sizes.blocks as u32));
        }
    }
}

#[test]
fn codes_weigh_as_much_as_values_where_few_blocks_attend() {
    let (values, _) = lowered(&QWEN.program());
    let cache = CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) };
    let codes = Sizes { cache, ..values };
    assert_eq!(codes.beside(32), values.beside(32));
    assert!(codes.beside(64).bytes < values.beside(64).bytes);
}

#[test]
fn phases_say_what_the_program_says() {
    let program = QWEN.program();
    let (sizes, lowered) = lowered(&program);
    let id = |name: &str| program.weights.iter().position(|weight| weight.name == name).unwrap();
    let at = |name: &str| (id(name) as u64 + 1) << 32;
    let matrix = |map: u64| lowered.matrices[((map - MAPS) / 128) as usize];
    let weights = |name: &str, rows: usize, columns: usize| {
        Described::Weights(Matrix { address: at(name), rows, columns, stride: columns * 2, value_bytes: 2 })
    };
    let [qkv, attention, output, gate_up, down] = lowered.phases[5..10] else { panic!("five") };
    assert_eq!(
        (matrix(qkv.weights), qkv.norm),
        (weights("layers.1.qkv.weight", 1152, 896), at("layers.1.norm1"))
    );
    assert_eq!((qkv.bias, qkv.cache, qkv.features), (at("layers.1.qkv.bias"), 2, 576));
    assert_eq!(qkv.columns, 896);
    let cache = Matrix { address: 2, rows: 1000, columns: 64, stride: 128, value_bytes: 2 };
    assert_eq!((attention.kind, attention.weights, attention.cache), (Kind::Attention as u32, 0, 2));
    assert_eq!(
        matrix(attention.cache_map),
        Described::Cache(cache, CopyBox { rows: 32, width: BoxWidth::Bytes128 })
    );
    assert_eq!((matrix(output.weights), output.norm), (weights("layers.1.o", 896, 896), 0));
    assert_eq!(matrix(gate_up.weights), weights("layers.1.ffn.gate_up", 9728, 896));
    assert_eq!((gate_up.norm, gate_up.features, gate_up.columns), (at("layers.1.norm2"), 4864, 896));
    assert_eq!(matrix(down.weights), weights("layers.1.down", 896, 4864));
    let last = lowered.phases[120];
    assert_eq!((last.kind, matrix(last.weights)), (Kind::Logits as u32, weights("embedding", 151_936, 896)));
    assert_eq!((last.norm, lowered.matrices.len()), (at("norm"), sizes.matrices()));
    assert_eq!(lowered.phases.iter().filter(|phase| phase.bias != 0).count(), 24);
    assert_eq!(sizes.exchange_words(8), [1792, 1792, 1152, 448, 2432, 14 * 8 * 66]);
    assert!(sizes.shared.slots >= 20 && sizes.shared.total <= 232_448, "{:?}", sizes.shared);
    let (_, llama) = self::lowered(&LLAMA.program());
    assert!(llama.phases.iter().all(|phase| phase.bias == 0));
}

#[test]
fn what_is_not_for_the_kernel_is_named() {
    let change = |model: Model, change: &dyn Fn(&mut Op)| {
        let mut program = model.program();
        program.steps.iter_mut().for_each(|step| change(&mut step.op));
        refusal(&program)
    };
    let wide = Model { heads: Heads { dim: 128, ..QWEN.heads }, ..QWEN };
    assert_eq!(refusal(&wide.program()), "step layers.0.qkv: heads have other than 64 values");
    let shared = Model { heads: Heads { query: 18, ..QWEN.heads }, ..QWEN };
    let many = "step layers.0.qkv: more than eight query heads share a key head";
    assert_eq!(refusal(&shared.program()), many);
    let norms = change(QWEN, &|op| {
        if let Op::Qkv(op) = op {
            op.head_norms = Some(op::HeadNorms { query: op.weight, key: op.weight, eps: 1e-6 });
        }
    });
    assert_eq!(norms, "step layers.0.qkv: heads have norms");
    let window = change(QWEN, &|op| match op {
        Op::Attention(op) if op.layer == 3 => op.mask = Mask::SlidingWindow { window: 64 },
        _ => {}
    });
    assert_eq!(window, "step layers.3.attention: it sees a window");
    let scaled = change(QWEN, &|op| {
        if let Op::Matmul(op) = op {
            op.alpha = 0.5;
        }
    });
    assert_eq!(scaled, "step layers.0.output: it has a bias or a factor");
    let eps = change(QWEN, &|op| match op {
        Op::RmsNorm(op) if op.weight.0 > 10 => op.eps = 1e-5,
        _ => {}
    });
    assert!(eps.contains("other sizes than the first") || eps.contains("different numbers"), "{eps}");
    let mut short = QWEN.program();
    short.steps.remove(2);
    assert_eq!(
        refusal(&short),
        "it has no projection of queries, keys and values where step layers.0.attention stands"
    );
    short.steps.truncate(1);
    assert_eq!(refusal(&short), "the program has no norm");
    let narrow = Model { inner: 1024, ..QWEN };
    assert!(
        refusal(&narrow.program()).starts_with("the feed-forward layer has size 1024, but must have 1056")
    );
    let odd = Model { width: 904, ..QWEN };
    assert!(refusal(&odd.program()).contains("904, but must have a multiple of 64"));
}
