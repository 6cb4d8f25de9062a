//! What `mantissa bench` prints.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Result;
use mantissa::Model;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::ceilings::Unit;
use mantissa_lab::LabError;
use mantissa_lab::bench::generation::{Measured, Row, Test};
use mantissa_lab::bench::record::{self, Record};
use mantissa_lab::ceiling::Ceiling;
use mantissa_lab::decode::Decode;
use mantissa_lab::machine::Machine;
use mantissa_lab::stats::Spread;
use serde_json::{Map, Value, json};

use crate::table::{self, Column};
use crate::{model, output};

/// Everything that was measured.
pub struct Report<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub repetitions: usize,
    pub outcomes: &'a [(PrecisionPolicy, Result<Measured, LabError>)],
}

impl Report<'_> {
    /// Policies that could be measured.
    fn measured(&self) -> impl Iterator<Item = (&PrecisionPolicy, &Measured)> {
        self.outcomes.iter().filter_map(|(policy, outcome)| Some((policy, outcome.as_ref().ok()?)))
    }

    /// Policies that could not, and why.
    fn failed(&self) -> impl Iterator<Item = (&PrecisionPolicy, &LabError)> {
        self.outcomes.iter().filter_map(|(policy, outcome)| Some((policy, outcome.as_ref().err()?)))
    }

    /// Prints everything for people.
    pub fn print(&self) -> Result<()> {
        writeln!(
            output::stdout(),
            "{} on {}; medians of {} repetitions\n",
            self.model.location(),
            self.machine.describe(),
            self.repetitions,
        )?;
        let times = self.machine.threads.map_or_else(String::new, |threads| format!(" x{threads}"));
        self.print_speed(&format!("{} {}{times}", self.machine.backend, self.machine.features))?;
        writeln!(output::stdout())?;
        self.print_memory()?;
        for (policy, error) in self.failed() {
            writeln!(output::stderr(), "{policy}: {error}")?;
        }
        Ok(())
    }

    /// Every repetition, as lines of a file.
    pub fn records(&self) -> Vec<Record> {
        let model = self.model.location().to_string();
        let of = |(policy, measured)| record::of_generation(&model, policy, measured, self.machine);
        self.measured().flat_map(of).collect()
    }

    /// Says on standard error what loading converted.
    pub fn print_conversions(&self) -> Result<()> {
        for (policy, measured) in self.measured() {
            for line in model::conversions(&measured.load) {
                writeln!(output::stderr(), "{policy}: {line}")?;
            }
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
            let (bound, unit, speed) = (row.bound, row.bound.limit.unit(), row.speed());
            vec![
                policy.to_string(),
                row.test.name(),
                format!("{:.1}", speed.median),
                format!("{:.1}..{:.1}", speed.min, speed.max),
                row.first_token().map_or_else(String::new, |spread| milliseconds(&spread)),
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
            ["load", "read", "weights", "cache", "scratch", "predicted", "peak, device", "peak, process"];
        let mut columns = vec![Column::text("policy")];
        columns.extend(headings.map(Column::number));
        columns.push(Column::number("streaming reads"));
        columns.extend(units.iter().map(|unit| Column::number(unit.to_string())));
        let ceiling = |spread: &Spread, unit: &str| {
            let ends = [spread.min, spread.max].map(|end| table::rate(end).replace(' ', ""));
            format!("{}{unit} ({}..{})", table::rate(spread.median), ends[0], ends[1])
        };
        let cells = |(policy, measured): (&PrecisionPolicy, &Measured)| {
            let Ceiling { read, multiply } = &measured.ceiling;
            let mut cells = vec![
                policy.to_string(),
                format!("{:.2} s", measured.load.seconds),
                table::bytes(measured.load.bytes_read),
                table::bytes(measured.memory.weights),
                table::bytes(measured.memory.cache),
                table::bytes(measured.memory.scratch),
                measured.predicted.map_or_else(unknown, |memory| table::bytes(memory.total())),
                measured.peak.device.map_or_else(unknown, table::bytes),
                measured.peak.process.map_or_else(unknown, table::bytes),
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
            .map(|(policy, error)| json!({ "policy": policy.to_string(), "error": error.to_string() }));
        json!({
            "model": self.model.location().to_string(),
            "machine": self.machine,
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
            "load": { "seconds": measured.load.seconds, "bytes": measured.load.bytes_read },
            "memory": {
                "weights": measured.memory.weights,
                "cache": measured.memory.cache,
                "scratch": measured.memory.scratch,
                "predicted": measured.predicted.map(|memory| memory.total()),
                "peak_device": measured.peak.device,
                "peak_process": measured.peak.process,
            },
            "rows": rows,
        })
    }

    fn row_json(&self, policy: &PrecisionPolicy, row: &Row) -> Value {
        let (test, tokens, prompt, sequences) = match row.test {
            Test::Prefill(length) => ("prefill", length, length, 1),
            Test::Decode(Decode { tokens, after, sequences, .. }) => ("decode", tokens, after, sequences),
        };
        let repetitions = row.repetitions.iter().map(|repetition| {
            json!({
                "seconds": repetition.seconds,
                "first_token_seconds": repetition.first_token,
                "share": repetition.bound.share,
            })
        });
        json!({
            "test": test,
            "tokens": tokens,
            "prompt_tokens": prompt,
            "sequences": sequences,
            "policy": policy.to_string(),
            "contract": row.contract,
            "machine": self.machine,
            "tokens_per_second": row.speed().json(),
            "seconds": row.seconds.json(),
            "first_token_seconds": row.first_token().map(|spread| spread.json()),
            "repetitions": repetitions.collect::<Vec<_>>(),
            "bound": row.bound.limit.name(),
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

/// The median with its ends.
fn milliseconds(seconds: &Spread) -> String {
    let [median, min, max] = [seconds.median, seconds.min, seconds.max].map(|seconds| seconds * 1e3);
    format!("{median:.1} ms ({min:.1}..{max:.1})")
}
