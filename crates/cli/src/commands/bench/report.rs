//! What `mantissa bench` prints.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{Error, Result};
use mantissa::Model;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::BackendInfo;
use mantissa::ops::ceilings::Unit;
use serde_json::{Map, Value, json};

use super::measure::{Measured, Row, Test};
use crate::output;
use crate::table::{self, Column};
use mantissa_lab::ceiling::{Ceiling, Limit};
use mantissa_lab::decode::Decode;
use mantissa_lab::stats::Spread;

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
            let (bound, unit) = (row.bound, row.bound.limit.unit());
            vec![
                policy.to_string(),
                row.test.name(),
                format!("{:.1}", row.speed.median),
                format!("{:.1}..{:.1}", row.speed.min, row.speed.max),
                row.first_token().map_or_else(String::new, |spread| format!("{:.1} ms", spread.median * 1e3)),
                format!("{}{unit}", table::rate(bound.achieved)),
                format!("{}{unit}", table::rate(bound.ceiling)),
                format!("{:.1} %", 100.0 * bound.share),
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
        let units: BTreeSet<Unit> =
            self.measured().flat_map(|(_, measured)| measured.ceiling.multiply.keys().copied()).collect();
        let headings =
            ["load", "read", "weights", "cache", "scratch", "predicted", "peak memory", "streaming reads"];
        let mut columns = vec![Column::text("policy")];
        columns.extend(headings.map(Column::number));
        columns.extend(units.iter().map(|unit| Column::number(unit.to_string())));
        let ceiling = |spread: &Spread, unit: &str| {
            let ends = [spread.min, spread.max].map(|end| table::rate(end).replace(' ', ""));
            format!("{}{unit} ({}..{})", table::rate(spread.median), ends[0], ends[1])
        };
        let cells = |(policy, measured): (&PrecisionPolicy, &Measured)| {
            let Ceiling { read, multiply } = &measured.ceiling;
            let mut cells = vec![
                policy.to_string(),
                format!("{:.2} s", measured.load_seconds),
                table::bytes(measured.load_bytes),
                table::bytes(measured.memory.weights),
                table::bytes(measured.memory.cache),
                table::bytes(measured.memory.scratch),
                measured.predicted.map_or_else(unknown, |memory| table::bytes(memory.total())),
                measured.peak.map_or_else(unknown, table::bytes),
                ceiling(read, "B/s"),
            ];
            let rate = |unit| multiply.get(unit).map_or_else(unknown, |rate| ceiling(rate, "op/s"));
            cells.extend(units.iter().map(rate));
            cells
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
        let Ceiling { read, multiply } = &measured.ceiling;
        let mut ceilings = Map::from_iter([("read_bytes_per_second".to_owned(), read.json())]);
        ceilings.extend(multiply.iter().map(|(unit, rate)| {
            let name = unit.to_string().replace([' ', '-'], "_");
            (format!("{name}_operations_per_second"), rate.json())
        }));
        let rows: Vec<Value> = measured.rows.iter().map(|row| self.row_json(policy, row)).collect();
        json!({
            "policy": policy.to_string(),
            "ceilings": ceilings,
            "load": { "seconds": measured.load_seconds, "bytes": measured.load_bytes },
            "memory": {
                "weights": measured.memory.weights,
                "cache": measured.memory.cache,
                "scratch": measured.memory.scratch,
                "predicted": measured.predicted.map(|memory| memory.total()),
                "peak": measured.peak,
            },
            "rows": rows,
        })
    }

    fn row_json(&self, policy: &PrecisionPolicy, row: &Row) -> Value {
        let (test, tokens, prompt, sequences) = match row.test {
            Test::Prefill(length) => ("prefill", length, length, 1),
            Test::Decode(Decode { tokens, after, sequences, .. }) => ("decode", tokens, after, sequences),
        };
        let bound = match row.bound.limit {
            Limit::Multiply => "multiply-add rate",
            Limit::Memory => "memory bandwidth",
        };
        json!({
            "test": test,
            "tokens": tokens,
            "prompt_tokens": prompt,
            "sequences": sequences,
            "policy": policy.to_string(),
            "contract": row.contract,
            "device": self.info.device,
            "isa": self.info.features,
            "threads": self.info.threads,
            "tokens_per_second": row.speed.json(),
            "seconds": row.seconds.json(),
            "bound": bound,
            "achieved_per_second": row.bound.achieved,
            "ceiling_per_second": row.bound.ceiling,
            "share": row.bound.share,
        })
    }
}

/// Stands where something is not known.
fn unknown() -> String {
    "-".to_owned()
}

impl Test {
    fn name(self) -> String {
        match self {
            Test::Prefill(length) => format!("prefill {length}"),
            Test::Decode(Decode { tokens, after, sequences: 1, .. }) => {
                format!("decode {tokens} after {after}")
            }
            Test::Decode(Decode { tokens, after, sequences, .. }) => {
                format!("decode {tokens} of {sequences} sequences after {after}")
            }
        }
    }
}

impl Row {
    /// Seconds until the first new token, of a prompt.
    fn first_token(&self) -> Option<Spread> {
        match self.test {
            Test::Prefill(_) => Some(self.seconds),
            Test::Decode(_) => None,
        }
    }
}
