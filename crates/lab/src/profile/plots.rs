//! A profile as pictures.

use mantissa::ops::cost::Cost;

use super::{By, Phase, PhaseKind, Profile};
use crate::plot::{self, Axis, Bars, Point, Roofline};

/// Rows of a phase that are shown at most; the longest first.
const ROWS: usize = 16;

impl Profile {
    /// The operations of both phases, and each phase as it runs untraced, under the ceilings of the machine.
    pub fn roofline(&self) -> Roofline {
        let multiply = self.ceiling.multiply.iter();
        let mut points = Vec::new();
        for phase in &self.phases {
            let Some(summary) = self.summary(phase, By::Operation) else { continue };
            let point = |name: String, cost: Cost, seconds: f64| Point {
                name,
                series: phase.kind.name().to_owned(),
                intensity: cost.operations as f64 / cost.bytes() as f64,
                rate: cost.operations as f64 / seconds,
            };
            let rows = summary.rows.into_iter().take(ROWS);
            points.extend(rows.filter_map(|row| Some(point(row.name, row.cost?, row.seconds.mean))));
            points.push(point("everything, untraced".to_owned(), summary.cost, summary.untraced.mean));
        }
        Roofline {
            title: format!("{}, {}", self.model, self.plan.policy),
            memory: self.ceiling.read.median,
            multiply: multiply
                .map(|(unit, rate)| plot::Ceiling { name: unit.to_string(), rate: rate.median })
                .collect(),
            points,
        }
    }

    /// The time of each row of a phase, of decode for one token; nothing where it has no repetition.
    pub fn bars(&self, phase: &Phase, by: By) -> Option<Bars> {
        let summary = self.summary(phase, by)?;
        let (of, parts) = match phase.kind {
            PhaseKind::Prefill => (format!("prefill of {} tokens", self.workload.prompt), 1),
            PhaseKind::Decode => (format!("one token after {}", self.workload.prompt), phase.shapes.len()),
        };
        let bar = |name: String, seconds: f64| plot::Row { name, values: vec![Some(seconds / parts as f64)] };
        let mut rows = summary.rows;
        let rest = rows.split_off(ROWS.min(rows.len()));
        let mut bars: Vec<plot::Row> = rows.into_iter().map(|row| bar(row.name, row.seconds.mean)).collect();
        if !rest.is_empty() {
            bars.push(bar(format!("{} others", rest.len()), rest.iter().map(|row| row.seconds.mean).sum()));
        }
        bars.push(bar("sampling".to_owned(), summary.sampling.mean));
        // On a device's own clock this may be nothing at all, or less by rounding.
        bars.push(bar("between steps".to_owned(), summary.between.mean.max(0.0)));
        Some(Bars {
            title: format!("{of}: {}, {}", self.model, self.plan.policy),
            axis: Axis::prefixed("time", "s"),
            series: vec![phase.kind.name().to_owned()],
            rows: bars,
        })
    }
}
