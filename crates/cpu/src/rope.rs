//! Rotary position embedding: tables computed once in f64, rotation in f32.

use mantissa_ops::batch::Batch;
use mantissa_ops::program::RopeSpec;
use mantissa_ops::rope::FrequencyError;

use crate::aligned::{AlignedBuffer, OutOfMemory};
use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{
    Machine, OperandError, Storable, check_length, expect_mut, rows_of, rows_per_task, typed,
};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, SimdElement, dispatch};

/// Cosines and sines of every position up to the longest context, for each frequency set.
#[derive(Debug)]
pub struct RopeTables {
    /// `[set][position]`, `half` cosines and then `half` sines.
    values: AlignedBuffer,
    half: usize,
    context: usize,
    sets: usize,
}

/// Tables that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RopeError {
    /// A set with another number of frequencies than the rotary dimensions have pairs.
    #[error(transparent)]
    Frequencies(#[from] FrequencyError),
    /// No memory for the tables.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Cosines and sines of one position, times the attention factor; one of each per rotary pair.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

impl RopeTables {
    /// Tables for positions below `context`; see [`RopeSet::rotation`](mantissa_ops::program::RopeSet::rotation).
    ///
    /// # Errors
    /// [`RopeError`] for a set with missing frequencies, or too little memory.
    pub fn new(spec: &RopeSpec, context: usize, pool: &Pool) -> Result<RopeTables, RopeError> {
        spec.check()?;
        let (half, sets) = (spec.pairs(), spec.sets.len());
        let bytes = [half, 2 * size_of::<f32>(), context, sets].into_iter().try_fold(1, usize::checked_mul);
        let mut values = AlignedBuffer::zeroed(bytes.ok_or(OutOfMemory { bytes: usize::MAX })?)?;
        let rows = Disjoint::new(bytemuck::cast_slice_mut::<u8, f32>(&mut values));
        const POSITIONS: usize = 64;
        let steps = context.div_ceil(POSITIONS);
        pool.run(sets * steps, |task| {
            let (index, step) = (task.index / steps, task.index % steps);
            let set = &spec.sets[index];
            for position in step * POSITIONS..((step + 1) * POSITIONS).min(context) {
                let start = (index * context + position) * 2 * half;
                // SAFETY: each position of each set belongs to one task.
                let (cos, sin) = unsafe { rows.range(start..start + 2 * half) }.split_at_mut(half);
                set.rotation(position, cos, sin);
            }
        });
        Ok(RopeTables { values, half, context, sets })
    }

    /// The rotation of a position. Positions and sets beyond the tables are checked by [`Batch::check`].
    pub fn rotation(&self, set: usize, position: usize) -> Rotation<'_> {
        let values: &[f32] = bytemuck::cast_slice(&self.values);
        let row = &values[(set * self.context + position) * 2 * self.half..][..2 * self.half];
        let (cos, sin) = row.split_at(self.half);
        Rotation { cos, sin }
    }

    /// Rotary pairs of a head.
    pub fn pairs(&self) -> usize {
        self.half
    }

    /// Frequency sets.
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// Positions of each set.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.values.len()
    }

    /// Demands that the tables hold a batch's positions and sets, and that heads hold the pairs.
    pub(crate) fn check(&self, batch: &Batch<'_>, head_dim: usize) -> Result<(), OperandError> {
        let position = batch.positions.iter().max().map_or(0, |&position| position as usize);
        let set = batch.sequences.iter().map(|sequence| sequence.rope_set).max().unwrap_or(0);
        for (operand, got, bound) in [
            ("position", position, self.context),
            ("rope set", set, self.sets),
            ("rotary dimensions", 2 * self.half, head_dim + 1),
        ] {
            if got >= bound {
                return Err(OperandError::Limit { operand, got, limit: bound.saturating_sub(1) });
            }
        }
        Ok(())
    }
}

/// Operands of [`rope`]; input and output have one format.
#[derive(Debug)]
pub struct RopeArgs<'a> {
    /// `[rows, heads * head_dim]`.
    pub input: Elements<'a>,
    /// Values per head; the rotary dimensions come first, the others pass.
    pub head_dim: usize,
    /// Cosines and sines.
    pub tables: &'a RopeTables,
    /// Positions and sets of the rows.
    pub batch: &'a Batch<'a>,
    /// `[rows, heads * head_dim]`.
    pub out: ElementsMut<'a>,
}

/// Rotates each head: dimensions `i` and `i + rotary_dim / 2` form a pair (Su et al., RoFormer; halves convention).
/// In f32, the products with the sines fused into the sums, each result rounded once.
///
/// # Errors
/// [`OperandError`] where lengths or formats do not fit together, or a position lies beyond the tables.
pub fn rope(machine: Machine<'_>, args: RopeArgs<'_>) -> Result<(), OperandError> {
    let RopeArgs { input, head_dim, tables, batch, out } = args;
    let shape = Shape { head_dim, tables, batch };
    typed!(Elements, input, input => run(machine, input, shape, out))
}

#[derive(Clone, Copy)]
struct Shape<'a> {
    head_dim: usize,
    tables: &'a RopeTables,
    batch: &'a Batch<'a>,
}

fn run<A: Storable>(
    machine: Machine<'_>,
    input: &[A],
    shape: Shape<'_>,
    out: ElementsMut<'_>,
) -> Result<(), OperandError> {
    let Shape { head_dim, tables, batch } = shape;
    let rows = batch.rows();
    tables.check(batch, head_dim)?;
    rows_of("input of rope", input.len(), rows)?;
    let width = input.len().checked_div(rows).unwrap_or(0);
    rows_of("row of rope", width, head_dim)?;
    let out = expect_mut::<A>("output of rope", out)?;
    check_length("output of rope", input.len(), out.len())?;
    let out = Disjoint::new(out);
    let step = rows_per_task(width);
    machine.pool.run(rows.div_ceil(step), |task| {
        for row in task.index * step..((task.index + 1) * step).min(rows) {
            let rotation = tables.rotation(set_of(batch, row), batch.positions[row] as usize);
            // SAFETY: each row belongs to one task.
            let out = unsafe { out.range(row * width..(row + 1) * width) };
            dispatch(machine.tier, Row { input: &input[row * width..][..width], head_dim, rotation, out });
        }
    });
    Ok(())
}

/// The frequency set of a row.
pub(crate) fn set_of(batch: &Batch<'_>, row: usize) -> usize {
    let index = batch.sequences.partition_point(|sequence| sequence.rows.end <= row);
    batch.sequences.get(index).map_or(0, |sequence| sequence.rope_set)
}

struct Row<'a, A> {
    input: &'a [A],
    head_dim: usize,
    rotation: Rotation<'a>,
    out: &'a mut [A],
}

impl<A: SimdElement> Kernel for Row<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Row { input, head_dim, rotation, out } = self;
        out.copy_from_slice(input);
        for head in out.chunks_exact_mut(head_dim) {
            rotate_head(simd, head, rotation);
        }
    }
}

/// Rotates one head in place: `a cos - b sin` and `b cos + a sin`, where the second product is rounded only with
/// the sum.
#[inline(always)]
pub(crate) fn rotate_head<S: Simd, A: SimdElement>(simd: S, head: &mut [A], rotation: Rotation<'_>) {
    let half = rotation.cos.len();
    let (first, rest) = head.split_at_mut(half);
    let pairs = first.chunks_mut(LANES).zip(rest[..half].chunks_mut(LANES));
    let tables = rotation.cos.chunks(LANES).zip(rotation.sin.chunks(LANES));
    for ((first, second), (cos, sin)) in pairs.zip(tables) {
        let (a, b) = (A::load_partial(simd, first), A::load_partial(simd, second));
        let (cos, sin) = (f32::load_partial(simd, cos), f32::load_partial(simd, sin));
        let minus_sin = simd.sub(simd.zero(), sin);
        A::store_partial(simd, simd.fma(b, minus_sin, simd.mul(a, cos)), first);
        A::store_partial(simd, simd.fma(a, sin, simd.mul(b, cos)), second);
    }
}
