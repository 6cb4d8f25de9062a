//! Reduction of logits, and the run that starts before the host has seen what came of it.
//!
//! Between two tokens the host reads the first one, checks it, lays out the next batch and launches it, while the device
//! waits. Where the token follows from the reduction alone the device can take it itself: one graph holds the reduction
//! and behind it the next run, and the host does its work meanwhile. What the reduction finds it sees in its own memory as
//! soon as kernels have written it there.

use std::hint::spin_loop;

use mantissa_ops::RunError;
use mantissa_ops::batch::Batch;
use mantissa_ops::program::RunRows;
use mantissa_ops::reduction::{self, Reduced, Request};

use crate::batch::{NextBatch, Rows};
use crate::error::CudaError;
use crate::families::sampling::Kernel;
use crate::graph::Choice;
use crate::reducer::{Launches, Outcome, Wishes};
use crate::session::{CudaSession, Failure};
use crate::steps::{LaunchTarget, StepError};

/// Looks at the host's memory before the driver is asked whether something has failed.
const LOOKS: usize = 1000;

impl CudaSession {
    /// Reduces the rows of the last run's logits, on the device where it has room for the requests.
    pub(crate) fn reduce_rows(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
    ) -> Result<(), RunError> {
        let rows = self.output_rows(requests)?;
        reduced.resize_with(rows, Reduced::default);
        let missing: Vec<usize> = if self.has_room(requests) {
            self.reduce_now(requests).map_err(|failure| self.abandon(failure))?;
            let outcomes = self.read_reduction(requests, reduced)?.into_iter().enumerate();
            outcomes.filter(|(_, outcome)| *outcome != Outcome::Chosen).map(|(row, _)| row).collect()
        } else {
            (0..rows).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let logits = mantissa_ops::backend::Session::logits(self)?;
        let width = logits.len() / rows;
        for row in missing {
            let logits = &logits[row * width..(row + 1) * width];
            reduction::reduce(logits, &requests[row], &mut reduced[row]);
        }
        Ok(())
    }

    /// Whether [`CudaSession::reduce_and_follow`] can serve these.
    pub(crate) fn can_follow(&self, requests: &[Request<'_>], next: &Batch<'_>) -> Result<bool, RunError> {
        let rows = self.output_rows(requests)?;
        next.check(&self.limits, &self.plan.batch_rules())?;
        let next_rows = RunRows { tokens: next.rows(), outputs: next.outputs.len() };
        let follows = next.sequences.len() == next.rows() && self.follows(next_rows);
        Ok(self.has_room(requests) && follows && rows > 0 && next.rows() == rows && next_rows.outputs == rows)
    }

    /// Reduces, with the next run launched behind the reduction.
    pub(crate) fn reduce_and_follow(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<(), RunError> {
        reduced.resize_with(requests.len(), Reduced::default);
        self.rows = RunRows { tokens: next.rows(), outputs: next.outputs.len() };
        self.logit_bytes = None;
        self.batch.hand_over(next);
        self.write_requests(requests);
        let launched = self.device.bind().map_err(Failure::from);
        let launched = launched.and_then(|()| self.launch_behind(Wishes::of(requests)));
        launched.and_then(|()| self.wait_for_results(requests)).map_err(|failure| self.abandon(failure))?;
        let outcomes = self.read_reduction(requests, reduced)?;
        for (row, _) in outcomes.iter().enumerate().filter(|(_, outcome)| **outcome == Outcome::NotFinite) {
            // At least one; the logits that could be counted have been replaced.
            reduced[row].not_finite = 1;
        }
        Ok(())
    }

    fn output_rows(&self, requests: &[Request<'_>]) -> Result<usize, RunError> {
        let rows = self.plan.program.logits().map_or(0, |_| self.rows.outputs);
        match requests.len() == rows {
            true => Ok(rows),
            false => Err(RunError::Reductions { got: requests.len(), rows }),
        }
    }

    fn has_room(&self, requests: &[Request<'_>]) -> bool {
        self.reducer.as_ref().is_some_and(|reducer| reducer.has_room(requests))
    }

    fn write_requests(&mut self, requests: &[Request<'_>]) {
        if let Some(reducer) = &mut self.reducer {
            reducer.write(requests);
        }
    }

    /// What serves requests. Where a run is to follow, its batch is brought to the device, and the logits,
    /// which it replaces, keep their penalties.
    pub(crate) fn reduction(
        &self,
        rows: usize,
        Choice { wishes, bests }: Choice,
        next: Option<NextBatch>,
    ) -> Result<Launches, StepError> {
        let logits = self.plan.program.logits().ok_or(StepError::Missing("logits"))?;
        let reducer = self.reducer.as_ref().ok_or(StepError::Missing("reduction of logits"))?;
        Ok(reducer.launches(rows, wishes, self.values.place(logits), &self.scratch.reduction, bests, next))
    }

    pub(crate) fn launch_reduction(
        &self,
        target: LaunchTarget<'_>,
        launches: &Launches,
    ) -> Result<(), StepError> {
        let runner = self.runner(target, Rows::All);
        let launch = |(kernel, shape): &(Kernel, _)| runner.launch(&kernel.spec(), *shape, &launches.args);
        launches.kernels.iter().try_for_each(launch)
    }

    /// Reduces behind all that was launched, and waits for the results.
    fn reduce_now(&mut self, requests: &[Request<'_>]) -> Result<(), Failure> {
        self.device.bind()?;
        self.write_requests(requests);
        let choice = Choice { wishes: Wishes::of(requests), bests: self.bests };
        let mut launches = self.reduction(requests.len(), choice, None).map_err(failure)?;
        if requests.iter().any(|request| request.penalties.is_some()) {
            let width = launches.args.vocabulary as usize;
            launches.kernels.push((Kernel::Restore, Kernel::Restore.launch_shape(requests.len(), width)));
        }
        self.launch_reduction(LaunchTarget::Stream(&self.stream), &launches).map_err(failure)?;
        self.wait_for_results(requests)
    }

    /// Waits until kernels have written all results of the requests to the host's memory. A batch that was handed over has been
    /// brought then: it is before results are written.
    fn wait_for_results(&self, requests: &[Request<'_>]) -> Result<(), Failure> {
        let have_come = || self.reducer.as_ref().is_none_or(|reducer| reducer.is_complete(requests));
        loop {
            for _ in 0..LOOKS {
                if have_come() {
                    return Ok(());
                }
                spin_loop();
            }
            let done = self.stream.is_done().map_err(|error| failure(error.into()))?;
            // They may have come in between.
            if done && !have_come() {
                let message = "kernels have ended without results".to_owned();
                return Err(failure(CudaError::Driver { during: "running", message }.into()));
            }
        }
    }

    /// What the device found, and what became of each row.
    fn read_reduction(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut [Reduced],
    ) -> Result<Vec<Outcome>, RunError> {
        let Some(reducer) = &self.reducer else { return Ok(vec![]) };
        let mut first_seen = 0;
        let read = |(row, (request, reduced)): (usize, (&Request<'_>, &mut Reduced))| {
            let outcome = reducer.read(row, request, first_seen, reduced);
            first_seen += request.penalties.map_or(0, |penalties| penalties.seen.len());
            outcome
        };
        let outcomes: Vec<Outcome> = requests.iter().zip(reduced).enumerate().map(read).collect();
        if outcomes.contains(&Outcome::NotFinite) {
            // What else is found of such a row is not waited for, and must not come among later results.
            self.stream.synchronize().map_err(|error| self.abandon(failure(error.into())))?;
        }
        Ok(outcomes)
    }
}

/// A reduction that failed.
pub(crate) fn failure(error: StepError) -> Failure {
    Failure { step: "reducing the logits".to_owned(), message: error.to_string() }
}
