//! Large copies to a card: by way of memory that the card reads by itself, on a stream of their own, so that a piece is filled
//! while the one before is on its way.

use std::ffi::c_void;
use std::ptr::null_mut;

use super::CudaDevice;
use super::driver::{self, Driver, Handle, Pointer};
use crate::error::Result;

/// Bytes of a piece, and pieces.
const PIECE: usize = 16 << 20;
const PIECES: usize = 4;
/// Smaller copies are left to the driver.
pub const LEAST: usize = 4 << 20;

struct Piece {
    memory: *mut c_void,
    /// When the card has read it.
    read: Handle,
}

/// A copy by all threads: pages of a mapped file are found by many at a time.
pub(super) fn copy(from: &[u8], to: &mut [u8]) {
    use rayon::prelude::*;
    const PART: usize = 256 << 10;
    to.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// The pieces of one device, and what orders its two streams. Kept for the life of the process, as the device is.
pub struct Staging {
    pieces: Vec<Piece>,
    stream: Handle,
    /// Everything that the device was asked for before a copy.
    before: Handle,
    next: usize,
}

// SAFETY: the memory is this struct's own, handles of the driver may be used from any thread, and it lies behind a mutex.
unsafe impl Send for Staging {}

impl Staging {
    fn new(driver: &'static Driver) -> Result<Staging, String> {
        let (mut stream, mut before) = (null_mut(), null_mut());
        let event = |event: &mut Handle| {
            // SAFETY: the driver writes one handle.
            driver.check(unsafe { (driver.event)(event, driver::NO_TIMING) }, "making an event")
        };
        // SAFETY: the driver writes one handle.
        driver.check(unsafe { (driver.stream)(&mut stream, driver::NON_BLOCKING) }, "making a stream")?;
        event(&mut before)?;
        let mut pieces = Vec::new();
        for _ in 0..PIECES {
            let mut piece = Piece { memory: null_mut(), read: null_mut() };
            event(&mut piece.read)?;
            // SAFETY: the driver writes one pointer, to as many bytes.
            let status = unsafe { (driver.host_memory)(&mut piece.memory, PIECE) };
            driver.check(status, "allocating memory for copies")?;
            pieces.push(piece);
        }
        Ok(Staging { pieces, stream, before, next: 0 })
    }
}

impl CudaDevice {
    /// The same without pieces.
    fn upload_at_once(
        &self,
        to: Pointer,
        bytes: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut all = vec![0u8; bytes];
        fill(0, &mut all)?;
        let from = all.as_ptr().cast::<c_void>();
        // SAFETY: both sides have as many bytes; a copy from pageable memory has read it when the call returns.
        let status = unsafe { (self.driver.to_device)(to, from, bytes, self.stream) };
        self.driver.check(status, "copying to the card").map_err(|what| self.error(what))
    }

    /// Copies `bytes` bytes to `to`; `fill(first, piece)` writes those from `first` on. What the device is asked for afterwards
    /// finds them there.
    ///
    /// # Errors
    /// If the device fails, or the first of `fill`'s.
    pub(super) fn upload_by_pieces(
        &self,
        to: Pointer,
        bytes: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if self.is_planned() {
            return Ok(());
        }
        self.enter()?;
        let driver = self.driver;
        let check = |status, doing| driver.check(status, doing).map_err(|what| self.error(what));
        // While this thread waits for those that fill a piece, it may be given work that copies, too.
        let Ok(mut staging) = self.held.staging.try_lock() else {
            return self.upload_at_once(to, bytes, fill);
        };
        let staging = match &mut *staging {
            Some(staging) => staging,
            empty => empty.insert(Staging::new(driver).map_err(|what| self.error(what))?),
        };
        // SAFETY: the events and streams are this device's own.
        unsafe {
            check((driver.record)(staging.before, self.stream()), "ordering a copy")?;
            check((driver.wait)(staging.stream, staging.before, 0), "ordering a copy")?;
        }
        let mut result = Ok(());
        for first in (0..bytes).step_by(PIECE) {
            let piece = &staging.pieces[staging.next];
            staging.next = (staging.next + 1) % PIECES;
            let size = PIECE.min(bytes - first);
            // SAFETY: the piece has as many bytes; once its event has come, the card no longer reads it.
            let room = unsafe {
                check((driver.wait_here)(piece.read), "waiting for a copy")?;
                std::slice::from_raw_parts_mut(piece.memory.cast::<u8>(), size)
            };
            result = fill(first, room);
            if result.is_err() {
                break;
            }
            // SAFETY: both sides have as many bytes, and the piece stays as it is until the event.
            unsafe {
                let to = to + first as u64;
                let status = (driver.to_device)(to, piece.memory, size, staging.stream);
                check(status, "copying to the card")?;
                check((driver.record)(piece.read, staging.stream), "copying to the card")?;
            }
        }
        // SAFETY: as above.
        unsafe {
            check((driver.record)(staging.before, staging.stream), "ordering a copy")?;
            check((driver.wait)(self.stream(), staging.before, 0), "ordering a copy")?;
        }
        result
    }
}
