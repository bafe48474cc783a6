use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::CudaDevice;
use super::driver::Pointer;
use crate::error::Result;
use crate::{DType, Element};

/// Types whose bytes can be copied to a card as they are.
pub(crate) trait Pod: Copy + 'static {}
impl Pod for u8 {}
impl Pod for u32 {}
impl Pod for i32 {}
impl Pod for u64 {}
impl Pod for f32 {}
impl Pod for f64 {}
impl Pod for half::bf16 {}

/// Memory of a card, of `len` elements of a type. Goes back to the device's pool when dropped.
pub struct CudaBuffer {
    device: Arc<CudaDevice>,
    pointer: Pointer,
    /// Of the pool's block.
    size: usize,
    len: usize,
    dtype: DType,
    /// A number that no other contents ever had.
    state: u64,
    /// The same numbers in bf16, made when first asked for, until this is written to.
    shadow: OnceLock<Arc<CudaBuffer>>,
}

fn new_state() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

impl std::fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} on {}", self.len, self.dtype, self.device)
    }
}

impl CudaBuffer {
    /// Of no particular value.
    pub(crate) fn any(device: &Arc<CudaDevice>, dtype: DType, len: usize) -> Result<CudaBuffer> {
        let (pointer, size) = device.allocate(len * dtype.size())?;
        Ok(CudaBuffer {
            device: device.clone(),
            pointer,
            size,
            len,
            dtype,
            state: new_state(),
            shadow: OnceLock::new(),
        })
    }

    pub(crate) fn zeros(device: &Arc<CudaDevice>, dtype: DType, len: usize) -> Result<CudaBuffer> {
        let buffer = CudaBuffer::any(device, dtype, len)?;
        device.zero(buffer.pointer, len * dtype.size())?;
        Ok(buffer)
    }

    pub(crate) fn of<E: Element + Pod>(device: &Arc<CudaDevice>, data: &[E]) -> Result<CudaBuffer> {
        let buffer = CudaBuffer::any(device, E::DTYPE, data.len())?;
        device.upload(buffer.pointer, data)?;
        Ok(buffer)
    }

    /// From little-endian bytes, as they lie in a file; nothing if one of the numbers is not finite.
    pub(crate) fn of_bytes(
        device: &Arc<CudaDevice>,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<Option<CudaBuffer>> {
        let buffer = CudaBuffer::any(device, dtype, bytes.len() / dtype.size())?;
        let finite = std::sync::atomic::AtomicBool::new(true);
        device.upload_by_pieces(buffer.pointer, bytes.len(), &mut |first, room| {
            copy_finite(&bytes[first..][..room.len()], room, dtype, &finite);
            Ok(())
        })?;
        Ok(finite.into_inner().then_some(buffer))
    }

    pub(crate) fn copy(&self) -> Result<CudaBuffer> {
        let copy = CudaBuffer::any(&self.device, self.dtype, self.len)?;
        self.device.copy(copy.pointer, self.pointer, self.len * self.dtype.size())?;
        Ok(copy)
    }

    pub(crate) fn download<E: Element + Pod>(&self) -> Result<Vec<E>> {
        assert_eq!(E::DTYPE, self.dtype, "a download in the buffer's own type");
        let mut data = vec![E::default(); self.len];
        self.device.download(self.pointer, &mut data)?;
        Ok(data)
    }

    pub(crate) fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    /// The address, for kernels.
    pub(crate) fn pointer(&self) -> Pointer {
        self.pointer
    }

    /// Names these contents, for what is made of them: another after every write to a shared buffer.
    pub(crate) fn state(&self) -> u64 {
        self.state
    }

    /// The address for writing; what was made of the old contents is forgotten.
    pub(crate) fn pointer_mut(&mut self) -> Pointer {
        self.shadow.take();
        self.state = new_state();
        self.pointer
    }

    /// The numbers in bf16.
    pub(crate) fn in_bf16(self: &Arc<Self>) -> Result<Arc<CudaBuffer>> {
        // The processor's products take factors as they are.
        if self.dtype == DType::BF16 || self.device.plans_processor() {
            return Ok(self.clone());
        }
        if let Some(made) = self.shadow.get() {
            return Ok(made.clone());
        }
        let made = Arc::new(crate::ops::elementwise::convert(self, DType::BF16)?);
        Ok(self.shadow.get_or_init(|| made).clone())
    }
}

/// Copies numbers, and tells whether all are finite: those whose exponent is not all ones.
fn copy_finite(from: &[u8], to: &mut [u8], dtype: DType, finite: &std::sync::atomic::AtomicBool) {
    use rayon::prelude::*;
    use std::sync::atomic::Ordering;
    const PART: usize = 256 << 10;
    to.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| {
        to.copy_from_slice(from);
        let all = match dtype {
            DType::BF16 => from
                .as_chunks()
                .0
                .iter()
                .fold(true, |all, &x| all & (u16::from_le_bytes(x) & 0x7f80 != 0x7f80)),
            DType::F32 => from
                .as_chunks()
                .0
                .iter()
                .fold(true, |all, &x| all & (u32::from_le_bytes(x) & 0x7f80_0000 != 0x7f80_0000)),
            DType::F64 => from.as_chunks().0.iter().all(|&x| f64::from_le_bytes(x).is_finite()),
        };
        if !all {
            finite.store(false, Ordering::Relaxed);
        }
    });
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.device.release(self.pointer, self.size);
    }
}
