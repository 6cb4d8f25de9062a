//! The bytes that a profile names are those of the model, by a formula of their own.

use mantissa::ops::cost::Cost;
use mantissa_lab::profile::{By, PhaseKind, Profile, Summary, Workload};

use crate::session::{Idle, QWEN, by_step, plan};

fn summary(profile: &Profile, kind: PhaseKind, by: By) -> Summary {
    let phase = profile.phases.iter().find(|phase| phase.kind == kind).unwrap();
    profile.summary(phase, by).unwrap()
}

fn sum(summary: &Summary) -> Cost {
    summary.rows.iter().map(|row| row.cost.expect("a cost")).sum()
}

/// Values of weights that one step of decoding reads: every matrix, bias and norm once, and a row of the embedding for each
/// sequence.
fn weights(sequences: u64) -> u64 {
    let (hidden, intermediate, vocabulary, layers) = (896, 4864, 151_936, 24);
    let (queries, keys) = (14 * 64, 2 * 64);
    let qkv = (queries + 2 * keys) * hidden + (queries + 2 * keys);
    let output = hidden * queries;
    let ffn = 3 * intermediate * hidden;
    let norms = 2 * hidden;
    layers * (qkv + output + ffn + norms) + hidden + vocabulary * hidden + sequences * hidden
}

#[test]
fn the_bytes_of_a_decoded_token_are_those_of_weights_and_cache_exactly() {
    for (policy, bytes, vector) in
        [("bf16", 2, 64 * 2), ("f32", 4, 64 * 4), ("bf16,kv_cache=f8e4m3", 2, 64 + 2)]
    {
        let plan = plan(QWEN, policy);
        let workload = Workload { prompt: 100, generate: 5, sequences: 1 };
        let profile = Idle::new(&plan, &workload, by_step).profile(workload);
        // Keys and values of 2 heads in 24 layers.
        let token = 24 * 2 * 2 * vector;
        let contexts: u64 = (101..=105).sum();
        for by in [By::Operation, By::Step, By::Kernel] {
            let cost = sum(&summary(&profile, PhaseKind::Decode, by));
            assert_eq!(cost.weights, 5 * bytes * weights(1), "{policy} {by:?}");
            assert_eq!(cost.cache_read, contexts * token, "{policy} {by:?}");
            assert_eq!(cost.cache_written, 5 * token, "{policy} {by:?}");
            assert_eq!(cost.bytes() - cost.activations, cost.weights + (contexts + 5) * token);
        }
    }
}

#[test]
fn sequences_that_run_together_share_weights_and_have_caches_of_their_own() {
    let plan = plan(QWEN, "bf16");
    let workload = Workload { prompt: 30, generate: 2, sequences: 3 };
    let profile = Idle::new(&plan, &workload, by_step).profile(workload);
    let cost = sum(&summary(&profile, PhaseKind::Decode, By::Operation));
    let token = 24 * 2 * 2 * 64 * 2;
    assert_eq!(cost.weights, 2 * 2 * weights(3));
    assert_eq!(cost.cache_read, 3 * (31 + 32) * token);
    assert_eq!(cost.cache_written, 3 * 2 * token);
    // 90 rows of prompts go into batches of at most 64, and write every key and value once.
    let prefill = profile.phases.iter().find(|phase| phase.kind == PhaseKind::Prefill).unwrap();
    assert_eq!(prefill.shapes.len(), 2);
    assert_eq!(sum(&summary(&profile, PhaseKind::Prefill, By::Step)).cache_written, 90 * token);
}

#[test]
fn rows_that_are_left_out_cost_nothing() {
    let plan = plan(QWEN, "bf16");
    let workload = Workload { prompt: 50, generate: 1, sequences: 1 };
    let all = Idle::new(&plan, &workload, by_step).profile(workload);
    let mut skipping = Idle::new(&plan, &workload, by_step);
    skipping.skipped = |rows| rows - 1;
    let last = skipping.profile(workload);
    let of = |profile: &Profile| {
        let summary = summary(profile, PhaseKind::Prefill, By::Step);
        let ffn = summary.rows.iter().find(|row| row.name == "layers.23.ffn").unwrap().clone();
        (ffn.cost.unwrap().operations, ffn.label.shape, sum(&summary).operations)
    };
    let ((all_ffn, shape, total), (last_ffn, last_shape, last_total)) = (of(&all), of(&last));
    assert_eq!(all_ffn, 50 * last_ffn);
    assert!(shape.starts_with("[50, 896]") && last_shape.starts_with("[1, 896]"), "{shape}, {last_shape}");
    assert!(last_total < total);
}
