//! Passes over a card's memory that several ops share. Their CPU counterparts are loops in the ops themselves.

use std::sync::Arc;

use crate::cuda::{Arg, CudaBuffer, CudaDevice, Finish, Source};
use crate::error::{Error, Result};
use crate::rng::Key;
use crate::{DType, Tensor};

pub(crate) static SOURCE: Source = Source {
    name: "elementwise",
    text: include_str!("elementwise/kernel.cu"),
    variants: &[0],
    hopper: false,
};

/// The arguments of a kernel.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$(crate::cuda::Arg::from($arg)),*] };
}
pub(crate) use args;

/// What kernels of a type are called.
pub(crate) fn suffix(op: &'static str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F64 => Err(Error::Unsupported { op, what: "f64".into(), on: "CUDA" }),
    }
}

const THREADS: u32 = 256;

/// Blocks of [`THREADS`] threads for `tasks` tasks; kernels go on to the tasks beyond.
fn blocks(device: &CudaDevice, tasks: usize) -> [usize; 3] {
    [tasks.div_ceil(THREADS as usize).min(device.processors() as usize * 32), 1, 1]
}

/// Starts a kernel of so many tasks, one a thread.
pub(crate) fn run(
    device: &CudaDevice,
    source: &'static Source,
    name: &str,
    tasks: usize,
    args: &[Arg<'_>],
) -> Result<()> {
    device.launch((source, 0), name, blocks(device, tasks), THREADS, 0, args)
}

/// Elements that a thread takes at a time.
pub(crate) fn wide(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Both buffers' device.
///
/// # Errors
/// If a tensor is elsewhere.
pub(crate) fn same_device<'a>(
    op: &'static str,
    a: &'a CudaBuffer,
    b: &Tensor,
) -> Result<&'a Arc<CudaDevice>> {
    match b.cuda() {
        Some(b) if Arc::ptr_eq(b.device(), a.device()) => Ok(a.device()),
        _ => Err(Error::Invalid(format!("{op}: one tensor is on {}, another on {}", a.device(), b.device()))),
    }
}

/// A tensor's buffer, which must be on the device and of the type.
pub(crate) fn on<'a>(
    op: &'static str,
    what: &'static str,
    t: &'a Tensor,
    device: &Arc<CudaDevice>,
    dtype: DType,
) -> Result<&'a Arc<CudaBuffer>> {
    match t.cuda() {
        Some(b) if !Arc::ptr_eq(b.device(), device) => {
            Err(Error::Invalid(format!("{op}: {what} is on {}, the rest on {device}", b.device())))
        }
        Some(b) if b.dtype() != dtype => Err(Error::DType { op, what, expected: dtype, got: b.dtype() }),
        Some(b) => Ok(b),
        None => Err(Error::Invalid(format!("{op}: {what} is on the CPU, the rest on {device}"))),
    }
}

/// The same numbers in another type.
pub(crate) fn convert(x: &CudaBuffer, to: DType) -> Result<CudaBuffer> {
    let y = CudaBuffer::any(x.device(), to, x.len())?;
    let name = format!("convert_{}_{}", suffix("cast", to)?, suffix("cast", x.dtype())?);
    let args = args![y.pointer(), x.pointer(), x.len()];
    run(x.device(), &SOURCE, &name, x.len().div_ceil(8), args)?;
    Ok(y)
}

/// a += factor · b.
pub(crate) fn add_assign(a: &mut CudaBuffer, b: &CudaBuffer, factor: f64) -> Result<()> {
    let name = format!("add_assign_{}_{}", suffix("add", a.dtype())?, suffix("add", b.dtype())?);
    let args = args![a.pointer_mut(), b.pointer(), factor as f32, a.len()];
    run(a.device(), &SOURCE, &name, a.len().div_ceil(wide(a.dtype())), args)
}

/// a + factor · b.
pub(crate) fn add(a: &CudaBuffer, b: &CudaBuffer, factor: f64) -> Result<CudaBuffer> {
    let y = CudaBuffer::any(a.device(), a.dtype(), a.len())?;
    let name = format!("add_{}", suffix("add", a.dtype())?);
    let args = args![y.pointer(), a.pointer(), b.pointer(), factor as f32, a.len()];
    run(a.device(), &SOURCE, &name, a.len().div_ceil(wide(a.dtype())), args)?;
    Ok(y)
}

pub(crate) fn scale(x: &mut CudaBuffer, factor: f64) -> Result<()> {
    let name = format!("scale_{}", suffix("scale", x.dtype())?);
    let args = args![x.pointer_mut(), factor as f32, x.len()];
    run(x.device(), &SOURCE, &name, x.len().div_ceil(wide(x.dtype())), args)
}

/// Copies a matrix `[rows, cols]` between buffers whose rows have other lengths, or adds it.
pub(crate) fn columns(
    (to, to_first, to_stride): (&CudaBuffer, usize, usize),
    (from, from_first, from_stride): (&CudaBuffer, usize, usize),
    [rows, cols]: [usize; 2],
    add: bool,
) -> Result<()> {
    let (name, size) = (format!("columns_{}", suffix("split_columns", from.dtype())?), from.dtype().size());
    let args = args![
        to.pointer() + (to_first * size) as u64,
        from.pointer() + (from_first * size) as u64,
        rows,
        cols,
        to_stride,
        from_stride,
        i32::from(add),
    ];
    run(from.device(), &SOURCE, &name, rows * cols.div_ceil(wide(from.dtype())), args)
}

/// Rows of a matrix of `cols` columns, picked by index.
pub(crate) fn gather(x: &CudaBuffer, rows: &[u32], cols: usize) -> Result<CudaBuffer> {
    let device = x.device();
    let y = CudaBuffer::any(device, x.dtype(), rows.len() * cols)?;
    let rows_there = device.uploaded(rows)?;
    let name = format!("gather_{}", suffix("select_rows", x.dtype())?);
    let args = args![y.pointer(), x.pointer(), rows_there.pointer, rows.len(), cols];
    run(device, &SOURCE, &name, rows.len() * THREADS as usize, args)?;
    Ok(y)
}

/// The way back into zeros `[tokens, cols]`, of f32 rows times a factor.
pub(crate) fn scatter(
    x: &CudaBuffer,
    rows: &[u32],
    factor: f64,
    [tokens, cols]: [usize; 2],
    dtype: DType,
) -> Result<CudaBuffer> {
    let device = x.device();
    let y = match rows.len() == tokens {
        true => CudaBuffer::any(device, dtype, tokens * cols)?,
        false => CudaBuffer::zeros(device, dtype, tokens * cols)?,
    };
    let rows_there = device.uploaded(rows)?;
    let name = format!("scatter_{}", suffix("linear_cross_entropy", dtype)?);
    let args = args![y.pointer(), x.pointer(), rows_there.pointer, factor as f32, rows.len(), cols];
    run(device, &SOURCE, &name, rows.len() * THREADS as usize, args)?;
    Ok(y)
}

fn pointer(buffer: Option<&CudaBuffer>) -> u64 {
    buffer.map_or(0, CudaBuffer::pointer)
}

/// g∘u + other + bias by column, each of the three if it is there; g and the bias in f32.
pub(crate) fn finish(
    u: &CudaBuffer,
    cols: usize,
    g: Option<&CudaBuffer>,
    other: Option<&CudaBuffer>,
    bias: Option<&CudaBuffer>,
) -> Result<CudaBuffer> {
    let y = CudaBuffer::any(u.device(), u.dtype(), u.len())?;
    finish_into(&y, u, cols, [g, other, bias])?;
    Ok(y)
}

/// The same of a sum of products, where it lies.
pub(crate) fn finish_in_place(y: &CudaBuffer, cols: usize, finish: Finish<'_>) -> Result<()> {
    finish_into(y, y, cols, [finish.scale, finish.added, finish.bias])
}

fn finish_into(y: &CudaBuffer, u: &CudaBuffer, cols: usize, own: [Option<&CudaBuffer>; 3]) -> Result<()> {
    let name = format!("finish_{}", suffix("linear", u.dtype())?);
    let rows = u.len() / cols.max(1);
    let [g, other, bias] = own.map(pointer);
    let args = args![y.pointer(), u.pointer(), g, other, bias, rows, cols];
    run(u.device(), &SOURCE, &name, u.len().div_ceil(wide(u.dtype())), args)
}

/// Rows that a partial sum is over: fixed, and few enough that the card is busy.
const ROWS: usize = 128;

/// Sums over the rows of a∘b∘r times a factor by column, in f32 and in a fixed order; b, r (by row) and the factor may be
/// missing.
pub(crate) fn column_sums(
    a: &CudaBuffer,
    b: Option<&CudaBuffer>,
    r: Option<&CudaBuffer>,
    factor: Option<&CudaBuffer>,
    cols: usize,
) -> Result<CudaBuffer> {
    let device = a.device();
    let rows = a.len() / cols.max(1);
    let parts = rows.div_ceil(ROWS);
    let partial = CudaBuffer::any(device, DType::F32, parts * cols)?;
    let total = CudaBuffer::any(device, DType::F32, cols)?;
    // Grids have at most 65,535 rows of blocks.
    let name = format!("column_sums_{}", suffix("column_sums", a.dtype())?);
    let across = cols.div_ceil(THREADS as usize);
    let args = args![partial.pointer(), a.pointer(), pointer(b), pointer(r), rows, cols, ROWS];
    device.launch((&SOURCE, 0), &name, [across, parts, 1], THREADS, 0, args)?;
    let args = args![total.pointer(), partial.pointer(), pointer(factor), parts, cols];
    device.launch((&SOURCE, 0), "column_totals", [across, 1, 1], THREADS, 0, args)?;
    Ok(total)
}

/// drop(x), or other + drop(x): the mask is that of `Mask::Random` on the CPU, bit for bit.
pub(crate) fn dropout(x: &CudaBuffer, other: Option<&CudaBuffer>, key: Key, p: f64) -> Result<CudaBuffer> {
    let y = CudaBuffer::any(x.device(), x.dtype(), x.len())?;
    let name = format!("dropout_{}", suffix("dropout", x.dtype())?);
    let [seed, stream] = key.halves();
    let threshold = (p * 4_294_967_296.0) as u64;
    let args = args![
        y.pointer(),
        x.pointer(),
        pointer(other),
        seed,
        stream,
        threshold,
        (1.0 / (1.0 - p)) as f32,
        x.len()
    ];
    run(x.device(), &SOURCE, &name, x.len().div_ceil(wide(x.dtype())), args)?;
    Ok(y)
}

/// x plus uniform noise of a magnitude by row.
pub(crate) fn noise(x: &CudaBuffer, magnitudes: &[f64], key: Key) -> Result<CudaBuffer> {
    let device = x.device();
    let y = CudaBuffer::any(device, x.dtype(), x.len())?;
    let there = device.uploaded(magnitudes)?;
    let name = format!("noise_{}", suffix("uniform_noise", x.dtype())?);
    let ([seed, stream], rows) = (key.halves(), magnitudes.len());
    let args = args![y.pointer(), x.pointer(), there.pointer, seed, stream, rows, x.len() / rows.max(1)];
    run(device, &SOURCE, &name, x.len().div_ceil(wide(x.dtype())), args)?;
    Ok(y)
}

/// Numbers for benchmarks, see [`bench::quick`](crate::bench::quick).
pub(crate) fn quick(device: &Arc<CudaDevice>, dtype: DType, start: u32, n: usize) -> Result<CudaBuffer> {
    let y = CudaBuffer::any(device, dtype, n)?;
    let name = format!("quick_{}", suffix("quick", dtype)?);
    run(device, &SOURCE, &name, n.div_ceil(wide(dtype)), args![y.pointer(), start, n])?;
    Ok(y)
}

/// Elements of a piece of a tensor, in kernels that take many tensors at once.
pub(crate) const PIECE: usize = 32 << 10;

/// Σ x² over f32 tensors of one device, in f64 and in a fixed order.
pub(crate) fn sum_of_squares(device: &Arc<CudaDevice>, tensors: &[&CudaBuffer]) -> Result<f64> {
    let (mut pointers, mut sizes) = (Vec::new(), Vec::new());
    for t in tensors {
        if t.dtype() != DType::F32 {
            return Err(Error::DType { op: "norm", what: "gradient", expected: DType::F32, got: t.dtype() });
        }
        for first in (0..t.len()).step_by(PIECE) {
            pointers.push(t.pointer() + 4 * first as u64);
            sizes.push(PIECE.min(t.len() - first) as u64);
        }
    }
    let pieces = pointers.len();
    let sums = device.scratch(pieces * 8)?;
    let (pointers, sizes) = (device.uploaded(&pointers)?, device.uploaded(&sizes)?);
    let args = args![sums.pointer, pointers.pointer, sizes.pointer];
    device.launch((&SOURCE, 0), "sums_of_squares", [pieces, 1, 1], 512, 0, args)?;
    Ok(device.downloaded::<f64>(&sums, pieces)?.into_iter().sum())
}
