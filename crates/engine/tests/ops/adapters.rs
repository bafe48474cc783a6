//! What is claimed of adapters and noise beyond their gradients.

use std::sync::Arc;

use loratune_engine::ops::{
    self, Dora, Dropout, Logits, Lora, RowNorm, TableAdapter, TrainedRows, column_norms, row_norms,
};
use loratune_engine::rng::Key;
use loratune_engine::{DType, Gradients, Mode, ParamId, Params, Tape, Tensor, Var, Weight};

use crate::harness::relative;

fn numbers(name: &str, n: usize) -> Vec<f64> {
    (0..n as u64).map(|i| half::bf16::from_f64(Key::new(2).named(name).normal(i) * 0.6).to_f64()).collect()
}

fn tensor(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    Tensor::from_vec(numbers(name, shape.iter().product()), shape).unwrap().to_dtype(dtype)
}

/// An adapter with a magnitude over a frozen weight, and its parameters. `shape` is `[out, in]` for the adapter.
struct Adapted {
    params: Params,
    lora: Lora,
    weight: Weight,
    dtype: DType,
    x: ParamId,
}

const SCALING: f64 = 1.5;

impl Adapted {
    /// `embedding` turns the weight into a table `[in, out]`.
    fn new([n, cols, out, r]: [usize; 4], dtype: DType, embedding: bool) -> Adapted {
        let mut params = Params::new();
        let compute = dtype.compute();
        let mut add = |name: &str, shape: &[usize]| params.add(name, tensor(name, shape, compute)).unwrap();
        let (x, a, b) = (add("x", &[n, cols]), add("a", &[r, cols]), add("b", &[out, r]));
        let norm = RowNorm::Fixed(Arc::from([]));
        let dora = Some(Dora { magnitude: add("m", &[out]), norm });
        let weight = tensor("w", &if embedding { [cols, out] } else { [out, cols] }, dtype);
        let lora = Lora { a, b, scaling: SCALING, dropout: Dropout::None, dora };
        Adapted { params, lora, weight: Weight::dense(weight), dtype, x }
    }

    fn magnitude(&self) -> ParamId {
        self.lora.dora.as_ref().unwrap().magnitude
    }

    fn with_norm(&self, norm: RowNorm) -> Lora {
        Lora { dora: Some(Dora { magnitude: self.magnitude(), norm }), ..self.lora.clone() }
    }

    fn plain(&self) -> Lora {
        Lora { dora: None, ..self.lora.clone() }
    }

    /// Norms from the present factors, for a linear layer's weight.
    fn recomputed(&self) -> RowNorm {
        let Weight::Frozen(w) = &self.weight else { unreachable!() };
        RowNorm::Recomputed { squares: w.row_squares().into() }
    }

    /// Output and gradients of all parameters (0 where none arrived).
    fn run(&self, mode: Mode, op: impl Fn(&mut Tape<'_>, &Var) -> Var) -> (Tensor, Vec<Tensor>) {
        let mut tape = Tape::new(&self.params, mode);
        let x = tape.param(self.x);
        let x = ops::cast(&mut tape, &x, self.dtype);
        let y = op(&mut tape, &x);
        let mut grads = Gradients::new(&self.params);
        let dy = tensor("dy", y.value().shape(), y.value().dtype());
        tape.backward_with(&y, dy, &mut grads).unwrap();
        let of = |id| grads.get(id).cloned().unwrap_or_else(|| Tensor::zeros(DType::F64, &[1]));
        (y.value().clone(), self.params.ids().map(of).collect())
    }

    fn linear(&self, lora: &Lora) -> (Tensor, Vec<Tensor>) {
        self.run(Mode::Grad, |t, x| ops::linear(t, x, &self.weight, None, Some(lora)).unwrap())
    }
}

fn assert_same_bits(a: &(Tensor, Vec<Tensor>), b: &(Tensor, Vec<Tensor>), what: &str) {
    assert_eq!(a.0.to_f64_vec(), b.0.to_f64_vec(), "{what}: output");
    for (i, (a, b)) in a.1.iter().zip(&b.1).enumerate() {
        assert_eq!(a.to_f64_vec(), b.to_f64_vec(), "{what}: gradient {i}");
    }
}

/// ‖(W + s·B·A)ⱼ‖ with the sum made whole, in f64; w(j, i) is W's element.
fn dense_norms(s: &Adapted, out: usize, cols: usize, w: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let [a, b] = [s.lora.a, s.lora.b].map(|id| s.params.value(id).to_f64_vec());
    let r = b.len() / out;
    let element =
        |j: usize, i: usize| w(j, i) + SCALING * (0..r).map(|k| b[j * r + k] * a[k * cols + i]).sum::<f64>();
    (0..out).map(|j| (0..cols).map(|i| element(j, i).powi(2)).sum::<f64>().sqrt()).collect()
}

#[test]
fn norms_by_the_identity_equal_those_of_the_dense_sum() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6), (DType::BF16, 1e-6)] {
        for shape in [[1, 1, 1, 1], [1, 17, 1105, 3], [1, 1031, 6, 7], [1, 3, 5, 9]] {
            let [_, cols, out, _] = shape;
            for embedding in [false, true] {
                let s = Adapted::new(shape, dtype, embedding);
                let w = tensor("w", &[out * cols], DType::F64).to_f64_vec();
                let (norms, dense) = match embedding {
                    false => (
                        row_norms(&s.params, &s.weight, &s.plain()),
                        dense_norms(&s, out, cols, |j, i| w[j * cols + i]),
                    ),
                    true => (
                        column_norms(&s.params, &s.weight, &s.plain()),
                        dense_norms(&s, out, cols, |j, i| w[i * out + j]),
                    ),
                };
                for (j, (ours, dense)) in norms.unwrap().iter().zip(&dense).enumerate() {
                    assert!(
                        (ours - dense).abs() <= tolerance * dense,
                        "{shape:?} {dtype} {j}: {ours} {dense}"
                    );
                }
            }
        }
    }
}

#[test]
fn known_squares_are_not_computed_again() {
    let s = Adapted::new([1, 3, 5, 2], DType::F64, false);
    let Weight::Frozen(w) = &s.weight else { unreachable!() };
    let squares: Arc<[f64]> = w.row_squares().iter().map(|x| x + 2.0).collect();
    let without = row_norms(&s.params, &s.weight, &s.plain()).unwrap();
    let with = row_norms(&s.params, &s.weight, &s.with_norm(RowNorm::Recomputed { squares })).unwrap();
    for (a, b) in without.iter().zip(&with) {
        assert!((a * a + 2.0 - b * b).abs() < 1e-12);
    }
}

#[test]
fn present_norms_give_what_the_same_fixed_norms_give() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let mut s = Adapted::new([9, 17, 1105, 3], dtype, false);
        let fixed = RowNorm::Fixed(row_norms(&s.params, &s.weight, &s.plain()).unwrap().into());
        let keep =
            numbers("keep", 9 * 17).iter().map(|&x| if x > 0.2 { 0.0 } else { 2.0 }).collect::<Vec<f64>>();
        for dropout in [Dropout::None, Dropout::Mask(Tensor::from_vec(keep.clone(), &[9, 17]).unwrap())] {
            s.lora.dropout = dropout;
            let [fixed, present] = [fixed.clone(), s.recomputed()].map(|norm| s.linear(&s.with_norm(norm)));
            assert_same_bits(&fixed, &present, "linear");
            let targets: Vec<i32> = (0..9).map(|i| if i == 4 { -100 } else { i * 100 }).collect();
            let head = |norm| {
                let lora = s.with_norm(norm);
                s.run(Mode::Grad, |t, x| {
                    ops::linear_cross_entropy(t, x, &s.weight, (&lora).into(), &targets, Logits::default())
                        .unwrap()
                        .loss
                })
            };
            let norms = row_norms(&s.params, &s.weight, &s.plain()).unwrap();
            assert_same_bits(&head(RowNorm::Fixed(norms.into())), &head(s.recomputed()), "head");
        }
        let e = Adapted::new([1, 1031, 6, 4], dtype, true);
        let Weight::Frozen(w) = &e.weight else { unreachable!() };
        let norms = column_norms(&e.params, &e.weight, &e.plain()).unwrap();
        let [fixed, present] =
            [RowNorm::Fixed(norms.into()), RowNorm::Recomputed { squares: w.column_squares().into() }].map(
                |norm| {
                    let lora = e.with_norm(norm);
                    let ids: Arc<[u32]> = Arc::from([1030u32, 0, 513, 0]);
                    e.run(Mode::Grad, |t, _| {
                        ops::embedding(t, &ids, &e.weight, (&lora).into(), 2.0, None, dtype).unwrap()
                    })
                },
            );
        assert_same_bits(&fixed, &present, "embedding");
    }
}

#[test]
fn magnitudes_that_start_as_the_norms_change_nothing() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let mut s = Adapted::new([9, 17, 1105, 3], dtype, false);
        let norms = row_norms(&s.params, &s.weight, &s.plain()).unwrap();
        let m = s.magnitude();
        s.params.set(m, Tensor::from_vec(norms, &[1105]).unwrap()).unwrap();
        let (lora, dora) = (s.linear(&s.plain()), s.linear(&s.with_norm(s.recomputed())));
        assert_eq!(lora.0.to_f64_vec(), dora.0.to_f64_vec(), "{dtype}");
        for i in [s.x, s.lora.a, s.lora.b] {
            assert_eq!(lora.1[i.index()].to_f64_vec(), dora.1[i.index()].to_f64_vec(), "{dtype}");
        }
    }
}

#[test]
fn a_magnitude_of_zero_still_gets_its_gradient() {
    // dm = Σ dy∘u / norm does not depend on m.
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let mut s = Adapted::new([9, 5, 7, 3], dtype, false);
        let m = s.magnitude();
        s.params.set(m, Tensor::from_vec(vec![1.0; 7], &[7]).unwrap()).unwrap();
        let expected = s.linear(&s.with_norm(s.recomputed())).1;
        s.params.set(m, Tensor::from_vec(vec![1.0, 0.0, 1e-30, 1.0, -2.0, 3.0, 1.0], &[7]).unwrap()).unwrap();
        let got = s.linear(&s.with_norm(s.recomputed())).1;
        let tolerance = if dtype == DType::BF16 { 1e-2 } else { 1e-6 };
        assert!(relative(&got[m.index()], &expected[m.index()]) < tolerance, "{dtype}");
    }
}

#[test]
fn a_row_of_zeros_is_left_unscaled() {
    let s = Adapted::new([4, 2, 3, 1], DType::F64, false);
    let mut params = s.params.clone();
    params.set(s.lora.b, Tensor::from_vec(vec![0.5, 0.0, -0.5], &[3, 1]).unwrap()).unwrap();
    let weight = Weight::dense(Tensor::from_vec(vec![1.0, 2.0, 0.0, 0.0, 3.0, 4.0], &[3, 2]).unwrap());
    let s = Adapted { params, weight, ..s };
    let (lora, dora) = (s.linear(&s.plain()), s.linear(&s.with_norm(s.recomputed())));
    let middle = |t: &Tensor| t.to_f64_vec().into_iter().skip(1).step_by(3).collect::<Vec<f64>>();
    assert_eq!(middle(&dora.0), [0.0; 4]);
    assert!(dora.1.iter().all(|g| g.is_finite()));
    assert_eq!(dora.1[s.magnitude().index()].to_f64_vec()[1], 0.0);
    // B's row can leave 0 as LoRA's can.
    let db = |g: &[Tensor]| g[s.lora.b.index()].to_f64_vec()[1];
    assert!(db(&dora.1) == db(&lora.1) && db(&dora.1) != 0.0);
}

#[test]
fn a_head_with_an_adapter_equals_the_linear_layer_and_the_loss_one_after_the_other() {
    // More rows than a chunk; and a random mask drawn once for all of them.
    let (n, cols, out) = (1100, 5, 13);
    let mut s = Adapted::new([n, cols, out, 3], DType::F64, false);
    let identity = (0..out * out).map(|i| if i % (out + 1) == 0 { 1.0 } else { 0.0 }).collect::<Vec<f64>>();
    let identity = Weight::dense(Tensor::from_vec(identity, &[out, out]).unwrap());
    let mask = Tensor::from_vec(
        numbers("keep", n * cols).iter().map(|&x| if x > 0.3 { 0.0 } else { 1.5 }).collect::<Vec<f64>>(),
        &[n, cols],
    );
    let some: Vec<i32> = (0..n as i32).map(|i| if i % 5 == 1 { -100 } else { i % 13 }).collect();
    let every: Vec<i32> = (0..n as i32).map(|i| i % 13).collect();
    for (dropout, targets) in
        [(Dropout::None, &some), (Dropout::Mask(mask.unwrap()), &some), (Dropout::Random(0.3), &every)]
    {
        s.lora.dropout = dropout;
        for lora in [s.plain(), s.with_norm(s.recomputed())] {
            let mode = Mode::Train(Key::new(8));
            let fused = s.run(mode, |t, x| {
                ops::linear_cross_entropy(t, x, &s.weight, (&lora).into(), targets, Logits::default())
                    .unwrap()
                    .loss
            });
            let apart = s.run(mode, |t, x| {
                let y = ops::linear(t, x, &s.weight, None, Some(&lora)).unwrap();
                ops::linear_cross_entropy(
                    t,
                    &y,
                    &identity,
                    TableAdapter::default(),
                    targets,
                    Logits::default(),
                )
                .unwrap()
                .loss
            });
            assert!(relative(&fused.0, &apart.0) < 1e-12);
            for (i, (a, b)) in fused.1.iter().zip(&apart.1).enumerate() {
                assert!(relative(a, b) < 1e-10, "{lora:?}: gradient {i}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let s = Adapted::new([4, 3, 5, 2], DType::F32, false);
    let mut params = s.params.clone();
    let w = params.add("w", tensor("w", &[5, 3], DType::F32)).unwrap();
    let short: Arc<[f64]> = Arc::from([1.0; 4]);
    let mut wrong = s.with_norm(s.recomputed());
    wrong.dora.as_mut().unwrap().magnitude = s.lora.b;
    let mut tape = Tape::new(&params, Mode::Grad);
    let x = tape.param(s.x);
    let mut error = |weight: &Weight, lora: &Lora| {
        ops::linear(&mut tape, &x, weight, None, Some(lora)).unwrap_err().to_string()
    };
    assert!(error(&Weight::Param(w), &s.with_norm(s.recomputed())).contains("this one is trained"));
    assert!(
        error(&s.weight, &s.with_norm(RowNorm::Fixed(short.clone())))
            .contains("norms of the rows: expected [5], got [4]")
    );
    let squares = RowNorm::Recomputed { squares: short };
    assert!(error(&s.weight, &s.with_norm(squares)).contains("squares of W's rows: expected [5], got [4]"));
    assert!(error(&s.weight, &wrong).contains("magnitude [out]: expected [5], got [5, 2]"));
    let noise = ops::uniform_noise(&mut tape, &x, &[1.0; 3]).unwrap_err().to_string();
    assert!(noise.contains("magnitudes [tokens]: expected [4], got [3]"), "{noise}");
}

#[test]
fn noise_is_the_uniform_number_of_its_element_in_training_only() {
    let (n, hidden) = (131, 127);
    let magnitudes: Vec<f64> = (0..n).map(|t| if t == 3 { 0.0 } else { 0.1 + t as f64 * 0.01 }).collect();
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let params = Params::new();
        let x = tensor("x", &[n, hidden], dtype);
        let noisy = |mode, before: bool| {
            let mut tape = Tape::new(&params, mode);
            let mut v = tape.constant(x.clone());
            if before {
                // Takes no key.
                v = ops::uniform_noise(&mut tape, &v, &vec![0.0; n]).unwrap();
            }
            ops::uniform_noise(&mut tape, &v, &magnitudes).unwrap().value().to_f64_vec()
        };
        let key = Key::new(4).with(1);
        let expected: Vec<f64> = x
            .to_f64_vec()
            .iter()
            .enumerate()
            .map(|(i, &x)| {
                let noise = (2.0 * key.uniform(i as u64) - 1.0) * magnitudes[i / hidden];
                match dtype {
                    DType::F64 => x + noise,
                    DType::F32 => (x as f32 + noise as f32) as f64,
                    DType::BF16 => half::bf16::from_f32(x as f32 + noise as f32).to_f64(),
                }
            })
            .collect();
        assert!(noisy(Mode::Train(Key::new(4)), false) == expected, "{dtype}");
        assert!(noisy(Mode::Train(Key::new(4)), true) == expected, "{dtype}");
        assert!(noisy(Mode::Grad, false) == x.to_f64_vec() && noisy(Mode::Infer, false) == x.to_f64_vec());
    }
}

#[test]
fn norms_of_a_weight_that_cancels_its_adapter_are_numbers() {
    for dtype in [DType::F64, DType::F32] {
        let mut s = Adapted::new([1, 33, 65, 4], dtype, false);
        let [a, b] = [s.lora.a, s.lora.b].map(|id| s.params.value(id).clone());
        s.weight = Weight::dense(b.matmul(&a, -SCALING).unwrap());
        let norms = row_norms(&s.params, &s.weight, &s.plain()).unwrap();
        // Half of the digits of a sum of squares are those of its root.
        assert!(norms.iter().all(|&n| n < 1e-2), "{norms:?}");
    }
}

/// Loss, and what is trained: rows of a table, or a whole one in which they stand.
struct Table {
    params: Params,
    /// `[9, 5]`, its rows 7, 0 and 4 the trained ones.
    table: Weight,
    rows: Option<TrainedRows>,
}

const TRAINED: [u32; 3] = [7, 0, 4];

impl Table {
    fn new(dtype: DType, whole: bool) -> Table {
        let mut params = Params::new();
        let (frozen, rows) = (tensor("table", &[9, 5], dtype), tensor("rows", &[3, 5], dtype));
        if !whole {
            let id = params.add("rows", rows.to_dtype(dtype.compute())).unwrap();
            let rows = Some(TrainedRows::new(TRAINED, id).unwrap());
            return Table { params, table: Weight::dense(frozen), rows };
        }
        let (mut data, rows) = (frozen.to_f64_vec(), rows.to_f64_vec());
        for (id, row) in TRAINED.iter().zip(rows.chunks(5)) {
            data[*id as usize * 5..][..5].copy_from_slice(row);
        }
        let table = Tensor::from_vec(data, &[9, 5]).unwrap().to_dtype(dtype.compute());
        let table = Weight::Param(params.add("table", table).unwrap());
        Table { params, table, rows: None }
    }

    fn run(&self, dtype: DType) -> (Tensor, Tensor) {
        let mut tape = Tape::new(&self.params, Mode::Grad);
        let adapter = TableAdapter { lora: None, rows: self.rows.as_ref() };
        let ids: Arc<[u32]> = Arc::from([7u32, 3, 0, 7, 8, 4]);
        let y = ops::embedding(&mut tape, &ids, &self.table, adapter, 1.5, Some(0), dtype).unwrap();
        let targets = [0, 7, -100, 4, 8, 7];
        let loss =
            ops::linear_cross_entropy(&mut tape, &y, &self.table, adapter, &targets, Logits::default())
                .unwrap()
                .loss;
        let mut grads = Gradients::new(&self.params);
        tape.backward(&loss, 1.0, &mut grads).unwrap();
        let only = self.params.ids().next().unwrap();
        (loss.value().clone(), grads.get(only).unwrap().clone())
    }
}

#[test]
fn trained_rows_learn_as_those_of_a_trained_table() {
    // Beside a frozen bf16 table the gradient of the outputs is rounded to bf16; a trained table is f32.
    for (dtype, tolerance) in [(DType::F64, 1e-13f64), (DType::F32, 1e-6), (DType::BF16, 4e-3)] {
        let (rows, whole) = (Table::new(dtype, false).run(dtype), Table::new(dtype, true).run(dtype));
        assert!(relative(&rows.0, &whole.0) <= tolerance.min(1e-6), "{dtype}: loss");
        let of_table = whole.1.select_rows(&TRAINED.map(|id| id as usize)).unwrap();
        assert_eq!(rows.1.shape(), [3, 5]);
        let error = relative(&rows.1, &of_table);
        assert!(error <= tolerance, "{dtype}: the gradient is off by {error:e}");
    }
}

#[test]
fn what_is_behind_trained_rows_does_not_matter() {
    // Rows beyond the tokenizer's hold anything.
    let s = Table::new(DType::F32, false);
    let Weight::Frozen(frozen) = &s.table else { unreachable!() };
    let loratune_engine::FrozenWeight::Dense(frozen) = &**frozen;
    let mut data = frozen.to_f64_vec();
    for id in TRAINED {
        data[id as usize * 5..][..5].fill(3.0e38);
    }
    let broken = Table {
        params: s.params.clone(),
        table: Weight::dense(Tensor::from_vec(data, &[9, 5]).unwrap().to_dtype(DType::F32)),
        rows: s.rows.clone(),
    };
    let (a, b) = (s.run(DType::F32), broken.run(DType::F32));
    assert_eq!(a.0.to_f64_vec(), b.0.to_f64_vec());
    assert_eq!(a.1.to_f64_vec(), b.1.to_f64_vec());
}

#[test]
fn outputs_of_a_head_with_trained_rows_equal_those_of_the_whole_head() {
    let (rows, whole) = (Table::new(DType::F64, false), Table::new(DType::F64, true));
    let x = tensor("x", &[4, 5], DType::F64);
    let of = |t: &Table, lora: Option<&Lora>| {
        let adapter = TableAdapter { lora, rows: t.rows.as_ref() };
        ops::head_outputs(&t.params, &x, &t.table, adapter).unwrap()
    };
    assert!(relative(&of(&rows, None), &of(&whole, None)) < 1e-14);
    // With LoRA beside the rows, what LoRA adds is the same.
    let with_lora = |mut t: Table| {
        let a = t.params.add("a", tensor("a", &[2, 5], DType::F64)).unwrap();
        let b = t.params.add("b", tensor("b", &[9, 2], DType::F64)).unwrap();
        let lora = Lora { a, b, scaling: SCALING, dropout: Dropout::Random(0.5), dora: None };
        of(&t, Some(&lora))
    };
    assert!(relative(&with_lora(rows), &with_lora(whole)) < 1e-14);
}

#[test]
fn trained_rows_that_cannot_be_are_refused() {
    let mut params = Params::new();
    let id = params.add("rows", Tensor::zeros(DType::F32, &[2, 5])).unwrap();
    let wide = params.add("wide", Tensor::zeros(DType::F32, &[2, 6])).unwrap();
    let table = params.add("table", Tensor::zeros(DType::F32, &[9, 5])).unwrap();
    assert!(TrainedRows::new([], id).unwrap_err().to_string().contains("none"));
    assert!(TrainedRows::new([3, 3], id).unwrap_err().to_string().contains("row 3 stands twice"));
    let frozen = Weight::dense(Tensor::zeros(DType::F32, &[9, 5]));
    let refused = |rows: TrainedRows, table: &Weight, words: &str| {
        let mut tape = Tape::new(&params, Mode::Grad);
        let ids: Arc<[u32]> = Arc::from([1u32, 2]);
        let embedding = ops::embedding(&mut tape, &ids, table, (&rows).into(), 1.0, None, DType::F32);
        let x = tape.constant(Tensor::zeros(DType::F32, &[2, 5]));
        let loss =
            ops::linear_cross_entropy(&mut tape, &x, table, (&rows).into(), &[1, 2], Logits::default());
        for error in [embedding.unwrap_err(), loss.unwrap_err()] {
            assert!(error.to_string().contains(words), "{error}");
        }
    };
    refused(TrainedRows::new([3, 9], id).unwrap(), &frozen, "index 9 is out of range");
    refused(TrainedRows::new([3, 4], wide).unwrap(), &frozen, "trained rows");
    refused(TrainedRows::new([3, 4], id).unwrap(), &Weight::Param(table), "'table' is trained whole");
}
