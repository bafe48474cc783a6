//! Cases of adapters on linear layers, the embedding and the head, and of noise.

use std::sync::Arc;

use loratune_engine::ops::{self, Dora, Dropout, Logits, Lora, RowNorm, TableAdapter, TrainedRows};
use loratune_engine::{Error, Tape, Var, Weight};

use crate::cases::{case, frozen, logits, suffix};
use crate::harness::{Case, Inputs};

/// Norms that are not those of any weight: the gradient is that of a fixed norm, whatever the norm is.
fn made_up_norms(features: usize) -> RowNorm {
    RowNorm::Fixed((0..features).map(|j| 0.5 + (j % 7) as f64 * 0.3).collect())
}

/// The adapter whose A, B (and m, with a norm) are the inputs from `first` on.
fn adapter(i: &Inputs, first: usize, dropout: &Dropout, norm: Option<RowNorm>) -> Lora {
    Lora {
        a: i.param(first),
        b: i.param(first + 1),
        scaling: 0.75,
        dropout: dropout.clone(),
        dora: norm.map(|norm| Dora { magnitude: i.param(first + 2), norm }),
    }
}

/// Cases that the central differences check too: with DoRA, of fixed norms.
pub fn all() -> Vec<Case> {
    [
        dora(false),
        dora_beside_a_residual(),
        lora_on_embedding(),
        dora_on_embedding(false),
        lora_on_head(),
        dora_on_head(false),
        rows_of_embedding(),
        rows_of_head(),
        rows_of_a_shared_table(),
        noise(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The same with norms from the present A and B, which central differences would see change.
pub fn with_present_norms() -> Vec<Case> {
    [dora(true), dora_on_embedding(true), dora_on_head(true)].into_iter().flatten().collect()
}

fn row_norm(present: bool, w: &Weight, rows: usize) -> RowNorm {
    match w {
        Weight::Frozen(w) if present => RowNorm::Recomputed { squares: w.row_squares().into() },
        _ => made_up_norms(rows),
    }
}

fn dora(present: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    // 65 tokens are more than one block of dm's sums, 1105 rows more than two blocks of decoded weights.
    for (n, cols, out, r) in [(1, 1, 1, 1), (5, 3, 7, 4), (33, 17, 1105, 3), (65, 3, 34, 2)] {
        for (bias, dropout) in [
            (0, Dropout::None),
            (1, Dropout::None),
            (2, Dropout::None),
            (0, Dropout::Random(0.3)),
            (2, Dropout::Random(0.3)),
        ] {
            let inputs =
                [("x", &[n, cols][..]), ("a", &[r, cols]), ("b", &[out, r]), ("m", &[out]), ("bias", &[out])];
            let inputs = &inputs[..if bias == 2 { 5 } else { 4 }];
            let kind = ["no", "frozen", "trained"][bias];
            let name =
                format!("linear {n}x{cols} -> {out}, dora rank {r}, {kind} bias, {dropout:?}, {present}");
            cases.push(case(name, inputs, move |t, i| {
                let (x, w) = (i.activation(t, 0), frozen(out, cols, i));
                let bias = match bias {
                    0 => None,
                    1 => Some(frozen_vector(out, i)),
                    _ => Some(Weight::Param(i.param(4))),
                };
                let lora = adapter(i, 1, &dropout, Some(row_norm(present, &w, out)));
                ops::linear(t, &x, &w, bias.as_ref(), Some(&lora))
            }));
        }
    }
    cases
}

/// The gradient that scales its own in place is also another value's.
fn dora_beside_a_residual() -> Vec<Case> {
    let inputs = [("x", &[5, 3][..]), ("a", &[2, 3]), ("b", &[3, 2]), ("m", &[3])];
    vec![case("dora and a residual", &inputs, |t, i| {
        let (x, w) = (i.activation(t, 0), frozen(3, 3, i));
        let y = ops::linear(t, &x, &w, None, Some(&adapter(i, 1, &Dropout::None, Some(made_up_norms(3)))))?;
        ops::add(t, &x, &y)
    })]
}

fn frozen_vector(n: usize, i: &Inputs) -> Weight {
    let Weight::Frozen(w) = frozen(1, n, i) else { unreachable!() };
    let loratune_engine::FrozenWeight::Dense(t) = &*w;
    Weight::dense(t.reshape(&[n]).unwrap())
}

const IDS: [u32; 6] = [3, 0, 6, 3, 3, 5];

fn lora_on_embedding() -> Vec<Case> {
    let mut cases = vec![case("embedding, scaled", &[("table", &[7, 3])], |t, i| {
        ops::embedding(
            t,
            &Arc::from(IDS),
            &Weight::Param(i.param(0)),
            TableAdapter::default(),
            1.75,
            None,
            i.dtype(),
        )
    })];
    for (r, scale) in [(1, 1.0), (4, 1.75)] {
        // Dropout is not for embeddings, and has to be ignored.
        let build = move |t: &mut Tape<'_>, i: &Inputs, table: &Weight| -> Result<Var, Error> {
            let lora = adapter(i, 0, &Dropout::Random(0.3), None);
            ops::embedding(t, &Arc::from(IDS), table, (&lora).into(), scale, None, i.dtype())
        };
        let name = format!("embedding, lora rank {r}, scale {scale}");
        cases.push(case(&name, &[("a", &[r, 7]), ("b", &[3, r])], move |t, i| build(t, i, &frozen(7, 3, i))));
        let inputs = [("a", &[r, 7][..]), ("b", &[3, r]), ("table", &[7, 3])];
        let name = format!("{name}, table trained");
        cases.push(case(name, &inputs, move |t, i| build(t, i, &Weight::Param(i.param(2)))));
    }
    cases
}

fn dora_on_embedding(present: bool) -> Vec<Case> {
    [(7, 3, 1, 1.0), (1031, 5, 4, 1.75)]
        .map(|(vocabulary, hidden, r, scale)| {
            let inputs = [("a", &[r, vocabulary][..]), ("b", &[hidden, r]), ("m", &[hidden])];
            let name = format!("embedding {vocabulary}x{hidden}, dora rank {r}, {present}");
            case(name, &inputs, move |t, i| {
                let table = frozen(vocabulary, hidden, i);
                let norm = match &table {
                    Weight::Frozen(w) if present => {
                        RowNorm::Recomputed { squares: w.column_squares().into() }
                    }
                    _ => made_up_norms(hidden),
                };
                let lora = adapter(i, 0, &Dropout::None, Some(norm));
                ops::embedding(t, &Arc::from(IDS), &table, (&lora).into(), scale, None, i.dtype())
            })
        })
        .into()
}

fn rows(i: &Inputs, input: usize, ids: &[u32]) -> TrainedRows {
    TrainedRows::new(ids, i.param(input)).expect("ids that differ")
}

fn rows_of_embedding() -> Vec<Case> {
    // One that comes three times, one that never does, one that is the padding.
    let table: [(&'static [u32], f64, Option<u32>); 3] =
        [(&[3], 1.0, None), (&[5, 1, 3], 1.75, None), (&[0, 3, 6], 1.0, Some(3))];
    table
        .map(|(ids, scale, padding)| {
            let name = format!("embedding, trained rows {ids:?}, scale {scale}, padding {padding:?}");
            case(name, &[("rows", &[ids.len(), 3])], move |t, i| {
                let rows = rows(i, 0, ids);
                let y = ops::embedding(
                    t,
                    &Arc::from(IDS),
                    &frozen(7, 3, i),
                    (&rows).into(),
                    scale,
                    padding,
                    i.dtype(),
                )?;
                // PyTorch's padding row has a value and no gradient; central differences don't know that.
                match padding {
                    None => Ok(y),
                    Some(_) => without_rows(t, &y, &[0, 3, 4]),
                }
            })
        })
        .into()
}

/// The sum of what is left of y `[6, 3]` when some rows are not looked at.
fn without_rows(t: &mut Tape<'_>, y: &Var, left_out: &[usize]) -> Result<Var, Error> {
    let targets: Vec<i32> =
        (0..6).map(|i| if left_out.contains(&i) { -100 } else { (i % 3) as i32 }).collect();
    let identity = loratune_engine::Tensor::from_vec(vec![1.0f64, 0., 0., 0., 1., 0., 0., 0., 1.], &[3, 3])?;
    let identity = Weight::dense(identity.to_dtype(y.value().dtype()).to_device(y.value().device())?);
    Ok(ops::linear_cross_entropy(t, y, &identity, TableAdapter::default(), &targets, Logits::default())?.loss)
}

fn rows_of_head() -> Vec<Case> {
    let mut cases = Vec::new();
    for ((n, d, v, targets), ids) in heads().into_iter().zip([&[1u32][..], &[10, 2, 0], &[2, 0]]) {
        for (dropout, logits) in head_variants() {
            for lora in [false, true] {
                let (targets, dropout) = (targets.clone(), dropout.clone());
                let on = if lora { format!("lora {dropout:?}") } else { "no lora".into() };
                let name = format!(
                    "linear_cross_entropy {n}x{d} over {v}, trained rows {ids:?}, {on}{}",
                    suffix(logits)
                );
                let inputs = [("x", &[n, d][..]), ("rows", &[ids.len(), d]), ("a", &[2, d]), ("b", &[v, 2])];
                cases.push(case(name, &inputs[..if lora { 4 } else { 2 }], move |t, i| {
                    let (x, head, rows) = (i.activation(t, 0), frozen(v, d, i), rows(i, 1, ids));
                    let lora = lora.then(|| adapter(i, 2, &dropout, None));
                    let adapter = TableAdapter { lora: lora.as_ref(), rows: Some(&rows) };
                    Ok(ops::linear_cross_entropy(t, &x, &head, adapter, &targets, logits)?.loss)
                }));
            }
        }
    }
    cases
}

/// A tied head: both sides' gradients meet in the same rows.
fn rows_of_a_shared_table() -> Vec<Case> {
    vec![case("trained rows of a table that is embedding and head", &[("rows", &[3, 3])], |t, i| {
        let (table, rows) = (frozen(7, 3, i), rows(i, 0, &[6, 3, 1]));
        let y = ops::embedding(t, &Arc::from(IDS), &table, (&rows).into(), 1.5, None, i.dtype())?;
        let targets = [0, 6, 1, -100, 3, 2];
        Ok(ops::linear_cross_entropy(t, &y, &table, (&rows).into(), &targets, Logits::default())?.loss)
    })]
}

/// Tokens, hidden, vocabulary and targets; the last has more trained rows than a chunk of 1024.
fn heads() -> [(usize, usize, usize, Vec<i32>); 3] {
    [
        (1, 1, 2, vec![1]),
        (5, 3, 11, vec![-100, 3, 10, -100, 0]),
        (1100, 2, 3, (0..1100).map(|i| if i % 37 == 5 { -100 } else { i % 3 }).collect()),
    ]
}

fn head_variants() -> [(Dropout, Logits); 3] {
    let [plain, .., both] = logits();
    [(Dropout::None, plain), (Dropout::Random(0.3), plain), (Dropout::Random(0.3), both)]
}

fn lora_on_head() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, d, v, targets) in heads() {
        for (dropout, logits) in head_variants() {
            let suffix = suffix(logits);
            let (name, last) = (
                format!("linear_cross_entropy {n}x{d} over {v}, lora, {dropout:?}{suffix}"),
                targets.clone(),
            );
            let build = move |t: &mut Tape<'_>, i: &Inputs, head: &Weight| -> Result<Var, Error> {
                let x = i.activation(t, 0);
                Ok(ops::linear_cross_entropy(
                    t,
                    &x,
                    head,
                    (&adapter(i, 1, &dropout, None)).into(),
                    &last,
                    logits,
                )?
                .loss)
            };
            let inputs = [("x", &[n, d][..]), ("a", &[2, d]), ("b", &[v, 2]), ("head", &[v, d])];
            let trained = build.clone();
            cases.push(case(&name, &inputs[..3], move |t, i| build(t, i, &frozen(v, d, i))));
            let name = format!("{name}, head trained");
            cases.push(case(name, &inputs, move |t, i| trained(t, i, &Weight::Param(i.param(3)))));
        }
    }
    cases
}

fn dora_on_head(present: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, d, v, targets) in heads() {
        for (dropout, logits) in head_variants() {
            let suffix = suffix(logits);
            let name = format!("linear_cross_entropy {n}x{d} over {v}, dora, {dropout:?}, {present}{suffix}");
            let inputs = [("x", &[n, d][..]), ("a", &[2, d]), ("b", &[v, 2]), ("m", &[v])];
            let targets = targets.clone();
            cases.push(case(name, &inputs, move |t, i| {
                let (x, head) = (i.activation(t, 0), frozen(v, d, i));
                let lora = adapter(i, 1, &dropout, Some(row_norm(present, &head, v)));
                Ok(ops::linear_cross_entropy(t, &x, &head, (&lora).into(), &targets, logits)?.loss)
            }));
        }
    }
    cases
}

fn noise() -> Vec<Case> {
    // The last is more than one chunk of 16384 elements, with rows that don't start at a group of four.
    [(1usize, 1usize), (5, 7), (131, 127)]
        .map(|(n, hidden)| {
            case(format!("uniform_noise {n}x{hidden}"), &[("x", &[n, hidden])], move |t, i| {
                let x = i.activation(t, 0);
                let magnitudes: Vec<f64> = (0..n).map(|t| t as f64 * 0.01).collect();
                ops::uniform_noise(t, &x, &magnitudes)
            })
        })
        .into()
}
