//! Dense, contiguous, row-major tensors. Cloning shares the storage; writing copies it first if it is shared.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::isa::vectorised;
use crate::pool::{self, Pooled};
use crate::{DType, Element, Real, dispatch};

/// Where a tensor lives. A CUDA device becomes a second variant (with its ordinal); no code may assume one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    #[default]
    Cpu,
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
        }
    }

    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
        }
    }

    pub fn bytes(&self) -> usize {
        self.numel() * self.dtype().size()
    }

    /// The elements on the host.
    ///
    /// # Errors
    /// If the tensor's type is not `E`.
    pub fn slice<E: Element>(&self) -> Result<&[E]> {
        let Storage::Cpu(b) = &self.storage;
        let b = b.buffer();
        E::slice(b).ok_or(Error::DType { op: "slice", what: "tensor", expected: E::DTYPE, got: b.dtype() })
    }

    /// The elements for writing; copies them first when another tensor shares them.
    pub fn slice_mut<E: Element>(&mut self) -> Result<&mut [E]> {
        let Storage::Cpu(b) = &mut self.storage;
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

    /// Rows `[start, end)` in the type `R`, borrowed when they already are.
    pub(crate) fn rows_as<R: Real>(&self, start: usize, end: usize) -> std::borrow::Cow<'_, [R]> {
        let Storage::Cpu(buffer) = &self.storage;
        let buffer = buffer.buffer();
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
        let Storage::Cpu(buffer) = self.storage;
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
    pub fn scale_assign(&mut self, factor: f64) {
        dispatch!(self.dtype(), E => {
            let f = <E as Element>::Acc::of(factor);
            let s = self.slice_mut::<E>().expect("dispatched on its own type");
            s.par_chunks_mut(CHUNK).for_each(|c| {
                type Acc<E> = <E as Element>::Acc;
                vectorised!([E: Element] (c: &mut [E], f: Acc<E>) {
                    c.iter_mut().for_each(|x| *x = E::from_acc(x.to_acc() * f));
                });
            });
        })
    }

    /// True when every element is a finite number.
    pub fn is_finite(&self) -> bool {
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
        dispatch!(self.dtype(), E => {
            let s = self.slice::<E>()?;
            let mut out = Vec::with_capacity(rows.len() * d);
            rows.iter().for_each(|&r| out.extend_from_slice(&s[r * d..(r + 1) * d]));
            Ok(Tensor::new(out, &[rows.len(), d]))
        })
    }
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
    /// factor · self `[m, k]` · other `[k, n]`, for work outside the tape.
    pub fn matmul(&self, other: &Tensor, factor: f64) -> Result<Tensor> {
        use crate::gemm::{Mat, MatMut, Threads, matmul};
        let (m, k, n) = (self.rows(), self.cols(), other.cols());
        crate::error::check_shape("matmul", "second operand", other.shape(), &[k, n])?;
        crate::dispatch_real!(self.dtype(), R => {
            let (a, b) = (self.reals::<R>(), other.reals::<R>());
            let mut c = pool::any::<R>(m * n);
            let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
            matmul(MatMut::new(&mut c, m, n), a, b, R::of(factor), R::of(0.0), Threads::All);
            Ok(Tensor::new(c, &[m, n]))
        })
    }
}
