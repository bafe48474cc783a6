//! Singular values and QR of weight matrices, for initialisers that start from the base weights (PiSSA, OLoRA) and for
//! tools that compress adapters.
//!
//! The small dense problems are faer's, in f64 and on the calling thread; the large products are either faer's or the
//! engine's. Neither splits a sum by the number of threads, so bytes do not depend on it and callers may run many
//! matrices at once. Singular vectors are only determined up to a common sign; here the largest entry of each left vector
//! (the first one of equals) is positive.

use faer::{Mat, MatRef, Side};
use loratune_engine::rng::Key;
use loratune_engine::{DType, Device, Tensor};

/// What can be wrong with a matrix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{op} needs a matrix, but got a tensor of shape {shape:?}")]
    NotMatrix { op: &'static str, shape: Vec<usize> },
    #[error(
        "{op} of rank {rank} was asked of a matrix of shape [{rows}, {cols}]: the rank must be at least 1 and at most \
         {}, the smaller of the two; lower the rank, or leave this matrix out", rows.min(cols)
    )]
    Rank { op: &'static str, rank: usize, rows: usize, cols: usize },
    #[error("{op}: the matrix holds a number that is not finite (row {row}, column {col})")]
    NotFinite { op: &'static str, row: usize, col: usize },
    #[error("{op} of a matrix of shape [{rows}, {cols}] failed: {why}")]
    Failed { op: &'static str, rows: usize, cols: usize, why: &'static str },
    #[error(transparent)]
    Engine(#[from] loratune_engine::Error),
}

impl From<Error> for crate::Error {
    fn from(e: Error) -> Self {
        crate::Error::Invalid(e.to_string())
    }
}

/// Results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The k largest singular triplets: W ≈ u · diag(s) · vt, all f32.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `[m, k]`, orthonormal columns.
    pub u: Tensor,
    /// k values, descending.
    pub s: Vec<f32>,
    /// `[k, n]`, orthonormal rows.
    pub vt: Tensor,
}

/// Rows and columns of a finite matrix that has `rank` singular values.
fn check(op: &'static str, w: &Tensor, rank: usize) -> Result<(usize, usize)> {
    let &[rows, cols] = w.shape() else {
        return Err(Error::NotMatrix { op, shape: w.shape().to_vec() });
    };
    if rank == 0 || rank > rows.min(cols) {
        return Err(Error::Rank { op, rank, rows, cols });
    }
    // What is on a card was looked at when it came there; looking again would bring it back.
    if w.device() == Device::Cpu && !w.is_finite() {
        let bad = w.reals::<f64>().iter().position(|x| !x.is_finite()).unwrap_or_default();
        return Err(Error::NotFinite { op, row: bad / cols, col: bad % cols });
    }
    Ok((rows, cols))
}

fn tensor(a: MatRef<'_, f64>) -> Result<Tensor> {
    let data: Vec<f32> = (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| a[(i, j)] as f32)).collect();
    Ok(Tensor::from_vec(data, &[a.nrows(), a.ncols()])?)
}

/// Singular triplets in f64: left vectors, values, right vectors, one column each.
struct Triplets {
    u: Mat<f64>,
    s: Vec<f64>,
    v: Mat<f64>,
}

impl Triplets {
    fn swapped(self) -> Triplets {
        Triplets { u: self.v, s: self.s, v: self.u }
    }

    /// The leading `rank` as f32, with the signs that this module promises.
    fn finish(mut self, op: &'static str, rank: usize) -> Result<Svd> {
        let (rows, cols) = (self.u.nrows(), self.v.nrows());
        for j in 0..rank {
            let column = self.u.col(j);
            let largest = column.iter().fold(0.0f64, |best, &x| if x.abs() > best.abs() { x } else { best });
            if largest < 0.0 {
                self.u.col_mut(j).iter_mut().for_each(|x| *x = -*x);
                self.v.col_mut(j).iter_mut().for_each(|x| *x = -*x);
            }
        }
        let s: Vec<f32> = self.s[..rank].iter().map(|&s| s as f32).collect();
        let svd =
            Svd { u: tensor(self.u.get(.., ..rank))?, s, vt: tensor(self.v.get(.., ..rank).transpose())? };
        if !(svd.s.iter().all(|s| s.is_finite()) && svd.u.is_finite() && svd.vt.is_finite()) {
            return Err(Error::Failed { op, rows, cols, why: "a result is too large for f32" });
        }
        Ok(svd)
    }
}

/// All min(m, n) triplets by bidiagonalisation.
fn full(op: &'static str, a: MatRef<'_, f64>) -> Result<Triplets> {
    let (rows, cols) = (a.nrows(), a.ncols());
    let svd = a.thin_svd().map_err(|_| Error::Failed { op, rows, cols, why: "no convergence" })?;
    let s = svd.S().column_vector().iter().copied().collect();
    Ok(Triplets { u: svd.U().to_owned(), s, v: svd.V().to_owned() })
}

/// Below this ratio of the smallest wanted singular value to the largest, the Gram matrix is not precise enough.
const GRAM_RATIO: f64 = 1e-3;

/// The leading triplets of a matrix that is not tall (m ≤ n), by the eigenvectors of A·Aᵀ; `None` when that could be
/// less than exact to f32.
///
/// Squaring costs half of the digits: with f64's ε ≈ 1e-16 the relative error of σᵢ², and the cosine between two
/// computed right vectors, are about p(m)·ε·σ₁²/(σᵢσⱼ) with a small polynomial p, that is ≤ 1e-10·p(m) for the ratios that
/// are let through, far below f32's 6e-8.
fn by_gram(a: MatRef<'_, f64>, rank: usize) -> Option<Triplets> {
    let gram = a * a.transpose();
    if !gram.norm_max().is_finite() {
        return None;
    }
    let eigen = gram.self_adjoint_eigen(Side::Lower).ok()?;
    // faer's order is ascending.
    let u = eigen.U().get(.., a.nrows() - rank..).reverse_cols().to_owned();
    let mut v = a.transpose() * &u;
    // The norm of Aᵀuᵢ is σᵢ to higher order than the root of the eigenvalue.
    let norms: Vec<f64> = v.col_iter().map(|c| c.norm_l2()).collect();
    let mut order: Vec<usize> = (0..rank).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let s: Vec<f64> = order.iter().map(|&i| norms[i]).collect();
    let (&largest, &smallest) = (s.first()?, s.last()?);
    // Not a plain `<`: a NaN must not pass.
    if !(smallest > 0.0 && smallest >= GRAM_RATIO * largest) {
        return None;
    }
    for (j, norm) in norms.iter().enumerate() {
        v.col_mut(j).iter_mut().for_each(|x| *x /= norm);
    }
    let pick = |m: &Mat<f64>| Mat::from_fn(m.nrows(), rank, |i, j| m[(i, order[j])]);
    Some(Triplets { u: pick(&u), s, v: pick(&v) })
}

fn exact(op: &'static str, a: MatRef<'_, f64>, rank: usize) -> Result<Triplets> {
    let (a, tall) = if a.nrows() > a.ncols() { (a.transpose(), true) } else { (a, false) };
    let triplets = match by_gram(a, rank) {
        Some(triplets) => triplets,
        None => full(op, a)?,
    };
    Ok(if tall { triplets.swapped() } else { triplets })
}

/// The `rank` largest singular triplets of `w` `[m, n]`, exact to f32's rounding: computed in f64 from the eigenvectors of
/// the smaller of W·Wᵀ and Wᵀ·W, or by a full bidiagonalisation where squaring would lose too much (singular values
/// below a thousandth of the largest are wanted).
///
/// # Errors
/// If `w` is not a matrix or not finite, or the rank is 0 or above min(m, n).
pub fn svd(w: &Tensor, rank: usize) -> Result<Svd> {
    const OP: &str = "a singular value decomposition";
    let (m, n) = check(OP, w, rank)?;
    let data = w.reals::<f64>();
    exact(OP, MatRef::from_row_major_slice(&data, m, n), rank)?.finish(OP, rank)
}

/// The `rank` largest singular triplets of b·a, with b `[m, k]` and a `[k, n]`, without ever forming the product: with
/// b = Q₁R₁ and aᵀ = Q₂R₂ they are those of the small R₁R₂ᵀ. Exact to f32's rounding.
///
/// # Errors
/// As [`svd`]; the rank is at most min(m, k, n).
pub fn svd_of_product(b: &Tensor, a: &Tensor, rank: usize) -> Result<Svd> {
    const OP: &str = "a singular value decomposition of a product";
    let (m, k) = check(OP, b, rank)?;
    let (inner, n) = check(OP, a, rank)?;
    if inner != k {
        return Err(loratune_engine::Error::Shape {
            op: OP,
            what: "second factor".into(),
            expected: format!("[{k}, any]"),
            got: format!("{:?}", a.shape()),
        }
        .into());
    }
    let (b, a) = (b.reals::<f64>(), a.reals::<f64>());
    let (b, a) = (MatRef::from_row_major_slice(&b, m, k), MatRef::from_row_major_slice(&a, k, n));
    let (left, right) = (b.qr(), a.transpose().qr());
    let core = full(OP, (left.thin_R() * right.thin_R().transpose()).as_ref())?;
    let u = left.compute_thin_Q() * &core.u;
    let v = right.compute_thin_Q() * &core.v;
    Triplets { u, s: core.s, v }.finish(OP, rank)
}

/// Columns drawn beyond the rank; 5 to 10 are recommended (Halko et al., section 1.3).
const OVERSAMPLING: usize = 8;

fn orthonormal(row_major: &Tensor) -> Mat<f64> {
    let data = row_major.reals::<f64>();
    MatRef::from_row_major_slice(&data, row_major.rows(), row_major.cols()).qr().compute_thin_Q()
}

/// Nearly the `rank` largest singular triplets of `w` `[m, n]`, by random projection (Halko, Martinsson, Tropp,
/// arXiv 0909.4061, algorithms 4.4 and 5.1): a range from `iterations` power iterations, orthonormalised after every
/// product, then the exact decomposition inside it. The products with W are f32 and on its device, the rest is f64 on the host. The error falls with
/// (σₗ₊₁/σᵣ)^(2·iterations + 1), where l is the rank and 8 more; W's own values decide how many are enough (PiSSA
/// takes 4 to 16). The draws are a function of `key` only.
///
/// # Errors
/// As [`svd`].
pub fn svd_lowrank(w: &Tensor, rank: usize, iterations: usize, key: Key) -> Result<Svd> {
    const OP: &str = "a randomised singular value decomposition";
    let (m, n) = check(OP, w, rank)?;
    let w = w.to_dtype(DType::F32);
    let l = (rank + OVERSAMPLING).min(m).min(n);
    if w.device() != Device::Cpu
        && let Some(triplets) = on_card(OP, &w, l, iterations, key)?
    {
        return triplets.finish(OP, rank);
    }
    let overflow = || Error::Failed { op: OP, rows: m, cols: n, why: "a product is too large for f32" };
    // W·X and Xᵀ·W in f32, where W is; both are finite or an error, because the decompositions below need it.
    let there = |x: MatRef<'_, f64>| -> Result<Tensor> { Ok(tensor(x)?.to_device(w.device())?) };
    let here = |product: Tensor| -> Result<Tensor> {
        Some(product.to_device(Device::Cpu)?).filter(Tensor::is_finite).ok_or_else(overflow)
    };
    let times = |x: &Mat<f64>| here(w.matmul(&there(x.as_ref())?, 1.0)?);
    let under = |x: &Mat<f64>| -> Result<Mat<f64>> {
        let product = here(there(x.transpose())?.matmul(&w, 1.0)?)?;
        Ok(MatRef::from_row_major_slice(&product.reals::<f64>(), l, n).to_owned())
    };
    let sketch = Mat::from_fn(n, l, |i, j| key.normal((i * l + j) as u64));
    let mut q = orthonormal(&times(&sketch)?);
    for _ in 0..iterations {
        let z = under(&q)?.transpose().qr().compute_thin_Q();
        q = orthonormal(&times(&z)?);
    }
    // W ≈ Q·(QᵀW); the small factor's triplets are found tall, as (QᵀW)ᵀ.
    let inside = full(OP, under(&q)?.transpose())?.swapped();
    Triplets { u: &q * &inside.u, ..inside }.finish(OP, rank)
}

/// The same of a W on a card, where everything stays that is as long as W; `None` where its bases can't be found so. An orthonormal basis
/// of Y is Y·R⁻¹ with YᵀY = RᵀR (Cholesky's factor, of the host): as good as Householder's while the square of Y's condition is far from
/// 1/ε of f32, and made twice (Yamamoto et al., 2015) where it has to be orthonormal itself.
fn on_card(op: &'static str, w: &Tensor, l: usize, iterations: usize, key: Key) -> Result<Option<Triplets>> {
    let (n, device) = (w.cols(), w.device());
    let basis = |y: Tensor| -> Result<Option<Tensor>> {
        let gram = y.transposed_matmul(&y)?.to_device(Device::Cpu)?;
        let gram = gram.reals::<f64>();
        let gram = MatRef::from_row_major_slice(&gram, l, l);
        // Rounded in f32, it is not quite symmetric.
        let gram = Mat::from_fn(l, l, |i, j| 0.5 * (gram[(i, j)] + gram[(j, i)]));
        let Some(inverse) = inverse_of_factor(&gram) else { return Ok(None) };
        Ok(Some(y.matmul(&tensor(inverse.as_ref())?.to_device(device)?, 1.0)?))
    };
    let sketch: Vec<f32> = (0..(n * l) as u64).map(|i| key.normal(i) as f32).collect();
    let mut z = Tensor::from_vec(sketch, &[n, l])?.to_device(device)?;
    for _ in 0..iterations {
        let Some(q) = basis(w.matmul(&z, 1.0)?)? else { return Ok(None) };
        let Some(next) = basis(w.transposed_matmul(&q)?)? else { return Ok(None) };
        z = next;
    }
    let Some(q) = basis(w.matmul(&z, 1.0)?)? else { return Ok(None) };
    let Some(q) = basis(q)? else { return Ok(None) };
    // W ≈ Q·(QᵀW), whose triplets are found tall.
    let (q, inside) = (q.to_device(Device::Cpu)?, w.transposed_matmul(&q)?.to_device(Device::Cpu)?);
    if !(q.is_finite() && inside.is_finite()) {
        return Ok(None);
    }
    let (q, inside) = (q.reals::<f64>(), inside.reals::<f64>());
    let inside = exact(op, MatRef::from_row_major_slice(&inside, n, l), l)?.swapped();
    let q = MatRef::from_row_major_slice(&q, w.rows(), l);
    Ok(Some(Triplets { u: q * &inside.u, ..inside }))
}

/// The least ratio of the smallest to the largest of R's diagonal at which f32's Gram matrix is good for a basis.
const LEAST_PIVOT: f64 = 2e-3;

/// R⁻¹ of a positive definite RᵀR with R upper triangular; `None` if it is not, or nearly not.
fn inverse_of_factor(gram: &Mat<f64>) -> Option<Mat<f64>> {
    let l = gram.nrows();
    let mut r = Mat::<f64>::zeros(l, l);
    for i in 0..l {
        let below: f64 = (0..i).map(|k| r[(k, i)] * r[(k, i)]).sum();
        let pivot = gram[(i, i)] - below;
        // Not a plain `<`: a NaN must not pass.
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        r[(i, i)] = pivot.sqrt();
        for j in i + 1..l {
            let below: f64 = (0..i).map(|k| r[(k, i)] * r[(k, j)]).sum();
            r[(i, j)] = (gram[(i, j)] - below) / r[(i, i)];
        }
    }
    let pivots = (0..l).map(|i| r[(i, i)]);
    let (least, most) = pivots.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
    if least < LEAST_PIVOT * most {
        return None;
    }
    let mut inverse = Mat::<f64>::zeros(l, l);
    for j in 0..l {
        inverse[(j, j)] = 1.0 / r[(j, j)];
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| r[(i, k)] * inverse[(k, j)]).sum();
            inverse[(i, j)] = -sum / r[(i, i)];
        }
    }
    Some(inverse)
}

/// The leading part of W = Q·R for OLoRA (arXiv 2406.01775): `(Q[:, :rank]` `[m, rank]`, `R[:rank]` `[rank, n])`.
/// The first columns of Q depend on the first columns of W only, so no more are decomposed, and R\[:rank\] = Q[:, :rank]ᵀ·W.
/// Computed in f64; signs are those of Householder's reflections, as LAPACK's.
///
/// # Errors
/// As [`svd`].
pub fn qr_leading(w: &Tensor, rank: usize) -> Result<(Tensor, Tensor)> {
    const OP: &str = "a QR decomposition";
    let (m, n) = check(OP, w, rank)?;
    let data = w.reals::<f64>();
    let w = MatRef::from_row_major_slice(&data, m, n);
    let q = w.get(.., ..rank).qr().compute_thin_Q();
    let r = q.transpose() * w;
    Ok((tensor(q.as_ref())?, tensor(r.as_ref())?))
}
