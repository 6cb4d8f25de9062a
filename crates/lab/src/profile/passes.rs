//! One pass over the batches of a phase: as it runs, or traced.

use std::collections::HashMap;
use std::time::Instant;

use mantissa::ops::backend::NextRun;
use mantissa::ops::reduction::{Reduced, Request, Wish};
use mantissa::ops::{Grain, Scope, Session, Trace};

use super::batches::{self, Places, Run};
use crate::LabError;

/// A run and the choice of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedRun {
    /// What ran.
    pub trace: Trace,
    /// Seconds from asking for the tokens until they were there, by the host's clock; 0 where none were wanted.
    pub sampling: f64,
}

/// All batches of a phase once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TracedPass {
    /// Each of them.
    pub runs: Vec<TracedRun>,
    /// Seconds by the host's clock, the reading of clocks and traces included.
    pub wall: f64,
}

impl TracedPass {
    /// Seconds of the runs, and of the choice of tokens.
    pub fn seconds(&self) -> f64 {
        self.runs.iter().map(|run| run.trace.seconds).sum::<f64>() + self.sampling()
    }

    /// Seconds of the choice of tokens.
    pub fn sampling(&self) -> f64 {
        self.runs.iter().map(|run| run.sampling).sum()
    }

    /// Every scope with the number of its run.
    pub fn scopes(&self) -> impl Iterator<Item = (usize, &Scope)> {
        self.runs
            .iter()
            .enumerate()
            .flat_map(|(run, traced)| traced.trace.scopes.iter().map(move |scope| (run, scope)))
    }

    /// How many scopes each step of each run has.
    pub(super) fn kernels_of_steps(&self) -> HashMap<(usize, usize), usize> {
        let mut counts = HashMap::new();
        for (run, scope) in self.scopes() {
            if let Some(step) = scope.step {
                *counts.entry((run, step)).or_default() += 1;
            }
        }
        counts
    }

    /// Seconds of the runs that belong to no scope.
    pub fn between(&self) -> f64 {
        self.runs.iter().map(|run| run.trace.seconds - run.trace.in_scopes()).sum()
    }
}

/// Runs batches on a session.
pub(super) struct Runner<'a> {
    pub session: &'a mut dyn Session,
    pub places: &'a Places,
    reduced: Vec<Reduced>,
}

impl<'a> Runner<'a> {
    pub fn new(session: &'a mut dyn Session, places: &'a Places) -> Runner<'a> {
        Runner { session, places, reduced: Vec::new() }
    }

    /// Runs all batches as the engine does, and says how long it took. Where every sequence goes on with one token, the
    /// session may start a run before the tokens that it takes are known.
    pub fn untraced(&mut self, runs: &[Run]) -> Result<f64, LabError> {
        let sequences: Vec<_> = runs.iter().map(|run| run.sequences(self.places)).collect();
        let started = Instant::now();
        let mut under_way = NextRun::NotStarted;
        for (index, run) in runs.iter().enumerate() {
            if under_way == NextRun::NotStarted {
                self.session.run(&run.batch(&sequences[index]))?;
            }
            under_way = NextRun::NotStarted;
            if run.outputs() == 0 {
                continue;
            }
            let requests = requests(run);
            let next = runs.get(index + 1).filter(|next| next.follows(run));
            match next {
                Some(next) => {
                    let batch = next.batch(&sequences[index + 1]);
                    under_way = self.session.reduce_and_run(&requests, &mut self.reduced, &batch)?;
                }
                None => self.session.reduce(&requests, &mut self.reduced)?,
            }
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// Runs all batches with a trace of each.
    pub fn traced(&mut self, runs: &[Run], grain: Grain) -> Result<TracedPass, LabError> {
        let sequences: Vec<_> = runs.iter().map(|run| run.sequences(self.places)).collect();
        let started = Instant::now();
        let mut traced = Vec::with_capacity(runs.len());
        for (run, sequences) in runs.iter().zip(&sequences) {
            let trace = self.session.run_traced(&run.batch(sequences), grain)?;
            traced.push(TracedRun { trace, sampling: self.choose(run)? });
        }
        Ok(TracedPass { runs: traced, wall: started.elapsed().as_secs_f64() })
    }

    /// Runs prompts, and chooses the first token behind each.
    pub fn prefill(&mut self, runs: &[Run]) -> Result<Vec<u32>, LabError> {
        let mut first = Vec::new();
        for run in runs {
            self.session.run(&run.batch(&run.sequences(self.places)))?;
            self.choose(run)?;
            if run.outputs() > 0 {
                first.extend(self.chosen()?);
            }
        }
        Ok(first)
    }

    /// Generates tokens behind a first one of each sequence at a position, and gives the batches that this took.
    pub fn generate(
        &mut self,
        first: Vec<u32>,
        position: usize,
        tokens: usize,
    ) -> Result<Vec<Run>, LabError> {
        let mut runs = Vec::with_capacity(tokens);
        let mut next = first;
        for token in 0..tokens {
            let run = batches::decode(&next, position + token);
            self.session.run(&run.batch(&run.sequences(self.places)))?;
            self.choose(&run)?;
            next = self.chosen()?;
            runs.push(run);
        }
        Ok(runs)
    }

    /// The tokens that were chosen last.
    fn chosen(&self) -> Result<Vec<u32>, LabError> {
        let tokens: Option<Vec<u32>> =
            self.reduced.iter().map(|row| row.chosen.map(|key| key.token())).collect();
        tokens.ok_or(LabError::NotFinite)
    }

    /// Chooses the tokens of the last run, the most probable ones, and says how long it took.
    fn choose(&mut self, run: &Run) -> Result<f64, LabError> {
        if run.outputs() == 0 {
            return Ok(0.0);
        }
        let started = Instant::now();
        self.session.reduce(&requests(run), &mut self.reduced)?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// The most probable token for each of a run's outputs.
fn requests(run: &Run) -> Vec<Request<'static>> {
    vec![Request { penalties: None, wish: Wish::Best }; run.outputs()]
}
