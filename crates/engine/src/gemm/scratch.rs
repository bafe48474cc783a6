//! Memory of a thread for packed panels and sums.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::pool;

/// Alignment of what is smaller than a huge page: a line.
const LINE: usize = 64;

/// Words at a multiple of 64 bytes; many of them in huge pages, which lie in the second-level cache without colliding.
#[derive(Default)]
pub(super) struct Words {
    data: Option<(NonNull<u32>, Layout)>,
}

impl Words {
    /// So many words of no particular value.
    pub fn room(&mut self, n: usize) -> &mut [u32] {
        let bytes = n * size_of::<u32>();
        let data = match self.data {
            Some((data, layout)) if layout.size() >= bytes => data,
            _ => self.grow(bytes),
        };
        // SAFETY: the memory holds n words, of zeros when it was new.
        unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), n) }
    }

    fn grow(&mut self, bytes: usize) -> NonNull<u32> {
        self.clear();
        let step = if bytes < pool::PAGE / 4 { LINE } else { pool::PAGE };
        let Ok(layout) = Layout::from_size_align(bytes.next_multiple_of(step).max(LINE), step) else {
            panic!("scratch memory of {bytes} bytes");
        };
        // SAFETY: the layout has a size.
        let Some(data) = NonNull::new(unsafe { alloc_zeroed(layout) }.cast::<u32>()) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the memory was just given, so many bytes.
        pool::in_huge_pages(unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), layout.size()) });
        self.data = Some((data, layout));
        data
    }

    fn clear(&mut self) {
        if let Some((data, layout)) = self.data.take() {
            // SAFETY: it came with this layout.
            unsafe { dealloc(data.as_ptr().cast(), layout) }
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.clear();
    }
}
