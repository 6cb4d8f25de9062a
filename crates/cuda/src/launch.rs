//! The launches of a run: all steps by one graph, or one after another.

use std::cell::RefCell;
use std::sync::Arc;

use mantissa_ops::Step;
use mantissa_ops::backend::StepObserver;
use mantissa_ops::program::RunRows;

use crate::batch::{RepeatedShape, Rows};
use crate::graph::{Graph, Recorder};
use crate::select::records;
use crate::session::{CudaSession, Failure};
use crate::steps::{LaunchTarget, Runner};

impl CudaSession {
    /// Launches every step: by one graph where the batch has a shape that comes again and again, or one after another.
    pub(crate) fn launch_all(&mut self) -> Result<(), Failure> {
        let Some(shape) = self.repeated_shape() else {
            return self.launch_steps(LaunchTarget::Stream(&self.stream));
        };
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

    /// Whether a run of so many rows, one of each sequence, starts when all launches before it have ended, as a graph does.
    /// Kernels of single launches may start earlier, and attention of single rows looks up its pages before it waits.
    pub(crate) fn follows(&self, rows: RunRows) -> bool {
        records(&self.plan, rows, &self.chooser)
    }

    /// The shape of the batch, where launches for it are kept.
    fn repeated_shape(&self) -> Option<RepeatedShape> {
        self.batch.repeated_shape(self.rows).filter(|_| self.follows(self.rows))
    }

    /// Records graphs for the shapes that decoding has, so that nothing is allocated for them later.
    pub(crate) fn record_graphs(&mut self) -> Result<(), Failure> {
        for shape in RepeatedShape::expected(&self.limits) {
            self.rows = shape.rows();
            self.batch.lay_out_shape(shape, &self.limits);
            if self.repeated_shape() != Some(shape) {
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
