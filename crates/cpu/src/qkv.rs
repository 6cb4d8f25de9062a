//! What follows the fused projection of queries, keys and values: bias, head norms, RoPE, and the write of keys and
//! values into the cache.

use mantissa_numerics::Element;
use mantissa_ops::batch::Batch;
use mantissa_ops::op::Heads;

use crate::cache::{CacheWriter, KvCache, PageHead, Slot};
use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::norm::norm_head;
use crate::operands::{Machine, OperandError, check_heads, check_length, typed};
use crate::rope::{RopeTables, Rotation, rotate_head};
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};

#[cfg(test)]
mod tests;

/// Rows of a task.
const STEP: usize = 16;

/// Weights of the norms of query and key heads, in the format of the bias where there is one.
#[derive(Clone, Copy, Debug)]
pub struct HeadNormWeights<'a> {
    /// `[head_dim]`.
    pub query: Elements<'a>,
    /// `[head_dim]`.
    pub key: Elements<'a>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Operands of [`qkv_epilogue`].
#[derive(Debug)]
pub struct QkvArgs<'a> {
    /// `[rows, (heads.query + 2 * heads.key_value) * heads.dim]`: the unrounded products; overwritten.
    pub products: &'a mut [f32],
    /// One per product, added first.
    pub bias: Option<Elements<'a>>,
    /// Norms of each query and key head, next.
    pub head_norms: Option<HeadNormWeights<'a>>,
    /// Rotation of each query and key head, last.
    pub rope: Option<&'a RopeTables>,
    /// Heads.
    pub heads: Heads,
    /// Positions, frequency sets and pages of the rows. [`Batch::check`] has accepted it.
    pub batch: &'a Batch<'a>,
    /// Layer of the cache that is written.
    pub layer: usize,
    /// `[rows, heads.query * heads.dim]`: the queries.
    pub query: ElementsMut<'a>,
    /// Keys and values of the rows go to the pages of their sequences.
    pub cache: &'a mut KvCache,
}

/// Finishes queries, keys and values in f32 and rounds each once: queries to the format of activations, keys and
/// values to that of the cache.
///
/// For `f8e4m3` each head's key and value vector has a scale, its largest magnitude divided by 448 and rounded to
/// the format of the scales; the vector is divided by the stored scale, and rounded with saturation.
///
/// # Errors
/// [`OperandError`] where lengths, formats or heads do not fit together; nothing is written.
pub fn qkv_epilogue(machine: Machine<'_>, args: QkvArgs<'_>) -> Result<(), OperandError> {
    check(&args)?;
    args.cache.claim_pages(args.batch)?;
    let QkvArgs { products, bias, head_norms, rope, heads, batch, layer, query, cache } = args;
    let width = heads.query_width() + 2 * heads.kv_width();
    let rows = batch.rows();
    let page_size = cache.page_size();
    let (products, writer) = (Disjoint::new(products), cache.writer());
    typed!(ElementsMut, query, query => {
        let query = Disjoint::new(query);
        machine.pool.run(rows.div_ceil(STEP), |task| {
            for row in task.index * STEP..((task.index + 1) * STEP).min(rows) {
                // SAFETY: each row belongs to one task.
                let (products, query) = unsafe {
                    let queries = row * heads.query_width()..(row + 1) * heads.query_width();
                    (products.range(row * width..(row + 1) * width), query.range(queries))
                };
                let position = batch.positions[row] as usize;
                let index = batch.sequences.partition_point(|sequence| sequence.rows.end <= row);
                let sequence = &batch.sequences[index];
                let rotation = rope.map(|tables| tables.rotation(sequence.rope_set, position));
                finish(machine, Finish { products, bias, head_norms, rotation, heads });
                let (queries, cached) = products.split_at(heads.query_width());
                Element::encode_into(queries, query);
                let page = sequence.block_table[position / page_size];
                let to = Slot { at: PageHead { layer, page, head: 0 }, slot: position % page_size };
                // SAFETY: rows of a sequence have distinct positions, and `claim_pages` has seen that no page is
                // written for two sequences, or for two parts of one.
                unsafe { write_row(machine, &writer, to, cached, heads.dim) };
            }
        });
    });
    Ok(())
}

fn check(args: &QkvArgs<'_>) -> Result<(), OperandError> {
    let QkvArgs { heads, batch, .. } = *args;
    check_heads(heads)?;
    let layout = args.cache.layout();
    check_length("heads of the cache", heads.key_value, layout.heads)?;
    check_length("head dimension of the cache", heads.dim, layout.head_dim)?;
    if args.layer >= layout.layers {
        let limit = layout.layers.saturating_sub(1);
        return Err(OperandError::Limit { operand: "layer", got: args.layer, limit });
    }
    let width = heads.query_width() + 2 * heads.kv_width();
    check_length("products of qkv", batch.rows() * width, args.products.len())?;
    check_length("queries of qkv", batch.rows() * heads.query_width(), args.query.len())?;
    if let Some(bias) = &args.bias {
        check_length("bias of qkv", width, bias.len())?;
    }
    if let Some(norms) = &args.head_norms {
        check_length("query norm", heads.dim, norms.query.len())?;
        check_length("key norm", heads.dim, norms.key.len())?;
    }
    args.rope.map_or(Ok(()), |tables| tables.check(batch, heads.dim))
}

/// One row of products, to be finished in place.
struct Finish<'a> {
    products: &'a mut [f32],
    bias: Option<Elements<'a>>,
    head_norms: Option<HeadNormWeights<'a>>,
    rotation: Option<Rotation<'a>>,
    heads: Heads,
}

/// Bias, head norms and rotation, in f32.
fn finish(machine: Machine<'_>, row: Finish<'_>) {
    let Finish { products, bias, head_norms, rotation, heads } = row;
    if let Some(bias) = bias {
        typed!(Elements, bias, bias => dispatch(machine.tier, AddBias { values: &mut *products, bias }));
    }
    let (queries, rest) = products.split_at_mut(heads.query_width());
    let keys = &mut rest[..heads.kv_width()];
    if let Some(norms) = head_norms {
        for (values, weight) in [(&mut *queries, norms.query), (&mut *keys, norms.key)] {
            let (dim, eps) = (heads.dim, norms.eps);
            typed!(Elements, weight, weight => {
                dispatch(machine.tier, NormHeads { values, dim, weight, eps });
            });
        }
    }
    if let Some(rotation) = rotation {
        for values in [queries, keys] {
            dispatch(machine.tier, RotateHeads { values, dim: heads.dim, rotation });
        }
    }
}

/// Writes the keys and then values of one row, `[2 * heads.key_value, dim]`.
///
/// # Safety
/// No other thread writes the same slot of the layer at the same time.
unsafe fn write_row(machine: Machine<'_>, writer: &CacheWriter<'_>, to: Slot, cached: &[f32], dim: usize) {
    let (keys, values) = cached.split_at(cached.len() / 2);
    for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
        let to = Slot { at: PageHead { head, ..to.at }, ..to };
        // SAFETY: handed on from the caller.
        unsafe {
            writer.write_key(machine.tier, to, key);
            writer.write_value(machine.tier, to, value);
        }
    }
}

/// `values += bias`.
struct AddBias<'a, W> {
    values: &'a mut [f32],
    bias: &'a [W],
}

impl<W: SimdElement> Kernel for AddBias<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (x, bias) in self.values.chunks_mut(LANES).zip(self.bias.chunks(LANES)) {
            let sum = simd.add(f32::load_partial(simd, x), W::load_partial(simd, bias));
            f32::store_partial(simd, sum, x);
        }
    }
}

/// RMSNorm of each head.
struct NormHeads<'a, W> {
    values: &'a mut [f32],
    dim: usize,
    weight: &'a [W],
    eps: f32,
}

impl<W: SimdElement> Kernel for NormHeads<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for head in self.values.chunks_exact_mut(self.dim) {
            norm_head(simd, head, self.weight, self.eps);
        }
    }
}

/// RoPE of each head.
struct RotateHeads<'a> {
    values: &'a mut [f32],
    dim: usize,
    rotation: Rotation<'a>,
}

impl Kernel for RotateHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for head in self.values.chunks_exact_mut(self.dim) {
            rotate_head(simd, head, self.rotation);
        }
    }
}
