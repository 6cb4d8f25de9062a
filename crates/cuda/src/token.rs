//! A session's kernel for a token of one sequence: its tables and the words that its blocks exchange.

use mantissa_ops::backend::PrepareError;
use mantissa_ops::reduction::RankKey;
use mantissa_ops::{Limits, Plan, WeightId};

use crate::cache::KvCache;
use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::{CudaError, prepare_error};
use crate::families::batch::BatchView;
use crate::families::cache;
use crate::families::token::{
    self, Args, Chain, DecodeVariant, KINDS, Lowered, Phase, Places, Refusal, Sizes, TileRange,
};
use crate::kernel::{KernelSpec, Launch};
use crate::reducer::Bests;
use crate::select::{Chooser, Formats, token_spec};
use crate::tables::RopeTables;
use crate::tensor_map::TensorMap;
use crate::values::{Place, Values};
use crate::weights::Weights;

const WHAT: &str = "the kernel for a token";
/// What parts of its memory are aligned to, in bytes.
const ALIGN: usize = 256;

/// Where the parts of its memory start, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// In the order of [`Sizes::exchange_words`].
    exchange: [usize; 6],
    bests: usize,
    phases: usize,
    maps: usize,
    ranges: usize,
    end: usize,
}

impl Layout {
    fn new(sizes: &Sizes, sections: usize) -> Layout {
        // The epoch comes first.
        let mut next = ALIGN;
        let mut take = |bytes: usize| {
            let start = next;
            next = next.saturating_add(bytes).min(usize::MAX - (ALIGN - 1)).next_multiple_of(ALIGN);
            start
        };
        let exchange =
            sizes.exchange_words(sections).map(|words| take(words.saturating_mul(size_of::<u64>())));
        let bests = take(sizes.blocks * size_of::<RankKey>());
        let phases = take(sizes.phases() * size_of::<Phase>());
        let maps = take(sizes.matrices() * size_of::<TensorMap>());
        let ranges = take(token::tables(sections) * table_bytes(sizes));
        Layout { exchange, bests, phases, maps, ranges, end: next }
    }
}

/// Bytes of the tiles of all kinds of phases.
fn table_bytes(sizes: &Sizes) -> usize {
    KINDS * sizes.blocks * size_of::<TileRange>()
}

/// Bytes of its memory.
pub(crate) fn token_bytes(sizes: &Sizes, limits: &Limits) -> usize {
    Layout::new(sizes, token::sections(limits.context)).end
}

/// The sizes of the kernel for a plan, where it has one.
pub(crate) fn token_sizes(plan: &Plan, chooser: &Chooser) -> Result<Option<Sizes>, PrepareError> {
    match (chooser.token(&plan.program, Formats::of_plan(plan)), chooser.decode()) {
        (Ok(sizes), _) => Ok(Some(sizes)),
        (Err(refusal), DecodeVariant::Token) => {
            Err(PrepareError::Part { what: "decode variant token", message: refusal.to_string() })
        }
        (Err(_), DecodeVariant::Auto | DecodeVariant::Graph) => Ok(None),
    }
}

/// What it works on.
pub(crate) struct Parts<'a> {
    pub plan: &'a Plan,
    pub limits: &'a Limits,
    pub weights: &'a Weights,
    pub values: &'a Values,
    pub tables: &'a RopeTables,
    pub cache: &'a KvCache,
}

/// The kernel, ready to be launched.
#[derive(Debug)]
pub(crate) struct TokenKernel {
    pub spec: KernelSpec,
    pub launch: Launch,
    /// Without a batch, and without the tiles that go with the length of its context.
    args: Args,
    /// Where these tables of tiles start in memory, and bytes of each.
    ranges: usize,
    table_bytes: usize,
    memory: DeviceBuffer,
    /// The residual stream of the kernels for more rows.
    stream: Place,
}

impl TokenKernel {
    /// Lowers the plan and uploads what comes of it.
    pub fn new(
        sizes: &Sizes,
        parts: &Parts<'_>,
        chooser: &Chooser,
        device: &Device,
        stream: &Stream,
    ) -> Result<TokenKernel, PrepareError> {
        let refused = |refusal: Refusal| PrepareError::Part { what: WHAT, message: refusal.to_string() };
        let sections = token::sections(parts.limits.context);
        let chain = Chain::of(&parts.plan.program).map_err(refused)?;
        let layout = Layout::new(sizes, sections);
        let failed = |error| prepare_error(WHAT, error);
        let memory = device.allocate(layout.end, WHAT).map_err(failed)?;
        let maps = memory.address() + layout.maps as u64;
        let lowered = parts.lower(&chain, sizes, maps).map_err(refused)?;
        let maps: Result<Vec<TensorMap>, CudaError> =
            lowered.matrices.iter().map(|matrix| matrix.map()).collect();
        // Words of no epoch, and the first one.
        let mut bytes = vec![0; layout.end];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &1_u32.to_ne_bytes());
        put(layout.phases, bytemuck::cast_slice(&lowered.phases));
        put(layout.maps, bytemuck::cast_slice(&maps.map_err(failed)?));
        put(layout.ranges, bytemuck::cast_slice(&lowered.ranges));
        stream.upload(&bytes, &memory, 0).map_err(failed)?;
        Ok(TokenKernel {
            spec: token_spec(Formats::of_plan(parts.plan), sizes),
            launch: token::launch_shape(sizes.shared, chooser.device()),
            args: parts.args(&chain, sizes, &layout, memory.address()),
            ranges: layout.ranges,
            table_bytes: table_bytes(sizes),
            memory,
            stream: parts.values.place(chain.embedding.out),
        })
    }

    /// Where it leaves the best keys of its logits.
    pub fn bests(&self) -> Bests {
        Bests { address: self.args.bests, count: self.launch.grid[0] }
    }

    /// Its arguments for a batch of one row that sees about `spans` spans of positions.
    pub fn args(&self, batch: BatchView, spans: usize) -> Args {
        let table = self.ranges + token::table(token::sections_of(spans)) * self.table_bytes;
        Args { batch, ranges: self.memory.address() + table as u64, ..self.args }
    }

    /// The same for the last layer and the logits of a row of the residual stream, whose number stands in the place of its token.
    pub fn last_layer_args(&self, batch: BatchView, spans: usize) -> Args {
        let args = self.args(batch, spans);
        let skipped = (args.phase_count as usize - token::LAST_PHASES) * size_of::<Phase>();
        Args {
            phases: args.phases + skipped as u64,
            phase_count: token::LAST_PHASES as u32,
            embedding: self.stream.address,
            embedding_stride: self.stream.stride,
            ..args
        }
    }
}

impl Parts<'_> {
    fn lower(&self, chain: &Chain<'_>, sizes: &Sizes, maps: u64) -> Result<Lowered, Refusal> {
        let sections = token::sections(self.limits.context);
        let weight = |id: WeightId| {
            let weight = self.weights.get(id);
            (weight.address(), weight.stride)
        };
        let cache = |layer: usize| (self.cache.layer(layer), self.cache.layer_vectors());
        let places = Places { weight: &weight, cache: &cache, maps };
        Lowered::new(&self.plan.program, chain, sizes, sections, &places)
    }

    fn args(&self, chain: &Chain<'_>, sizes: &Sizes, layout: &Layout, memory: u64) -> Args {
        let at = |offset: usize| memory + offset as u64;
        let [hidden, middle, projected, attended, gated, records] = layout.exchange.map(at);
        let table = self.weights.get(chain.embedding.table);
        let (first, cache) = (&chain.layers[0], self.cache.layer(0));
        Args {
            batch: BatchView::default(),
            phases: at(layout.phases),
            ranges: 0,
            embedding: table.address(),
            cos: self.tables.cos(),
            sin: self.tables.sin(),
            logits: self.values.place(chain.logits.out).address,
            bests: at(layout.bests),
            epoch: at(0),
            hidden,
            middle,
            projected,
            attended,
            gated,
            records,
            phase_count: sizes.phases() as u32,
            layers: sizes.layers as u32,
            width: sizes.width as u32,
            embedding_stride: table.stride as u32,
            query_heads: sizes.heads.query as u32,
            key_heads: sizes.heads.key_value as u32,
            context: self.tables.context,
            page_shift: cache.page_shift,
            cache_stride: cache.stride,
            window: cache::window(first.attention.mask),
            max_sections: token::sections(self.limits.context) as u32,
            work_bytes: sizes.shared.work as u32,
            eps: first.attention_norm.eps,
            scale: first.attention.scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use mantissa_numerics::Format;
    use mantissa_numerics::contract::CacheFormat;
    use mantissa_ops::op::Heads;

    use super::*;
    use crate::families::token::Shared;

    #[test]
    fn parts_do_not_overlap() {
        let sizes = Sizes {
            layers: 24,
            width: 896,
            inner: 4864,
            vocabulary: 151_936,
            heads: Heads { query: 14, key_value: 2, dim: 64 },
            cache: CacheFormat::plain(Format::Bf16),
            blocks: 132,
            shared: Shared { slots: 48, work: 20_480, total: 0 },
        };
        let layout = Layout::new(&sizes, 64);
        let starts: Vec<usize> = layout
            .exchange
            .into_iter()
            .chain([layout.bests, layout.phases, layout.maps, layout.ranges, layout.end])
            .collect();
        let exchange = sizes.exchange_words(64).map(|words| words * 8);
        let tables = [132 * 8, 121 * 72, 121 * 128, 7 * 6 * 132 * 8];
        for (pair, bytes) in starts.windows(2).zip(exchange.into_iter().chain(tables)) {
            assert!(pair[0] + bytes <= pair[1] && pair[1] < pair[0] + bytes + ALIGN && pair[0] % ALIGN == 0);
        }
        let limits = Limits { rows: 1, outputs: 1, sequences: 1, pages: 1, page_size: 16, context: 32_768 };
        assert_eq!(token_bytes(&sizes, &limits), layout.end);
    }
}
