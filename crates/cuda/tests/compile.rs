//! Every kernel of every contract compiles, and the hot ones keep their values in registers. Needs NVRTC but no GPU.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mantissa_cuda::compile::{Arch, Compiler, Nvrtc};
use mantissa_cuda::families::norm::Addition;
use mantissa_cuda::families::products::{Capabilities, Epilogue, Preferences, Product, Shape};
use mantissa_cuda::families::{
    attention, batch, ceilings, elementwise, embedding, library, norm, products, qkv, rope, sampling, sdpa,
    softmax, token,
};
use mantissa_cuda::kernel::{Alias, KernelSpec, SourceFile};
use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, ContractQuery, Family};
use mantissa_ops::op::Heads;

/// Heads of models: Qwen2.5-0.5B, Llama-3.2-1B, Llama-3-8B, and one key head for each query head.
const HEADS: [Heads; 4] = [
    Heads { query: 14, key_value: 2, dim: 64 },
    Heads { query: 32, key_value: 8, dim: 64 },
    Heads { query: 32, key_value: 8, dim: 128 },
    Heads { query: 16, key_value: 16, dim: 64 },
];

/// Sizes at which every variant of products is chosen: features and columns; the last is of no multiple of a vector.
const WEIGHTS: [(usize, usize); 5] =
    [(896, 896), (896, 4_864), (2_048, 8_192), (16_384, 4_864), (1_000, 1_001)];

const MOST_ROWS: usize = 4_096;

/// Widths at which every variant of softmax is chosen.
const SOFTMAX_WIDTHS: [usize; 9] = [8, 256, 512, 1_024, 2_048, 4_096, 8_192, 9_000, 128];

const HOPPER: Arch = Arch { major: 9, minor: 0 };

/// What differs between devices as far as choices depend on it: one like the RTX 40 series, an H200, and a B200.
const DEVICES: [Capabilities; 3] = [
    Capabilities { arch: Arch { major: 8, minor: 9 }, multiprocessors: 76, shared_per_block: 101_376 },
    Capabilities { arch: HOPPER, multiprocessors: 132, shared_per_block: 232_448 },
    Capabilities { arch: Arch { major: 10, minor: 0 }, multiprocessors: 148, shared_per_block: 232_448 },
];

/// How much is compiled for an architecture.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All kernels.
    All,
    /// Those whose formats of weights, activations and cache agree, for one shape of heads.
    Uniform,
}

/// The library to test with, or why there is none.
fn nvrtc() -> Result<Nvrtc, String> {
    let path = std::env::var_os("MANTISSA_NVRTC").map(PathBuf::from);
    Nvrtc::load(path.as_deref()).map_err(|error| error.to_string())
}

fn product_kernels(weights: Format, activations: Format, epilogue: Epilogue) -> Vec<KernelSpec> {
    let product = Product { weights, activations, epilogue };
    let mut all = Vec::new();
    for (features, columns) in WEIGHTS {
        for device in DEVICES {
            let shape = Shape { rows: MOST_ROWS, features, columns };
            let variants = products::variants(product, shape, device, Preferences::default());
            all.extend(variants.into_iter().map(|variant| products::spec(product, variant, columns)));
        }
    }
    if library::multiplies(weights, activations) {
        all.extend([library::finish_spec(product), library::gather_spec()]);
    }
    all
}

/// Every variant that widths choose, and the largest of the smaller groups that are only used where they are preferred.
fn softmax_kernels(activations: Format) -> Vec<KernelSpec> {
    let kernel = |width, group| {
        let preferences = softmax::Preferences { group, ..softmax::Preferences::default() };
        softmax::spec(activations, softmax::choose(activations, width, preferences))
    };
    let preferred =
        [(2_048, softmax::GroupPreference::Threads32), (4_096, softmax::GroupPreference::Threads64)];
    let chosen = SOFTMAX_WIDTHS.map(|width| (width, softmax::GroupPreference::Auto));
    chosen.into_iter().chain(preferred).map(|(width, group)| kernel(width, group)).collect()
}

/// Projections that finish their outputs themselves, where they may: heads rotate as a whole.
fn fused_qkv_kernels(
    weights: Format,
    activations: Format,
    cache: CacheFormat,
    heads: &[Heads],
) -> Vec<KernelSpec> {
    let mut all = Vec::new();
    // All of a projection, and its keys and values alone.
    let heads = heads.iter().flat_map(|&heads| [heads, Heads { query: 0, ..heads }]);
    for heads in heads.filter(|_| cache.scales.is_none()) {
        for (device, columns) in
            DEVICES.into_iter().flat_map(|device| [896, 2_048].map(|columns| (device, columns)))
        {
            let fused = qkv::Fused { weights, activations, cache, heads, columns };
            let chosen = |rows| fused.choose(rows, device, Preferences::default());
            let variants = (1..=MOST_ROWS).filter_map(chosen).fold(Vec::new(), |mut known, variant| {
                if !known.contains(&variant) {
                    known.push(variant);
                }
                known
            });
            all.extend(variants.into_iter().map(|variant| fused.spec(variant)));
        }
    }
    all
}

fn attention_kernels(activations: Format, cache: CacheFormat, heads: &[Heads]) -> Vec<KernelSpec> {
    let mut all = Vec::new();
    for (&heads, device) in heads.iter().flat_map(|heads| DEVICES.map(|device| (heads, device))) {
        let route = attention::route(activations, cache, heads, device).expect("heads of models");
        let specs = attention::specs(activations, cache, heads, route);
        all.extend(specs.rows.into_iter().flat_map(|(decode, merge)| [decode, merge]));
        all.extend(specs.tiles);
    }
    all
}

/// The kernels for a token of Qwen2.5-0.5B, Llama-3.2-1B and a small model.
fn token_kernels(activations: Format, cache: CacheFormat) -> Vec<KernelSpec> {
    let [_, hopper, _] = DEVICES;
    let models = [(HEADS[0], 24, 896, 4_864), (HEADS[1], 16, 2_048, 8_192), (HEADS[0], 2, 896, 1_216)];
    let spec = |(heads, layers, width, inner)| {
        let shared =
            token::Shared::divide(inner, 5 * layers + 1, heads, cache, hopper).expect("there is room");
        let blocks = hopper.multiprocessors as usize;
        let sizes = token::Sizes { layers, width, inner, vocabulary: 128_256, heads, cache, blocks, shared };
        token::spec(activations, &sizes)
    };
    let served = token::serves_formats(activations, activations, cache);
    models.into_iter().filter(|_| served).map(spec).collect()
}

/// The kernels that a contract may use.
fn kernels_of(query: &ContractQuery, heads: &[Heads]) -> Vec<KernelSpec> {
    let activations = query.activations;
    let weights = query.weights.unwrap_or(activations);
    let cache = query.cache.unwrap_or(CacheFormat::plain(activations));
    let product = |epilogue| product_kernels(weights, activations, epilogue);
    match query.family {
        Family::Embedding => vec![embedding::spec(weights, activations)],
        Family::RmsNorm => {
            let rows_and_widths = [(1, 896), (MOST_ROWS, 896), (MOST_ROWS, 4_096), (MOST_ROWS, 2_048)];
            let alone =
                rows_and_widths.map(|(rows, width)| norm::choose(activations, width, rows, Addition::None));
            let variants = alone.into_iter().chain([norm::Variant::Block(Addition::Residual)]);
            let embedded = [896, 2_048, 4_096].map(|width| norm::embedded_spec(activations, width));
            let embedded = embedded.into_iter().flatten();
            variants.map(|variant| norm::spec(activations, variant)).chain(embedded).collect()
        }
        Family::Rope => vec![rope::spec(activations)],
        Family::Softmax => softmax_kernels(activations),
        Family::Sdpa => vec![sdpa::spec(activations)],
        Family::Residual => vec![elementwise::spec(activations)],
        Family::Matmul => product(Epilogue::Store),
        Family::SwiGlu => product(Epilogue::SwiGlu),
        Family::Logits => {
            [product(Epilogue::Plain), sampling::Kernel::ALL.map(sampling::Kernel::spec).to_vec()].concat()
        }
        Family::Ffn => [product(Epilogue::SwiGlu), product(Epilogue::Store)].concat(),
        Family::Qkv => {
            let finish = |heads: &Heads| qkv::spec(activations, cache, heads.dim);
            let apart = [heads.iter().map(finish).collect(), product(Epilogue::Plain)].concat();
            [apart, fused_qkv_kernels(weights, activations, cache, heads)].concat()
        }
        Family::Attention => {
            [attention_kernels(activations, cache, heads), token_kernels(activations, cache)].concat()
        }
    }
}

fn kernels(extent: Extent) -> Vec<KernelSpec> {
    let mut all: Vec<KernelSpec> = vec![
        ceilings::fill_stream(),
        ceilings::read_stream(),
        batch::spec(),
        ceilings::fma_steps(),
        ceilings::matrix_steps(Format::F16),
        ceilings::matrix_steps(Format::Bf16),
    ];
    for contract in mantissa_cuda::contracts(Preferences::default()) {
        let query = &contract.query;
        let agree = query.weights.is_none_or(|weights| weights == query.activations)
            && query.cache.is_none_or(|cache| cache.format == query.activations || cache.scales.is_some());
        let heads = match extent {
            Extent::All => &HEADS[..],
            Extent::Uniform if agree => &HEADS[..1],
            Extent::Uniform => continue,
        };
        for spec in kernels_of(query, heads) {
            if !all.contains(&spec) {
                all.push(spec);
            }
        }
    }
    all
}

/// Whether a kernel's time is a model's time. Columns that are no multiple of eight occur in no model.
fn is_hot(spec: &KernelSpec) -> bool {
    let ragged = Alias::count("RAGGED", 1);
    let family = matches!(
        spec.file,
        SourceFile::AttentionDecode
            | SourceFile::AttentionDecodeMma
            | SourceFile::AttentionPrefill
            | SourceFile::AttentionPrefillMma
            | SourceFile::AttentionPrefillWgmma
            | SourceFile::ProductFmaGemm
            | SourceFile::ProductFmaSmall
            | SourceFile::ProductMmaGemm
            | SourceFile::ProductMmaQkv
            | SourceFile::ProductMmaSmall
            | SourceFile::ProductWgmma
            | SourceFile::ProductWgmmaQkv
            | SourceFile::Norm
            | SourceFile::NormEmbedding
            | SourceFile::NormRows
            | SourceFile::Token
            | SourceFile::SoftmaxVec
            | SourceFile::Sampling
    );
    family && !spec.aliases.contains(&ragged)
}

/// Bytes that ptxas stored to memory for want of registers, by its log.
fn spilled(log: &str) -> u64 {
    let before =
        |text: &str| -> Option<u64> { text.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok() };
    log.match_indices("bytes spill stores").filter_map(|(at, _)| before(&log[..at])).sum::<u64>()
}

/// Whether a kernel is one of those that run on an architecture: wgmma is Hopper's alone, and what was tuned for it.
fn runs_on(spec: &KernelSpec, arch: Arch) -> bool {
    use SourceFile::{AttentionPrefillWgmma, ProductWgmma, ProductWgmmaQkv, Token};
    !matches!(spec.file, AttentionPrefillWgmma | ProductWgmma | ProductWgmmaQkv | Token) || arch == HOPPER
}

/// Compiles on two threads and returns what went wrong, by kernel.
fn compile_all(nvrtc: &Nvrtc, specs: &[KernelSpec], arch: Arch) -> BTreeMap<String, String> {
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(spec) = specs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !runs_on(spec, arch) {
                continue;
            }
            let problem = match nvrtc.compile(spec, &spec.source(), arch) {
                Err(error) => error.to_string(),
                Ok(compiled) => {
                    assert!(!compiled.cubin.is_empty());
                    assert!(compiled.log.contains("bytes spill stores"), "no figures: {}", compiled.log);
                    match spilled(&compiled.log) {
                        bytes if bytes > 0 && is_hot(spec) => format!("{bytes} bytes spilled"),
                        _ => continue,
                    }
                }
            };
            problems.lock().expect("no panic").insert(format!("{spec} for {arch}"), problem);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    problems.into_inner().expect("no panic")
}

fn check(extent: Extent, archs: &[Arch]) {
    let Some(nvrtc) = mantissa_ops::conformance::or_skip(nvrtc()) else { return };
    let specs = kernels(extent);
    let problems: Vec<String> = archs
        .iter()
        .flat_map(|&arch| compile_all(&nvrtc, &specs, arch))
        .map(|(kernel, problem)| format!("{kernel}: {problem}"))
        .collect();
    println!("{} kernels with {} for {} architectures", specs.len(), nvrtc.version(), archs.len());
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_kernel_compiles_for_hopper() {
    check(Extent::All, &[HOPPER]);
}

#[test]
fn kernels_of_uniform_formats_compile_for_every_architecture() {
    let others = Arch::CHECKED.into_iter().filter(|&arch| arch != HOPPER).collect::<Vec<_>>();
    check(Extent::Uniform, &others);
}

#[test]
fn spills_are_read_from_the_log() {
    let log = "ptxas info    : Function properties for x\n    0 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n";
    assert_eq!(spilled(log), 12);
    assert_eq!(spilled("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"), 0);
}

#[test]
fn every_contract_names_its_kernels() {
    for contract in mantissa_cuda::contracts(Preferences::default()) {
        let specs = kernels_of(&contract.query, &HEADS);
        assert!(!specs.is_empty(), "{contract}");
    }
    assert!(kernels(Extent::All).len() > kernels(Extent::Uniform).len());
}
