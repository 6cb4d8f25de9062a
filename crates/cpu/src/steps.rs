//! One step of a plan: from an op and the session's memory to a kernel's operands.

use mantissa_ops::Op;
use mantissa_ops::batch::Batch;
use mantissa_ops::op;
use mantissa_ops::program::RunRows;

use crate::attention::{AttentionArgs, attention};
use crate::cache::KvCache;
use crate::elements::{Elements, ElementsError, ElementsMut};
use crate::elementwise::{AddArgs, add, add_assign};
use crate::embedding::{EmbeddingArgs, TokenTable, embedding};
use crate::experimental::{Kernels, MatmulKernel};
use crate::matmul::{Epilogue, Matmul, MatmulError, Residual, ResidualValues};
use crate::norm::RmsNormArgs;
use crate::operands::{Machine, OperandError};
use crate::qkv::{HeadNormWeights, QkvArgs, qkv_epilogue};
use crate::rope::{RopeArgs, RopeTables, rope};
use crate::sdpa::{SdpaArgs, sdpa};
use crate::session::Scratch;
use crate::softmax::{SoftmaxArgs, softmax};
use crate::values::{AccessError, Values};
use crate::weights::Weights;

/// A step that cannot run; the plan and the batch were checked, so that this names a mistake in a program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Operands(#[from] OperandError),
    #[error(transparent)]
    Matmul(#[from] MatmulError),
    #[error("the program has no {0}")]
    Missing(&'static str),
}

impl From<ElementsError> for StepError {
    fn from(error: ElementsError) -> StepError {
        StepError::Access(error.into())
    }
}

/// What a step works with.
pub(crate) struct Runner<'a> {
    pub machine: Machine<'a>,
    pub kernels: Kernels,
    pub weights: &'a Weights,
    pub values: &'a mut Values,
    pub rope: Option<&'a RopeTables>,
    pub cache: Option<&'a mut KvCache>,
    pub scratch: &'a mut Scratch,
    pub batch: &'a Batch<'a>,
    pub rows: RunRows,
}

impl Runner<'_> {
    /// Runs one op.
    pub fn step(&mut self, op: &Op) -> Result<(), StepError> {
        match op {
            Op::Embedding(op) => self.embedding(op),
            Op::RmsNorm(op) => self.rms_norm(op),
            Op::Rope(op) => self.rope(op),
            Op::Softmax(op) => self.softmax(op),
            Op::Sdpa(op) => self.sdpa(op),
            Op::Matmul(op) => self.matmul(op),
            Op::Qkv(op) => self.qkv(op),
            Op::Attention(op) => self.attention(op),
            Op::SwiGlu(op) => self.swiglu(op),
            Op::Ffn(op) => self.ffn(op),
            Op::Residual(op) => self.residual(op),
            Op::Logits(op) => self.logits(op),
        }
    }

    fn embedding(&mut self, op: &op::Embedding) -> Result<(), StepError> {
        let args = EmbeddingArgs {
            tokens: self.batch.tokens,
            table: TokenTable::Packed(self.weights.matrix(op.table)),
            scratch: floats(&mut self.scratch.floats),
            out: self.values.get_mut(op.out, self.rows)?,
        };
        Ok(embedding(self.machine, args)?)
    }

    fn rms_norm(&mut self, op: &op::RmsNorm) -> Result<(), StepError> {
        let weight = Elements::F32(self.weights.vector(op.weight));
        let rms_norm = self.kernels.rms_norm;
        match op.residual {
            None => {
                let ([input], out) = self.values.disjoint([op.input], op.out, self.rows)?;
                let args = RmsNormArgs { input, residual: None, weight, eps: op.eps, out };
                Ok(rms_norm(self.machine, args)?)
            }
            Some(residual) => {
                let (input, [residual, out]) =
                    self.values.disjoint_pair(op.input, [residual, op.out], self.rows)?;
                let args = RmsNormArgs { input, residual: Some(residual), weight, eps: op.eps, out };
                Ok(rms_norm(self.machine, args)?)
            }
        }
    }

    fn rope(&mut self, op: &op::Rope) -> Result<(), StepError> {
        let tables = self.rope.ok_or(StepError::Missing("rotary embedding"))?;
        let ([input], out) = self.values.disjoint([op.input], op.out, self.rows)?;
        let args = RopeArgs { input, head_dim: op.head_dim, tables, batch: self.batch, out };
        Ok(rope(self.machine, args)?)
    }

    fn softmax(&mut self, op: &op::Softmax) -> Result<(), StepError> {
        let width = self.values.width(op.input);
        let ([input], out) = self.values.disjoint([op.input], op.out, self.rows)?;
        Ok(softmax(self.machine, SoftmaxArgs { input, width, scale: op.scale, out })?)
    }

    fn sdpa(&mut self, op: &op::Sdpa) -> Result<(), StepError> {
        let inputs = [op.query, op.key, op.value];
        let ([query, key, value], out) = self.values.disjoint(inputs, op.out, self.rows)?;
        let args = SdpaArgs {
            query,
            key,
            value,
            heads: op.heads,
            scale: op.scale,
            mask: op.mask,
            batch: self.batch,
            scratch: floats(&mut self.scratch.floats),
            out,
        };
        Ok(sdpa(self.machine, args)?)
    }

    fn matmul(&mut self, op: &op::Matmul) -> Result<(), StepError> {
        let weights = self.weights.matrix(op.weight);
        let bias = op.bias.map(|bias| self.weights.vector(bias));
        let in_place = Residual { beta: 1.0, values: ResidualValues::InPlace };
        let (input, residual, out) = match op.residual {
            Some(residual) if residual != op.out => {
                let ([input, residual], out) =
                    self.values.disjoint([op.input, residual], op.out, self.rows)?;
                let values = ResidualValues::Separate(residual);
                (input, Some(Residual { beta: 1.0, values }), out)
            }
            residual => {
                let ([input], out) = self.values.disjoint([op.input], op.out, self.rows)?;
                (input, residual.map(|_| in_place), out)
            }
        };
        let epilogue = Epilogue::Store { out, alpha: op.alpha, bias, residual };
        let product = Matmul { weights, input, rows: self.rows.tokens, epilogue };
        self.scratch.product(self.machine, self.kernels.matmul, product)
    }

    fn qkv(&mut self, op: &op::Qkv) -> Result<(), StepError> {
        let weights = self.weights.matrix(op.weight);
        let cache = self.cache.as_deref_mut().ok_or(StepError::Missing("KV cache"))?;
        let ([input], query) = self.values.disjoint([op.input], op.query, self.rows)?;
        let Scratch { matmul: scratch, floats: products, .. } = &mut *self.scratch;
        let rows = self.rows.tokens;
        let products = &mut floats(products)[..rows * weights.rows()];
        let epilogue = Epilogue::F32 { out: products };
        let (Machine { tier, pool }, matmul) = (self.machine, self.kernels.matmul);
        matmul(pool, tier, scratch, Matmul { weights, input, rows, epilogue })?;
        let vector = |id| Elements::F32(self.weights.vector(id));
        let args = QkvArgs {
            products,
            bias: op.bias.map(vector),
            head_norms: op.head_norms.map(|norms| HeadNormWeights {
                query: vector(norms.query),
                key: vector(norms.key),
                eps: norms.eps,
            }),
            rope: self.rope,
            heads: op.heads,
            batch: self.batch,
            layer: op.layer,
            query,
            cache,
        };
        Ok(qkv_epilogue(self.machine, args)?)
    }

    fn attention(&mut self, op: &op::Attention) -> Result<(), StepError> {
        let cache = self.cache.as_deref().ok_or(StepError::Missing("KV cache"))?;
        let ([query], out) = self.values.disjoint([op.query], op.out, self.rows)?;
        let workspace = self
            .scratch
            .attention
            .iter_mut()
            .find_map(|(heads, workspace)| (*heads == op.heads).then_some(workspace))
            .ok_or(StepError::Missing("attention workspace"))?;
        let args = AttentionArgs {
            query,
            cache,
            layer: op.layer,
            scale: op.scale,
            mask: op.mask,
            batch: self.batch,
            workspace,
            out,
        };
        Ok(attention(self.machine, args)?)
    }

    fn swiglu(&mut self, op: &op::SwiGlu) -> Result<(), StepError> {
        let weights = self.weights.matrix(op.weight);
        let ([input], out) = self.values.disjoint([op.input], op.out, self.rows)?;
        let epilogue = Epilogue::SwiGlu { out };
        let product = Matmul { weights, input, rows: self.rows.tokens, epilogue };
        self.scratch.product(self.machine, self.kernels.matmul, product)
    }

    fn ffn(&mut self, op: &op::Ffn) -> Result<(), StepError> {
        let (gate_up, down) = (self.weights.matrix(op.gate_up), self.weights.matrix(op.down));
        let rows = self.rows.tokens;
        let format = self.values.format(op.input);
        let bytes = rows * down.columns() * format.bytes();
        let (Machine { tier, pool }, matmul) = (self.machine, self.kernels.matmul);
        let Scratch { matmul: scratch, activations, .. } = &mut *self.scratch;
        let intermediate = &mut activations[..bytes];
        let input = self.values.get(op.input, self.rows)?;
        let out = ElementsMut::from_bytes(format, intermediate)?;
        let epilogue = Epilogue::SwiGlu { out };
        matmul(pool, tier, scratch, Matmul { weights: gate_up, input, rows, epilogue })?;
        let input = Elements::from_bytes(format, intermediate)?;
        let (residual, out) = match op.residual {
            Some(residual) if residual != op.out => {
                let ([residual], out) = self.values.disjoint([residual], op.out, self.rows)?;
                (Some(ResidualValues::Separate(residual)), out)
            }
            residual => (residual.map(|_| ResidualValues::InPlace), self.values.get_mut(op.out, self.rows)?),
        };
        let residual = residual.map(|values| Residual { beta: 1.0, values });
        let epilogue = Epilogue::Store { out, alpha: 1.0, bias: None, residual };
        Ok(matmul(pool, tier, scratch, Matmul { weights: down, input, rows, epilogue })?)
    }

    fn residual(&mut self, op: &op::Residual) -> Result<(), StepError> {
        if op.left == op.out || op.right == op.out {
            let other = if op.left == op.out { op.right } else { op.left };
            let ([right], sum) = self.values.disjoint([other], op.out, self.rows)?;
            return Ok(add_assign(self.machine, sum, right)?);
        }
        let ([left, right], out) = self.values.disjoint([op.left, op.right], op.out, self.rows)?;
        Ok(add(self.machine, AddArgs { left, right, out })?)
    }

    fn logits(&mut self, op: &op::Logits) -> Result<(), StepError> {
        if self.rows.outputs == 0 {
            return Ok(());
        }
        let weights = self.weights.matrix(op.weight);
        let format = self.values.format(op.input);
        let row_bytes = weights.columns() * format.bytes();
        let gathered = &mut self.scratch.activations[..self.rows.outputs * row_bytes];
        let stored = self.values.bytes_of(op.input);
        for (&row, out) in self.batch.outputs.iter().zip(gathered.chunks_exact_mut(row_bytes)) {
            out.copy_from_slice(&stored[row as usize * row_bytes..][..row_bytes]);
        }
        let input = Elements::from_bytes(format, gathered)?;
        let ElementsMut::F32(out) = self.values.get_mut(op.out, self.rows)? else {
            return Err(StepError::Missing("f32 logits"));
        };
        let (Machine { tier, pool }, matmul) = (self.machine, self.kernels.matmul);
        let epilogue = Epilogue::F32 { out };
        let rows = self.rows.outputs;
        Ok(matmul(pool, tier, &mut self.scratch.matmul, Matmul { weights, input, rows, epilogue })?)
    }
}

impl Scratch {
    fn product(
        &mut self,
        machine: Machine<'_>,
        kernel: MatmulKernel,
        product: Matmul<'_>,
    ) -> Result<(), StepError> {
        Ok(kernel(machine.pool, machine.tier, &mut self.matmul, product)?)
    }
}

/// A scratch buffer's numbers: buffers are aligned and hold whole ones.
fn floats(buffer: &mut crate::aligned::AlignedBuffer) -> &mut [f32] {
    bytemuck::try_cast_slice_mut(buffer).unwrap_or_default()
}
