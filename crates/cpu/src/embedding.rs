//! Token lookup.

use mantissa_numerics::Element;

use crate::disjoint::Disjoint;
use crate::elements::{Elements, ElementsMut};
use crate::operands::{Machine, OperandError, check_length, rows_per_task, typed};
use crate::pack::PackedMatrix;
use crate::pool::Pool;

/// The token table.
#[derive(Clone, Copy, Debug)]
pub enum TokenTable<'a> {
    /// `[vocabulary, hidden]`, row-major.
    Rows {
        /// The values.
        values: Elements<'a>,
        /// Values per row.
        width: usize,
    },
    /// `[vocabulary, hidden]`, packed: the table that is also the output matrix.
    Packed(&'a PackedMatrix),
}

impl TokenTable<'_> {
    /// Tokens and values per token.
    pub fn shape(&self) -> (usize, usize) {
        match *self {
            TokenTable::Rows { values, width } => (values.len().checked_div(width).unwrap_or(0), width),
            TokenTable::Packed(matrix) => (matrix.rows(), matrix.columns()),
        }
    }
}

/// Operands of [`embedding`].
#[derive(Debug)]
pub struct EmbeddingArgs<'a> {
    /// Token ids, one per row.
    pub tokens: &'a [u32],
    /// Where they are looked up.
    pub table: TokenTable<'a>,
    /// At least [`embedding_scratch`] values; the content does not matter.
    pub scratch: &'a mut [f32],
    /// `[rows, hidden]`.
    pub out: ElementsMut<'a>,
}

/// Values of scratch that [`embedding`] needs: one row per thread.
pub fn embedding_scratch(pool: &Pool, table: &TokenTable<'_>) -> usize {
    pool.threads() * table.shape().1
}

/// `out[t] = table[tokens[t]]`: decoded exactly, rounded once to the format of `out`.
///
/// # Errors
/// [`OperandError`] for a token beyond the table or a wrong length; nothing is written.
pub fn embedding(machine: Machine<'_>, args: EmbeddingArgs<'_>) -> Result<(), OperandError> {
    let EmbeddingArgs { tokens, table, scratch, out } = args;
    let (vocabulary, width) = table.shape();
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        let limit = vocabulary.saturating_sub(1);
        return Err(OperandError::Limit { operand: "token", got: token as usize, limit });
    }
    check_length("output of embedding", tokens.len().saturating_mul(width), out.len())?;
    let wanted = embedding_scratch(machine.pool, &table);
    let got = scratch.len();
    let Some(scratch) = scratch.get_mut(..wanted) else {
        return Err(OperandError::Length { operand: "scratch of embedding", wanted, got });
    };
    let scratch = Disjoint::new(scratch);
    typed!(ElementsMut, out, out => gather(machine, tokens, table, &scratch, out));
    Ok(())
}

fn gather<A: Element>(
    machine: Machine<'_>,
    tokens: &[u32],
    table: TokenTable<'_>,
    scratch: &Disjoint<'_, f32>,
    out: &mut [A],
) {
    let (_, width) = table.shape();
    let out = Disjoint::new(out);
    let step = rows_per_task(width);
    machine.pool.run(tokens.len().div_ceil(step), |task| {
        for (row, &token) in tokens.iter().enumerate().skip(task.index * step).take(step) {
            // SAFETY: each row belongs to one task, and each worker has scratch of its own.
            let (decoded, out) = unsafe {
                (
                    scratch.range(task.worker * width..(task.worker + 1) * width),
                    out.range(row * width..(row + 1) * width),
                )
            };
            decode_row(table, token as usize, decoded);
            A::encode_into(decoded, out);
        }
    });
}

/// Decodes a row that is known to be there.
fn decode_row(table: TokenTable<'_>, token: usize, out: &mut [f32]) {
    match table {
        TokenTable::Rows { values, width } => {
            typed!(Elements, values, values => Element::decode_into(&values[token * width..][..width], out));
        }
        TokenTable::Packed(matrix) => {
            if matrix.row(token, out).is_err() {
                // Token and width were checked against the matrix.
                out.fill(f32::NAN);
            }
        }
    }
}
