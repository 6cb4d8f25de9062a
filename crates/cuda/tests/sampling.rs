//! Tokens chosen from logits that stay on the first GPU against those chosen from the same logits on the host. Where there
//! is no GPU, or no NVRTC, every test is reported as skipped.

#[path = "gpu/backend.rs"]
mod gpu;

use std::sync::OnceLock;

use mantissa_cuda::{CudaBackend, CudaOptions};
use mantissa_engine::sampling::{History, Sampler, SamplingParams};
use mantissa_numerics::Format;
use mantissa_numerics::policy::Preset;
use mantissa_ops::backend::{Backend, LoadOptions, NoProgress, OverflowRule, Session};
use mantissa_ops::conformance::data::MemorySource;
use mantissa_ops::conformance::or_skip;
use mantissa_ops::op::Logits;
use mantissa_ops::program::{ValueRole, WeightPart};
use mantissa_ops::reduction::{self, Cuts, Penalties, Reduced, Request, Seen, Whole, Wish};
use mantissa_ops::{Batch, Limits, Op, Plan, ProgramBuilder, RunError, SequenceRows};

/// Rows of a batch.
const ROWS: usize = 12;

/// Distributions of logits, one for each row but the last two, which are those of the first in another scale.
const SHAPES: usize = 10;

fn backend() -> Result<&'static CudaBackend, String> {
    static BACKEND: OnceLock<Result<CudaBackend, String>> = OnceLock::new();
    BACKEND.get_or_init(|| gpu::open(CudaOptions::default())).as_ref().map_err(Clone::clone)
}

/// Numbers that look random (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    /// About normal, of deviation 1.
    fn normal(&mut self) -> f32 {
        let uniform = |random: &mut Random| (random.next() >> 40) as f32 / (1_u32 << 24) as f32 - 0.5;
        (0..12).map(|_| uniform(self)).sum()
    }
}

/// The logit of a token in a distribution.
fn logit(shape: usize, token: usize, vocabulary: usize, random: &mut Random) -> f32 {
    let normal = random.normal();
    match shape {
        0 => normal * 2.5,
        1 => normal * 0.02,
        // Ties in numbers.
        2 => (normal * 4.0).round() / 2.0,
        3 => 1.5,
        4 => token as f32 / vocabulary as f32 * 20.0,
        5 => -(token as f32) / 100.0,
        6 => normal + 100.0,
        7 => normal * 1e4,
        8 if token == vocabulary - 1 => f32::MAX,
        9 if token == vocabulary / 2 => f32::MIN,
        _ if token == 0 => -0.0,
        _ => normal.round() * 0.25,
    }
}

/// A session whose logits are, by row, one of the distributions: the product of a matrix with rows that are one number
/// and zeros.
fn session(backend: &CudaBackend, vocabulary: usize) -> Box<dyn Session> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let numbers: Vec<f32> = (0..vocabulary * SHAPES)
        .map(|index| logit(index % SHAPES, index / SHAPES, vocabulary, &mut random))
        .collect();
    let mut source = MemorySource::default();
    source.add("shapes", &[vocabulary, SHAPES], Format::F32, &numbers);
    let mut builder = ProgramBuilder::new("sampling", 64);
    let input = builder.value("input", SHAPES, ValueRole::Activation);
    let weight = builder.matrix("shapes", vec![WeightPart::whole("shapes", vocabulary)], SHAPES);
    let out = builder.value("logits", vocabulary, ValueRole::Logits);
    builder.step("logits", Op::Logits(Logits { input, weight, out }));
    let plan = Plan::resolve(builder.finish(), Preset::F32.into(), backend).expect("supported");
    let limits =
        Limits { rows: ROWS, outputs: ROWS, sequences: ROWS, pages: ROWS, page_size: 16, context: 64 };
    let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
    backend.prepare(plan, &source, &options, &NoProgress).expect("ready")
}

/// Runs a batch with the distributions multiplied by `scale`, the last two rows by another.
fn run(session: &mut dyn Session, scale: f32) {
    let mut input = vec![0.0; ROWS * SHAPES];
    for row in 0..ROWS {
        let own = if row < SHAPES { scale } else { -0.25 * scale };
        input[row * SHAPES + row % SHAPES] = own;
    }
    let value = session.plan().program.steps[0].op.inputs()[0];
    session.write(value, &input).expect("representable");
    let sequences: Vec<SequenceRows<'_>> =
        (0..ROWS).map(|row| SequenceRows { rows: row..row + 1, block_table: &[], rope_set: 0 }).collect();
    let outputs: Vec<u32> = (0..ROWS as u32).collect();
    let batch = Batch { tokens: &[0; ROWS], positions: &[0; ROWS], sequences: &sequences, outputs: &outputs };
    session.run(&batch).expect("a run");
}

/// Everything that was found, in bits.
fn bits(reduced: &Reduced) -> (usize, Vec<u64>) {
    let mut bits = Vec::new();
    if reduced.not_finite == 0 {
        bits.extend([u64::from(reduced.largest.to_bits()), reduced.sum.to_bits()]);
        bits.extend(reduced.unpenalised.iter().map(|logit| u64::from(logit.to_bits())));
        bits.extend(reduced.chosen.map(|key| key.0));
    }
    (reduced.not_finite, bits)
}

fn assert_reduced(session: &mut dyn Session, requests: &[Request<'_>]) {
    let mut reduced = Vec::new();
    session.reduce(requests, &mut reduced).expect("reduced");
    let logits = session.logits().expect("logits").to_vec();
    let width = logits.len() / ROWS;
    let mut wanted = Reduced::default();
    for (row, (request, got)) in requests.iter().zip(&reduced).enumerate() {
        reduction::reduce(&logits[row * width..][..width], request, &mut wanted);
        assert_eq!(bits(got), bits(&wanted), "row {row} of {width}: {:?}", request.wish);
    }
}

/// Wishes of all kinds, among them some that kernels have no room for.
fn wishes(random: &mut Random) -> Vec<Wish> {
    let mut wishes = vec![Wish::Best];
    let mut uniforms = [0.0, 0.999_999_999, 0.5].into_iter().cycle();
    let mut uniform = || uniforms.next().unwrap_or_default() * (0.9 + random.below(1000) as f64 / 10_000.0);
    for count in [1, 2, 20, 256, 1024, 2048, 2049] {
        for (top_p, whole, min_p) in [
            (1.0, Whole::Ranked, 0.0),
            (0.9, Whole::Ranked, 0.0),
            (0.8, Whole::Ranked, 0.1),
            (0.0, Whole::All, 0.0),
            (0.5, Whole::All, 0.0),
            (0.95, Whole::All, 0.05),
        ] {
            for temperature in [0.01, 0.7, 2.0] {
                let uniform = uniform();
                wishes.push(Wish::DrawFromBest(Cuts { count, temperature, top_p, whole, min_p, uniform }));
            }
        }
    }
    for (temperature, floor) in [(1.0, 0.0), (0.7, 0.0), (1e-40, 0.0), (0.01, 0.0), (3.0, 0.05), (1.0, 1.0)] {
        for _ in 0..3 {
            wishes.push(Wish::Draw { temperature, floor, uniform: uniform() });
        }
    }
    wishes
}

/// Vocabularies of one chunk and of many, with and without a remainder; the last but one is that of Qwen2.5, the last is
/// longer than kernels take.
const VOCABULARIES: [usize; 5] = [7, 1001, 5000, 151_936, 262_145];

#[test]
fn rows_are_reduced_on_the_device_as_on_the_host() {
    let Some(backend) = or_skip(backend()) else { return };
    let mut random = Random(1);
    for vocabulary in VOCABULARIES {
        let mut session = session(backend, vocabulary);
        run(session.as_mut(), 1.0);
        let all = wishes(&mut random);
        for first in (0..all.len()).step_by(3) {
            let plain = |row: usize| Request { penalties: None, wish: all[(first + row) % all.len()] };
            assert_reduced(session.as_mut(), &(0..ROWS).map(plain).collect::<Vec<_>>());
        }
        for wish in all.into_iter().step_by(5) {
            assert_reduced(session.as_mut(), &[Request { penalties: None, wish }; ROWS]);
        }
    }
}

#[test]
fn penalties_are_applied_on_the_device_and_taken_back() {
    let Some(backend) = or_skip(backend()) else { return };
    let mut random = Random(2);
    for vocabulary in VOCABULARIES {
        let mut session = session(backend, vocabulary);
        run(session.as_mut(), 1.0);
        let before = session.logits().expect("logits").to_vec();
        for (index, wish) in wishes(&mut random).into_iter().enumerate().step_by(3) {
            let lengths = [0, 1, 7, 300, 9000];
            let seen: Vec<Vec<Seen>> = (0..ROWS)
                .map(|row| {
                    let mut seen: Vec<Seen> = (0..lengths[(row + index) % lengths.len()])
                        .map(|_| Seen {
                            token: random.below(vocabulary) as u32,
                            generated: random.below(4) as u32,
                        })
                        .collect();
                    seen.sort_by_key(|seen| seen.token);
                    seen.dedup_by_key(|seen| seen.token);
                    seen
                })
                .collect();
            let strength = [(1.1, 0.0, 0.0), (1.0, 0.5, 0.25), (3.0, -2.0, 2.0)][index / 3 % 3];
            let request = |row: usize| {
                let (repetition, frequency, presence) = strength;
                let penalties = Penalties { repetition, frequency, presence, seen: &seen[row] };
                Request { penalties: (row % 4 != 3).then_some(penalties), wish }
            };
            // Anew, so that the logits are fetched after they were reduced.
            run(session.as_mut(), 1.0);
            assert_reduced(session.as_mut(), &(0..ROWS).map(request).collect::<Vec<_>>());
            assert_eq!(session.logits().expect("logits"), before);
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_its_row_alone() {
    let Some(backend) = or_skip(backend()) else { return };
    let mut random = Random(3);
    for vocabulary in VOCABULARIES {
        let mut session = session(backend, vocabulary);
        // The largest and the smallest number overflow; a row of infinities times zero is one of NaN.
        for scale in [4.0, f32::INFINITY] {
            run(session.as_mut(), scale);
            for wish in wishes(&mut random).into_iter().step_by(7) {
                assert_reduced(session.as_mut(), &[Request { penalties: None, wish }; ROWS]);
            }
        }
    }
}

#[test]
fn there_is_one_request_for_each_row() {
    let Some(backend) = or_skip(backend()) else { return };
    let mut session = session(backend, 100);
    run(session.as_mut(), 1.0);
    let request = Request { penalties: None, wish: Wish::Best };
    let error = session.reduce(&[request; ROWS - 1], &mut Vec::new());
    assert_eq!(error, Err(RunError::Reductions { got: ROWS - 1, rows: ROWS }));
}

fn parameters() -> Vec<SamplingParams> {
    let base = SamplingParams::default();
    let greedy = SamplingParams::greedy();
    let qwen = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.8, repetition_penalty: 1.1, ..base };
    vec![
        greedy,
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.5, ..greedy },
        base,
        SamplingParams { temperature: 0.6, min_p: 0.05, ..base },
        SamplingParams { temperature: 0.8, presence_penalty: 1.5, penalty_window: Some(5), ..base },
        SamplingParams { top_k: 50, ..base },
        SamplingParams { top_k: 5000, top_p: 0.9, ..base },
        SamplingParams { temperature: 0.5, top_p: 0.9, ..base },
        SamplingParams { temperature: 2.0, top_p: 0.999, min_p: 0.01, ..base },
        SamplingParams { top_p: 0.95, frequency_penalty: -1.0, ..base },
        qwen,
    ]
}

/// Tokens of all rows, ten for each, chosen with every kind of parameters side by side.
#[test]
fn the_same_tokens_are_chosen() {
    let Some(backend) = or_skip(backend()) else { return };
    for vocabulary in [1001, 151_936] {
        let mut session = session(backend, vocabulary);
        let parameters = parameters();
        for offset in 0..parameters.len() {
            let sampler = |row: usize| {
                let params = parameters[(row + offset) % parameters.len()];
                Sampler::new(params, (row * 31 + offset) as u64).expect("valid parameters")
            };
            let mut on_host: Vec<Sampler> = (0..ROWS).map(sampler).collect();
            let mut on_device = on_host.clone();
            let mut generated = vec![Vec::new(); ROWS];
            let mut reduced = Vec::new();
            for step in 0..5 {
                run(session.as_mut(), 0.5 + step as f32 / 8.0);
                for (row, sampler) in on_device.iter_mut().enumerate() {
                    let history = History { prompt: &[1, 2, 3], generated: &generated[row] };
                    sampler.prepare(history, vocabulary).expect("valid tokens");
                }
                let requests: Vec<Request<'_>> = on_device.iter().map(Sampler::request).collect();
                session.reduce(&requests, &mut reduced).expect("reduced");
                let logits = session.logits().expect("logits");
                for row in 0..ROWS {
                    let logits = &logits[row * vocabulary..][..vocabulary];
                    let history = History { prompt: &[1, 2, 3], generated: &generated[row] };
                    let wanted = on_host[row].sample(logits, history).expect("a token");
                    let got = match on_device[row].choose(&reduced[row]) {
                        Some(sampled) => sampled,
                        None => on_device[row].sample(logits, history).expect("a token"),
                    };
                    assert_eq!(got, wanted, "row {row} of {vocabulary}, {:?}", on_host[row].params());
                    generated[row].push(got.token);
                }
            }
        }
    }
}
