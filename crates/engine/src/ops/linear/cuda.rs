//! The linear layer on a card. A layer with its adapter is one sum of products, x·Wᵀ + h·Bᵀ, and so is the gradient of an input,
//! over all layers that have it (see `CudaDevice::sum`); the short products x·Aᵀ, dy·B, dyᵀ·h and dhᵀ·x are cuBLASLt's.

use std::sync::Arc;

use super::dora::DoraSaved;
use super::lora::LoraSaved;
use super::{Dora, LinearBackward, Lora, Mask, RowNorm, Variant};
use crate::cuda::{CudaBuffer, CudaDevice, Factor, Finish, Source};
use crate::error::{Error, Result};
use crate::kept::Kept;
use crate::ops::elementwise::{add, args, column_sums, convert, dropout, finish, on};
use crate::tape::{Product, Sink, Source as From, Tape};
use crate::{DType, FrozenWeight, Params, Tensor, Weight};

pub(crate) static SOURCE: Source =
    Source { name: "linear", text: include_str!("kernel.cu"), variants: &[0], hopper: false };

const OP: &str = "linear";

/// W, A or B in the type of the activations.
fn beside(buffer: &Arc<CudaBuffer>, dtype: DType) -> Result<Arc<CudaBuffer>> {
    match (dtype, buffer.dtype()) {
        (DType::BF16, _) => buffer.in_bf16(),
        (a, b) if a == b || buffer.device().plans_processor() => Ok(buffer.clone()),
        (a, b) => Err(Error::Unsupported {
            op: OP,
            what: format!("{a} activations beside {b} weights"),
            on: "CUDA",
        }),
    }
}

/// What all products of one layer share: x `[n, in]`, W `[out, in]`.
struct Layer {
    device: Arc<CudaDevice>,
    dtype: DType,
    w: Arc<CudaBuffer>,
    n: usize,
    out: usize,
    cols: usize,
}

impl Layer {
    fn new(weight: &FrozenWeight, n: usize, dtype: DType, device: &Arc<CudaDevice>) -> Result<Layer> {
        let (out, cols) = weight.matrix(OP)?;
        let w = beside(weight.on_card(OP, device)?, dtype)?;
        Ok(Layer { device: device.clone(), dtype, w, n, out, cols })
    }

    fn any(&self, dtype: DType, n: usize) -> Result<CudaBuffer> {
        CudaBuffer::any(&self.device, dtype, n)
    }

    /// Of h and its gradient.
    fn low_dtype(&self) -> DType {
        if self.device.plans_processor() { DType::F32 } else { self.dtype }
    }

    /// finish(x·Wᵀ + h·Bᵀ) `[n, out]`, the second where there is an adapter.
    fn forward(
        &self,
        x: &CudaBuffer,
        update: Option<(&LowRank, &CudaBuffer)>,
        finish: Finish<'_>,
    ) -> Result<CudaBuffer> {
        let y = self.any(self.dtype, self.n * self.out)?;
        let base = [Factor::new(x, self.n, self.cols), Factor::new(&self.w, self.out, self.cols).t()];
        let to = (&y, [self.n, self.out]);
        match update {
            None => self.device.sum(to, &[base], finish)?,
            Some((low, h)) => {
                let h = Factor::new(h, self.n, low.r);
                let update = [h, Factor::new(&low.b, self.out, low.r).t()];
                self.device.sum(to, &[base, update], finish)?;
            }
        }
        Ok(y)
    }

    /// dx `[n, in]` (+)= dy·W.
    fn backward(&self, dx: &CudaBuffer, dy: &CudaBuffer, add: bool) -> Result<()> {
        let w = Factor::new(&self.w, self.out, self.cols);
        let finish = Finish { added: add.then_some(dx), ..Finish::default() };
        self.device.sum((dx, [self.n, self.cols]), &[[Factor::new(dy, self.n, self.out), w]], finish)
    }

    /// h `[n, r]` = s·x·Aᵀ.
    fn down(&self, x: &CudaBuffer, low: &LowRank) -> Result<CudaBuffer> {
        let h = self.any(self.low_dtype(), self.n * low.r)?;
        let (to, x) = (Factor::new(&h, self.n, low.r), Factor::new(x, self.n, self.cols));
        self.device.product(to, x, Factor::new(&low.a, low.r, self.cols).t(), low.s, false)?;
        Ok(h)
    }

    /// Leaves the gradient of x, dy·W + dh·A, to be computed with those of other layers that have it.
    fn add_dx(
        &self,
        to: From,
        dy: &Arc<CudaBuffer>,
        low: Option<(LowRank, CudaBuffer)>,
        grads: &mut Sink<'_>,
    ) -> Result<()> {
        let Layer { n, out, cols, .. } = *self;
        let base = Product { a: dy.clone(), b: self.w.clone(), k: out, rows: n, cols };
        let branch = low.map(|(low, dh)| Product { a: Arc::new(dh), b: low.a, k: low.r, rows: n, cols });
        grads.add_later(to, std::iter::once(base).chain(branch));
        if self.device.plans_processor() {
            // There no product waits for others.
            let sum = grads.take(to)?;
            sum.into_iter().for_each(|sum| grads.put(to, sum));
        }
        Ok(())
    }

    /// dh·A `[n, in]`.
    fn branch(&self, low: &LowRank, dh: &CudaBuffer) -> Result<CudaBuffer> {
        let dx = self.any(self.dtype, self.n * self.cols)?;
        let (to, dh) = (Factor::new(&dx, self.n, self.cols), Factor::new(dh, self.n, low.r));
        self.device.product(to, dh, Factor::new(&low.a, low.r, self.cols), 1.0, false)?;
        Ok(dx)
    }
}

/// A and B beside the activations.
struct LowRank {
    a: Arc<CudaBuffer>,
    b: Arc<CudaBuffer>,
    r: usize,
    s: f64,
}

impl LowRank {
    fn of(lora: &Lora, params: &Params, layer: &Layer) -> Result<LowRank> {
        let (a, b) = (params.value(lora.a), params.value(lora.b));
        let r = a.rows();
        crate::error::check_shape("lora", "A [r, in]", a.shape(), &[r, layer.cols])?;
        crate::error::check_shape("lora", "B [out, r]", b.shape(), &[layer.out, r])?;
        let there = |what, t| beside(on("lora", what, t, &layer.device, DType::F32)?, layer.dtype);
        Ok(LowRank { a: there("A", a)?, b: there("B", b)?, r, s: lora.scaling })
    }
}

/// drop(x), or nothing without dropout.
fn dropped(mask: &Mask, x: &CudaBuffer, other: Option<&CudaBuffer>) -> Result<Option<CudaBuffer>> {
    match mask {
        Mask::None => Ok(None),
        Mask::Random(key, p) => Ok(Some(dropout(x, other, *key, *p)?)),
        Mask::Given(_) => Err(Error::Unsupported { op: OP, what: "a given dropout mask".into(), on: "CUDA" }),
    }
}

/// A bias in f32.
fn bias_there(bias: Option<&Weight>, params: &Params, layer: &Layer) -> Result<Option<Arc<CudaBuffer>>> {
    let Some(bias) = bias else { return Ok(None) };
    let bias = bias.resolve(params);
    crate::error::check_shape(OP, "vector weight", bias.shape(), &[layer.out])?;
    let bias = bias.on_card(OP, &layer.device)?;
    Ok(Some(if bias.dtype() == DType::F32 { bias.clone() } else { Arc::new(convert(bias, DType::F32)?) }))
}

pub(super) fn forward(
    tape: &mut Tape<'_>,
    x: &Tensor,
    there: &Arc<CudaBuffer>,
    weight: &Weight,
    bias: Option<&Weight>,
    lora: Option<&Lora>,
) -> Result<(Tensor, Variant)> {
    let w = weight.resolve(tape.params());
    let layer = Layer::new(&w, x.rows(), x.dtype(), there.device())?;
    let bias = bias_there(bias, tape.params(), &layer)?;
    let shape = [layer.n, layer.out];
    let with_bias = Finish { bias: bias.as_deref(), ..Finish::default() };
    let Some(lora) = lora else {
        return Ok((Tensor::on_cuda(layer.forward(there, None, with_bias)?, &shape), Variant::Plain));
    };
    if let Some(dora) = &lora.dora {
        dora.check_frozen(OP, weight)?;
        let (y, saved) = dora_forward((lora, dora), tape, &layer, there, bias.as_deref())?;
        return Ok((y, Variant::Dora(saved)));
    }
    let mask = lora.mask(tape, layer.n, layer.cols)?;
    let low = LowRank::of(lora, tape.params(), &layer)?;
    let seen = dropped(&mask, there, None)?;
    let h = layer.down(seen.as_ref().unwrap_or(there), &low)?;
    let y = layer.forward(there, Some((&low, &h)), with_bias)?;
    let saved = LoraSaved { lora: lora.clone(), mask, h: Tensor::on_cuda(h, &[layer.n, low.r]) };
    Ok((Tensor::on_cuda(y, &shape), Variant::Lora(saved)))
}

/// g and 1/norm, `[out]`.
fn dora_scale(dora: &Dora, lora: &Lora, params: &Params, layer: &Layer) -> Result<[CudaBuffer; 2]> {
    let (device, out) = (&layer.device, layer.out);
    let m = params.value(dora.magnitude);
    crate::error::check_shape("dora", "magnitude [out]", m.shape(), &[out])?;
    let m = on("dora", "magnitude", m, device, DType::F32)?;
    let (g, inverse) = (layer.any(DType::F32, out)?, layer.any(DType::F32, out)?);
    let blocks = [out.div_ceil(256), 1, 1];
    match &dora.norm {
        RowNorm::Fixed(norms) => {
            crate::error::check_shape("dora", "norms of the rows", &[norms.len()], &[out])?;
            let norms = device.constant("norms", norms, |n| n.to_vec())?;
            let args = args![g.pointer(), inverse.pointer(), m.pointer(), norms.pointer, out];
            device.launch((&SOURCE, 0), "dora_scale_fixed", blocks, 256, 0, args)?;
        }
        RowNorm::Recomputed { squares } => {
            crate::error::check_shape("dora", "squares of W's rows", &[squares.len()], &[out])?;
            let squares = device.constant("squares", squares, |s| s.to_vec())?;
            let a = on("dora", "A", params.value(lora.a), device, DType::F32)?;
            let b = on("dora", "B", params.value(lora.b), device, DType::F32)?;
            let (r, cols) = (a.len() / layer.cols.max(1), layer.cols);
            let cross = layer.any(DType::F32, r * out)?;
            let beside_w = beside(a, layer.w.dtype())?;
            let w = Factor::new(&layer.w, out, cols).t();
            device.product(Factor::new(&cross, r, out), Factor::new(&beside_w, r, cols), w, 1.0, false)?;
            let gram = layer.any(DType::F32, r * r)?;
            let factor = Factor::new(a, r, cols);
            device.product(Factor::new(&gram, r, r), factor, factor.t(), 1.0, false)?;
            let bg = layer.any(DType::F32, out * r)?;
            let gram = Factor::new(&gram, r, r);
            device.product(Factor::new(&bg, out, r), Factor::new(b, out, r), gram, 1.0, false)?;
            let args = args![
                g.pointer(),
                inverse.pointer(),
                m.pointer(),
                squares.pointer,
                cross.pointer(),
                bg.pointer(),
                b.pointer(),
                lora.scaling.to_bits(),
                out,
                r
            ];
            device.launch((&SOURCE, 0), "dora_scale", blocks, 256, 0, args)?;
        }
    }
    Ok([g, inverse])
}

/// As on the CPU, but for magnitudes of exactly 0: their gradient is not a number here where the output is saved in u's place.
fn dora_forward(
    (lora, dora): (&Lora, &Dora),
    tape: &mut Tape<'_>,
    layer: &Layer,
    x: &Arc<CudaBuffer>,
    bias: Option<&CudaBuffer>,
) -> Result<(Tensor, DoraSaved)> {
    let (n, out) = (layer.n, layer.out);
    let mask = lora.mask(tape, n, layer.cols)?;
    let low = LowRank::of(lora, tape.params(), layer)?;
    let [g, inverse] = dora_scale(dora, lora, tape.params(), layer)?;
    let dropped = dropped(&mask, x, None)?;
    let seen = dropped.as_ref().unwrap_or(x);
    let h = layer.down(seen, &low)?;
    let from_output = bias.is_none() && dropped.is_none();
    let (u, y) = match from_output {
        true => {
            let scale = Finish { scale: Some(&g), ..Finish::default() };
            (None, layer.forward(x, Some((&low, &h)), scale)?)
        }
        false => {
            let u = layer.forward(seen, Some((&low, &h)), Finish::default())?;
            let unseen = match &dropped {
                None => None,
                Some(dropped) => Some(layer.forward(&add(x, dropped, -1.0)?, None, Finish::default())?),
            };
            let y = finish(&u, out, Some(&g), unseen.as_ref(), bias)?;
            (Some(u), y)
        }
    };
    let factor = match from_output {
        false => inverse,
        true => {
            let factor = layer.any(DType::F32, out)?;
            let args = args![factor.pointer(), g.pointer(), inverse.pointer(), out];
            layer.device.launch((&SOURCE, 0), "dora_of_output", [out.div_ceil(256), 1, 1], 256, 0, args)?;
            factor
        }
    };
    let y = Tensor::on_cuda(y, &[n, out]);
    let saved = DoraSaved {
        magnitude: dora.magnitude,
        lora: LoraSaved { lora: lora.clone(), mask, h: Tensor::on_cuda(h, &[n, low.r]) },
        g: Tensor::on_cuda(g, &[out]),
        u: u.map_or_else(|| y.clone(), |u| Tensor::on_cuda(u, &[n, out])),
        dm_factor: Tensor::on_cuda(factor, &[out]),
    };
    Ok((y, saved))
}

pub(super) fn backward(op: LinearBackward, dy: &Tensor, grads: &mut Sink<'_>) -> Result<()> {
    let Some(dy_there) = dy.cuda() else {
        return Err(Error::Invalid("linear: the output's gradient is on the CPU, the output is not".into()));
    };
    let device = dy_there.device();
    let weight = op.weight.resolve(grads.params);
    let layer = Layer::new(&weight, dy.rows(), dy.dtype(), device)?;
    let x = op.x.map(Kept::get).transpose()?;
    let x = match &x {
        Some(x) => Some(on(OP, "input", x, device, dy.dtype())?),
        None => None,
    };
    if let (Some(id), Some(x)) = (op.weight.param(), x) {
        let dw = layer.any(DType::F32, layer.out * layer.cols)?;
        let factors = (Factor::new(dy_there, layer.n, layer.out).t(), Factor::new(x, layer.n, layer.cols));
        device.product(Factor::new(&dw, layer.out, layer.cols), factors.0, factors.1, 1.0, false)?;
        grads.add_param(id, Tensor::on_cuda(dw, &[layer.out, layer.cols]))?;
    }
    if let Some(id) = op.bias {
        let db = column_sums(dy_there, None, None, None, layer.out)?;
        grads.add_param(id, Tensor::on_cuda(db, &[layer.out]))?;
    }
    let source = op.x_source;
    match (op.variant, x) {
        (Variant::Lora(saved), Some(x)) => lora_backward(&saved, &layer, x, dy_there, source, grads),
        (Variant::Dora(saved), Some(x)) => dora_backward(&saved, &layer, x, dy_there, source, grads),
        _ => layer.add_dx(source, dy_there, None, grads),
    }
}

/// Adds dA and dB for the gradient `dy` of the branch's output; dh `[n, r]`, and A and B.
fn factor_gradients(
    saved: &LoraSaved,
    layer: &Layer,
    x: &CudaBuffer,
    dy: &CudaBuffer,
    grads: &mut Sink<'_>,
) -> Result<(LowRank, CudaBuffer)> {
    let Layer { device, n, out, cols, .. } = layer;
    let low = LowRank::of(&saved.lora, grads.params, layer)?;
    let h = on("lora", "h", &saved.h, device, layer.low_dtype())?;
    let dy = Factor::new(dy, *n, *out);
    let dh = layer.any(layer.low_dtype(), n * low.r)?;
    device.product(Factor::new(&dh, *n, low.r), dy, Factor::new(&low.b, *out, low.r), low.s, false)?;
    let db = layer.any(DType::F32, out * low.r)?;
    // h has the scale in it.
    device.product(Factor::new(&db, *out, low.r), dy.t(), Factor::new(h, *n, low.r), 1.0, false)?;
    let da = layer.any(DType::F32, low.r * cols)?;
    let seen = dropped(&saved.mask, x, None)?;
    let x = Factor::new(seen.as_ref().unwrap_or(x), *n, *cols);
    device.product(Factor::new(&da, low.r, *cols), Factor::new(&dh, *n, low.r).t(), x, 1.0, false)?;
    grads.add_param(saved.lora.a, Tensor::on_cuda(da, &[low.r, *cols]))?;
    grads.add_param(saved.lora.b, Tensor::on_cuda(db, &[*out, low.r]))?;
    Ok((low, dh))
}

fn lora_backward(
    saved: &LoraSaved,
    layer: &Layer,
    x: &CudaBuffer,
    dy: &Arc<CudaBuffer>,
    source: From,
    grads: &mut Sink<'_>,
) -> Result<()> {
    let (low, dh) = factor_gradients(saved, layer, x, dy, grads)?;
    if !source.needs_grad() {
        return Ok(());
    }
    if saved.mask.is_none() {
        return layer.add_dx(source, dy, Some((low, dh)), grads);
    }
    let base = layer.any(layer.dtype, layer.n * layer.cols)?;
    layer.backward(&base, dy, false)?;
    let branch = layer.branch(&low, &dh)?;
    let dx = dropped(&saved.mask, &branch, Some(&base))?.unwrap_or(base);
    grads.add(source, Tensor::on_cuda(dx, &[layer.n, layer.cols]))
}

fn dora_backward(
    saved: &DoraSaved,
    layer: &Layer,
    x: &CudaBuffer,
    dy: &Arc<CudaBuffer>,
    source: From,
    grads: &mut Sink<'_>,
) -> Result<()> {
    let (device, out) = (&layer.device, layer.out);
    let g = on("dora", "g", &saved.g, device, DType::F32)?;
    let factor = on("dora", "1/norm", &saved.dm_factor, device, DType::F32)?;
    let u = on("dora", "u", &saved.u, device, layer.dtype)?;
    let dm = column_sums(dy, Some(u), None, Some(factor), out)?;
    grads.add_param(saved.magnitude, Tensor::on_cuda(dm, &[out]))?;
    let dz = Arc::new(finish(dy, out, Some(g), None, None)?);
    if saved.lora.mask.is_none() || !source.needs_grad() {
        return lora_backward(&saved.lora, layer, x, &dz, source, grads);
    }
    let (low, dh) = factor_gradients(&saved.lora, layer, x, &dz, grads)?;
    let clean = layer.any(layer.dtype, layer.n * layer.cols)?;
    layer.backward(&clean, dy, false)?;
    let mut scaled = layer.branch(&low, &dh)?;
    layer.backward(&scaled, &dz, true)?;
    crate::ops::elementwise::add_assign(&mut scaled, &clean, -1.0)?;
    let dx = dropped(&saved.lora.mask, &scaled, Some(&clean))?.unwrap_or(clean);
    grads.add(source, Tensor::on_cuda(dx, &[layer.n, layer.cols]))
}
