//! What is promised of the policies, and whether it was kept.

use mantissa::numerics::Preset;
use serde::Serialize;

use super::tables::{bytes, count, seconds};
use super::{AtContext, Found, UnderPolicy};
use crate::parity::WHOLE_MODEL;

/// Tokens behind a prompt, in what is compared from end to end.
const BEHIND: usize = 128;
/// How many times as fast as f32 the 16-bit policies are to be.
const FASTER: (f64, f64) = (1.4, 1.8);
/// How much less memory is to be held, as a share.
const LESS: (f64, f64) = (0.4, 0.5);
/// Tokens from which on a context is a long one.
const LONG: usize = 8192;
/// Of the bytes that f32 moves, how many may be moved.
const MOVED: f64 = 0.5;

/// A promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// What it is about.
    pub what: String,
    /// What is promised.
    pub wanted: String,
    /// What was found, in plain words.
    pub found: String,
    /// Whether it was kept.
    pub verdict: Verdict,
}

/// Whether a promise was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was.
    Met,
    /// It was not.
    Missed,
    /// It could not be found out.
    Unknown,
}

impl Verdict {
    /// In a word or two.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::Unknown => "not measured",
        }
    }

    fn of(kept: bool) -> Verdict {
        if kept { Verdict::Met } else { Verdict::Missed }
    }
}

/// Holds policies against what is promised of them.
pub(super) fn judge(policies: &[UnderPolicy]) -> Vec<Target> {
    let pairs = |pairs: &[(Preset, Preset)]| -> Vec<Pair<'_>> {
        let find = |preset: Preset| policies.iter().find(|policy| policy.name == preset.name());
        let pair = |&(one, other): &(Preset, Preset)| Some(Pair { one: find(one)?, other: find(other)? });
        pairs.iter().filter_map(pair).collect()
    };
    let sixteen = [(Preset::F16, Preset::F32), (Preset::Bf16, Preset::F32)];
    let smaller = [
        sixteen[0],
        sixteen[1],
        (Preset::MemoryEfficient, Preset::F32),
        (Preset::MemoryEfficient, Preset::F16),
    ];
    let mut targets = Vec::new();
    for pair in pairs(&sixteen) {
        targets.extend(pair.speed());
    }
    targets.extend(pairs(&smaller).iter().map(Pair::memory));
    targets.extend(pairs(&smaller[..3]).iter().map(Pair::moved));
    targets.extend(pairs(&sixteen).iter().map(|pair| error(pair.one)));
    targets
}

/// The error of a whole model.
fn error(policy: &UnderPolicy) -> Target {
    let (found, verdict) = match &policy.error {
        Found::Missing(_) => ("it could not be measured".to_owned(), Verdict::Unknown),
        Found::Measured(comparison) => {
            let error = comparison.logits.relative_error;
            let found = format!("{error:.1e} over {} tokens", comparison.tokens);
            (found, Verdict::of(error < WHOLE_MODEL))
        }
    };
    Target {
        what: format!("relative error of the logits of {} against the f64 reference", policy.name),
        wanted: format!("below {WHOLE_MODEL}"),
        found,
        verdict,
    }
}

/// A policy, and the one that it is held against.
struct Pair<'a> {
    one: &'a UnderPolicy,
    other: &'a UnderPolicy,
}

impl Pair<'_> {
    fn name(&self) -> String {
        format!("{} against {}", self.one.name, self.other.name)
    }

    fn contexts(&self) -> impl DoubleEndedIterator<Item = (&AtContext, &AtContext)> {
        self.one.contexts.iter().zip(&self.other.contexts)
    }

    /// From end to end, at every context at which both were measured.
    fn speed(&self) -> Vec<Target> {
        let target = |context: String, found, verdict| Target {
            what: format!("speed of {}{context}", self.name()),
            wanted: format!("at least {} to {} times", FASTER.0, FASTER.1),
            found,
            verdict,
        };
        let measured = self.contexts().filter_map(|(one, other)| {
            let (one_speed, other_speed) = (one.speed.value()?, other.speed.value()?);
            let (ours, theirs) = (one_speed.seconds(BEHIND), other_speed.seconds(BEHIND));
            let times = theirs / ours;
            let found = format!(
                "{times:.2} times: {} in the place of {} for a prompt of {} tokens and {BEHIND} behind it",
                seconds(ours),
                seconds(theirs),
                count(one_speed.prompt)
            );
            Some(target(format!(", context {}", count(one.context)), found, Verdict::of(times >= FASTER.0)))
        });
        let targets: Vec<Target> = measured.collect();
        if targets.is_empty() {
            vec![target(String::new(), UNMEASURED.to_owned(), Verdict::Unknown)]
        } else {
            targets
        }
    }

    /// At the longest context at which both are known.
    fn memory(&self) -> Target {
        let known = |(one, other): (&AtContext, &AtContext)| {
            Some((one.context, *one.memory.value()?, *other.memory.value()?))
        };
        let (found, verdict) = match self.contexts().rev().find_map(known) {
            None => (UNMEASURED.to_owned(), Verdict::Unknown),
            Some((context, ours, theirs)) => {
                let less = 1.0 - ours.total as f64 / theirs.total as f64;
                let cache = 1.0 - ours.cache as f64 / theirs.cache as f64;
                let found = format!(
                    "{:.1} % less at {} tokens: {} in the place of {} (the cache alone {:.1} % less)",
                    100.0 * less,
                    count(context),
                    bytes(ours.total),
                    bytes(theirs.total),
                    100.0 * cache
                );
                let verdict = if context < LONG { Verdict::Unknown } else { Verdict::of(less >= LESS.0) };
                (found, verdict)
            }
        };
        Target {
            what: format!("memory of {}", self.name()),
            wanted: format!(
                "{} to {} % less at {} tokens or more",
                100.0 * LESS.0,
                100.0 * LESS.1,
                count(LONG)
            ),
            found,
            verdict,
        }
    }

    /// At the longest context at which both are known.
    fn moved(&self) -> Target {
        let known = |(one, other): (&AtContext, &AtContext)| {
            Some((one.context, *one.bytes.value()?, *other.bytes.value()?))
        };
        let (found, verdict) = match self.contexts().rev().find_map(known) {
            None => (UNMEASURED.to_owned(), Verdict::Unknown),
            Some((context, ours, theirs)) => {
                let ratio = ours.total as f64 / theirs.total as f64;
                let found = format!(
                    "{ratio:.3} of them at {} tokens: {} in the place of {} for each token",
                    count(context),
                    bytes(ours.total),
                    bytes(theirs.total)
                );
                (found, Verdict::of(ratio <= MOVED))
            }
        };
        Target {
            what: format!("bytes moved of {}", self.name()),
            wanted: "half of them".to_owned(),
            found,
            verdict,
        }
    }
}

/// What is said of what could not be found out.
const UNMEASURED: &str = "one of the two could not be measured";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::{Bytes, Memory, Speed};
    use crate::stats::Spread;

    fn exactly(value: f64) -> Spread {
        Spread { median: value, min: value, max: value }
    }

    /// A policy with one long context: seconds of the prompt, tokens in a second behind it, bytes of weights and cache.
    fn policy(preset: Preset, first: f64, decode: f64, weights: u64, cache: u64) -> UnderPolicy {
        let missing = || "not asked for".to_owned();
        let speed = Speed {
            prompt: 30_000,
            rounds: 1,
            first_token: exactly(first),
            prefill: exactly(30_000.0 / first),
            prefill_share: 0.5,
            decode: exactly(decode),
            decode_share: 0.5,
            scratch: 0,
            device_peak: None,
            process_peak: None,
        };
        let total = weights + cache;
        let at = AtContext {
            context: 32_768,
            memory: Found::Measured(Memory { weights, cache, scratch: Some(0), total }),
            bytes: Found::Measured(Bytes { weights, cache, total }),
            speed: Found::Measured(speed),
        };
        UnderPolicy {
            name: preset.name().to_owned(),
            fields: BTreeMap::new(),
            contexts: vec![at],
            error: Found::Missing(missing()),
            predicted: Found::Missing(missing()),
            haiku: Found::Missing(missing()),
            operations: Found::Missing(missing()),
        }
    }

    fn verdicts(targets: &[Target], about: &str) -> Vec<Verdict> {
        let about = targets.iter().filter(|target| target.what.contains(about));
        about.map(|target| target.verdict).collect()
    }

    #[test]
    fn promises_are_kept_or_not() {
        // From end to end f32 takes 10 s + 127 / 12.7 s = 20 s.
        let policies = [
            policy(Preset::F32, 10.0, 12.7, 1000, 1000),
            policy(Preset::F16, 7.0, 12.7, 500, 500),
            policy(Preset::Bf16, 5.0, 25.4, 500, 501),
            policy(Preset::MemoryEfficient, 5.0, 25.4, 500, 258),
        ];
        let targets = judge(&policies);
        assert_eq!(verdicts(&targets, "speed of"), [Verdict::Missed, Verdict::Met]);
        assert!(targets[0].found.starts_with("1.18 times: 17.00 s in the place of 20.00 s"), "{targets:?}");
        assert!(targets[1].found.starts_with("2.00 times"), "{targets:?}");
        // The last one holds 24 % less than f16, though its cache holds half.
        assert_eq!(
            verdicts(&targets, "memory of"),
            [Verdict::Met, Verdict::Met, Verdict::Met, Verdict::Missed]
        );
        assert_eq!(verdicts(&targets, "bytes moved"), [Verdict::Met, Verdict::Missed, Verdict::Met]);
        assert_eq!(verdicts(&targets, "relative error"), [Verdict::Unknown; 2]);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let mut policies = [policy(Preset::F32, 1.0, 1.0, 10, 10), policy(Preset::F16, 0.5, 2.0, 5, 5)];
        policies[0].contexts[0] = AtContext {
            context: 32_768,
            memory: Found::Missing("too large".to_owned()),
            bytes: Found::Missing("too large".to_owned()),
            speed: Found::Missing("too slow".to_owned()),
        };
        assert!(judge(&policies).iter().all(|target| target.verdict == Verdict::Unknown));
        // Half of the memory says nothing about long contexts where the context is short.
        let mut policies = [policy(Preset::F32, 1.0, 1.0, 10, 10), policy(Preset::F16, 0.5, 2.0, 5, 5)];
        policies.iter_mut().for_each(|policy| policy.contexts[0].context = 512);
        assert_eq!(verdicts(&judge(&policies), "memory of"), [Verdict::Unknown]);
        assert!(judge(&policies[1..]).is_empty());
    }
}
