//! How well a model predicts a text under one policy, and how far that is from another.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Instant;

use mantissa_cpu::pool::Pool;
use mantissa_engine::engine::Engine;
use mantissa_engine::evaluation::{Estimate, Window, WindowRule, compare, log_likelihoods, percentile};
use mantissa_engine::score::{ScoredRows, Scoring};
use mantissa_model::tokenizer::{Around, DecodeSpecial, Recognise, SpecialTokens, Tokenizer};

use crate::error::Error;
use crate::generator::Generator;
use crate::prompt::Flow;

/// A measurement to make: prepare the models with [`LogitRows::All`](crate::LogitRows::All) and the rule's context.
pub struct Perplexity<'a> {
    /// The model under the policy that is judged.
    pub policy: &'a mut Generator,
    /// The same model under the policy that it is held against.
    pub reference: Option<&'a mut Generator>,
    /// How texts are cut.
    pub windows: WindowRule,
    /// Threads for the likelihoods; all cores where nothing is given. No result depends on it.
    pub threads: Option<NonZeroUsize>,
}

/// What was found over one text, or several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    /// Tokens of the texts, counted or not.
    pub tokens: usize,
    /// Windows that were run.
    pub windows: usize,
    /// Characters of the tokens that were predicted.
    pub characters: usize,
    /// Under the policy.
    pub policy: Track,
    /// Against the reference, if there is one.
    pub against: Option<Against>,
}

/// What a model said, and how fast.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Track {
    /// Log-likelihood in nats of each token that was predicted.
    pub log_likelihoods: Vec<f32>,
    /// Tokens that were run.
    pub run: usize,
    /// How long that took, without the likelihoods.
    pub seconds: f64,
}

/// What a reference said, and how far the policy is from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Against {
    /// The reference.
    pub reference: Track,
    /// KL divergence of the policy from the reference at each prediction, in nats.
    pub divergences: Vec<f64>,
    /// At how many predictions both have the same most probable token.
    pub same_top: usize,
}

/// How far a measurement is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluated {
    /// Windows done.
    pub windows: usize,
    /// Windows of the text.
    pub total: usize,
}

impl Perplexity<'_> {
    /// Measures one text. `on_window` is called before every window and at the end, and may return [`Flow`] to cancel;
    /// then what was found so far is given.
    ///
    /// # Errors
    /// Where the model has no tokenizer, the text is too short, the two models were not prepared alike, or a result is not
    /// finite.
    pub fn measure<R: Into<Flow>>(
        &mut self,
        text: &str,
        mut on_window: impl FnMut(Evaluated) -> R,
    ) -> Result<Predictions, Error> {
        let tokenizer = self.policy.tokenizer.get()?.ok_or(Error::TextWithoutTokenizer)?;
        self.check_alike()?;
        let text = Text::new(text, &tokenizer)?;
        let windows = self.windows.windows(text.tokens.len())?;
        let total = windows.len();
        let mut found = Predictions {
            tokens: text.tokens.len(),
            against: self.reference.is_some().then(Against::default),
            ..Predictions::default()
        };
        for (done, window) in windows.enumerate() {
            if on_window(Evaluated { windows: done, total }).into() == Flow::Cancel {
                return Ok(found);
            }
            found.characters += text.characters(&window, &tokenizer)?;
            self.run(&text.window(&window), window.rows, &mut found)?;
            found.windows += 1;
        }
        on_window(Evaluated { windows: total, total });
        Ok(found)
    }

    /// Two models can be compared where they give the logits of the same tokens, at the same positions at a time.
    fn check_alike(&self) -> Result<(), Error> {
        let Some(reference) = &self.reference else { return Ok(()) };
        let of = |engine: &Engine| {
            let limits = engine.session().limits();
            [("vocabulary", engine.vocabulary()), ("chunk", limits.rows), ("output", limits.outputs)]
        };
        for ((what, policy), (_, reference)) in of(&self.policy.engine).into_iter().zip(of(&reference.engine))
        {
            if policy != reference {
                return Err(Error::NotAlike { what, policy, reference });
            }
        }
        Ok(())
    }

    /// Runs one window, chunk by chunk under both policies, so that no logits need to be kept.
    fn run(&mut self, tokens: &[u32], rows: Range<usize>, found: &mut Predictions) -> Result<(), Error> {
        let threads = self.threads.unwrap_or_else(Pool::default_threads);
        let mut policy = Run::begin(&mut self.policy.engine, tokens, rows.clone(), &mut found.policy)?;
        let (Some(reference), Some(against)) = (&mut self.reference, &mut found.against) else {
            while let Some(rows) = policy.next()? {
                let next = &tokens[rows.positions.start + 1..=rows.positions.end];
                let likelihoods = log_likelihoods(rows.logits, next, threads)?;
                policy.track.log_likelihoods.extend(likelihoods);
            }
            return Ok(());
        };
        let mut reference = Run::begin(&mut reference.engine, tokens, rows, &mut against.reference)?;
        // Both were prepared alike, so that their chunks are the same.
        while let (Some(rows), Some(other)) = (policy.next()?, reference.next()?) {
            let next = &tokens[rows.positions.start + 1..=rows.positions.end];
            for row in compare(rows.logits, other.logits, next, threads)? {
                policy.track.log_likelihoods.push(row.policy);
                reference.track.log_likelihoods.push(row.reference);
                against.divergences.push(row.divergence);
                against.same_top += usize::from(row.same_top);
            }
        }
        Ok(())
    }
}

/// One window under one policy.
struct Run<'a> {
    scoring: Scoring<'a>,
    track: &'a mut Track,
}

impl<'a> Run<'a> {
    fn begin(
        engine: &'a mut Engine,
        tokens: &'a [u32],
        rows: Range<usize>,
        track: &'a mut Track,
    ) -> Result<Run<'a>, Error> {
        track.run += rows.end;
        Ok(Run { scoring: engine.scoring(tokens, rows)?, track })
    }

    /// The next logits that count.
    fn next(&mut self) -> Result<Option<ScoredRows<'_>>, Error> {
        let started = Instant::now();
        let rows = self.scoring.next_rows()?;
        self.track.seconds += started.elapsed().as_secs_f64();
        Ok(rows)
    }
}

/// A text as tokens.
struct Text {
    tokens: Vec<u32>,
    /// The token that begins a sequence, where the tokenizer puts it before a text.
    bos: Option<u32>,
}

impl Text {
    /// Names of special tokens in the text are only text.
    fn new(text: &str, tokenizer: &Tokenizer) -> Result<Text, Error> {
        let special = SpecialTokens { around: Around::Add, within: Recognise::Nothing };
        let tokens = tokenizer.encode(text, special)?;
        let bos = tokenizer.bos().filter(|bos| tokens.first() == Some(bos));
        Ok(Text { tokens, bos })
    }

    /// The tokens of a window as the model sees them: the first one gives way to the one that begins a sequence.
    fn window(&self, window: &Window) -> Vec<u32> {
        let mut tokens = self.tokens[window.tokens.clone()].to_vec();
        if let (Some(bos), Some(first)) = (self.bos, tokens.first_mut()) {
            *first = bos;
        }
        tokens
    }

    /// Characters of the tokens that a window predicts: those that they add to what is before them, so that it does not
    /// matter how a tokenizer treats the beginning of a text.
    fn characters(&self, window: &Window, tokenizer: &Tokenizer) -> Result<usize, Error> {
        let tokens = &self.tokens[window.tokens.clone()];
        let characters = |end: usize| -> Result<usize, Error> {
            Ok(tokenizer.decode(&tokens[..end], DecodeSpecial::Skip)?.chars().count())
        };
        // A character of several tokens counts where the last of them is.
        Ok(characters(window.rows.end + 1)?.saturating_sub(characters(window.rows.start + 1)?))
    }
}

impl Track {
    /// Mean negative log-likelihood of a token, in nats; nothing of no predictions.
    pub fn nats_per_token(&self) -> Option<Estimate> {
        Estimate::mean(self.log_likelihoods.iter().map(|&likelihood| -f64::from(likelihood)))
    }

    /// Perplexity: the exponential of [`Track::nats_per_token`].
    pub fn perplexity(&self) -> Option<Estimate> {
        self.nats_per_token().map(Estimate::exp)
    }

    /// Tokens run in a second; nothing where none was.
    pub fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.run as f64 / self.seconds)
    }

    fn append(&mut self, other: &Track) {
        self.log_likelihoods.extend(&other.log_likelihoods);
        self.run += other.run;
        self.seconds += other.seconds;
    }
}

impl Predictions {
    /// Tokens that were predicted.
    pub fn count(&self) -> usize {
        self.policy.log_likelihoods.len()
    }

    /// Nats that the model spent on a character of the predicted tokens, which can be compared between tokenizers; nothing
    /// of no characters. The track is one of these predictions' own.
    pub fn nats_per_character(&self, track: &Track) -> Option<f64> {
        let nats = track.nats_per_token()?.value * track.log_likelihoods.len() as f64;
        (self.characters > 0).then(|| nats / self.characters as f64)
    }

    /// The logarithm of the ratio of the policy's perplexity to the reference's. Its error is that of the difference at
    /// each token, which is much smaller than the error of either: both have the same tokens to predict.
    pub fn log_ratio(&self) -> Option<Estimate> {
        self.weighted_difference(1.0, 1.0)
    }

    /// The policy's perplexity less the reference's, with the error that follows to the first order from those of the
    /// logarithms and their covariance.
    pub fn difference(&self) -> Option<Estimate> {
        let policy = self.policy.perplexity()?.value;
        let reference = self.against.as_ref()?.reference.perplexity()?.value;
        let error = self.weighted_difference(policy, reference)?.error;
        Some(Estimate { value: policy - reference, error })
    }

    /// The mean over all tokens of the negative log-likelihoods' difference, each multiplied by a weight.
    fn weighted_difference(&self, policy_weight: f64, reference_weight: f64) -> Option<Estimate> {
        let reference = &self.against.as_ref()?.reference.log_likelihoods;
        let pairs = self.policy.log_likelihoods.iter().zip(reference);
        Estimate::mean(pairs.map(|(&policy, &reference)| {
            reference_weight * f64::from(reference) - policy_weight * f64::from(policy)
        }))
    }

    /// Adds what was found over another text; measured alike.
    pub fn append(&mut self, other: &Predictions) {
        self.tokens += other.tokens;
        self.windows += other.windows;
        self.characters += other.characters;
        self.policy.append(&other.policy);
        if let Some(other) = &other.against {
            let against = self.against.get_or_insert_default();
            against.reference.append(&other.reference);
            against.divergences.extend(&other.divergences);
            against.same_top += other.same_top;
        }
    }
}

/// KL divergences of many predictions, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Their mean.
    pub mean: Estimate,
    /// Half of them are below this.
    pub median: f64,
    /// 99 of 100 are below this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Against {
    /// Mean and percentiles of the KL divergences; nothing of no predictions.
    pub fn divergence(&self) -> Option<Divergence> {
        let mut sorted = self.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Divergence {
            mean: Estimate::mean(sorted.iter().copied())?,
            median: percentile(&sorted, 0.5)?,
            p99: percentile(&sorted, 0.99)?,
            max: sorted.last().copied()?,
        })
    }

    /// The share of predictions at which both have the same most probable token; nothing of no predictions.
    pub fn same_top(&self) -> Option<Estimate> {
        Estimate::share(self.same_top, self.divergences.len())
    }
}
