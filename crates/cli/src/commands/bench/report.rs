//! What `mantissa bench` prints.

use std::io::Write;

use anyhow::{Error, Result};
use mantissa::Model;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::BackendInfo;
use serde_json::{Value, json};

use super::measure::{Ceiling, Measured, Row, Test};
use super::stats::Spread;
use crate::output;
use crate::table::{self, Column};

/// Everything that was measured.
pub struct Report<'a> {
    pub model: &'a Model,
    pub info: &'a BackendInfo,
    pub repetitions: usize,
    pub outcomes: &'a [(PrecisionPolicy, Result<Measured>)],
}

impl Report<'_> {
    /// Policies that could be measured.
    fn measured(&self) -> impl Iterator<Item = (&PrecisionPolicy, &Measured)> {
        self.outcomes.iter().filter_map(|(policy, outcome)| Some((policy, outcome.as_ref().ok()?)))
    }

    /// Policies that could not, and why.
    fn failed(&self) -> impl Iterator<Item = (&PrecisionPolicy, &Error)> {
        self.outcomes.iter().filter_map(|(policy, outcome)| Some((policy, outcome.as_ref().err()?)))
    }

    /// Prints everything for people.
    pub fn print(&self) -> Result<()> {
        let info = self.info;
        let (threads, times) = match info.threads {
            Some(threads) => (format!(", {threads} threads"), format!(" x{threads}")),
            None => (String::new(), String::new()),
        };
        writeln!(
            output::stdout(),
            "{} on {}, {}{threads}; medians of {} repetitions\n",
            self.model.location(),
            info.device,
            info.features,
            self.repetitions,
        )?;
        self.print_speed(&format!("{} {}{times}", info.name, info.features))?;
        writeln!(output::stdout())?;
        self.print_memory()?;
        for (policy, error) in self.failed() {
            writeln!(output::stderr(), "{policy}: {error:#}")?;
        }
        Ok(())
    }

    fn print_speed(&self, device: &str) -> Result<()> {
        let columns = [
            Column::text("policy"),
            Column::text("test"),
            Column::number("tokens/s"),
            Column::number("min..max"),
            Column::number("first token"),
            Column::number("reached"),
            Column::number("ceiling"),
            Column::number("share"),
            Column::text("contract"),
            Column::text("device"),
        ];
        let cells = |policy: &PrecisionPolicy, row: &Row| {
            let unit = row.test.unit();
            vec![
                policy.to_string(),
                row.test.name(),
                format!("{:.1}", row.speed.median),
                format!("{:.1}..{:.1}", row.speed.min, row.speed.max),
                row.first_token().map_or_else(String::new, |spread| format!("{:.1} ms", spread.median * 1e3)),
                format!("{}{unit}", table::rate(row.achieved)),
                row.bound.map_or_else(unknown, |bound| format!("{}{unit}", table::rate(bound.ceiling))),
                row.bound.map_or_else(unknown, |bound| format!("{:.1} %", 100.0 * bound.share)),
                row.contract.clone(),
                device.to_owned(),
            ]
        };
        let rows: Vec<Vec<String>> = self
            .measured()
            .flat_map(|(policy, measured)| measured.rows.iter().map(move |row| cells(policy, row)))
            .collect();
        table::print(&columns, &rows)
    }

    fn print_memory(&self) -> Result<()> {
        let columns = [
            Column::text("policy"),
            Column::number("load"),
            Column::number("read"),
            Column::number("weights"),
            Column::number("cache"),
            Column::number("scratch"),
            Column::number("peak memory"),
            Column::number("streaming reads"),
            Column::number("f32 multiply-add"),
            Column::number("bf16 pairs"),
        ];
        let ceiling = |ceilings: Option<&Ceiling>, of: fn(&Ceiling) -> Spread, unit: &str| {
            let Some(spread) = ceilings.map(of) else { return unknown() };
            let ends = [spread.min, spread.max].map(|end| table::rate(end).replace(' ', ""));
            format!("{}{unit} ({}..{})", table::rate(spread.median), ends[0], ends[1])
        };
        let cells = |(policy, measured): (&PrecisionPolicy, &Measured)| {
            vec![
                policy.to_string(),
                format!("{:.2} s", measured.load_seconds),
                table::bytes(measured.load_bytes),
                table::bytes(measured.memory.weights),
                table::bytes(measured.memory.cache),
                table::bytes(measured.memory.scratch),
                measured.peak.map_or_else(|| "unknown".to_owned(), table::bytes),
                ceiling(measured.ceilings.as_ref(), |ceilings| ceilings.read, "B/s"),
                ceiling(measured.ceilings.as_ref(), |ceilings| ceilings.f32_fma, "op/s"),
                ceiling(measured.ceilings.as_ref(), |ceilings| ceilings.bf16_pairs, "op/s"),
            ]
        };
        table::print(&columns, &self.measured().map(cells).collect::<Vec<_>>())
    }

    /// Everything for programs.
    pub fn json(&self) -> Value {
        let measured = self.measured().map(|(policy, measured)| self.policy_json(policy, measured));
        let failed = self
            .failed()
            .map(|(policy, error)| json!({ "policy": policy.to_string(), "error": format!("{error:#}") }));
        json!({
            "model": self.model.location().to_string(),
            "device": self.info.device,
            "isa": self.info.features,
            "threads": self.info.threads,
            "repetitions": self.repetitions,
            "policies": measured.chain(failed).collect::<Vec<_>>(),
        })
    }

    fn policy_json(&self, policy: &PrecisionPolicy, measured: &Measured) -> Value {
        let ceilings = measured.ceilings.map(|ceilings| {
            json!({
                "read_bytes_per_second": ceilings.read.json(),
                "f32_fma_operations_per_second": ceilings.f32_fma.json(),
                "bf16_pairs_operations_per_second": ceilings.bf16_pairs.json(),
            })
        });
        let rows: Vec<Value> = measured.rows.iter().map(|row| self.row_json(policy, row)).collect();
        json!({
            "policy": policy.to_string(),
            "ceilings": ceilings,
            "load": { "seconds": measured.load_seconds, "bytes": measured.load_bytes },
            "memory": {
                "weights": measured.memory.weights,
                "cache": measured.memory.cache,
                "scratch": measured.memory.scratch,
                "peak": measured.peak,
            },
            "rows": rows,
        })
    }

    fn row_json(&self, policy: &PrecisionPolicy, row: &Row) -> Value {
        let (test, tokens, prompt) = match row.test {
            Test::Prefill(length) => ("prefill", length, length),
            Test::Decode { tokens, prompt } => ("decode", tokens, prompt),
        };
        let bound = match row.test {
            Test::Prefill(_) => "multiply-add rate",
            Test::Decode { .. } => "memory bandwidth",
        };
        json!({
            "test": test,
            "tokens": tokens,
            "prompt_tokens": prompt,
            "policy": policy.to_string(),
            "contract": row.contract,
            "device": self.info.device,
            "isa": self.info.features,
            "threads": self.info.threads,
            "tokens_per_second": row.speed.json(),
            "seconds": row.seconds.json(),
            "bound": bound,
            "achieved_per_second": row.achieved,
            "ceiling_per_second": row.bound.map(|bound| bound.ceiling),
            "share": row.bound.map(|bound| bound.share),
        })
    }
}

/// Stands where nothing was measured.
fn unknown() -> String {
    "-".to_owned()
}

impl Test {
    fn name(self) -> String {
        match self {
            Test::Prefill(length) => format!("prefill {length}"),
            Test::Decode { tokens, prompt } => format!("decode {tokens} after {prompt}"),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Test::Prefill(_) => "op/s",
            Test::Decode { .. } => "B/s",
        }
    }
}

impl Row {
    /// Seconds until the first new token, of a prompt.
    fn first_token(&self) -> Option<Spread> {
        match self.test {
            Test::Prefill(_) => Some(self.seconds),
            Test::Decode { .. } => None,
        }
    }
}
