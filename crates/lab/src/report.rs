//! The validation report: what policies cost and what they do to a model, side by side, in speed, memory and accuracy, and
//! whether they keep what is promised of them.

mod accuracy;
mod checkpoint;
mod errors;
mod files;
mod markdown;
mod operations;
mod pictures;
mod speed;
mod tables;
mod targets;

use std::collections::BTreeMap;

use mantissa::numerics::PrecisionPolicy;
use mantissa::numerics::policy::Field;
use mantissa::ops::Backend;
use mantissa::{Model, Options};
use serde::Serialize;

use crate::LabError;
use crate::machine::Machine;
use crate::parity::Comparison;
use crate::progress::Progress;
use crate::stats::Spread;

pub use accuracy::{Haiku, Predicted, REFERENCE};
pub use checkpoint::{Checkpoint, WeightFile};
pub use files::File;
pub use operations::{Operation, Operations, PhaseTime};
pub use speed::{AtContext, Bytes, Memory, Speed};
pub use targets::{Target, Verdict};

/// What is to be reported, and with what.
pub struct Study<'a> {
    /// The model.
    pub model: &'a Model,
    /// Has the device that the model runs on.
    pub backend: &'a dyn Backend,
    /// How the model is prepared; policy and context are put in.
    pub options: Options,
    /// The policies, in the order in which they are shown.
    pub policies: Vec<PrecisionPolicy>,
    /// Tokens of context at which speed and memory are measured, the shortest first.
    pub contexts: Vec<usize>,
    /// How much of everything is measured.
    pub extent: Extent,
    /// What is predicted, for perplexity.
    pub text: Text,
    /// What haiku are asked about; none where they are not wanted.
    pub words: Vec<String>,
    /// Stands beside the numbers.
    pub made: Made,
    /// Is told what is being done.
    pub progress: &'a dyn Progress,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Extent {
    /// Tokens that are generated in one timed window, one at a time.
    pub generate: usize,
    /// How often a prompt is timed, at most; and how many windows of decoding.
    pub repetitions: usize,
    /// Windows of the text that are predicted, at most.
    pub windows: usize,
    /// Tokens that are held against the f64 reference; none where it is not wanted.
    pub reference_tokens: usize,
    /// Seconds that speed at one context may take under one policy: of a slow machine, long contexts are left out.
    pub budget: f64,
}

/// A text to predict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Text {
    /// What it is called.
    pub name: String,
    /// What it says.
    #[serde(skip)]
    pub content: String,
}

impl Text {
    /// The Time Machine by H. G. Wells (1895), which the built-in model has not read.
    pub fn built_in() -> Text {
        Text {
            name: "The Time Machine (built in)".to_owned(),
            content: include_str!("../../../models/tiny/validation/the-time-machine.txt").to_owned(),
        }
    }
}

/// How a report came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// On what, and by which program.
    pub machine: Machine,
    /// The day, in words.
    pub date: String,
    /// What was typed.
    pub command: String,
}

/// A value, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found<T> {
    /// The value.
    Measured(T),
    /// Why there is none.
    Missing(String),
}

impl<T> Found<T> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Found::Measured(value) => Some(value),
            Found::Missing(_) => None,
        }
    }

    /// Why there is none, if there is none.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Found::Measured(_) => None,
            Found::Missing(reason) => Some(reason),
        }
    }

    /// What was found, or the error as the reason; an end by the user is an end.
    fn of(result: Result<T, LabError>) -> Result<Found<T>, LabError> {
        match result {
            Ok(value) => Ok(Found::Measured(value)),
            Err(LabError::Cancelled) => Err(LabError::Cancelled),
            Err(error) => Ok(Found::Missing(error.to_string())),
        }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Where the model lies.
    pub model: String,
    /// What it is.
    pub checkpoint: Checkpoint,
    /// How the report came about.
    pub made: Made,
    /// How much was measured.
    pub extent: Extent,
    /// The ceilings of the machine that came up.
    pub ceilings: Vec<Ceiling>,
    /// What was predicted.
    pub text: Text,
    /// Words that haiku were asked about.
    pub words: usize,
    /// Each policy.
    pub policies: Vec<UnderPolicy>,
    /// What is promised, and whether it was kept.
    pub targets: Vec<Target>,
}

/// A ceiling of the machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ceiling {
    /// What it limits.
    pub name: String,
    /// `B/s` or `op/s`.
    pub unit: &'static str,
    /// Over the whole report.
    pub rate: Spread,
}

/// What was found under one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnderPolicy {
    /// Its name.
    pub name: String,
    /// The formats of its fields, by their names.
    pub fields: BTreeMap<&'static str, String>,
    /// Speed and memory at each context.
    pub contexts: Vec<AtContext>,
    /// The distance of a few tokens' hidden states and logits from the f64 reference.
    pub error: Found<Comparison>,
    /// Perplexity, and distance from f32.
    pub predicted: Found<Predicted>,
    /// Haiku.
    pub haiku: Found<Haiku>,
    /// Where the time goes.
    pub operations: Found<Operations>,
}

impl Study<'_> {
    /// Measures everything.
    ///
    /// # Errors
    /// Where the model's files cannot be read, or `progress` ends it. A policy that cannot be carried out, and all else
    /// that cannot be measured, is part of the report with the reason.
    pub fn run(&self) -> Result<Report, LabError> {
        self.progress.say("reading the model's files");
        let checkpoint = Checkpoint::of(self.model, self.progress)?;
        let mut ceilings = speed::Ceilings::default();
        let mut references = errors::References::default();
        let mut policies = Vec::new();
        for (index, &policy) in self.policies.iter().enumerate() {
            let step = |part: usize| self.progress.step(5 * index + part, 5 * self.policies.len());
            step(0);
            let contexts = self.contexts(policy, &mut ceilings)?;
            step(1);
            let operations = Found::of(self.operations(policy))?;
            step(2);
            let error = Found::of(self.error(policy, &mut references))?;
            step(3);
            let predicted = Found::of(self.predict(policy))?;
            step(4);
            let haiku = Found::of(self.haiku(policy))?;
            let fields = Field::ALL.map(|field| (field.name(), policy.get(field).to_string())).into();
            let name = policy.to_string();
            policies.push(UnderPolicy { name, fields, contexts, error, predicted, haiku, operations });
        }
        Ok(Report {
            model: self.model.location().to_string(),
            checkpoint,
            made: self.made.clone(),
            extent: self.extent,
            ceilings: ceilings.finish(),
            text: self.text.clone(),
            words: self.words.len(),
            targets: targets::judge(&policies),
            policies,
        })
    }
}
