//! What one run of a plan works on.

use std::ops::Range;

use crate::backend::PrepareError;

/// The rows of one sequence in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows<'a> {
    /// Its rows in the batch; consecutive positions, ascending.
    pub rows: Range<usize>,
    /// Pages of the cache, in the order of positions.
    pub block_table: &'a [u32],
    /// The frequency set of the rotary embedding.
    pub rope_set: usize,
}

/// Tokens of one or more sequences, run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Token ids, one per row.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence; keys and values are written there, and `position + 1` tokens are visible.
    pub positions: &'a [u32],
    /// Sequences, covering all rows in order.
    pub sequences: &'a [SequenceRows<'a>],
    /// Rows whose logits are wanted, ascending.
    pub outputs: &'a [u32],
}

impl Batch<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}

/// How large batches and caches of a session can become; everything is allocated for it at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of a batch.
    pub rows: usize,
    /// Rows of a batch whose logits are wanted.
    pub outputs: usize,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Tokens per page: a power of two, at least [`Limits::MIN_PAGE`].
    pub page_size: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
}

impl Limits {
    /// The smallest page: attention works on blocks of 16 positions.
    pub const MIN_PAGE: usize = 16;

    /// Demands sizes that a session can be prepared for.
    ///
    /// # Errors
    /// [`PrepareError::Limit`] naming the size.
    pub fn check(&self) -> Result<(), PrepareError> {
        if self.page_size < Limits::MIN_PAGE || !self.page_size.is_power_of_two() {
            let wanted = format!("a power of two of at least {}", Limits::MIN_PAGE);
            return Err(PrepareError::Limit { what: "page size", got: self.page_size, wanted });
        }
        for (what, got) in [("rows", self.rows), ("sequences", self.sequences), ("context", self.context)] {
            if got == 0 {
                return Err(PrepareError::Limit { what, got, wanted: "at least 1".to_owned() });
            }
        }
        Ok(())
    }

    /// Pages that one sequence of `tokens` tokens needs.
    pub fn pages_for(page_size: usize, tokens: usize) -> usize {
        tokens.div_ceil(page_size)
    }
}

/// A batch that does not fit the plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BatchError {
    #[error("a batch of no tokens")]
    Empty,
    #[error("{what}: {got} in the batch, but the session was prepared for {limit}")]
    Limit { what: &'static str, got: usize, limit: usize },
    #[error("{tokens} tokens but {positions} positions")]
    Lengths { tokens: usize, positions: usize },
    #[error("sequences cover rows up to {covered} of {rows}, or overlap")]
    Cover { covered: usize, rows: usize },
    #[error("row {row}: token {token} is outside the vocabulary of {vocabulary}")]
    Token { row: usize, token: u32, vocabulary: usize },
    #[error("row {row}: position {position} does not follow its predecessor")]
    Position { row: usize, position: u32 },
    #[error("row {row}: position {position} needs page {wanted} of a table of {got}")]
    Pages { row: usize, position: u32, wanted: usize, got: usize },
    #[error("page {page} is outside the cache of {pages} pages")]
    Page { page: u32, pages: usize },
    #[error("rope set {set} of a program with {sets}")]
    RopeSet { set: usize, sets: usize },
    #[error("output row {row} is outside the batch of {rows} rows, or not ascending")]
    Output { row: u32, rows: usize },
}

/// What a program tells a batch check.
#[derive(Clone, Copy, Debug)]
pub struct BatchRules {
    /// Token ids must be below this, where the program embeds tokens.
    pub vocabulary: Option<usize>,
    /// Whether rows need pages.
    pub cache: CacheUse,
    /// Frequency sets.
    pub rope_sets: usize,
}

/// Whether a program uses the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// It does.
    Paged,
    /// It does not: block tables are not looked at.
    None,
}

impl Batch<'_> {
    /// Checks the batch against a session's limits, so that kernels need not.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self, limits: &Limits, rules: &BatchRules) -> Result<(), BatchError> {
        let rows = self.rows();
        if rows == 0 {
            return Err(BatchError::Empty);
        }
        for (what, got, limit) in [
            ("rows", rows, limits.rows),
            ("outputs", self.outputs.len(), limits.outputs),
            ("sequences", self.sequences.len(), limits.sequences),
        ] {
            if got > limit {
                return Err(BatchError::Limit { what, got, limit });
            }
        }
        if self.positions.len() != rows {
            return Err(BatchError::Lengths { tokens: rows, positions: self.positions.len() });
        }
        if let Some(vocabulary) = rules.vocabulary
            && self.tokens.iter().fold(0, |most, &token| most.max(token)) as usize >= vocabulary
            && let Some(row) = self.tokens.iter().position(|&token| token as usize >= vocabulary)
        {
            return Err(BatchError::Token { row, token: self.tokens[row], vocabulary });
        }
        self.check_sequences(limits, rules)?;
        let mut next = 0;
        for &row in self.outputs {
            if (row as usize) < next || row as usize >= rows {
                return Err(BatchError::Output { row, rows });
            }
            next = row as usize + 1;
        }
        Ok(())
    }

    fn check_sequences(&self, limits: &Limits, rules: &BatchRules) -> Result<(), BatchError> {
        let mut covered = 0;
        for sequence in self.sequences {
            if sequence.rows.start != covered
                || sequence.rows.end <= covered
                || sequence.rows.end > self.rows()
            {
                return Err(BatchError::Cover { covered, rows: self.rows() });
            }
            covered = sequence.rows.end;
            if sequence.rope_set >= rules.rope_sets.max(1) {
                return Err(BatchError::RopeSet { set: sequence.rope_set, sets: rules.rope_sets });
            }
            let held = match rules.cache {
                CacheUse::Paged => sequence.block_table.len().saturating_mul(limits.page_size),
                CacheUse::None => usize::MAX,
            };
            let positions = &self.positions[sequence.rows.clone()];
            let first = positions[0] as usize;
            // Without a way out for every row, of which a prompt has thousands.
            let misplaced = positions
                .iter()
                .enumerate()
                .fold(false, |any, (offset, &position)| any | (position as usize != first + offset));
            if misplaced || first + positions.len() > limits.context.min(held) {
                self.check_positions(sequence, limits, held)?;
            }
            if rules.cache == CacheUse::Paged
                && let Some(&page) = sequence.block_table.iter().find(|&&page| page as usize >= limits.pages)
            {
                return Err(BatchError::Page { page, pages: limits.pages });
            }
        }
        if covered != self.rows() {
            return Err(BatchError::Cover { covered, rows: self.rows() });
        }
        Ok(())
    }

    /// Names the first row whose position does not fit; `held` is how many the sequence's pages hold.
    fn check_positions(
        &self,
        sequence: &SequenceRows<'_>,
        limits: &Limits,
        held: usize,
    ) -> Result<(), BatchError> {
        let positions = &self.positions[sequence.rows.clone()];
        for (offset, &position) in positions.iter().enumerate() {
            let row = sequence.rows.start + offset;
            if position as usize >= limits.context {
                return Err(BatchError::Limit {
                    what: "position",
                    got: position as usize,
                    limit: limits.context,
                });
            }
            if position as usize != positions[0] as usize + offset {
                return Err(BatchError::Position { row, position });
            }
            if position as usize >= held {
                return Err(BatchError::Pages {
                    row,
                    position,
                    wanted: position as usize / limits.page_size,
                    got: sequence.block_table.len(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_that_does_not_fit_is_named() {
        let limits = Limits { rows: 64, outputs: 1, sequences: 2, pages: 4, page_size: 16, context: 40 };
        let rules = BatchRules { vocabulary: Some(100), cache: CacheUse::Paged, rope_sets: 1 };
        let check = |tokens: &[u32], positions: &[u32], pages: &[u32]| {
            let sequence = SequenceRows { rows: 0..tokens.len(), block_table: pages, rope_set: 0 };
            Batch { tokens, positions, sequences: &[sequence], outputs: &[] }.check(&limits, &rules)
        };
        assert_eq!(check(&[99; 3], &[14, 15, 16], &[3, 0]), Ok(()));
        let pages = Err(BatchError::Pages { row: 2, position: 16, wanted: 1, got: 1 });
        assert_eq!(check(&[99; 3], &[14, 15, 16], &[3]), pages);
        let token = Err(BatchError::Token { row: 1, token: 100, vocabulary: 100 });
        assert_eq!(check(&[99, 100, 101], &[0, 1, 2], &[3]), token);
        assert_eq!(check(&[0; 3], &[7, 9, 9], &[3]), Err(BatchError::Position { row: 1, position: 9 }));
        let limit = Err(BatchError::Limit { what: "position", got: 40, limit: 40 });
        assert_eq!(check(&[0; 2], &[39, 40], &[3, 2, 1]), limit);
        assert_eq!(check(&[0], &[0], &[4]), Err(BatchError::Page { page: 4, pages: 4 }));
    }
}
