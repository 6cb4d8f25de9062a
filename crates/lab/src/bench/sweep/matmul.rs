//! Matrix products of few rows.

use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::conformance::case::Run;
use mantissa::ops::cost::RunShape;
use mantissa::ops::op::Matmul;
use mantissa::ops::program::{ValueRole, WeightPart};
use mantissa::ops::{Grain, Limits, Op, ProgramBuilder};

use super::source::{RandomSource, random};
use super::{Family, Group, Timed};
use crate::LabError;

/// Layers of a program at most.
const LAYERS: usize = 2048;

/// What is added to a product: `out = alpha * input * weight^T + beta * residual`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beta {
    /// Nothing.
    Zero,
    /// The residual.
    One,
}

impl Beta {
    const fn name(self) -> &'static str {
        match self {
            Beta::Zero => "0",
            Beta::One => "1",
        }
    }
}

/// The products of a sweep: every combination.
#[derive(Clone, Debug, PartialEq)]
pub struct Products {
    /// Output features: rows of the weight.
    pub outputs: Vec<usize>,
    /// Rows of the input.
    pub rows: Vec<usize>,
    /// Input features: columns of the weight.
    pub inputs: Vec<usize>,
    /// Factors of the product.
    pub alphas: Vec<f32>,
    /// What is added to it.
    pub betas: Vec<Beta>,
}

impl Default for Products {
    fn default() -> Products {
        Products {
            outputs: vec![128, 512, 2048],
            rows: vec![1, 2, 4, 8, 16],
            inputs: vec![1024, 2048, 4096],
            alphas: vec![1.0, 0.5],
            betas: vec![Beta::Zero, Beta::One],
        }
    }
}

impl Products {
    /// A few of them.
    pub fn quick() -> Products {
        Products {
            outputs: vec![128, 512, 2048],
            rows: vec![1, 4, 16],
            inputs: vec![1024],
            alphas: vec![1.0],
            betas: vec![Beta::Zero],
        }
    }

    /// Shapes of weights, smallest first, each with every factor.
    fn kinds(&self) -> Vec<Kind> {
        let all = self.outputs.iter().flat_map(|&m| self.inputs.iter().map(move |&k| (m, k)));
        let mut shapes: Vec<(usize, usize)> = all.collect();
        shapes.sort_by_key(|(m, k)| m * k);
        let mut kinds = Vec::new();
        for (m, k) in shapes {
            for &alpha in &self.alphas {
                kinds.extend(self.betas.iter().map(|&beta| Kind { m, k, alpha, beta }));
            }
        }
        kinds
    }
}

/// Products with weights of one shape.
#[derive(Clone, Copy, Debug)]
struct Kind {
    m: usize,
    k: usize,
    alpha: f32,
    beta: Beta,
}

impl Family for Products {
    fn groups(&self) -> Vec<String> {
        let name =
            |Kind { m, k, alpha, beta }| format!("matmul m={m} k={k} alpha={alpha} beta={}", beta.name());
        self.kinds().into_iter().map(name).collect()
    }

    /// Layers of one kind, each with a weight of its own.
    fn group(&self, index: usize, policy: &PrecisionPolicy, rotated_bytes: usize) -> Result<Group, LabError> {
        let Kind { m, k, alpha, beta } = self.kinds()[index];
        let layers = rotated_bytes.div_ceil(m * k * policy.weights().bytes()).clamp(2, LAYERS);
        let most_rows = self.rows.iter().copied().max().unwrap_or(1);
        let mut builder = ProgramBuilder::new("matmul", most_rows);
        let mut source = RandomSource::new(policy.weights());
        let input = builder.value("input", k, ValueRole::Activation);
        let residual = builder.value("residual", m, ValueRole::Activation);
        let out = builder.value("out", m, ValueRole::Activation);
        for layer in 0..layers {
            let name = format!("layers.{layer}.weight");
            source.add(&name, &[m, k]).map_err(mantissa::ops::PrepareError::from)?;
            let weight = builder.matrix(name.as_str(), vec![WeightPart::whole(name.as_str(), m)], k);
            let residual = (beta == Beta::One).then_some(residual);
            builder.step(name, Op::Matmul(Matmul { input, weight, bias: None, residual, alpha, out }));
        }
        let timed = self.rows.iter().map(|&n| Timed {
            run: Run { inputs: vec![(input, random(n * k)), (residual, random(n * m))], ..Run::rows(n) },
            shape: RunShape::single(n, n),
            test: format!("matmul m={m} n={n} k={k} alpha={alpha} beta={}", beta.name()),
            steps: (0..layers).collect(),
            grain: Grain::Launch,
        });
        Ok(Group {
            timed: timed.collect(),
            program: builder.finish(),
            source,
            limits: Limits {
                rows: most_rows,
                outputs: 1,
                sequences: 1,
                pages: 1,
                page_size: Limits::MIN_PAGE,
                context: most_rows,
            },
            fill: Vec::new(),
        })
    }
}
