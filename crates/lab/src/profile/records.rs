//! A profile for programs: one JSON object, or rows of a table.

use mantissa::ops::cost::Cost;
use serde::Serialize;
use serde_json::{Value, json};

use super::{By, Phase, Profile, Row, Seconds, Summary};
use crate::ceiling::Bound;
use crate::machine::Machine;

/// A row of a phase with everything that it was measured on, for tables of many profiles.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    /// Name of the backend.
    pub backend: String,
    /// The device, in words.
    pub device: String,
    /// Instruction set or compute capability in use.
    pub features: String,
    /// Version of the device's driver, where it has one.
    pub driver: Option<String>,
    /// Threads, where the backend has them.
    pub threads: Option<usize>,
    /// Version of the program.
    pub version: String,
    /// Commit of the program.
    pub commit: String,
    /// The model.
    pub model: String,
    /// The policy.
    pub policy: String,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each sequence generates.
    pub generate: usize,
    /// Sequences that run together.
    pub sequences: usize,
    /// `prefill` or `decode`.
    pub phase: &'static str,
    /// Batches of the phase, whose sum every number of this row is.
    pub runs: usize,
    /// What the row is about: what rows are summed up by, `launch`, `between steps`, `sampling`, `traced`, `launched` or
    /// `untraced`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Scopes.
    pub calls: Option<usize>,
    /// Seconds, the mean of the repetitions in the middle.
    pub seconds: f64,
    /// The shortest.
    pub seconds_min: f64,
    /// The longest.
    pub seconds_max: f64,
    /// Of the phase's traced time.
    pub share: f64,
    /// Bytes of weights read.
    pub weight_bytes: Option<u64>,
    /// Bytes of activations read and written.
    pub activation_bytes: Option<u64>,
    /// Bytes of the cache read.
    pub cache_read_bytes: Option<u64>,
    /// Bytes of the cache written.
    pub cache_written_bytes: Option<u64>,
    /// All bytes.
    pub bytes: Option<u64>,
    /// Those per second.
    pub bytes_per_second: Option<f64>,
    /// Multiplications and additions.
    pub operations: Option<u64>,
    /// Those per second.
    pub operations_per_second: Option<f64>,
    /// The nearer ceiling: memory bandwidth or the multiply-add rate.
    pub bound: Option<&'static str>,
    /// How much of it was reached.
    pub ceiling_share: Option<f64>,
    /// The kernels.
    pub kernel: String,
    /// Format of weights.
    pub weights: Option<String>,
    /// Format of activations.
    pub activations: String,
    /// Format of the cache.
    pub cache: Option<String>,
    /// Format of sums.
    pub accumulate: String,
    /// Format of the result.
    pub output: String,
    /// The contract in short.
    pub contract: String,
    /// The operands.
    pub shape: String,
    /// How they lie in memory.
    pub strides: String,
    /// What else decides what is computed, with semicolons between.
    pub flags: String,
}

impl Profile {
    /// Everything for programs. Numbers of a phase are sums over its runs.
    pub fn json(&self, machine: &Machine, by: By) -> Value {
        let multiply: Vec<Value> = self
            .ceiling
            .multiply
            .iter()
            .map(|(unit, rate)| json!({ "unit": unit.to_string(), "operations_per_second": rate.json() }))
            .collect();
        json!({
            "machine": machine,
            "model": self.model,
            "policy": self.plan.policy.to_string(),
            "workload": self.workload,
            "repetitions": self.repetitions(),
            "ceilings": { "read_bytes_per_second": self.ceiling.read.json(), "multiply": multiply },
            "by": by,
            "phases": self.phases.iter().filter_map(|phase| self.phase_json(phase, by)).collect::<Vec<_>>(),
        })
    }

    /// How often each phase was repeated.
    pub fn repetitions(&self) -> usize {
        self.phases.first().map_or(0, |phase| phase.repetitions.len())
    }

    fn phase_json(&self, phase: &Phase, by: By) -> Option<Value> {
        let summary = self.summary(phase, by)?;
        Some(json!({
            "phase": phase.kind,
            "runs": phase.shapes.len(),
            "rows": summary.rows.iter().map(row_json).collect::<Vec<_>>(),
            "launches": summary.launches.iter().map(row_json).collect::<Vec<_>>(),
            "between_seconds": summary.between,
            "sampling_seconds": summary.sampling,
            "traced_seconds": summary.traced,
            "launched_seconds": summary.launched,
            "untraced_seconds": summary.untraced,
            "overhead": summary.overhead.json(),
            "clock_seconds": summary.clock,
            "scope_clock_seconds": phase.clock(),
            "cost": cost_json(&summary.cost),
            "bound": summary.bound.map(bound_json),
        }))
    }

    /// Every row of every phase, those about whole phases included.
    pub fn records(&self, machine: &Machine, by: By) -> Vec<Record> {
        let summaries = self.phases.iter().filter_map(|phase| Some((phase, self.summary(phase, by)?)));
        summaries.flat_map(|(phase, summary)| self.phase_records(machine, phase, &summary, by)).collect()
    }

    fn phase_records(&self, machine: &Machine, phase: &Phase, summary: &Summary, by: By) -> Vec<Record> {
        let base = self.base(machine, phase);
        let mut records: Vec<Record> = summary.rows.iter().map(|row| of_row(&base, row, by.name())).collect();
        records.extend(summary.launches.iter().map(|row| of_row(&base, row, "launch")));
        let whole = |kind: &'static str, seconds: Seconds| {
            let record = Record { kind, name: kind.to_owned(), ..base.clone() };
            with_seconds(record, seconds, seconds.mean / summary.traced.mean)
        };
        records.push(whole("between steps", summary.between));
        records.push(whole("sampling", summary.sampling));
        records.push(whole("traced", summary.traced));
        records.extend(summary.launched.map(|launched| whole("launched", launched)));
        let untraced = whole("untraced", summary.untraced);
        records.push(with_cost(untraced, &summary.cost, summary.bound));
        records
    }

    fn base(&self, machine: &Machine, phase: &Phase) -> Record {
        Record {
            backend: machine.backend.clone(),
            device: machine.device.clone(),
            features: machine.features.clone(),
            driver: machine.driver.clone(),
            threads: machine.threads,
            version: machine.build.version.clone(),
            commit: machine.build.commit.clone(),
            model: self.model.clone(),
            policy: self.plan.policy.to_string(),
            prompt: self.workload.prompt,
            generate: self.workload.generate,
            sequences: self.workload.sequences,
            phase: phase.kind.name(),
            runs: phase.shapes.len(),
            ..Record::default()
        }
    }
}

fn of_row(base: &Record, row: &Row, kind: &'static str) -> Record {
    let label = row.label.clone();
    let record = Record {
        kind,
        name: row.name.clone(),
        calls: Some(row.calls),
        kernel: label.kernel,
        weights: label.dtypes.weights,
        activations: label.dtypes.activations,
        cache: label.dtypes.cache,
        accumulate: label.dtypes.accumulate,
        output: label.dtypes.output,
        contract: label.contract,
        shape: label.shape,
        strides: label.strides,
        flags: label.flags.join("; "),
        ..base.clone()
    };
    let record = with_seconds(record, row.seconds, row.share);
    match &row.cost {
        Some(cost) => with_cost(record, cost, row.bound),
        None => record,
    }
}

fn with_seconds(record: Record, seconds: Seconds, share: f64) -> Record {
    let Seconds { mean, min, max } = seconds;
    Record { seconds: mean, seconds_min: min, seconds_max: max, share, ..record }
}

fn with_cost(record: Record, cost: &Cost, bound: Option<Bound>) -> Record {
    let seconds = record.seconds;
    Record {
        weight_bytes: Some(cost.weights),
        activation_bytes: Some(cost.activations),
        cache_read_bytes: Some(cost.cache_read),
        cache_written_bytes: Some(cost.cache_written),
        bytes: Some(cost.bytes()),
        bytes_per_second: Some(cost.bytes() as f64 / seconds),
        operations: Some(cost.operations),
        operations_per_second: Some(cost.operations as f64 / seconds),
        bound: bound.map(|bound| bound.limit.name()),
        ceiling_share: bound.map(|bound| bound.share),
        ..record
    }
}

fn row_json(row: &Row) -> Value {
    let rate =
        |amount: fn(&Cost) -> u64| row.cost.as_ref().map(|cost| amount(cost) as f64 / row.seconds.mean);
    json!({
        "name": row.name,
        "calls": row.calls,
        "seconds": row.seconds,
        "share": row.share,
        "cost": row.cost.as_ref().map(cost_json),
        "bytes_per_second": rate(Cost::bytes),
        "operations_per_second": rate(|cost| cost.operations),
        "bound": row.bound.map(bound_json),
        "label": row.label,
    })
}

/// What a step moves and computes, as JSON.
pub fn cost_json(cost: &Cost) -> Value {
    json!({
        "bytes": cost.bytes(),
        "weights": cost.weights,
        "activations": cost.activations,
        "cache_read": cost.cache_read,
        "cache_written": cost.cache_written,
        "operations": cost.operations,
    })
}

fn bound_json(bound: Bound) -> Value {
    let Bound { limit, achieved, ceiling, share } = bound;
    json!({
        "limit": limit.name(),
        "achieved_per_second": achieved,
        "ceiling_per_second": ceiling,
        "share": share,
    })
}
