//! The engine: sequences in, one batch per step, tokens out.

use std::sync::Arc;

use mantissa_ops::backend::{NextRun, OverflowRule, Progress};
use mantissa_ops::reduction::{self, Reduced, Wish};
use mantissa_ops::{
    Backend, Batch, Limits, LoadOptions, Plan, PlanError, PrepareError, RunError, SequenceRows, Session,
    TensorSource,
};

use crate::ahead::{self, Ahead};
use crate::paging::{BlockTable, PageAllocator, PageError};
use crate::probe::{NonFinite, first_non_finite};
use crate::sampling::{InvalidParam, SampleError, Sampler};
use crate::sequence::{EndOfText, FinishReason, Request, Sequence, SequenceId, TokenEvent};

/// Sizes and rules of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Longest sequence in tokens; the model's maximum where none is given.
    pub context: Option<usize>,
    /// Sequences that run together.
    pub sequences: usize,
    /// Tokens run together at most, as many as suit the backend where none is given; longer prompts are run in chunks of
    /// this size.
    pub chunk: Option<usize>,
    /// Tokens per page of the cache.
    pub page_size: usize,
    /// Rows whose logits may be wanted at once.
    pub outputs: usize,
    /// What to do with weights beyond the range of the policy's format.
    pub overflow: OverflowRule,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            context: None,
            sequences: 1,
            chunk: None,
            page_size: 64,
            outputs: 1,
            overflow: OverflowRule::Refuse,
        }
    }
}

impl EngineOptions {
    /// The sizes that a session of the plan is prepared for.
    ///
    /// # Errors
    /// Where the context is beyond the model's.
    pub fn limits(&self, plan: &Plan) -> Result<Limits, EngineError> {
        let max_context = plan.program.max_context;
        let context = self.context.unwrap_or(max_context);
        if context > max_context || context == 0 {
            return Err(EngineError::Context { wanted: context, max_context });
        }
        let chunk = self.chunk.unwrap_or(plan.backend.prompt_rows);
        let rows = chunk.min(context).max(self.sequences).max(1);
        Ok(Limits {
            rows,
            outputs: self.outputs.max(self.sequences).min(rows),
            sequences: self.sequences,
            pages: self.sequences * Limits::pages_for(self.page_size, context),
            page_size: self.page_size,
            context,
        })
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum EngineError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Paging(#[from] PageError),
    #[error(transparent)]
    Sampling(#[from] InvalidParam),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    #[error(
        "the prompt has {tokens} tokens, but the context holds {context}, one of them for the answer; shorten it or \
         raise --context (the model was made for {max_context})"
    )]
    PromptTooLong { tokens: usize, context: usize, max_context: usize },
    #[error("token {token} at position {position} is outside the vocabulary of {vocabulary}")]
    Token { token: u32, position: usize, vocabulary: usize },
    #[error("a context of {wanted} tokens is beyond the {max_context} that the model was made for")]
    Context { wanted: usize, max_context: usize },
    #[error("{0}")]
    NonFinite(NonFinite),
    #[error("{wanted} sequences at once, but the engine was prepared for {limit}")]
    Sequences { wanted: usize, limit: usize },
    #[error("the program computes no logits")]
    NoLogits,
}

/// A model made ready to generate.
pub struct Engine {
    session: Box<dyn Session>,
    allocator: PageAllocator,
    sequences: Vec<(Sequence, BlockTable)>,
    next_id: u64,
    vocabulary: usize,
    /// What became of the logits of the last batch.
    reduced: Vec<Reduced>,
    /// The run that was started before its tokens were known, if the last step did so.
    ahead: Option<Ahead>,
}

impl Engine {
    /// Loads the weights of a plan and allocates cache and scratch.
    ///
    /// # Errors
    /// Where the context is beyond the model's, or the backend cannot make the plan ready.
    pub fn prepare(
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        backend: &dyn Backend,
        options: &EngineOptions,
        progress: &dyn Progress,
    ) -> Result<Engine, EngineError> {
        let logits = plan.program.logits().ok_or(EngineError::NoLogits)?;
        let vocabulary = plan.program.value(logits).width;
        let limits = options.limits(&plan)?;
        let load = LoadOptions { limits, overflow: options.overflow };
        let session = backend.prepare(plan, source, &load, progress)?;
        let allocator = PageAllocator::new(limits.page_size, limits.pages)?;
        Ok(Engine {
            session,
            allocator,
            sequences: Vec::new(),
            next_id: 0,
            vocabulary,
            reduced: Vec::new(),
            ahead: None,
        })
    }

    /// The prepared session.
    pub fn session(&self) -> &dyn Session {
        &*self.session
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.session.plan()
    }

    /// Longest sequence in tokens.
    pub fn context(&self) -> usize {
        self.session.limits().context
    }

    /// Size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Checks a prompt against the vocabulary and the context.
    ///
    /// # Errors
    /// Where it is empty, too long, or holds a token outside the vocabulary.
    pub fn check_prompt(&self, prompt: &[u32], room: usize) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.len() + room > self.context() {
            let max_context = self.plan().program.max_context;
            return Err(EngineError::PromptTooLong {
                tokens: prompt.len(),
                context: self.context(),
                max_context,
            });
        }
        match prompt.iter().position(|&token| token as usize >= self.vocabulary) {
            Some(position) => {
                Err(EngineError::Token { token: prompt[position], position, vocabulary: self.vocabulary })
            }
            None => Ok(()),
        }
    }

    /// Adds a sequence.
    ///
    /// # Errors
    /// Where the prompt or the sampling parameters are not usable, or too many sequences are running.
    pub fn add(&mut self, request: Request) -> Result<SequenceId, EngineError> {
        self.check_prompt(&request.prompt, 1)?;
        let limit = self.session.limits().sequences;
        if self.sequences.len() >= limit {
            return Err(EngineError::Sequences { wanted: limit + 1, limit });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let rope_set = self.rope_set(request.prompt.len());
        let end_ids = match request.end_of_text {
            EndOfText::Stop => request.end_of_text_ids,
            EndOfText::Ignore => Vec::new(),
        };
        let sequence = Sequence {
            id,
            prompt_length: request.prompt.len(),
            tokens: request.prompt,
            cached: 0,
            rope_set,
            sampler: Sampler::new(request.sampling, request.fallback_seed)?,
            max_tokens: request.max_tokens,
            end_ids,
        };
        self.sequences.push((sequence, self.allocator.table()));
        Ok(id)
    }

    /// Whether any sequence is running.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Ends a sequence and frees its pages; does nothing where it has ended already.
    ///
    /// # Errors
    /// Never in practice: [`PageError`] where the pages are another engine's.
    pub fn cancel(&mut self, id: SequenceId) -> Result<(), EngineError> {
        if let Some(index) = self.sequences.iter().position(|(sequence, _)| sequence.id == id) {
            let (_, table) = self.sequences.remove(index);
            self.allocator.release(table)?;
        }
        Ok(())
    }

    /// Ends all sequences and frees their pages.
    ///
    /// # Errors
    /// As [`Engine::cancel`].
    pub fn reset(&mut self) -> Result<(), EngineError> {
        for (_, table) in self.sequences.drain(..) {
            self.allocator.release(table)?;
        }
        Ok(())
    }

    /// Runs one batch: the next token of every decoding sequence and as much of the waiting prompts as fits.
    ///
    /// # Errors
    /// Where the cache is full, or the logits are not finite: then the first step that made them so is named.
    pub fn step(&mut self) -> Result<Vec<TokenEvent>, EngineError> {
        let started = self.ahead.take();
        let served = started.as_ref().and_then(|ahead| Some((ahead.shares(&self.sequences)?, ahead.rows())));
        let (schedule, outputs) = match served {
            Some(served) => served,
            None => {
                let schedule = self.schedule()?;
                if schedule.is_empty() {
                    return Ok(Vec::new());
                }
                self.session.run(&batch_parts(&self.sequences, &schedule).batch())?;
                let outputs = schedule.iter().filter(|share| share.output.is_some()).count();
                (schedule, outputs)
            }
        };
        self.reduce(&schedule, outputs)?;
        self.collect(&schedule)
    }

    fn rope_set(&self, length: usize) -> usize {
        self.session.plan().program.rope.as_ref().map_or(0, |rope| rope.set_for(length))
    }

    /// Chooses how many pending tokens of each sequence run: decoding ones first, so that no prompt delays them.
    fn schedule(&mut self) -> Result<Vec<Share>, EngineError> {
        let mut room = self.session.limits().rows;
        let mut order: Vec<usize> = (0..self.sequences.len()).collect();
        order.sort_by_key(|&index| (self.sequences[index].0.pending() > 1, index));
        let mut shares = Vec::new();
        for index in order {
            let wanted_set = self.rope_set(self.sequences[index].0.tokens.len());
            let (sequence, table) = &mut self.sequences[index];
            if sequence.rope_set != wanted_set {
                // The whole sequence turns to other frequencies: keys rotated by the old ones are worthless.
                sequence.rope_set = wanted_set;
                sequence.cached = 0;
            }
            let rows = sequence.pending().min(room);
            if rows == 0 {
                continue;
            }
            let missing = (sequence.cached + rows).saturating_sub(table.len());
            if let Some(copy) = self.allocator.append(table, missing)? {
                self.session.copy_page(copy.from, copy.to)?;
            }
            room -= rows;
            let output = (rows == sequence.pending()).then_some(0);
            shares.push(Share { index, rows, output });
        }
        shares.sort_by_key(|share| share.index);
        let outputs = shares.iter_mut().filter_map(|share| share.output.as_mut());
        outputs.enumerate().for_each(|(row, output)| *output = row);
        Ok(shares)
    }

    /// Reduces the logits of the last run, which has so many rows of them, to what the samplers need.
    fn reduce(&mut self, schedule: &[Share], outputs: usize) -> Result<(), EngineError> {
        if outputs == 0 {
            return Ok(());
        }
        for share in schedule.iter().filter(|share| share.output.is_some()) {
            self.sequences[share.index].0.prepare_sampler(self.vocabulary)?;
        }
        // Where top-p kept more tokens than are ranked it does so again more often than not, and a run would be in vain.
        let decided = self.reduced.iter().all(|row| row.chosen.is_some());
        let may_follow = decided && schedule.len() == outputs && self.make_room_ahead(schedule)?;
        // Nobody looks at what becomes of the rows of sequences that have ended.
        let mut requests = vec![reduction::Request { penalties: None, wish: Wish::Best }; outputs];
        for share in schedule {
            if let Some(row) = share.output {
                requests[row] = self.sequences[share.index].0.sampler.request();
            }
        }
        if may_follow {
            let next = ahead::parts(&self.sequences, schedule);
            let started = self.session.reduce_and_run(&requests, &mut self.reduced, &next.batch())?;
            self.ahead = match started {
                NextRun::Started => Some(Ahead::behind(&self.sequences, schedule)),
                NextRun::NotStarted => None,
            };
        } else {
            self.session.reduce(&requests, &mut self.reduced)?;
        }
        let any = |test: fn(&Reduced) -> bool| {
            schedule.iter().filter_map(|share| share.output).any(|row| test(&self.reduced[row]))
        };
        if any(|row| row.not_finite > 0) {
            self.ahead = None;
            let parts = batch_parts(&self.sequences, schedule);
            let found = first_non_finite(&mut *self.session, &parts.batch())?;
            return Err(EngineError::NonFinite(found.unwrap_or_else(NonFinite::vanished)));
        }
        if self.ahead.is_some() && any(|row| row.chosen.is_none()) {
            // The run that was started has taken the place of logits that are wanted now.
            self.ahead = None;
            self.session.run(&batch_parts(&self.sequences, schedule).batch())?;
        }
        Ok(())
    }

    /// Samples from what the logits were reduced to, and removes the sequences that ended.
    fn collect(&mut self, schedule: &[Share]) -> Result<Vec<TokenEvent>, EngineError> {
        let context = self.session.limits().context;
        let mut events = Vec::new();
        for share in schedule {
            let (sequence, _) = &mut self.sequences[share.index];
            sequence.cached += share.rows;
            let Some(row) = share.output else { continue };
            let sampled = match sequence.sampler.choose(&self.reduced[row]) {
                Some(sampled) => sampled,
                None => {
                    let logits = &self.session.logits()?[row * self.vocabulary..][..self.vocabulary];
                    sequence.sample(logits)?
                }
            };
            sequence.tokens.push(sampled.token);
            let finish = if sequence.end_ids.contains(&sampled.token) {
                Some(FinishReason::Stop)
            } else if sequence.generated() >= sequence.max_tokens {
                Some(FinishReason::Length)
            } else if sequence.tokens.len() >= context {
                Some(FinishReason::Context)
            } else {
                None
            };
            events.push(TokenEvent {
                sequence: sequence.id,
                token: sampled.token,
                logprob: sampled.logprob,
                finish,
            });
        }
        for event in events.iter().filter(|event| event.finish.is_some()) {
            self.cancel(event.sequence)?;
        }
        Ok(events)
    }

    /// Whether the run after that of `schedule` may start before the tokens between them are known: no sequence is certain
    /// to end, and each has room for one more token in the cache.
    fn make_room_ahead(&mut self, schedule: &[Share]) -> Result<bool, EngineError> {
        let context = self.session.limits().context;
        let goes_on = |share: &Share| {
            let (sequence, _) = &self.sequences[share.index];
            share.output.is_some()
                && sequence.goes_on(context)
                && self.rope_set(sequence.tokens.len() + 1) == sequence.rope_set
        };
        // One that waits would have to wait for another step.
        if schedule.len() < self.sequences.len() || !schedule.iter().all(goes_on) {
            return Ok(false);
        }
        for share in schedule {
            let (sequence, table) = &mut self.sequences[share.index];
            let missing = (sequence.tokens.len() + 1).saturating_sub(table.len());
            match self.allocator.append(table, missing) {
                Ok(None) => {}
                Ok(Some(copy)) => self.session.copy_page(copy.from, copy.to)?,
                // The step that needs the page says so.
                Err(PageError::OutOfPages { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// The session, for evaluation outside of sequences; the cache must be idle.
    pub(crate) fn idle_session(&mut self) -> Result<(&mut dyn Session, &mut PageAllocator), EngineError> {
        self.ahead = None;
        self.reset()?;
        Ok((&mut *self.session, &mut self.allocator))
    }
}

/// A sequence's part of a batch.
pub(crate) struct Share {
    pub index: usize,
    pub rows: usize,
    /// The number of its last row among the run's rows of logits, if it is sampled.
    pub output: Option<usize>,
}

/// The batch of a schedule.
fn batch_parts<'a>(sequences: &'a [(Sequence, BlockTable)], schedule: &[Share]) -> BatchParts<'a> {
    let mut parts = BatchParts::default();
    for share in schedule {
        let (sequence, table) = &sequences[share.index];
        let start = parts.tokens.len();
        let range = sequence.cached..sequence.cached + share.rows;
        parts.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
        parts.positions.extend(range.map(|position| position as u32));
        parts.sequences.push(SequenceRows {
            rows: start..start + share.rows,
            block_table: table.pages(),
            rope_set: sequence.rope_set,
        });
        if share.output.is_some() {
            parts.outputs.push((start + share.rows - 1) as u32);
        }
    }
    parts
}

/// The owned pieces of a [`Batch`].
#[derive(Default)]
pub(crate) struct BatchParts<'a> {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub sequences: Vec<SequenceRows<'a>>,
    pub outputs: Vec<u32>,
}

impl BatchParts<'_> {
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            outputs: &self.outputs,
        }
    }
}
