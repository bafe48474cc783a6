//! The loss on a card: as on the CPU, a chunk of logits at a time.

use std::sync::Arc;

use super::Logits;
use crate::cuda::{CudaBuffer, Factor, Source};
use crate::error::{Error, Result};
use crate::ops::TableAdapter;
use crate::ops::elementwise::{args, gather, scatter, suffix};
use crate::tape::{Sink, Source as From};
use crate::{DType, FrozenWeight, Tensor};

pub(crate) static SOURCE: Source =
    Source { name: "loss", text: include_str!("kernel.cu"), variants: &[0], hopper: false };

const OP: &str = "linear_cross_entropy";

/// Logits that are in memory at a time, in f32 and again as gradients.
const CHUNK_LOGITS: usize = 64 << 20;

/// # Errors
/// If something is trained on the head that only the CPU trains.
pub(super) fn check(adapter: TableAdapter<'_>) -> Result<()> {
    let what = match (adapter.lora, adapter.rows) {
        (None, None) => return Ok(()),
        (Some(_), _) => "an adapter on the head",
        (None, Some(_)) => "trained rows of the head",
    };
    Err(Error::Unsupported { op: OP, what: what.into(), on: "CUDA" })
}

pub(super) struct Outcome {
    pub loss: f64,
    pub correct: usize,
    /// Of the trained rows, in f32.
    pub dx: Option<Tensor>,
    pub dw: Option<Tensor>,
}

/// The head in the type of the activations.
fn head_beside(head: &FrozenWeight, x: &CudaBuffer) -> Result<Arc<CudaBuffer>> {
    let w = head.on_card(OP, x.device())?;
    match (x.dtype(), w.dtype()) {
        (DType::BF16, _) => w.in_bf16(),
        (a, b) if a == b || x.device().plans_processor() => Ok(w.clone()),
        (a, b) => {
            Err(Error::Unsupported { op: OP, what: format!("{a} activations beside a {b} head"), on: "CUDA" })
        }
    }
}

/// The sums over the rows of x `[tokens, hidden]` that `rows` names, and gradients where they are wanted.
pub(super) fn run(
    x: &Arc<CudaBuffer>,
    head: &FrozenWeight,
    rows: &[usize],
    (targets, smoothing): (&[usize], f64),
    logits: Logits,
    [want_dx, want_dw]: [bool; 2],
) -> Result<Outcome> {
    let (vocabulary, hidden) = head.matrix(OP)?;
    let (device, dtype, n) = (x.device(), x.dtype(), rows.len());
    let w = head_beside(head, x)?;
    let on_processor = device.plans_processor();
    let picked = match n * hidden == x.len() && !on_processor {
        true => x.clone(),
        false => Arc::new(gather(x, &rows.iter().map(|&r| r as u32).collect::<Vec<u32>>(), hidden)?),
    };
    // The rows in the type that the processor computes in.
    let _in_f32 = match on_processor && dtype != DType::F32 {
        true => Some(device.scratch(4 * n * hidden)?),
        false => None,
    };
    let targets: Vec<u32> = targets.iter().map(|&t| t as u32).collect();
    let targets = device.uploaded(&targets)?;
    let (losses, correct) = (device.scratch(n * 8)?, device.scratch(n * 4)?);
    let any = |want: bool, len: usize| want.then(|| CudaBuffer::any(device, DType::F32, len)).transpose();
    let dx = any(want_dx, n * hidden)?;
    let zeros = || CudaBuffer::zeros(device, DType::F32, vocabulary * hidden);
    let dw = want_dw.then(zeros).transpose()?;
    let chunk = match on_processor {
        false => (CHUNK_LOGITS / vocabulary.max(1)).clamp(16, 8192).min(n.max(1)),
        true => super::chunks::rows(n, vocabulary, 1),
    };
    let outputs = CudaBuffer::any(device, DType::F32, chunk * vocabulary)?;
    // The processor's f32 gradients take the logits' place.
    let dy = match (want_dx || want_dw) && !(on_processor && dtype == DType::F32) {
        true => Some(CudaBuffer::any(device, dtype, chunk * vocabulary)?),
        false => None,
    };
    let name = format!("cross_entropy_{}", suffix(OP, dtype)?);
    for first in (0..n).step_by(chunk) {
        let size = chunk.min(n - first);
        let part = Factor::new(&picked, size, hidden).at(first * hidden);
        let weight = Factor::new(&w, vocabulary, hidden);
        device.product(Factor::new(&outputs, size, vocabulary), part, weight.t(), 1.0, false)?;
        let args = args![
            dy.as_ref().map_or(0, CudaBuffer::pointer),
            outputs.pointer(),
            targets.pointer + 4 * first as u64,
            losses.pointer + 8 * first as u64,
            correct.pointer + 4 * first as u64,
            logits.scale as f32,
            logits.softcap.unwrap_or(0.0) as f32,
            smoothing as f32,
            size,
            vocabulary
        ];
        device.launch((&SOURCE, 0), &name, [size, 1, 1], 512, 0, args)?;
        let Some(dy) = dy.as_ref().or(on_processor.then_some(&outputs)) else { continue };
        let dy = Factor::new(dy, size, vocabulary);
        if let Some(dx) = &dx {
            device.product(Factor::new(dx, size, hidden).at(first * hidden), dy, weight, 1.0, false)?;
        }
        if let Some(dw) = &dw {
            device.product(Factor::new(dw, vocabulary, hidden), dy.t(), part, 1.0, true)?;
        }
    }
    Ok(Outcome {
        loss: device.downloaded::<f64>(&losses, n)?.into_iter().sum(),
        correct: device.downloaded::<i32>(&correct, n)?.into_iter().filter(|&c| c != 0).count(),
        dx: dx.map(|dx| Tensor::on_cuda(dx, &[n, hidden])),
        dw: dw.map(|dw| Tensor::on_cuda(dw, &[vocabulary, hidden])),
    })
}

/// Passes dx on, times the upstream gradient.
pub(super) fn backward(
    x: From,
    (rows, shape, dtype): (&[usize], &[usize], DType),
    dx: &CudaBuffer,
    upstream: f64,
    grads: &mut Sink<'_>,
) -> Result<()> {
    let rows: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
    let cols = shape.last().copied().unwrap_or(1);
    let tokens = shape.iter().product::<usize>() / cols.max(1);
    if dtype != DType::F32 {
        dx.device().passing(&[4 * tokens * cols])?;
    }
    let full = scatter(dx, &rows, upstream, [tokens, cols], dtype)?;
    grads.add(x, Tensor::on_cuda(full, shape))
}
