use std::sync::Arc;

use super::{RmsNorm, RmsNormBackward};
use crate::cuda::{CudaBuffer, CudaDevice, Source};
use crate::error::Result;
use crate::kept::{Parts, Recipe};
use crate::ops::elementwise::{args, column_sums, on, suffix};
use crate::tape::Sink;
use crate::{DType, FrozenWeight, Tensor};

pub(crate) static SOURCE: Source =
    Source { name: "norm", text: include_str!("kernel.cu"), variants: &[0], hopper: false };

/// Groups longer than this take a block of threads each, others a warp.
const LONG: usize = 1024;

/// Which kernel, and its blocks.
fn plan(direction: &str, dtype: DType, groups: usize, d: usize) -> Result<(String, [usize; 3])> {
    let (by, blocks) = if d > LONG { ("block", groups) } else { ("warp", groups.div_ceil(8)) };
    Ok((format!("{direction}_{by}_{}", suffix("rms_norm", dtype)?), [blocks, 1, 1]))
}

/// y and 1/σ by group.
pub(super) fn forward(x: &CudaBuffer, w: &CudaBuffer, config: &RmsNorm) -> Result<(CudaBuffer, CudaBuffer)> {
    let (device, d) = (x.device(), w.len());
    let groups = x.len() / d;
    let y = CudaBuffer::any(device, x.dtype(), x.len())?;
    let rstd = CudaBuffer::any(device, DType::F32, groups)?;
    let (name, grid) = plan("forward", x.dtype(), groups, d)?;
    let args = args![
        y.pointer(),
        rstd.pointer(),
        x.pointer(),
        w.pointer(),
        i32::from(w.dtype() == DType::BF16),
        config.offset as f32,
        config.eps as f32,
        groups,
        d
    ];
    device.launch((&SOURCE, 0), &name, grid, 256, 0, args)?;
    Ok((y, rstd))
}

/// y again, from the x that is kept for the backward.
pub(super) fn recipe(x: &Tensor, rstd: &Tensor, weight: Arc<FrozenWeight>, config: RmsNorm) -> Arc<Recipe> {
    let x = x.clone();
    // Kernels know it of whole rows.
    let parts = (rstd.numel() == x.rows()).then(|| Parts::Normed {
        x: x.clone(),
        rstd: rstd.clone(),
        weight: weight.clone(),
        offset: config.offset,
    });
    Recipe::new(parts, move || {
        let there = on("rms_norm", "input", &x, x.card()?, x.dtype())?;
        let (y, _) = forward(there, weight.on_card("rms_norm", there.device())?, &config)?;
        Ok(Tensor::on_cuda(y, x.shape()))
    })
}

pub(super) fn backward(
    op: RmsNormBackward,
    dy: &Tensor,
    x: &Arc<CudaBuffer>,
    grads: &mut Sink<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let device: &Arc<CudaDevice> = x.device();
    let dy = on(OP, "the output's gradient", dy, device, x.dtype())?;
    let rstd = on(OP, "1/sigma", &op.rstd, device, DType::F32)?;
    let resolved = op.weight.resolve(grads.params);
    let w = resolved.on_card(OP, device)?;
    let d = w.len();
    let groups = x.len() / d;
    if let Some(id) = op.weight.param() {
        let dw = column_sums(dy, Some(x), Some(rstd), None, d)?;
        grads.add_param(id, Tensor::on_cuda(dw, &[d]))?;
    }
    if !op.x_source.needs_grad() {
        return Ok(());
    }
    device.passing(&[x.len() * x.dtype().size()])?;
    // Added to what the residual stream has brought, in the same pass.
    let before = grads.take(op.x_source)?;
    let add = before.is_some();
    let mut dx = match before {
        Some(before) => before,
        None => Tensor::on_cuda(CudaBuffer::any(device, x.dtype(), x.len())?, op.x.shape()),
    };
    let (name, grid) = plan("backward", x.dtype(), groups, d)?;
    if let Some(to) = dx.cuda_mut()? {
        let args = args![
            to.pointer_mut(),
            dy.pointer(),
            x.pointer(),
            rstd.pointer(),
            w.pointer(),
            i32::from(w.dtype() == DType::BF16),
            op.config.offset as f32,
            i32::from(add),
            groups,
            d
        ];
        device.launch((&SOURCE, 0), &name, grid, 256, 0, args)?;
    }
    grads.put(op.x_source, dx);
    Ok(())
}
