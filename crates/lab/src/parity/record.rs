//! Runs a model over a few tokens and keeps what the residual stream holds after every layer, and the logits.

use mantissa::model::arch;
use mantissa::numerics::{Format, PrecisionPolicy};
use mantissa::ops::backend::{NoProgress, StepObserver, ValueReader};
use mantissa::ops::batch::{Batch, SequenceRows};
use mantissa::ops::program::{HiddenPoint, Program, ValueRole};
use mantissa::ops::reference::Rounding;
use mantissa::ops::{Backend, Plan, ReferenceBackend};
use mantissa::{LogitRows, Model, Options};

use crate::LabError;
use crate::memory;
use crate::progress::Progress;

/// Products that the reference computes between two looks at whether it is to go on.
const PRODUCTS: usize = 1 << 31;

/// What recordings of the reference are called.
pub const REFERENCE: &str = "f64 reference";

/// What runs the model.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Model,
    /// Policy, and how to prepare the model; context and wanted logits are set here.
    pub options: &'a Options,
    /// Who computes.
    pub backend: &'a dyn Backend,
}

/// What a model computed of a few tokens.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Policy and device, for people.
    pub label: String,
    /// Format of the residual stream.
    pub format: Format,
    /// Format of the KV cache.
    pub cache: Format,
    /// Where the residual stream was looked at: `embedding`, `layers.0`, and so on.
    pub points: Vec<String>,
    /// What it was there, `[tokens, hidden]`.
    pub hidden: Vec<Vec<f32>>,
    /// `[tokens, vocabulary]`.
    pub logits: Vec<f32>,
    /// Tokens.
    pub tokens: usize,
    /// The first step whose result was not finite.
    pub first_non_finite: Option<String>,
}

/// Runs the tokens as one prompt.
///
/// # Errors
/// Where the model cannot be prepared or run, and [`LabError::Cancelled`].
pub fn record(subject: &Subject<'_>, tokens: &[u32], progress: &dyn Progress) -> Result<Recording, LabError> {
    let options = options_for(subject.options, tokens)?;
    let info = subject.backend.info();
    let label = format!("{} on {}", options.policy(), info.name);
    run(&Subject { options: &options, ..*subject }, tokens, label, progress)
}

/// Runs the tokens through the f64 reference: nothing is rounded but the weights, once, into the policy's format.
///
/// # Errors
/// Where the reference does not fit the memory, as [`record`].
pub fn record_reference(
    model: &Model,
    options: &Options,
    tokens: &[u32],
    progress: &dyn Progress,
) -> Result<Recording, LabError> {
    record_in_f64(model, options, tokens, Rounding::Exact, progress)
}

/// Runs the tokens in f64 too, but rounds wherever the contracts do: what no kernel of these formats can avoid.
///
/// # Errors
/// As [`record_reference`].
pub fn record_formats(
    model: &Model,
    options: &Options,
    tokens: &[u32],
    progress: &dyn Progress,
) -> Result<Recording, LabError> {
    record_in_f64(model, options, tokens, Rounding::AsContract, progress)
}

fn record_in_f64(
    model: &Model,
    options: &Options,
    tokens: &[u32],
    rounding: Rounding,
    progress: &dyn Progress,
) -> Result<Recording, LabError> {
    let options = options_for(options, tokens)?;
    let program = arch::program(model.config()).map_err(mantissa::Error::from)?;
    let needed = reference_bytes(&program, &options.policy(), tokens.len());
    if let Some(available) = memory::available().filter(|&available| available < needed) {
        return Err(LabError::ReferenceMemory { needed, available });
    }
    let backend = ReferenceBackend::new(rounding);
    let label = match rounding {
        Rounding::Exact => REFERENCE,
        Rounding::AsContract => "f64, rounded where the contracts round",
    };
    run(&Subject { model, options: &options, backend: &backend }, tokens, label.to_owned(), progress)
}

/// Bytes that the reference takes for a prompt of so many tokens: weights in f32, everything else in f64.
pub fn reference_bytes(program: &Program, policy: &PrecisionPolicy, tokens: usize) -> u64 {
    let largest = program.weights.iter().map(|weight| weight.len()).max().unwrap_or(0);
    let weights = 4 * program.parameters() + largest * policy.weights().bytes();
    let value = |role, width: usize| match role {
        ValueRole::Activation => 8 * width,
        // Handed out in f32 as well.
        ValueRole::Logits => 12 * width,
    };
    let values: usize = program.values.iter().map(|spec| value(spec.role, spec.width)).sum();
    let cache = program.cache.map_or(0, |cache| 2 * 8 * cache.layers * cache.heads.kv_width());
    // What is kept for the comparison, for both sides.
    let hidden: usize = program.hidden.iter().map(|point| 8 * program.value(point.value).width).sum();
    (weights + tokens * (values + cache + hidden)) as u64
}

fn options_for(options: &Options, tokens: &[u32]) -> Result<Options, LabError> {
    if tokens.is_empty() {
        return Err(LabError::NoTokens);
    }
    let logits = LogitRows::All;
    Ok(Options { context: Some(tokens.len()), sequences: Some(1), logits, ..options.clone() })
}

fn run(
    subject: &Subject<'_>,
    tokens: &[u32],
    label: String,
    progress: &dyn Progress,
) -> Result<Recording, LabError> {
    progress.say(&format!("{label}: loading"));
    let mut session = subject.model.session(subject.options, subject.backend, &NoProgress)?;
    let plan = session.plan().clone();
    let limits = *session.limits();
    let chunk = (PRODUCTS / plan.program.parameters().max(1)).clamp(1, limits.rows);
    let table: Vec<u32> = (0..limits.pages).map(|page| page as u32).collect();
    let rope_set = plan.program.rope.as_ref().map_or(0, |rope| rope.set_for(tokens.len()));
    let mut logits = Vec::new();
    let mut recorder = Recorder {
        hidden: vec![Vec::new(); plan.program.hidden.len()],
        first_non_finite: None,
        rows: 0,
        done: 0,
        all: plan.steps.len() * tokens.len().div_ceil(chunk),
        plan: &plan,
        progress,
    };
    progress.say(&label);
    for (index, part) in tokens.chunks(chunk).enumerate() {
        progress.go_on()?;
        let first = (index * chunk) as u32;
        let rows = part.len() as u32;
        recorder.rows = part.len();
        let batch = Batch {
            tokens: part,
            positions: &(first..first + rows).collect::<Vec<u32>>(),
            sequences: &[SequenceRows { rows: 0..part.len(), block_table: &table, rope_set }],
            outputs: &(0..rows).collect::<Vec<u32>>(),
        };
        session.run_observed(&batch, &mut recorder)?;
        logits.extend_from_slice(session.logits()?);
    }
    let Recorder { hidden, first_non_finite, .. } = recorder;
    Ok(Recording {
        label,
        format: plan.policy.activations(),
        cache: plan.policy.kv_cache(),
        points: plan.program.hidden.iter().map(|point| point.name.clone()).collect(),
        hidden,
        logits,
        tokens: tokens.len(),
        first_non_finite,
    })
}

/// Keeps the residual stream, and looks for the first number that is not finite.
struct Recorder<'a> {
    plan: &'a Plan,
    hidden: Vec<Vec<f32>>,
    first_non_finite: Option<String>,
    /// Of the current batch.
    rows: usize,
    done: usize,
    all: usize,
    progress: &'a dyn Progress,
}

impl StepObserver for Recorder<'_> {
    fn after_step(&mut self, step: usize, values: &dyn ValueReader) {
        self.done += 1;
        self.progress.step(self.done, self.all);
        let program = &self.plan.program;
        let rows = |value| {
            let mut numbers = values.read(value);
            numbers.truncate(self.rows * program.value(value).width);
            numbers
        };
        let op = &self.plan.steps[step].op;
        if self.first_non_finite.is_none() && rows(op.output()).iter().any(|number| !number.is_finite()) {
            self.first_non_finite = Some(self.plan.steps[step].name.clone());
        }
        let here = |point: &&HiddenPoint| point.step == step;
        for (index, point) in program.hidden.iter().enumerate().filter(|(_, point)| here(point)) {
            self.hidden[index].extend(rows(point.value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    #[test]
    fn the_reference_takes_what_it_is_said_to_take() {
        let model = Model::built_in().unwrap();
        let program = arch::program(model.config()).unwrap();
        let options = Options { context: Some(16), logits: LogitRows::All, ..Options::default() };
        let backend = ReferenceBackend::new(Rounding::Exact);
        let session = model.session(&options, &backend, &NoProgress).unwrap();
        let (held, said) = (session.memory().total(), reference_bytes(&program, &options.policy(), 16));
        // Beside it there is a tensor on its way, and what is kept for comparison.
        assert!(held <= said && said < held + held / 4, "{held} {said}");
    }

    #[test]
    fn later_tokens_change_nothing_before_them() {
        let model = Model::built_in().unwrap();
        let options = Options::default();
        let truth = record_reference(&model, &options, &[5, 6, 7, 8], &Quiet).unwrap();
        let short = record_reference(&model, &options, &[5, 6], &Quiet).unwrap();
        for (whole, part) in truth.hidden.iter().zip(&short.hidden) {
            assert_eq!(whole[..part.len()], part[..]);
        }
        assert_eq!(truth.logits[..short.logits.len()], short.logits[..]);
        assert!(matches!(record_reference(&model, &options, &[], &Quiet), Err(LabError::NoTokens)));
    }
}
