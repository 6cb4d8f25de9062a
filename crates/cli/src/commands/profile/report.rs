//! What `mantissa profile` prints.

use std::io::Write;

use anyhow::Result;
use mantissa::ops::cost::Cost;
use mantissa_lab::ceiling::{Bound, Limit};
use mantissa_lab::machine::Machine;
use mantissa_lab::profile::{By, Phase, PhaseKind, Profile, Row, Seconds, Summary};

use crate::output;
use crate::table::{self, Column};

/// A profile for people.
pub struct Report<'a> {
    pub machine: &'a Machine,
    pub profile: &'a Profile,
    pub by: By,
}

impl Report<'_> {
    /// Prints everything.
    pub fn print(&self) -> Result<()> {
        let Profile { plan, ceiling, .. } = self.profile;
        writeln!(
            output::stdout(),
            "{} under {} on {}; {} repetitions",
            self.profile.model,
            plan.policy,
            self.machine.describe(),
            self.profile.repetitions(),
        )?;
        let mut ceilings = vec![format!("streaming reads {}B/s", table::rate(ceiling.read.median))];
        ceilings.extend(
            ceiling.multiply.iter().map(|(unit, rate)| format!("{unit} {}op/s", table::rate(rate.median))),
        );
        writeln!(output::stdout(), "ceilings: {}", ceilings.join(", "))?;
        for phase in &self.profile.phases {
            if let Some(summary) = self.profile.summary(phase, self.by) {
                writeln!(output::stdout(), "\n{}", self.title(phase))?;
                Section { phase, summary: &summary, by: self.by }.print()?;
            }
        }
        Ok(())
    }

    fn title(&self, phase: &Phase) -> String {
        let workload = &self.profile.workload;
        let many = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let sequences = many(workload.sequences, "sequence");
        let runs = phase.shapes.len();
        match phase.kind {
            PhaseKind::Prefill => {
                let batches = many(runs, "run");
                format!("prefill: {sequences} of {} tokens in {batches}, all together", workload.prompt)
            }
            PhaseKind::Decode => {
                let tokens =
                    if runs == 1 { "1 token".to_owned() } else { format!("the mean of {runs} tokens") };
                format!("decode: {tokens} of {sequences} after {} ones", workload.prompt)
            }
        }
    }
}

/// One phase.
struct Section<'a> {
    phase: &'a Phase,
    summary: &'a Summary,
    by: By,
}

impl Section<'_> {
    /// What numbers are divided by: decode is shown for one token, a prompt as a whole.
    fn parts(&self) -> f64 {
        match self.phase.kind {
            PhaseKind::Prefill => 1.0,
            PhaseKind::Decode => self.phase.shapes.len() as f64,
        }
    }

    fn print(&self) -> Result<()> {
        let columns = [
            Column::text(self.by.name()),
            Column::number("calls"),
            Column::number("time"),
            Column::number("share"),
            Column::number("bytes"),
            Column::number("B/s"),
            Column::number("operations"),
            Column::number("op/s"),
            Column::number("of ceiling"),
            Column::text("kernel"),
            Column::text("contract"),
            Column::text("shape"),
            Column::text("strides"),
            Column::text("flags"),
        ];
        let summary = self.summary;
        let mut rows: Vec<Vec<String>> = summary.rows.iter().map(|row| self.cells(row)).collect();
        let whole = summary.traced.mean;
        rows.push(self.line("between steps", summary.between, summary.between.mean / whole));
        rows.push(self.line("sampling", summary.sampling, summary.sampling.mean / whole));
        let mut total = self.line("total", summary.traced, 1.0);
        self.costs(&mut total, &summary.cost, summary.traced);
        rows.push(total);
        table::print(&columns, &rows)?;
        if !summary.launches.is_empty() {
            self.print_launches()?;
        }
        self.print_whole()
    }

    /// What is launched as one, by time alone.
    fn print_launches(&self) -> Result<()> {
        writeln!(output::stdout(), "\nas launched:")?;
        let columns = [
            Column::text("launch"),
            Column::number("calls"),
            Column::number("time"),
            Column::number("share"),
        ];
        let mut rows: Vec<Vec<String>> = self.summary.launches.iter().map(|row| self.cells(row)).collect();
        rows.extend(self.summary.launched.map(|launched| self.line("total, with sampling", launched, 1.0)));
        rows.iter_mut().for_each(|row| row.truncate(columns.len()));
        table::print(&columns, &rows)
    }

    /// The phase as it runs without a trace, and what a trace changes.
    fn print_whole(&self) -> Result<()> {
        let Summary { untraced, overhead, bound, .. } = self.summary;
        let share = bound.map_or_else(String::new, |bound| format!(", {}", share_text(&bound)));
        let percent = |part: f64| format!("{:+.1}", 100.0 * part);
        writeln!(
            output::stdout(),
            "untraced: {} ({}..{}){share}\ntracing adds {} % ({}..{}); reading the clock takes {} of each scope, {} in all",
            time(untraced.mean / self.parts()),
            time(untraced.min / self.parts()),
            time(untraced.max / self.parts()),
            percent(overhead.median),
            percent(overhead.min),
            percent(overhead.max),
            time(self.phase.clock()),
            time(self.summary.clock / self.parts()),
        )?;
        Ok(())
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let mut cells = self.line(&row.name, row.seconds, row.share);
        cells[1] = calls(row.calls as f64 / self.parts());
        if let Some(cost) = &row.cost {
            self.costs(&mut cells, cost, row.seconds);
        }
        cells[8] = row.bound.map_or_else(String::new, |bound| of_ceiling(&bound));
        let label = &row.label;
        let kernel =
            if self.by == By::Kernel { String::new() } else { without_specialisation(&label.kernel) };
        let words = [kernel, label.contract.clone(), label.shape.clone(), label.strides.clone()];
        for (cell, word) in cells[9..].iter_mut().zip(words.into_iter().chain([label.flags.join(", ")])) {
            *cell = word;
        }
        cells
    }

    /// A row of name, time and share.
    fn line(&self, name: &str, seconds: Seconds, share: f64) -> Vec<String> {
        let mut cells = vec![String::new(); 14];
        cells[0] = name.to_owned();
        cells[2] = time(seconds.mean / self.parts());
        cells[3] = format!("{:.1} %", 100.0 * share);
        cells
    }

    fn costs(&self, cells: &mut [String], cost: &Cost, seconds: Seconds) {
        let (bytes, operations) = (cost.bytes() as f64, cost.operations as f64);
        cells[4] = table::rate(bytes / self.parts());
        cells[5] = table::rate(bytes / seconds.mean);
        cells[6] = table::rate(operations / self.parts());
        cells[7] = table::rate(operations / seconds.mean);
    }
}

/// Names of kernels without what they are specialised for, each once: that is for programs, and for rows of kernels.
fn without_specialisation(kernels: &str) -> String {
    let mut names: Vec<&str> =
        kernels.split(" + ").map(|name| name.split_once('[').map_or(name, |(name, _)| name)).collect();
    names.dedup();
    names.join(" + ")
}

/// `97.1 % memory`.
fn of_ceiling(bound: &Bound) -> String {
    let limit = match bound.limit {
        Limit::Memory => "memory",
        Limit::Multiply => "multiply",
    };
    format!("{:.1} % {limit}", 100.0 * bound.share)
}

fn share_text(bound: &Bound) -> String {
    format!(
        "{}{}: {:.1} % of the {}",
        table::rate(bound.achieved),
        bound.limit.unit(),
        100.0 * bound.share,
        bound.limit.name()
    )
}

/// A number that is whole but for means.
fn calls(count: f64) -> String {
    if count.fract() == 0.0 { format!("{count:.0}") } else { format!("{count:.1}") }
}

/// Seconds in the unit that suits them.
fn time(seconds: f64) -> String {
    match seconds.abs() {
        size if size >= 1.0 => format!("{seconds:.2} s"),
        size if size >= 1e-3 => format!("{:.2} ms", seconds * 1e3),
        size if size >= 1e-6 => format!("{:.1} us", seconds * 1e6),
        _ => format!("{:.0} ns", seconds * 1e9),
    }
}
