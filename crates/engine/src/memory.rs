//! An allocator for programs that compute with large vectors.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with large memory at whole cache lines: a vector register, or a tile's row, that lies across two
/// lines is read twice, and the system's own large memory begins 16 bytes after one. Memory of at least a huge page begins
/// with one, and is asked to consist of them.
///
/// For a program's `#[global_allocator]`. Everything works without it, only slower.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory;

const LINE: usize = 64;
/// Memory from so many bytes on begins at a line.
const LARGE: usize = 32 << 10;

/// What the system is asked for: a function of the layout alone, so that memory goes back as it came.
fn lines(layout: Layout) -> Layout {
    if layout.size() < LARGE { layout } else { layout.align_to(LINE).unwrap_or(layout) }
}

/// The same two functions for memory of at least a huge page, which comes from the system's pages.
#[cfg(target_os = "linux")]
mod pages {
    use std::alloc::Layout;
    use std::ptr;

    pub const PAGE: usize = 2 << 20;
    /// The largest that Linux has as its ordinary page on any processor.
    const SMALL_PAGE: usize = 64 << 10;

    pub fn takes(layout: Layout) -> bool {
        layout.size() >= PAGE && layout.align() <= PAGE
    }

    fn whole(size: usize) -> usize {
        size.next_multiple_of(SMALL_PAGE)
    }

    /// Zeroed memory at a multiple of a huge page, or null.
    pub fn alloc(size: usize) -> *mut u8 {
        let size = whole(size);
        let Some(room) = size.checked_add(PAGE) else { return ptr::null_mut() };
        // SAFETY: new memory at an address of the system's choice; what lies before and after the part that is returned goes
        // back at once.
        unsafe {
            let (access, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(ptr::null_mut(), room, access, flags, -1, 0);
            if start == libc::MAP_FAILED {
                return ptr::null_mut();
            }
            let before = (start as usize).next_multiple_of(PAGE) - start as usize;
            let data = start.byte_add(before);
            if before > 0 {
                libc::munmap(start, before);
            }
            if before < PAGE {
                libc::munmap(data.byte_add(size), PAGE - before);
            }
            libc::madvise(data, size / PAGE * PAGE, libc::MADV_HUGEPAGE);
            data.cast()
        }
    }

    /// # Safety
    /// The memory came from [`alloc`] with this size, and nobody uses it any more.
    pub unsafe fn dealloc(data: *mut u8, size: usize) {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(data.cast(), whole(size)) };
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use std::alloc::Layout;

    pub fn takes(_: Layout) -> bool {
        false
    }

    pub fn alloc(_: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    /// # Safety
    /// Never called.
    pub unsafe fn dealloc(_: *mut u8, _: usize) {}
}

// SAFETY: whose memory it is depends on the layout alone, so it goes back to where it came from; the system's allocator, or
// its pages, keep the rest of the contract.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match pages::takes(layout) {
            true => pages::alloc(layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { System.alloc(lines(layout)) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match pages::takes(layout) {
            true => pages::alloc(layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { System.alloc_zeroed(lines(layout)) },
        }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise; the memory came by this layout.
        unsafe {
            match pages::takes(layout) {
                true => pages::dealloc(data, layout.size()),
                false => System.dealloc(data, lines(layout)),
            }
        }
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise: the new size is one, too, and both have room for the lesser of them.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            if layout.size().max(size) < LARGE {
                return System.realloc(data, layout, size);
            }
            let to = self.alloc(new);
            if !to.is_null() {
                data.copy_to_nonoverlapping(to, layout.size().min(size));
                self.dealloc(data, layout);
            }
            to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_memory_begins_with_a_line_and_keeps_what_it_holds_when_it_grows_and_shrinks() {
        let sizes = [1, LARGE - 1, LARGE, 100_000, (2 << 20) - 1, 2 << 20, 5_000_000];
        for (from, to) in sizes.into_iter().flat_map(|from| sizes.map(|to| (from, to))) {
            let layout = Layout::from_size_align(from, 4).unwrap();
            // SAFETY: each piece of memory is used within its size, and goes back with its layout.
            unsafe {
                let data = Memory.alloc_zeroed(layout);
                assert!(std::slice::from_raw_parts(data, from).iter().all(|&x| x == 0), "{from}");
                assert!(from < LARGE || (data as usize).is_multiple_of(LINE), "{from}");
                (0..from).for_each(|i| *data.add(i) = (i % 251) as u8);
                let data = Memory.realloc(data, layout, to);
                assert!(to < LARGE || (data as usize).is_multiple_of(LINE), "{from} to {to}");
                let kept = std::slice::from_raw_parts(data, from.min(to));
                assert!(kept.iter().enumerate().all(|(i, &x)| x == (i % 251) as u8), "{from} to {to}");
                Memory.dealloc(data, Layout::from_size_align(to, 4).unwrap());
            }
        }
    }

    #[test]
    fn alignments_larger_than_a_line_are_kept() {
        for size in [64, LARGE, 3 << 20] {
            let layout = Layout::from_size_align(size, 4096).unwrap();
            // SAFETY: the memory goes back with its layout.
            unsafe {
                let data = Memory.alloc(layout);
                assert!((data as usize).is_multiple_of(4096), "{size}");
                Memory.dealloc(data, layout);
            }
        }
    }
}
