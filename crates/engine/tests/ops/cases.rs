//! The table of cases. Odd shapes on purpose: sizes of one, primes, and just past the kernels' blocks.

use std::sync::Arc;

use loratune_engine::ops::{
    self, Activation, AttentionConfig, Documents, Dropout, Logits, Lora, RmsNorm, RopeTable, TableAdapter,
};
use loratune_engine::{Error, Tape, Tensor, Var, Weight};

use crate::harness::{Case, Inputs};

pub fn case(
    name: impl Into<String>,
    inputs: &[(&'static str, &[usize])],
    build: impl Fn(&mut Tape<'_>, &Inputs) -> Result<Var, Error> + Send + Sync + 'static,
) -> Case {
    Case {
        name: name.into(),
        inputs: inputs.iter().map(|(n, s)| (*n, s.to_vec())).collect(),
        build: Box::new(build),
    }
}

pub fn all() -> Vec<Case> {
    let groups = [
        add(),
        cast(),
        rms_norm(),
        rope(),
        attention(),
        gated(),
        embedding(),
        linear(),
        loss(),
        split(),
        shared(),
        crate::adapter_cases::all(),
    ];
    groups.into_iter().flatten().collect()
}

fn add() -> Vec<Case> {
    let inputs = [("a", &[3, 5][..]), ("b", &[3, 5])];
    let both = |t: &mut Tape<'_>, i: &Inputs| (i.activation(t, 0), i.activation(t, 1));
    vec![
        case("add", &inputs, move |t, i| {
            let (a, b) = both(t, i);
            ops::add(t, &a, &b)
        }),
        case("add_scaled", &inputs, move |t, i| {
            let (a, b) = both(t, i);
            ops::add_scaled(t, &a, &b, 0.22)
        }),
        // The gradient that is scaled is also the other operand's.
        case("add_scaled to itself", &inputs[..1], |t, i| {
            let a = i.activation(t, 0);
            ops::add_scaled(t, &a, &a, -0.4)
        }),
    ]
}

fn cast() -> Vec<Case> {
    vec![case("cast", &[("a", &[3, 5])], |t, i| {
        let a = i.activation(t, 0);
        Ok(ops::cast(t, &a, loratune_engine::DType::F64))
    })]
}

fn rms_norm() -> Vec<Case> {
    // Tokens, columns, length of the weight (less than the columns: groups), offset.
    [
        (1, 2, 2, 0.0),
        (3, 7, 7, 0.0),
        (65, 33, 33, 0.0),
        (130, 4, 4, 0.0),
        (5, 17, 17, 1.0),
        (67, 3, 3, 1.0),
        (33, 15, 5, 0.0),
        (7, 34, 2, 1.0),
    ]
    .map(|(n, cols, d, offset)| {
        let name = format!("rms_norm {n}x{cols} in groups of {d}, offset {offset}");
        case(name, &[("x", &[n, cols]), ("w", &[d])], move |t, i| {
            let x = i.activation(t, 0);
            ops::rms_norm(t, &x, &Weight::Param(i.param(1)), RmsNorm { eps: 1e-5, offset })
        })
    })
    .into()
}

fn rope() -> Vec<Case> {
    [(1usize, 1usize, 2usize, 2usize, 1.0), (7, 3, 6, 6, 1.0), (33, 2, 10, 4, 1.0), (17, 3, 7, 4, 1.25)]
        .map(|(n, heads, dim, rotary, scale)| {
            case(
                format!("rope {n} tokens, {heads} heads of {dim}, {rotary} rotated, scale {scale}"),
                &[("x", &[n, heads * dim])],
                {
                    move |t, i| {
                        let frequencies = RopeTable::default_frequencies(rotary, 100.0);
                        let table = Arc::new(RopeTable::new(&frequencies, 50, scale));
                        let positions: Arc<[u32]> = (0..n as u32).map(|p| (p * 7) % 50).collect();
                        let x = i.activation(t, 0);
                        ops::rope(t, &x, &table, &positions, dim)
                    }
                },
            )
        })
        .into()
}

#[allow(clippy::type_complexity)]
fn attention() -> Vec<Case> {
    // Soft caps about as large as the scores, so that the curve matters.
    let table: [(&[usize], usize, usize, usize, Option<usize>, Option<f64>); 10] = [
        (&[1], 1, 1, 1, None, None),
        (&[5], 4, 2, 3, None, None),
        (&[3, 1, 9], 6, 2, 5, None, None),
        (&[70, 2], 3, 1, 4, None, None),
        (&[131], 2, 1, 3, None, None),
        (&[67, 7], 2, 2, 3, Some(5), None),
        (&[150], 1, 1, 2, Some(70), None),
        (&[3, 1, 9], 4, 2, 5, None, Some(0.4)),
        (&[67, 7], 2, 1, 3, Some(5), Some(50.0)),
        (&[150], 1, 1, 2, Some(70), Some(0.7)),
    ];
    table
        .map(|(lengths, heads, kv_heads, head_dim, window, softcap)| {
            let documents = Documents::from_lengths(lengths);
            let n = documents.tokens();
            let scale = (head_dim as f64).powf(-0.5);
            let config = AttentionConfig { heads, kv_heads, head_dim, scale, window, softcap };
            case(
                format!("attention {lengths:?} {config:?}"),
                &[
                    ("q", &[n, heads * head_dim]),
                    ("k", &[n, kv_heads * head_dim]),
                    ("v", &[n, kv_heads * head_dim]),
                ],
                move |t, i| {
                    let [q, k, v] = [0, 1, 2].map(|j| i.activation(t, j));
                    ops::attention(t, &q, &k, &v, &documents, &config)
                },
            )
        })
        .into()
}

fn gated() -> Vec<Case> {
    [Activation::Silu, Activation::GeluTanh, Activation::Gelu]
        .map(|activation| {
            let inputs = [("gate", &[5, 17][..]), ("up", &[5, 17])];
            case(format!("gated, {activation:?}"), &inputs, move |t, i| {
                let (g, u) = (i.activation(t, 0), i.activation(t, 1));
                ops::gated(t, &g, &u, activation)
            })
        })
        .into()
}

fn split() -> Vec<Case> {
    let mut cases = vec![
        // The middle piece gets no gradient.
        case("split_columns, two of three used", &[("x", &[33, 8])], |t, i| {
            let x = i.activation(t, 0);
            let pieces = ops::split_columns(t, &x, &[3, 2, 3])?;
            ops::add_scaled(t, &pieces[0], &pieces[2], 0.5)
        }),
        case("split_columns, one twice", &[("x", &[1, 4])], |t, i| {
            let x = i.activation(t, 0);
            let pieces = ops::split_columns(t, &x, &[1, 3])?;
            ops::gated(t, &pieces[1], &pieces[1], Activation::Silu)
        }),
    ];
    // What is split is also used whole, before or after.
    for before in [false, true] {
        cases.push(case(
            format!("split_columns beside linear, {before}"),
            &[("x", &[33, 6])],
            move |t, i| {
                let x = i.activation(t, 0);
                let w = frozen(3, 6, i);
                let whole = if before { Some(ops::linear(t, &x, &w, None, None)?) } else { None };
                let pieces = ops::split_columns(t, &x, &[3, 3])?;
                let y = ops::gated(t, &pieces[0], &pieces[1], Activation::GeluTanh)?;
                let whole = match whole {
                    Some(whole) => whole,
                    None => ops::linear(t, &x, &w, None, None)?,
                };
                ops::add(t, &y, &whole)
            },
        ));
    }
    cases
}

fn embedding() -> Vec<Case> {
    vec![case("embedding", &[("table", &[7, 3])], |t, i| {
        let ids: Arc<[u32]> = Arc::from([3u32, 0, 6, 3, 3]);
        ops::embedding(t, &ids, &Weight::Param(i.param(0)), TableAdapter::default(), 1.0, None, i.dtype())
    })]
}

/// A frozen matrix, deterministic and representable in bf16.
pub fn frozen(rows: usize, cols: usize, i: &Inputs) -> Weight {
    let data: Vec<f64> = (0..rows * cols).map(|j| ((j * 37 % 19) as f64 - 9.0) / 16.0).collect();
    let weight = Tensor::from_vec(data, &[rows, cols]).unwrap().to_dtype(i.dtype());
    Weight::dense(weight.to_device(i.device()).unwrap())
}

fn linear() -> Vec<Case> {
    let mut cases = Vec::new();
    // 65 rows are more than one block of the bias's sums.
    for (n, cols, out) in [(1, 1, 1), (5, 3, 7), (33, 17, 65), (65, 3, 2)] {
        cases.push(case(
            format!("linear {n}x{cols} -> {out}, all trained"),
            &[("x", &[n, cols]), ("w", &[out, cols]), ("b", &[out])],
            |t, i| {
                let x = i.activation(t, 0);
                let (w, b) = (Weight::Param(i.param(1)), Weight::Param(i.param(2)));
                ops::linear(t, &x, &w, Some(&b), None)
            },
        ));
        // More rows than one block of decoded weights holds.
        let out = out * 17;
        cases.push(case(format!("linear {n}x{cols} -> {out}, frozen"), &[("x", &[n, cols])], move |t, i| {
            let x = i.activation(t, 0);
            ops::linear(t, &x, &frozen(out, cols, i), None, None)
        }));
        for (r, dropout) in [(1, Dropout::None), (4, Dropout::Random(0.3))] {
            cases.push(case(
                format!("linear {n}x{cols} -> {out}, lora rank {r}, {dropout:?}"),
                &[("x", &[n, cols]), ("a", &[r, cols]), ("b", &[out, r])],
                move |t, i| {
                    let x = i.activation(t, 0);
                    let lora = Lora {
                        a: i.param(1),
                        b: i.param(2),
                        scaling: 0.75,
                        dropout: dropout.clone(),
                        dora: None,
                    };
                    ops::linear(t, &x, &frozen(out, cols, i), None, Some(&lora))
                },
            ));
        }
    }
    // An input of more than one chunk of 16384 elements: dropout's counters go on from chunk to chunk.
    let (n, cols, out, r) = (131, 127, 3, 2);
    let input = [("x", &[n, cols][..]), ("a", &[r, cols]), ("b", &[out, r])];
    cases.push(case(
        format!("linear {n}x{cols} -> {out}, lora rank {r}, dropout in chunks"),
        &input,
        move |t, i| {
            let x = i.activation(t, 0);
            let lora = Lora {
                a: i.param(1),
                b: i.param(2),
                scaling: 0.75,
                dropout: Dropout::Random(0.3),
                dora: None,
            };
            ops::linear(t, &x, &frozen(out, cols, i), None, Some(&lora))
        },
    ));
    cases
}

fn loss() -> Vec<Case> {
    let cases: [(usize, usize, usize, Vec<i32>); 4] = [
        (1, 1, 2, vec![1]),
        (5, 3, 11, vec![-100, 3, 10, -100, 0]),
        (7, 5, 1031, vec![-100, -100, -100, 1030, -100, -100, -100]),
        // More trained rows than a chunk of 1024.
        (1100, 2, 3, (0..1100).map(|i| if i % 37 == 5 { -100 } else { i % 3 }).collect()),
    ];
    let of = |(n, d, v, targets): (usize, usize, usize, Vec<i32>), logits: Logits| {
        let inputs = [("x", &[n, d][..]), ("head", &[v, d])];
        case(format!("linear_cross_entropy {n}x{d} over {v}{}", suffix(logits)), &inputs, move |t, i| {
            let (x, head) = (i.activation(t, 0), Weight::Param(i.param(1)));
            Ok(ops::linear_cross_entropy(t, &x, &head, TableAdapter::default(), &targets, logits)?.loss)
        })
    };
    let smoothed = smoothings().map(|(n, smoothing, logits)| {
        let inputs = [("x", &[n, 3][..]), ("head", &[41, 3])];
        let name = format!("linear_cross_entropy {n}x3 over 41, smoothed by {smoothing}{}", suffix(logits));
        case(name, &inputs, move |t, i| {
            let (x, head) = (i.activation(t, 0), Weight::Param(i.param(1)));
            let ids: Vec<i32> = (0..n as i32).map(|i| if i % 5 == 3 { -100 } else { (7 * i) % 41 }).collect();
            let targets = ops::Targets { ids: &ids, smoothing };
            Ok(ops::linear_cross_entropy(t, &x, &head, TableAdapter::default(), targets, logits)?.loss)
        })
    });
    let plain = cases.into_iter().flat_map(|c| logits().map(|logits| of(c.clone(), logits)));
    plain.chain(smoothed).collect()
}

/// Rows, label smoothing, and the logits that it is of.
fn smoothings() -> [(usize, f64, Logits); 3] {
    let [plain, .., both] = logits();
    [(1, 0.1, plain), (9, 0.5, both), (1030, 0.1, plain)]
}

/// What a case's name says of its logits.
pub fn suffix(logits: Logits) -> String {
    if logits == Logits::default() { String::new() } else { format!(", {logits:?}") }
}

/// Plain logits, Granite's scale, Gemma 2's cap (small, so that it matters), both.
pub fn logits() -> [Logits; 4] {
    let with = |scale, softcap| Logits { scale, softcap };
    [Logits::default(), with(0.125, None), with(1.0, Some(0.8)), with(-3.0, Some(1.5))]
}

/// A value and a weight that are used twice collect both gradients.
fn shared() -> Vec<Case> {
    vec![case("tied embedding and head", &[("table", &[7, 3]), ("x", &[4, 3])], |t, i| {
        let table = Weight::Param(i.param(0));
        let ids: Arc<[u32]> = Arc::from([3u32, 0, 6, 3]);
        let e = ops::embedding(t, &ids, &table, TableAdapter::default(), 1.0, None, i.dtype())?;
        let x = i.activation(t, 1);
        let y = ops::add(t, &e, &x)?;
        let y = ops::add(t, &y, &x)?;
        Ok(ops::linear_cross_entropy(
            t,
            &y,
            &table,
            TableAdapter::default(),
            &[1, -100, 6, 2],
            Logits::default(),
        )?
        .loss)
    })]
}
