//! Values that wait in the host's memory until the backward pass. They travel on a stream of their own beside the card's work, both
//! ways: out while the next part of a model is computed, and back while the part after it is reversed.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::driver::{self, Driver, Handle};
use super::{CudaBuffer, CudaDevice};
use crate::DType;
use crate::error::Result;

/// A point on a stream that another can wait for.
struct Event {
    driver: &'static Driver,
    handle: Handle,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is its own; the driver keeps what is still awaited.
        unsafe { (self.driver.destroy_event)(self.handle) };
    }
}

/// The stream of a card that copies travel on, and what is under way.
pub(super) struct Travel {
    stream: Handle,
    /// Free blocks of the host's memory that the card can reach, by size.
    free: BTreeMap<usize, Vec<usize>>,
    /// The last value that left: its copy may not be done, so its memory is not free yet.
    leaving: Option<Leaving>,
    last: Weak<Away>,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Travel {}

struct Leaving {
    away: Weak<Away>,
    buffer: Arc<CudaBuffer>,
    done: Event,
}

struct Arrival {
    buffer: CudaBuffer,
    done: Event,
}

/// A value that is in the host's memory, or on its way there or back.
pub(crate) struct Away {
    device: Arc<CudaDevice>,
    host: usize,
    bytes: usize,
    len: usize,
    dtype: DType,
    /// What left before it, and will be wanted after it.
    before: Weak<Away>,
    arrival: Mutex<Option<Arrival>>,
}

impl CudaDevice {
    /// An event after everything that was put on a stream so far.
    fn event_on(&self, stream: Handle) -> Result<Event> {
        let mut handle = null_mut();
        // SAFETY: the driver writes one handle.
        self.check(unsafe { (self.driver.event)(&mut handle, driver::NO_TIMING) }, "making an event")?;
        let event = Event { driver: self.driver, handle };
        // SAFETY: both are this device's own.
        self.check(unsafe { (self.driver.record)(event.handle, stream) }, "marking a stream")?;
        Ok(event)
    }

    /// Keeps a stream from going on before an event.
    fn wait_on(&self, stream: Handle, event: &Event) -> Result<()> {
        // SAFETY: both are this device's own.
        self.check(unsafe { (self.driver.wait)(stream, event.handle, 0) }, "waiting for a copy")
    }

    fn travel<T>(&self, with: impl FnOnce(&mut Travel) -> Result<T>) -> Result<T> {
        let mut travel = self.held.travel.lock().unwrap_or_else(PoisonError::into_inner);
        if travel.is_none() {
            let mut stream = null_mut();
            // SAFETY: the driver writes one handle.
            let status = unsafe { (self.driver.stream)(&mut stream, driver::NON_BLOCKING) };
            self.check(status, "making a stream")?;
            *travel = Some(Travel { stream, free: BTreeMap::new(), leaving: None, last: Weak::new() });
        }
        match &mut *travel {
            Some(travel) => with(travel),
            None => Err(self.error("no stream for copies")),
        }
    }

    /// Starts a copy of a value to the host's memory; the card's is free when the next value is sent.
    ///
    /// # Errors
    /// If the host has no memory left that a card can reach.
    pub(crate) fn send_away(self: &Arc<Self>, buffer: &Arc<CudaBuffer>) -> Result<Arc<Away>> {
        self.enter()?;
        let bytes = buffer.len() * buffer.dtype().size();
        self.travel(|travel| {
            let host = match travel.free.get_mut(&bytes).and_then(Vec::pop) {
                Some(host) => host,
                None => {
                    let mut host: *mut c_void = null_mut();
                    // SAFETY: the driver writes one pointer.
                    let status = unsafe { (self.driver.host_memory)(&mut host, bytes) };
                    self.check(status, "reserving the host's memory for offloaded inputs")?;
                    host as usize
                }
            };
            self.wait_on(travel.stream, &self.event_on(self.stream())?)?;
            let (to, from) = (host as *mut c_void, buffer.pointer());
            // SAFETY: both blocks hold as many bytes, and live until the copy is done.
            let status = unsafe { (self.driver.to_host)(to, from, bytes, travel.stream) };
            self.check(status, "copying to the host")?;
            let done = self.event_on(travel.stream)?;
            if let Some(before) = travel.leaving.take() {
                self.wait_on(self.stream(), &before.done)?;
            }
            let away = Arc::new(Away {
                device: self.clone(),
                host,
                bytes,
                len: buffer.len(),
                dtype: buffer.dtype(),
                before: travel.last.clone(),
                arrival: Mutex::default(),
            });
            let named = Arc::downgrade(&away);
            travel.leaving = Some(Leaving { away: named.clone(), buffer: buffer.clone(), done });
            travel.last = named;
            Ok(away)
        })
    }
}

impl Away {
    fn arrival(&self) -> std::sync::MutexGuard<'_, Option<Arrival>> {
        self.arrival.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the way back.
    fn bring(&self) -> Result<()> {
        let (device, mut arrival) = (&self.device, self.arrival());
        if arrival.is_some() {
            return Ok(());
        }
        device.enter()?;
        let buffer = CudaBuffer::any(device, self.dtype, self.len)?;
        let done = device.travel(|travel| {
            // Whoever had this memory is done with it by then.
            device.wait_on(travel.stream, &device.event_on(device.stream())?)?;
            let (to, from) = (buffer.pointer(), self.host as *const c_void);
            // SAFETY: both blocks hold as many bytes, and live until the copy is done.
            let status = unsafe { (device.driver.to_device)(to, from, self.bytes, travel.stream) };
            device.check(status, "copying from the host")?;
            device.event_on(travel.stream)
        })?;
        *arrival = Some(Arrival { buffer, done });
        Ok(())
    }

    /// The value, back on the card. What left before it sets out, too.
    ///
    /// # Errors
    /// If the card has no room for it.
    pub fn get(&self) -> Result<Arc<CudaBuffer>> {
        let device = &self.device;
        let is_this = |leaving: &mut Leaving| std::ptr::eq(leaving.away.as_ptr(), self);
        let leaving = device.travel(|travel| Ok(travel.leaving.take_if(is_this)))?;
        let buffer = match leaving {
            Some(leaving) => {
                device.wait_on(device.stream(), &leaving.done)?;
                leaving.buffer
            }
            None => {
                self.bring()?;
                let arrived = self.arrival().take();
                let Some(Arrival { buffer, done }) = arrived else {
                    return Err(device.error("an offloaded value was taken twice at once"));
                };
                device.wait_on(device.stream(), &done)?;
                Arc::new(buffer)
            }
        };
        if let Some(before) = self.before.upgrade() {
            before.bring()?;
        }
        Ok(buffer)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let device = self.device.clone();
        if let Some(arrival) = self.arrival().take() {
            // Never asked for: its memory must not be used before the copy is done.
            let _ = device.wait_on(device.stream(), &arrival.done);
        }
        let _ = device.travel(|travel| {
            travel.free.entry(self.bytes).or_default().push(self.host);
            Ok(())
        });
    }
}
