//! The engine over sessions that start the next run by themselves: the same tokens come, in fewer runs that the engine asks
//! for.

use std::collections::BTreeMap;
use std::path::Path;

use mantissa_cpu::{CpuBackend, CpuOptions};
use mantissa_engine::sampling::SamplingParams;
use mantissa_engine::{EndOfText, Engine, EngineOptions, Request, SequenceId, TokenEvent};
use mantissa_model::arch;
use mantissa_model::checkpoint::Checkpoint;
use mantissa_numerics::policy::Preset;
use mantissa_ops::Plan;
use mantissa_ops::backend::{Backend, NoProgress};

use crate::watched::{Ahead, Watched};

fn prepare(backend: &dyn Backend) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen2");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan =
        Plan::resolve(arch::program(checkpoint.config()).unwrap(), Preset::F32.into(), backend).unwrap();
    let options = EngineOptions { chunk: Some(4), sequences: 12, ..EngineOptions::default() };
    Engine::prepare(plan, &checkpoint, backend, &options, &NoProgress).unwrap()
}

fn request(
    prompt: &[u32],
    max_tokens: usize,
    sampling: SamplingParams,
    end_of_text_ids: Vec<u32>,
) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling,
        fallback_seed: 5,
        end_of_text_ids,
        end_of_text: EndOfText::Stop,
    }
}

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

/// All ways to choose a token.
fn ways() -> Vec<SamplingParams> {
    let base = SamplingParams::default();
    let penalties = SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.5, ..base };
    vec![
        SamplingParams::greedy(),
        SamplingParams { temperature: 0.0, ..penalties },
        base,
        SamplingParams { temperature: 4.0, min_p: 0.01, ..base },
        SamplingParams { top_k: 20, top_p: 0.8, ..penalties },
        SamplingParams { temperature: 2.0, top_p: 0.95, min_p: 0.05, ..base },
    ]
}

/// Tokens and log-probabilities of every sequence, and the steps that they took.
type Life = (BTreeMap<SequenceId, Vec<(u32, f32)>>, usize);

/// A life with sequences that come, end by length and by their text, and are cancelled.
fn live(backend: &dyn Backend, sampling: SamplingParams) -> Life {
    let mut engine = prepare(backend);
    let alone = engine.add(request(&PROMPT, 20, sampling, vec![])).unwrap();
    let (mut events, mut steps): (Vec<TokenEvent>, _) = (Vec::new(), 0);
    let mut step = |engine: &mut Engine| {
        steps += 1;
        events.extend(engine.step().unwrap());
        events.clone()
    };
    let first = (0..6).map(|_| step(&mut engine)).last().unwrap();
    // The third of these tokens ends the second sequence wherever it comes up.
    let end = first.iter().filter(|event| event.sequence == alone).nth(2).unwrap().token;
    engine.add(request(&PROMPT, 20, sampling, vec![end])).unwrap();
    let cancelled =
        engine.add(request(&[7, 7], 50, SamplingParams { temperature: 0.7, ..sampling }, vec![])).unwrap();
    while step(&mut engine).iter().filter(|event| event.sequence == cancelled).count() < 6 {}
    engine.cancel(cancelled).unwrap();
    engine.add(request(&[9, 2, 6, 5, 3, 5, 8, 9, 7], 9, sampling, vec![])).unwrap();
    while !engine.is_idle() {
        step(&mut engine);
    }
    let mut tokens: BTreeMap<SequenceId, Vec<(u32, f32)>> = BTreeMap::new();
    for event in events {
        tokens.entry(event.sequence).or_default().push((event.token, event.logprob));
    }
    (tokens, steps)
}

#[test]
fn the_same_tokens_come() {
    for sampling in ways() {
        let (plain, _) = live(&CpuBackend::new(CpuOptions::default()).unwrap(), sampling);
        for (ahead, fewest) in [(Ahead::Always, 15), (Ahead::Undecided(5), 10), (Ahead::Undecided(1), 3)] {
            let backend = Watched::new(ahead);
            let (tokens, steps) = live(&backend, sampling);
            assert_eq!(tokens, plain, "{sampling:?}");
            let asked = backend.take();
            let text = format!("{} runs ahead, {} not, {steps} steps: {sampling:?}", asked.ahead, asked.runs);
            assert!(asked.ahead > fewest, "{text}");
            // A sequence that ends or is cancelled does not make a run be in vain, and neither does one that comes.
            assert!(asked.runs + asked.ahead == steps || !matches!(ahead, Ahead::Always), "{text}");
        }
    }
}

#[test]
fn the_engine_asks_for_no_run_that_is_under_way() {
    for sampling in ways() {
        let backend = Watched::new(Ahead::Always);
        let mut engine = prepare(&backend);
        engine.add(request(&PROMPT, 16, sampling, vec![])).unwrap();
        let mut tokens = 0;
        while !engine.is_idle() {
            tokens += engine.step().unwrap().len();
        }
        assert_eq!(tokens, 16);
        // One run for the prompt and one for each further token, none of them in vain.
        let asked = backend.take();
        assert_eq!((asked.runs, asked.ahead), (1, 15));
    }
}
