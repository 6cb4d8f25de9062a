//! How times become rows.

use mantissa::ops::{Grain, Plan, Scope, Trace};
use mantissa_lab::ceiling::Limit;
use mantissa_lab::profile::{By, PhaseKind, Profile, Summary, Workload};

use crate::session::{Idle, MULTIPLY, READ, SMALL, by_step, plan};

const WORKLOAD: Workload = Workload { prompt: 70, generate: 3, sequences: 1 };

fn decode(profile: &Profile, by: By) -> Summary {
    let phase = profile.phases.iter().find(|phase| phase.kind == PhaseKind::Decode).unwrap();
    profile.summary(phase, by).unwrap()
}

fn near(left: f64, right: f64) -> bool {
    (left - right).abs() <= 1e-9 * left.abs().max(right.abs()).max(1e-6)
}

#[test]
fn an_operation_is_the_same_step_of_all_layers() {
    let plan = plan(SMALL, "bf16");
    let profile = Idle::new(&plan, &WORKLOAD, by_step).profile(WORKLOAD);
    let summary = decode(&profile, By::Operation);
    let mut names: Vec<&str> = summary.rows.iter().map(|row| row.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "attention",
            "attention_norm",
            "attention_output",
            "embedding",
            "ffn",
            "ffn_norm",
            "final_norm",
            "logits",
            "qkv"
        ]
    );
    let ffn = summary.rows.iter().find(|row| row.name == "ffn").unwrap();
    // Steps 6 and 12 of three tokens.
    assert_eq!(ffn.calls, 6);
    assert!(near(ffn.seconds.mean, 3.0 * (1.6 + 2.2) * 1e-6), "{:?}", ffn.seconds);
    assert!(ffn.label.flags.contains(&"residual".to_owned()), "{:?}", ffn.label);
    let cost = ffn.cost.unwrap();
    let bound = ffn.bound.unwrap();
    assert_eq!(bound.limit, Limit::Memory);
    assert!(near(bound.share, cost.bytes() as f64 / READ / ffn.seconds.mean), "{bound:?}");
    assert!(cost.operations as f64 / MULTIPLY < cost.bytes() as f64 / READ);
    assert_eq!(decode(&profile, By::Step).rows.len(), plan.steps.len());
}

#[test]
fn parts_add_up_to_the_whole() {
    /// Steps with as much time between them as they take.
    fn with_gaps(plan: &Plan, rows: usize, grain: Grain) -> Trace {
        let trace = by_step(plan, rows, grain);
        let scopes =
            trace.scopes.into_iter().map(|scope| Scope { start: 2.0 * scope.start, ..scope }).collect();
        Trace { scopes, seconds: 2.0 * trace.seconds, clock: 1e-8 }
    }
    let plan = plan(SMALL, "bf16");
    let profile = Idle::new(&plan, &WORKLOAD, with_gaps).profile(WORKLOAD);
    for by in [By::Operation, By::Step, By::Kernel] {
        let summary = decode(&profile, by);
        let parts: f64 = summary.rows.iter().map(|row| row.seconds.mean).sum();
        assert!(near(parts, summary.between.mean), "{parts} {:?}", summary.between);
        assert!(near(parts + summary.between.mean + summary.sampling.mean, summary.traced.mean));
        let shares: f64 = summary.rows.iter().map(|row| row.share).sum();
        assert!(near(shares, parts / summary.traced.mean));
    }
    let summary = decode(&profile, By::Step);
    assert!(near(summary.clock, 1e-8 * 3.0 * plan.steps.len() as f64));
    assert!(summary.launches.is_empty() && summary.launched.is_none());
}

#[test]
fn what_is_launched_as_one_has_rows_of_its_own() {
    /// One kernel for all steps, or two kernels for each and a copy before them.
    fn as_a_gpu(plan: &Plan, rows: usize, grain: Grain) -> Trace {
        let steps = by_step(plan, rows, grain);
        if grain == Grain::Launch {
            let scope = Scope { step: None, kernel: "token".to_owned(), start: 0.0, seconds: 5e-6 };
            return Trace { scopes: vec![scope], seconds: 5e-6, clock: 1e-9 };
        }
        let copy = Scope { step: None, kernel: "copy".to_owned(), start: 0.0, seconds: 1e-6 };
        let halves = steps.scopes.into_iter().flat_map(|scope| {
            let half = scope.seconds / 2.0;
            let first = Scope { seconds: half, ..scope.clone() };
            let second =
                Scope { seconds: half, start: scope.start + half, kernel: "second".to_owned(), ..scope };
            [first, second]
        });
        Trace {
            scopes: std::iter::once(copy).chain(halves).collect(),
            seconds: steps.seconds + 1e-6,
            clock: 1e-9,
        }
    }
    let plan = plan(SMALL, "bf16");
    let profile = Idle::new(&plan, &WORKLOAD, as_a_gpu).profile(WORKLOAD);
    let summary = decode(&profile, By::Operation);
    assert_eq!(summary.launches.len(), 1);
    assert_eq!((summary.launches[0].name.as_str(), summary.launches[0].calls), ("token", 3));
    assert!(near(summary.launches[0].seconds.mean, 15e-6));
    let copy = summary.rows.iter().find(|row| row.name == "copy").unwrap();
    assert_eq!((copy.calls, copy.cost), (3, None));
    // Both kernels of a step are one row, which has its cost once.
    let qkv = summary.rows.iter().find(|row| row.name == "qkv").unwrap();
    assert_eq!(qkv.calls, 12);
    assert!(qkv.label.kernel.ends_with(" + second"), "{}", qkv.label.kernel);
    let whole = Idle::new(&plan, &WORKLOAD, by_step).profile(WORKLOAD);
    let same = decode(&whole, By::Operation).rows.into_iter().find(|row| row.name == "qkv").unwrap();
    assert_eq!(qkv.cost, same.cost);
    // A kernel that computes half a step has no cost of its own.
    assert!(decode(&profile, By::Kernel).rows.iter().all(|row| row.cost.is_none()));
    assert_eq!(summary.cost, decode(&whole, By::Operation).cost);
}
