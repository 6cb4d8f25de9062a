//! Pages of the KV cache and who uses them.
//!
//! The cache is a fixed number of pages, each with room for the keys and values of a fixed number of tokens in every
//! layer. A sequence owns a [`BlockTable`]: its pages in order, so that token `i` lies in page `i / page size` at
//! `i % page size`. Pages need not be neighbours, so nothing moves when a sequence grows or ends (Kwon et al. 2023,
//! "Efficient Memory Management for Large Language Model Serving with PagedAttention").
//!
//! This module counts pages and holds no keys or values. A page can be shared after [`PageAllocator::fork`]; full
//! pages are never written again, and a shared partial one is replaced by a copy before it is: the caller makes the
//! [`PageCopy`] that [`PageAllocator::append`] reports.

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// The smallest number of tokens a page can hold.
pub const MIN_PAGE_SIZE: usize = 16;

/// What the page allocator refuses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PageError {
    /// The page size is not usable.
    #[error(
        "a page of {got} tokens is not possible: the page size must be a power of two of at least {MIN_PAGE_SIZE}"
    )]
    PageSize {
        /// The size wanted, in tokens.
        got: usize,
    },
    /// The number of pages is not usable.
    #[error(
        "a cache of {pages} pages of {page_size} tokens is not possible: it must have from 1 to {limit} pages"
    )]
    PageCount {
        /// The number wanted.
        pages: usize,
        /// Tokens in a page.
        page_size: usize,
        /// The most that can be addressed at this page size.
        limit: usize,
    },
    /// No room for more tokens.
    #[error(
        "the KV cache is full: {tokens} more tokens need {wanted} pages of {page_size} tokens, and {free} of {total} \
         are free; at most {fits} more tokens fit this sequence until another one ends, or make the cache at least \
         {needed_total} pages"
    )]
    OutOfPages {
        /// Tokens that were to be appended.
        tokens: usize,
        /// Pages that they need.
        wanted: usize,
        /// Pages free.
        free: usize,
        /// Pages in the cache.
        total: usize,
        /// Tokens in a page.
        page_size: usize,
        /// The most tokens that could be appended now.
        fits: usize,
        /// Pages that the cache would need to have for this, with everything else as it is.
        needed_total: usize,
    },
    /// A sequence of more tokens than can be counted.
    #[error("a sequence of {length} tokens cannot take {tokens} more")]
    TooLong {
        /// Tokens in the table.
        length: usize,
        /// Tokens that were to be appended.
        tokens: usize,
    },
    /// A table was given to an allocator that did not make it.
    #[error("this block table belongs to another page allocator; use the one that made it")]
    ForeignTable,
}

/// An order to copy the first `tokens` tokens of page `from` to page `to`, in every layer, before anything is written
/// to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "without the copy the new page holds stale keys and values"]
pub struct PageCopy {
    /// The shared page.
    pub from: u32,
    /// The sequence's own page, which has taken its place.
    pub to: u32,
    /// How many of its tokens are in use, counted from the first.
    pub tokens: usize,
}

/// The pages of one sequence. Give it back with [`PageAllocator::release`]: a table that is dropped keeps its pages
/// in use.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a block table leaks its pages; release it"]
pub struct BlockTable {
    owner: u64,
    page_size: usize,
    pages: Vec<u32>,
    tokens: usize,
}

impl BlockTable {
    /// The pages in order of the tokens: as many as it takes for [`len`](Self::len) tokens, and no more.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there are no tokens, and so no pages.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Where the token at `position` lies in the whole cache: page times page size plus place in the page. None if
    /// there is no such token.
    pub fn slot(&self, position: usize) -> Option<usize> {
        if position >= self.tokens {
            return None;
        }
        let page = *self.pages.get(position / self.page_size)?;
        // Cannot overflow: `PageAllocator::new` has checked pages times page size.
        Some(page as usize * self.page_size + position % self.page_size)
    }

    /// Tokens that fit in the last page beside those that are there.
    fn slack(&self) -> usize {
        self.pages.len() * self.page_size - self.tokens
    }
}

/// Gives the pages of a cache to sequences, and takes them back.
#[derive(Debug)]
pub struct PageAllocator {
    id: u64,
    page_size: usize,
    total: usize,
    /// Tables that hold each page, for the pages that were ever in use: those from here to `total` are free.
    references: Vec<u32>,
    /// Pages that were in use and are free again; the latest is used first, as it may still be in a CPU cache.
    returned: Vec<u32>,
}

impl PageAllocator {
    /// An allocator of `pages` pages of `page_size` tokens, all free. It takes memory for pages as they come into
    /// use only.
    ///
    /// # Errors
    /// A page size that is not a power of two or under [`MIN_PAGE_SIZE`]; no pages, or more than 2^32, or more than
    /// have tokens that can be counted.
    pub fn new(page_size: usize, pages: usize) -> Result<Self, PageError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        if page_size < MIN_PAGE_SIZE || !page_size.is_power_of_two() {
            return Err(PageError::PageSize { got: page_size });
        }
        let limit = (usize::MAX / page_size).min(u32::MAX as usize);
        if pages == 0 || pages > limit {
            return Err(PageError::PageCount { pages, page_size, limit });
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, page_size, total: pages, references: Vec::new(), returned: Vec::new() })
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages in the cache.
    pub fn total_pages(&self) -> usize {
        self.total
    }

    /// Pages that no table holds.
    pub fn free_pages(&self) -> usize {
        self.total - self.references.len() + self.returned.len()
    }

    /// Pages that `tokens` tokens of a new sequence take.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// An empty table.
    pub fn table(&self) -> BlockTable {
        BlockTable { owner: self.id, page_size: self.page_size, pages: Vec::new(), tokens: 0 }
    }

    /// Makes room for `tokens` more tokens at the end of `table`. If its last page is partly filled and shared, the
    /// table gets a page of its own in its place, and the copy to make is returned.
    ///
    /// # Errors
    /// Too few free pages, too long a sequence, or a table of another allocator. Nothing has changed then.
    pub fn append(&mut self, table: &mut BlockTable, tokens: usize) -> Result<Option<PageCopy>, PageError> {
        self.check_owner(table)?;
        if tokens == 0 {
            return Ok(None);
        }
        let too_long = PageError::TooLong { length: table.tokens, tokens };
        let length = table.tokens.checked_add(tokens).ok_or(too_long)?;
        let slack = table.slack();
        let shared_last = table.pages.last().copied().filter(|&page| slack > 0 && self.is_shared(page));
        let copied = usize::from(shared_last.is_some());
        let grown = length.div_ceil(self.page_size) - table.pages.len();
        let (wanted, free) = (grown + copied, self.free_pages());
        if wanted > free {
            // Without a page for the copy, not even the room in the last page can be used.
            let fits = match free.checked_sub(copied) {
                Some(spare) => slack + spare * self.page_size,
                None => 0,
            };
            let (total, page_size) = (self.total, self.page_size);
            let needed_total = total - free + wanted;
            return Err(PageError::OutOfPages { tokens, wanted, free, total, page_size, fits, needed_total });
        }
        let copy = shared_last.map(|from| {
            let to = self.take_page();
            self.drop_page(from);
            table.pages.pop();
            table.pages.push(to);
            PageCopy { from, to, tokens: self.page_size - slack }
        });
        for _ in 0..grown {
            table.pages.push(self.take_page());
        }
        table.tokens = length;
        Ok(copy)
    }

    /// Shortens `table` to its first `tokens` tokens, and gives back the pages that it no longer needs. Does nothing
    /// if it is not longer.
    ///
    /// # Errors
    /// A table of another allocator.
    pub fn truncate(&mut self, table: &mut BlockTable, tokens: usize) -> Result<(), PageError> {
        self.check_owner(table)?;
        if tokens < table.tokens {
            let kept = self.pages_for(tokens);
            for page in table.pages.drain(kept..) {
                self.drop_page(page);
            }
            table.tokens = tokens;
        }
        Ok(())
    }

    /// A second table of the same tokens, which shares all pages with the first. It takes no free page now.
    ///
    /// # Errors
    /// A table of another allocator.
    pub fn fork(&mut self, table: &BlockTable) -> Result<BlockTable, PageError> {
        self.check_owner(table)?;
        for &page in &table.pages {
            // Tables are larger than a count's 4 bytes times ten: memory ends long before the count does.
            self.references[page as usize] += 1;
        }
        Ok(BlockTable { owner: table.owner, pages: table.pages.clone(), ..*table })
    }

    /// Ends a sequence: pages that no other table holds are free again.
    ///
    /// # Errors
    /// A table of another allocator.
    pub fn release(&mut self, mut table: BlockTable) -> Result<(), PageError> {
        self.truncate(&mut table, 0)
    }

    fn check_owner(&self, table: &BlockTable) -> Result<(), PageError> {
        // Every page of an own table was taken here, so it is an index of `references` whose count is not 0.
        if table.owner == self.id { Ok(()) } else { Err(PageError::ForeignTable) }
    }

    fn is_shared(&self, page: u32) -> bool {
        self.references[page as usize] > 1
    }

    /// Callers have made sure that there is a free page.
    fn take_page(&mut self) -> u32 {
        match self.returned.pop() {
            Some(page) => {
                self.references[page as usize] = 1;
                page
            }
            None => {
                // `new` has checked that there are no more pages than numbers.
                let page = self.references.len() as u32;
                self.references.push(1);
                page
            }
        }
    }

    fn drop_page(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 {
            self.returned.push(page);
        }
    }
}
