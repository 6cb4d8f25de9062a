//! Where weights come from: a checkpoint as a backend sees it.

use crate::view::View;

/// How the rows of a stored matrix relate to the rows that the op expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Row by row as the op expects them.
    AsStored,
    /// Within each of `heads` heads, the two halves of the rotary pairs are interleaved, as llama.cpp's converter
    /// stores the query and key matrices of Llama models.
    RopePairs {
        /// Heads of the matrix.
        heads: usize,
    },
}

impl RowOrder {
    /// The stored row that holds the op's row `row` of a matrix with `rows` rows.
    pub fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            RowOrder::AsStored => row,
            RowOrder::RopePairs { heads } => {
                let head_dim = rows / heads;
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (within % half) + within / half
            }
        }
    }
}

/// A tensor that cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// The whole text, naming file and tensor.
    pub message: String,
}

/// A checkpoint as a backend sees it: tensors by canonical name, shaped `[rows, columns]` or `[length]`.
pub trait TensorSource: Sync {
    /// The tensor, in the format it is stored in.
    ///
    /// # Errors
    /// Where the tensor is missing or cannot be read.
    fn tensor(&self, name: &str) -> Result<View<'_>, SourceError>;

    /// How the tensor's rows are ordered.
    fn row_order(&self, name: &str) -> RowOrder {
        let _ = name;
        RowOrder::AsStored
    }

    /// Called when the tensor has been packed for the last time: its file pages may leave memory.
    fn release(&self, name: &str) {
        let _ = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_pairs_are_taken_apart() {
        // Two heads of four rows: stored as (0, 2), (1, 3) pairs interleaved within each head.
        let order = RowOrder::RopePairs { heads: 2 };
        let stored: Vec<usize> = (0..8).map(|row| order.stored_row(row, 8)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
