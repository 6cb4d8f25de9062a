//! One step of a plan: from an op and the session's memory to launches.

mod embedding;
mod library;
mod projection;

use std::cell::RefCell;

use mantissa_numerics::Format;
use mantissa_ops::program::{RunRows, ValueRole};
use mantissa_ops::{Op, Plan, Step, ValueId, WeightId, op};

use crate::batch::{AttentionWork, DeviceBatch, Rows};
use crate::cache::KvCache;
use crate::cublaslt::CublasLt;
use crate::device::Stream;
use crate::error::CudaError;
use crate::families::attention;
use crate::families::products::{self, Epilogue};
use crate::families::{cache, elementwise, norm, rope, sdpa, softmax, wgmma};
use crate::graph::Recorder;
use crate::kernel::{KernelSpec, Launch};
use crate::kernels::Loaded;
use crate::scratch::Scratch;
use crate::select::{Chooser, Formats, Server, norm_variant};
use crate::stream::Blocks;
use crate::tables::RopeTables;
use crate::trace::Tracer;
use crate::values::{Place, Values, row_stride};
use crate::weights::Weights;

/// A step that cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Device(#[from] CudaError),
    /// Names a mistake in a program; the plan and the batch were checked.
    #[error("the program has no {0}")]
    Missing(&'static str),
    /// Names a mistake of this crate: the kernels of a plan are loaded when it is prepared.
    #[error("kernel {0} was not prepared")]
    NotPrepared(String),
}

/// Where launches go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LaunchTarget<'a> {
    /// They run.
    Stream(&'a Stream),
    /// They run when the graph does.
    Graph(&'a RefCell<Recorder>),
    /// They run, and it is noted when.
    Tracer(&'a Tracer),
}

impl LaunchTarget<'_> {
    /// Says to which step of the plan further launches belong.
    pub fn enter(self, step: usize) {
        if let LaunchTarget::Tracer(tracer) = self {
            tracer.enter(step);
        }
    }

    /// Whether each step is to have times of its own.
    pub fn keeps_steps_apart(self) -> bool {
        matches!(self, LaunchTarget::Tracer(tracer) if tracer.keeps_steps_apart())
    }

    /// Asks the stream for what cannot be recorded, and is no kernel of ours.
    fn ask(self, name: &str, ask: impl FnOnce(&Stream) -> Result<(), CudaError>) -> Result<(), StepError> {
        match self {
            LaunchTarget::Stream(stream) => Ok(ask(stream)?),
            LaunchTarget::Tracer(tracer) => Ok(tracer.launch(name, ask)?),
            // The session asks `records` first.
            LaunchTarget::Graph(_) => Err(StepError::Missing("graph of a library's products")),
        }
    }
}

/// What a step works with.
pub(crate) struct Runner<'a> {
    pub plan: &'a Plan,
    pub target: LaunchTarget<'a>,
    pub kernels: &'a Loaded,
    pub chooser: &'a Chooser,
    pub weights: &'a Weights,
    pub values: &'a Values,
    pub tables: Option<&'a RopeTables>,
    pub cache: Option<&'a KvCache>,
    pub scratch: &'a Scratch,
    pub library: Option<&'a CublasLt>,
    pub uploaded: &'a DeviceBatch,
    /// The rows that steps compute, and how many those are.
    pub part: Rows,
    pub rows: RunRows,
}

/// The output of a product, and what is added to it.
struct Target {
    epilogue: Epilogue,
    address: u64,
    stride: usize,
    bias: Option<WeightId>,
    residual: Option<ValueId>,
    alpha: f32,
}

/// The input of a product.
struct Source {
    address: u64,
    stride: usize,
    /// Address of the numbers of the rows to use; null for all.
    wanted: u64,
    rows: usize,
}

impl Runner<'_> {
    /// Launches the kernels of one step.
    pub fn step(&self, step: &Step) -> Result<(), StepError> {
        match &step.op {
            Op::Embedding(op) => self.embedding(op),
            Op::RmsNorm(op) => self.rms_norm(op),
            Op::Rope(op) => self.rope(op),
            Op::Softmax(op) => self.softmax(op),
            Op::Sdpa(op) => self.sdpa(op),
            Op::Matmul(op) => self.matmul(op),
            Op::Qkv(op) => self.qkv(op),
            Op::Attention(op) => self.attention(op),
            Op::SwiGlu(op) => self.swiglu(op),
            Op::Ffn(op) => self.ffn(op),
            Op::Residual(op) => self.residual(op),
            Op::Logits(op) => self.logits(op),
        }
    }

    /// Where the rows that steps compute are.
    fn place(&self, id: ValueId) -> Place {
        let place = self.values.place(id);
        match self.plan.program.value(id).role {
            ValueRole::Logits => place,
            ValueRole::Activation => {
                let row_bytes = place.stride as usize * self.activations().bytes();
                let skipped = self.uploaded.first(self.part) * row_bytes;
                Place { address: place.address + skipped as u64, ..place }
            }
        }
    }

    fn activations(&self) -> Format {
        self.plan.policy.activations()
    }

    /// Launches a kernel with the arguments of its family.
    pub fn launch<P: Copy>(&self, spec: &KernelSpec, launch: Launch, args: &P) -> Result<(), StepError> {
        self.launch_as(spec, launch, args, Blocks::Independent)
    }

    /// Launches a kernel like [`Runner::launch`], whose blocks may wait for each other.
    pub fn launch_as<P: Copy>(
        &self,
        spec: &KernelSpec,
        launch: Launch,
        args: &P,
        blocks: Blocks,
    ) -> Result<(), StepError> {
        let kernel = self.kernels.get(spec).ok_or_else(|| StepError::NotPrepared(spec.to_string()))?;
        if launch.is_empty() {
            return Ok(());
        }
        // SAFETY: every `Args` stands beside the `spec` of its family and mirrors the kernel's. Its addresses are those of
        // buffers that the session holds, sized for its limits, which the batch was checked against; strides and formats
        // are those with which they were filled. The session synchronizes before a run ends, and keeps its graphs no
        // longer than its buffers.
        Ok(unsafe {
            match self.target {
                LaunchTarget::Stream(stream) => stream.launch_as(kernel, launch, args, blocks),
                LaunchTarget::Graph(recorder) => recorder.borrow_mut().add(kernel, launch, args, blocks),
                LaunchTarget::Tracer(tracer) => {
                    tracer.launch(kernel.name(), |stream| stream.launch_as(kernel, launch, args, blocks))
                }
            }
        }?)
    }

    fn rms_norm(&self, op: &op::RmsNorm) -> Result<(), StepError> {
        let (input, out) = (self.place(op.input), self.place(op.out));
        let residual = op.residual.map(|residual| self.place(residual));
        let args = norm::Args {
            input: input.address,
            residual: residual.map_or(0, |residual| residual.address),
            weight: self.weights.get(op.weight).address(),
            out: out.address,
            width: out.width,
            input_stride: input.stride,
            residual_stride: residual.map_or(0, |residual| residual.stride),
            out_stride: out.stride,
            eps: op.eps,
            rows: self.rows.tokens as u32,
        };
        let variant = norm_variant(&self.plan.program, op, self.activations(), self.rows.tokens);
        let spec = norm::spec(self.activations(), variant);
        self.launch(&spec, norm::launch_shape(variant, self.rows.tokens), &args)
    }

    fn rope(&self, op: &op::Rope) -> Result<(), StepError> {
        let tables = self.tables.ok_or(StepError::Missing("rotary embedding"))?;
        let (input, out) = (self.place(op.input), self.place(op.out));
        let args = rope::Args {
            batch: self.uploaded.view(),
            input: input.address,
            out: out.address,
            cos: tables.cos(),
            sin: tables.sin(),
            width: out.width,
            head_dim: op.head_dim as u32,
            pairs: tables.pairs,
            context: tables.context,
            input_stride: input.stride,
            out_stride: out.stride,
        };
        let launch = rope::launch_shape(self.rows.tokens, out.width as usize);
        self.launch(&rope::spec(self.activations()), launch, &args)
    }

    fn softmax(&self, op: &op::Softmax) -> Result<(), StepError> {
        let (input, out) = (self.place(op.input), self.place(op.out));
        let args = softmax::Args {
            input: input.address,
            out: out.address,
            rows: self.rows.tokens as u32,
            width: out.width,
            input_stride: input.stride,
            out_stride: out.stride,
            scale: op.scale,
            unused: 0,
        };
        let variant = self.chooser.softmax(self.activations(), out.width as usize);
        let spec = softmax::spec(self.activations(), variant);
        self.launch(&spec, softmax::launch_shape(variant, self.rows.tokens), &args)
    }

    fn sdpa(&self, op: &op::Sdpa) -> Result<(), StepError> {
        let [query, key, value, out] = [op.query, op.key, op.value, op.out].map(|id| self.place(id));
        let rows = self.rows.tokens;
        let args = sdpa::Args {
            batch: self.uploaded.view(),
            query: query.address,
            key: key.address,
            value: value.address,
            out: out.address,
            scores: self.scratch.floats.address(),
            rows: rows as u32,
            query_heads: op.heads.query as u32,
            group: (op.heads.query / op.heads.key_value.max(1)) as u32,
            dim: op.heads.dim as u32,
            query_stride: query.stride,
            key_stride: key.stride,
            value_stride: value.stride,
            out_stride: out.stride,
            score_stride: rows as u32,
            window: cache::window(op.mask),
            scale: op.scale,
            unused: 0,
        };
        self.launch(&sdpa::spec(self.activations()), sdpa::launch_shape(op.heads, rows), &args)
    }

    fn residual(&self, op: &op::Residual) -> Result<(), StepError> {
        let [left, right, out] = [op.left, op.right, op.out].map(|id| self.place(id));
        let args = elementwise::Args {
            left: left.address,
            right: right.address,
            out: out.address,
            width: out.width,
            left_stride: left.stride,
            right_stride: right.stride,
            out_stride: out.stride,
        };
        let launch = elementwise::launch_shape(self.rows.tokens, out.width as usize);
        self.launch(&elementwise::spec(self.activations()), launch, &args)
    }

    /// All rows of a value.
    fn all_rows(&self, value: ValueId) -> Source {
        let Place { address, stride, .. } = self.place(value);
        Source { address, stride: stride as usize, wanted: 0, rows: self.rows.tokens }
    }

    /// A value that takes a product's result.
    fn store(&self, out: ValueId, epilogue: Epilogue) -> Target {
        let Place { address, stride, .. } = self.place(out);
        Target { epilogue, address, stride: stride as usize, bias: None, residual: None, alpha: 1.0 }
    }

    fn product(&self, weight: WeightId, input: Source, target: Target) -> Result<(), StepError> {
        let formats = Formats::of_plan(self.plan);
        let product = formats.product(&self.plan.program, weight, target.epilogue, target.bias);
        let args = self.product_args(weight, product.features, &input, &target);
        match product.server(input.rows, self.chooser) {
            Server::Own(spec, launch) => self.launch(&spec, launch, &args),
            Server::Wgmma(tile, spec, launch) => {
                let args = self.gathered(product, &args)?;
                self.launch(&spec, launch, &wgmma::args(product.kind, tile, &args)?)
            }
            Server::Library(finish) => self.library_product(product, &args, finish),
        }
    }

    fn product_args(
        &self,
        weight: WeightId,
        features: usize,
        input: &Source,
        target: &Target,
    ) -> products::ProductArgs {
        let matrix = self.weights.get(weight);
        let residual = target.residual.map(|residual| self.place(residual));
        products::ProductArgs {
            weights: matrix.address(),
            input: input.address,
            wanted: input.wanted,
            bias: target.bias.map_or(0, |bias| self.weights.get(bias).address()),
            residual: residual.map_or(0, |residual| residual.address),
            out: target.address,
            weight_stride: matrix.stride as u64,
            input_stride: input.stride as u64,
            residual_stride: residual.map_or(0, |residual| u64::from(residual.stride)),
            out_stride: target.stride as u64,
            features: features as u32,
            columns: matrix.columns as u32,
            rows: input.rows as u32,
            alpha: target.alpha,
        }
    }

    fn matmul(&self, op: &op::Matmul) -> Result<(), StepError> {
        let target = self.store(op.out, Epilogue::Store);
        let target = Target { bias: op.bias, residual: op.residual, alpha: op.alpha, ..target };
        self.product(op.weight, self.all_rows(op.input), target)
    }

    fn swiglu(&self, op: &op::SwiGlu) -> Result<(), StepError> {
        self.product(op.weight, self.all_rows(op.input), self.store(op.out, Epilogue::SwiGlu))
    }

    fn ffn(&self, op: &op::Ffn) -> Result<(), StepError> {
        let intermediate = self.scratch.activations.address();
        let stride = row_stride(self.weights.get(op.down).columns, self.activations());
        let activated = Target { address: intermediate, stride, ..self.store(op.out, Epilogue::SwiGlu) };
        self.product(op.gate_up, self.all_rows(op.input), activated)?;
        let input = Source { address: intermediate, stride, wanted: 0, rows: self.rows.tokens };
        let target = Target { residual: op.residual, ..self.store(op.out, Epilogue::Store) };
        self.product(op.down, input, target)
    }

    fn logits(&self, op: &op::Logits) -> Result<(), StepError> {
        let wanted = self.uploaded.view().outputs;
        // The numbers of wanted rows count from the first of all.
        let Place { address, stride, .. } = self.values.place(op.input);
        let input = Source { address, stride: stride as usize, wanted, rows: self.rows.outputs };
        if input.rows == 0 {
            return Ok(());
        }
        self.product(op.weight, input, self.store(op.out, Epilogue::Plain))
    }

    fn attention(&self, op: &op::Attention) -> Result<(), StepError> {
        let kv = self.cache.ok_or(StepError::Missing("KV cache"))?;
        let division = self.uploaded.attention(op.heads, self.part);
        let AttentionWork { kind, work, rows, tiles } =
            division.ok_or(StepError::Missing("division of attention"))?;
        // Rows and tiles are numbered from the first of all.
        let (query, out) = (self.values.place(op.query), self.values.place(op.out));
        let specs = attention::specs(self.activations(), kv.format, op.heads, kind.route);
        let args = attention::Args {
            batch: self.uploaded.view(),
            cache: kv.layer(op.layer),
            query: query.address,
            out: out.address,
            parts: self.scratch.parts.address(),
            part_softmax: self.scratch.part_softmax.address(),
            rows,
            tiles,
            query_stride: query.stride,
            out_stride: out.stride,
            query_heads: op.heads.query as u32,
            group: (op.heads.query / op.heads.key_value.max(1)) as u32,
            window: cache::window(op.mask),
            records: 0,
            scale: op.scale,
            items: (work.tiles.len() * op.heads.key_value) as u32,
        };
        if let (Some((decode, merge)), Some(single)) = (&specs.rows, kind.route.single()) {
            let records = single.records(work.span_bucket, op.mask);
            let at_once = single.rows_at_once(op.heads, records);
            for first in (0..work.rows.len()).step_by(at_once) {
                let count = at_once.min(work.rows.len() - first);
                let rows = rows + (first * size_of::<u32>()) as u64;
                let args = attention::Args { rows, records: records as u32, ..args };
                let launches = single.launches(op.heads, kv.format, count, records);
                self.launch(decode, launches.decode, &args)?;
                if let Some(launch) = launches.merge {
                    self.launch(merge, launch, &args)?;
                }
            }
        }
        let Some(tiling) = work.tiling else { return Ok(()) };
        let tiles = tiling.spec(self.activations(), kv.format, op.heads);
        self.launch(&tiles, tiling.launch(kv.format, op.heads, work.tiles.len()), &args)
    }
}
