//! The kernel for a token on the first GPU, against the graph of single kernels: the same bits. Where there is no GPU that it
//! was made for, or no NVRTC, every test is reported as skipped.

#[path = "gpu/decoder.rs"]
mod decoder;
#[path = "gpu/backend.rs"]
mod gpu;

use decoder::Decoder;
use mantissa_cuda::families::token::DecodeVariant;
use mantissa_cuda::{CudaBackend, CudaOptions};
use mantissa_engine::sampling::SamplingParams;
use mantissa_engine::{EndOfText, Engine, EngineOptions, Request};
use mantissa_numerics::policy::PrecisionPolicy;
use mantissa_ops::backend::{Backend, LoadOptions, NoProgress, OverflowRule, Session};
use mantissa_ops::conformance::or_skip;
use mantissa_ops::op::Heads;
use mantissa_ops::{Batch, Limits, Plan, SequenceRows};

const PAGE: usize = 16;
const VOCABULARY: usize = 2048;

/// Heads, biases, and widths that are no multiples of a segment, like those of two models.
const DECODERS: [Decoder; 2] = [
    Decoder {
        layers: 3,
        heads: Heads { query: 14, key_value: 2, dim: 64 },
        hidden: 896,
        intermediate: 1216,
        vocabulary: VOCABULARY,
        context: 4096,
        bias: Some(0.5),
    },
    Decoder {
        layers: 2,
        heads: Heads { query: 32, key_value: 8, dim: 64 },
        hidden: 2048,
        intermediate: 2048,
        vocabulary: VOCABULARY,
        context: 4096,
        bias: None,
    },
];

/// What a sanitizer gets through in seconds.
const SMALL: Decoder = Decoder {
    layers: 2,
    heads: Heads { query: 2, key_value: 1, dim: 64 },
    hidden: 128,
    intermediate: 1216,
    vocabulary: VOCABULARY,
    context: 1024,
    bias: Some(0.5),
};

const POLICIES: [&str; 4] = ["bf16", "f16", "bf16,kv_cache=f8e4m3", "f16,kv_cache=f8e4m3"];

/// The GPU with either variant, or why there is no kernel for a token.
fn backends() -> Result<[CudaBackend; 2], String> {
    let open = |decode| gpu::open(CudaOptions { decode, ..CudaOptions::default() });
    let [graph, token] = [open(DecodeVariant::Graph)?, open(DecodeVariant::Token)?];
    let arch = token.device().info().arch;
    match (arch.major, arch.minor) {
        (9, 0) => Ok([graph, token]),
        _ => Err(format!("the kernel for a token is not for {arch}")),
    }
}

/// A session of a decoder, with a cache whose pages lie in no order.
struct Sequence {
    session: Box<dyn Session>,
    table: Vec<u32>,
}

impl Sequence {
    fn new(backend: &CudaBackend, decoder: &Decoder, policy: &str) -> Sequence {
        let (program, source) = decoder.model();
        let policy: PrecisionPolicy = policy.parse().expect("a policy");
        let plan = Plan::resolve(program, policy, backend).expect("supported");
        let pages = decoder.context / PAGE;
        let (rows, context) = (512, decoder.context);
        let limits = Limits { rows, outputs: 1, sequences: 1, pages, page_size: PAGE, context };
        let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
        let session = backend.prepare(plan, &source, &options, &NoProgress).expect("ready");
        let table = (0..pages).map(|page| (page * 91 % pages) as u32).collect();
        Sequence { session, table }
    }

    /// Runs tokens from a position on, and returns the bits of the last one's logits.
    fn run(&mut self, tokens: &[u32], position: usize) -> Vec<u32> {
        let positions: Vec<u32> = (0..tokens.len()).map(|row| (position + row) as u32).collect();
        let rows = [SequenceRows { rows: 0..tokens.len(), block_table: &self.table, rope_set: 0 }];
        let outputs = [tokens.len() as u32 - 1];
        let batch = Batch { tokens, positions: &positions, sequences: &rows, outputs: &outputs };
        self.session.run(&batch).expect("a run");
        self.session.logits().expect("logits").iter().map(|logit| logit.to_bits()).collect()
    }
}

fn token(position: usize) -> u32 {
    (position * 7919 % VOCABULARY) as u32
}

fn check_all_finite(bits: &[u32], place: &str) {
    assert_eq!(bits.len(), VOCABULARY);
    assert!(bits.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{place}");
}

#[test]
fn logits_have_the_bits_of_the_graph_s() {
    let Some([graph, kernel]) = or_skip(backends()) else { return };
    for (decoder, policy) in DECODERS.iter().flat_map(|decoder| POLICIES.map(|policy| (decoder, policy))) {
        let [mut graph, mut kernel] =
            [&graph, &kernel].map(|backend| Sequence::new(backend, decoder, policy));
        let mut position = 0;
        // Every position that a span or a section begins or ends with, and whole prompts between them.
        for until in [70, 130, 508, 516, 1020, 1030, 2040, 2052, 3000, 3010] {
            if until - position > 100 {
                let tokens: Vec<u32> = (position..until - 12).map(token).collect();
                for tokens in tokens.chunks(512) {
                    assert_eq!(graph.run(tokens, position), kernel.run(tokens, position));
                    position += tokens.len();
                }
            }
            for position in position..until {
                let place = format!("{policy} {:?} at {position}", decoder.heads);
                let expected = graph.run(&[token(position)], position);
                check_all_finite(&expected, &place);
                assert!(kernel.run(&[token(position)], position) == expected, "other bits: {place}");
            }
            position = until;
        }
    }
}

/// The first tokens of a span and of a second section.
#[test]
fn a_small_decoder_has_the_bits_of_the_graph_s() {
    let Some([graph, kernel]) = or_skip(backends()) else { return };
    for policy in POLICIES {
        let [mut graph, mut kernel] = [&graph, &kernel].map(|backend| Sequence::new(backend, &SMALL, policy));
        for (prompt, tokens) in [(0..63, 63..66), (66..511, 511..514)] {
            let prompt_tokens: Vec<u32> = prompt.clone().map(token).collect();
            assert_eq!(graph.run(&prompt_tokens, prompt.start), kernel.run(&prompt_tokens, prompt.start));
            for position in tokens {
                let place = format!("{policy} at {position}");
                let expected = graph.run(&[token(position)], position);
                check_all_finite(&expected, &place);
                assert!(kernel.run(&[token(position)], position) == expected, "other bits: {place}");
            }
        }
    }
}

#[test]
fn every_run_has_the_same_bits() {
    let Some([_, kernel]) = or_skip(backends()) else { return };
    let mut wrong: Vec<String> = Vec::new();
    for decoder in &DECODERS {
        let mut before: Vec<Vec<u32>> = Vec::new();
        for session in 0..3 {
            let mut kernel = Sequence::new(&kernel, decoder, "bf16");
            let mut position = 0;
            // Blocks without attention, with some, and with parts of several sections.
            for (index, until) in [24, 300, 520, 2000].into_iter().enumerate() {
                let tokens: Vec<u32> = (position..until).map(token).collect();
                for tokens in tokens.chunks(512) {
                    kernel.run(tokens, position);
                    position += tokens.len();
                }
                let first = kernel.run(&[token(position)], position);
                check_all_finite(&first, "a first run");
                for run in 0..300 {
                    let again = kernel.run(&[token(position)], position);
                    let other: Vec<usize> = (0..VOCABULARY).filter(|&at| again[at] != first[at]).collect();
                    if !other.is_empty() {
                        wrong.push(format!(
                            "run {run} at {position} of {:?} in session {session}: {} logits, {}..={}",
                            decoder.heads,
                            other.len(),
                            other[0],
                            other[other.len() - 1]
                        ));
                    }
                }
                if session == 0 {
                    before.push(first);
                } else {
                    assert!(before[index] == first, "session {session} at {position}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "other bits than the first run: {wrong:#?}");
}

/// Tokens and log-probabilities of a sequence, each run of which starts before the host has seen the token before.
fn generate(backend: &CudaBackend, policy: &str, temperature: f32) -> Vec<(u32, u32)> {
    let (program, source) = DECODERS[0].model();
    let policy: PrecisionPolicy = policy.parse().expect("a policy");
    let plan = Plan::resolve(program, policy, backend).expect("supported");
    let options =
        EngineOptions { context: Some(1024), sequences: 1, page_size: PAGE, ..EngineOptions::default() };
    let mut engine = Engine::prepare(plan, &source, backend, &options, &NoProgress).expect("ready");
    let request = Request {
        prompt: (0..10).map(token).collect(),
        max_tokens: 600,
        sampling: SamplingParams { temperature, ..SamplingParams::default() },
        fallback_seed: 3,
        end_of_text_ids: Vec::new(),
        end_of_text: EndOfText::Ignore,
    };
    engine.add(request).expect("room");
    let mut all = Vec::new();
    while !engine.is_idle() {
        let events = engine.step().expect("a step");
        all.extend(events.into_iter().map(|event| (event.token, event.logprob.to_bits())));
    }
    all
}

#[test]
fn tokens_that_follow_each_other_are_those_of_the_graph() {
    let Some([graph, kernel]) = or_skip(backends()) else { return };
    for policy in POLICIES {
        // Of the best tokens the kernel itself leaves the keys.
        for temperature in [0.0, 0.8] {
            let expected = generate(&graph, policy, temperature);
            assert_eq!(expected.len(), 600);
            assert!(generate(&kernel, policy, temperature) == expected, "{policy}, {temperature}");
        }
    }
}
