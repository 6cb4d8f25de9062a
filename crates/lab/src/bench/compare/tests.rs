//! Comparisons of made-up machines, whose noise is known.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// A machine on which others work too: every round has a speed of its own, and each measurement noise with a long tail.
struct Noisy {
    random: ChaCha8Rng,
    /// How much slower everything is, whole runs through.
    load: f64,
    /// By how much each test differs from run to run and not within one.
    places: f64,
}

impl Noisy {
    fn new(seed: u64) -> Noisy {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let load = 1.0 + 0.05 * random.random::<f64>();
        Noisy { random, load, places: 0.0 }
    }

    /// About normal: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random.random::<f64>()).sum::<f64>() - 6.0
    }

    /// A run of `tests` tests in `rounds` rounds, those that `slow` names slowed by `factor`.
    fn run(&mut self, tests: usize, rounds: usize, slow: impl Fn(usize) -> bool, factor: f64) -> Vec<Record> {
        let mut records = Vec::new();
        let places: Vec<f64> = (0..tests).map(|_| (self.places * self.normal()).exp()).collect();
        for repetition in 0..rounds {
            let round = self.load * (0.02 * self.normal()).exp();
            for (test, place) in places.iter().enumerate() {
                let burst = if self.random.random_bool(0.05) { 1.5 } else { 1.0 };
                let work = 1e-4 * (test + 1) as f64;
                let slowed = if slow(test) { factor } else { 1.0 };
                let seconds = work * place * slowed * round * burst * (0.01 * self.normal()).exp();
                // The ceilings see the same round, a little wrong.
                let share = 0.8 * work * round * (0.005 * self.normal()).exp() / seconds;
                records.push(Record {
                    benchmark: "matmul".to_owned(),
                    test: format!("test {test:02}"),
                    device: "a processor".to_owned(),
                    repetition,
                    seconds,
                    share,
                    ..Record::default()
                });
            }
        }
        records
    }
}

fn alarms(found: &Comparison) -> usize {
    found.of(Verdict::Slower).count() + found.of(Verdict::Faster).count()
}

#[test]
fn the_same_program_gives_no_alarm() {
    let pairs = 200;
    for places in [0.0, 0.05] {
        let run = |seed| Noisy { places, ..Noisy::new(seed) }.run(20, 8, |_| false, 1.0);
        let loud =
            (0..pairs).filter(|pair| alarms(&compare(&run(2 * pair), &run(2 * pair + 1), 0.01).unwrap()) > 0);
        // Tests and groups may each give one in a hundred: four are expected at most.
        let loud = loud.count();
        assert!(
            loud <= 6,
            "{loud} of {pairs} comparisons of the same program gave an alarm, places {places}"
        );
    }
}

#[test]
fn a_tenth_slower_is_found() {
    let (mut all, mut one) = (0, 0);
    for pair in 0..50 {
        let before = Noisy::new(1000 + pair).run(20, 8, |_| false, 1.0);
        let everything = Noisy::new(2000 + pair).run(20, 8, |_| true, 1.1);
        let found = compare(&before, &everything, 0.01).unwrap();
        let mean = &found.differences[0];
        assert_eq!(mean.test, None);
        all += usize::from(mean.verdict == Verdict::Slower);
        let seventh = Noisy::new(3000 + pair).run(20, 12, |test| test == 7, 1.1);
        let before = Noisy::new(4000 + pair).run(20, 12, |_| false, 1.0);
        let found = compare(&before, &seventh, 0.01).unwrap();
        // The mean of all is slower too.
        let slower: Vec<_> = found.of(Verdict::Slower).filter_map(|found| found.test.as_deref()).collect();
        assert!(slower.iter().all(|test| *test == "test 07"), "{slower:?}");
        one += slower.len();
    }
    assert!(all >= 49, "{all} of 50 slowed kernels were found");
    assert!(one >= 25, "{one} of 50 slowed tests were found");
}

#[test]
fn what_became_faster_is_no_regression() {
    let before = Noisy::new(1).run(20, 8, |_| true, 1.2);
    let after = Noisy::new(2).run(20, 8, |_| false, 1.2);
    let found = compare(&before, &after, 0.01).unwrap();
    assert_eq!(found.differences[0].verdict, Verdict::Faster);
    assert_eq!(found.of(Verdict::Slower).count(), 0);
}

#[test]
fn a_machine_that_is_slower_itself_is_no_regression() {
    let before = Noisy { load: 1.0, ..Noisy::new(1) }.run(20, 8, |_| false, 1.0);
    let after = Noisy { load: 2.0, ..Noisy::new(2) }.run(20, 8, |_| false, 1.0);
    let found = compare(&before, &after, 0.01).unwrap();
    assert!(found.differences[0].ratio > 1.8 && found.differences[0].relative_ratio < 1.05);
    assert_eq!(alarms(&found), 0);
}

#[test]
fn too_few_repetitions_say_nothing() {
    let before = Noisy::new(1).run(5, 1, |_| false, 1.0);
    let after = Noisy::new(2).run(5, 1, |_| true, 3.0);
    let found = compare(&before, &after, 0.01).unwrap();
    assert_eq!(alarms(&found), 0);
    assert_eq!(found.differences[0].detectable, f64::INFINITY);
}

#[test]
fn other_machines_and_other_tests_cannot_be_compared() {
    let here = Noisy::new(1).run(3, 6, |_| false, 1.0);
    let mut there = here.clone();
    there.iter_mut().for_each(|record| record.device = "another".to_owned());
    let error = compare(&here, &there, 0.01).unwrap_err().to_string();
    assert!(error.contains("a processor") && error.contains("another"), "{error}");
    let renamed: Vec<Record> =
        here.iter().map(|record| Record { policy: "f16".to_owned(), ..record.clone() }).collect();
    assert!(matches!(compare(&here, &renamed, 0.01), Err(LabError::NothingInCommon)));
    assert!(matches!(compare(&here, &[], 0.01), Err(LabError::NothingInCommon)));
    let fewer: Vec<Record> = here.iter().filter(|record| record.test != "test 01").cloned().collect();
    assert_eq!(compare(&here, &fewer, 0.01).unwrap().unmatched, ["matmul: test 01"]);
}
