//! Flash attention over the cache: one query, and the last part of a prompt.

use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::builder::{AttentionArgs, QkvArgs};
use mantissa::ops::conformance::case::{Judged, Run, Sequence};
use mantissa::ops::cost::{RunShape, SequenceShape};
use mantissa::ops::op::{Heads, Mask};
use mantissa::ops::program::{CacheSpec, ValueId, ValueRole, WeightPart, cache_format};
use mantissa::ops::{Grain, Limits, ProgramBuilder};

use super::source::{RandomSource, random};
use super::{Family, Group, Timed};
use crate::LabError;

/// Layers of a program at most: filling the caches of more would take longer than everything else.
const LAYERS: usize = 512;
/// Input features of the projections that fill the cache: few, so that filling it takes little time.
const FEATURES: usize = 64;
/// Tokens of a page.
const PAGE: usize = 64;
/// Queries of a prompt that run together.
const QUERIES: usize = 512;

/// What runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One query at the end of the context.
    Decode,
    /// The last 512 queries of a prompt.
    Prefill,
}

/// The attention of a sweep: every combination.
#[derive(Clone, Debug, PartialEq)]
pub struct Attentions {
    /// Heads.
    pub heads: Vec<Heads>,
    /// Tokens of context, the queries included.
    pub contexts: Vec<usize>,
    /// What runs at once.
    pub phases: Vec<Phase>,
}

const fn heads(query: usize, key_value: usize, dim: usize) -> Heads {
    Heads { query, key_value, dim }
}

impl Default for Attentions {
    fn default() -> Attentions {
        Attentions {
            heads: vec![heads(14, 2, 64), heads(32, 8, 64), heads(32, 8, 128)],
            contexts: vec![512, 2048, 8192, 32_768],
            phases: vec![Phase::Decode, Phase::Prefill],
        }
    }
}

impl Attentions {
    /// A few of them.
    pub fn quick() -> Attentions {
        Attentions { heads: vec![heads(14, 2, 64)], contexts: vec![512, 2048], ..Attentions::default() }
    }

    /// All combinations, short contexts first.
    fn layers(&self) -> Vec<Layer> {
        let mut contexts = self.contexts.clone();
        contexts.sort_unstable();
        let mut layers = Vec::new();
        for &phase in &self.phases {
            for &heads in &self.heads {
                layers.extend(contexts.iter().map(|&context| Layer { phase, heads, context }));
            }
        }
        layers
    }
}

/// One combination.
#[derive(Clone, Copy, Debug)]
struct Layer {
    phase: Phase,
    heads: Heads,
    context: usize,
}

impl Layer {
    fn queries(&self) -> usize {
        match self.phase {
            Phase::Decode => 1,
            Phase::Prefill => QUERIES.min(self.context),
        }
    }

    fn name(&self) -> String {
        let Heads { query, key_value, dim } = self.heads;
        let phase = match self.phase {
            Phase::Decode => "decode",
            Phase::Prefill => "prefill",
        };
        let (queries, context) = (self.queries(), self.context);
        format!("attention {phase} heads={query}/{key_value}x{dim} queries={queries} context={context}")
    }

    fn pages(&self) -> usize {
        self.context.div_ceil(PAGE)
    }

    /// Runs that write every page, a few at a time, each as if it were the first of a sequence.
    fn fill(&self, input: ValueId) -> Vec<Run> {
        let pages: Vec<u32> = (0..self.pages() as u32).collect();
        let run = |pages: &[u32]| {
            let rows = pages.len() * PAGE;
            let sequence = |(index, &page): (usize, &u32)| Sequence {
                rows: index * PAGE..(index + 1) * PAGE,
                table: vec![page],
                rope_set: 0,
            };
            Run {
                inputs: vec![(input, random(rows * FEATURES))],
                tokens: vec![0; rows],
                positions: (0..rows as u32).map(|row| row % PAGE as u32).collect(),
                sequences: pages.iter().enumerate().map(sequence).collect(),
                outputs: Vec::new(),
                judged: Judged::No,
            }
        };
        pages.chunks(QUERIES / PAGE).map(run).collect()
    }

    /// The queries at the end of the context.
    fn run(&self, input: ValueId) -> Run {
        let (queries, pages) = (self.queries(), self.pages() as u32);
        Run {
            inputs: vec![(input, random(queries * FEATURES))],
            positions: (self.context - queries..self.context).map(|position| position as u32).collect(),
            sequences: vec![Sequence { rows: 0..queries, table: (0..pages).collect(), rope_set: 0 }],
            ..Run::rows(queries)
        }
    }
}

impl Family for Attentions {
    fn groups(&self) -> Vec<String> {
        self.layers().iter().map(Layer::name).collect()
    }

    /// Projections write the cache; only the attention behind them is a test. A prompt's queries use what they read many
    /// times: one layer is enough for them.
    fn group(&self, index: usize, policy: &PrecisionPolicy, rotated_bytes: usize) -> Result<Group, LabError> {
        let layer = self.layers()[index];
        let Layer { phase, heads, context } = layer;
        let bytes = CacheSpec { layers: 1, heads }.bytes_per_token(cache_format(policy)) * context;
        let layers = match phase {
            Phase::Decode => rotated_bytes.div_ceil(bytes).clamp(1, LAYERS),
            Phase::Prefill => 1,
        };
        let mut builder = ProgramBuilder::new("attention", context);
        let mut source = RandomSource::new(policy.weights());
        builder.cache(CacheSpec { layers, heads });
        let width = heads.query_width() + 2 * heads.kv_width();
        source.add("qkv", &[width, FEATURES]).map_err(mantissa::ops::PrepareError::from)?;
        let input = builder.value("input", FEATURES, ValueRole::Activation);
        for layer in 0..layers {
            let weights = vec![WeightPart::whole("qkv", width)];
            let args = QkvArgs { weights, biases: None, head_norms: None, heads, layer };
            let query = builder.qkv(&format!("layers.{layer}.qkv"), input, args);
            let scale = 1.0 / (heads.dim as f32).sqrt();
            let args = AttentionArgs { heads, scale, mask: Mask::Causal, layer };
            builder.attention(&format!("layers.{layer}.attention"), query, args);
        }
        let sequence = SequenceShape { rows: layer.queries(), context };
        let timed = Timed {
            run: layer.run(input),
            shape: RunShape { sequences: vec![sequence], outputs: 0 },
            test: layer.name(),
            steps: (1..2 * layers).step_by(2).collect(),
            grain: Grain::Kernel,
        };
        Ok(Group {
            program: builder.finish(),
            source,
            limits: Limits {
                rows: QUERIES,
                outputs: 1,
                sequences: QUERIES / PAGE,
                pages: layer.pages(),
                page_size: PAGE,
                context: context.max(PAGE),
            },
            fill: layer.fill(input),
            timed: vec![timed],
        })
    }
}
