//! The table of cases. Odd shapes on purpose: sizes of one, primes, and just past the kernels' blocks.

use std::sync::Arc;

use loratune_engine::ops::{self, AttentionConfig, Documents, Dropout, Lora, RopeTable};
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
        silu_mul(),
        embedding(),
        linear(),
        loss(),
        shared(),
        crate::adapter_cases::all(),
    ];
    groups.into_iter().flatten().collect()
}

fn add() -> Vec<Case> {
    vec![case("add", &[("a", &[3, 5]), ("b", &[3, 5])], |t, i| {
        let (a, b) = (i.activation(t, 0), i.activation(t, 1));
        ops::add(t, &a, &b)
    })]
}

fn cast() -> Vec<Case> {
    vec![case("cast", &[("a", &[3, 5])], |t, i| {
        let a = i.activation(t, 0);
        Ok(ops::cast(t, &a, loratune_engine::DType::F64))
    })]
}

fn rms_norm() -> Vec<Case> {
    [(1, 2), (3, 7), (65, 33), (130, 4)]
        .map(|(n, d)| {
            case(format!("rms_norm {n}x{d}"), &[("x", &[n, d]), ("w", &[d])], |t, i| {
                let x = i.activation(t, 0);
                ops::rms_norm(t, &x, &Weight::Param(i.param(1)), 1e-5)
            })
        })
        .into()
}

fn rope() -> Vec<Case> {
    [(1usize, 1usize, 2usize, 2usize), (7, 3, 6, 6), (33, 2, 10, 4)]
        .map(|(n, heads, dim, rotary)| {
            case(
                format!("rope {n} tokens, {heads} heads of {dim}, {rotary} rotated"),
                &[("x", &[n, heads * dim])],
                {
                    move |t, i| {
                        let table =
                            Arc::new(RopeTable::new(&RopeTable::default_frequencies(rotary, 100.0), 50, 1.0));
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
    let table: [(&[usize], usize, usize, usize, Option<usize>); 7] = [
        (&[1], 1, 1, 1, None),
        (&[5], 4, 2, 3, None),
        (&[3, 1, 9], 6, 2, 5, None),
        (&[70, 2], 3, 1, 4, None),
        (&[131], 2, 1, 3, None),
        (&[67, 7], 2, 2, 3, Some(5)),
        (&[150], 1, 1, 2, Some(70)),
    ];
    table
        .map(|(lengths, heads, kv_heads, head_dim, window)| {
            let documents = Documents::from_lengths(lengths);
            let n = documents.tokens();
            let scale = (head_dim as f64).powf(-0.5);
            let config = AttentionConfig { heads, kv_heads, head_dim, scale, window };
            case(
                format!("attention {lengths:?}, {heads}/{kv_heads} heads of {head_dim}, window {window:?}"),
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

fn silu_mul() -> Vec<Case> {
    vec![case("silu_mul", &[("gate", &[5, 17]), ("up", &[5, 17])], |t, i| {
        let (g, u) = (i.activation(t, 0), i.activation(t, 1));
        ops::silu_mul(t, &g, &u)
    })]
}

fn embedding() -> Vec<Case> {
    vec![case("embedding", &[("table", &[7, 3])], |t, i| {
        let ids: Arc<[u32]> = Arc::from([3u32, 0, 6, 3, 3]);
        ops::embedding(t, &ids, &Weight::Param(i.param(0)), None, 1.0, i.dtype())
    })]
}

/// A frozen matrix, deterministic and representable in bf16.
pub fn frozen(rows: usize, cols: usize, i: &Inputs) -> Weight {
    let data: Vec<f64> = (0..rows * cols).map(|j| ((j * 37 % 19) as f64 - 9.0) / 16.0).collect();
    Weight::dense(Tensor::from_vec(data, &[rows, cols]).unwrap().to_dtype(i.dtype()))
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
    cases
        .into_iter()
        .map(|(n, d, v, targets)| {
            case(
                format!("linear_cross_entropy {n}x{d} over {v}"),
                &[("x", &[n, d]), ("head", &[v, d])],
                move |t, i| {
                    let x = i.activation(t, 0);
                    Ok(ops::linear_cross_entropy(t, &x, &Weight::Param(i.param(1)), None, &targets)?.loss)
                },
            )
        })
        .collect()
}

/// A value and a weight that are used twice collect both gradients.
fn shared() -> Vec<Case> {
    vec![case("tied embedding and head", &[("table", &[7, 3]), ("x", &[4, 3])], |t, i| {
        let table = Weight::Param(i.param(0));
        let ids: Arc<[u32]> = Arc::from([3u32, 0, 6, 3]);
        let e = ops::embedding(t, &ids, &table, None, 1.0, i.dtype())?;
        let x = i.activation(t, 1);
        let y = ops::add(t, &e, &x)?;
        let y = ops::add(t, &y, &x)?;
        Ok(ops::linear_cross_entropy(t, &y, &table, None, &[1, -100, 6, 2])?.loss)
    })]
}
