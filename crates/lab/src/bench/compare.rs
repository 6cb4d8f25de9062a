//! Two files of measurements against each other: what became slower, beyond noise?
//!
//! A test is slower where its repetitions are, both by the clock and as a share of the ceilings that were measured around
//! each of them: a machine that was itself slower at the time moves the one and not the other. Of the two shifts the smaller
//! is held against the noise, and that is the largest of three: how far repetitions of the test lie apart, how far those of
//! a usual test do, and how far the shifts of the other tests of its group lie apart. The last is what differs from one run
//! of a program to the next and not within one, such as the pages that the system has for it. Student's distribution then says how probable such a shift is by chance, raised for the number of tests (Holm),
//! and the test of Mann and Whitney, which knows nothing of distributions, has to agree.
//!
//! The geometric mean of a group's tests in each round is one more test: what slows all of them a little shows there first.

use std::borrow::Cow;
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
    let mut differences = judge(&means(&pairs), level);
    differences.extend(judge(&tests(&pairs), level));
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
#[derive(Clone)]
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

/// What shifts differ by that should be the same: a deviation, and how many differences it is known from.
#[derive(Clone, Copy)]
struct Between {
    deviation: f64,
    freedom: f64,
}

impl Between {
    /// Of the distances of shifts from the median of their group; nothing where they are too few to tell.
    fn of(residuals: &[f64]) -> Between {
        if residuals.len() < FEW {
            return Between { deviation: 0.0, freedom: f64::INFINITY };
        }
        let freedom = (residuals.len() - 1) as f64;
        let squares: f64 = residuals.iter().map(|residual| residual.powi(2)).sum();
        Between { deviation: (squares / freedom).sqrt(), freedom }
    }
}

/// Something to judge, with the noise that it shares with others, in both views.
struct Subject<'a> {
    group: &'a Group,
    pair: Cow<'a, Pair>,
    /// The deviation of a repetition of a usual test.
    usual: [f64; 2],
    between: [Between; 2],
}

/// The distances of the shifts of tests from their median.
fn residuals(tests: &[Pair], view: View) -> Vec<f64> {
    let shifts: Vec<f64> = tests.iter().map(|test| view(test).shift()).collect();
    let middle = median_of(shifts.clone());
    shifts.into_iter().map(|shift| shift - middle).collect()
}

/// Every test. What the shifts of the others of its group differ by is noise to it; where a group has few tests, those of
/// all groups stand in.
fn tests(pairs: &[(Group, Vec<Pair>)]) -> Vec<Subject<'_>> {
    let all =
        VIEWS.map(|view| pairs.iter().flat_map(|(_, tests)| residuals(tests, view)).collect::<Vec<_>>());
    let mut subjects = Vec::new();
    let mut first = 0;
    for (group, tests) in pairs {
        let usual = VIEWS.map(|view| median_of(tests.iter().map(|test| view(test).deviation()).collect()));
        let known = if tests.len() > FEW { first..first + tests.len() } else { 0..all[0].len() };
        for (index, pair) in tests.iter().enumerate() {
            let own = first + index;
            let between = all
                .each_ref()
                .map(|all| Between::of(&[&all[known.start..own], &all[own + 1..known.end]].concat()));
            subjects.push(Subject { group, pair: Cow::Borrowed(pair), usual, between });
        }
        first += tests.len();
    }
    subjects
}

/// The means of groups of more than one test. What the shifts of the tests differ by, the mean inherits.
fn means(pairs: &[(Group, Vec<Pair>)]) -> Vec<Subject<'_>> {
    let several = pairs.iter().filter(|(_, tests)| tests.len() > 1);
    several
        .map(|(group, tests)| {
            let between = VIEWS.map(|view| {
                let Between { deviation, freedom } = Between::of(&residuals(tests, view));
                Between { deviation: deviation / (tests.len() as f64).sqrt(), freedom }
            });
            Subject { group, pair: Cow::Owned(Pair::mean(tests)), usual: [0.0; 2], between }
        })
        .collect()
}

fn median_of(values: Vec<f64>) -> f64 {
    Spread::of(values).map_or(0.0, |spread| spread.median)
}

/// A way to look at a test: by the clock, or by the ceilings.
type View = fn(&Pair) -> Contrast<'_>;
const VIEWS: [View; 2] = [Pair::by_clock, Pair::by_ceilings];

fn judge(subjects: &[Subject<'_>], level: f64) -> Vec<Difference> {
    let level_of_one = level / subjects.len().max(1) as f64;
    let found: Vec<Found> = subjects.iter().filter_map(|subject| subject.hold(level_of_one)).collect();
    let raised = holm(&found.iter().map(|found| found.raw).collect::<Vec<_>>());
    found.into_iter().zip(raised).map(|(found, raised)| found.judged(raised, level)).collect()
}

impl Subject<'_> {
    /// The deviation of the shift in one view, and how many degrees of freedom it has: that of the larger noise.
    fn noise(&self, view: usize) -> Between {
        let contrast = VIEWS[view](&self.pair);
        let deviation = contrast.deviation().max(self.usual[view]) * contrast.scale();
        let within = Between { deviation, freedom: contrast.freedom() };
        let between = self.between[view];
        if between.deviation > within.deviation { between } else { within }
    }

    /// Holds the shifts against the noise; `level` is what is left of the level for one subject.
    fn hold(&self, level: f64) -> Option<Found> {
        let pair = &*self.pair;
        let contrasts = VIEWS.map(|view| view(pair));
        let shifts = contrasts.each_ref().map(Contrast::shift);
        let noises = [self.noise(0), self.noise(1)];
        let chance = |view: usize| {
            let Between { deviation, freedom } = noises[view];
            (2.0 * student_above(shifts[view].abs() / deviation, freedom)).min(1.0)
        };
        let needed = noises.map(|noise| student_quantile(level / 2.0, noise.freedom) * noise.deviation);
        let agree = shifts[0] * shifts[1] > 0.0;
        let seconds = |logarithms: &[f64]| Spread::of(logarithms.iter().map(|x| x.exp()).collect());
        let orders = contrasts.each_ref().map(Contrast::by_order);
        Some(Found {
            raw: if agree { chance(0).max(chance(1)) } else { 1.0 },
            order: orders[0].max(orders[1]),
            difference: Difference {
                group: self.group.clone(),
                test: pair.test.clone(),
                before: seconds(&pair.before.time)?,
                after: seconds(&pair.after.time)?,
                ratio: shifts[0].exp(),
                relative_ratio: shifts[1].exp(),
                detectable: needed[0].max(needed[1]).exp(),
                probability: 1.0,
                verdict: Verdict::Noise,
            },
        })
    }
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
