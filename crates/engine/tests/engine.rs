//! Sequences through the engine on fixture models: batches, chunks, contexts and what is refused.

use std::collections::BTreeMap;
use std::path::Path;

use mantissa_cpu::{CpuBackend, CpuOptions};
use mantissa_engine::sampling::SamplingParams;
use mantissa_engine::{
    EndOfText, Engine, EngineError, EngineOptions, FinishReason, Hidden, Request, SequenceId,
};
use mantissa_model::arch;
use mantissa_model::checkpoint::Checkpoint;
use mantissa_numerics::policy::PrecisionPolicy;
use mantissa_ops::Plan;
use mantissa_ops::backend::NoProgress;

fn engine(model: &str, policy: &str, options: EngineOptions) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(model);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let policy: PrecisionPolicy = policy.parse().unwrap();
    let plan = Plan::resolve(arch::program(checkpoint.config()).unwrap(), policy, &backend).unwrap();
    Engine::prepare(plan, &checkpoint, &backend, &options, &NoProgress).unwrap()
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: SamplingParams::greedy(),
        fallback_seed: 0,
        end_of_text_ids: Vec::new(),
        end_of_text: EndOfText::Stop,
    }
}

/// Runs until nothing is left; tokens and reasons by sequence.
fn drain(engine: &mut Engine) -> BTreeMap<SequenceId, (Vec<u32>, Option<FinishReason>)> {
    let mut done: BTreeMap<SequenceId, (Vec<u32>, Option<FinishReason>)> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let entry = done.entry(event.sequence).or_default();
            entry.0.push(event.token);
            entry.1 = event.finish;
        }
    }
    done
}

fn alone(model: &str, policy: &str, prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut engine = engine(model, policy, EngineOptions::default());
    let id = engine.add(request(prompt, max_tokens)).unwrap();
    drain(&mut engine).remove(&id).unwrap().0
}

fn prompt(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 37 + seed * 11 + 5) % 199).collect()
}

#[test]
fn sequences_of_different_lengths_run_together_as_they_do_alone() {
    let prompts = [prompt(3, 1), prompt(41, 2), prompt(1, 3), prompt(17, 4)];
    // A chunk smaller than the prompts: prefill of one overlaps decode of another.
    let options = EngineOptions { sequences: 4, chunk: Some(16), page_size: 16, ..EngineOptions::default() };
    for policy in ["bf16", "f16,kv_cache=f8e4m3"] {
        let mut engine = engine("mistral", policy, options);
        let ids: Vec<SequenceId> = prompts.iter().map(|p| engine.add(request(p, 12)).unwrap()).collect();
        let done = drain(&mut engine);
        for (id, prompt) in ids.iter().zip(&prompts) {
            assert_eq!(
                done[id],
                (alone("mistral", policy, prompt, 12), Some(FinishReason::Length)),
                "{policy}"
            );
        }
    }
}

#[test]
fn a_sequence_can_join_and_leave_while_others_run() {
    let options = EngineOptions { sequences: 2, chunk: Some(8), page_size: 16, ..EngineOptions::default() };
    let mut engine = engine("qwen2", "f32", options);
    let first = engine.add(request(&prompt(20, 1), 30)).unwrap();
    for _ in 0..5 {
        engine.step().unwrap();
    }
    let second = engine.add(request(&prompt(9, 2), 10)).unwrap();
    for _ in 0..4 {
        engine.step().unwrap();
    }
    engine.cancel(first).unwrap();
    let done = drain(&mut engine);
    let tail = alone("qwen2", "f32", &prompt(9, 2), 10);
    assert!(tail.ends_with(&done[&second].0), "{done:?} is no end of {tail:?}");
    assert!(!done.contains_key(&first));
    // Every page has come back: a sequence as long as the cache allows fits again.
    let third = engine.add(request(&prompt(20, 1), 30)).unwrap();
    assert_eq!(drain(&mut engine)[&third].0, alone("qwen2", "f32", &prompt(20, 1), 30));
}

#[test]
fn chunks_and_pages_do_not_change_a_bit() {
    let tokens = prompt(61, 5);
    let whole = EngineOptions { outputs: 512, ..EngineOptions::default() };
    let cut = EngineOptions { chunk: Some(7), page_size: 16, outputs: 7, ..EngineOptions::default() };
    for (model, policy) in [("llama", "bf16"), ("mistral", "memory-efficient"), ("qwen3", "f32")] {
        let one = engine(model, policy, whole).score(&tokens, Hidden::Keep).unwrap();
        let many = engine(model, policy, cut).score(&tokens, Hidden::Keep).unwrap();
        assert_eq!(one, many, "{model} {policy}");
        assert!(one.logits.iter().any(|logit| *logit != 0.0));
    }
}

#[test]
fn some_positions_have_the_logits_that_they_have_among_all() {
    let tokens = prompt(61, 5);
    for (chunk, outputs) in [(512, 512), (16, 16), (16, 3), (7, 1)] {
        let options = EngineOptions {
            chunk: Some(chunk),
            outputs,
            page_size: 16,
            context: Some(64),
            ..Default::default()
        };
        let mut engine = engine("qwen2", "bf16,kv_cache=f8e4m3", options);
        let all = engine.score(&tokens, Hidden::Skip).unwrap().logits;
        let width = engine.vocabulary();
        // More often than the cache has room for: every run frees its pages, those that are given up, too.
        for wanted in [30..60, 0..5, 60..61, 59..99, 20..20, 0..61] {
            let last = wanted.end.min(61);
            let mut scoring = engine.scoring(&tokens, wanted.clone()).unwrap();
            let mut next = wanted.start;
            while let Some(rows) = scoring.next_rows().unwrap() {
                assert_eq!(rows.positions.start, next);
                next = rows.positions.end;
                assert_eq!(rows.logits, &all[rows.positions.start * width..next * width]);
            }
            assert_eq!(next, last.max(wanted.start));
            drop(scoring);
            engine.scoring(&tokens, wanted).unwrap().next_rows().unwrap();
        }
        assert!(engine.scoring(&[], 0..1).is_err());
    }
}

#[test]
fn an_end_of_text_token_and_a_full_context_end_a_sequence() {
    let free = alone("qwen2", "f32", &prompt(5, 1), 6);
    let mut stopping = engine("qwen2", "f32", EngineOptions::default());
    let id = stopping.add(Request { end_of_text_ids: vec![free[3]], ..request(&prompt(5, 1), 6) }).unwrap();
    let first = free.iter().position(|token| *token == free[3]).unwrap();
    assert_eq!(drain(&mut stopping)[&id], (free[..=first].to_vec(), Some(FinishReason::Stop)));

    let options = EngineOptions { context: Some(9), page_size: 16, ..EngineOptions::default() };
    let mut short = engine("qwen2", "f32", options);
    let id = short.add(request(&prompt(5, 1), 100)).unwrap();
    assert_eq!(drain(&mut short)[&id], (free[..4].to_vec(), Some(FinishReason::Context)));
}

#[test]
fn unusable_requests_are_refused() {
    let options = EngineOptions { context: Some(20), ..EngineOptions::default() };
    let mut engine = engine("qwen2", "f32", options);
    assert!(matches!(engine.add(request(&[], 1)), Err(EngineError::EmptyPrompt)));
    let error = engine.add(request(&prompt(20, 1), 1)).unwrap_err().to_string();
    assert!(error.contains("20 tokens, but the context holds 20"), "{error}");
    let error = engine.add(request(&[1, 2, 384], 1)).unwrap_err().to_string();
    assert_eq!(error, "token 384 at position 2 is outside the vocabulary of 384");
    engine.add(request(&[1], 1)).unwrap();
    assert!(matches!(engine.add(request(&[1], 1)), Err(EngineError::Sequences { wanted: 2, limit: 1 })));
}

#[test]
fn values_that_overflow_name_their_step() {
    let mut engine = engine("llama_bf16_range", "f16", EngineOptions::default());
    engine.add(request(&[3, 1, 4, 1, 5, 9, 2, 6], 4)).unwrap();
    let Err(EngineError::NonFinite(found)) = engine.step() else {
        panic!("f16 cannot hold this model's residual stream");
    };
    assert_eq!(found.step(), Some("layers.1.ffn"));
}
