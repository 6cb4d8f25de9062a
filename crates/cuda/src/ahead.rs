//! Reduction of logits, and the run that starts before the host has seen what came of it.
//!
//! Between two tokens the host reads the first one, checks it, lays out the next batch and launches it, while the device
//! waits. Where the token follows from the reduction alone the device can take it itself: the next run is launched
//! behind the reduction, and the host does its work meanwhile.

use mantissa_ops::RunError;
use mantissa_ops::batch::Batch;
use mantissa_ops::program::RunRows;
use mantissa_ops::reduction::{self, Reduced, Request};

use crate::device::Event;
use crate::families::sampling::Kernel;
use crate::kernel::{KernelSpec, Launch};
use crate::reducer::{Launches, Outcome};
use crate::session::{CudaSession, Failure};
use crate::steps::StepError;

impl CudaSession {
    /// Reduces the rows of the last run's logits, on the device where it has room for the requests.
    pub(crate) fn reduce_rows(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
    ) -> Result<(), RunError> {
        let rows = self.output_rows(requests)?;
        reduced.resize_with(rows, Reduced::default);
        let launched = self.launch_reduction(requests, None);
        let missing: Vec<usize> = match launched.map_err(|error| self.abandon(failure(error)))? {
            Some(done) => {
                done.wait().map_err(|error| self.abandon(failure(error.into())))?;
                let outcomes = self.read_reduction(requests, reduced).into_iter().enumerate();
                outcomes.filter(|(_, outcome)| *outcome != Outcome::Chosen).map(|(row, _)| row).collect()
            }
            None => (0..rows).collect(),
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
        let room = self.reducer.as_ref().is_some_and(|reducer| reducer.has_room(requests));
        let next_rows = RunRows { tokens: next.rows(), outputs: next.outputs.len() };
        let follows = next.sequences.len() == next.rows() && self.follows(next_rows);
        Ok(room && follows && rows > 0 && next.rows() == rows)
    }

    /// Reduces, with the next run launched behind the reduction.
    pub(crate) fn reduce_and_follow(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<(), RunError> {
        reduced.resize_with(requests.len(), Reduced::default);
        let done =
            self.launch_reduction(requests, Some(next)).map_err(|error| self.abandon(failure(error)))?;
        self.rows = RunRows { tokens: next.rows(), outputs: next.outputs.len() };
        self.logit_bytes = None;
        self.launch_all().map_err(|error| self.abandon(error))?;
        if let Some(done) = done {
            done.wait().map_err(|error| self.abandon(failure(error.into())))?;
        }
        let outcomes = self.read_reduction(requests, reduced);
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

    /// Launches what serves the requests and returns the moment when it is done; nothing where there is no room for them.
    /// Where a run is to follow, its batch is brought to the device, and the logits, which it replaces, keep their penalties.
    fn launch_reduction(
        &mut self,
        requests: &[Request<'_>],
        next: Option<&Batch<'_>>,
    ) -> Result<Option<Event>, StepError> {
        let reducer = self.reducer.as_mut().filter(|reducer| reducer.has_room(requests));
        let (Some(reducer), Some(logits)) = (reducer, self.plan.program.logits()) else { return Ok(None) };
        self.device.bind()?;
        let next = next.map(|next| self.batch.hand_over(next));
        let restores = next.is_none() && requests.iter().any(|request| request.penalties.is_some());
        let Launches { kernels, args } =
            reducer.prepare(requests, self.values.place(logits), &self.scratch.reduction, next);
        let launch = |(kernel, shape): (Kernel, Launch)| {
            // SAFETY: the arguments mirror the kernels', which are all of one file. Their addresses are those of the
            // session's scratch and of the reducer's page-locked memory, laid out for at least as many rows as there are
            // requests, of the logits of these rows, and of a batch within the limits. None of it goes or is written before
            // they are done.
            unsafe { self.launch(&kernel.spec(), shape, &args) }
        };
        kernels.into_iter().try_for_each(launch)?;
        let done = self.stream.record()?;
        if restores {
            let width = args.vocabulary as usize;
            launch((Kernel::Restore, Kernel::Restore.launch_shape(requests.len(), width)))?;
        }
        Ok(Some(done))
    }

    /// # Safety
    /// That of [`crate::device::Stream::launch`].
    unsafe fn launch<P: Copy>(&self, spec: &KernelSpec, shape: Launch, args: &P) -> Result<(), StepError> {
        let kernel = self.kernels.get(spec).ok_or_else(|| StepError::NotPrepared(spec.to_string()))?;
        // SAFETY: the caller's.
        Ok(unsafe { self.stream.launch(kernel, shape, args) }?)
    }

    /// What the device found, and what became of each row.
    fn read_reduction(&self, requests: &[Request<'_>], reduced: &mut [Reduced]) -> Vec<Outcome> {
        let Some(reducer) = &self.reducer else { return vec![] };
        let mut first_seen = 0;
        let read = |(row, (request, reduced)): (usize, (&Request<'_>, &mut Reduced))| {
            let outcome = reducer.read(row, request, first_seen, reduced);
            first_seen += request.penalties.map_or(0, |penalties| penalties.seen.len());
            outcome
        };
        requests.iter().zip(reduced).enumerate().map(read).collect()
    }
}

fn failure(error: StepError) -> Failure {
    Failure { step: "reducing the logits".to_owned(), message: error.to_string() }
}
