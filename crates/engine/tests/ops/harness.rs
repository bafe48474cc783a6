//! Runs a case in a storage type, and the checks that every case goes through.

use loratune_engine::rng::Key;
use loratune_engine::{DType, Device, Error, Gradients, Mode, ParamId, Params, Tape, Tensor, Var, ops};

type Build = dyn Fn(&mut Tape<'_>, &Inputs) -> Result<Var, Error> + Send + Sync;

/// One use of one op: trainable inputs of given shapes, and how to apply the op to them.
pub struct Case {
    pub name: String,
    pub inputs: Vec<(&'static str, Vec<usize>)>,
    pub build: Box<Build>,
}

/// The inputs of a case on a tape: activations come as values in the storage type, weights as parameters.
pub struct Inputs {
    ids: Vec<ParamId>,
    dtype: DType,
    device: Device,
}

impl Inputs {
    pub fn activation(&self, tape: &mut Tape<'_>, i: usize) -> Var {
        let leaf = tape.param(self.ids[i]);
        ops::cast(tape, &leaf, self.dtype)
    }
    pub fn param(&self, i: usize) -> ParamId {
        self.ids[i]
    }
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub fn device(&self) -> Device {
        self.device
    }
}

pub struct Outcome {
    pub output: Tensor,
    pub grads: Vec<Tensor>,
}

pub fn values(case: &Case) -> Vec<Vec<f64>> {
    let key = Key::new(5).named(&case.name);
    case.inputs
        .iter()
        .enumerate()
        .map(|(i, (_, shape))| {
            let key = key.with(i as u64);
            // Rounded to bf16, so that all storage types start from the same numbers.
            (0..shape.iter().product::<usize>() as u64)
                .map(|j| half::bf16::from_f64(key.normal(j) * 0.7).to_f64())
                .collect()
        })
        .collect()
}

pub fn params(case: &Case, values: &[Vec<f64>], dtype: DType, device: Device) -> Params {
    let mut params = Params::new();
    for ((name, shape), v) in case.inputs.iter().zip(values) {
        let t = Tensor::from_vec(v.clone(), shape).unwrap().to_dtype(dtype.compute());
        params.add(*name, t).unwrap();
    }
    params.to_device(device).unwrap();
    params
}

/// The upstream gradient: fixed, bf16-representable.
fn upstream(shape: &[usize], dtype: DType) -> Tensor {
    let key = Key::new(11);
    let u = (0..shape.iter().product::<usize>() as u64).map(|j| half::bf16::from_f64(key.normal(j)).to_f64());
    Tensor::from_vec(u.collect::<Vec<f64>>(), shape).unwrap().to_dtype(dtype)
}

fn forward(case: &Case, params: &Params, dtype: DType) -> Vec<f64> {
    let mut tape = Tape::new(params, Mode::Train(Key::new(3)));
    let inputs = Inputs { ids: params.ids().collect(), dtype, device: Device::Cpu };
    let y = (case.build)(&mut tape, &inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    y.value().to_f64_vec()
}

fn run(case: &Case, params: &Params, dtype: DType) -> Outcome {
    try_run(case, params, dtype, Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

pub fn try_run(case: &Case, params: &Params, dtype: DType, device: Device) -> Result<Outcome, Error> {
    let mut tape = Tape::new(params, Mode::Train(Key::new(3)));
    let inputs = Inputs { ids: params.ids().collect(), dtype, device };
    let y = (case.build)(&mut tape, &inputs)?;
    let mut grads = Gradients::new(params);
    let dy = upstream(y.value().shape(), y.value().dtype()).to_device(y.value().device())?;
    tape.backward_with(&y, dy, &mut grads)?;
    grads.check_complete(params)?;
    Ok(Outcome {
        output: y.value().clone(),
        grads: params.ids().map(|i| grads.get(i).unwrap().clone()).collect(),
    })
}

/// max |a − b| over max |b|: the scale of a tensor is that of its largest element.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let scale = b.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    // Not by `f64::max`, which forgets NaN.
    let larger = |m: f64, d: f64| if m.is_nan() || d <= m { m } else { d };
    a.iter().zip(&b).fold(0.0f64, |m, (a, b)| larger(m, (a - b).abs())) / scale
}

pub fn check_central_differences(case: &Case) {
    let values = values(case);
    let params = |case: &Case, values: &[Vec<f64>], dtype| params(case, values, dtype, Device::Cpu);
    let base = params(case, &values, DType::F64);
    let outcome = run(case, &base, DType::F64);
    let dy = upstream(outcome.output.shape(), DType::F64).to_f64_vec();
    for (i, grad) in outcome.grads.iter().enumerate() {
        let analytic = grad.to_f64_vec();
        // At most 60 elements of each input, spread over it.
        let stride = analytic.len().div_ceil(60);
        for j in (0..analytic.len()).step_by(stride.max(1)) {
            let shifted = |by: f64| {
                let mut v = values.clone();
                v[i][j] += by;
                forward(case, &params(case, &v, DType::F64), DType::F64)
            };
            // The difference is taken before the sum, so that the sum's size does not drown it.
            let h = 1e-5;
            let (up, down) = (shifted(h), shifted(-h));
            let change: f64 = up.iter().zip(&down).zip(&dy).map(|((a, b), u)| (a - b) * u).sum();
            let numeric = change / (2.0 * h);
            let tolerance = 1e-7 * (1.0 + analytic[j].abs());
            assert!(
                (numeric - analytic[j]).abs() < tolerance,
                "{}: d/d{}[{j}] is {} by central differences, {} by the backward pass",
                case.name,
                case.inputs[i].0,
                numeric,
                analytic[j]
            );
        }
    }
}

/// Largest relative error of outputs and gradients. f32: a few hundred roundings. bf16: 8 bits in inputs of later
/// steps, outputs and passed gradients.
const TOLERANCE_F32: f64 = 2e-5;
const TOLERANCE_BF16: f64 = 2.5e-2;

pub fn check_precision(case: &Case) {
    let values = values(case);
    let exact = run(case, &params(case, &values, DType::F64, Device::Cpu), DType::F64);
    for dtype in [DType::F32, DType::BF16] {
        let ours = run(case, &params(case, &values, dtype, Device::Cpu), dtype);
        check_outcome(case, dtype, &ours, &exact).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

/// Says what is off by more than the type allows.
pub fn check_outcome(case: &Case, dtype: DType, ours: &Outcome, exact: &Outcome) -> Result<(), String> {
    let tolerance = if dtype == DType::BF16 { TOLERANCE_BF16 } else { TOLERANCE_F32 };
    let gradients = ours.grads.iter().zip(&exact.grads).zip(&case.inputs);
    let gradients = gradients.map(|((g, e), (name, _))| (format!("gradient of {name}"), relative(g, e)));
    let errors =
        std::iter::once(("output".to_string(), relative(&ours.output, &exact.output))).chain(gradients);
    for (what, error) in errors {
        if error.is_nan() || error >= tolerance {
            return Err(format!("{}: {what} in {dtype} is off by {error:e}", case.name));
        }
    }
    Ok(())
}

pub fn check_threads(case: &Case) {
    let values = values(case);
    for dtype in [DType::F32, DType::BF16] {
        let bytes = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let params = params(case, &values, dtype, Device::Cpu);
            let o = pool.install(|| run(case, &params, dtype));
            let bits = |t: &Tensor| t.to_f64_vec().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (bits(&o.output), o.grads.iter().map(bits).collect::<Vec<_>>())
        };
        let one = bytes(1);
        assert!(one == bytes(2) && one == bytes(5), "{}: {dtype} results depend on the threads", case.name);
    }
}
