//! A card: its context and stream, memory, and copies. Its kernels are in [`launch`](super::launch).

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_char, c_int, c_void};
use std::ptr::{from_ref, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cublaslt::CublasLt;
use super::driver::{self, Driver, Handle, Pointer, driver};
use super::kernels::HOPPER;
use super::launch::Modules;
use super::offload::Travel;
use super::planned::{self, Plan};
use super::pool::Pool;
use super::staging::{self, Staging};
use super::{CudaBuffer, Pod, cublaslt, nvrtc};
use crate::error::{Error, Result};

/// Number of cards that can be used, at least one.
///
/// # Errors
/// Why none can: what is missing or broken, in words for one line.
pub fn available() -> Result<usize, String> {
    let driver = driver()?;
    let mut count = 0;
    // SAFETY: the driver writes one integer.
    driver.check(unsafe { (driver.device_count)(&mut count) }, "counting devices")?;
    if count < 1 {
        return Err("the NVIDIA driver sees no card".into());
    }
    nvrtc::nvrtc()?;
    cublaslt::library()?;
    Ok(count as usize)
}

/// Memory that is not a tensor's. Goes back to the pool when dropped.
pub(crate) struct Memory {
    device: Arc<CudaDevice>,
    pub pointer: Pointer,
    size: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.release(self.pointer, self.size);
    }
}

/// What was uploaded for something shared, which is kept alive so that its address stays its own.
pub(super) type Constant = (Box<dyn Any + Send>, Arc<Memory>);

type Scales = ([u64; 4], [Arc<CudaBuffer>; 3]);

/// One NVIDIA card and the stream that all work on it goes through.
pub struct CudaDevice {
    pub(super) ordinal: usize,
    pub(super) name: String,
    pub(super) driver: &'static Driver,
    pub(super) context: Handle,
    pub(super) stream: Handle,
    pub(super) arch: i32,
    pub(super) is_hopper: bool,
    pub(super) processors: u32,
    /// None where nothing is computed.
    pub(super) lt: Option<CublasLt>,
    pub(super) plan: Option<Plan>,
    pub(super) pool: Mutex<Pool>,
    pub(super) held: Held,
}

/// What comes to be with a device's use.
#[derive(Default)]
pub(super) struct Held {
    pub modules: Mutex<Modules>,
    pub staging: Mutex<Option<Staging>>,
    pub constants: Mutex<HashMap<(&'static str, usize), Constant>>,
    /// DoRA's scales by the address of what they belong to, with the states of what they were made of.
    pub scales: Mutex<HashMap<usize, Scales>>,
    /// What is on its way to the host's memory and back.
    pub travel: Mutex<Option<Travel>>,
    /// The first error of a call that could not return it; the next one that can does.
    pub failed: Mutex<Option<Error>>,
}

// SAFETY: contexts, streams and modules of the driver may be used from any thread; everything else is behind mutexes.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self} ({})", self.name)
    }
}

impl std::fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{}", self.ordinal)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A point on a device's stream, for measuring time.
pub(crate) struct Mark {
    device: Arc<CudaDevice>,
    event: Handle,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Mark {}

impl Mark {
    /// Seconds from this mark to a later one; waits for it.
    pub fn seconds_to(&self, end: &Mark) -> Option<f64> {
        let (driver, mut ms) = (self.device.driver, 0f32);
        self.device.synchronize().ok()?;
        // SAFETY: both events were recorded on the stream that has been waited for.
        let status = unsafe { (driver.elapsed)(&mut ms, self.event, end.event) };
        (status == 0).then_some(ms as f64 / 1e3)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: the event is this mark's own.
        unsafe { (self.device.driver.destroy_event)(self.event) };
    }
}

static DEVICES: Mutex<BTreeMap<usize, Arc<CudaDevice>>> = Mutex::new(BTreeMap::new());

/// `ampere` keeps a card of Hopper's to the kernels of older ones.
const KERNELS: &str = "LORATUNE_CUDA_KERNELS";
/// Sizes of 32 MiB are what NVIDIA advises for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Shared things kept on the card: tables and the batches of the last few steps.
const CONSTANTS: usize = 512;

impl CudaDevice {
    /// The card of this number, opened when first asked for.
    ///
    /// # Errors
    /// Why it can't be used.
    pub fn get(ordinal: usize) -> Result<Arc<CudaDevice>> {
        if let Some(planned) = planned::find(ordinal) {
            return Ok(planned);
        }
        let mut devices = lock(&DEVICES);
        if let Some(device) = devices.get(&ordinal) {
            return Ok(device.clone());
        }
        let broken = |what: String| Error::Device { device: format!("cuda:{ordinal}"), what };
        let count = available().map_err(broken)?;
        if ordinal >= count {
            return Err(broken(format!("there are {count} cards, numbered from 0")));
        }
        let device = Arc::new(CudaDevice::open(ordinal).map_err(broken)?);
        devices.insert(ordinal, device.clone());
        Ok(device)
    }

    /// The cards that are open.
    pub(crate) fn opened() -> Vec<Arc<CudaDevice>> {
        lock(&DEVICES).values().cloned().collect()
    }

    fn open(ordinal: usize) -> Result<CudaDevice, String> {
        let driver = driver()?;
        let (mut id, mut context, mut stream) = (0, null_mut(), null_mut());
        let mut text = [0 as c_char; 256];
        let attribute = |which: c_int, id: c_int| {
            let mut value = 0;
            // SAFETY: the driver writes one integer.
            driver.check(unsafe { (driver.device_attribute)(&mut value, which, id) }, "asking the card")?;
            Ok::<c_int, String>(value)
        };
        // SAFETY: all pointers are to variables of this frame, and the name's length is given.
        unsafe {
            driver.check((driver.device)(&mut id, ordinal as c_int), "opening the card")?;
            driver.check((driver.device_name)(text.as_mut_ptr(), 256, id), "naming the card")?;
            driver.check((driver.retain_context)(&mut context, id), "making a context")?;
            driver.check((driver.set_context)(context), "using the context")?;
            driver.check((driver.stream)(&mut stream, driver::NON_BLOCKING), "making a stream")?;
        }
        let [major, minor] = driver::CAPABILITY.map(|which| attribute(which, id));
        let arch = major? * 10 + minor?;
        if arch < 80 {
            return Err(format!(
                "a card of compute capability {}.{}: at least 8.0 is needed",
                arch / 10,
                arch % 10
            ));
        }
        let name = text.iter().take_while(|&&c| c != 0).map(|&c| c as u8 as char).collect();
        let mut workspace = 0;
        // SAFETY: the driver writes one pointer.
        driver.check(unsafe { (driver.alloc)(&mut workspace, WORKSPACE) }, "allocating a workspace")?;
        Ok(CudaDevice {
            ordinal,
            name,
            driver,
            context,
            stream,
            arch,
            is_hopper: arch == HOPPER && std::env::var_os(KERNELS).is_none_or(|set| set != "ampere"),
            processors: attribute(driver::MULTIPROCESSORS, id)? as u32,
            lt: Some(CublasLt::new(workspace, WORKSPACE)?),
            plan: None,
            pool: Mutex::default(),
            held: Held::default(),
        })
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// The card's product name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 90 for compute capability 9.0.
    pub fn arch(&self) -> i32 {
        self.arch
    }

    pub(crate) fn processors(&self) -> u32 {
        self.processors
    }

    /// Whether Hopper's own kernels run here.
    pub(crate) fn is_hopper(&self) -> bool {
        self.is_hopper
    }

    pub(super) fn lt(&self) -> Option<&CublasLt> {
        self.lt.as_ref()
    }

    pub(super) fn stream(&self) -> Handle {
        self.stream
    }

    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        Error::Device { device: self.to_string(), what: what.into() }
    }

    /// Keeps the error of a call that can't return it, for the next one that can.
    pub(crate) fn fail_later(&self, error: Error) {
        lock(&self.held.failed).get_or_insert(error);
    }

    /// Makes this thread's calls go to this card; an error that was kept comes out here.
    pub(super) fn enter(&self) -> Result<()> {
        if let Some(error) = lock(&self.held.failed).take() {
            return Err(error);
        }
        // SAFETY: the context lives as long as the process.
        self.check(unsafe { (self.driver.set_context)(self.context) }, "using the card")
    }

    pub(super) fn check(&self, status: c_int, doing: &str) -> Result<()> {
        self.driver.check(status, doing).map_err(|what| self.error(what))
    }

    /// Waits until everything that was asked for is done.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is this device's own.
        self.check(unsafe { (self.driver.synchronize)(self.stream) }, "waiting for the card")
    }

    /// Free and total bytes of the card.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two sizes.
        self.check(unsafe { (self.driver.memory)(&mut free, &mut total) }, "asking for the memory")?;
        Ok((free, total))
    }

    /// The most bytes that tensors held at a time, and that were taken from the driver.
    pub fn peak_memory(&self) -> (usize, usize) {
        let pool = lock(&self.pool);
        (pool.peak_used, pool.peak_reserved + WORKSPACE)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<(Pointer, usize)> {
        let mut pool = lock(&self.pool);
        let size = pool.block(bytes);
        if let Some(found) = pool.take(size) {
            return Ok(found);
        }
        if let Some(plan) = &self.plan {
            pool.make_room(size);
            pool.grown(size);
            return Ok((plan.address(size), size));
        }
        drop(pool);
        self.enter()?;
        let mut pointer = 0;
        // SAFETY: the driver writes one pointer.
        let mut status = unsafe { (self.driver.alloc)(&mut pointer, size) };
        if status == driver::OUT_OF_MEMORY {
            self.give_up_free_blocks()?;
            // SAFETY: as above.
            status = unsafe { (self.driver.alloc)(&mut pointer, size) };
        }
        if status == driver::OUT_OF_MEMORY {
            let (used, (free, total)) = (lock(&self.pool).used, self.memory()?);
            let mib = |bytes: usize| bytes >> 20;
            let what = format!(
                "{} MiB are needed beside the {} MiB in use, and of the card's {} MiB {} are free; \
                 fewer or shorter rows at a time need less, and so does gradient checkpointing",
                mib(size),
                mib(used),
                mib(total),
                mib(free)
            );
            return Err(Error::OutOfMemory { device: self.to_string(), what });
        }
        self.check(status, "allocating memory")?;
        lock(&self.pool).grown(size);
        Ok((pointer, size))
    }

    fn give_up_free_blocks(&self) -> Result<()> {
        self.synchronize()?;
        for pointer in lock(&self.pool).give_up() {
            // SAFETY: nothing refers to a free block, and the stream has nothing left to do.
            self.check(unsafe { (self.driver.free)(pointer) }, "freeing memory")?;
        }
        Ok(())
    }

    pub(super) fn release(&self, pointer: Pointer, size: usize) {
        lock(&self.pool).give(pointer, size);
    }

    pub(crate) fn scratch(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        let (pointer, size) = self.allocate(bytes)?;
        Ok(Memory { device: self.clone(), pointer, size })
    }

    pub(super) fn zero(&self, pointer: Pointer, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the block holds as many bytes.
        self.check(unsafe { (self.driver.fill)(pointer, 0, bytes, self.stream) }, "filling memory")
    }

    pub(super) fn copy(&self, to: Pointer, from: Pointer, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both blocks hold as many bytes.
        self.check(unsafe { (self.driver.copy)(to, from, bytes, self.stream) }, "copying")
    }

    pub(super) fn upload<T: Pod>(&self, to: Pointer, data: &[T]) -> Result<()> {
        if size_of_val(data) >= staging::LEAST {
            let from = data.as_ptr().cast::<u8>();
            // SAFETY: the elements' bytes; the types have none that are not initialised.
            let bytes = unsafe { std::slice::from_raw_parts(from, size_of_val(data)) };
            return self.upload_by_pieces(to, bytes.len(), &mut |first, room| {
                staging::copy(&bytes[first..][..room.len()], room);
                Ok(())
            });
        }
        self.enter()?;
        if data.is_empty() {
            return Ok(());
        }
        let from = data.as_ptr().cast::<c_void>();
        // SAFETY: the block holds as many bytes; a copy from pageable memory has read it when the call returns.
        self.check(
            unsafe { (self.driver.to_device)(to, from, size_of_val(data), self.stream) },
            "copying to the card",
        )
    }

    pub(super) fn download<T: Pod>(&self, from: Pointer, data: &mut [T]) -> Result<()> {
        self.enter()?;
        if data.is_empty() {
            return Ok(());
        }
        let to = data.as_mut_ptr().cast::<c_void>();
        // SAFETY: the block holds as many bytes, any of which make a number; the data is there after the stream was waited for.
        self.check(
            unsafe { (self.driver.to_host)(to, from, size_of_val(data), self.stream) },
            "copying from the card",
        )?;
        self.synchronize()
    }

    pub(crate) fn uploaded<T: Pod>(self: &Arc<Self>, data: &[T]) -> Result<Memory> {
        let memory = self.scratch(size_of_val(data))?;
        self.upload(memory.pointer, data)?;
        Ok(memory)
    }

    pub(crate) fn downloaded<T: Pod + Default>(&self, memory: &Memory, len: usize) -> Result<Vec<T>> {
        let mut data = vec![T::default(); len];
        self.download(memory.pointer, &mut data)?;
        Ok(data)
    }

    /// What `make` makes of something shared, uploaded when first asked for. `what` tells uses of one thing apart.
    pub(crate) fn constant<A, T: Pod>(
        self: &Arc<Self>,
        what: &'static str,
        of: &Arc<A>,
        make: impl FnOnce(&A) -> Vec<T>,
    ) -> Result<Arc<Memory>>
    where
        A: ?Sized,
        Arc<A>: Any + Send,
    {
        let key = (what, from_ref(&**of).cast::<u8>().addr());
        if let Some((_, memory)) = lock(&self.held.constants).get(&key) {
            return Ok(memory.clone());
        }
        let memory = Arc::new(self.uploaded(&make(of))?);
        let mut constants = lock(&self.held.constants);
        if constants.len() >= CONSTANTS {
            constants.clear();
        }
        constants.insert(key, (Box::new(of.clone()), memory.clone()));
        Ok(memory)
    }

    /// DoRA's scales, if they were made of contents in these states.
    pub(crate) fn scales(&self, of: usize, states: [u64; 4]) -> Option<[Arc<CudaBuffer>; 3]> {
        lock(&self.held.scales)
            .get(&of)
            .filter(|(known, _)| *known == states)
            .map(|(_, scales)| scales.clone())
    }

    pub(crate) fn keep_scales(&self, of: usize, states: [u64; 4], scales: &[Arc<CudaBuffer>; 3]) {
        // Dropped outside of the lock.
        let _before = lock(&self.held.scales).insert(of, (states, scales.clone()));
    }

    /// A mark after everything that was asked for so far.
    pub(crate) fn mark(self: &Arc<Self>) -> Option<Mark> {
        self.enter().ok()?;
        let mut event = null_mut();
        // SAFETY: the driver writes one handle, and records it on this device's stream.
        let status = unsafe {
            match (self.driver.event)(&mut event, 0) {
                0 => (self.driver.record)(event, self.stream),
                status => status,
            }
        };
        (status == 0).then(|| Mark { device: self.clone(), event })
    }
}
