use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mantissa_numerics::contract::Order;
use mantissa_numerics::policy::{PrecisionPolicy, Preset};
use mantissa_ops::backend::{Backend, BackendInfo, LoadOptions, PrepareError, Progress, Session};
use mantissa_ops::builder::{AttentionArgs, FfnArgs, QkvArgs};
use mantissa_ops::op::Mask;
use mantissa_ops::program::{CacheSpec, RopeSet, RopeSpec, WeightPart};
use mantissa_ops::{ProgramBuilder, Step, TensorSource};

use super::*;
use crate::compile::Arch;
use crate::contracts::contracts;
use crate::families::products::{MatmulBackend, Preferences, VariantPreference};
use crate::families::token::DecodeVariant;
use crate::kernel::SourceFile;

const QWEN: Heads = Heads { query: 14, key_value: 2, dim: 64 };
const MOST_ROWS: usize = 8192;

fn info(name: &str, arch: Arch, multiprocessors: u32, shared_per_block: u32) -> DeviceInfo {
    DeviceInfo {
        ordinal: 0,
        name: name.to_owned(),
        arch,
        multiprocessors,
        shared_per_block,
        l2_bytes: 50 << 20,
        memory: 80 << 30,
        driver: (13, 0),
    }
}

/// An A100, an H200, an RTX 4090 and an RTX 5090, by what they say of themselves.
fn devices() -> [DeviceInfo; 4] {
    [
        info("A100", Arch { major: 8, minor: 0 }, 108, 166_912),
        info("H200", Arch { major: 9, minor: 0 }, 132, 232_448),
        info("RTX 4090", Arch { major: 8, minor: 9 }, 128, 101_376),
        info("RTX 5090", Arch { major: 12, minor: 0 }, 170, 101_376),
    ]
}

fn chooser(device: &DeviceInfo, products: Preferences) -> Chooser {
    Chooser::new(device, &CudaOptions { products, ..CudaOptions::default() })
}

fn all_preferences() -> Vec<Preferences> {
    let mut all = Vec::new();
    for &backend in MatmulBackend::ALL {
        for &variant in VariantPreference::ALL {
            for small_n_max in [None, Some(0), Some(8), Some(32)] {
                all.push(Preferences { backend, variant, small_n_max });
            }
        }
    }
    all
}

/// One layer like those of Qwen2.5-0.5B.
fn program() -> Program {
    let (hidden, intermediate, vocabulary) = (896, 4864, 151_936);
    let mut b = ProgramBuilder::new("qwen2", 32_768);
    b.cache(CacheSpec { layers: 1, heads: QWEN });
    let set = RopeSet { inverse_frequencies: vec![1.0; 32], attention_factor: 1.0 };
    b.rope(RopeSpec { rotary_dim: 64, sets: vec![set], long_beyond: None });
    let residual = b.embedding("embedding", vocabulary, hidden);
    let x = b.rms_norm("attention_norm", "norm1", residual, 1e-6);
    let parts = |kind: &str| {
        [("q", QWEN.query_width()), ("k", QWEN.kv_width()), ("v", QWEN.kv_width())]
            .map(|(name, rows)| WeightPart::whole(format!("{name}.{kind}"), rows))
            .to_vec()
    };
    let (weights, biases) = (parts("weight"), Some(parts("bias")));
    let query = b.qkv("qkv", x, QkvArgs { weights, biases, head_norms: None, heads: QWEN, layer: 0 });
    let args = AttentionArgs { heads: QWEN, scale: 0.125, mask: Mask::Causal, layer: 0 };
    let attended = b.attention("attention", query, args);
    b.project_into("attention_output", "o", attended, residual);
    let x = b.rms_norm("ffn_norm", "norm2", residual, 1e-6);
    let gate_up = vec![WeightPart::whole("gate", intermediate), WeightPart::whole("up", intermediate)];
    b.ffn_into("ffn", x, residual, FfnArgs { gate_up, down: "down".to_owned(), intermediate });
    let x = b.rms_norm("final_norm", "norm3", residual, 1e-6);
    b.logits("embedding", x, vocabulary);
    b.finish()
}

/// A backend that plans for a device which is not there.
#[derive(Debug)]
struct Planner {
    chooser: Chooser,
    contracts: Vec<OpContract>,
}

impl Planner {
    fn new(device: &DeviceInfo, products: Preferences) -> Planner {
        Planner { chooser: chooser(device, products), contracts: contracts(products) }
    }

    fn plan(&self, policy: PrecisionPolicy) -> Arc<Plan> {
        Plan::resolve(program(), policy, self).unwrap()
    }
}

impl Backend for Planner {
    fn info(&self) -> BackendInfo {
        let text = || "cuda:0".to_owned();
        BackendInfo {
            name: text(),
            device: text(),
            features: text(),
            driver: None,
            threads: None,
            prompt_rows: 512,
        }
    }

    fn contracts(&self) -> &[OpContract] {
        &self.contracts
    }

    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        choose(program, op, contract, class, &self.chooser)
    }

    fn prepare(
        &self,
        _: Arc<Plan>,
        _: &dyn TensorSource,
        _: &LoadOptions,
        _: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        Err(PrepareError::Part { what: "device", message: "none".to_owned() })
    }
}

fn required(plan: &Plan, chooser: &Chooser) -> Vec<KernelSpec> {
    let limits = Limits { rows: 512, outputs: 512, sequences: 8, pages: 64, page_size: 16, context: 1024 };
    let (activations, cache) = (plan.policy.activations(), plan.cache_format());
    let route = attention::route(activations, cache, QWEN, chooser.device()).unwrap();
    required_kernels(plan, &limits, &[AttentionKind { heads: QWEN, route }], chooser)
}

#[test]
fn what_serves_any_number_of_rows_was_made_ready() {
    let formats =
        Formats::of_plan(&Planner::new(&devices()[1], Preferences::default()).plan(Preset::Bf16.policy()));
    let program = program();
    let products: Vec<WeightProduct> =
        program.steps.iter().flat_map(|step| formats.products(&program, &step.op)).collect();
    assert_eq!(products.len(), 5);
    for device in devices() {
        for preferences in all_preferences() {
            let chooser = chooser(&device, preferences);
            for product in &products {
                let ready: HashSet<KernelSpec> = product.kernels(MOST_ROWS, &chooser).into_iter().collect();
                for rows in (1..=520).chain((521..=MOST_ROWS).step_by(37)) {
                    match product.server(rows, &chooser) {
                        Server::Own(spec, _) | Server::Wgmma(_, spec, _) => {
                            assert!(ready.contains(&spec), "{spec} for {rows} rows")
                        }
                        Server::Library(library::Finish::Direct) => {}
                        Server::Library(library::Finish::Sums) => {
                            assert!(ready.contains(&library::finish_spec(product.kind)));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_step_of_a_plan_names_kernels_that_are_loaded_and_why() {
    for device in devices() {
        for preferences in all_preferences() {
            let planner = Planner::new(&device, preferences);
            for policy in [Preset::Bf16, Preset::F32, Preset::MemoryEfficient] {
                let plan = planner.plan(policy.policy());
                let ready: HashSet<String> =
                    required(&plan, &planner.chooser).iter().map(KernelSpec::to_string).collect();
                for step in &plan.steps {
                    for class in ShapeClass::ALL {
                        let KernelChoice { kernel, why } = step.kernel(class);
                        assert!(!why.is_empty() && !why.contains('\n'), "{kernel}");
                        let mut names = kernel.split(" + ").filter(|name| *name != "cublaslt");
                        assert!(names.all(|name| ready.contains(name)), "{kernel}");
                    }
                }
            }
        }
    }
}

fn step<'a>(plan: &'a Plan, name: &str) -> &'a Step {
    plan.steps.iter().find(|step| step.name == name).unwrap()
}

#[test]
fn a_plan_shows_whose_products_were_chosen_and_why() {
    let show = |preferences, name: &str, class| {
        let plan = Planner::new(&devices()[1], preferences).plan(Preset::Bf16.policy());
        let KernelChoice { kernel, why } = step(&plan, name).kernel(class).clone();
        (kernel, why)
    };
    let library = Preferences { backend: MatmulBackend::CublasLt, ..Preferences::default() };
    let always = Preferences { variant: VariantPreference::Gemm, ..library };
    let asked = "asked for by the preferred backend: 512 rows, more than 32".to_owned();
    let (prefill, decode) = (ShapeClass::Prefill, ShapeClass::Decode);
    assert_eq!(show(library, "attention_output", prefill), ("cublaslt".to_owned(), asked.clone()));
    let (ffn, why) = show(library, "ffn", prefill);
    assert!(ffn.starts_with("cublaslt + library_finish.library_finish[W=bf16,A=bf16,EPILOGUE=1"), "{ffn}");
    assert!(ffn.ends_with("] + cublaslt"), "{ffn}");
    assert_eq!(why, asked);
    assert!(show(library, "attention_output", decode).0.starts_with("product_mma_small."));
    assert_eq!(show(always, "attention_output", decode).0, "cublaslt");
    assert_eq!(show(always, "logits", decode).0, "library_gather.library_gather[] + cublaslt");
    // Of a prompt only the last row's logits are wanted.
    assert!(show(library, "logits", prefill).1.starts_with("1 rows: weights stream once"));
    assert!(show(Preferences::default(), "logits", decode).1.starts_with("1 rows: weights stream once"));
}

#[test]
fn the_projection_is_finished_by_its_own_kernel_where_no_number_needs_its_whole_head() {
    let chooser = chooser(&devices()[1], Preferences::default());
    let plain =
        Formats { weights: Format::Bf16, activations: Format::Bf16, cache: CacheFormat::plain(Format::Bf16) };
    let program = program();
    let find = |program: &Program| {
        let ops = program.steps.iter().map(|step| step.op.clone());
        ops.into_iter().find_map(|op| if let Op::Qkv(op) = op { Some(op) } else { None }).unwrap()
    };
    let qwen2 = find(&program);
    let fused = |formats: Formats, program: &Program, op: &op::Qkv, rows| {
        formats.fused_qkv(program, op, rows, &chooser).map(|(fused, variant)| fused.spec(variant))
    };
    let FusedKernels::Always(ready) = plain.fused_qkv_kernels(&program, &qwen2, MOST_ROWS, &chooser) else {
        panic!("every number of rows");
    };
    for rows in (1..=40).chain((41..=MOST_ROWS).step_by(37)) {
        let spec = fused(plain, &program, &qwen2, rows).unwrap();
        let file = if rows <= 32 { SourceFile::ProductMmaQkv } else { SourceFile::ProductWgmmaQkv };
        assert!(spec.file == file && ready.contains(&spec), "{spec}");
    }
    // Norms of heads, scales of the cache, part of a head that rotates, and the FMA units.
    let norms = op::HeadNorms { query: qwen2.weight, key: qwen2.weight, eps: 1e-6 };
    let qwen3 = op::Qkv { head_norms: Some(norms), ..qwen2.clone() };
    let scaled = CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) };
    let mut partial = program.clone();
    partial.rope.as_mut().unwrap().rotary_dim = 32;
    let f32s = Formats { weights: Format::F32, activations: Format::F32, ..plain };
    assert_eq!(fused(plain, &program, &qwen3, 1), None);
    assert_eq!(fused(Formats { cache: scaled, ..plain }, &program, &qwen2, 1), None);
    assert_eq!(fused(plain, &partial, &qwen2, 1), None);
    assert_eq!(fused(f32s, &program, &qwen2, 1), None);
    // Heads that no tile is a multiple of.
    let wide = op::Qkv { heads: Heads { dim: 80, ..qwen2.heads }, ..qwen2.clone() };
    let mut other = program.clone();
    other.rope.as_mut().unwrap().rotary_dim = 80;
    assert!(matches!(
        plain.fused_qkv_kernels(&other, &wide, MOST_ROWS, &chooser),
        FusedKernels::Sometimes(kernels) if !kernels.is_empty()
    ));
    for (program, op) in [(&program, &qwen3), (&partial, &qwen2)] {
        let none = FusedKernels::Sometimes(vec![]);
        assert_eq!(plain.fused_qkv_kernels(program, op, MOST_ROWS, &chooser), none);
    }
}

#[test]
fn a_library_shows_in_the_contract_and_in_the_kernels_that_are_loaded() {
    let library = Preferences { backend: MatmulBackend::CublasLt, ..Preferences::default() };
    let planner = Planner::new(&devices()[1], library);
    let plan = planner.plan(Preset::Bf16.policy());
    let of = |order: fn(&OpContract) -> bool| -> Vec<&str> {
        plan.steps.iter().filter(|step| order(&step.contract)).map(|step| step.name.as_str()).collect()
    };
    assert_eq!(of(|contract| contract.order == Order::Library), ["qkv", "attention_output", "ffn", "logits"]);
    let refusal = plan.check_batch_invariance().unwrap_err().to_string();
    assert!(
        refusal.contains("\n  attention_output: matmul bf16xbf16>bf16 mma-k16/f32 library\n"),
        "{refusal}"
    );
    assert!(refusal.contains("matmul backend own"), "{refusal}");
    let kernels = required(&plan, &planner.chooser);
    assert!(kernels.contains(&library::gather_spec()));
    let [a100, h200, ..] = devices();
    for (device, gathers) in [(a100, false), (h200, true)] {
        let own = Planner::new(&device, Preferences::default());
        let plan = own.plan(Preset::Bf16.policy());
        assert_eq!(plan.check_batch_invariance(), Ok(()));
        let kernels = required(&plan, &own.chooser);
        // The copy engine of Hopper brings neighbouring rows.
        assert_eq!(kernels.contains(&library::gather_spec()), gathers, "{}", device.name);
    }
}

#[test]
fn a_token_has_one_kernel_where_there_is_one() {
    let launch = |device: &DeviceInfo, options: CudaOptions, policy: PrecisionPolicy| {
        let chooser = Chooser::new(device, &options);
        let [decode, batch, prefill] =
            ShapeClass::ALL.map(|class| chooser.launches(&program(), Formats::of(&policy), class));
        assert_eq!((batch.kernel.as_str(), prefill.kernel.as_str()), ("one graph", "kernel by kernel"));
        (decode.kernel, decode.why)
    };
    let [a100, h200, ..] = devices();
    for preset in [Preset::Bf16, Preset::F16] {
        let (kernel, _) = launch(&h200, CudaOptions::default(), preset.policy());
        assert!(kernel.starts_with("token.token[A="), "{kernel}");
    }
    let graph = |device: &DeviceInfo, options: CudaOptions, policy: PrecisionPolicy| {
        let (kernel, why) = launch(device, options, policy);
        assert_eq!(kernel, "one graph");
        why
    };
    let bf16 = Preset::Bf16.policy();
    let preferred = CudaOptions { decode: DecodeVariant::Graph, ..CudaOptions::default() };
    assert_eq!(graph(&h200, preferred, bf16), "other kernels are preferred: decode variant graph");
    let products = Preferences { variant: VariantPreference::Gemm, ..Preferences::default() };
    let gemm = CudaOptions { products, ..CudaOptions::default() };
    assert_eq!(graph(&h200, gemm, bf16), "other kernels are preferred: matmul variant gemm");
    assert_eq!(
        graph(&a100, CudaOptions::default(), bf16),
        "it was made for devices of compute capability 9.0"
    );
    let why = graph(&h200, CudaOptions::default(), Preset::F32.policy());
    assert_eq!(why, "weights in f32, activations in f32 and a cache in f32");
}

#[test]
fn runs_without_a_library_are_recorded() {
    let record = |preferences, tokens| {
        let planner = Planner::new(&devices()[1], preferences);
        let plan = planner.plan(Preset::Bf16.policy());
        records(&plan, RunRows { tokens, outputs: 1 }, &planner.chooser)
    };
    let library = Preferences { backend: MatmulBackend::CublasLt, ..Preferences::default() };
    let always = Preferences { variant: VariantPreference::Gemm, ..library };
    assert_eq!([1, 32, 33].map(|tokens| record(Preferences::default(), tokens)), [true; 3]);
    assert_eq!([1, 32, 33].map(|tokens| record(library, tokens)), [true, true, false]);
    assert_eq!([1, 32, 33].map(|tokens| record(always, tokens)), [false; 3]);
}

#[test]
fn the_last_projection_s_keys_and_values_have_kernels_for_any_number_of_rows() {
    let planner = Planner::new(&devices()[1], Preferences::default());
    let plan = planner.plan(Preset::Bf16.policy());
    let op = keys_and_values_of(last_projection(&plan.program).unwrap());
    assert_eq!((op.heads.query, op.heads.key_value), (0, QWEN.key_value));
    let ready = required(&plan, &planner.chooser);
    for rows in 1..=512 {
        let fused = Formats::of_plan(&plan).fused_qkv(&plan.program, &op, rows, &planner.chooser);
        let (fused, variant) = fused.unwrap();
        assert!(ready.contains(&fused.spec(variant)), "{rows} rows");
        assert_eq!(fused.product(variant, rows).1.columns, 896);
    }
}

#[test]
fn an_embedding_and_its_norm_are_one_kernel() {
    let planner = Planner::new(&devices()[1], Preferences::default());
    let show = |policy: PrecisionPolicy| {
        let plan = planner.plan(policy);
        ["embedding", "attention_norm"].map(|name| step(&plan, name).kernel(ShapeClass::Decode).clone())
    };
    let [embedding, norm] = show(Preset::Bf16.policy());
    assert_eq!(embedding.kernel, "norm_embedding.rms_norm[A=bf16,PACKS=4]");
    assert_eq!((norm.kernel, &norm.why[..]), (embedding.kernel, "with the embedding before it"));
    let of = |program: &Program, weights: Format| {
        let formats = Formats { weights, activations: Format::Bf16, cache: CacheFormat::plain(Format::Bf16) };
        NormedEmbedding::of(program, formats).is_some()
    };
    let program = program();
    assert!(of(&program, Format::Bf16) && !of(&program, Format::F32));
    // The norm of wanted rows alone.
    let mut b = ProgramBuilder::new("no layers", 64);
    let residual = b.embedding("embedding", 1000, 896);
    let x = b.rms_norm("final_norm", "norm", residual, 1e-6);
    b.logits("embedding", x, 1000);
    assert!(!of(&b.finish(), Format::Bf16));
    let mut wide = program.clone();
    wide.values.iter_mut().for_each(|value| value.width = 8192);
    assert!(!of(&wide, Format::Bf16));
}

#[test]
fn different_kernels_have_different_names_and_sources() {
    let (mut names, mut sources) = (HashMap::new(), HashMap::new());
    for device in devices() {
        for preferences in all_preferences() {
            let planner = Planner::new(&device, preferences);
            for policy in [Preset::F32, Preset::F16, Preset::Bf16, Preset::MemoryEfficient] {
                for spec in required(&planner.plan(policy.policy()), &planner.chooser) {
                    let same = names.entry(spec.to_string()).or_insert_with(|| spec.clone());
                    assert_eq!(*same, spec);
                    // Entries share a source; the cache's key is a hash of the source, and the entry is looked up in it.
                    let same = sources.entry((spec.source(), spec.entry)).or_insert_with(|| spec.clone());
                    assert_eq!(*same, spec);
                }
            }
        }
    }
    assert!(names.len() > 50, "{}", names.len());
}
