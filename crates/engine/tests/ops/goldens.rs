//! The ops against PyTorch and transformers: `goldens/ops.py` makes the files (outputs and gradients in f64).

use std::collections::HashSet;
use std::sync::Arc;

use loratune_engine::ops::{
    self, Activation, AdamW, AttentionConfig, Documents, Dora, Dropout, Logits, Lora, RmsNorm, RopeTable,
    RowNorm, TableAdapter,
};
use loratune_engine::{DType, Gradients, Mode, ParamId, Params, Tape, Tensor, Var, Weight};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::harness::relative;

const TOLERANCE_F64: f64 = 3e-7; // the files hold f32
const TOLERANCE_F32: f64 = 2e-5;

struct Golden<'a> {
    file: &'a SafeTensors<'a>,
    case: &'a Value,
    dtype: DType,
}

impl Golden<'_> {
    fn op(&self) -> &str {
        self.case["op"].as_str().unwrap()
    }
    fn label(&self) -> String {
        format!("{}.{}", self.op(), self.case["case"].as_str().unwrap())
    }
    fn param(&self, name: &str) -> f64 {
        self.case["params"][name].as_f64().unwrap_or_else(|| panic!("{}: {name}", self.label()))
    }
    fn size(&self, name: &str) -> usize {
        self.param(name) as usize
    }
    fn floats(&self, name: &str) -> Tensor {
        let t = self
            .file
            .tensor(&format!("{}.{name}", self.label()))
            .unwrap_or_else(|_| panic!("{}.{name}", self.label()));
        let data: Vec<f32> =
            t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Tensor::from_vec(data, t.shape()).unwrap().to_dtype(self.dtype)
    }
    fn ints(&self, name: &str) -> Vec<i64> {
        let t = self.file.tensor(&format!("{}.{name}", self.label())).unwrap();
        match t.dtype() {
            safetensors::Dtype::I64 => {
                t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I32 => {
                t.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as i64).collect()
            }
            other => panic!("{other:?}"),
        }
    }
    fn matrix(&self, name: &str) -> Tensor {
        let t = self.floats(name);
        t.reshape(&[t.shape()[0], t.numel() / t.shape()[0]]).unwrap()
    }

    /// Runs the op with every named input a parameter, and compares the output and all gradients.
    fn check(&self, names: &[&str], build: impl Fn(&mut Tape<'_>, &dyn Fn(&str) -> ParamId) -> Var) {
        let mut params = Params::new();
        for name in names {
            let t = self.floats(name);
            let t = if t.shape().len() == 3 { self.matrix(name) } else { t };
            params.add(*name, t).unwrap();
        }
        let mut tape = Tape::new(&params, Mode::Grad);
        let y = build(&mut tape, &|name| params.find(name).unwrap());
        self.compare("y", y.value());
        let mut grads = Gradients::new(&params);
        let dy = self.floats("dy").to_dtype(y.value().dtype()).reshape(y.value().shape()).unwrap();
        if y.needs_grad() {
            tape.backward_with(&y, dy, &mut grads).unwrap();
        }
        for (name, golden) in self.case["grads"].as_object().unwrap() {
            let id = params.find(name).unwrap_or_else(|| panic!("{}: {name} is not an input", self.label()));
            self.compare(golden.as_str().unwrap(), grads.get(id).unwrap());
        }
    }

    fn compare(&self, name: &str, ours: &Tensor) {
        let expected = self.floats(name).to_dtype(DType::F64).reshape(ours.shape()).unwrap();
        let tolerance = if self.dtype == DType::F64 { TOLERANCE_F64 } else { TOLERANCE_F32 };
        let error = relative(&ours.to_dtype(DType::F64), &expected);
        // Where everything cancels (the gradient of a norm over one element) only the absolute error means something.
        let tiny = expected.to_f64_vec().iter().zip(&ours.to_f64_vec()).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(error < tolerance || tiny, "{} {name} in {}: off by {error:e}", self.label(), self.dtype);
    }

    fn compare_norms(&self, norms: &[f64]) {
        self.compare("norms", &Tensor::from_vec(norms.to_vec(), &[norms.len()]).unwrap());
    }

    /// The case's adapter over a frozen weight, with its mask if it has one and its norms recomputed.
    fn adapter(&self, p: &dyn Fn(&str) -> ParamId, weight: &Weight, dora: bool, embedding: bool) -> Lora {
        let Weight::Frozen(w) = weight else { unreachable!() };
        let squares = if embedding { w.column_squares() } else { w.row_squares() };
        let dora =
            dora.then(|| Dora { magnitude: p("m"), norm: RowNorm::Recomputed { squares: squares.into() } });
        let dropout = match self.case["params"]["dropout"].as_f64() {
            Some(rate) if rate > 0.0 => Dropout::Mask(self.floats("mask")),
            _ => Dropout::None,
        };
        Lora { a: p("a"), b: p("b"), scaling: self.param("scale"), dropout, dora }
    }

    fn run(&self) {
        match self.op() {
            "rms_norm" => self.check(&["x", "weight"], |t, p| {
                let x = t.param(p("x"));
                let config = RmsNorm { eps: self.param("eps"), offset: self.param("offset") };
                ops::rms_norm(t, &x, &Weight::Param(p("weight")), config).unwrap()
            }),
            "rope" => self.check(&["x"], |t, p| {
                let (dim, rotary) = (self.size("head_dim"), self.size("rotary"));
                let positions: Arc<[u32]> = self.ints("positions").iter().map(|&p| p as u32).collect();
                let longest = *positions.iter().max().unwrap() as usize;
                let frequencies = RopeTable::default_frequencies(rotary, self.param("theta"));
                let table = RopeTable::new(&frequencies, longest + 1, self.param("scale"));
                let x = t.param(p("x"));
                ops::rope(t, &x, &Arc::new(table), &positions, dim).unwrap()
            }),
            "gated" => self.check(&["gate", "up"], |t, p| {
                let (g, u) = (t.param(p("gate")), t.param(p("up")));
                let activation = match self.case["params"]["activation"].as_str().unwrap() {
                    "silu" => Activation::Silu,
                    "gelu_pytorch_tanh" => Activation::GeluTanh,
                    "gelu" => Activation::Gelu,
                    other => panic!("{other}"),
                };
                ops::gated(t, &g, &u, activation).unwrap()
            }),
            "embedding" => self.check(&["table"], |t, p| {
                let ids: Arc<[u32]> = self.ints("ids").iter().map(|&i| i as u32).collect();
                ops::embedding(
                    t,
                    &ids,
                    &Weight::Param(p("table")),
                    TableAdapter::default(),
                    1.0,
                    None,
                    self.dtype,
                )
                .unwrap()
            }),
            "attention" => self.check(&["q", "k", "v"], |t, p| {
                let ends = self.ints("cu_seqlens");
                let lengths: Vec<usize> = ends.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
                let config = AttentionConfig {
                    heads: self.size("heads"),
                    kv_heads: self.size("kv_heads"),
                    head_dim: self.size("head_dim"),
                    scale: self.param("scale"),
                    window: self.case["params"]["window"].as_u64().map(|w| w as usize),
                    softcap: self.case["params"]["softcap"].as_f64(),
                };
                let [q, k, v] = ["q", "k", "v"].map(|n| t.param(p(n)));
                ops::attention(t, &q, &k, &v, &Documents::from_lengths(&lengths), &config).unwrap()
            }),
            "linear" => {
                let bias = self.case["params"]["bias"].as_bool().unwrap();
                let names: &[&str] = if bias { &["x", "w", "b"] } else { &["x", "w"] };
                self.check(names, |t, p| {
                    let x = t.param(p("x"));
                    let b = bias.then(|| Weight::Param(p("b")));
                    ops::linear(t, &x, &Weight::Param(p("w")), b.as_ref(), None).unwrap()
                })
            }
            "lora_linear" => self.check(&["x", "a", "b"], |t, p| {
                let x = t.param(p("x"));
                let w = Weight::dense(self.floats("w"));
                let bias = self.case["params"]["bias"]
                    .as_bool()
                    .unwrap()
                    .then(|| Weight::dense(self.floats("bias")));
                let lora = self.adapter(p, &w, false, false);
                ops::linear(t, &x, &w, bias.as_ref(), Some(&lora)).unwrap()
            }),
            "dora_linear" => {
                let bias = self.case["params"]["bias"].as_bool().unwrap();
                let names = ["x", "a", "b", "m", "bias"];
                self.check(&names[..4 + bias as usize], |t, p| {
                    let (x, w) = (t.param(p("x")), Weight::dense(self.floats("w")));
                    let lora = self.adapter(p, &w, true, false);
                    self.compare_norms(&ops::row_norms(t.params(), &w, &lora).unwrap());
                    let bias = bias.then(|| Weight::Param(p("bias")));
                    ops::linear(t, &x, &w, bias.as_ref(), Some(&lora)).unwrap()
                })
            }
            "adapted_embedding" => {
                let dora = self.case["params"]["dora"].as_bool().unwrap();
                self.check(&["a", "b", "m"][..2 + dora as usize], |t, p| {
                    let ids: Arc<[u32]> = self.ints("ids").iter().map(|&i| i as u32).collect();
                    let table = Weight::dense(self.floats("table"));
                    let lora = self.adapter(p, &table, dora, true);
                    if dora {
                        self.compare_norms(&ops::column_norms(t.params(), &table, &lora).unwrap());
                    }
                    ops::embedding(
                        t,
                        &ids,
                        &table,
                        (&lora).into(),
                        self.param("embed_scale"),
                        None,
                        self.dtype,
                    )
                    .unwrap()
                })
            }
            "adapted_linear_cross_entropy" => {
                let dora = self.case["params"]["dora"].as_bool().unwrap();
                self.check(&["hidden", "a", "b", "m"][..3 + dora as usize], |t, p| {
                    let targets: Vec<i32> = self.ints("targets").iter().map(|&i| i as i32).collect();
                    let (x, head) = (t.param(p("hidden")), Weight::dense(self.floats("head")));
                    let lora = self.adapter(p, &head, dora, false);
                    let out =
                        ops::linear_cross_entropy(t, &x, &head, (&lora).into(), &targets, Logits::default())
                            .unwrap();
                    assert_eq!(out.tokens, self.size("trained"));
                    out.loss
                })
            }
            "linear_cross_entropy" => self.check(&["hidden", "head"], |t, p| {
                let ids: Vec<i32> = self.ints("targets").iter().map(|&i| i as i32).collect();
                let smoothing = self.case["params"]["smoothing"].as_f64().unwrap_or(0.0);
                let targets = ops::Targets { ids: &ids, smoothing };
                let x = t.param(p("hidden"));
                let softcap = self.case["params"]["softcap"].as_f64();
                let (head, logits) =
                    (Weight::Param(p("head")), Logits { scale: self.param("scale"), softcap });
                let out = ops::linear_cross_entropy(t, &x, &head, TableAdapter::default(), targets, logits)
                    .unwrap();
                assert_eq!(out.tokens, self.size("trained"));
                out.loss
            }),
            "adamw" => self.adamw(),
            "clip_grad_norm" => self.norm(),
            other => panic!("no test runs the goldens of {other}"),
        }
    }

    /// Gradients given by a linear function of the parameters: their norm, and themselves clipped.
    fn norm(&self) {
        let n = self.size("tensors");
        let mut params = Params::new();
        let ids: Vec<ParamId> = (0..n)
            .map(|i| {
                let shape = self.floats(&format!("grad{i}")).shape().to_vec();
                params.add(format!("p{i}"), Tensor::zeros(self.dtype, &shape)).unwrap()
            })
            .collect();
        let mut grads = Gradients::new(&params);
        for (i, &id) in ids.iter().enumerate() {
            let mut tape = Tape::new(&params, Mode::Grad);
            let p = tape.param(id);
            tape.backward_with(&p, self.floats(&format!("grad{i}")), &mut grads).unwrap();
        }
        let (norm, expected) = (grads.norm().unwrap(), self.floats("total_norm").item());
        assert!((norm - expected).abs() <= 1e-6 * expected, "{}: {norm} {expected}", self.label());
        let factor = self.param("max_norm") / (norm + 1e-6);
        if factor < 1.0 {
            grads.scale(factor);
        }
        for (i, &id) in ids.iter().enumerate() {
            self.compare(&format!("clipped{i}"), grads.get(id).unwrap());
        }
    }

    /// torch's own f32 steps: ours must make the same roundings.
    fn adamw(&self) {
        if self.dtype == DType::F64 {
            return;
        }
        let mut p = self.floats("param");
        let (mut m, mut v) = (Tensor::zeros(DType::F32, p.shape()), Tensor::zeros(DType::F32, p.shape()));
        for step in 1..=5u64 {
            let options = AdamW {
                lr: self.case["params"]["lr"][step as usize - 1].as_f64().unwrap(),
                beta1: self.param("beta1"),
                beta2: self.param("beta2"),
                eps: self.param("eps"),
                weight_decay: self.param("weight_decay"),
            };
            let g = self.floats(&format!("grad{step}"));
            ops::adamw_step(&mut p, &mut m, &mut v, &g, 1.0, step, &options).unwrap();
            let error = relative(&p, &self.floats(&format!("param{step}")));
            assert!(error < 2e-7, "{} step {step}: off by {error:e}", self.label());
        }
        assert!(
            relative(&m, &self.floats("exp_avg")) < 3e-7 && relative(&v, &self.floats("exp_avg_sq")) < 3e-7
        );
    }
}

#[test]
fn ops_equal_pytorch() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");
    let bytes = std::fs::read(format!("{dir}/ops.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let index: Value = serde_json::from_slice(&std::fs::read(format!("{dir}/ops.json")).unwrap()).unwrap();
    let cases = index["cases"].as_array().unwrap();
    for case in cases {
        for dtype in [DType::F64, DType::F32] {
            Golden { file: &file, case, dtype }.run();
        }
    }
    let ops: HashSet<&str> = cases.iter().map(|c| c["op"].as_str().unwrap()).collect();
    assert_eq!(ops.len(), 13, "{ops:?}");
}
