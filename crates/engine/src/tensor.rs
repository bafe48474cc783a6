//! Dense, contiguous, row-major tensors. Cloning shares the storage; writing copies it first if it is shared.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use crate::cuda::{CudaBuffer, CudaDevice, Factor};
use crate::error::{Error, Result};
use crate::isa::vectorised;
use crate::ops::elementwise;
use crate::pool::{self, Pooled};
use crate::{DType, Element, Real, dispatch};

/// Where a tensor lives. No code may assume that there is one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    #[default]
    Cpu,
    /// The NVIDIA card of this number.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// Waits until the device has done everything that it was asked for.
    ///
    /// # Errors
    /// If it failed at some of it.
    pub fn synchronize(self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(ordinal) => CudaDevice::get(ordinal)?.synchronize(),
        }
    }
}

/// Host storage of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    F64(Vec<f64>),
    F32(Vec<f32>),
    BF16(Vec<bf16>),
}

impl Buffer {
    fn zeros(dtype: DType, n: usize) -> Buffer {
        dispatch!(dtype, E => E::buffer(pool::zeros::<E>(n)))
    }
    pub fn len(&self) -> usize {
        match self {
            Buffer::F64(v) => v.len(),
            Buffer::F32(v) => v.len(),
            Buffer::BF16(v) => v.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn dtype(&self) -> DType {
        match self {
            Buffer::F64(_) => DType::F64,
            Buffer::F32(_) => DType::F32,
            Buffer::BF16(_) => DType::BF16,
        }
    }
}

#[derive(Clone, Debug)]
enum Storage {
    Cpu(Arc<Pooled>),
    Cuda(Arc<CudaBuffer>),
}

/// A dense tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

/// Elements per task of an elementwise pass; fixed, so that results do not depend on the number of threads.
pub(crate) const CHUNK: usize = 16 * 1024;

impl Tensor {
    /// # Errors
    /// If `data` does not hold as many elements as `shape` asks for.
    pub fn from_vec<E: Element>(data: Vec<E>, shape: &[usize]) -> Result<Tensor> {
        let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if n != Some(data.len()) {
            return Err(Error::Shape {
                op: "tensor",
                what: format!("data of shape {shape:?}"),
                expected: n.map_or("fewer elements than can be counted".into(), |n| format!("{n} elements")),
                got: format!("{}", data.len()),
            });
        }
        Ok(Tensor { shape: shape.to_vec(), storage: Storage::Cpu(Arc::new(Pooled::new(E::buffer(data)))) })
    }

    /// For results whose size follows from the computation that made them.
    pub(crate) fn new<E: Element>(data: Vec<E>, shape: &[usize]) -> Tensor {
        Tensor::from_vec(data, shape).expect("the op computed as many elements as its shape has")
    }

    pub fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor {
            shape: shape.to_vec(),
            storage: Storage::Cpu(Arc::new(Pooled::new(Buffer::zeros(dtype, n)))),
        }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows when seen as a matrix: everything but the last dimension.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Size of the last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Cpu(b) => b.buffer().dtype(),
            Storage::Cuda(b) => b.dtype(),
        }
    }

    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(b) => Device::Cuda(b.device().ordinal()),
        }
    }

    /// The host's storage.
    fn host(&self, op: &'static str) -> Result<&Buffer> {
        match &self.storage {
            Storage::Cpu(b) => Ok(b.buffer()),
            Storage::Cuda(b) => Err(elsewhere(op, b)),
        }
    }

    /// The card's storage, if the tensor is on one.
    pub(crate) fn cuda(&self) -> Option<&Arc<CudaBuffer>> {
        match &self.storage {
            Storage::Cpu(_) => None,
            Storage::Cuda(b) => Some(b),
        }
    }

    /// The card that it is on.
    ///
    /// # Errors
    /// If it is on none.
    pub(crate) fn card(&self) -> Result<&Arc<CudaDevice>> {
        let nowhere = || Error::Invalid("a tensor is on the CPU where one on a card is needed".into());
        self.cuda().map(|b| b.device()).ok_or_else(nowhere)
    }

    /// The same for writing; copied first when another tensor shares it.
    pub(crate) fn cuda_mut(&mut self) -> Result<Option<&mut CudaBuffer>> {
        let Storage::Cuda(b) = &mut self.storage else { return Ok(None) };
        if Arc::get_mut(b).is_none() {
            *b = Arc::new(b.copy()?);
        }
        Ok(Arc::get_mut(b))
    }

    pub(crate) fn on_cuda(buffer: impl Into<Arc<CudaBuffer>>, shape: &[usize]) -> Tensor {
        let buffer = buffer.into();
        debug_assert_eq!(buffer.len(), shape.iter().product::<usize>());
        Tensor { shape: shape.to_vec(), storage: Storage::Cuda(buffer) }
    }

    /// A tensor on a card from little-endian bytes, such as those of a mapped file, which become no tensor in the host's memory
    /// on the way; nothing if one of the numbers is not finite.
    ///
    /// # Errors
    /// If there are not as many bytes as the shape asks for, or the card can't be used or has no room.
    pub fn from_bytes_on(
        ordinal: usize,
        dtype: DType,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Option<Tensor>> {
        let n = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
        if n != Some(bytes.len()) {
            return Err(Error::Shape {
                op: "tensor",
                what: format!("bytes of shape {shape:?}"),
                expected: format!("{n:?} bytes"),
                got: format!("{}", bytes.len()),
            });
        }
        let there = CudaBuffer::of_bytes(&CudaDevice::get(ordinal)?, dtype, bytes)?;
        Ok(there.map(|buffer| Tensor::on_cuda(buffer, shape)))
    }

    /// The same tensor on a device; itself if it is there.
    ///
    /// # Errors
    /// If the device can't be used or has no room for it.
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        match (device, &self.storage) {
            (Device::Cpu, Storage::Cpu(_)) => Ok(self.clone()),
            (Device::Cpu, Storage::Cuda(b)) => {
                dispatch!(b.dtype(), E => Tensor::from_vec(b.download::<E>()?, &self.shape))
            }
            (Device::Cuda(ordinal), Storage::Cuda(b)) if b.device().ordinal() == ordinal => Ok(self.clone()),
            (Device::Cuda(_), Storage::Cuda(_)) => self.to_device(Device::Cpu)?.to_device(device),
            (Device::Cuda(ordinal), Storage::Cpu(b)) => {
                let card = CudaDevice::get(ordinal)?;
                let there = dispatch!(self.dtype(), E => {
                    CudaBuffer::of(&card, E::slice(b.buffer()).expect("dispatched on its own type"))?
                });
                Ok(Tensor::on_cuda(there, &self.shape))
            }
        }
    }

    /// Zeros of this tensor's type and shape, beside it.
    pub fn zeros_like(&self) -> Result<Tensor> {
        self.zeros_beside(self.dtype(), &self.shape)
    }

    /// Zeros of another type and shape on the same device.
    pub(crate) fn zeros_beside(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        match self.cuda() {
            None => Ok(Tensor::zeros(dtype, shape)),
            Some(b) => {
                Ok(Tensor::on_cuda(CudaBuffer::zeros(b.device(), dtype, shape.iter().product())?, shape))
            }
        }
    }

    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype().size()
    }

    /// The elements on the host.
    ///
    /// # Errors
    /// If the tensor's type is not `E`, or it is not on the CPU.
    pub fn slice<E: Element>(&self) -> Result<&[E]> {
        let b = self.host("slice")?;
        E::slice(b).ok_or(Error::DType { op: "slice", what: "tensor", expected: E::DTYPE, got: b.dtype() })
    }

    /// The elements for writing; copies them first when another tensor shares them.
    pub fn slice_mut<E: Element>(&mut self) -> Result<&mut [E]> {
        let b = match &mut self.storage {
            Storage::Cpu(b) => b,
            Storage::Cuda(b) => return Err(elsewhere("slice_mut", b)),
        };
        let got = b.buffer().dtype();
        E::slice_mut(Arc::make_mut(b).buffer_mut()).ok_or(Error::DType {
            op: "slice_mut",
            what: "tensor",
            expected: E::DTYPE,
            got,
        })
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.numel() {
            return Err(Error::Shape {
                op: "reshape",
                what: format!("{shape:?}"),
                expected: format!("{} elements", self.numel()),
                got: format!("{}", shape.iter().product::<usize>()),
            });
        }
        Ok(Tensor { shape: shape.to_vec(), storage: self.storage.clone() })
    }

    /// The elements in the type `R`, borrowed when they already are.
    pub fn reals<R: Real>(&self) -> std::borrow::Cow<'_, [R]> {
        self.rows_as::<R>(0, self.rows())
    }

    /// Rows `[start, end)` in the type `R`, borrowed when they already are. Copied from where they are; should the device
    /// fail at that, they are not numbers, and its next call returns the error.
    pub(crate) fn rows_as<R: Real>(&self, start: usize, end: usize) -> std::borrow::Cow<'_, [R]> {
        let buffer = match &self.storage {
            Storage::Cpu(buffer) => buffer.buffer(),
            Storage::Cuda(b) => {
                let host = self.to_device(Device::Cpu).unwrap_or_else(|e| {
                    b.device().fail_later(e);
                    Tensor::new(vec![f32::NAN; b.len()], &self.shape)
                });
                return std::borrow::Cow::Owned(host.rows_as::<R>(start, end).into_owned());
            }
        };
        let range = start * self.cols()..end * self.cols();
        if let Some(s) = R::slice(buffer) {
            return std::borrow::Cow::Borrowed(&s[range]);
        }
        dispatch!(self.dtype(), E => {
            let s = E::slice(buffer).expect("dispatched on its own type");
            std::borrow::Cow::Owned(map_to_vec(&s[range], |x| R::of(x.to_acc().f64())))
        })
    }

    /// The elements; their storage itself if no other tensor shares it.
    ///
    /// # Errors
    /// If the tensor's type is not `E`.
    pub(crate) fn into_vec<E: Element>(self) -> Result<Vec<E>> {
        let got = self.dtype();
        let buffer = match self.storage {
            Storage::Cpu(buffer) => buffer,
            Storage::Cuda(b) => return Err(elsewhere("into_vec", &b)),
        };
        let buffer = Arc::try_unwrap(buffer).map_err(|b| E::slice(b.buffer()).map(|s| map_to_vec(s, |x| x)));
        let elements = match buffer {
            Ok(buffer) => E::vec(buffer.into_buffer()),
            Err(copy) => copy,
        };
        elements.ok_or(Error::DType { op: "into_vec", what: "tensor", expected: E::DTYPE, got })
    }

    /// A tensor of type `dtype` from computed reals, rounded once.
    pub(crate) fn from_reals<R: Real>(data: Vec<R>, shape: &[usize], dtype: DType) -> Tensor {
        match dtype == R::DTYPE {
            true => Tensor::new(data, shape),
            false => Tensor::from_slice(&data, shape, dtype),
        }
    }

    /// The same for reals that stay where they are.
    pub(crate) fn from_slice<R: Real>(data: &[R], shape: &[usize], dtype: DType) -> Tensor {
        dispatch!(dtype, E => Tensor::new(map_to_vec(data, round::<R, E>), shape))
    }

    /// [`Tensor::from_reals`] of a matrix after `finish(i, row i)`, in the same pass over memory.
    pub(crate) fn from_rows<R: Real>(
        mut data: Vec<R>,
        shape: [usize; 2],
        dtype: DType,
        finish: impl Fn(usize, &mut [R]) + Sync,
    ) -> Tensor {
        let cols = shape[1].max(1);
        let rows = data.par_chunks_mut(cols).enumerate();
        if dtype == R::DTYPE {
            rows.for_each(|(i, row)| finish(i, row));
            return Tensor::new(data, &shape);
        }
        dispatch!(dtype, E => {
            let mut out = pool::any::<E>(shape[0] * shape[1]);
            rows.zip(out.par_chunks_mut(cols)).for_each(|((i, row), out)| {
                finish(i, row);
                let row = &*row;
                vectorised!([R: Real, E: Element] (out: &mut [E], row: &[R]) {
                    out.iter_mut().zip(row).for_each(|(o, &x)| *o = round(x));
                });
            });
            Tensor::new(out, &shape)
        })
    }

    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype() {
            return self.clone();
        }
        if let Some(b) = self.cuda() {
            let converted = elementwise::convert(b, dtype).map(|b| Tensor::on_cuda(b, &self.shape));
            return converted.unwrap_or_else(|e| {
                b.device().fail_later(e);
                Tensor::new(vec![f32::NAN; b.len()], &self.shape).to_dtype(dtype)
            });
        }
        dispatch!(self.dtype(), E => {
            let data = self.slice::<E>().expect("dispatched on its own type");
            dispatch!(dtype, To => Tensor::new(map_to_vec(data, |x| round::<<E as Element>::Acc, To>(x.to_acc())), &self.shape))
        })
    }

    /// All elements as f64, for tests and small read-outs.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        self.reals::<f64>().into_owned()
    }

    /// The only element of a scalar.
    pub fn item(&self) -> f64 {
        self.to_f64_vec().first().copied().unwrap_or(f64::NAN)
    }

    /// self += other, elementwise, in the compute type, rounded once.
    pub fn add_assign(&mut self, other: &Tensor) -> Result<()> {
        crate::error::check_shape("add", "second operand", other.shape(), self.shape())?;
        let dtype = self.dtype();
        if let Some(a) = self.cuda_mut()? {
            elementwise::same_device("add", a, other)?;
            return other.cuda().map_or(Ok(()), |b| elementwise::add_assign(a, b, 1.0));
        }
        dispatch!(dtype, E => {
            if other.dtype() == dtype {
                let b = other.slice::<E>()?;
                zip_mut(self.slice_mut::<E>()?, b, |x, y| *x = E::from_acc(x.to_acc() + y.to_acc()));
            } else {
                let b = other.reals::<<E as Element>::Acc>().into_owned();
                zip_mut(self.slice_mut::<E>()?, &b, |x, &y| *x = E::from_acc(x.to_acc() + y));
            }
        });
        Ok(())
    }

    /// self *= factor, elementwise.
    /// Should a device fail at that, its next call returns the error.
    pub fn scale_assign(&mut self, factor: f64) {
        if let Some(device) = self.cuda().map(|b| b.device().clone()) {
            let scaled = self.cuda_mut().and_then(|x| x.map_or(Ok(()), |x| elementwise::scale(x, factor)));
            return scaled.unwrap_or_else(|e| device.fail_later(e));
        }
        dispatch!(self.dtype(), E => {
            let f = <E as Element>::Acc::of(factor);
            let s = self.slice_mut::<E>().expect("dispatched on its own type");
            s.par_chunks_mut(CHUNK).for_each(|c| {
                type Acc<E> = <E as Element>::Acc;
                vectorised!([E: Element] (c: &mut [E], f: Acc<E>) {
                    c.iter_mut().for_each(|x| *x = E::from_acc(x.to_acc() * f));
                });
            });
        });
    }

    /// True when every element is a finite number.
    pub fn is_finite(&self) -> bool {
        if self.cuda().is_some() {
            // Asked only once something is wrong: not worth a kernel.
            return self.reals::<f32>().iter().all(|x| x.is_finite());
        }
        dispatch!(self.dtype(), E => {
            let s = self.slice::<E>().expect("dispatched on its own type");
            s.par_chunks(CHUNK).all(|c| {
                vectorised!([E: Element] (c: &[E]) -> bool {
                    c.iter().fold(true, |all, x| all & x.to_acc().f64().is_finite())
                })
            })
        })
    }

    /// Rows of a matrix picked by index.
    pub fn select_rows(&self, rows: &[usize]) -> Result<Tensor> {
        let (n, d) = (self.rows(), self.cols());
        if let Some(&bad) = rows.iter().find(|&&r| r >= n) {
            return Err(Error::Index { op: "select_rows", what: "rows", index: bad, size: n });
        }
        if let Some(b) = self.cuda() {
            let rows: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
            return Ok(Tensor::on_cuda(elementwise::gather(b, &rows, d)?, &[rows.len(), d]));
        }
        dispatch!(self.dtype(), E => {
            let s = self.slice::<E>()?;
            let mut out = Vec::with_capacity(rows.len() * d);
            rows.iter().for_each(|&r| out.extend_from_slice(&s[r * d..(r + 1) * d]));
            Ok(Tensor::new(out, &[rows.len(), d]))
        })
    }
}

fn elsewhere(op: &'static str, b: &CudaBuffer) -> Error {
    Error::Invalid(format!("{op}: the tensor is on {}, and this is done on the CPU", b.device()))
}

/// A real in a storage type.
#[inline(always)]
fn round<R: Real, E: Element>(x: R) -> E {
    E::from_acc(<E as Element>::Acc::of(x.f64()))
}

/// A parallel elementwise map into a new vector.
pub(crate) fn map_to_vec<A: Element, B: Element, F: Fn(A) -> B + Sync>(src: &[A], f: F) -> Vec<B> {
    let mut out = pool::any::<B>(src.len());
    out.par_chunks_mut(CHUNK).zip(src.par_chunks(CHUNK)).for_each(|(o, s)| {
        let f = &f;
        vectorised!([A: Element, B: Element, F: Fn(A) -> B] (o: &mut [B], s: &[A], f: &F) {
            for (o, &s) in o.iter_mut().zip(s) {
                *o = f(s);
            }
        });
    });
    out
}

/// A parallel elementwise map of two slices of equal length into a new vector.
pub(crate) fn map2_to_vec<A: Element, F: Fn(A, A) -> A + Sync>(a: &[A], b: &[A], f: F) -> Vec<A> {
    let mut out = pool::any::<A>(a.len());
    out.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((o, a), b)| {
        let f = &f;
        vectorised!([A: Element, F: Fn(A, A) -> A] (o: &mut [A], a: &[A], b: &[A], f: &F) {
            for ((o, &a), &b) in o.iter_mut().zip(a).zip(b) {
                *o = f(a, b);
            }
        });
    });
    out
}

/// A parallel elementwise pass over two slices of equal length.
pub(crate) fn zip_mut<A: Element, B: Element, F: Fn(&mut A, &B) + Sync>(a: &mut [A], b: &[B], f: F) {
    a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK)).for_each(|(a, b)| {
        let f = &f;
        vectorised!([A: Element, B: Element, F: Fn(&mut A, &B)] (a: &mut [A], b: &[B], f: &F) {
            for (a, b) in a.iter_mut().zip(b) {
                f(a, b);
            }
        });
    });
}

impl Tensor {
    /// selfᵀ · other for self `[k, m]` and other `[k, n]` of one type on a card, for work outside the tape.
    ///
    /// # Errors
    /// If the shapes do not fit, or a tensor is elsewhere.
    pub fn transposed_matmul(&self, other: &Tensor) -> Result<Tensor> {
        let (k, m, n) = (self.rows(), self.cols(), other.cols());
        crate::error::check_shape("matmul", "second operand", other.shape(), &[k, n])?;
        let device = self.card()?;
        let there = |what, t| elementwise::on("matmul", what, t, device, self.dtype());
        let (a, b) = (there("the first operand", self)?, there("the second operand", other)?);
        let c = CudaBuffer::any(device, self.dtype(), m * n)?;
        let factors = (Factor::new(a, k, m).t(), Factor::new(b, k, n));
        device.product(Factor::new(&c, m, n), factors.0, factors.1, 1.0, false)?;
        Ok(Tensor::on_cuda(c, &[m, n]))
    }

    /// factor · self `[m, k]` · other `[k, n]`, for work outside the tape. On a card both are of one type, and so is the result.
    pub fn matmul(&self, other: &Tensor, factor: f64) -> Result<Tensor> {
        use crate::gemm::{Mat, MatMut, Threads, matmul};
        let (m, k, n) = (self.rows(), self.cols(), other.cols());
        crate::error::check_shape("matmul", "second operand", other.shape(), &[k, n])?;
        if let Some(a) = self.cuda() {
            let b = elementwise::on("matmul", "the second operand", other, a.device(), self.dtype())?;
            let c = CudaBuffer::any(a.device(), self.dtype(), m * n)?;
            let factors = (Factor::new(a, m, k), Factor::new(b, k, n));
            a.device().product(Factor::new(&c, m, n), factors.0, factors.1, factor, false)?;
            return Ok(Tensor::on_cuda(c, &[m, n]));
        }
        crate::dispatch_real!(self.dtype(), R => {
            let (a, b) = (self.reals::<R>(), other.reals::<R>());
            let mut c = pool::any::<R>(m * n);
            let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
            matmul(MatMut::new(&mut c, m, n), a, b, R::of(factor), R::of(0.0), Threads::All);
            Ok(Tensor::new(c, &[m, n]))
        })
    }
}
