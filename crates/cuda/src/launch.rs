//! The launches of a run: all steps by one kernel, by one graph, or one after another.

use std::cell::RefCell;
use std::sync::Arc;

use mantissa_ops::Step;
use mantissa_ops::backend::StepObserver;
use mantissa_ops::program::RunRows;

use crate::batch::{RepeatedShape, Rows};
use crate::graph::{Graph, Recorder};
use crate::select::records;
use crate::session::{CudaSession, Failure};
use crate::steps::{LaunchTarget, Runner, StepError};
use crate::token::TokenKernel;

impl CudaSession {
    /// Launches every step: by one kernel where there is one for the batch, by one graph where it has a shape that comes
    /// again and again, or one after another.
    pub(crate) fn launch_all(&mut self) -> Result<(), Failure> {
        let Some(shape) = self.repeated_shape() else {
            return self.launch_steps(LaunchTarget::Stream(&self.stream));
        };
        if let Some(token) = self.token.as_ref().filter(|_| shape.is_token()) {
            return self.launch_token(token, shape);
        }
        let mut graph = match self.graphs.take(shape) {
            Some(graph) => graph,
            None => {
                self.graphs.make_room();
                self.record()?
            }
        };
        // SAFETY: the graph was recorded from the launches for a batch of the same shape. They take the same addresses,
        // which are those of buffers that live as long as the session.
        let launched = unsafe { self.stream.replay(&mut graph) };
        self.graphs.keep(shape, graph);
        Ok(launched?)
    }

    /// Whether a run of so many rows, one of each sequence, starts when all launches before it have ended or waits itself
    /// before it reads its batch: a graph does the one, the kernel for a token the other. Among single launches is attention,
    /// which looks up its pages before it waits.
    pub(crate) fn follows(&self, rows: RunRows) -> bool {
        records(&self.plan, rows, &self.chooser)
    }

    /// The shape of the batch, where launches for it are kept.
    fn repeated_shape(&self) -> Option<RepeatedShape> {
        self.batch.repeated_shape(self.rows).filter(|_| self.follows(self.rows))
    }

    fn launch_token(&self, token: &TokenKernel, shape: RepeatedShape) -> Result<(), Failure> {
        let failed = |error: StepError| Failure { step: "the token".to_owned(), message: error.to_string() };
        let kernel = self.kernels.get(&token.spec);
        let kernel = kernel.ok_or_else(|| failed(StepError::NotPrepared(token.spec.to_string())))?;
        let args = token.args(self.batch.view(), shape.spans());
        // SAFETY: the arguments mirror the kernel's; their addresses are those of the session's buffers, laid out for its
        // limits, which the batch was checked against, and for a grid of one block a multiprocessor.
        let launched = unsafe { self.stream.launch_together(kernel, token.launch, &args) };
        launched.map_err(|error| failed(error.into()))
    }

    /// Records graphs for the shapes that decoding has, so that nothing is allocated for them later.
    pub(crate) fn record_graphs(&mut self) -> Result<(), Failure> {
        for shape in RepeatedShape::expected(&self.limits) {
            self.rows = shape.rows();
            self.batch.lay_out_shape(shape, &self.limits);
            if self.repeated_shape() != Some(shape) || (self.token.is_some() && shape.is_token()) {
                continue;
            }
            let graph = self.record()?;
            self.graphs.keep(shape, graph);
        }
        self.rows = RunRows::default();
        Ok(())
    }

    /// Records the launches for the batch that is laid out.
    fn record(&self) -> Result<Graph, Failure> {
        let recorder = RefCell::new(Recorder::new(&self.stream)?);
        self.launch_steps(LaunchTarget::Graph(&recorder))?;
        Ok(recorder.into_inner().finish(&self.stream)?)
    }

    /// Nobody looks at the rows that no wanted logits depend on.
    fn launch_steps(&self, target: LaunchTarget<'_>) -> Result<(), Failure> {
        let steps = &self.plan.steps;
        let (all, wanted) = steps.split_at(self.plan.program.own_rows_from().unwrap_or(steps.len()));
        for (steps, part) in [(all, Rows::All), (wanted, Rows::Wanted)] {
            let runner = self.runner(target, part);
            let launch = |step: &Step| runner.step(step).map_err(|error| Failure::of(step, error));
            steps.iter().try_for_each(launch)?;
        }
        Ok(())
    }

    pub(crate) fn launch_observed(&mut self, observer: &mut dyn StepObserver) -> Result<(), Failure> {
        let plan = Arc::clone(&self.plan);
        for (index, step) in plan.steps.iter().enumerate() {
            observer.before_step(index);
            let runner = self.runner(LaunchTarget::Stream(&self.stream), Rows::All);
            runner.step(step).map_err(|error| Failure::of(step, error))?;
            self.stream.synchronize().map_err(|error| Failure::of(step, error))?;
            observer.after_step(index, self);
        }
        Ok(())
    }

    fn runner<'a>(&'a self, target: LaunchTarget<'a>, part: Rows) -> Runner<'a> {
        let RunRows { tokens, outputs } = self.rows;
        Runner {
            plan: &self.plan,
            target,
            kernels: &self.kernels,
            chooser: &self.chooser,
            weights: &self.weights,
            values: &self.values,
            tables: self.tables.as_ref(),
            cache: self.cache.as_ref(),
            scratch: &self.scratch,
            library: self.library.as_deref(),
            uploaded: &self.batch,
            part,
            rows: RunRows { tokens: tokens - self.batch.first(part), outputs },
        }
    }
}
