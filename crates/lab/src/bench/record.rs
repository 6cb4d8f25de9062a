//! Measurements as lines of a file: one for each repetition, each with everything that it was made with.

use std::io::{Read, Write};

use mantissa::numerics::PrecisionPolicy;
use serde::{Deserialize, Serialize};

use super::generation::{Measured, Test};
use super::sweep::{Chosen, Sweep};
use crate::LabError;
use crate::ceiling::Bound;
use crate::decode::Decode;
use crate::machine::{Build, Machine};

/// One repetition of one test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `generation`, `matmul` or `attention`.
    pub benchmark: String,
    /// The model; empty where kernels were measured by themselves.
    pub model: String,
    /// How numbers are kept.
    pub policy: String,
    /// What was run.
    pub test: String,
    /// In which variant of the backend's kernels; empty where it chose.
    pub variant: String,
    /// Whether the backend takes this variant by itself: `yes` or `no`.
    pub chosen: String,
    /// The kernel; empty where there were many.
    pub kernel: String,
    /// What it does; of several, the one with most operations.
    pub contract: String,
    /// Tokens of context before the first; of attention, all of them.
    pub context: Option<usize>,
    /// Sequences that ran together.
    pub sequences: Option<usize>,
    /// Tokens that the repetition computed.
    pub tokens: Option<usize>,
    /// Counted from 0, in the order of time.
    pub repetition: usize,
    /// What it took.
    pub seconds: f64,
    /// From the request to the first new token.
    pub first_token_seconds: Option<f64>,
    /// What limits the test.
    pub limit: String,
    /// Bytes or operations per second.
    pub achieved_per_second: f64,
    /// The most that was measured around the repetition.
    pub ceiling_per_second: f64,
    /// How much of it was reached.
    pub share: f64,
    /// The most memory of the device.
    pub peak_device_bytes: Option<u64>,
    /// The most memory of the process.
    pub peak_process_bytes: Option<u64>,
    /// As [`Machine::backend`].
    pub backend: String,
    /// As [`Machine::device`].
    pub device: String,
    /// As [`Machine::features`].
    pub features: String,
    /// As [`Machine::driver`].
    pub driver: Option<String>,
    /// As [`Machine::threads`].
    pub threads: Option<usize>,
    /// As [`Build::version`].
    pub version: String,
    /// As [`Build::commit`].
    pub commit: String,
}

impl Record {
    fn new(benchmark: &str, policy: &PrecisionPolicy, machine: &Machine) -> Record {
        let Machine { backend, device, features, driver, threads, build } = machine.clone();
        let Build { version, commit } = build;
        Record {
            benchmark: benchmark.to_owned(),
            policy: policy.to_string(),
            backend,
            device,
            features,
            driver,
            threads,
            version,
            commit,
            ..Record::default()
        }
    }

    fn repeated(&self, repetition: usize, seconds: f64, bound: &Bound) -> Record {
        Record {
            repetition,
            seconds,
            limit: bound.limit.name().to_owned(),
            achieved_per_second: bound.achieved,
            ceiling_per_second: bound.ceiling,
            share: bound.share,
            ..self.clone()
        }
    }
}

/// The repetitions of a policy's tests.
pub fn of_generation(
    model: &str,
    policy: &PrecisionPolicy,
    measured: &Measured,
    machine: &Machine,
) -> Vec<Record> {
    let mut records = Vec::new();
    for row in &measured.rows {
        let (context, sequences) = match row.test {
            Test::Prefill(_) => (0, 1),
            Test::Decode(Decode { after, sequences, .. }) => (after, sequences),
        };
        let record = Record {
            model: model.to_owned(),
            test: row.test.name(),
            contract: row.contract.clone(),
            context: Some(context),
            sequences: Some(sequences),
            tokens: Some(row.test.tokens()),
            peak_device_bytes: measured.peak.device,
            peak_process_bytes: measured.peak.process,
            ..Record::new("generation", policy, machine)
        };
        let repetitions = row.repetitions.iter().enumerate();
        records.extend(repetitions.map(|(index, repetition)| Record {
            first_token_seconds: repetition.first_token,
            ..record.repeated(index, repetition.seconds, &repetition.bound)
        }));
    }
    records
}

/// The repetitions of a sweep.
pub fn of_sweep(benchmark: &str, sweep: &Sweep, machine: &Machine) -> Vec<Record> {
    let mut records = Vec::new();
    for row in &sweep.rows {
        let record = Record {
            test: row.test.clone(),
            variant: row.variant.clone(),
            chosen: row.chosen.name().to_owned(),
            kernel: row.kernel.clone(),
            contract: row.contract.clone(),
            ..Record::new(benchmark, &row.policy, machine)
        };
        let repetitions = row.repetitions.iter().enumerate();
        records.extend(
            repetitions
                .map(|(index, repetition)| record.repeated(index, repetition.seconds, &repetition.bound)),
        );
    }
    records
}

impl Chosen {
    /// `yes` or `no`.
    pub const fn name(self) -> &'static str {
        match self {
            Chosen::Yes => "yes",
            Chosen::No => "no",
        }
    }
}

/// Writes records as CSV, with a line of headings.
///
/// # Errors
/// Where they cannot be written.
pub fn write(records: &[Record], to: &mut dyn Write) -> Result<(), LabError> {
    let mut writer = csv::Writer::from_writer(to);
    for record in records {
        writer.serialize(record)?;
    }
    Ok(writer.flush().map_err(csv::Error::from)?)
}

/// Reads what [`write()`] wrote; columns may stand in any order, and further ones are passed over.
///
/// # Errors
/// Where a column is missing or holds something else than it should; the line is named.
pub fn read(from: impl Read) -> Result<Vec<Record>, LabError> {
    Ok(csv::Reader::from_reader(from).deserialize().collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let record = Record {
            benchmark: "matmul".to_owned(),
            policy: "bf16,kv_cache=f8e4m3".to_owned(),
            test: "a \"name\", with marks".to_owned(),
            seconds: 1.25e-7,
            share: 0.1 + 0.2,
            threads: Some(2),
            ..Record::default()
        };
        let mut bytes = Vec::new();
        write(std::slice::from_ref(&record), &mut bytes).unwrap();
        assert_eq!(read(&bytes[..]).unwrap(), [record]);
        let error = read(&b"benchmark,policy\nmatmul,bf16\n"[..]).unwrap_err().to_string();
        assert!(error.contains("line: 2") && error.contains("missing field"), "{error}");
    }
}
