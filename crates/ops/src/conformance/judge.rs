//! Runs a case on a backend and on the reference, and compares every result.

use std::sync::Arc;

use mantissa_numerics::Format;
use mantissa_numerics::contract::Order;

use super::bits;
use super::case::{Case, Judged, Run, Setting};
use super::failure::{Failure, Place, Problem};
use super::measured::{Measured, relative_error};
use crate::backend::{Backend, LoadOptions, NoProgress, OverflowRule, Session};
use crate::op::Op;
use crate::plan::Plan;
use crate::program::ValueId;
use crate::reference::number::{Bounded, Exact, Number, round_to};
use crate::reference::{ReferenceBackend, ReferenceSession};

/// Decoded rows of every result of every judged run, in order.
pub(super) type Results = Vec<Vec<(ValueId, Vec<f32>)>>;

/// What came of a case.
pub(super) struct Judgement {
    pub(super) results: Results,
    pub(super) measured: Measured,
    /// The first number that the reference does not allow.
    pub(super) failure: Option<Failure>,
}

/// A case on its way through a backend.
pub(super) struct Trial<'a> {
    pub(super) backend: &'a dyn Backend,
    pub(super) setting: &'a Setting,
    pub(super) case: &'a Case,
}

/// Whether `got` is the same number as `wanted`, bit for bit; every NaN is the same.
pub(super) fn same(got: f32, wanted: f32) -> bool {
    got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan())
}

impl Trial<'_> {
    pub(super) fn failure(&self, run: usize, problem: Problem) -> Failure {
        let place = Place {
            backend: self.backend.info().name,
            family: self.setting.contract.query.family,
            contract: self.setting.contract.to_string(),
            case: self.case.name.clone(),
            run,
        };
        Failure { place: Box::new(place), problem }
    }

    fn plan(&self) -> Result<Arc<Plan>, Failure> {
        Plan::resolve(self.case.program.clone(), self.setting.policy, self.backend)
            .map_err(|error| self.failure(0, Problem::Refused(error.to_string())))
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { limits: self.case.limits(), overflow: OverflowRule::Refuse }
    }

    /// A fresh session of the backend under test.
    pub(super) fn session(&self) -> Result<Box<dyn Session>, Failure> {
        self.backend
            .prepare(self.plan()?, &self.case.source, &self.options(), &NoProgress)
            .map_err(|error| self.failure(0, Problem::Refused(error.to_string())))
    }

    /// One run on a session; `index` names it in failures.
    pub(super) fn step(&self, session: &mut dyn Session, run: &Run, index: usize) -> Result<(), Failure> {
        let refused =
            |error: crate::backend::RunError| self.failure(index, Problem::Refused(error.to_string()));
        for (value, numbers) in &run.inputs {
            session.write(*value, numbers).map_err(refused)?;
        }
        run.with_batch(|batch| session.run(batch)).map_err(refused)
    }

    /// The first rows of a result.
    pub(super) fn read(
        &self,
        session: &dyn Session,
        what: (ValueId, usize),
        run: usize,
    ) -> Result<Vec<f32>, Failure> {
        let (value, rows) = what;
        let spec = self.case.program.value(value);
        let wanted = rows * spec.width;
        let mut numbers = session.read(value);
        if numbers.len() < wanted {
            let problem = Problem::TooShort { value: spec.name.clone(), wanted, got: numbers.len() };
            return Err(self.failure(run, problem));
        }
        numbers.truncate(wanted);
        Ok(numbers)
    }

    /// Runs the case and compares every judged result with the reference, within the bounds of the contracts.
    pub(super) fn judge(&self) -> Result<Judgement, Failure> {
        let mut session = self.session()?;
        let mut reference = self.reference::<Bounded>()?;
        let mut judgement = Judgement { results: Vec::new(), measured: Measured::default(), failure: None };
        for (index, run) in self.case.runs.iter().enumerate() {
            self.step(session.as_mut(), run, index)?;
            self.step(&mut reference, run, index)?;
            if run.judged == Judged::No {
                continue;
            }
            let mut results = Vec::new();
            for (value, rows) in self.case.results(run) {
                let got = self.read(session.as_ref(), (value, rows), index)?;
                let found = self.compare(value, &got, reference.numbers(value), &mut judgement.measured);
                let found = found.map(|problem| self.failure(index, problem));
                judgement.failure = judgement.failure.or(found);
                results.push((value, got));
            }
            if judgement.failure.is_none() {
                judgement.failure = self.compare_bits(run, &results, index).err();
            }
            if self.case.program.logits().is_some() {
                self.compare_logits(session.as_mut(), &results, index)?;
            }
            judgement.results.push(results);
        }
        Ok(judgement)
    }

    /// Measures every number, and names the first that is not allowed.
    fn compare(
        &self,
        value: ValueId,
        got: &[f32],
        wanted: &[Bounded],
        measured: &mut Measured,
    ) -> Option<Problem> {
        let spec = self.case.program.value(value);
        let format = self.case.program.value_format(value, &self.setting.policy);
        let expected = self.case.expected.iter().find(|expected| expected.value == value);
        let rows = got.chunks(spec.width).zip(wanted.chunks(spec.width));
        rows.for_each(|(got, wanted)| measured.take(got, wanted, format));
        let mut first = None;
        for (index, (&got, wanted)) in got.iter().zip(wanted).enumerate() {
            let (low, high) = wanted.interval();
            let number = f64::from(got);
            let inside = (number.is_nan() && wanted.value().is_nan()) || (low <= number && number <= high);
            let stored = number.is_nan() || round_to(number, format) == number;
            let known = expected.is_none_or(|expected| expected.number == got);
            // An infinite bound would let everything pass.
            let judged =
                wanted.value().is_nan() || low == high || (high - low).is_finite() || format == Format::F16;
            if first.is_none() && !(inside && stored && known && judged) {
                let (row, column) = (index / spec.width, index % spec.width);
                let value = spec.name.clone();
                let wanted = expected.map_or(wanted.value(), |expected| f64::from(expected.number));
                first = Some(Problem::Value { value, row, column, format, got, wanted, low, high });
            }
        }
        first
    }

    /// The reference for the case, in any arithmetic.
    fn reference<N: Number>(&self) -> Result<ReferenceSession<N>, Failure> {
        ReferenceBackend::prepare_in(self.plan()?, &self.case.source, &self.options(), &NoProgress)
            .map_err(|error| self.failure(0, Problem::Refused(error.to_string())))
    }

    /// The largest relative error of a row of the results: against f64 in which nothing is rounded but inputs and weights.
    pub(super) fn relative_error(&self, results: &Results) -> Result<Option<f64>, Failure> {
        let mut truth = self.reference::<Exact>()?;
        let mut results = results.iter();
        let mut largest: Option<f64> = None;
        for (index, run) in self.case.runs.iter().enumerate() {
            self.step(&mut truth, run, index)?;
            if run.judged == Judged::No {
                continue;
            }
            for (value, got) in results.next().into_iter().flatten() {
                let width = self.case.program.value(*value).width;
                let format = self.case.program.value_format(*value, &self.setting.policy);
                let wanted: Vec<f64> = truth.numbers(*value).iter().map(|number| number.value()).collect();
                let rows = got.chunks(width).zip(wanted.chunks(width));
                let errors = rows.filter_map(|(got, wanted)| relative_error(got, wanted, format));
                largest = errors.chain(largest).reduce(f64::max);
            }
        }
        Ok(largest)
    }

    /// Where the contract states the order of f32 operations, the bits follow from it.
    fn compare_bits(&self, run: &Run, results: &[(ValueId, Vec<f32>)], index: usize) -> Result<(), Failure> {
        let Some(wanted) = bits::expected(self.setting, self.case, run) else { return Ok(()) };
        for (value, wanted) in wanted {
            let Some((_, got)) = results.iter().find(|(known, _)| *known == value) else { continue };
            self.equal(value, (got, &wanted), (index, "the order that the contract states"))?;
        }
        Ok(())
    }

    fn compare_logits(
        &self,
        session: &mut dyn Session,
        results: &[(ValueId, Vec<f32>)],
        run: usize,
    ) -> Result<(), Failure> {
        let Some(value) = self.case.program.logits() else { return Ok(()) };
        let Some((_, read)) = results.iter().find(|(known, _)| *known == value) else { return Ok(()) };
        let logits =
            session.logits().map_err(|error| self.failure(run, Problem::Refused(error.to_string())))?;
        if logits.len() != read.len() {
            let name = "Session::logits".to_owned();
            let problem = Problem::TooShort { value: name, wanted: read.len(), got: logits.len() };
            return Err(self.failure(run, problem));
        }
        self.equal(value, (logits, read), (run, "Session::logits and the logits value"))
    }

    /// Demands the same bits; `(run, why)` say where and for what reason.
    pub(super) fn equal(
        &self,
        value: ValueId,
        (got, wanted): (&[f32], &[f32]),
        at: (usize, &'static str),
    ) -> Result<(), Failure> {
        let spec = self.case.program.value(value);
        let Some(index) = got.iter().zip(wanted).position(|(&got, &wanted)| !same(got, wanted)) else {
            return Ok(());
        };
        let problem = Problem::Bits {
            why: at.1,
            value: spec.name.clone(),
            row: index / spec.width,
            column: index % spec.width,
            got: got[index],
            wanted: wanted[index],
        };
        Err(self.failure(at.0, problem))
    }

    /// The same case on a new session: the same bits.
    pub(super) fn repeat(&self, first: &Results) -> Result<(), Failure> {
        let mut session = self.session()?;
        let mut results = first.iter();
        for (index, run) in self.case.runs.iter().enumerate() {
            self.step(session.as_mut(), run, index)?;
            if run.judged == Judged::No {
                continue;
            }
            for (value, wanted) in results.next().into_iter().flatten() {
                let width = self.case.program.value(*value).width;
                let got = self.read(session.as_ref(), (*value, wanted.len() / width), index)?;
                self.equal(*value, (&got, wanted), (index, "the same run twice"))?;
            }
        }
        Ok(())
    }

    /// The rows of every judged run in chunks: the same bits as all at once, unless a contract promises no order.
    ///
    /// A chunk of one row is also a row alone, and a decode step of what a prefill computed at once.
    pub(super) fn chunked(&self, first: &Results, rows: usize) -> Result<(), Failure> {
        let plan = self.plan()?;
        if plan.steps.iter().any(|step| step.contract.order == Order::Library) {
            return Ok(());
        }
        let whole_sequences = plan.steps.iter().any(|step| matches!(step.op, Op::Sdpa(_)));
        let mut session = self.session()?;
        let mut results = first.iter();
        for (index, run) in self.case.runs.iter().enumerate() {
            if run.judged == Judged::No {
                self.step(session.as_mut(), run, index)?;
                continue;
            }
            let mut parts: Vec<Vec<f32>> = Vec::new();
            let wanted = results.next().map_or(&[] as &[_], Vec::as_slice);
            let ends: Vec<usize> = if whole_sequences {
                run.sequences.iter().map(|sequence| sequence.rows.end).collect()
            } else {
                (rows..run.tokens.len()).step_by(rows).chain([run.tokens.len()]).collect()
            };
            let mut start = 0;
            for end in ends {
                let part = run.part(&self.case.program, start..end);
                start = end;
                self.step(session.as_mut(), &part, index)?;
                parts.resize(wanted.len(), Vec::new());
                for (all, what) in parts.iter_mut().zip(self.case.results(&part)) {
                    all.extend(self.read(session.as_ref(), what, index)?);
                }
            }
            for ((value, wanted), got) in wanted.iter().zip(&parts) {
                self.equal(*value, (got, wanted), (index, "rows in chunks and all at once"))?;
            }
        }
        Ok(())
    }
}
