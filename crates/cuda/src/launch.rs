//! The launches of a run: all steps by one kernel, by one graph, or one after another.

use std::cell::RefCell;
use std::sync::Arc;

use mantissa_ops::backend::StepObserver;
use mantissa_ops::batch::Batch;
use mantissa_ops::program::RunRows;

use crate::ahead::failure;
use crate::batch::{RepeatedShape, Rows};
use crate::families::batch;
use crate::families::token::Args;
use crate::graph::{Choice, Content, Graph, Recorder};
use crate::reducer::{Bests, Wishes};
use crate::select::{Formats, NormedEmbedding, records};
use crate::session::{CudaSession, Failure};
use crate::steps::{LaunchTarget, Runner, StepError};
use crate::stream::Blocks;
use crate::token::TokenKernel;
use crate::trace::Tracer;

/// How the steps of a run were launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Launched {
    /// By one kernel.
    Token,
    /// By one graph of so many.
    Graph { kernels: usize },
    /// One after another.
    Steps,
}

impl CudaSession {
    /// Lays a batch out, and has it brought to the device before anything that is launched behind starts.
    pub(crate) fn upload(&mut self, batch: &Batch<'_>) -> Result<(), Failure> {
        let args = self.batch.lay_out(batch);
        let runner = self.runner(LaunchTarget::Stream(&self.stream), Rows::All);
        let launched = runner.launch(&batch::spec(), batch::launch_shape(args.packs), &args);
        launched.map_err(|error| Failure { step: "the batch".to_owned(), message: error.to_string() })?;
        self.stream.in_turn();
        Ok(())
    }

    /// Launches every step: by one kernel where there is one for the batch, by one graph where it has a shape that comes
    /// again and again, or one after another.
    pub(crate) fn launch_all(&mut self, tracer: Option<&Tracer>) -> Result<Launched, Failure> {
        let target = tracer.map_or(LaunchTarget::Stream(&self.stream), LaunchTarget::Tracer);
        let Some(shape) = self.repeated_shape() else {
            self.bests = self.launch_prompt(target)?;
            return Ok(Launched::Steps);
        };
        match self.token(shape) {
            Some(token) => {
                self.launch_token(target, token, &token.args(self.batch.view(), shape.spans()))?;
                self.bests = Some(token.bests());
                Ok(Launched::Token)
            }
            None => self.launch_graph(Content { shape, choice: None }),
        }
    }

    /// Launches, with the batch that was handed over, the reduction that chooses its tokens, and behind it every step.
    pub(crate) fn launch_behind(&mut self, wishes: Wishes) -> Result<(), Failure> {
        let missing = || failure(StepError::Missing("shape of a batch that follows"));
        let shape = self.repeated_shape().ok_or_else(missing)?;
        let choice = Choice { wishes, bests: self.bests };
        self.launch_graph(Content { shape, choice: Some(choice) })?;
        self.bests = self.token(shape).map(TokenKernel::bests);
        Ok(())
    }

    /// Launches what chooses the tokens of the batch that was handed over, and brings it.
    fn launch_choice(&self, target: LaunchTarget<'_>, choice: Choice) -> Result<(), Failure> {
        let launches = self.reduction(self.rows.outputs, choice, Some(self.batch.handed_over()));
        launches.and_then(|launches| self.launch_reduction(target, &launches)).map_err(failure)
    }

    fn launch_graph(&mut self, content: Content) -> Result<Launched, Failure> {
        let mut graph = match self.graphs.take(content) {
            Some(graph) => graph,
            None => {
                self.graphs.make_room();
                self.record(content)?
            }
        };
        // SAFETY: the graph was recorded from launches with the same content. They take the same addresses, which are those
        // of buffers that live as long as the session.
        let launched = unsafe { self.stream.replay(&mut graph) };
        let kernels = graph.kernels();
        self.graphs.keep(content, graph);
        Ok(launched.map(|()| Launched::Graph { kernels })?)
    }

    /// Whether a run of so many rows, one of each sequence, can be launched behind what chooses its tokens.
    pub(crate) fn follows(&self, rows: RunRows) -> bool {
        records(&self.plan, rows, &self.chooser)
    }

    /// The shape of the batch, where launches for it are kept.
    fn repeated_shape(&self) -> Option<RepeatedShape> {
        self.batch.repeated_shape(self.rows).filter(|_| self.follows(self.rows))
    }

    /// The kernel that computes a batch of this shape alone, if there is one.
    fn token(&self, shape: RepeatedShape) -> Option<&TokenKernel> {
        self.token.as_ref().filter(|_| shape.is_token())
    }

    /// Launches one step after another. Where a single row is wanted, the kernel for a token computes its last layer and its
    /// logits, behind the keys and values of all, and says where it leaves their best keys.
    fn launch_prompt(&self, target: LaunchTarget<'_>) -> Result<Option<Bests>, Failure> {
        let row = self.batch.wanted_row(self.rows);
        let (Some(token), Some((batch, spans)), Some(own)) =
            (&self.token, row, self.plan.program.own_rows_from())
        else {
            return self.launch_steps(target, self.plan.steps.len()).map(|()| None);
        };
        let last = own - 1;
        self.launch_steps(target, last)?;
        target.enter(last);
        let (runner, step) = (self.runner(target, Rows::All), &self.plan.steps[last]);
        runner.keys_and_values(step).map_err(|error| Failure::of(step, error))?;
        target.enter(own);
        self.launch_token(target, token, &token.last_layer_args(batch, spans))?;
        Ok(Some(token.bests()))
    }

    fn launch_token(
        &self,
        target: LaunchTarget<'_>,
        token: &TokenKernel,
        args: &Args,
    ) -> Result<(), Failure> {
        let runner = self.runner(target, Rows::All);
        let launched = runner.launch_as(&token.spec, token.launch, args, Blocks::Together);
        launched.map_err(|error| Failure { step: "the token".to_owned(), message: error.to_string() })
    }

    /// Records graphs for the shapes that decoding has, so that nothing is allocated for them later.
    pub(crate) fn record_graphs(&mut self) -> Result<(), Failure> {
        for shape in RepeatedShape::expected(&self.limits) {
            self.rows = shape.rows();
            self.batch.divide_shape(shape, &self.limits);
            if self.repeated_shape() != Some(shape) {
                continue;
            }
            let token = self.token(shape);
            let alone = token.is_none().then_some(None);
            // Behind a prompt, and behind another token.
            let bests = [Some(None), token.map(|token| Some(token.bests()))].into_iter().flatten();
            let behind = bests.map(|bests| Some(Choice { wishes: Wishes::default(), bests }));
            let behind = behind.filter(|_| self.reducer.is_some());
            for choice in alone.into_iter().chain(behind).collect::<Vec<_>>() {
                let content = Content { shape, choice };
                let graph = self.record(content)?;
                self.graphs.keep(content, graph);
            }
        }
        self.rows = RunRows::default();
        Ok(())
    }

    /// Records the launches for the batch that is laid out, and in front of them the choice of its tokens, if there is one.
    fn record(&self, Content { shape, choice }: Content) -> Result<Graph, Failure> {
        let recorder = RefCell::new(Recorder::new(&self.stream)?);
        let target = LaunchTarget::Graph(&recorder);
        if let Some(choice) = choice {
            self.launch_choice(target, choice)?;
        }
        match self.token(shape) {
            // It reads its batch, which the choice brings, behind its wait.
            Some(token) => {
                self.launch_token(target, token, &token.args(self.batch.view(), shape.spans()))?;
            }
            None => {
                // Attention looks up its pages before it waits.
                recorder.borrow_mut().in_turn();
                self.launch_steps(target, self.plan.steps.len())?;
            }
        }
        Ok(recorder.into_inner().finish(&self.stream)?)
    }

    /// Launches the steps before this one. Nobody looks at the rows that no wanted logits depend on.
    pub(crate) fn launch_steps(&self, target: LaunchTarget<'_>, end: usize) -> Result<(), Failure> {
        let runners = [Rows::All, Rows::Wanted].map(|part| self.runner(target, part));
        let together = NormedEmbedding::of(&self.plan.program, Formats::of_plan(&self.plan));
        let together = together.filter(|_| !target.keeps_steps_apart());
        if let Some(together) = &together {
            target.enter(0);
            let launched = runners[Rows::All as usize].normed_embedding(together);
            launched.map_err(|error| Failure::of(&self.plan.steps[0], error))?;
        }
        let done = together.map_or(0, |_| NormedEmbedding::STEPS);
        for (index, step) in self.plan.steps.iter().enumerate().take(end).skip(done) {
            target.enter(index);
            let runner = &runners[self.part(index) as usize];
            runner.step(step).map_err(|error| Failure::of(step, error))?;
        }
        Ok(())
    }

    /// The rows that a step computes.
    pub(crate) fn part(&self, step: usize) -> Rows {
        match self.plan.program.own_rows_from() {
            Some(first) if step >= first => Rows::Wanted,
            _ => Rows::All,
        }
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

    pub(crate) fn runner<'a>(&'a self, target: LaunchTarget<'a>, part: Rows) -> Runner<'a> {
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
