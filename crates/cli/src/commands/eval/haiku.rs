//! `mantissa eval haiku`: whether a model under a policy can still count to seventeen.

mod report;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use mantissa::engine::sampling::SamplingOptions;
use mantissa::engine::sequence::FinishReason;
use mantissa::eval::haiku::{self, Verdict};
use mantissa::eval::syllables;
use mantissa::model::template::{ChatTemplate, GenerationPrompt};
use mantissa::numerics::{PrecisionPolicy, Preset};
use mantissa::ops::MemoryUse;
use mantissa::{Flow, GenerateOptions, Model, Options, Prompt};
use serde_json::{Value, json};

use crate::args::at_least_one;
use crate::commands::tokenize::read_text;
use crate::context::Context;
use crate::interrupt::Interrupted;
use crate::model::{self, ModelArgs};
use crate::output;
use crate::sampling::SamplingArgs;
use report::Report;

/// Answers that are generated together. None depends on the others; more would wait for the slowest of more.
const TOGETHER: usize = 16;
/// What stands for the word in the request.
const PLACE: &str = "{word}";

/// Arguments of `mantissa eval haiku`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa eval haiku                                          the built-in model under every preset
  mantissa eval haiku --word owl --word snow --policy bf16
  mantissa eval haiku Qwen/Qwen2.5-0.5B-Instruct --words nouns.txt --policy f16 --policy f16,kv_cache=f8e4m3
  mantissa eval haiku --policy bf16 --at-least 90              fails where fewer than 90 % pass

Each word is put into the request, which goes through the model's chat template. An answer passes where all of this holds:
  text           neither U+FFFD, which stands for bytes that are no UTF-8, nor control characters
  lines          three lines, none blank
  word           the word is one of its words, in capitals or not; its plural and possessive are others
  syllables      5, 7 and 5 in the lines
  no repetition  no line twice; no word three times but articles, pronouns, prepositions, conjunctions, auxiliaries
Syllables are counted by a list (models/tiny/words/syllables.tsv) and, for words that are not in it, by spelling: runs of
vowels, without silent e, -es and -ed, with -le, and with two for neighbours such as in \"giant\" and \"poem\". A word with
digits or letters of another alphabet cannot be counted, and fails.

Without --policy, every preset is tried. tokens/s counts generated tokens over the whole time, with reading the requests.
The exit code tells nothing of the shares, unless --at-least is given.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    words: WordArgs,

    /// What to ask, with {word} in the word's place
    #[arg(long, value_name = "TEXT", default_value = haiku::REQUEST)]
    prompt: String,

    /// A chat template to use instead of the model's
    #[arg(long, value_name = "FILE.jinja")]
    template: Option<PathBuf>,

    /// Tokens of an answer at most
    #[arg(long, short = 'n', value_name = "N", default_value = "64", value_parser = at_least_one)]
    max_tokens: std::num::NonZeroUsize,

    /// Fail where the share that passes is less than this, or a policy is refused
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    at_least: Option<f64>,

    /// Print one JSON object with every answer
    #[arg(long)]
    json: bool,

    /// Draw tokens as the checkpoint recommends, instead of taking the most probable one each time; --temperature,
    /// --top-k, --top-p and --min-p imply it
    #[arg(long, conflicts_with = "greedy", help_heading = "Choosing tokens")]
    sample: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What to write about.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = false)]
struct WordArgs {
    /// File with a word a line; - for standard input. If neither this nor --word is given: the words in
    /// models/tiny/words/held_out.txt, which the built-in model was never asked about
    #[arg(long, value_name = "FILE")]
    words: Option<PathBuf>,

    /// A word; may be repeated
    #[arg(long, value_name = "WORD")]
    word: Vec<String>,
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    if !args.prompt.contains(PLACE) {
        bail!("--prompt {:?} does not say where the word stands: put {PLACE} there", args.prompt);
    }
    // Before anything is loaded: it would be wrong under every policy.
    args.sampling().resolve()?;
    let words = args.words.read()?;
    let model = args.model.open()?;
    let prompts = args.prompts(&model, &words)?;
    let policies = if context.policies.is_empty() {
        Preset::ALL.map(Preset::policy).to_vec()
    } else {
        context.policies.clone()
    };
    let mut test = Test { model: &model, args, words: &words, prompts: &prompts, longest: 1 };
    for prompt in &prompts {
        test.longest = test.longest.max(model.encode(prompt)?.len());
    }
    let mut outcomes = Vec::with_capacity(policies.len());
    for policy in policies {
        // One policy that cannot be carried out does not spoil the others.
        outcomes.push(match test.under(policy, context) {
            Err(error) if error.is::<Interrupted>() => return Err(error),
            outcome => (policy, outcome),
        });
    }
    let report = Report { model: &model, words: &words, prompt: &args.prompt, outcomes: &outcomes };
    if args.json {
        output::json(&report.json(&args.sampling(), args.max_tokens.get()))?;
    } else {
        report.print()?;
    }
    if outcomes.iter().all(|(_, outcome)| outcome.is_err()) {
        bail!("no policy could be carried out");
    }
    match args.at_least {
        Some(percent) => demand(percent, &outcomes),
        None => Ok(()),
    }
}

impl WordArgs {
    fn read(&self) -> Result<Vec<String>> {
        let words: Vec<String> = match &self.words {
            Some(path) => haiku::word_list(&read_text(path)?).map(str::to_owned).collect(),
            None if self.word.is_empty() => haiku::held_out_words().map(str::to_owned).collect(),
            None => self.word.iter().map(|word| word.trim().to_owned()).collect(),
        };
        if words.is_empty() {
            bail!("the list has no words: write one a line");
        }
        match words.iter().find(|word| syllables::words(word).next().is_none()) {
            Some(word) => bail!("{word:?} is no word: there is no letter in it"),
            None => Ok(words),
        }
    }
}

impl Args {
    /// The request for each word, as the model is given it.
    fn prompts(&self, model: &Model, words: &[String]) -> Result<Vec<Prompt>> {
        let template = match &self.template {
            Some(file) => mantissa::chat_template_from_file(model.location().clone(), file)?,
            None => model.chat_template()?,
        };
        words.iter().map(|word| self.request(&template, word)).collect()
    }

    fn request(&self, template: &ChatTemplate, word: &str) -> Result<Prompt> {
        let content = self.prompt.replace(PLACE, word);
        let chat: Value = json!([{ "role": "user", "content": content }]);
        Ok(Prompt::Rendered(template.render(&chat, GenerationPrompt::Add)?))
    }

    fn sampling(&self) -> SamplingOptions {
        let options = self.sampling.options();
        let draw = self.sample
            || options.temperature.is_some()
            || options.top_k.is_some()
            || options.top_p.is_some()
            || options.min_p.is_some();
        if draw { options } else { SamplingOptions { temperature: Some(0.0), ..options } }
    }
}

/// What is asked of a model under every policy.
struct Test<'a> {
    model: &'a Model,
    args: &'a Args,
    words: &'a [String],
    prompts: &'a [Prompt],
    /// Tokens of the longest prompt.
    longest: usize,
}

/// The answers under one policy.
struct Answers {
    memory: MemoryUse,
    seconds: f64,
    answers: Vec<Answer>,
}

/// The answer to one word.
struct Answer {
    text: String,
    tokens: usize,
    finish_reason: FinishReason,
    seed: u64,
    verdict: Verdict,
}

impl Test<'_> {
    fn under(&self, policy: PrecisionPolicy, context: &Context) -> Result<Answers> {
        let max_tokens = self.args.max_tokens.get();
        let options = Options {
            context: Some(
                self.longest.saturating_add(max_tokens).min(self.model.config().max_position_embeddings),
            ),
            sequences: Some(TOGETHER.min(self.words.len())),
            overflow: self.args.model.overflow(),
            ..context.options_under(Some(policy))
        };
        let mut generator = model::prepare(self.model, &options, context)?;
        let generate =
            GenerateOptions { sampling: self.args.sampling(), max_tokens, ..GenerateOptions::default() };
        let bar = output::count_bar(policy.to_string(), "words");
        bar.set_length(self.words.len() as u64);
        let mut begun = vec![false; self.words.len()];
        let guard = context.interrupt.guard();
        let start = Instant::now();
        let outcome = generator.generate_batch(self.prompts, &generate, |piece| {
            // Answers begin in the order of the words, as others end.
            if piece.token.is_some() && !std::mem::replace(&mut begun[piece.prompt], true) {
                bar.inc(1);
            }
            if guard.requested() { Flow::Cancel } else { Flow::Continue }
        });
        let seconds = start.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let completions = outcome?;
        if guard.requested() {
            return Err(Interrupted.into());
        }
        let answers = self.words.iter().zip(completions).map(|(word, done)| {
            let text = done.text.context("the model has no tokenizer")?;
            Ok(Answer {
                verdict: haiku::judge(&text, word),
                text,
                tokens: done.ids.len(),
                finish_reason: done.finish_reason,
                seed: done.seed,
            })
        });
        let answers = answers.collect::<Result<_>>()?;
        Ok(Answers { memory: generator.memory(), seconds, answers })
    }
}

impl Answers {
    /// How many fulfil a condition, in percent.
    fn share(&self, condition: impl Fn(&Verdict) -> bool) -> f64 {
        let fulfil = self.answers.iter().filter(|answer| condition(&answer.verdict)).count();
        100.0 * fulfil as f64 / self.answers.len() as f64
    }

    /// How many pass, in percent.
    fn passing(&self) -> f64 {
        self.share(Verdict::passes)
    }

    /// Tokens of all answers.
    fn tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens).sum()
    }

    /// Generated tokens per second.
    fn rate(&self) -> f64 {
        self.tokens() as f64 / self.seconds
    }
}

/// Fails where a policy's share is less than what was demanded.
fn demand(percent: f64, outcomes: &[(PrecisionPolicy, Result<Answers>)]) -> Result<()> {
    let below = outcomes.iter().filter_map(|(policy, outcome)| match outcome {
        Ok(answers) if answers.passing() >= percent => None,
        Ok(answers) => Some(format!("{policy} ({:.1} %)", answers.passing())),
        Err(_) => Some(format!("{policy} (refused)")),
    });
    let below: Vec<String> = below.collect();
    if below.is_empty() {
        return Ok(());
    }
    bail!("fewer than {percent} % of the answers pass under {}", below.join(", "))
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').trim().parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("a percentage is a number from 0 to 100".to_owned()),
    }
}
