//! The linear layer on a card. A layer with its adapter is one sum of products, x·Wᵀ + h·Bᵀ, and so is the gradient of an input,
//! over all layers that have it (see `CudaDevice::sum`). The short products read x and dy three times in all: x·Aᵀ of all layers
//! that have this x, dy·B together with dyᵀ·h, and dhᵀ·x of all layers again (see `CudaDevice::thin_down`, `thin_across`); what
//! those kernels don't take is cuBLASLt's.

use std::sync::Arc;

use super::lora::LoraSaved;
use super::{Layer as Given, LinearBackward, Lora, Mask, Variant};
use crate::cuda::{Also, CudaBuffer, CudaDevice, Down, Factor, Finish, Scaling, Source, Sum, Tall, Up};
use crate::error::{Error, Result};
use crate::kept::Kept;
use crate::ops::elementwise::{column_sums, convert, dropout, on};
use crate::profile::{self, Pass};
use crate::tape::{FactorGradient, Product, Sink, Source as From, Tape};
use crate::{DType, FrozenWeight, Params, Tensor, Weight};

mod dora;

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

    /// Leaves the gradient of x, dy·W + dh·A, to be computed with those of other layers that have it.
    fn add_dx(
        &self,
        to: From,
        dy: &Arc<CudaBuffer>,
        low: Option<(LowRank, Arc<CudaBuffer>)>,
        grads: &mut Sink<'_>,
    ) -> Result<()> {
        let Layer { n, out, cols, .. } = *self;
        let base = Product { a: dy.clone(), b: self.w.clone(), k: out, rows: n, cols };
        let branch = low.map(|(low, dh)| Product { a: dh, b: low.a, k: low.r, rows: n, cols });
        grads.add_later(to, std::iter::once(base).chain(branch));
        if self.device.plans_processor() {
            // There no product waits for others.
            let sum = grads.take(to)?;
            sum.into_iter().for_each(|sum| grads.put(to, sum));
        }
        Ok(())
    }

    /// s·drop(x)·Aᵀ, if it isn't known.
    fn seen_down(
        &self,
        mask: &Mask,
        x: &CudaBuffer,
        low: &LowRank,
        known: Option<CudaBuffer>,
    ) -> Result<CudaBuffer> {
        if let Some(h) = known {
            return Ok(h);
        }
        let dropped = dropped(mask, x, None)?;
        let mut hs = downs(dropped.as_ref().unwrap_or(x), [self.n, self.cols], &[low])?;
        hs.pop().ok_or_else(|| Error::Invalid("linear: no product of one".into()))
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

/// h `[n, r]` = s·x·Aᵀ of adapters of layers with one input x `[n, cols]`.
fn downs(x: &CudaBuffer, [n, k]: [usize; 2], lows: &[&LowRank]) -> Result<Vec<CudaBuffer>> {
    let device = x.device();
    let dtype = if device.plans_processor() { DType::F32 } else { x.dtype() };
    let any = |low: &&LowRank| CudaBuffer::any(device, dtype, n * low.r);
    let hs = lows.iter().map(any).collect::<Result<Vec<_>>>()?;
    let mut at = 0;
    while let Some(&first) = lows.get(at) {
        let r = first.r;
        let tall = Tall { x, n, k, r };
        let alike = lows[at..].iter().take_while(|low| low.r == r).count().min(device.thin_at_once(tall));
        if alike == 0 {
            let (to, x) = (Factor::new(&hs[at], n, r), Factor::new(x, n, k));
            device.product(to, x, Factor::new(&first.a, r, k).t(), first.s, false)?;
        } else {
            let parts = lows[at..at + alike].iter().zip(&hs[at..]);
            let parts: Vec<_> = parts.map(|(low, h)| Down { a: &low.a, h, scale: low.s }).collect();
            device.thin_down(tall, &parts)?;
        }
        at += alike.max(1);
    }
    Ok(hs)
}

/// x·Aᵀ of layers with one input, for those that see x as it is.
pub(super) fn branches(
    tape: &Tape<'_>,
    x: &Tensor,
    there: &Arc<CudaBuffer>,
    layers: &[Given<'_>],
) -> Result<Vec<Option<CudaBuffer>>> {
    let mut hs: Vec<Option<CudaBuffer>> = layers.iter().map(|_| None).collect();
    let (mut lows, mut places) = (Vec::new(), Vec::new());
    for (place, given) in layers.iter().enumerate() {
        let Some(lora) = given.lora.filter(|lora| !lora.is_dropped(tape)) else { continue };
        let w = given.weight.resolve(tape.params());
        let layer = Layer::new(&w, x.rows(), x.dtype(), there.device())?;
        lows.push(LowRank::of(lora, tape.params(), &layer)?);
        places.push(place);
    }
    let of_all = downs(there, [x.rows(), x.cols()], &lows.iter().collect::<Vec<_>>())?;
    places.into_iter().zip(of_all).for_each(|(place, h)| hs[place] = Some(h));
    Ok(hs)
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

/// y, or nothing if nobody reads it and the backward does not either; `h` is x·Aᵀ if that is known.
pub(super) fn forward(
    tape: &mut Tape<'_>,
    x: &Tensor,
    there: &Arc<CudaBuffer>,
    given: Given<'_>,
    h: Option<CudaBuffer>,
    is_read: bool,
) -> Result<(Tensor, Variant)> {
    let Given { weight, bias, lora } = given;
    let w = weight.resolve(tape.params());
    let layer = Layer::new(&w, x.rows(), x.dtype(), there.device())?;
    let bias = bias_there(bias, tape.params(), &layer)?;
    let shape = [layer.n, layer.out];
    let output = |update: Option<(&LowRank, &CudaBuffer)>| {
        let finish = Finish { bias: bias.as_deref(), ..Finish::default() };
        let y = match is_read {
            true => layer.forward(there, update, finish)?,
            false => layer.any(layer.dtype, layer.n * layer.out)?,
        };
        Ok::<_, Error>(Tensor::on_cuda(y, &shape))
    };
    let Some(lora) = lora else { return Ok((output(None)?, Variant::Plain)) };
    if let Some(dora) = &lora.dora {
        dora.check_frozen(OP, weight)?;
        let (y, saved) = dora::forward((lora, dora), tape, &layer, there, (bias.as_deref(), h))?;
        return Ok((y, Variant::Dora(saved)));
    }
    let mask = lora.mask(tape, layer.n, layer.cols)?;
    let low = LowRank::of(lora, tape.params(), &layer)?;
    let h = layer.seen_down(&mask, there, &low, h)?;
    let y = output(Some((&low, &h)))?;
    let saved = LoraSaved { lora: lora.clone(), mask, h: Tensor::on_cuda(h, &[layer.n, low.r]) };
    Ok((y, Variant::Lora(saved)))
}

pub(super) fn backward(op: LinearBackward, dy: &Tensor, grads: &mut Sink<'_>) -> Result<()> {
    let Some(dy_there) = dy.cuda() else {
        return Err(Error::Invalid("linear: the output's gradient is on the CPU, the output is not".into()));
    };
    let device = dy_there.device();
    let weight = op.weight.resolve(grads.params);
    let layer = Layer::new(&weight, dy.rows(), dy.dtype(), device)?;
    if let (Some(id), Some(x)) = (op.weight.param(), &op.x) {
        let _span = profile::span("linear", Pass::Backward);
        let x = x.get()?;
        let x = on(OP, "input", &x, device, dy.dtype())?;
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
    match (op.variant, op.x) {
        (Variant::Lora(saved), Some(x)) => lora_backward(&saved, &layer, x, dy_there, source, grads),
        (Variant::Dora(saved), Some(x)) => dora::backward(&saved, &layer, x, dy_there, source, grads),
        _ => layer.add_dx(source, dy_there, None, grads),
    }
}

/// Adds dA and dB for the gradient `dy` of the branch's output; dh `[n, r]`, and A and B.
fn factor_gradients(
    saved: &LoraSaved,
    layer: &Layer,
    x: Kept,
    (dy, scaling): (&CudaBuffer, Option<Scaling<'_>>),
    source: From,
    grads: &mut Sink<'_>,
) -> Result<(LowRank, Arc<CudaBuffer>)> {
    let _span = profile::span("adapter", Pass::Backward);
    let Layer { device, n, out, cols, .. } = layer;
    let low = LowRank::of(&saved.lora, grads.params, layer)?;
    let h = on("lora", "h", &saved.h, device, layer.low_dtype())?;
    let r = low.r;
    let dh = layer.any(layer.low_dtype(), n * r)?;
    let db = layer.any(DType::F32, out * r)?;
    let tall = Tall { x: dy, n: *n, k: *out, r };
    // h has the scale in it.
    if device.thin_at_once(tall) > 0 {
        let up = Also::Up(Up { b: &low.b, h: &dh, scale: low.s, scaling });
        device.thin_across(tall, &[Sum { e: h, d: &db }], true, &up)?;
    } else {
        let dy = Factor::new(dy, *n, *out);
        device.product(Factor::new(&dh, *n, r), dy, Factor::new(&low.b, *out, r), low.s, false)?;
        device.product(Factor::new(&db, *out, r), dy.t(), Factor::new(h, *n, r), 1.0, false)?;
    }
    grads.add_param(saved.lora.b, Tensor::on_cuda(db, &[*out, r]))?;
    let dh = Arc::new(dh);
    let gradient = |x| FactorGradient { id: saved.lora.a, e: dh.clone(), x, n: *n, r, k: *cols };
    if saved.mask.is_none() {
        // On the processor none waits for others.
        let of = if device.plans_processor() { From::none() } else { source };
        grads.add_factor(of, gradient(x))?;
    } else {
        let seen = dropped(&saved.mask, on(OP, "input", &x.get()?, device, layer.dtype)?, None)?;
        let seen = seen.ok_or_else(|| Error::Invalid("linear: a mask that drops nothing".into()))?;
        grads.add_factor(From::none(), gradient(Kept::Value(Tensor::on_cuda(seen, &[*n, *cols]))))?;
    }
    Ok((low, dh))
}

fn lora_backward(
    saved: &LoraSaved,
    layer: &Layer,
    x: Kept,
    dy: &Arc<CudaBuffer>,
    source: From,
    grads: &mut Sink<'_>,
) -> Result<()> {
    let (low, dh) = factor_gradients(saved, layer, x, (dy, None), source, grads)?;
    add_dx(saved, layer, (low, dh), dy, source, grads)
}

/// dx of a branch without a scale, from dh.
fn add_dx(
    saved: &LoraSaved,
    layer: &Layer,
    (low, dh): (LowRank, Arc<CudaBuffer>),
    dy: &Arc<CudaBuffer>,
    source: From,
    grads: &mut Sink<'_>,
) -> Result<()> {
    if !source.needs_grad() {
        return Ok(());
    }
    if saved.mask.is_none() {
        return layer.add_dx(source, dy, Some((low, dh)), grads);
    }
    let _span = profile::span("linear", Pass::Backward);
    let base = layer.any(layer.dtype, layer.n * layer.cols)?;
    layer.backward(&base, dy, false)?;
    let branch = layer.branch(&low, &dh)?;
    let dx = dropped(&saved.mask, &branch, Some(&base))?.unwrap_or(base);
    grads.add(source, Tensor::on_cuda(dx, &[layer.n, layer.cols]))
}
