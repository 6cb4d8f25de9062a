//! Where the time goes under a policy.

use mantissa::Options;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::backend::NoProgress;
use serde::Serialize;

use super::Study;
use crate::LabError;
use crate::ceiling::Limit;
use crate::profile::{self, By, Phase, PhaseKind, Profile, Profiler, Summary, Workload};

/// Tokens of the prompt that is profiled, as far as the model goes.
const PROMPT: usize = 512;
/// Tokens that are generated behind it.
const GENERATE: usize = 16;
/// How often both are profiled.
const REPETITIONS: usize = 3;

/// The operations of a prompt and of tokens behind it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operations {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens behind it.
    pub generate: usize,
    /// Of the prompt, the longest first.
    pub prefill: Vec<Operation>,
    /// Of the tokens behind it, the longest first.
    pub decode: Vec<Operation>,
}

/// An operation in all layers together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// The kernels that carry it out.
    pub kernel: String,
    /// Seconds; of decode, in one token.
    pub seconds: f64,
    /// Of the time of all.
    pub share: f64,
    /// Operations for each byte, where its cost is known.
    pub intensity: Option<f64>,
    /// Operations in a second, where its cost is known.
    pub rate: Option<f64>,
    /// What limits it.
    pub limit: Option<&'static str>,
    /// How much of that limit it reached.
    pub reached: Option<f64>,
}

impl Study<'_> {
    /// Profiles a prompt and tokens behind it.
    pub(super) fn operations(&self, policy: PrecisionPolicy) -> Result<Operations, LabError> {
        let longest = self.model.config().max_position_embeddings;
        let prompt = PROMPT.min(longest.saturating_sub(GENERATE)).max(1);
        let workload = Workload { prompt, generate: GENERATE, sequences: 1 };
        let options =
            Options { policy: Some(policy), context: Some(workload.context()), ..self.options.clone() };
        self.progress.say(&format!("{policy}: loading for the profile"));
        let mut session = self.model.session(&options, self.backend, &NoProgress)?;
        let progress = Profiling { study: self, policy };
        let profiler = Profiler { workload, repetitions: REPETITIONS };
        let profile = profiler.measure(&mut *session, self.backend, &progress)?;
        let of = |kind: PhaseKind| profile.phases.iter().find(|phase| phase.kind == kind);
        let rows = |kind, times| of(kind).map(|phase| rows(&profile, phase, times)).unwrap_or_default();
        Ok(Operations {
            prompt,
            generate: GENERATE,
            prefill: rows(PhaseKind::Prefill, 1),
            decode: rows(PhaseKind::Decode, GENERATE),
        })
    }
}

fn rows(profile: &Profile, phase: &Phase, times: usize) -> Vec<Operation> {
    let Some(Summary { rows, .. }) = profile.summary(phase, By::Operation) else { return Vec::new() };
    let row = |row: profile::Row| {
        let seconds = row.seconds.mean;
        let cost = row.cost.filter(|cost| cost.bytes() > 0 && cost.operations > 0);
        Operation {
            name: row.name,
            kernel: row.label.kernel,
            seconds: seconds / times as f64,
            share: row.share,
            intensity: cost.map(|cost| cost.operations as f64 / cost.bytes() as f64),
            rate: cost.map(|cost| cost.operations as f64 / seconds),
            limit: row.bound.map(|bound| match bound.limit {
                Limit::Memory => "memory",
                Limit::Multiply => "products",
            }),
            reached: row.bound.map(|bound| bound.share),
        }
    };
    rows.into_iter().map(row).collect()
}

/// Says under which policy something is profiled.
struct Profiling<'a, 'b> {
    study: &'a Study<'b>,
    policy: PrecisionPolicy,
}

impl crate::progress::Progress for Profiling<'_, '_> {
    fn say(&self, what: &str) {
        self.study.progress.say(&format!("{}: profile, {what}", self.policy));
    }

    fn cancelled(&self) -> bool {
        self.study.progress.cancelled()
    }
}
