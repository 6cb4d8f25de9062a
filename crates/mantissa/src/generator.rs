//! A model made ready: prompts in, text out.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use mantissa_engine::engine::Engine;
use mantissa_engine::sampling::SamplingOptions;
use mantissa_engine::score::{Hidden, Scores};
use mantissa_engine::sequence::{FinishReason, Request, SequenceId, TokenEvent};
use mantissa_model::tokenizer::Tokenizer;
use mantissa_ops::{LoadReport, MemoryUse, Plan};

use crate::error::Error;
use crate::options::GenerateOptions;
use crate::prompt::{Completion, Flow, Piece, Prompt, Timings};
use crate::stream::{Stopped, TextStream};
use crate::text::LazyTokenizer;

/// A model made ready to generate, with weights packed and a cache allocated.
pub struct Generator {
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Arc<LazyTokenizer>,
    /// What the checkpoint recommends for sampling.
    pub(crate) recommended: SamplingOptions,
    /// Tokens that end an answer, as the checkpoint names them; the tokenizer may know more.
    pub(crate) checkpoint_end_ids: Vec<u32>,
}

impl Generator {
    /// The plan: every step with its contract and kernel.
    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }

    /// What loading read and converted.
    pub fn report(&self) -> &LoadReport {
        self.engine.session().report()
    }

    /// Bytes held.
    pub fn memory(&self) -> MemoryUse {
        self.engine.session().memory()
    }

    /// Bytes of a device's own memory that it has taken, at their peak, as the driver counts them: see
    /// [`Session::device_memory`](mantissa_ops::Session::device_memory).
    pub fn device_memory(&self) -> Option<u64> {
        self.engine.session().device_memory()
    }

    /// Tokens that prompt and answer may have together.
    pub fn context(&self) -> usize {
        self.engine.context()
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// Where a text is given and the model has no tokenizer.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode(prompt)
    }

    /// Logits of every position of a token sequence, and where asked for the hidden states; the model must be prepared
    /// with [`LogitRows::All`](crate::LogitRows::All).
    ///
    /// # Errors
    /// Where the tokens are not usable, or a result is not finite.
    pub fn score(&mut self, ids: &[u32], hidden: Hidden) -> Result<Scores, Error> {
        Ok(self.engine.score(ids, hidden)?)
    }

    /// Continues a prompt. `on_piece` is called after every step with what is new, and may return [`Flow`] to cancel.
    ///
    /// # Errors
    /// Where the prompt or the options are not usable, or a result is not finite.
    pub fn generate<R: Into<Flow>>(
        &mut self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
        on_piece: impl FnMut(Piece<'_>) -> R,
    ) -> Result<Completion, Error> {
        let mut completions = self.generate_batch(&[prompt.into()], options, on_piece)?;
        completions.pop().ok_or(Error::NoPrompt)
    }

    /// Continues several prompts, as many at once as the model was prepared for; the completions are in the order of
    /// the prompts. No answer depends on the others.
    ///
    /// # Errors
    /// As [`Generator::generate`]; all prompts are checked before the first runs.
    pub fn generate_batch<R: Into<Flow>>(
        &mut self,
        prompts: &[Prompt],
        options: &GenerateOptions,
        mut on_piece: impl FnMut(Piece<'_>) -> R,
    ) -> Result<Vec<Completion>, Error> {
        let tokenizer = self.tokenizer.get()?;
        let called = Instant::now();
        let request = Request {
            prompt: Vec::new(),
            max_tokens: options.max_tokens,
            sampling: options.sampling.or(&self.recommended).resolve()?,
            fallback_seed: 0,
            end_of_text_ids: self.end_of_text_ids(tokenizer.as_deref()),
            end_of_text: options.end_of_text,
        };
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let ids = self.encode(prompt)?;
            self.engine.check_prompt(&ids, usize::from(options.max_tokens > 0))?;
            answers.push(Answer::new(ids, tokenizer.as_deref(), options)?);
        }
        if options.max_tokens == 0 {
            return Ok(answers
                .into_iter()
                .map(|answer| answer.complete(FinishReason::Length, called))
                .collect());
        }
        // What a call before this one left behind when it failed.
        self.engine.reset()?;
        let outcome = self.drive(&mut answers, &request, |piece| on_piece(piece).into());
        if outcome.is_err() {
            self.engine.reset()?;
        }
        outcome?;
        Ok(answers.into_iter().map(|answer| answer.complete(FinishReason::Cancelled, called)).collect())
    }

    /// Steps until every answer has ended or the callback cancels.
    fn drive(
        &mut self,
        answers: &mut [Answer<'_>],
        request: &Request,
        mut on_piece: impl FnMut(Piece<'_>) -> Flow,
    ) -> Result<(), Error> {
        loop {
            self.admit(answers, request)?;
            if self.engine.is_idle() {
                return Ok(());
            }
            let events = self.engine.step()?;
            let mut flow = Flow::Continue;
            if events.is_empty() {
                flow = on_piece(Piece { prompt: 0, token: None, text: "" });
            }
            for event in events {
                let Some(index) = answers.iter().position(|answer| answer.id == Some(event.sequence)) else {
                    continue;
                };
                let text = answers[index].take(&event)?;
                if answers[index].ended.is_some() {
                    self.engine.cancel(event.sequence)?;
                }
                if on_piece(Piece { prompt: index, token: Some(event.token), text: &text }) == Flow::Cancel {
                    flow = Flow::Cancel;
                }
            }
            if flow == Flow::Cancel {
                self.engine.reset()?;
                return flush_all(answers, on_piece);
            }
        }
    }

    /// Starts as many waiting answers as there is room for; `request` says everything but their prompts and seeds.
    fn admit(&mut self, answers: &mut [Answer<'_>], request: &Request) -> Result<(), Error> {
        let running = answers.iter().filter(|answer| answer.id.is_some() && answer.ended.is_none()).count();
        let room = self.engine.session().limits().sequences.saturating_sub(running);
        for answer in answers.iter_mut().filter(|answer| answer.id.is_none()).take(room) {
            let prompt = answer.prompt.clone();
            let request = Request { prompt, fallback_seed: answer.seed, ..request.clone() };
            answer.id = Some(self.engine.add(request)?);
            answer.started = Some(Instant::now());
        }
        Ok(())
    }

    /// The tokens that end an answer, whoever names them.
    fn end_of_text_ids(&self, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
        let mut ids = self.checkpoint_end_ids.clone();
        ids.extend(tokenizer.iter().flat_map(|tokenizer| tokenizer.eos_ids()));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// An answer that is being generated.
struct Answer<'t> {
    prompt: Vec<u32>,
    id: Option<SequenceId>,
    seed: u64,
    ids: Vec<u32>,
    /// Nothing without a tokenizer.
    text: Option<String>,
    /// Until the answer has ended.
    stream: Option<TextStream<'t>>,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    ended: Option<FinishReason>,
}

impl<'t> Answer<'t> {
    fn new(
        prompt: Vec<u32>,
        tokenizer: Option<&'t Tokenizer>,
        options: &GenerateOptions,
    ) -> Result<Self, Error> {
        let stream = match tokenizer {
            Some(tokenizer) => Some(TextStream::new(tokenizer, &options.stop)?),
            None if options.stop.is_empty() => None,
            None => return Err(Error::StopWithoutTokenizer),
        };
        Ok(Answer {
            prompt,
            id: None,
            seed: options.sampling.seed.unwrap_or_else(random_seed),
            ids: Vec::new(),
            text: stream.is_some().then(String::new),
            stream,
            started: None,
            first: None,
            last: None,
            ended: None,
        })
    }

    /// Takes the next token and returns the text that it makes certain.
    fn take(&mut self, event: &TokenEvent) -> Result<String, Error> {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.ids.push(event.token);
        self.ended = event.finish;
        let Some(stream) = &mut self.stream else { return Ok(String::new()) };
        let (mut text, stopped) = stream.push(event.token)?;
        self.keep(&text, stopped);
        if self.ended.is_some() {
            text.push_str(&self.flush()?);
        }
        Ok(text)
    }

    /// Ends the text and returns what was held back.
    fn flush(&mut self) -> Result<String, Error> {
        let Some(stream) = self.stream.take() else { return Ok(String::new()) };
        let (text, stopped) = stream.finish()?;
        self.keep(&text, stopped);
        Ok(text)
    }

    fn keep(&mut self, text: &str, stopped: Stopped) {
        if let Some(all) = &mut self.text {
            all.push_str(text);
        }
        if stopped == Stopped::Yes {
            self.ended = Some(FinishReason::Stop);
        }
    }

    /// The completion, `called` being when the caller asked for it.
    fn complete(self, otherwise: FinishReason, called: Instant) -> Completion {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        let timings = Timings {
            prompt_tokens: self.prompt.len(),
            generated_tokens: self.ids.len(),
            prefill_seconds: between(self.started, self.first),
            decode_seconds: between(self.first, self.last),
            first_token_seconds: between(Some(called), self.first),
        };
        Completion {
            ids: self.ids,
            text: self.text,
            finish_reason: self.ended.unwrap_or(otherwise),
            timings,
            seed: self.seed,
        }
    }
}

/// Gives out what cancelled answers held back.
fn flush_all(answers: &mut [Answer<'_>], mut on_piece: impl FnMut(Piece<'_>) -> Flow) -> Result<(), Error> {
    for (prompt, answer) in answers.iter_mut().enumerate() {
        let text = answer.flush()?;
        if !text.is_empty() {
            on_piece(Piece { prompt, token: None, text: &text });
        }
    }
    Ok(())
}

/// A seed that differs from call to call: the standard library's hasher is keyed by the system's randomness.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
