//! The plots of a report.

use super::operations::Operation;
use super::tables::count;
use super::{AtContext, File, Report, UnderPolicy};
use crate::LabError;
use crate::parity::{Comparison, error_by_layer};
use crate::plot::{Axis, Bars, Picture, Roofline, Row};

/// Operations that are compared at most.
const OPERATIONS: usize = 5;

/// Files of the plots.
pub(super) const DECODE: &str = "decode.png";
pub(super) const PREFILL: &str = "prefill.png";
pub(super) const MEMORY: &str = "memory.png";
pub(super) const ERROR: &str = "error.png";
pub(super) const OPERATION: &str = "operations.png";
pub(super) const ROOFLINE: &str = "roofline.png";

impl Report {
    /// Draws what there is to draw.
    pub(super) fn pictures(&self) -> Result<Vec<File>, LabError> {
        let speed = |of: fn(&AtContext) -> Option<f64>, title: &str| {
            self.by_context(title, Axis::plain("tokens/s", ""), of)
        };
        let decode = speed(|at| Some(at.speed.value()?.decode.median), "Decode, one token at a time");
        let prefill = speed(|at| Some(at.speed.value()?.prefill.median), "Prefill");
        let memory = self.by_context("Memory held", Axis::prefixed("memory", "B"), |at| {
            Some(at.memory.value()?.total as f64)
        });
        let mut files = Vec::new();
        for (name, bars) in
            [(DECODE, decode), (PREFILL, prefill), (MEMORY, memory), (OPERATION, self.by_operation())]
        {
            files.extend(bars.map(|bars| File::of(name, &bars.draw()?)).transpose()?);
        }
        let errors: Vec<Comparison> =
            self.policies.iter().filter_map(|policy| policy.error.value().cloned()).collect();
        if !errors.is_empty() {
            files.push(File::of(ERROR, &error_by_layer(&self.model, &errors).draw()?)?);
        }
        if let Some(roofline) = self.roofline() {
            files.push(File::of(ROOFLINE, &roofline.draw()?)?);
        }
        Ok(files)
    }

    /// A row for each context, a bar for each policy; nothing where nothing is known.
    fn by_context(&self, title: &str, axis: Axis, of: impl Fn(&AtContext) -> Option<f64>) -> Option<Bars> {
        let contexts = self.policies.first()?.contexts.iter().map(|at| at.context);
        let rows = contexts.enumerate().map(|(index, context)| Row {
            name: format!("context {}", count(context)),
            values: self.policies.iter().map(|policy| of(policy.contexts.get(index)?)).collect(),
        });
        self.bars(title, axis, rows.filter(|row| row.values.iter().any(Option::is_some)).collect())
    }

    /// The operations of one token that take longest under any policy.
    fn by_operation(&self) -> Option<Bars> {
        let decode = |policy: &UnderPolicy| -> Vec<Operation> {
            policy
                .operations
                .value()
                .map(|operations| operations.decode.operations.clone())
                .unwrap_or_default()
        };
        let of: Vec<Vec<Operation>> = self.policies.iter().map(decode).collect();
        let mut names: Vec<(String, f64)> = Vec::new();
        for Operation { name, seconds, .. } in of.iter().flatten() {
            match names.iter_mut().find(|(known, _)| known == name) {
                Some((_, most)) => *most = most.max(*seconds),
                None => names.push((name.clone(), *seconds)),
            }
        }
        names.sort_by(|one, other| other.1.total_cmp(&one.1));
        names.truncate(OPERATIONS);
        let row = |(name, _): (String, f64)| {
            // The same step may be carried out in several ways.
            let seconds = |operations: &Vec<Operation>| {
                let same = operations.iter().filter(|operation| operation.name == name);
                same.map(|operation| operation.seconds).reduce(|sum, seconds| sum + seconds)
            };
            Row { values: of.iter().map(seconds).collect(), name }
        };
        let rows = names.into_iter().map(row).collect();
        self.bars("Time of each operation in one token, kernel by kernel", Axis::prefixed("time", "s"), rows)
    }

    fn bars(&self, title: &str, axis: Axis, rows: Vec<Row>) -> Option<Bars> {
        let series = self.policies.iter().map(|policy| policy.name.clone()).collect();
        (!rows.is_empty()).then(|| Bars { title: title.to_owned(), axis, series, rows })
    }

    /// Of the policy that is the default, or else of the first whose operations are known.
    fn roofline(&self) -> Option<&Roofline> {
        let default = mantissa::numerics::PrecisionPolicy::default().to_string();
        let known = || self.policies.iter().filter(|policy| policy.operations.value().is_some());
        let policy = known().find(|policy| policy.name == default).or(known().next())?;
        Some(&policy.operations.value()?.roofline)
    }
}

impl File {
    fn of(name: &'static str, picture: &Picture) -> Result<File, LabError> {
        Ok(File { name, content: picture.png()? })
    }
}
