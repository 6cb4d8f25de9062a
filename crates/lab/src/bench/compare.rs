//! Two files of measurements against each other: what became slower, beyond noise?
//!
//! A test is slower where its repetitions are, both by the clock and as a share of the ceilings that were measured around
//! each of them: a machine that was itself slower at the time moves the one and not the other. Of the two shifts the smaller
//! is held against the noise, and that is the largest of three: how far repetitions of the test lie apart, how far those of
//! a usual test of the file do, and how far the shifts of all tests of a group lie apart, where most of them have not
//! changed. Student's distribution then says how probable such a shift is by chance, raised for the number of tests (Holm),
//! and the test of Mann and Whitney, which knows nothing of distributions, has to agree.
//!
//! The geometric mean of a group's tests in each round is one more test: what slows all of them a little shows there first.

use std::collections::BTreeMap;
use std::fmt;

use super::record::Record;
use super::statistics::{holm, mann_whitney, shift, student_above, student_quantile};
use crate::LabError;
use crate::stats::Spread;

/// Tests from which on the spread of their shifts says something.
const FEW: usize = 5;
/// What turns a median of absolute deviations into a standard deviation, for normal noise.
const MAD_TO_DEVIATION: f64 = 1.4826;

/// What belongs together: one kind of test, one policy, one set of kernels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// As [`Record::benchmark`].
    pub benchmark: String,
    /// As [`Record::model`].
    pub model: String,
    /// As [`Record::policy`].
    pub policy: String,
    /// As [`Record::variant`].
    pub variant: String,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.benchmark, &self.model, &self.policy, &self.variant];
        let parts: Vec<&str> =
            parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        f.pad(&parts.join(", "))
    }
}

/// What a difference amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Slower, beyond noise.
    Slower,
    /// Faster, beyond noise.
    Faster,
    /// No more than noise.
    Noise,
}

impl Verdict {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Slower => "slower",
            Verdict::Faster => "faster",
            Verdict::Noise => "noise",
        }
    }
}

/// A test in both files.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Where it belongs.
    pub group: Group,
    /// The test, or nothing for the geometric mean of all tests of the group.
    pub test: Option<String>,
    /// Seconds in the first file.
    pub before: Spread,
    /// Seconds in the second.
    pub after: Spread,
    /// Time afterwards over time before, by the clock.
    pub ratio: f64,
    /// The same with each time as a multiple of what the ceilings around it allow.
    pub relative_ratio: f64,
    /// The ratio that would be found beyond noise.
    pub detectable: f64,
    /// How probable the difference is by chance, raised for the number of tests.
    pub probability: f64,
    /// What it amounts to.
    pub verdict: Verdict,
}

/// The result.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Geometric means of groups, then tests.
    pub differences: Vec<Difference>,
    /// Tests of only one of the files.
    pub unmatched: Vec<String>,
}

impl Comparison {
    /// Those of a verdict.
    pub fn of(&self, verdict: Verdict) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(move |difference| difference.verdict == verdict)
    }
}

/// Compares two files of records, with at most this probability of a false alarm of either kind, slower or faster, among
/// the tests and as much among the groups.
///
/// # Errors
/// Where the files were made on other machines, or have no test in common.
pub fn compare(before: &[Record], after: &[Record], level: f64) -> Result<Comparison, LabError> {
    let machines = [machine_of(before)?, machine_of(after)?];
    if machines[0] != machines[1] {
        let [before, after] = machines;
        return Err(LabError::OtherMachine { before, after });
    }
    let (mut from, mut to) = (series(before), series(after));
    let names = |group: &Group, test: &String| format!("{group}: {test}");
    let mut unmatched = Vec::new();
    for (one, other) in [(&from, &to), (&to, &from)] {
        for (group, tests) in one {
            let missing = |test: &&String| other.get(group).is_none_or(|tests| !tests.contains_key(*test));
            unmatched.extend(tests.keys().filter(missing).map(|test| names(group, test)));
        }
    }
    let mut pairs: Vec<(Group, Vec<Pair>)> = Vec::new();
    for (group, tests) in &mut from {
        let Some(others) = to.get_mut(group) else { continue };
        let common = tests.iter().filter_map(|(test, before)| {
            Some(Pair { test: Some(test.clone()), before: before.clone(), after: others.get(test)?.clone() })
        });
        let common: Vec<Pair> = common.collect();
        if !common.is_empty() {
            pairs.push((group.clone(), common));
        }
    }
    if pairs.is_empty() {
        return Err(LabError::NothingInCommon);
    }
    let means = pairs.iter().filter(|(_, tests)| tests.len() > 1);
    let means = means.map(|(group, tests)| (group.clone(), vec![Pair::mean(tests)])).collect::<Vec<_>>();
    let mut differences = judge(&means, level);
    differences.extend(judge(&pairs, level));
    Ok(Comparison { differences, unmatched })
}

/// The machine of a file, in words; it must be one.
fn machine_of(records: &[Record]) -> Result<String, LabError> {
    let describe = |record: &Record| {
        let threads = record.threads.map_or_else(String::new, |threads| format!(", {threads} threads"));
        format!("{} ({}{threads})", record.device, record.features)
    };
    let first = records.first().map(describe).ok_or(LabError::NothingInCommon)?;
    match records.iter().map(describe).find(|other| *other != first) {
        Some(other) => Err(LabError::OtherMachine { before: first, after: other }),
        None => Ok(first),
    }
}

/// The repetitions of a test, in their order: logarithms of seconds, and of what they are of the ceilings' time.
#[derive(Clone, Debug, Default, PartialEq)]
struct Series {
    time: Vec<f64>,
    relative: Vec<f64>,
}

fn series(records: &[Record]) -> BTreeMap<Group, BTreeMap<String, Series>> {
    let mut groups: BTreeMap<Group, BTreeMap<String, Series>> = BTreeMap::new();
    let mut ordered: Vec<&Record> = records.iter().collect();
    ordered.sort_by_key(|record| record.repetition);
    for record in ordered {
        let group = Group {
            benchmark: record.benchmark.clone(),
            model: record.model.clone(),
            policy: record.policy.clone(),
            variant: record.variant.clone(),
        };
        let series = groups.entry(group).or_default().entry(record.test.clone()).or_default();
        series.time.push(record.seconds.ln());
        series.relative.push(-record.share.ln());
    }
    groups
}

/// A test in both files.
struct Pair {
    test: Option<String>,
    before: Series,
    after: Series,
}

impl Pair {
    /// The means of all tests in each round.
    fn mean(tests: &[Pair]) -> Pair {
        let mean = |of: fn(&Pair) -> &Vec<f64>| {
            let rounds = tests.iter().map(|test| of(test).len()).min().unwrap_or(0);
            let round =
                |round: usize| tests.iter().map(|test| of(test)[round]).sum::<f64>() / tests.len() as f64;
            (0..rounds).map(round).collect()
        };
        Pair {
            test: None,
            before: Series {
                time: mean(|pair| &pair.before.time),
                relative: mean(|pair| &pair.before.relative),
            },
            after: Series {
                time: mean(|pair| &pair.after.time),
                relative: mean(|pair| &pair.after.relative),
            },
        }
    }

    fn by_clock(&self) -> Contrast<'_> {
        Contrast { before: &self.before.time, after: &self.after.time }
    }

    fn by_ceilings(&self) -> Contrast<'_> {
        Contrast { before: &self.before.relative, after: &self.after.relative }
    }
}

/// Two series of logarithms.
struct Contrast<'a> {
    before: &'a [f64],
    after: &'a [f64],
}

impl Contrast<'_> {
    fn shift(&self) -> f64 {
        shift(self.before, self.after).unwrap_or(0.0)
    }

    fn freedom(&self) -> f64 {
        (self.before.len() + self.after.len()).saturating_sub(2) as f64
    }

    /// The deviation of one repetition from the median of its series, judged by the usual ones: what stands out by far
    /// counts no more than what stands out. Infinite where nothing is repeated.
    fn deviation(&self) -> f64 {
        if self.freedom() <= 0.0 {
            return f64::INFINITY;
        }
        let mut distances = Vec::new();
        for series in [self.before, self.after] {
            let middle = median_of(series.to_vec());
            distances.extend(series.iter().map(|value| (value - middle).abs()));
        }
        // Each series lies closer to its own median than to the true one.
        let count = distances.len() as f64;
        MAD_TO_DEVIATION * median_of(distances) * (count / self.freedom()).sqrt()
    }

    /// What the deviation of a repetition makes of that of the shift.
    fn scale(&self) -> f64 {
        (1.0 / self.before.len() as f64 + 1.0 / self.after.len() as f64).sqrt()
    }

    /// The probability of so large a shift in its own direction, by the order of the repetitions alone.
    fn by_order(&self) -> f64 {
        if self.shift() > 0.0 {
            mann_whitney(self.before, self.after)
        } else {
            mann_whitney(self.after, self.before)
        }
    }
}

/// Noise that the tests of a group share, in one of the two ways to look at them.
#[derive(Clone, Copy)]
struct Noise {
    /// The deviation of a repetition of a usual test.
    usual: f64,
    /// The deviation of shifts around their median.
    between: f64,
}

impl Noise {
    fn of(tests: &[Pair], view: View) -> Noise {
        let shifts: Vec<f64> = tests.iter().map(|test| view(test).shift()).collect();
        let middle = median_of(shifts.clone());
        let distances: Vec<f64> = shifts.iter().map(|shift| (shift - middle).abs()).collect();
        Noise {
            usual: median_of(tests.iter().map(|test| view(test).deviation()).collect()),
            between: if tests.len() < FEW { 0.0 } else { MAD_TO_DEVIATION * median_of(distances) },
        }
    }

    /// The deviation of a test's shift.
    fn around(self, contrast: &Contrast<'_>) -> f64 {
        (contrast.deviation().max(self.usual) * contrast.scale()).max(self.between)
    }
}

fn median_of(values: Vec<f64>) -> f64 {
    Spread::of(values).map_or(0.0, |spread| spread.median)
}

/// A way to look at a test: by the clock, or by the ceilings.
type View = fn(&Pair) -> Contrast<'_>;
const VIEWS: [View; 2] = [Pair::by_clock, Pair::by_ceilings];

fn judge(pairs: &[(Group, Vec<Pair>)], level: f64) -> Vec<Difference> {
    let tests = pairs.iter().map(|(_, tests)| tests.len()).sum::<usize>().max(1);
    let mut found = Vec::new();
    for (group, members) in pairs {
        let noises = VIEWS.map(|view| Noise::of(members, view));
        found.extend(members.iter().filter_map(|pair| found_in(group, pair, noises, level / tests as f64)));
    }
    let raised = holm(&found.iter().map(|found| found.raw).collect::<Vec<_>>());
    found.into_iter().zip(raised).map(|(found, raised)| found.judged(raised, level)).collect()
}

/// Holds the shifts of a test against the noise of its group; `level` is what is left of the level for one test.
fn found_in(group: &Group, pair: &Pair, noises: [Noise; 2], level: f64) -> Option<Found> {
    let contrasts = VIEWS.map(|view| view(pair));
    let shifts = contrasts.each_ref().map(Contrast::shift);
    let deviations = [0, 1].map(|view| noises[view].around(&contrasts[view]));
    let freedom = contrasts[0].freedom();
    let chance = |view: usize| (2.0 * student_above(shifts[view].abs() / deviations[view], freedom)).min(1.0);
    let agree = shifts[0] * shifts[1] > 0.0;
    let seconds = |logarithms: &[f64]| Spread::of(logarithms.iter().map(|x| x.exp()).collect());
    let orders = contrasts.each_ref().map(Contrast::by_order);
    Some(Found {
        raw: if agree { chance(0).max(chance(1)) } else { 1.0 },
        order: orders[0].max(orders[1]),
        difference: Difference {
            group: group.clone(),
            test: pair.test.clone(),
            before: seconds(&pair.before.time)?,
            after: seconds(&pair.after.time)?,
            ratio: shifts[0].exp(),
            relative_ratio: shifts[1].exp(),
            detectable: (student_quantile(level / 2.0, freedom) * deviations[0].max(deviations[1])).exp(),
            probability: 1.0,
            verdict: Verdict::Noise,
        },
    })
}

/// A difference before the number of all of them is taken into account.
struct Found {
    raw: f64,
    order: f64,
    difference: Difference,
}

impl Found {
    fn judged(self, raised: f64, level: f64) -> Difference {
        let probability = raised.max(self.order);
        let verdict = match self.difference.ratio {
            _ if probability > level || probability.is_nan() => Verdict::Noise,
            ratio if ratio > 1.0 => Verdict::Slower,
            _ => Verdict::Faster,
        };
        Difference { probability, verdict, ..self.difference }
    }
}

#[cfg(test)]
mod tests;
