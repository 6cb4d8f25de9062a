//! Which kernels a plan needs, and which one serves a step for a class of shapes. Selects; computes nothing.

mod normed_embedding;
mod product;
mod projection;
#[cfg(test)]
mod tests;
mod token;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{CacheFormat, OpContract};
use mantissa_numerics::policy::PrecisionPolicy;
use mantissa_ops::backend::KernelChoice;
use mantissa_ops::batch::Limits;
use mantissa_ops::op::Heads;
use mantissa_ops::program::{RunRows, cache_format};
use mantissa_ops::{Op, Plan, Program, ShapeClass, op};

use crate::backend::CudaOptions;
use crate::batch::AttentionKind;
use crate::device::DeviceInfo;
use crate::families::attention::{self, Route};
use crate::families::library;
use crate::families::products::{self, Capabilities, Epilogue, MatmulBackend};
use crate::families::token::DecodeVariant;
use crate::families::{elementwise, embedding, norm, qkv, rope, sdpa, softmax};
use crate::kernel::KernelSpec;

pub(crate) use self::normed_embedding::NormedEmbedding;
pub(crate) use self::product::{Server, WeightProduct};
use self::projection::FusedKernels;
pub(crate) use self::projection::{keys_and_values_of, last_projection};
pub(crate) use self::token::token_spec;

/// The formats that kernels are specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Formats {
    pub weights: Format,
    pub activations: Format,
    pub cache: CacheFormat,
}

impl Formats {
    /// Those of a plan.
    pub fn of_plan(plan: &Plan) -> Formats {
        Formats::of(&plan.policy)
    }

    /// Those of a policy.
    pub fn of(policy: &PrecisionPolicy) -> Formats {
        let (weights, activations) = (policy.weights(), policy.activations());
        Formats { weights, activations, cache: cache_format(policy) }
    }

    /// Those of a contract; a family does not look at what its contracts leave open.
    pub fn of_contract(contract: &OpContract) -> Formats {
        let query = &contract.query;
        Formats {
            weights: query.weights.unwrap_or(query.activations),
            activations: query.activations,
            cache: query.cache.unwrap_or(CacheFormat::plain(query.activations)),
        }
    }

    /// The products of an op, in order.
    fn products(self, program: &Program, op: &Op) -> Vec<WeightProduct> {
        let product = |weight, epilogue| self.product(program, weight, epilogue, None);
        match op {
            Op::Matmul(op) => vec![self.product(program, op.weight, Epilogue::Store, op.bias)],
            Op::Logits(op) => vec![product(op.weight, Epilogue::Plain)],
            Op::Qkv(op) => vec![product(op.weight, Epilogue::Plain)],
            Op::SwiGlu(op) => vec![product(op.weight, Epilogue::SwiGlu)],
            Op::Ffn(op) => vec![product(op.gate_up, Epilogue::SwiGlu), product(op.down, Epilogue::Store)],
            Op::Embedding(_)
            | Op::RmsNorm(_)
            | Op::Rope(_)
            | Op::Softmax(_)
            | Op::Sdpa(_)
            | Op::Attention(_)
            | Op::Residual(_) => vec![],
        }
    }

    /// The kernel of an op beside its products for a number of rows, where there is one beside attention's.
    fn other(self, program: &Program, op: &Op, rows: usize, chooser: &Chooser) -> Option<KernelSpec> {
        let Formats { weights, activations, cache } = self;
        match op {
            Op::Embedding(_) => Some(embedding::spec(weights, activations)),
            Op::RmsNorm(op) => Some(norm::spec(activations, norm_variant(program, op, activations, rows))),
            Op::Rope(_) => Some(rope::spec(activations)),
            Op::Softmax(op) => {
                let width = program.value(op.input).width;
                Some(softmax::spec(activations, chooser.softmax(activations, width)))
            }
            Op::Sdpa(_) => Some(sdpa::spec(activations)),
            Op::Residual(_) => Some(elementwise::spec(activations)),
            Op::Qkv(op) => Some(qkv::spec(activations, cache, op.heads.dim)),
            Op::Attention(_) | Op::Matmul(_) | Op::SwiGlu(_) | Op::Ffn(_) | Op::Logits(_) => None,
        }
    }
}

/// What choices depend on beside the plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chooser {
    device: Capabilities,
    preferences: products::Preferences,
    softmax: softmax::Preferences,
    decode: DecodeVariant,
}

impl Chooser {
    pub fn new(info: &DeviceInfo, options: &CudaOptions) -> Chooser {
        let DeviceInfo { arch, multiprocessors, shared_per_block, .. } = *info;
        Chooser {
            device: Capabilities { arch, multiprocessors, shared_per_block },
            preferences: options.products,
            softmax: options.softmax,
            decode: options.decode,
        }
    }

    /// The variant of softmax for rows of `width` numbers.
    pub fn softmax(&self, activations: Format, width: usize) -> softmax::Variant {
        softmax::choose(activations, width, self.softmax)
    }

    fn why_softmax(&self, activations: Format, width: usize) -> String {
        match (self.softmax(activations, width), self.softmax.variant) {
            (softmax::Variant::Vec { group, .. }, _) => {
                format!("rows of {width} fit the registers of {group} threads each")
            }
            (softmax::Variant::Block, softmax::VariantPreference::Block) => {
                "asked for by the preferred variant".to_owned()
            }
            (softmax::Variant::Block, _) => format!("rows of {width} do not fit registers: read three times"),
        }
    }

    /// How a token of one sequence is to be computed.
    pub fn decode(&self) -> DecodeVariant {
        self.decode
    }

    /// What choices ask of the device.
    pub fn device(&self) -> Capabilities {
        self.device
    }
}

/// The variant of a norm for a number of rows.
pub(crate) fn norm_variant(
    program: &Program,
    op: &op::RmsNorm,
    activations: Format,
    rows: usize,
) -> norm::Variant {
    let addition = match op.residual {
        Some(_) => norm::Addition::Residual,
        None => norm::Addition::None,
    };
    norm::choose(activations, program.value(op.out).width, rows, addition)
}

/// Every kernel that runs within the limits may need.
pub(crate) fn required_kernels(
    plan: &Plan,
    limits: &Limits,
    kinds: &[AttentionKind],
    chooser: &Chooser,
) -> Vec<KernelSpec> {
    let (program, formats) = (&plan.program, Formats::of_plan(plan));
    let together = NormedEmbedding::of(program, formats);
    // Where the kernel for a token computes the end of a prompt.
    let alone = chooser.token(program, formats).is_ok();
    let keys_and_values = last_projection(program).filter(|_| alone).map(keys_and_values_of);
    let keys_and_values =
        keys_and_values.map(|op| formats.fused_qkv_kernels(program, &op, limits.rows, chooser).kernels());
    let of_several = together.map(|together| together.spec).into_iter();
    let mut all: Vec<KernelSpec> = of_several.chain(keys_and_values.into_iter().flatten()).collect();
    for step in &plan.program.steps {
        for spec in step_kernels(plan, &step.op, limits, kinds, chooser) {
            if !all.contains(&spec) {
                all.push(spec);
            }
        }
    }
    all
}

fn step_kernels(
    plan: &Plan,
    op: &Op,
    limits: &Limits,
    kinds: &[AttentionKind],
    chooser: &Chooser,
) -> Vec<KernelSpec> {
    let (formats, program) = (Formats::of_plan(plan), &plan.program);
    let rows = match op {
        Op::Logits(_) => limits.outputs,
        _ => limits.rows,
    };
    let more = match op {
        Op::Attention(op) => attention_kernels(formats, op.heads, kinds),
        Op::Qkv(op) => match formats.fused_qkv_kernels(program, op, rows, chooser) {
            FusedKernels::Always(kernels) => return kernels,
            FusedKernels::Sometimes(kernels) => kernels,
        },
        _ => vec![],
    };
    let products = formats.products(program, op);
    let gather = gathers(op, &products, rows, chooser);
    let products = products.iter().flat_map(|product| product.kernels(rows, chooser));
    // What one row takes, and what the most take.
    let others = [1, rows].into_iter().filter_map(|rows| formats.other(program, op, rows, chooser));
    products.chain(gather).chain(others).chain(more).collect()
}

/// Whether all launches of a run can be recorded in a graph: a library's cannot be added to one as nodes. Capturing its
/// stream, which would find them out, crashed the driver in a process with other threads; why is not known.
pub(crate) fn records(plan: &Plan, rows: RunRows, chooser: &Chooser) -> bool {
    match chooser.preferences.backend {
        MatmulBackend::Auto | MatmulBackend::Own => return true,
        MatmulBackend::CublasLt => {}
    }
    let formats = Formats::of_plan(plan);
    plan.program.steps.iter().all(|step| {
        let rows = if matches!(step.op, Op::Logits(_)) { rows.outputs } else { rows.tokens };
        formats.products(&plan.program, &step.op).iter().all(|product| !product.needs_library(rows, chooser))
    })
}

/// The kernel that gathers the wanted rows, where products of `rows` of them take all rows of an input.
fn gathers(op: &Op, products: &[WeightProduct], rows: usize, chooser: &Chooser) -> Option<KernelSpec> {
    let needed = products.iter().any(|product| product.takes_all_rows(rows, chooser));
    (matches!(op, Op::Logits(_)) && needed).then(library::gather_spec)
}

fn attention_kernels(formats: Formats, heads: Heads, kinds: &[AttentionKind]) -> Vec<KernelSpec> {
    let Some(kind) = kinds.iter().find(|kind| kind.heads == heads) else { return vec![] };
    let specs = attention::specs(formats.activations, formats.cache, heads, kind.route);
    specs.rows.into_iter().flat_map(|(decode, merge)| [decode, merge]).chain(specs.tiles).collect()
}

/// The kernels of an op for a class of shapes, and what decided it.
pub(crate) fn choose(
    program: &Program,
    op: &Op,
    contract: &OpContract,
    class: ShapeClass,
    chooser: &Chooser,
) -> KernelChoice {
    let formats = Formats::of_contract(contract);
    if let Op::Attention(op) = op {
        return choose_attention(formats, op.heads, class, chooser);
    }
    if let Some(together) = NormedEmbedding::of(program, formats)
        && let Some(why) = together.why(op)
    {
        return KernelChoice { kernel: together.spec.to_string(), why: why.to_owned() };
    }
    let rows = typical_rows(op, class);
    let products = formats.products(program, op);
    let why = match (products.first(), op) {
        (Some(product), _) => product.why(rows, chooser),
        (None, Op::Softmax(op)) => chooser.why_softmax(formats.activations, program.value(op.input).width),
        (None, Op::RmsNorm(op)) => match norm_variant(program, op, formats.activations, rows) {
            norm::Variant::Block(_) => format!("{rows} rows: a block each"),
            norm::Variant::Warp { .. } => format!("{rows} rows: a warp each"),
        },
        (None, _) => "the only variant".to_owned(),
    };
    let text = |spec: KernelSpec| spec.to_string();
    if let Op::Qkv(op) = op
        && let Some((fused, variant)) = formats.fused_qkv(program, op, rows, chooser)
    {
        let why = projection::why(variant, rows, chooser).unwrap_or(why);
        return KernelChoice { kernel: text(fused.spec(variant)), why };
    }
    let gather = gathers(op, &products, rows, chooser).map(text);
    let products = products.iter().map(|product| product.name(rows, chooser));
    let names = gather.into_iter().chain(products).chain(formats.other(program, op, rows, chooser).map(text));
    let kernel = names.collect::<Vec<_>>().join(" + ");
    KernelChoice { kernel, why }
}

/// The rows of an op in the largest batch of a class, or for prefill in a usual one.
fn typical_rows(op: &Op, class: ShapeClass) -> usize {
    match (class, op) {
        (ShapeClass::Decode, _) => 1,
        (ShapeClass::SmallBatch, _) => 16,
        // Of a prompt the last row is wanted.
        (ShapeClass::Prefill, Op::Logits(_)) => 1,
        (ShapeClass::Prefill, _) => 512,
    }
}

fn choose_attention(formats: Formats, heads: Heads, class: ShapeClass, chooser: &Chooser) -> KernelChoice {
    let route = match attention::route(formats.activations, formats.cache, heads, chooser.device()) {
        Ok(route) => route,
        Err(refusal) => return KernelChoice { kernel: "none".to_owned(), why: refusal.to_string() },
    };
    let specs = attention::specs(formats.activations, formats.cache, heads, route);
    // Decode and small batches are rows of different sequences, prefill is many rows of one.
    let (by_rows, why) = match (route, class) {
        (Route::Rows(_), _) => (true, "tiles of these heads do not fit the device's shared memory"),
        (Route::Tiles(_), _) => (false, "the kernel of single rows does not serve these heads"),
        (Route::RowsAndTiles(..), ShapeClass::Prefill) => {
            (false, "many rows a sequence: tiles of queries share each block of keys")
        }
        (Route::RowsAndTiles(..), _) => (true, "one row a sequence: its positions are spread over blocks"),
    };
    let kernels: Vec<KernelSpec> = match specs.rows {
        Some((decode, merge)) if by_rows => vec![decode, merge],
        // The largest of the tiles among which a batch chooses.
        _ => specs.tiles.into_iter().take(1).collect(),
    };
    let kernel = kernels.iter().map(KernelSpec::to_string).collect::<Vec<_>>().join(" + ");
    KernelChoice { kernel, why: why.to_owned() }
}
