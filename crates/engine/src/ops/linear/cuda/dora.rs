//! DoRA on a card: see [`Dora`]. Its scales are computed once for each state of the parameters.

use std::sync::Arc;

use super::super::dora::DoraSaved;
use super::super::lora::LoraSaved;
use super::super::{Dora, Lora, RowNorm};
use super::{Layer, LowRank, SOURCE, add_dx, dropped, factor_gradients};
use crate::cuda::{CudaBuffer, Down, Factor, Finish, Scaling, Tall};
use crate::error::{Result, check_shape};
use crate::kept::Kept;
use crate::ops::elementwise::{add, add_assign, args, column_sums, finish, on};
use crate::profile::{self, Pass};
use crate::tape::{Sink, Source as From, Tape};
use crate::{DType, Params, Tensor};

/// A·Wᵀ and A·Aᵀ, as the norms need them: `[out, r]` and `[r, r]`.
fn cross(layer: &Layer, a: &Arc<CudaBuffer>, r: usize) -> Result<[CudaBuffer; 2]> {
    let Layer { device, w, out, cols, .. } = layer;
    let (cross, gram) = (layer.any(DType::F32, out * r)?, layer.any(DType::F32, r * r)?);
    let beside_w = super::beside(a, w.dtype())?;
    let tall = Tall { x: w, n: *out, k: *cols, r };
    if device.thin_at_once(tall) > 0 {
        device.thin_down(tall, &[Down { a: &beside_w, h: &cross, scale: 1.0 }])?;
    } else {
        let a = Factor::new(&beside_w, r, *cols).t();
        device.product(Factor::new(&cross, *out, r), Factor::new(w, *out, *cols), a, 1.0, false)?;
    }
    let args = args![gram.pointer(), a.pointer(), r, *cols];
    device.launch((&SOURCE, 0), "gram", [(r * r).div_ceil(4), 1, 1], 128, 0, args)?;
    Ok([cross, gram])
}

/// g, 1/norm, and 1/(g·norm), `[out]`.
fn scales(dora: &Dora, lora: &Lora, params: &Params, layer: &Layer) -> Result<[Arc<CudaBuffer>; 3]> {
    let (device, out) = (&layer.device, layer.out);
    let m = params.value(dora.magnitude);
    check_shape("dora", "magnitude [out]", m.shape(), &[out])?;
    let m = on("dora", "magnitude", m, device, DType::F32)?;
    let all = [(); 3].map(|()| layer.any(DType::F32, out).map(Arc::new));
    let [g, inverse, of_output] = all;
    let all = [g?, inverse?, of_output?];
    let [g, inverse, of_output] = all.each_ref().map(|b| b.pointer());
    let blocks = [out.div_ceil(128), 1, 1];
    match &dora.norm {
        RowNorm::Fixed(norms) => {
            check_shape("dora", "norms of the rows", &[norms.len()], &[out])?;
            let norms = device.constant("norms", norms, |n| n.to_vec())?;
            let args = args![g, inverse, of_output, m.pointer(), norms.pointer, out];
            device.launch((&SOURCE, 0), "dora_scale_fixed", blocks, 128, 0, args)?;
        }
        RowNorm::Recomputed { squares } => {
            check_shape("dora", "squares of W's rows", &[squares.len()], &[out])?;
            let a = on("dora", "A", params.value(lora.a), device, DType::F32)?;
            let b = on("dora", "B", params.value(lora.b), device, DType::F32)?;
            let of = Arc::as_ptr(squares).cast::<u8>().addr();
            let state = [&layer.w, a, b, m].map(|buffer| buffer.state());
            if let Some(known) = device.scales(of, state) {
                return Ok(known);
            }
            let squares = device.constant("squares", squares, |s| s.to_vec())?;
            let r = a.len() / layer.cols.max(1);
            let [cross, gram] = cross(layer, a, r)?;
            let args = args![
                g,
                inverse,
                of_output,
                m.pointer(),
                squares.pointer,
                cross.pointer(),
                gram.pointer(),
                b.pointer(),
                lora.scaling.to_bits(),
                out,
                r
            ];
            device.launch((&SOURCE, 0), "dora_scale", blocks, 128, 0, args)?;
            device.keep_scales(of, state, &all);
        }
    }
    Ok(all)
}

/// As on the CPU, but for magnitudes of exactly 0: their gradient is not a number here where the output is saved in u's place.
pub(super) fn forward(
    (lora, dora): (&Lora, &Dora),
    tape: &mut Tape<'_>,
    layer: &Layer,
    x: &Arc<CudaBuffer>,
    (bias, h): (Option<&CudaBuffer>, Option<CudaBuffer>),
) -> Result<(Tensor, DoraSaved)> {
    let (n, out) = (layer.n, layer.out);
    let mask = lora.mask(tape, n, layer.cols)?;
    let low = LowRank::of(lora, tape.params(), layer)?;
    let [g, inverse, of_output] = scales(dora, lora, tape.params(), layer)?;
    let h = layer.seen_down(&mask, x, &low, h)?;
    let from_output = bias.is_none() && mask.is_none();
    let (u, y) = match from_output {
        true => {
            let scale = Finish { scale: Some(&g), ..Finish::default() };
            (None, layer.forward(x, Some((&low, &h)), scale)?)
        }
        false => {
            let dropped = dropped(&mask, x, None)?;
            let u = layer.forward(dropped.as_ref().unwrap_or(x), Some((&low, &h)), Finish::default())?;
            let unseen = match &dropped {
                None => None,
                Some(dropped) => Some(layer.forward(&add(x, dropped, -1.0)?, None, Finish::default())?),
            };
            let y = finish(&u, out, Some(&g), unseen.as_ref(), bias)?;
            (Some(u), y)
        }
    };
    let y = Tensor::on_cuda(y, &[n, out]);
    let saved = DoraSaved {
        magnitude: dora.magnitude,
        lora: LoraSaved { lora: lora.clone(), mask, h: Tensor::on_cuda(h, &[n, low.r]) },
        g: Tensor::on_cuda(g, &[out]),
        u: u.map_or_else(|| y.clone(), |u| Tensor::on_cuda(u, &[n, out])),
        dm_factor: Tensor::on_cuda(if from_output { of_output } else { inverse }, &[out]),
    };
    Ok((y, saved))
}

pub(super) fn backward(
    saved: &DoraSaved,
    layer: &Layer,
    x: Kept,
    dy: &Arc<CudaBuffer>,
    source: From,
    grads: &mut Sink<'_>,
) -> Result<()> {
    let Layer { device, n, out, dtype, .. } = layer;
    let g = on("dora", "g", &saved.g, device, DType::F32)?;
    let factor = on("dora", "1/norm", &saved.dm_factor, device, DType::F32)?;
    let u = on("dora", "u", &saved.u, device, *dtype)?;
    let r = saved.lora.h.cols();
    let (m, dz, branch);
    let span = profile::span("adapter", Pass::Backward);
    if device.thin_at_once(Tall { x: dy, n: *n, k: *out, r }) > 0 {
        // dm and dz in the same pass over dy as dh and dB.
        m = layer.any(DType::F32, *out)?;
        let z = layer.any(*dtype, n * out)?;
        let scaling = Scaling { u, g, scaled: &z, factor, m: &m };
        branch = factor_gradients(&saved.lora, layer, x, (dy, Some(scaling)), source, grads)?;
        dz = Arc::new(z);
    } else {
        m = column_sums(dy, Some(u), None, Some(factor), *out)?;
        dz = Arc::new(finish(dy, *out, Some(g), None, None)?);
        branch = factor_gradients(&saved.lora, layer, x, (&dz, None), source, grads)?;
    }
    drop(span);
    grads.add_param(saved.magnitude, Tensor::on_cuda(m, &[*out]))?;
    if saved.lora.mask.is_none() || !source.needs_grad() {
        return add_dx(&saved.lora, layer, branch, &dz, source, grads);
    }
    let _span = profile::span("linear", Pass::Backward);
    let (low, dh) = branch;
    let clean = layer.any(*dtype, n * layer.cols)?;
    layer.backward(&clean, dy, false)?;
    let mut scaled = layer.branch(&low, &dh)?;
    layer.backward(&scaled, &dz, true)?;
    add_assign(&mut scaled, &clean, -1.0)?;
    let dx = dropped(&saved.lora.mask, &scaled, Some(&clean))?.unwrap_or(clean);
    grads.add(source, Tensor::on_cuda(dx, &[*n, layer.cols]))
}
