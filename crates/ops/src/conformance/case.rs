//! One case of the suite: a small program, its checkpoint, and the runs whose results are judged.

use std::ops::Range;

use mantissa_numerics::Format;
use mantissa_numerics::contract::OpContract;
use mantissa_numerics::policy::PrecisionPolicy;

use super::data::{Kind, MemorySource, Numbers};
use crate::batch::{Batch, Limits, SequenceRows};
use crate::builder::ProgramBuilder;
use crate::op::Op;
use crate::program::{Program, ValueId, ValueRole, WeightId, WeightKind, WeightPart};

/// A contract under test and a policy that asks for it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The contract.
    pub contract: OpContract,
    /// A policy whose query of the contract's family is the contract's.
    pub policy: PrecisionPolicy,
}

/// One sequence's rows in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its pages.
    pub table: Vec<u32>,
    /// Its rotary frequency set.
    pub rope_set: usize,
}

/// Whether the results of a run are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// They are.
    Yes,
    /// It only prepares the cache.
    No,
}

/// One run: values written from outside, then a batch.
#[derive(Clone, Debug)]
pub struct Run {
    /// Values written before it, all rows.
    pub inputs: Vec<(ValueId, Vec<f32>)>,
    /// As [`Batch::tokens`].
    pub tokens: Vec<u32>,
    /// As [`Batch::positions`].
    pub positions: Vec<u32>,
    /// As [`Batch::sequences`].
    pub sequences: Vec<Sequence>,
    /// As [`Batch::outputs`].
    pub outputs: Vec<u32>,
    /// Whether it counts.
    pub judged: Judged,
}

impl Run {
    /// `rows` rows of one sequence from position 0 on, without a cache.
    pub fn rows(rows: usize) -> Run {
        Run {
            inputs: Vec::new(),
            tokens: vec![0; rows],
            positions: (0..rows as u32).collect(),
            sequences: vec![Sequence { rows: 0..rows, table: Vec::new(), rope_set: 0 }],
            outputs: Vec::new(),
            judged: Judged::Yes,
        }
    }

    /// Hands the run to `act` as a batch.
    pub fn with_batch<R>(&self, act: impl FnOnce(&Batch<'_>) -> R) -> R {
        let sequences: Vec<SequenceRows<'_>> = self
            .sequences
            .iter()
            .map(|sequence| SequenceRows {
                rows: sequence.rows.clone(),
                block_table: &sequence.table,
                rope_set: sequence.rope_set,
            })
            .collect();
        act(&Batch {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &sequences,
            outputs: &self.outputs,
        })
    }

    /// The part of the run that computes only these rows.
    pub fn part(&self, program: &Program, rows: Range<usize>) -> Run {
        let within = |other: &Range<usize>| {
            let (start, end) = (other.start.max(rows.start), other.end.min(rows.end));
            (start < end).then(|| start - rows.start..end - rows.start)
        };
        let inputs = self.inputs.iter().map(|(value, numbers)| {
            let width = program.value(*value).width;
            (*value, numbers[rows.start * width..rows.end * width].to_vec())
        });
        let sequences = self
            .sequences
            .iter()
            .filter_map(|sequence| within(&sequence.rows).map(|rows| Sequence { rows, ..sequence.clone() }));
        let outputs = self.outputs.iter().filter(|&&row| rows.contains(&(row as usize)));
        Run {
            inputs: inputs.collect(),
            tokens: self.tokens[rows.clone()].to_vec(),
            positions: self.positions[rows.clone()].to_vec(),
            sequences: sequences.collect(),
            outputs: outputs.map(|&row| row - rows.start as u32).collect(),
            judged: self.judged,
        }
    }
}

/// What a value must be, whatever the bounds say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The value.
    pub value: ValueId,
    /// Each of its numbers.
    pub number: f32,
}

/// A program with its checkpoint and runs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name in reports.
    pub name: String,
    /// The program.
    pub program: Program,
    /// Its weights.
    pub source: MemorySource,
    /// Pages of the cache.
    pub pages: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Runs, in order, on one session.
    pub runs: Vec<Run>,
    /// Results that are known exactly.
    pub expected: Vec<Expected>,
}

impl Case {
    /// The smallest limits that hold all runs.
    pub fn limits(&self) -> Limits {
        let most = |size: fn(&Run) -> usize| self.runs.iter().map(size).max().unwrap_or(0);
        Limits {
            rows: most(|run| run.tokens.len()),
            outputs: most(|run| run.outputs.len()).max(1),
            sequences: most(|run| run.sequences.len()),
            pages: self.pages,
            page_size: self.page_size,
            context: most(|run| run.positions.iter().max().map_or(0, |&position| position as usize + 1)),
        }
    }

    /// Every value that a step writes, with the number of rows it has after a run.
    pub fn results(&self, run: &Run) -> Vec<(ValueId, usize)> {
        let mut results: Vec<(ValueId, usize)> = Vec::new();
        for step in &self.program.steps {
            let residual = match &step.op {
                Op::RmsNorm(op) => op.residual,
                _ => None,
            };
            for value in std::iter::once(step.op.output()).chain(residual) {
                let rows = match self.program.value(value).role {
                    ValueRole::Activation => run.tokens.len(),
                    ValueRole::Logits => run.outputs.len(),
                };
                if results.iter().all(|(known, _)| *known != value) {
                    results.push((value, rows));
                }
            }
        }
        results
    }
}

/// A case while it is written down.
pub(super) struct Draft<'a> {
    pub(super) setting: &'a Setting,
    pub(super) name: String,
    pub(super) builder: ProgramBuilder,
    pub(super) source: MemorySource,
    pub(super) numbers: Numbers,
    /// Kinds of the rows from the second on, where there are at least five.
    pub(super) special: &'static [Kind],
    pub(super) run: Run,
}

impl<'a> Draft<'a> {
    pub(super) fn new(setting: &'a Setting, name: String, run: Run) -> Draft<'a> {
        // The same numbers for every contract of a format would hide what depends on them.
        let numbers = Numbers::seeded(&format!("{}/{name}", setting.contract.query));
        let builder = ProgramBuilder::new(&name, run.tokens.len());
        Draft { setting, name, builder, source: MemorySource::default(), numbers, special: &[], run }
    }

    pub(super) fn activations(&self) -> Format {
        self.setting.policy.activations()
    }

    pub(super) fn activation(&mut self, name: &str, width: usize) -> ValueId {
        self.builder.value(name, width, ValueRole::Activation)
    }

    /// A value that is written from outside.
    pub(super) fn input(&mut self, name: &str, width: usize) -> ValueId {
        let value = self.activation(name, width);
        let rows = self.run.tokens.len();
        let format = self.activations();
        let mut numbers = Vec::with_capacity(rows * width);
        for row in 0..rows {
            let special =
                if rows < 5 { None } else { row.checked_sub(1).and_then(|index| self.special.get(index)) };
            let kind = special.copied().unwrap_or(Kind::Ordinary);
            numbers.extend(self.numbers.stored(kind, format, width));
        }
        self.run.inputs.push((value, numbers));
        value
    }

    /// Adds a tensor of ordinary numbers to the checkpoint, matrices scaled so that products stay near one.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize], format: Format) {
        let mut numbers = self.numbers.stored(Kind::Ordinary, format, shape.iter().product());
        if let [_, columns] = shape {
            // A power of two: the numbers stay numbers of the format.
            let scale = 0.5_f32.powi(columns.ilog2() as i32 / 2);
            numbers.iter_mut().for_each(|number| *number *= scale);
        }
        self.source.add(name, shape, format, &numbers);
    }

    /// A whole tensor as a matrix, stored in the policy's format.
    pub(super) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> WeightId {
        self.tensor(name, &[rows, columns], self.setting.policy.weights());
        self.builder.matrix(name, vec![WeightPart::whole(name, rows)], columns)
    }

    /// A whole tensor as a vector, stored in f32.
    pub(super) fn vector(&mut self, name: &str, length: usize) -> WeightId {
        self.tensor(name, &[length], Format::F32);
        self.builder.vector(name, vec![WeightPart::whole(name, length)])
    }

    /// Gate and up rows from two tensors.
    pub(super) fn gate_up(&mut self, intermediate: usize, columns: usize) -> WeightId {
        let parts = ["gate", "up"].map(|name| {
            self.tensor(name, &[intermediate, columns], self.setting.policy.weights());
            WeightPart::whole(name, intermediate)
        });
        self.builder.weight("gate_up", parts.to_vec(), columns, WeightKind::GateUp)
    }

    pub(super) fn finish(self) -> Case {
        Case {
            name: self.name,
            program: self.builder.finish(),
            source: self.source,
            pages: 1,
            page_size: Limits::MIN_PAGE,
            runs: vec![self.run],
            expected: Vec::new(),
        }
    }
}
