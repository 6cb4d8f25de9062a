//! Where the time goes under a policy.

use mantissa::Options;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::backend::NoProgress;
use serde::Serialize;

use super::Study;
use crate::LabError;
use crate::ceiling::Limit;
use crate::plot::Roofline;
use crate::profile::{self, By, PhaseKind, Profiler, Summary, Workload};

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
    /// Of the prompt.
    pub prefill: PhaseTime,
    /// Of one of the tokens behind it.
    pub decode: PhaseTime,
    /// Both under the ceilings of the machine.
    #[serde(skip)]
    pub roofline: Roofline,
}

/// Where the time of a phase goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PhaseTime {
    /// Each operation, the longest first.
    pub operations: Vec<Operation>,
    /// Seconds of all kernels, each timed by itself.
    pub traced: f64,
    /// Of these, what reading the clock takes.
    pub clock: f64,
    /// Seconds of everything as it runs, untraced.
    pub untraced: f64,
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
    /// What limits it, where its cost is known.
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
        let phase = |kind: PhaseKind, times: usize| {
            let phase = profile.phases.iter().find(|phase| phase.kind == kind)?;
            Some(PhaseTime::of(profile.summary(phase, By::Operation)?, times as f64))
        };
        Ok(Operations {
            prompt,
            generate: GENERATE,
            prefill: phase(PhaseKind::Prefill, 1).unwrap_or_default(),
            decode: phase(PhaseKind::Decode, GENERATE).unwrap_or_default(),
            roofline: profile.roofline(),
        })
    }
}

impl PhaseTime {
    /// Of a phase in which something was done so many times.
    fn of(summary: Summary, times: f64) -> PhaseTime {
        let Summary { rows, traced, clock, untraced, .. } = summary;
        let operation = |row: profile::Row| Operation {
            name: row.name,
            kernel: row.label.kernel,
            seconds: row.seconds.mean / times,
            share: row.share,
            limit: row.bound.map(|bound| match bound.limit {
                Limit::Memory => "memory",
                Limit::Multiply => "products",
            }),
            reached: row.bound.map(|bound| bound.share),
        };
        PhaseTime {
            operations: rows.into_iter().map(operation).collect(),
            traced: traced.mean / times,
            clock: clock / times,
            untraced: untraced.mean / times,
        }
    }
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
