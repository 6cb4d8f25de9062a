//! Weights as the kernels read them: matrices packed in panels, vectors decoded to f32.

use mantissa_numerics::convert::Overflow;
use mantissa_numerics::{Format, decode_slice};
use mantissa_ops::backend::{Conversion, LoadReport, OverflowRule, PrepareError, Progress};
use mantissa_ops::load::{
    Formats, check_shape, check_values, checked_order, load_weight, record, stored_bytes,
};
use mantissa_ops::program::{WeightKind, WeightSpec};
use mantissa_ops::{Plan, SourceError, TensorSource, WeightId};

use crate::aligned::Arena;
use crate::pack::{Layout, PackError, PackRequest, PackSource, PackedMatrix};
use crate::pool::Pool;

/// One weight.
#[derive(Debug)]
enum Weight {
    Matrix(PackedMatrix),
    /// Rounded to the policy's format, then decoded exactly.
    Vector(Vec<f32>),
}

/// All weights of a plan.
#[derive(Debug)]
pub(crate) struct Weights {
    weights: Vec<Weight>,
}

/// What loading needs to know.
pub(crate) struct Loader<'a> {
    pub pool: &'a Pool,
    pub source: &'a dyn TensorSource,
    pub overflow: OverflowRule,
    pub progress: &'a dyn Progress,
    /// What small matrices are parts of.
    pub memory: Arena,
}

impl Weights {
    /// Reads, converts and packs every weight. The largest come first: their pages of the checkpoint leave memory
    /// before most of the packed weights exist, so that the peak stays close to the packed size.
    pub fn load(
        plan: &Plan,
        mut loader: Loader<'_>,
        report: &mut LoadReport,
    ) -> Result<Weights, PrepareError> {
        let format = plan.policy.weights();
        let specs = &plan.program.weights;
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(specs[index].len()));
        let total = specs.iter().map(|spec| stored_bytes(spec, loader.source)).sum::<Result<u64, _>>()?;
        loader.progress.start(total);
        let mut loaded: Vec<Option<Weight>> = specs.iter().map(|_| None).collect();
        for index in order {
            let before = report.bytes_read;
            loaded[index] = Some(loader.load(&specs[index], format, report)?);
            loader.progress.advance(report.bytes_read - before);
        }
        loader.progress.finish();
        Ok(Weights { weights: loaded.into_iter().flatten().collect() })
    }

    /// A packed matrix.
    pub fn matrix(&self, id: WeightId) -> &PackedMatrix {
        match &self.weights[id.0] {
            Weight::Matrix(matrix) => matrix,
            // `check_kinds` has refused programs whose ops want a matrix here.
            Weight::Vector(_) => unreachable!("an op's matrix is declared as a vector"),
        }
    }

    /// A decoded vector.
    pub fn vector(&self, id: WeightId) -> &[f32] {
        match &self.weights[id.0] {
            Weight::Vector(vector) => vector,
            Weight::Matrix(_) => unreachable!("an op's vector is declared as a matrix"),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let bytes = |weight: &Weight| match weight {
            Weight::Matrix(matrix) => matrix.bytes().len(),
            Weight::Vector(vector) => size_of_val(vector.as_slice()),
        };
        self.weights.iter().map(|weight| bytes(weight) as u64).sum()
    }
}

impl Loader<'_> {
    fn load(
        &mut self,
        spec: &WeightSpec,
        format: Format,
        report: &mut LoadReport,
    ) -> Result<Weight, PrepareError> {
        let weight = match spec.kind {
            WeightKind::Matrix => self.matrix(spec, format, Layout::Plain, report)?,
            WeightKind::GateUp => self.matrix(spec, format, Layout::GateUp, report)?,
            WeightKind::Vector => {
                let bytes = load_weight(spec, format, self.source, self.overflow, report)?;
                let mut decoded = vec![0.0; spec.len()];
                decode_slice(&bytes, format, &mut decoded)
                    .map_err(|error| SourceError { message: format!("{}: {error}", spec.name) })?;
                Weight::Vector(decoded)
            }
        };
        for part in &spec.parts {
            self.source.release(&part.tensor);
        }
        Ok(weight)
    }

    fn matrix(
        &mut self,
        spec: &WeightSpec,
        format: Format,
        layout: Layout,
        report: &mut LoadReport,
    ) -> Result<Weight, PrepareError> {
        let mut sources = Vec::with_capacity(spec.parts.len());
        for part in &spec.parts {
            let view = self.source.tensor(&part.tensor)?;
            check_shape(spec, part, &view)?;
            let message = format!("tensor {}: its values do not lie row by row", part.tensor);
            sources.push(PackSource {
                bytes: view.as_bytes().ok_or(SourceError { message })?,
                format: view.format(),
                tensor_rows: part.tensor_rows,
                rows: part.rows.clone(),
                order: checked_order(self.source.row_order(&part.tensor), part)?,
            });
        }
        let overflow = match self.overflow {
            OverflowRule::Refuse => Overflow::Infinity,
            OverflowRule::Saturate => Overflow::Saturate,
        };
        let request = PackRequest { sources: &sources, columns: spec.columns, format, layout, overflow };
        let packed = PackedMatrix::pack(&request, &mut self.memory, self.pool)
            .map_err(|error| pack_error(spec, error))?;
        for ((part, source), stats) in spec.parts.iter().zip(&sources).zip(packed.stats) {
            let from = source.format;
            check_values(spec, part, &stats, Formats { from, to: format }, self.overflow)?;
            report.bytes_read += (from.bytes() * spec.columns * part.rows.len()) as u64;
            if from != format {
                record(report, Conversion { tensor: part.tensor.clone(), from, to: format, stats });
            }
        }
        Ok(Weight::Matrix(packed.matrix))
    }
}

fn pack_error(spec: &WeightSpec, error: PackError) -> PrepareError {
    match error {
        PackError::Memory(memory) => {
            PrepareError::OutOfMemory { what: spec.name.clone(), bytes: memory.bytes as u64 }
        }
        other => PrepareError::Source(SourceError { message: format!("weight {}: {other}", spec.name) }),
    }
}
