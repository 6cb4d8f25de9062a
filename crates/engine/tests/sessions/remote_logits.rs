//! The engine over sessions that keep their logits to themselves: tokens are those of samplers that see whole rows, and
//! rows are fetched only where a request does not suffice.

use std::path::Path;

use mantissa_engine::sampling::{History, Sampler, SamplingParams};
use mantissa_engine::{EndOfText, Engine, EngineOptions, Request};
use mantissa_model::arch;
use mantissa_model::checkpoint::Checkpoint;
use mantissa_numerics::policy::Preset;
use mantissa_ops::Plan;
use mantissa_ops::backend::NoProgress;

use crate::watched::{Ahead, Asked, Watched};

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

/// The tokens and log-probabilities of a run, and what it asked of its session.
fn generate(sampling: SamplingParams) -> (Vec<(u32, f32)>, Asked) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen2");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let backend = Watched::new(Ahead::Never);
    let program = arch::program(checkpoint.config()).unwrap();
    let plan = Plan::resolve(program, Preset::F32.into(), &backend).unwrap();
    let options = EngineOptions { chunk: Some(4), ..EngineOptions::default() };
    let mut engine = Engine::prepare(plan, &checkpoint, &backend, &options, &NoProgress).unwrap();
    let request = Request {
        prompt: PROMPT.to_vec(),
        max_tokens: 24,
        sampling,
        fallback_seed: 11,
        end_of_text_ids: Vec::new(),
        end_of_text: EndOfText::Ignore,
    };
    engine.add(request).unwrap();
    let mut tokens = Vec::new();
    while !engine.is_idle() {
        tokens.extend(engine.step().unwrap().iter().map(|event| (event.token, event.logprob)));
    }
    (tokens, backend.take())
}

/// The same by a sampler that sees every row.
fn sample(sampling: SamplingParams, rows: &[Vec<f32>]) -> Vec<(u32, f32)> {
    let mut sampler = Sampler::new(sampling, 11).unwrap();
    let (mut generated, mut tokens) = (Vec::new(), Vec::new());
    for row in rows {
        let sampled = sampler.sample(row, History { prompt: &PROMPT, generated: &generated }).unwrap();
        generated.push(sampled.token);
        tokens.push((sampled.token, sampled.logprob));
    }
    tokens
}

#[test]
fn tokens_are_those_of_samplers_that_see_whole_rows() {
    let mut different = std::collections::BTreeSet::new();
    for temperature in [0.0, 0.3, 1.0, 3.0] {
        for (top_k, top_p, min_p) in
            [(0, 1.0, 0.0), (20, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.8, 0.1), (0, 1.0, 0.2), (1000, 0.999, 0.0)]
        {
            for (repetition_penalty, frequency_penalty, penalty_window) in
                [(1.0, 0.0, None), (1.3, 0.0, None), (1.0, 1.5, Some(6)), (0.5, -0.5, None)]
            {
                let sampling = SamplingParams {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repetition_penalty,
                    frequency_penalty,
                    penalty_window,
                    ..SamplingParams::default()
                };
                let (tokens, asked) = generate(sampling);
                assert_eq!(tokens.len(), 24);
                assert_eq!(tokens, sample(sampling, &asked.reduced), "{sampling:?}");
                assert_eq!(asked.fetched, 0, "{sampling:?}");
                different.insert(tokens.iter().map(|(token, _)| *token).collect::<Vec<_>>());
            }
        }
    }
    // The parameters are not all without effect.
    assert!(different.len() > 40, "{} different texts", different.len());
}
