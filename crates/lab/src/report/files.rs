//! The files of a report.

use super::{Found, Report};
use crate::LabError;

/// The document.
const DOCUMENT: &str = "report.md";
/// Everything, for programs.
const DATA: &str = "report.json";
/// Every number with its circumstances.
const TABLE: &str = "measurements.csv";

/// A file of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name in the report's folder.
    pub name: &'static str,
    /// What is in it.
    pub content: Vec<u8>,
}

impl File {
    /// Names of files by which a folder shows that it is a report.
    pub const MARKS: [&str; 2] = [DOCUMENT, DATA];
}

impl Report {
    /// Everything that belongs into the report's folder.
    ///
    /// # Errors
    /// Where a plot cannot be drawn.
    pub fn files(&self) -> Result<Vec<File>, LabError> {
        let mut files = self.pictures()?;
        let pictures: Vec<&str> = files.iter().map(|file| file.name).collect();
        let document = self.markdown(&pictures).into_bytes();
        let mut data = serde_json::to_vec_pretty(self)?;
        data.push(b'\n');
        files.push(File { name: DOCUMENT, content: document });
        files.push(File { name: DATA, content: data });
        files.push(File { name: TABLE, content: self.csv()? });
        Ok(files)
    }

    /// One line for each number, with all that it depends on in every line.
    fn csv(&self) -> Result<Vec<u8>, LabError> {
        let machine = &self.made.machine;
        let circumstances = [
            self.model.clone(),
            machine.device.clone(),
            machine.features.clone(),
            machine.driver.clone().unwrap_or_default(),
            machine.threads.map(|threads| threads.to_string()).unwrap_or_default(),
            machine.build.version.clone(),
            machine.build.commit.clone(),
        ];
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record([
            "policy", "context", "measure", "unit", "value", "min", "max", "model", "device", "features",
            "driver", "threads", "version", "commit",
        ])?;
        for line in self.lines() {
            let of = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
            let context = line.context.map(|context| context.to_string()).unwrap_or_default();
            let (value, min, max) = (of(Some(line.value)), of(line.min), of(line.max));
            let fields =
                [line.policy, context, line.measure.to_owned(), line.unit.to_owned(), value, min, max];
            writer.write_record(fields.iter().chain(&circumstances))?;
        }
        writer.into_inner().map_err(|error| LabError::Csv(error.into_error().into()))
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for policy in &self.policies {
            let line = |context, measure, unit, value| Line {
                policy: policy.name.clone(),
                context,
                measure,
                unit,
                value,
                min: None,
                max: None,
            };
            for at in &policy.contexts {
                let here = Some(at.context);
                if let Found::Measured(memory) = at.memory {
                    lines.push(line(here, "weights", "B", memory.weights as f64));
                    lines.push(line(here, "cache", "B", memory.cache as f64));
                    lines.push(line(here, "memory", "B", memory.total as f64));
                }
                if let Found::Measured(bytes) = at.bytes {
                    lines.push(line(here, "moved for a token", "B", bytes.total as f64));
                }
                let Found::Measured(speed) = &at.speed else { continue };
                for (measure, unit, spread) in [
                    ("first token", "s", speed.first_token),
                    ("prefill", "tokens/s", speed.prefill),
                    ("decode", "tokens/s", speed.decode),
                ] {
                    let (min, max) = (Some(spread.min), Some(spread.max));
                    lines.push(Line { min, max, ..line(here, measure, unit, spread.median) });
                }
                let peak = speed.device_peak.or(speed.process_peak);
                lines.extend(peak.map(|peak| line(here, "peak", "B", peak as f64)));
            }
            if let Found::Measured(error) = &policy.error {
                let error = error.logits.relative_error;
                lines.push(line(None, "relative error of the logits", "", error));
            }
            if let Found::Measured(predicted) = &policy.predicted {
                lines.push(line(None, "perplexity", "", predicted.perplexity));
                let kl = predicted.against.as_ref().map(|against| against.kl_mean);
                lines.extend(kl.map(|kl| line(None, "KL divergence from f32", "nats", kl)));
            }
            if let Found::Measured(haiku) = &policy.haiku {
                let share = haiku.passing as f64 / haiku.words as f64;
                lines.push(line(None, "haiku that pass", "", share));
            }
        }
        lines
    }
}

/// A line of the table.
struct Line {
    policy: String,
    context: Option<usize>,
    measure: &'static str,
    unit: &'static str,
    value: f64,
    min: Option<f64>,
    max: Option<f64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::machine::{Build, Machine};
    use crate::report::{AtContext, Bytes, Checkpoint, Extent, Made, Text, UnderPolicy};

    /// A report in which nothing could be measured but what is known beforehand.
    fn refused() -> Report {
        let missing = || "the device has no such kernel".to_owned();
        let at = AtContext {
            context: 512,
            memory: Found::Missing(missing()),
            bytes: Found::Measured(Bytes { weights: 3, cache: 4, total: 7 }),
            speed: Found::Missing(missing()),
        };
        let policy = UnderPolicy {
            name: "f16".to_owned(),
            fields: BTreeMap::new(),
            contexts: vec![at],
            error: Found::Missing(missing()),
            predicted: Found::Missing(missing()),
            haiku: Found::Missing(missing()),
            operations: Found::Missing(missing()),
        };
        let machine = Machine {
            backend: "cuda".to_owned(),
            device: "A, B".to_owned(),
            features: "sm_90".to_owned(),
            driver: Some("1.2".to_owned()),
            threads: None,
            build: Build { version: "0.1.0".to_owned(), commit: "abc".to_owned() },
        };
        Report {
            model: "model".to_owned(),
            checkpoint: Checkpoint {
                architecture: "llama".to_owned(),
                layers: 1,
                parameters: 2,
                longest: 3,
                dtypes: vec!["F16".to_owned()],
                files: Vec::new(),
            },
            made: Made { machine, date: "2026-01-02".to_owned(), command: "mantissa report".to_owned() },
            extent: Extent { generate: 1, repetitions: 1, windows: 1, reference_tokens: 1, budget: 1.0 },
            ceilings: Vec::new(),
            text: Text { name: "text".to_owned(), content: String::new() },
            words: 1,
            policies: vec![policy],
            targets: Vec::new(),
        }
    }

    #[test]
    fn what_is_missing_is_named_and_not_drawn() {
        let files = refused().files().unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name).collect();
        assert_eq!(names, [DOCUMENT, DATA, TABLE]);
        let text = |index: usize| String::from_utf8(files[index].content.clone()).unwrap();
        let document = text(0);
        assert!(!document.contains(".png"), "{document}");
        assert!(document.contains("* Context 512, f16: the device has no such kernel."), "{document}");
        assert!(document.contains("No haiku under any policy: the device has no such kernel."), "{document}");
        let table = text(2);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        assert_eq!(lines[1], r#"f16,512,moved for a token,B,7,,,model,"A, B",sm_90,1.2,,0.1.0,abc"#);
    }
}
