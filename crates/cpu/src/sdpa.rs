//! Attention of whole sequences over values, with the score matrix materialised in f32.
//!
//! Each score is one chain of fused multiply-adds over the head's dimensions; a row's visible scores go through the
//! [softmax](crate::softmax); each output is one chain over the visible rows, ascending, rounded once. The flash
//! kernels in [`attention`](crate::attention) compute the same function without the matrix.

use mantissa_ops::batch::Batch;
use mantissa_ops::op::{Heads, Mask};

use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{
    Machine, OperandError, Storable, check_heads, check_length, expect, expect_mut, typed,
};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};
use crate::softmax::Row;

/// Operands of [`sdpa`]; all values have one format.
#[derive(Debug)]
pub struct SdpaArgs<'a> {
    /// `[rows, heads.query * heads.dim]`.
    pub query: Elements<'a>,
    /// `[rows, heads.key_value * heads.dim]`.
    pub key: Elements<'a>,
    /// `[rows, heads.key_value * heads.dim]`.
    pub value: Elements<'a>,
    /// Heads.
    pub heads: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Which rows of its sequence a row sees.
    pub mask: Mask,
    /// The sequences of the rows.
    pub batch: &'a Batch<'a>,
    /// At least [`sdpa_scratch`] values; the content does not matter.
    pub scratch: &'a mut [f32],
    /// `[rows, heads.query * heads.dim]`.
    pub out: ElementsMut<'a>,
}

/// Values of scratch that [`sdpa`] needs for batches of up to `rows` rows: for each thread the scores of one head,
/// `[rows, rows]`, its keys, `[dim, rows]`, and one row of scores.
pub fn sdpa_scratch(heads: Heads, rows: usize, pool: &Pool) -> usize {
    let padded = rows.next_multiple_of(LANES);
    pool.threads().saturating_mul(thread_scratch(heads, padded))
}

fn thread_scratch(heads: Heads, padded: usize) -> usize {
    padded.saturating_mul(padded.saturating_add(heads.dim).saturating_add(1))
}

/// `out = softmax(scale * query . keys) values` for each row and query head; see the [module](self).
///
/// # Errors
/// [`OperandError`] where lengths, formats or heads do not fit together; nothing is written.
pub fn sdpa(machine: Machine<'_>, args: SdpaArgs<'_>) -> Result<(), OperandError> {
    typed!(Elements, args.query, query => run(machine, query, args))
}

/// The operands of one format.
struct Typed<'a, A> {
    query: &'a [A],
    key: &'a [A],
    value: &'a [A],
    heads: Heads,
    scale: f32,
    mask: Mask,
}

fn run<A: Storable>(machine: Machine<'_>, query: &[A], args: SdpaArgs<'_>) -> Result<(), OperandError> {
    let SdpaArgs { key, value, heads, scale, mask, batch, scratch, out, .. } = args;
    check_heads(heads)?;
    let rows = batch.rows();
    let (key, value) = (expect("keys of sdpa", &key)?, expect("values of sdpa", &value)?);
    check_length("queries of sdpa", rows * heads.query_width(), query.len())?;
    check_length("keys of sdpa", rows * heads.kv_width(), key.len())?;
    check_length("values of sdpa", rows * heads.kv_width(), value.len())?;
    let out = expect_mut::<A>("output of sdpa", out)?;
    check_length("output of sdpa", query.len(), out.len())?;
    let longest = batch.sequences.iter().map(|sequence| sequence.rows.len()).max().unwrap_or(0);
    let size = thread_scratch(heads, longest.next_multiple_of(LANES));
    let (wanted, got) = (size.saturating_mul(machine.pool.threads()), scratch.len());
    if got < wanted {
        return Err(OperandError::Length { operand: "scratch of sdpa", wanted, got });
    }
    let operands = Typed { query, key, value, heads, scale, mask };
    let (out, scratch) = (Disjoint::new(out), Disjoint::new(scratch));
    machine.pool.run(batch.sequences.len() * heads.query, |task| {
        let rows = batch.sequences[task.index / heads.query].rows.clone();
        let head = task.index % heads.query;
        // SAFETY: each thread has scratch of its own, and each task a head of a sequence.
        let scratch = unsafe { scratch.range(task.worker * size..(task.worker + 1) * size) };
        dispatch(
            machine.tier,
            HeadKernel { operands: &operands, start: rows.start, rows: rows.len(), head, scratch, out: &out },
        );
    });
    Ok(())
}

/// One query head of one sequence.
struct HeadKernel<'a, 'o, A> {
    operands: &'a Typed<'a, A>,
    /// First row of the sequence in the batch.
    start: usize,
    rows: usize,
    head: usize,
    scratch: &'a mut [f32],
    out: &'a Disjoint<'o, A>,
}

impl<A: SimdElement> Kernel for HeadKernel<'_, '_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let HeadKernel { operands, start, rows, head, scratch, out } = self;
        let Typed { query, key, value, heads, scale, mask } = *operands;
        let dim = heads.dim;
        let padded = rows.next_multiple_of(LANES);
        let kv = head / (heads.query / heads.key_value);
        let kv_row = |row: usize| (start + row) * heads.kv_width() + kv * dim;
        let (scores, rest) = scratch.split_at_mut(padded * padded);
        let (keys, rest) = rest.split_at_mut(dim * padded);
        for row in 0..padded {
            for d in 0..dim {
                keys[d * padded + row] = if row < rows { key[kv_row(row) + d].to_f32() } else { 0.0 };
            }
        }
        for row in 0..rows {
            let query = &query[(start + row) * heads.query_width() + head * dim..][..dim];
            // Whole blocks up to the row itself; what lies beyond is not looked at again.
            for block in 0..row / LANES + 1 {
                let mut sum = simd.zero();
                for (d, q) in query.iter().enumerate() {
                    let keys = f32::load_partial(simd, &keys[d * padded + block * LANES..][..LANES]);
                    sum = simd.fma(simd.splat(q.to_f32()), keys, sum);
                }
                f32::store_partial(simd, sum, &mut scores[row * padded + block * LANES..][..LANES]);
            }
        }
        let weights = &mut rest[..padded];
        for row in 0..rows {
            let visible = mask.first_visible(row)..row + 1;
            let weights = &mut weights[..visible.len()];
            let input = &scores[row * padded..][visible.clone()];
            Row { input, scale, out: &mut *weights }.run(simd);
            let at = (start + row) * heads.query_width() + head * dim;
            // SAFETY: this task alone writes this head of this row.
            let out = unsafe { out.range(at..at + dim) };
            for (vector, out) in out.chunks_mut(LANES).enumerate() {
                let mut sum = simd.zero();
                for (weight, other) in weights.iter().zip(visible.clone()) {
                    let values = &value[kv_row(other) + vector * LANES..][..out.len()];
                    sum = simd.fma(simd.splat(*weight), A::load_partial(simd, values), sum);
                }
                A::store_partial(simd, sum, out);
            }
        }
    }
}
