//! Dense products by cuBLASLt.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::driver::{Handle, Pointer};
use super::library::{functions, open};
use super::{CudaBuffer, CudaDevice};
use crate::error::{Error, Result};
use crate::{DType, profile};

functions! {
    /// See cuBLASLt's documentation for each.
    pub struct Library {
        fn create(*mut Handle) -> c_int = "cublasLtCreate";
        fn desc(*mut Handle, c_int, c_int) -> c_int = "cublasLtMatmulDescCreate";
        fn desc_set(Handle, c_int, *const c_void, usize) -> c_int = "cublasLtMatmulDescSetAttribute";
        fn layout(*mut Handle, c_int, u64, u64, i64) -> c_int = "cublasLtMatrixLayoutCreate";
        fn preference(*mut Handle) -> c_int = "cublasLtMatmulPreferenceCreate";
        fn preference_set(Handle, c_int, *const c_void, usize) -> c_int = "cublasLtMatmulPreferenceSetAttribute";
        fn preference_destroy(Handle) -> c_int = "cublasLtMatmulPreferenceDestroy";
        fn heuristic(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Choice, *mut c_int
        ) -> c_int = "cublasLtMatmulAlgoGetHeuristic";
        fn matmul(
            Handle, Handle, *const c_void, Pointer, Handle, Pointer, Handle, *const c_void, Pointer, Handle, Pointer, Handle,
            *const Algorithm, Pointer, usize, Handle
        ) -> c_int = "cublasLtMatmul";
    }
}

const COMPUTE_F32: c_int = 68;
const REAL_F32: c_int = 0;
const REAL_BF16: c_int = 14;
const DESC_TRANSPOSE: [c_int; 2] = [3, 4];
const PREFERENCE_WORKSPACE: c_int = 1;
const PREFERENCE_REDUCTION: c_int = 3;
/// Least alignments of the four matrices, in bytes.
const PREFERENCE_ALIGNMENT: [c_int; 4] = [5, 6, 7, 8];
/// Splitting k through the workspace; not in place, whose order of sums is not fixed.
const REDUCTIONS: u32 = 2 | 4;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Algorithm([u64; 8]);

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Choice {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

pub fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(|| Library::of(open("cublasLt", &["13", "12"])?)).as_ref().map_err(Clone::clone)
}

/// Everything that decides how a product is computed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    /// Whether the stored a and b are the transposes of the factors.
    turned: [bool; 2],
    /// Elements from row to row as stored, of a, b and c.
    strides: [usize; 3],
    types: [DType; 3],
    alignments: [u32; 3],
}

/// A chosen way: descriptions that live as long as the process, and the algorithm.
#[derive(Clone, Copy)]
struct Plan {
    desc: Handle,
    a: Handle,
    b: Handle,
    c: Handle,
    algorithm: Algorithm,
}

// SAFETY: descriptions are only read after they are made.
unsafe impl Send for Plan {}

pub struct CublasLt {
    library: &'static Library,
    handle: Handle,
    workspace: (Pointer, usize),
    plans: Mutex<HashMap<Shape, Plan>>,
    /// Held while a product's kernels are put on the stream: those of another thread must not come between them, for all use
    /// one workspace.
    turn: Mutex<()>,
}

// SAFETY: a handle of cuBLASLt may be used from any thread.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// A factor of a product, or its destination: a row-major matrix in a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    buffer: &'a CudaBuffer,
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    turned: bool,
}

impl<'a> Factor<'a> {
    /// A matrix `[rows, cols]` whose rows lie one after the other.
    pub fn new(buffer: &'a CudaBuffer, rows: usize, cols: usize) -> Factor<'a> {
        Factor { buffer, offset: 0, rows, cols, stride: cols, turned: false }
    }

    /// From an element of the buffer on.
    pub fn at(self, offset: usize) -> Factor<'a> {
        Factor { offset, ..self }
    }

    /// The transpose.
    pub fn t(self) -> Factor<'a> {
        Factor { rows: self.cols, cols: self.rows, turned: !self.turned, ..self }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn columns(&self) -> usize {
        self.cols
    }
    /// Whether it is the transpose of what is stored.
    pub fn is_turned(&self) -> bool {
        self.turned
    }
    /// Elements from row to row as stored.
    pub fn stride(&self) -> usize {
        self.stride
    }
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.buffer.dtype().size()
    }

    /// Rows and columns as stored.
    pub fn stored(&self) -> [usize; 2] {
        if self.turned { [self.cols, self.rows] } else { [self.rows, self.cols] }
    }

    pub fn pointer(&self) -> Pointer {
        self.buffer.pointer() + (self.offset * self.buffer.dtype().size()) as u64
    }

    fn is_inside(&self) -> bool {
        let [rows, cols] = self.stored();
        rows == 0 || cols == 0 || self.offset + (rows - 1) * self.stride + cols <= self.buffer.len()
    }
}

fn real(dtype: DType) -> Result<c_int, String> {
    match dtype {
        DType::F32 => Ok(REAL_F32),
        DType::BF16 => Ok(REAL_BF16),
        DType::F64 => Err("products in f64 are the CPU's only".into()),
    }
}

/// The largest power of two up to 256 that divides a pointer and the bytes between rows.
fn alignment(pointer: Pointer, row: usize) -> u32 {
    1 << (pointer | row as u64 | 256).trailing_zeros()
}

impl CublasLt {
    pub fn new(workspace: Pointer, size: usize) -> Result<CublasLt, String> {
        let library = library()?;
        let mut handle = null_mut();
        // SAFETY: the library writes one handle.
        match unsafe { (library.create)(&mut handle) } {
            0 => Ok(CublasLt {
                library,
                handle,
                workspace: (workspace, size),
                plans: Mutex::default(),
                turn: Mutex::default(),
            }),
            status => Err(format!("cuBLASLt does not start (error {status})")),
        }
    }

    fn plan(&self, shape: &Shape) -> Result<Plan, String> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(shape) {
            return Ok(*plan);
        }
        let plan = self.choose(shape)?;
        plans.insert(*shape, plan);
        Ok(plan)
    }

    /// cuBLASLt counts by columns, so the product is made as cᵀ = bᵀ·aᵀ: what is stored by rows is its transpose there.
    fn choose(&self, s: &Shape) -> Result<Plan, String> {
        let lt = self.library;
        let check = |status: c_int| match status {
            0 => Ok(()),
            status => Err(format!("cuBLASLt does not take the product {s:?} (error {status})")),
        };
        let layout = |dtype: DType, cols: usize, rows: usize, stride: usize| {
            let mut layout = null_mut();
            // SAFETY: the library writes one handle.
            let status = unsafe {
                (lt.layout)(&mut layout, real(dtype)?, cols as u64, rows as u64, stride.max(1) as i64)
            };
            check(status)?;
            Ok::<Handle, String>(layout)
        };
        let stored =
            |rows: usize, cols: usize, turned: bool| if turned { [rows, cols] } else { [cols, rows] };
        let [ac, ar] = stored(s.m, s.k, s.turned[0]);
        let [bc, br] = stored(s.k, s.n, s.turned[1]);
        let a = layout(s.types[0], ac, ar, s.strides[0])?;
        let b = layout(s.types[1], bc, br, s.strides[1])?;
        let c = layout(s.types[2], s.n, s.m, s.strides[2])?;
        let (mut desc, mut preference) = (null_mut(), null_mut());
        let (mut choice, mut found) = (Choice::default(), 0);
        let workspace = self.workspace.1;
        // SAFETY: handles are those made above; attributes are passed with their sizes; one choice is asked for and room for
        // one is given.
        unsafe {
            check((lt.desc)(&mut desc, COMPUTE_F32, REAL_F32))?;
            for (which, turned) in DESC_TRANSPOSE.into_iter().zip([s.turned[1], s.turned[0]]) {
                let turned = c_int::from(turned);
                check((lt.desc_set)(desc, which, from_ref(&turned).cast(), size_of::<c_int>()))?;
            }
            check((lt.preference)(&mut preference))?;
            let set = |which: c_int, value: *const c_void, size: usize| {
                check((lt.preference_set)(preference, which, value, size))
            };
            set(PREFERENCE_WORKSPACE, from_ref(&workspace).cast(), size_of::<usize>())?;
            set(PREFERENCE_REDUCTION, from_ref(&REDUCTIONS).cast(), size_of::<u32>())?;
            let [of_a, of_b, of_c] = s.alignments;
            for (which, bytes) in PREFERENCE_ALIGNMENT.into_iter().zip([of_b, of_a, of_c, of_c]) {
                set(which, from_ref(&bytes).cast(), size_of::<u32>())?;
            }
            let status = (lt.heuristic)(
                self.handle,
                desc,
                b,
                a,
                c,
                c,
                preference,
                1,
                from_mut(&mut choice),
                &mut found,
            );
            (lt.preference_destroy)(preference);
            check(status)?;
        }
        if found < 1 || choice.state != 0 {
            return Err(format!("cuBLASLt has no algorithm for the product {s:?}"));
        }
        Ok(Plan { desc, a, b, c, algorithm: choice.algorithm })
    }
}

impl CudaDevice {
    /// # Errors
    /// If two factors do not make a matrix `[m, n]`.
    pub(super) fn check_product(&self, [m, n]: [usize; 2], [a, b]: [&Factor<'_>; 2]) -> Result<()> {
        if a.rows == m && b.rows == a.cols && b.cols == n && a.is_inside() && b.is_inside() {
            return Ok(());
        }
        Err(Error::Shape {
            op: "product",
            what: "factors".into(),
            expected: format!("[{m}, k] and [k, {n}] inside their buffers"),
            got: format!("[{}, {}] and [{}, {}]", a.rows, a.cols, b.rows, b.cols),
        })
    }

    /// c = scale · a·b, plus what is in c if `add`; a `[m, k]`, b `[k, n]`, in f32 and rounded once.
    ///
    /// # Errors
    /// If shapes do not fit, or cuBLASLt can't multiply these types.
    pub(crate) fn product(
        &self,
        c: Factor<'_>,
        a: Factor<'_>,
        b: Factor<'_>,
        scale: f64,
        add: bool,
    ) -> Result<()> {
        let [m, n, k] = [c.rows, c.cols, a.cols];
        self.check_product([m, n], [&a, &b])?;
        if c.turned || !c.is_inside() {
            return Err(Error::Invalid(format!("product: no room for [{m}, {n}]")));
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        let Some(lt) = self.lt() else { return Ok(()) };
        let align = |f: &Factor<'_>| alignment(f.pointer(), f.stride * f.buffer.dtype().size());
        let shape = Shape {
            m,
            n,
            k,
            turned: [a.turned, b.turned],
            strides: [a.stride, b.stride, c.stride],
            types: [a.buffer.dtype(), b.buffer.dtype(), c.buffer.dtype()],
            alignments: [align(&a), align(&b), align(&c)],
        };
        self.enter()?;
        let plan = lt.plan(&shape).map_err(|what| self.error(what))?;
        let (alpha, beta) = (scale as f32, if add { 1f32 } else { 0.0 });
        let _turn = lt.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the plan was made for these shapes and alignments, all matrices lie inside their buffers, and the workspace
        // is used in the order of the stream.
        let status = unsafe {
            (lt.library.matmul)(
                lt.handle,
                plan.desc,
                from_ref(&alpha).cast(),
                b.pointer(),
                plan.b,
                a.pointer(),
                plan.a,
                from_ref(&beta).cast(),
                c.pointer(),
                plan.c,
                c.pointer(),
                plan.c,
                &plan.algorithm,
                lt.workspace.0,
                lt.workspace.1,
                self.stream(),
            )
        };
        if status != 0 {
            return Err(self.error(format!("cuBLASLt fails at the product {shape:?} (error {status})")));
        }
        profile::count(2.0 * (m * n * k) as f64, (a.bytes() + b.bytes() + c.bytes()) as f64);
        Ok(())
    }
}
