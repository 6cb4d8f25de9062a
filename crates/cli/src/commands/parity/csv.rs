//! The checks as rows of one table: contracts, then points of the residual stream, then logits.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::report::Report;

/// A row; what it has no number for is empty.
#[derive(Debug, Default, Serialize)]
struct Row<'a> {
    device: &'a str,
    features: &'a str,
    driver: Option<&'a str>,
    commit: &'a str,
    model: &'a str,
    /// `kernel`, `stream` or `logits`.
    part: &'a str,
    /// Contract or policy.
    subject: &'a str,
    against: &'a str,
    /// Op or point.
    name: &'a str,
    numbers: Option<usize>,
    relative_error: Option<f64>,
    figure: Option<f64>,
    max_ulps: Option<f64>,
    max_error: Option<f64>,
    bound_used: Option<f64>,
    kl_divergence: Option<f64>,
    holds: Option<bool>,
    problem: Option<&'a str>,
}

/// Writes the table.
pub fn write(out: &mut dyn Write, report: &Report<'_>) -> Result<()> {
    let machine = report.machine;
    let name = report.name();
    let common = || Row {
        device: &machine.device,
        features: &machine.features,
        driver: machine.driver.as_deref(),
        commit: &machine.build.commit,
        model: &name,
        ..Row::default()
    };
    let mut table = ::csv::Writer::from_writer(out);
    for check in report.kernels {
        table.serialize(Row {
            part: "kernel",
            subject: &check.contract,
            against: "f64 reference",
            name: &check.op,
            numbers: Some(check.numbers),
            relative_error: check.relative_error,
            figure: check.figure,
            max_ulps: Some(check.max_ulps),
            bound_used: Some(check.bound_used),
            holds: Some(check.holds()),
            problem: check.failures.first().map(|failure| failure.problem.as_str()),
            ..common()
        })?;
    }
    for comparison in report.comparisons() {
        let compared = || Row { subject: &comparison.subject, against: &comparison.against, ..common() };
        for point in &comparison.points {
            table.serialize(Row {
                part: "stream",
                name: &point.name,
                relative_error: Some(point.relative_error),
                max_ulps: Some(point.max_ulps),
                max_error: Some(point.max_error),
                ..compared()
            })?;
        }
        table.serialize(Row {
            part: "logits",
            name: "logits",
            relative_error: Some(comparison.logits.relative_error),
            figure: comparison.figure,
            max_error: Some(comparison.logits.max_error),
            kl_divergence: comparison.logits.divergence,
            holds: Some(comparison.holds()),
            problem: comparison.first_non_finite.as_deref(),
            ..compared()
        })?;
    }
    table.flush()?;
    Ok(())
}
