//! Devices that are only planned with: nothing is computed and nothing is held, but every allocation of a step is counted, by
//! the code that a step runs. Neither a card nor the memory has to be there.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::CudaDevice;
use super::device::{Held, WORKSPACE, lock};
use super::driver::{self, Pointer};
use super::kernels::HOPPER;
use super::pool::{Policy, Pool};
use crate::error::Result;
use crate::{DType, Device, Tensor};

/// What is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// An NVIDIA card of this compute capability (90 is 9.0) and so many multiprocessors.
    Card { arch: i32, processors: u32 },
    /// The processor and its memory.
    Processor,
}

impl Planned {
    /// An H100 or H200.
    pub const HOPPER: Planned = Planned::Card { arch: 90, processors: 132 };

    /// A card like one that is there.
    pub fn like(card: &CudaDevice) -> Planned {
        Planned::Card { arch: card.arch(), processors: card.processors() }
    }
}

/// Bytes that a device's tensors held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Now.
    pub held: usize,
    /// At most, since the last [`PlannedDevice::measure`].
    pub peak: usize,
    /// The most that was taken from the system in all, with what is kept for later, since the device was made.
    pub taken: usize,
}

/// A planned device; tensors on it have shapes and no contents. It goes with the last of them and with this.
#[derive(Debug)]
pub struct PlannedDevice(Arc<CudaDevice>);

/// Numbers beyond those of cards.
static NEXT: AtomicUsize = AtomicUsize::new(1 << 20);

static DEVICES: Mutex<Vec<Arc<CudaDevice>>> = Mutex::new(Vec::new());

/// The planned device of this number.
pub(super) fn find(ordinal: usize) -> Option<Arc<CudaDevice>> {
    lock(&DEVICES).iter().find(|device| device.ordinal() == ordinal).cloned()
}

impl PlannedDevice {
    pub fn new(planned: Planned) -> PlannedDevice {
        let device = Arc::new(CudaDevice::planned(NEXT.fetch_add(1, Ordering::Relaxed), planned));
        lock(&DEVICES).push(device.clone());
        PlannedDevice(device)
    }

    pub fn device(&self) -> Device {
        Device::Cuda(self.0.ordinal())
    }

    /// A tensor of this shape, without contents.
    ///
    /// # Errors
    /// None that are known.
    pub fn tensor(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let buffer = super::CudaBuffer::any(&self.0, dtype, shape.iter().product())?;
        Ok(Tensor::on_cuda(buffer, shape))
    }

    /// Bytes beside the tensors' that matrix products need on such a device.
    pub fn workspace(planned: Planned) -> usize {
        if planned == Planned::Processor { 0 } else { WORKSPACE }
    }

    pub fn usage(&self) -> Use {
        self.0.usage()
    }

    /// Begins to look for a peak anew.
    pub fn measure(&self) {
        self.0.measure();
    }
}

impl Drop for PlannedDevice {
    fn drop(&mut self) {
        lock(&DEVICES).retain(|device| !Arc::ptr_eq(device, &self.0));
        // They hold the device.
        let constants = std::mem::take(&mut *lock(&self.0.held.constants));
        drop(constants);
        let scales = std::mem::take(&mut *lock(&self.0.held.scales));
        drop(scales);
        let travel = std::mem::take(&mut *lock(&self.0.held.travel));
        drop(travel);
    }
}

/// What a planned device has in the place of a card.
pub(super) struct Plan {
    pub of: Planned,
    next: AtomicU64,
}

impl Plan {
    pub fn new(of: Planned) -> Plan {
        // An address as a card's are: not 0, and aligned to all that kernels ask for.
        Plan { of, next: AtomicU64::new(1 << 40) }
    }

    pub fn address(&self, size: usize) -> Pointer {
        self.next.fetch_add((size as u64).next_multiple_of(2 << 20), Ordering::Relaxed)
    }

    pub fn policy(&self) -> Policy {
        match self.of {
            Planned::Card { .. } => Policy::Card,
            Planned::Processor => Policy::Processor,
        }
    }
}

impl CudaDevice {
    /// A device that counts its memory and does nothing.
    fn planned(ordinal: usize, of: Planned) -> CudaDevice {
        let (arch, processors) = match of {
            Planned::Card { arch, processors } => (arch, processors),
            Planned::Processor => (0, 1),
        };
        let plan = Plan::new(of);
        CudaDevice {
            ordinal,
            name: format!("planned {of:?}"),
            driver: driver::idle(),
            context: null_mut(),
            stream: null_mut(),
            arch,
            is_hopper: arch == HOPPER,
            processors,
            lt: None,
            pool: Mutex::new(Pool::new(plan.policy())),
            plan: Some(plan),
            held: Held::default(),
        }
    }

    /// Whether this counts what a step takes in the processor's memory, by ops that do on a card what they do there. Where
    /// the two differ in what they allocate, the op asks.
    pub(crate) fn plans_processor(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.of == Planned::Processor)
    }

    /// Counts blocks of so many bytes, which the processor's op has all at once and lets go again; nothing on a card.
    pub(crate) fn passing(self: &Arc<Self>, blocks: &[usize]) -> Result<()> {
        if self.plans_processor() {
            blocks.iter().map(|&bytes| self.scratch(bytes)).collect::<Result<Vec<_>>>()?;
        }
        Ok(())
    }

    fn usage(&self) -> Use {
        let pool = lock(&self.pool);
        let own = if self.plans_processor() { 0 } else { WORKSPACE };
        Use { held: pool.used, peak: pool.peak_used, taken: pool.peak_reserved + own }
    }

    fn measure(&self) {
        let mut pool = lock(&self.pool);
        pool.peak_used = pool.used;
    }

    /// Whether nothing is computed here.
    pub(super) fn is_planned(&self) -> bool {
        self.plan.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::CudaDevice;

    #[test]
    fn what_is_held_and_what_was_held_is_counted_and_nothing_is_there() {
        let planned = PlannedDevice::new(Planned::HOPPER);
        // A terabyte.
        let large = planned.tensor(DType::F32, &[1 << 19, 1 << 19]).unwrap();
        assert_eq!(planned.usage().held, 1 << 40);
        let more = large.to_dtype(DType::BF16);
        let own = PlannedDevice::workspace(Planned::HOPPER);
        assert_eq!(planned.usage(), Use { held: 3 << 39, peak: 3 << 39, taken: (3 << 39) + own });
        drop((large, more));
        assert_eq!(planned.usage(), Use { held: 0, peak: 3 << 39, taken: (3 << 39) + own });
        planned.measure();
        assert_eq!(planned.usage().peak, 0);
        let Device::Cuda(ordinal) = planned.device() else { panic!("a planned card is no card") };
        assert!(CudaDevice::get(ordinal).is_ok());
        drop(planned);
        assert!(CudaDevice::get(ordinal).is_err(), "it went with its handle");
    }
}
