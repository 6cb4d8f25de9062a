//! The page allocator against a model that knows nothing of pages being numbers: who owns what is checked from the
//! outside, and every cached token is followed through sharing, copies and rollbacks.

use std::collections::HashMap;

use mantissa_engine::paging::{BlockTable, PageAllocator, PageCopy, PageError};
use proptest::prelude::*;

const PAGE: usize = 16;

fn allocator(pages: usize) -> PageAllocator {
    PageAllocator::new(PAGE, pages).expect("a valid size")
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    for got in [0, 1, 8, 15, 17, 24, usize::MAX] {
        assert_eq!(PageAllocator::new(got, 4).unwrap_err(), PageError::PageSize { got });
    }
    let limit = (u32::MAX as usize).min(usize::MAX / 16);
    for pages in [0, limit + 1, usize::MAX] {
        assert_eq!(
            PageAllocator::new(16, pages).unwrap_err(),
            PageError::PageCount { pages, page_size: 16, limit }
        );
    }
    let huge = 1 << (usize::BITS - 1);
    assert_eq!(
        PageAllocator::new(huge, 2).unwrap_err(),
        PageError::PageCount { pages: 2, page_size: huge, limit: 1 }
    );
    // An absurd but countable cache takes no memory until it is used.
    assert_eq!(allocator(limit).free_pages(), limit);
}

#[test]
fn a_table_grows_by_whole_pages_and_maps_positions_to_slots() {
    let mut pages = allocator(4);
    let mut table = pages.table();
    assert!(table.is_empty() && table.pages().is_empty() && table.slot(0).is_none());
    for (tokens, wanted) in [(1, 1), (15, 1), (1, 2), (31, 3)] {
        assert_eq!(pages.append(&mut table, tokens), Ok(None));
        assert_eq!(table.pages().len(), wanted);
    }
    assert_eq!(table.len(), 48);
    assert_eq!(pages.free_pages(), 1);
    let last = table.pages()[2] as usize;
    assert_eq!(table.slot(47), Some(last * PAGE + 15));
    assert_eq!(table.slot(48), None);
    assert_eq!(pages.release(table), Ok(()));
    assert_eq!(pages.free_pages(), 4);
}

#[test]
fn a_full_cache_says_what_was_wanted_and_what_would_fit() {
    let mut pages = allocator(3);
    let mut table = pages.table();
    pages.append(&mut table, 20).unwrap();
    let error = pages.append(&mut table, 40).unwrap_err();
    assert_eq!(
        error,
        PageError::OutOfPages {
            tokens: 40,
            wanted: 2,
            free: 1,
            total: 3,
            page_size: 16,
            fits: 28,
            needed_total: 4
        }
    );
    assert_eq!(
        error.to_string(),
        "the KV cache is full: 40 more tokens need 2 pages of 16 tokens, and 1 of 3 are free; at most 28 more tokens \
         fit this sequence until another one ends, or make the cache at least 4 pages"
    );
    assert_eq!((table.len(), table.pages().len(), pages.free_pages()), (20, 2, 1));
    assert_eq!(pages.append(&mut table, 28), Ok(None));
    assert_eq!(
        pages.append(&mut table, usize::MAX).unwrap_err(),
        PageError::TooLong { length: 48, tokens: usize::MAX }
    );
    let mut other = pages.table();
    assert!(matches!(pages.append(&mut other, usize::MAX), Err(PageError::OutOfPages { fits: 0, .. })));
}

#[test]
fn a_forked_sequence_copies_its_partial_page_before_it_writes() {
    let mut pages = allocator(4);
    let mut parent = pages.table();
    pages.append(&mut parent, 20).unwrap();
    let mut child = pages.fork(&parent).unwrap();
    assert_eq!(child, parent);
    assert_eq!(pages.free_pages(), 2);

    let shared = parent.pages().to_vec();
    let copy = pages.append(&mut child, 1).unwrap();
    assert_eq!(copy, Some(PageCopy { from: shared[1], to: child.pages()[1], tokens: 4 }));
    assert_eq!(child.pages()[0], shared[0]);
    assert_eq!(parent.pages(), shared);
    // The parent's page is its own again.
    assert_eq!(pages.append(&mut parent, 1), Ok(None));
    assert_eq!(pages.free_pages(), 1);
    pages.release(parent).unwrap();
    assert_eq!(pages.free_pages(), 2);
    pages.release(child).unwrap();
    assert_eq!(pages.free_pages(), 4);
}

#[test]
fn the_copy_needs_a_page_even_where_the_tokens_do_not() {
    let mut pages = allocator(2);
    let mut parent = pages.table();
    pages.append(&mut parent, 20).unwrap();
    let mut child = pages.fork(&parent).unwrap();
    assert!(matches!(
        pages.append(&mut child, 1),
        Err(PageError::OutOfPages { wanted: 1, free: 0, fits: 0, needed_total: 3, .. })
    ));
    assert_eq!(child, parent);
}

#[test]
fn another_allocators_table_is_refused() {
    let (mut one, mut two) = (allocator(2), allocator(2));
    let mut table = one.table();
    one.append(&mut table, 1).unwrap();
    assert_eq!(two.append(&mut table, 1), Err(PageError::ForeignTable));
    assert_eq!(two.truncate(&mut table, 0), Err(PageError::ForeignTable));
    assert_eq!(two.fork(&table).unwrap_err(), PageError::ForeignTable);
    assert_eq!(two.release(table), Err(PageError::ForeignTable));
}

/// What a user of the allocator may do; numbers select a table modulo how many there are.
#[derive(Debug, Clone)]
enum Action {
    Start,
    Append { table: usize, tokens: usize },
    Truncate { table: usize, percent: usize },
    Fork { table: usize },
    Release { table: usize },
}

fn action() -> impl Strategy<Value = Action> {
    let table = any::<usize>();
    prop_oneof![
        1 => Just(Action::Start),
        6 => (table, 0usize..50).prop_map(|(table, tokens)| Action::Append { table, tokens }),
        1 => (table, 0usize..=100).prop_map(|(table, percent)| Action::Truncate { table, percent }),
        2 => table.prop_map(|table| Action::Fork { table }),
        2 => table.prop_map(|table| Action::Release { table }),
    ]
}

/// A cache whose tokens are distinct numbers, and what each sequence ought to find in it.
struct World {
    pages: PageAllocator,
    sequences: Vec<(BlockTable, Vec<u64>)>,
    cache: HashMap<usize, u64>,
    next_token: u64,
}

impl World {
    fn run(&mut self, action: Action) {
        let count = self.sequences.len();
        match action {
            Action::Start => self.sequences.push((self.pages.table(), Vec::new())),
            Action::Append { table, tokens } if count > 0 => self.append(table % count, tokens),
            Action::Truncate { table, percent } if count > 0 => {
                let (table, content) = &mut self.sequences[table % count];
                content.truncate(content.len() * percent / 100);
                self.pages.truncate(table, content.len()).unwrap();
            }
            Action::Fork { table } if count > 0 => {
                let (table, content) = &self.sequences[table % count];
                let fork = (self.pages.fork(table).unwrap(), content.clone());
                self.sequences.push(fork);
            }
            Action::Release { table } if count > 0 => {
                let (table, _) = self.sequences.swap_remove(table % count);
                self.pages.release(table).unwrap();
            }
            _ => {}
        }
    }

    fn append(&mut self, index: usize, tokens: usize) {
        let (table, content) = &mut self.sequences[index];
        let (old_pages, old_length) = (table.pages().to_vec(), table.len());
        match self.pages.append(table, tokens) {
            Ok(copy) => {
                if let Some(PageCopy { from, to, tokens }) = copy {
                    for row in 0..tokens {
                        let value = self.cache[&(from as usize * PAGE + row)];
                        self.cache.insert(to as usize * PAGE + row, value);
                    }
                }
                for position in old_length..table.len() {
                    self.cache.insert(table.slot(position).unwrap(), self.next_token);
                    content.push(self.next_token);
                    self.next_token += 1;
                }
            }
            Err(PageError::OutOfPages { fits, wanted, free, .. }) => {
                assert!(wanted > free && fits < tokens);
                assert_eq!((table.pages(), table.len()), (&old_pages[..], old_length));
                // What is said to fit does, and no more.
                assert!(self.pages.append(table, fits + 1).is_err());
                self.append(index, fits);
                assert_eq!(self.sequences[index].0.len(), old_length + fits);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn check(&self) {
        let mut holders: HashMap<u32, usize> = HashMap::new();
        for (table, content) in &self.sequences {
            assert_eq!(table.len(), content.len());
            assert_eq!(table.pages().len(), content.len().div_ceil(PAGE));
            let found: Vec<u64> =
                (0..table.len()).map(|position| self.cache[&table.slot(position).unwrap()]).collect();
            // Also proves that no two sequences write to one page: the tokens are distinct.
            assert_eq!(&found, content);
            for &page in table.pages() {
                assert!((page as usize) < self.pages.total_pages());
                *holders.entry(page).or_default() += 1;
            }
        }
        assert_eq!(self.pages.free_pages(), self.pages.total_pages() - holders.len());
    }
}

proptest! {
    #[test]
    fn any_use_keeps_every_token_and_loses_no_page(
        total in 1usize..24,
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let mut world =
            World { pages: allocator(total), sequences: Vec::new(), cache: HashMap::new(), next_token: 0 };
        for action in actions {
            world.run(action);
            world.check();
        }
        for (table, _) in world.sequences.drain(..) {
            world.pages.release(table).unwrap();
        }
        world.check();
        prop_assert_eq!(world.pages.free_pages(), total);
    }
}
