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
use crate::families::{follow, sampling};
use crate::kernel::{KernelSpec, Launch};
use crate::reducer::Outcome;
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
        let launched = self.launch_reduction(requests, Logits::Keep);
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
        Ok(room && (1..=follow::MOST_ROWS).contains(&rows) && next.rows() == rows)
    }

    /// Reduces, with the next run launched behind the reduction.
    pub(crate) fn reduce_and_follow(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<(), RunError> {
        reduced.resize_with(requests.len(), Reduced::default);
        let launched = self.launch_reduction(requests, Logits::Drop).and_then(|done| {
            self.launch_following(requests, next)?;
            Ok(done)
        });
        let done = launched.map_err(|error| self.abandon(failure(error)))?;
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
    fn launch_reduction(
        &mut self,
        requests: &[Request<'_>],
        logits_after: Logits,
    ) -> Result<Option<Event>, StepError> {
        let reducer = self.reducer.as_mut().filter(|reducer| reducer.has_room(requests));
        let (Some(reducer), Some(logits)) = (reducer, self.plan.program.logits()) else { return Ok(None) };
        self.device.bind()?;
        let logits = self.values.place(logits);
        let (kernels, args) = reducer.prepare(requests, logits, &self.scratch.reduction);
        let launch = |kernel: sampling::Kernel| {
            let shape = kernel.launch_shape(requests.len(), logits.width as usize);
            // SAFETY: the arguments mirror the kernels', which are all of one file. Their addresses are those of the
            // session's scratch and of the reducer's page-locked memory, laid out for at least as many rows as there are
            // requests, and of the logits of these rows. None of it goes or is written before they are done.
            unsafe { self.launch(&kernel.spec(), shape, &args) }
        };
        kernels.iter().try_for_each(|&kernel| launch(kernel))?;
        let done = self.stream.record()?;
        if logits_after == Logits::Keep && kernels.contains(&sampling::Kernel::Penalise) {
            launch(sampling::Kernel::Restore)?;
        }
        Ok(Some(done))
    }

    /// Brings the next batch to the device and puts the tokens in that the requests lead to.
    fn launch_following(&mut self, requests: &[Request<'_>], next: &Batch<'_>) -> Result<(), StepError> {
        self.batch.upload(next, &self.stream)?;
        let Some(reducer) = &self.reducer else { return Ok(()) };
        let mut keys = [0; follow::MOST_ROWS];
        for (row, (key, request)) in keys.iter_mut().zip(requests).enumerate() {
            *key = reducer.chosen(row, request);
        }
        let vocabulary = self.plan.program.logits().map_or(0, |logits| self.values.place(logits).width);
        let tokens = self.batch.view().tokens;
        let args = follow::Args { tokens, keys, rows: requests.len() as u32, vocabulary };
        // SAFETY: the arguments mirror the kernel's; there are as many tokens and keys as rows, in the session's memory.
        unsafe { self.launch(&follow::spec(), follow::launch_shape(), &args) }
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

/// Whether logits are wanted after they were reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logits {
    /// As they were.
    Keep,
    /// No: the next run replaces them.
    Drop,
}

fn failure(error: StepError) -> Failure {
    Failure { step: "reducing the logits".to_owned(), message: error.to_string() }
}
