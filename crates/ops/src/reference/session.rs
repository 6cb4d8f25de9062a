//! A prepared program of the reference: its weights, values and cache as plain numbers.

use std::sync::Arc;
use std::time::Instant;

use mantissa_numerics::convert::slice::decode_slice;

use super::cache::PagedCache;
use super::number::{Number, round_to};
use crate::backend::{
    LoadOptions, LoadReport, MemoryUse, PrepareError, Progress, RunError, Session, StepObserver, ValueReader,
};
use crate::batch::{Batch, CacheUse, Limits};
use crate::load::{filled, load_weight};
use crate::op::Op;
use crate::plan::Plan;
use crate::program::{ValueId, ValueRole, WeightId};
use crate::source::TensorSource;

/// One value: `[rows, width]`, of which the last run or write filled `rows`.
#[derive(Clone, Debug)]
struct Matrix<N> {
    rows: usize,
    width: usize,
    numbers: Vec<N>,
}

/// A prepared program in the arithmetic `N`.
#[derive(Debug)]
pub struct ReferenceSession<N> {
    plan: Arc<Plan>,
    limits: Limits,
    report: LoadReport,
    weights: Vec<Vec<f32>>,
    values: Vec<Matrix<N>>,
    cache: Option<PagedCache<N>>,
    logits: Vec<f32>,
}

impl<N: Number> ReferenceSession<N> {
    pub(super) fn prepare(
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<ReferenceSession<N>, PrepareError> {
        let started = Instant::now();
        let limits = options.limits;
        let rules = plan.batch_rules();
        if rules.cache == CacheUse::Paged
            && (limits.page_size < Limits::MIN_PAGE || !limits.page_size.is_power_of_two())
        {
            let wanted = format!("a power of two of at least {}", Limits::MIN_PAGE);
            return Err(PrepareError::Limit { what: "page size", got: limits.page_size, wanted });
        }
        let mut report = LoadReport::default();
        let weights = load_all(&plan, source, options, progress, &mut report)?;
        let values = plan
            .program
            .values
            .iter()
            .map(|spec| {
                let rows = match spec.role {
                    ValueRole::Activation => limits.rows,
                    ValueRole::Logits => limits.outputs,
                };
                let numbers = filled(N::exact(f64::NAN), rows.saturating_mul(spec.width), &spec.name)?;
                Ok(Matrix { rows: 0, width: spec.width, numbers })
            })
            .collect::<Result<Vec<_>, PrepareError>>()?;
        let cache = match plan.program.cache {
            Some(spec) => Some(PagedCache::new(spec, plan.cache_format(), &limits)?),
            None => None,
        };
        report.seconds = started.elapsed().as_secs_f64();
        Ok(ReferenceSession { plan, limits, report, weights, values, cache, logits: Vec::new() })
    }

    /// A value's filled rows, row-major, in the arithmetic of the run.
    pub fn numbers(&self, value: ValueId) -> &[N] {
        let matrix = &self.values[value.0];
        &matrix.numbers[..matrix.rows * matrix.width]
    }

    pub(super) fn weight(&self, id: WeightId) -> &[f32] {
        &self.weights[id.0]
    }

    /// Row `row` of a weight matrix, exact.
    pub(super) fn weight_row(&self, id: WeightId, row: usize) -> impl Iterator<Item = N> {
        let columns = self.plan.program.weight(id).columns;
        self.weights[id.0][row * columns..(row + 1) * columns]
            .iter()
            .map(|&weight| N::exact(f64::from(weight)))
    }

    pub(super) fn row(&self, value: ValueId, row: usize) -> &[N] {
        let matrix = &self.values[value.0];
        &matrix.numbers[row * matrix.width..(row + 1) * matrix.width]
    }

    /// Stores a row, rounded to the value's format.
    pub(super) fn store(&mut self, value: ValueId, row: usize, numbers: &[N]) {
        let format = self.plan.value_format(value);
        let matrix = &mut self.values[value.0];
        matrix.rows = matrix.rows.max(row + 1);
        let stored = &mut matrix.numbers[row * matrix.width..(row + 1) * matrix.width];
        for (stored, number) in stored.iter_mut().zip(numbers) {
            *stored = number.round(format);
        }
    }

    pub(super) fn limits_ref(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn plan_ref(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn plan_arc(&self) -> Arc<Plan> {
        Arc::clone(&self.plan)
    }

    pub(super) fn cache(&self) -> Option<&PagedCache<N>> {
        self.cache.as_ref()
    }

    pub(super) fn cache_mut(&mut self) -> Option<&mut PagedCache<N>> {
        self.cache.as_mut()
    }

    /// Every op writes all rows of the batch: what lies beyond is of an earlier run.
    fn forget_rows(&mut self, op: &Op) {
        let aliased = op.inputs().contains(&op.output());
        if !aliased {
            self.values[op.output().0].rows = 0;
        }
    }

    fn run_steps(
        &mut self,
        batch: &Batch<'_>,
        mut observer: Option<&mut dyn StepObserver>,
    ) -> Result<(), RunError> {
        batch.check(&self.limits, &self.plan.batch_rules())?;
        let plan = Arc::clone(&self.plan);
        for (index, step) in plan.steps.iter().enumerate() {
            if let Some(observer) = observer.as_deref_mut() {
                observer.before_step(index);
            }
            self.forget_rows(&step.op);
            self.execute(step, batch);
            if let Some(observer) = observer.as_deref_mut() {
                observer.after_step(index, self);
            }
        }
        self.logits = plan.program.logits().map_or_else(Vec::new, |value| self.read(value));
        Ok(())
    }

    fn check_page(&self, page: u32) -> Result<(), RunError> {
        if page as usize >= self.limits.pages {
            return Err(RunError::Page { page, pages: self.limits.pages });
        }
        Ok(())
    }
}

fn load_all(
    plan: &Plan,
    source: &dyn TensorSource,
    options: &LoadOptions,
    progress: &dyn Progress,
    report: &mut LoadReport,
) -> Result<Vec<Vec<f32>>, PrepareError> {
    let format = plan.policy.weights();
    let bytes = |length: usize| length as u64 * u64::from(format.bits()) / 8;
    progress.start(plan.program.weights.iter().map(|spec| bytes(spec.len())).sum());
    let mut weights = Vec::with_capacity(plan.program.weights.len());
    for spec in &plan.program.weights {
        let stored = load_weight(spec, format, source, options.overflow, report)?;
        let mut numbers = filled(0.0_f32, spec.len(), &spec.name)?;
        decode_slice(&stored, format, &mut numbers)
            .map_err(|error| crate::source::SourceError { message: format!("{}: {error}", spec.name) })?;
        progress.advance(bytes(spec.len()));
        weights.push(numbers);
    }
    progress.finish();
    Ok(weights)
}

impl<N: Number> ValueReader for ReferenceSession<N> {
    fn read(&self, value: ValueId) -> Vec<f32> {
        let decode = |number: &N| round_to(number.value(), mantissa_numerics::Format::F32) as f32;
        self.numbers(value).iter().map(decode).collect()
    }
}

impl<N: Number> Session for ReferenceSession<N> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn report(&self) -> &LoadReport {
        &self.report
    }

    fn memory(&self) -> MemoryUse {
        let weights = self.weights.iter().map(|weight| size_of_val(weight.as_slice()) as u64).sum();
        let scratch = self.values.iter().map(|value| size_of_val(value.numbers.as_slice()) as u64).sum();
        MemoryUse { weights, cache: self.cache.as_ref().map_or(0, PagedCache::bytes), scratch }
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        self.run_steps(batch, None)
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.run_steps(batch, Some(observer))
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        Ok(&self.logits)
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        let format = self.plan.value_format(value);
        let name = &self.plan.program.value(value).name;
        let matrix = &mut self.values[value.0];
        if numbers.len() > matrix.numbers.len() || !numbers.len().is_multiple_of(matrix.width.max(1)) {
            let wanted = matrix.numbers.len().min(numbers.len().next_multiple_of(matrix.width.max(1)));
            return Err(RunError::ValueLength { value: name.clone(), wanted, got: numbers.len() });
        }
        let kept = |number: f64| number.is_nan() || round_to(number, format) == number;
        if let Some(&number) = numbers.iter().find(|&&number| !kept(f64::from(number))) {
            return Err(RunError::NotRepresentable { value: name.clone(), number, format });
        }
        matrix.rows = numbers.len() / matrix.width.max(1);
        for (stored, &number) in matrix.numbers.iter_mut().zip(numbers) {
            *stored = N::exact(f64::from(number));
        }
        Ok(())
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        self.check_page(from)?;
        self.check_page(to)?;
        if let Some(cache) = &mut self.cache {
            cache.copy_page(from, to);
        }
        Ok(())
    }
}
