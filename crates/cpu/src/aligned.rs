//! Memory for weights and scratch: zeroed, aligned to cache lines, on huge pages where the system has them, and an
//! error instead of an abort where there is none left.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every buffer, in bytes: a cache line, and a 512-bit register.
pub const ALIGNMENT: usize = 64;

/// Size of a huge page on x86-64 and AArch64; larger buffers start at a multiple of it.
const HUGE_PAGE: usize = 2 << 20;

/// There is not enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot allocate {bytes} bytes; a narrower format or a shorter context needs less")]
pub struct OutOfMemory {
    /// Bytes wanted.
    pub bytes: usize,
}

/// A zeroed byte buffer aligned to [`ALIGNMENT`].
pub struct AlignedBuffer {
    start: NonNull<u8>,
    len: usize,
    origin: Origin,
}

/// Who gave the memory.
enum Origin {
    /// Nobody: no bytes.
    Empty,
    /// The allocator.
    Heap(Layout),
    /// The system: the mapping that contains the buffer.
    #[cfg(unix)]
    Mapping { base: NonNull<libc::c_void>, bytes: usize },
    /// An [`Arena`], which gave this part to nobody else: it lives as long as the buffer of which it is.
    Part { _whole: Arc<AlignedBuffer> },
}

// SAFETY: the buffer owns its memory alone; shared references give no way to write.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// No bytes, no allocation.
    pub const fn empty() -> AlignedBuffer {
        AlignedBuffer { start: NonNull::<Line>::dangling().cast(), len: 0, origin: Origin::Empty }
    }

    /// `bytes` zero bytes. Large buffers take up memory only as they are written.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn zeroed(bytes: usize) -> Result<AlignedBuffer, OutOfMemory> {
        if bytes == 0 {
            return Ok(AlignedBuffer::empty());
        }
        #[cfg(unix)]
        if bytes >= HUGE_PAGE / 2 {
            return AlignedBuffer::map(bytes);
        }
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| OutOfMemory { bytes })?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(OutOfMemory { bytes })?;
        Ok(AlignedBuffer { start, len: bytes, origin: Origin::Heap(layout) })
    }

    /// Fresh pages from the system, which are zero, aligned to huge pages.
    #[cfg(unix)]
    fn map(len: usize) -> Result<AlignedBuffer, OutOfMemory> {
        let error = OutOfMemory { bytes: len };
        // A last part of a huge page becomes a whole one where little of it is wasted.
        let tail = len % HUGE_PAGE;
        let rounded = if tail >= HUGE_PAGE / 2 { len.checked_add(HUGE_PAGE - tail) } else { Some(len) };
        let rounded = rounded.ok_or(error)?;
        let bytes = rounded.checked_add(HUGE_PAGE).ok_or(error)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping at an address of the system's choice touches no other memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(error);
        }
        let base = NonNull::new(base).ok_or(error)?;
        let skipped = base.cast::<u8>().align_offset(HUGE_PAGE);
        // SAFETY: `skipped` is below HUGE_PAGE, and the mapping has that much more than the buffer.
        let start = unsafe { base.cast::<u8>().add(skipped) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies in the mapping; the advice changes no content. Without huge pages it fails, and
        // the buffer is as good, only slower.
        unsafe {
            libc::madvise(start.as_ptr().cast(), rounded, libc::MADV_HUGEPAGE);
        }
        Ok(AlignedBuffer { start, len, origin: Origin::Mapping { base, bytes } })
    }
}

/// Where small buffers come from that are read together, such as the weights of a model: they share huge pages. On pages of
/// their own, a product of 256 KiB of weights takes two fifths longer, and a time that depends on where these lie.
#[derive(Debug, Default)]
pub struct Arena {
    whole: Arc<AlignedBuffer>,
    used: usize,
}

impl Arena {
    /// `bytes` zero bytes: a buffer of its own, if it is large, or else a part of one.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn zeroed(&mut self, bytes: usize) -> Result<AlignedBuffer, OutOfMemory> {
        if bytes == 0 || bytes >= HUGE_PAGE / 2 {
            return AlignedBuffer::zeroed(bytes);
        }
        if self.whole.len - self.used < bytes {
            (self.whole, self.used) = (Arc::new(AlignedBuffer::zeroed(HUGE_PAGE)?), 0);
        }
        // SAFETY: so many bytes are left behind those that were given away.
        let start = unsafe { self.whole.start.add(self.used) };
        // Whole lines, within the buffer, whose length is a multiple of them.
        self.used += bytes.next_multiple_of(ALIGNMENT);
        Ok(AlignedBuffer { start, len: bytes, origin: Origin::Part { _whole: Arc::clone(&self.whole) } })
    }
}

/// Something with the alignment of the buffers, for the address of an empty one.
#[repr(align(64))]
struct Line;

const _: () = assert!(align_of::<Line>() == ALIGNMENT);

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        match self.origin {
            Origin::Empty | Origin::Part { .. } => {}
            // SAFETY: allocated with this layout and not freed before.
            Origin::Heap(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            #[cfg(unix)]
            // SAFETY: mapped with this size and not unmapped before.
            Origin::Mapping { base, bytes } => unsafe {
                libc::munmap(base.as_ptr(), bytes);
            },
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that this value owns (or none, at an aligned address).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Default for AlignedBuffer {
    fn default() -> AlignedBuffer {
        AlignedBuffer::empty()
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer").field("bytes", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zero_and_writable() {
        for bytes in [0, 1, 63, 64, 4096, HUGE_PAGE / 2 - 1, HUGE_PAGE / 2, 2 * HUGE_PAGE, 5 * HUGE_PAGE + 17]
        {
            let mut buffer = AlignedBuffer::zeroed(bytes).unwrap();
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(0xa5);
            assert!(buffer.iter().all(|&byte| byte == 0xa5));
        }
    }

    #[test]
    fn parts_of_an_arena_are_aligned_zero_apart_and_outlive_it() {
        let mut arena = Arena::default();
        let sizes = [0, 1, 64, 65, 300_000, HUGE_PAGE / 2 - 1, HUGE_PAGE / 2, 700_000, 700_000, 700_000, 100];
        let mut buffers = Vec::new();
        for (index, bytes) in sizes.into_iter().enumerate() {
            let mut buffer = arena.zeroed(bytes).unwrap();
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % ALIGNMENT), (bytes, 0));
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(index as u8 + 1);
            buffers.push(buffer);
        }
        drop(arena);
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == index as u8 + 1), "buffer {index}");
        }
        let page = |index: usize| buffers[index].as_ptr() as usize / HUGE_PAGE;
        assert_eq!((page(1), page(1)), (page(2), page(4)));
        assert_ne!(page(4), page(8));
    }

    #[test]
    fn too_much_is_an_error() {
        for bytes in [usize::MAX, isize::MAX as usize, 1 << 60] {
            assert_eq!(AlignedBuffer::zeroed(bytes).unwrap_err(), OutOfMemory { bytes });
            assert_eq!(Arena::default().zeroed(bytes).unwrap_err(), OutOfMemory { bytes });
        }
    }
}
