//! A slice whose parts are written by different threads.

use std::marker::PhantomData;
use std::ops::Range;

/// An exclusively borrowed slice that hands out parts of itself through a shared reference.
#[derive(Debug)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Disjoint` gives access to its values only as `range`'s callers promise: to one thread each. Sending them
// there is what `T: Send` allows.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The values of `range`; none where it does not lie inside.
    ///
    /// # Safety
    /// While the result is in use, no other result overlaps it.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "that is its purpose; the caller promises exclusive use")]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        if range.start > range.end || range.end > self.len {
            return &mut [];
        }
        // SAFETY: inside the slice, which is borrowed for 'a; exclusive, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_slice() {
        let mut values = [1, 2, 3, 4];
        let parts = Disjoint::new(&mut values);
        // SAFETY: the two do not overlap.
        let (left, right) = unsafe { (parts.range(0..2), parts.range(2..4)) };
        left[1] = 7;
        right[0] = 8;
        // SAFETY: empty or refused.
        unsafe {
            assert!(parts.range(2..2).is_empty());
            assert!(parts.range(2..5).is_empty());
        }
        assert_eq!(values, [1, 7, 8, 4]);
    }
}
