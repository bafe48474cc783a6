//! Decompositions against LAPACK in f64 (`goldens/combine.py`) and against what defines them.

use std::path::Path;

use loratune_engine::rng::Key;
use loratune_engine::{DType, Tensor};
use loratune_model::linalg::{Error, Svd, qr_leading, svd, svd_lowrank, svd_of_product};
use safetensors::SafeTensors;

fn random(m: usize, n: usize, seed: u64) -> Tensor {
    let key = Key::new(seed).named("linalg");
    Tensor::from_vec((0..m * n).map(|i| key.normal(i as u64) as f32).collect(), &[m, n]).unwrap()
}

/// Orthonormal columns `[m, k]`.
fn basis(m: usize, k: usize, seed: u64) -> Tensor {
    qr_leading(&random(m, k.max(1), seed), k).unwrap().0
}

/// A matrix with the given singular values.
fn with_values(m: usize, n: usize, values: &[f32], seed: u64) -> Tensor {
    let k = values.len();
    let (mut u, v) = (basis(m, k, seed), basis(n, k, seed + 1));
    u.slice_mut::<f32>()
        .unwrap()
        .chunks_mut(k)
        .for_each(|row| row.iter_mut().zip(values).for_each(|(x, s)| *x *= s));
    u.matmul(&transpose(&v), 1.0).unwrap()
}

fn transpose(x: &Tensor) -> Tensor {
    let (m, n, data) = (x.rows(), x.cols(), x.to_f64_vec());
    Tensor::from_vec((0..m * n).map(|i| data[i % m * n + i / m] as f32).collect(), &[n, m]).unwrap()
}

fn product(a: &Tensor, b: &Tensor) -> Vec<f64> {
    a.to_dtype(DType::F64).matmul(&b.to_dtype(DType::F64), 1.0).unwrap().to_f64_vec()
}

/// The largest deviation of aᵀ·a from the identity.
fn skew(columns: &Tensor) -> f64 {
    let k = columns.cols();
    let gram = product(&transpose(columns), columns);
    gram.iter().enumerate().map(|(i, x)| (x - f64::from(i / k == i % k)).abs()).fold(0.0, f64::max)
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖W − U·S·Vᵀ‖ in the Frobenius norm.
fn error(w: &Tensor, svd: &Svd) -> f64 {
    let k = svd.s.len();
    let mut us = svd.u.to_dtype(DType::F64);
    us.slice_mut::<f64>()
        .unwrap()
        .chunks_mut(k)
        .for_each(|row| row.iter_mut().zip(&svd.s).for_each(|(x, &s)| *x *= s as f64));
    norm(product(&us, &svd.vt).iter().zip(w.to_f64_vec()).map(|(a, b)| a - b))
}

/// Orthonormal factors, values descending, and for a full rank the matrix itself.
fn check_definition(w: &Tensor, rank: usize, what: &str) -> Svd {
    let (m, n) = (w.rows(), w.cols());
    let svd = svd(w, rank).unwrap();
    assert_eq!(
        (svd.u.shape(), svd.s.len(), svd.vt.shape()),
        (&[m, rank][..], rank, &[rank, n][..]),
        "{what}"
    );
    assert!(
        skew(&svd.u) < 1e-6 && skew(&transpose(&svd.vt)) < 1e-6,
        "{what}: {} {}",
        skew(&svd.u),
        skew(&transpose(&svd.vt))
    );
    assert!(svd.s.is_sorted_by(|a, b| a >= b) && svd.s[rank - 1] >= 0.0, "{what}: {:?}", svd.s);
    if rank == m.min(n) {
        let scale = norm(w.to_f64_vec().into_iter()).max(1e-30);
        assert!(error(w, &svd) / scale < 1e-6, "{what}: {}", error(w, &svd) / scale);
    }
    svd
}

fn close(ours: &Tensor, theirs: &[f32], tolerance: f64, what: &str) {
    assert_eq!(ours.numel(), theirs.len(), "{what}");
    let worst = ours.to_f64_vec().iter().zip(theirs).map(|(a, &b)| (a - b as f64).abs()).fold(0.0, f64::max);
    assert!(worst < tolerance, "{what} differs by {worst:e}");
}

/// The first `cols` columns of a row-major matrix.
fn columns(data: &[f32], n: usize, cols: usize) -> Vec<f32> {
    data.chunks(n).flat_map(|row| row[..cols].to_vec()).collect()
}

#[test]
fn decompositions_equal_lapacks_in_f64_at_every_rank() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/combine/linalg.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["wide", "tall", "square", "row", "column"] {
        let read = |part: &str| -> (Vec<f32>, Vec<usize>) {
            let t = file.tensor(&format!("{name}/{part}")).unwrap();
            let data = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (data.collect(), t.shape().to_vec())
        };
        let (w, shape) = read("w");
        let (m, n) = (shape[0], shape[1]);
        let k = m.min(n);
        let w = Tensor::from_vec(w, &shape).unwrap();
        let [u, s, vt, q, r] = ["u", "s", "vt", "q", "r"].map(|p| read(p).0);
        for rank in 1..=k {
            let ours = svd(&w, rank).unwrap();
            close(&ours.u, &columns(&u, k, rank), 1e-6, name);
            close(&Tensor::from_vec(ours.s, &[rank]).unwrap(), &s[..rank], 2e-6, name);
            close(&ours.vt, &vt[..rank * n], 1e-6, name);
            let (oq, or) = qr_leading(&w, rank).unwrap();
            close(&oq, &columns(&q, k, rank), 1e-6, name);
            close(&or, &r[..rank * n], 2e-6, name);
        }
    }
}

#[test]
fn any_shape_and_rank_meets_the_definition() {
    for (m, n) in [(1usize, 1usize), (1, 40), (40, 1), (7, 7), (33, 70), (70, 33), (150, 149), (300, 5)] {
        for rank in [1, m.min(n).div_ceil(2), m.min(n)] {
            check_definition(&random(m, n, 1), rank, &format!("{m}x{n} at {rank}"));
        }
    }
}

#[test]
fn the_truncation_error_is_the_tail_of_the_values() {
    // Eckart and Young: no matrix of rank r is nearer than √(Σ_{i>r} σᵢ²).
    for (m, n) in [(60, 90), (90, 60)] {
        let w = random(m, n, 2);
        let all = svd(&w, 60).unwrap().s;
        for rank in [1, 16, 59] {
            let tail = norm(all[rank..].iter().map(|&s| s as f64));
            let got = error(&w, &svd(&w, rank).unwrap());
            assert!((got / tail - 1.0).abs() < 1e-5, "{m}x{n} at {rank}: {got} for {tail}");
        }
    }
}

#[test]
fn degenerate_matrices_have_exact_decompositions() {
    let zero = check_definition(&Tensor::zeros(DType::F32, &[5, 8]), 5, "zero");
    assert_eq!(zero.s, [0.0; 5]);
    let eye = Tensor::from_vec((0..36).map(|i| f32::from(i % 7 == 0)).collect(), &[6, 6]).unwrap();
    assert!(check_definition(&eye, 6, "identity").s.iter().all(|s| (s - 1.0).abs() < 1e-6));
    check_definition(&eye, 3, "half of the identity");
    for (m, n) in [(30, 50), (50, 30)] {
        let values = [3.0, 2.0, 2.0, 2.0, 1.0];
        let w = with_values(m, n, &values, 5);
        // At rank 5 all values are large; beyond it they are f32's rounding of W.
        for rank in [3, 5, 12, 30] {
            let svd = check_definition(&w, rank, "rank-deficient");
            for (i, s) in svd.s.iter().enumerate() {
                let expected = values.get(i).copied().unwrap_or(0.0);
                assert!((s - expected).abs() < 2e-6, "{m}x{n}: {:?}", svd.s);
            }
        }
    }
}

#[test]
fn small_singular_values_have_their_digits() {
    // From 1 to 1e-6 in one matrix of f64, which holds them: squaring alone would lose the last ones.
    let values: Vec<f64> = (0..7).map(|i| 10f64.powi(-i)).collect();
    let (u, v) = (basis(20, 7, 8), basis(31, 7, 9));
    let refine = |x: &Tensor| {
        // f32 columns are orthogonal to 1e-7 only; two steps of Gram-Schmidt in f64 make them so to 1e-16.
        let (m, k) = (x.rows(), x.cols());
        let mut data = x.to_f64_vec();
        for j in (0..k).chain(0..k) {
            for l in 0..j {
                let dot: f64 = (0..m).map(|i| data[i * k + j] * data[i * k + l]).sum();
                (0..m).for_each(|i| data[i * k + j] -= dot * data[i * k + l]);
            }
            let length = norm((0..m).map(|i| data[i * k + j]));
            (0..m).for_each(|i| data[i * k + j] /= length);
        }
        data
    };
    let (u, v) = (refine(&u), refine(&v));
    let w: Vec<f64> = (0..20 * 31)
        .map(|e| (0..7).map(|l| u[e / 31 * 7 + l] * values[l] * v[e % 31 * 7 + l]).sum())
        .collect();
    let w = Tensor::from_vec(w, &[20, 31]).unwrap();
    for rank in 1..=7 {
        for (s, expected) in svd(&w, rank).unwrap().s.iter().zip(&values) {
            assert!((*s as f64 / expected - 1.0).abs() < 2e-7, "{s} for {expected} at rank {rank}");
        }
    }
}

#[test]
fn a_products_values_are_found_without_the_product() {
    for (m, k, n) in [(40, 6, 50), (40, 1, 50), (5, 30, 50), (40, 30, 3), (6, 6, 6)] {
        let (b, a) = (random(m, k, 11), random(k, n, 12));
        let rank = m.min(k).min(n);
        let ours = svd_of_product(&b, &a, rank).unwrap();
        let w = Tensor::from_vec(product(&b, &a), &[m, n]).unwrap();
        let direct = svd(&w, rank).unwrap();
        let direct_s: Vec<f32> = direct.s.clone();
        close(&Tensor::from_vec(ours.s.clone(), &[rank]).unwrap(), &direct_s, 1e-4, "values");
        close(&ours.u, direct.u.slice().unwrap(), 1e-5, "left");
        close(&ours.vt, direct.vt.slice().unwrap(), 1e-5, "right");
    }
}

#[test]
fn random_projections_find_the_leading_part() {
    // Values that fall slowly, as those of trained weights: more iterations come nearer.
    let values: Vec<f32> = (1..=120).map(|i| (i as f32).powf(-0.5)).collect();
    for (m, n) in [(150, 200), (200, 150)] {
        let w = with_values(m, n, &values, 13);
        let best = norm(values[16..].iter().map(|&s| s as f64));
        let excess = |iterations| {
            let svd = svd_lowrank(&w, 16, iterations, Key::new(3)).unwrap();
            assert!(skew(&svd.u) < 1e-6 && skew(&transpose(&svd.vt)) < 1e-6);
            error(&w, &svd) / best - 1.0
        };
        let (none, four, sixteen) = (excess(0), excess(4), excess(16));
        assert!(none > four && four < 2e-3 && sixteen < 1e-5, "{m}x{n}: {none:e} {four:e} {sixteen:e}");
        let (fast, exact) = (svd_lowrank(&w, 16, 40, Key::new(3)).unwrap(), svd(&w, 16).unwrap());
        close(&fast.u, exact.u.slice().unwrap(), 1e-3, "left");
        close(&Tensor::from_vec(fast.s, &[16]).unwrap(), &exact.s, 1e-5, "values");
    }
}

#[test]
fn random_projections_manage_odd_and_degenerate_matrices() {
    for (m, n) in [(1, 30), (30, 1), (4, 4), (9, 300)] {
        let w = random(m, n, 14);
        let rank = m.min(n);
        let svd = svd_lowrank(&w, rank, 2, Key::new(5)).unwrap();
        assert!(error(&w, &svd) < 1e-5 * norm(w.to_f64_vec().into_iter()), "{m}x{n}");
    }
    let zero = svd_lowrank(&Tensor::zeros(DType::F32, &[30, 20]), 4, 3, Key::new(5)).unwrap();
    assert!(zero.s == [0.0; 4] && skew(&zero.u) < 1e-6 && skew(&transpose(&zero.vt)) < 1e-6);
    let w = with_values(40, 50, &[2.0, 1.0], 15);
    let svd = svd_lowrank(&w, 8, 3, Key::new(5)).unwrap();
    assert!(error(&w, &svd) < 1e-5 && skew(&svd.u) < 1e-6);
}

#[test]
fn bytes_depend_on_the_key_and_not_on_the_threads() {
    let w = random(300, 260, 16);
    let run = |threads, key| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let (exact, fast) = (svd(&w, 16).unwrap(), svd_lowrank(&w, 16, 2, Key::new(key)).unwrap());
            let (q, r) = qr_leading(&w, 16).unwrap();
            [exact.u, exact.vt, q, r, fast.u, fast.vt].map(|t| t.slice::<f32>().unwrap().to_vec())
        })
    };
    let one = run(1, 7);
    assert!(one == run(2, 7) && one == run(5, 7));
    assert!(one[4] != run(1, 8)[4]);
}

#[test]
fn qr_of_the_leading_columns_is_that_of_the_matrix() {
    for (m, n, rank) in [(40, 60, 8), (60, 40, 40), (12, 3, 3), (1, 5, 1)] {
        let w = random(m, n, 17);
        let (q, r) = qr_leading(&w, rank).unwrap();
        assert!(skew(&q) < 1e-6);
        // The first columns of W are Q·R, whose rows are zero below the diagonal.
        let (qr, w) = (product(&q, &r), w.to_f64_vec());
        let worst = (0..m * n).filter(|i| i % n < rank).map(|i| (qr[i] - w[i]).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{m}x{n} at {rank}: {worst:e}");
        let r = r.to_f64_vec();
        assert!((0..rank * n).filter(|i| i % n < i / n).all(|i| r[i].abs() < 1e-5));
    }
}

#[test]
fn what_cannot_be_decomposed_is_named() {
    let w = random(3, 5, 18);
    for rank in [0, 4] {
        for result in [
            svd(&w, rank).map(|_| ()),
            svd_lowrank(&w, rank, 1, Key::new(0)).map(|_| ()),
            qr_leading(&w, rank).map(|_| ()),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Rank { rank: r, rows: 3, cols: 5, .. } if r == rank));
            let text = error.to_string();
            assert!(
                text.contains(&format!("rank {rank}"))
                    && text.contains("[3, 5]")
                    && text.contains("at most 3"),
                "{text}"
            );
        }
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut w = w.clone();
        w.slice_mut::<f32>().unwrap()[7] = bad;
        let errors = [
            svd(&w, 1).map(|_| ()),
            svd_lowrank(&w, 1, 1, Key::new(0)).map(|_| ()),
            qr_leading(&w, 1).map(|_| ()),
        ];
        assert!(errors.into_iter().all(|e| matches!(e, Err(Error::NotFinite { row: 1, col: 2, .. }))));
    }
    let vector = Tensor::zeros(DType::F32, &[4]);
    assert!(matches!(svd(&vector, 1), Err(Error::NotMatrix { .. })));
    let huge = Tensor::from_vec(vec![3e38f32; 64], &[8, 8]).unwrap();
    assert!(matches!(svd(&huge, 1), Err(Error::Failed { .. })));
    assert!(matches!(svd_lowrank(&huge, 1, 1, Key::new(0)), Err(Error::Failed { .. })));
}
