//! Any adapter as plain LoRA of a given rank: the truncated singular value decomposition of what it changes, which is the
//! nearest matrix of that rank (Eckart and Young).

use std::collections::BTreeMap;

use loratune_engine::rng::Key;
use loratune_engine::{DType, Tensor};
use rayon::prelude::*;

use super::{AdapterFiles, OnBase, PREFIX};
use crate::adapter::combine::SavedAdapter;
use crate::adapter::merge::transposed;
use crate::adapter::plan::Site;
use crate::adapter::saved::names;
use crate::adapter::{Form, base_weight};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::files::peft::{AdapterConfig, InitLoraWeights};
use crate::linalg::{Svd, svd, svd_lowrank, svd_of_product};
use crate::spec::MatrixKind;

/// How ΔW is decomposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Decomposition {
    /// Exactly, unless the matrix is dense and its smaller side is above [`LARGE`].
    #[default]
    Auto,
    Exact,
    /// By random projection with [`ITERATIONS`] power iterations; the draws depend on the module's path only.
    Fast,
}

/// Above this, an exact decomposition takes many seconds.
const LARGE: usize = 1024;
/// Of the fast decomposition. What DoRA changes has a flat tail behind its leading part, which is what power iterations are
/// for.
const ITERATIONS: usize = 8;

/// What a rank could not hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// ‖ΔW − s·B·A‖ / ‖ΔW‖ over all modules (Frobenius); 0 if the adapter changes nothing.
    pub error: f64,
    /// The module with the largest error of its own, and that error.
    pub worst: Option<(String, f64)>,
    pub modules: usize,
}

impl Loss {
    /// The share of ‖ΔW‖² that is kept.
    pub fn energy_kept(&self) -> f64 {
        1.0 - self.error * self.error
    }
}

/// One module's result.
struct Reduced {
    a: Tensor,
    b: Tensor,
    /// ‖ΔW − B·A‖² and ‖ΔW‖².
    lost: f64,
    whole: f64,
}

/// The adapter as plain LoRA of rank `rank`, α = rank: B·A is the nearest matrix of that rank to ΔW = W' − W, whatever made W'
/// (DoRA, PiSSA, OLoRA, ranks by pattern). A = √Σ·Vᵀ, B = U·√Σ, with zeros where a module has no such rank. Biases and whole
/// modules stay as they are.
///
/// # Errors
/// If the rank is 0 or above that of every module, the adapter does not fit the model, or a change is not finite.
pub fn lowrank(
    adapter: &SavedAdapter,
    files: &ModelFiles,
    rank: usize,
    how: Decomposition,
) -> Result<(AdapterFiles, Loss)> {
    let on = OnBase::new(adapter, files)?;
    let sites = on.attached.spec.sites(on.decoder.spec())?;
    let most = sites.iter().map(|s| s.matrix.shape[0].min(s.matrix.shape[1])).max().unwrap_or(0);
    if rank == 0 || rank > most {
        return Err(Error::Invalid(format!(
            "a rank of {rank} can't be made: it must be from 1 to {most}, the largest rank that an adapted module has"
        )));
    }
    let (config, tensors) = on.files(adapter, adapter.base(), Form::Plain)?;
    let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let (mut lost, mut whole) = (0.0, 0.0);
    let mut loss = Loss { modules: sites.len(), ..Loss::default() };
    // As many dense changes as threads at a time.
    for sites in sites.chunks(rayon::current_num_threads().max(1)) {
        let reduced = sites
            .par_iter()
            .map(|s| reduce(&on, s, &tensors, files, rank, how))
            .collect::<Result<Vec<_>>>()?;
        for (site, reduced) in sites.iter().zip(reduced) {
            let error = relative(reduced.lost, reduced.whole);
            if loss.worst.as_ref().is_none_or(|(_, worst)| error > *worst) {
                loss.worst = Some((site.matrix.path.clone(), error));
            }
            (lost, whole) = (lost + reduced.lost, whole + reduced.whole);
            let [a, b, m] = keys(site);
            tensors.insert(a, reduced.a);
            tensors.insert(b, reduced.b);
            tensors.remove(&m);
        }
    }
    loss.error = relative(lost, whole);
    let config = AdapterConfig {
        r: rank,
        lora_alpha: rank as f64,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        use_rslora: false,
        use_dora: false,
        init_lora_weights: InitLoraWeights::Flag(true),
        ..config
    };
    Ok(((config, tensors.into_iter().collect()), loss))
}

/// The root of a quotient of squares.
fn relative(lost: f64, whole: f64) -> f64 {
    if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 }
}

fn keys(site: &Site) -> [String; 3] {
    names(&site.matrix.path, site.matrix.kind).map(|name| format!("{PREFIX}{name}"))
}

/// One module: `tensors` are the plain form's.
fn reduce(
    on: &OnBase,
    site: &Site,
    tensors: &BTreeMap<String, Tensor>,
    files: &ModelFiles,
    rank: usize,
    how: Decomposition,
) -> Result<Reduced> {
    let [a, b, m] = keys(site);
    let (Some(a), Some(b)) = (tensors.get(&a), tensors.get(&b)) else {
        return Err(Error::Invalid(format!("the adapter has no factors for {}", site.matrix.path)));
    };
    let magnitudes = tensors.get(&m).map(Tensor::to_f64_vec);
    let mut change = b.matmul(a, site.scaling)?;
    if let Some(m) = &magnitudes {
        let tied = on.decoder.spec().tied_head;
        let w = base_weight(site, tied, &on.attached.replaced, files)?;
        let w = if site.matrix.kind == MatrixKind::Embedding { transposed(&w)? } else { w };
        scale_to_magnitudes(&mut change, &w, m)?;
    }
    if !change.is_finite() {
        return Err(Error::Invalid(format!(
            "what the adapter changes in {} is not finite: it is damaged, or a magnitude's row has no length",
            site.matrix.path
        )));
    }
    let (rows, cols) = (change.rows(), change.cols());
    let whole = squares(&change)?;
    if whole == 0.0 {
        let zeros = |shape: [usize; 2]| Tensor::zeros(DType::F32, &shape);
        return Ok(Reduced { a: zeros([rank, cols]), b: zeros([rows, rank]), lost: 0.0, whole });
    }
    let rank_here = rank.min(rows).min(cols);
    let svd = match (&magnitudes, how) {
        // A product of thin matrices is decomposed without the wide one.
        (None, _) if a.rows() < rows.min(cols) => {
            scaled(svd_of_product(b, a, rank_here.min(a.rows()))?, site.scaling)
        }
        (_, Decomposition::Exact) => svd(&change, rank_here)?,
        (_, Decomposition::Auto) if rows.min(cols) <= LARGE => svd(&change, rank_here)?,
        _ => {
            let key = Key::new(0).named("convert").named(&site.matrix.path);
            svd_lowrank(&change, rank_here, ITERATIONS, key)?
        }
    };
    let [a, b] = factors(&svd, rank)?;
    // Measured with the factors as they are written.
    change.add_assign(&b.matmul(&a, -1.0)?)?;
    Ok(Reduced { a, b, lost: squares(&change)?, whole })
}

/// The decomposition of the product times a number.
fn scaled(mut svd: Svd, factor: f64) -> Svd {
    svd.s.iter_mut().for_each(|s| *s = (f64::from(*s) * factor.abs()) as f32);
    if factor < 0.0 {
        svd.u.scale_assign(-1.0);
    }
    svd
}

/// From s·B·A to what DoRA makes of W: (m/‖W + s·B·A‖ − 1)·W + m/‖W + s·B·A‖·s·B·A, row by row. Written so, nothing cancels.
fn scale_to_magnitudes(change: &mut Tensor, w: &Tensor, magnitudes: &[f64]) -> Result<()> {
    let (cols, w) = (change.cols(), w.slice::<f32>()?);
    for ((u, w), m) in
        change.slice_mut::<f32>()?.chunks_exact_mut(cols).zip(w.chunks_exact(cols)).zip(magnitudes)
    {
        let squares = u.iter().zip(w).map(|(&u, &w)| (f64::from(u) + f64::from(w)).powi(2));
        let factor = m / squares.sum::<f64>().sqrt();
        for (u, &w) in u.iter_mut().zip(w) {
            *u = ((factor - 1.0) * f64::from(w) + factor * f64::from(*u)) as f32;
        }
    }
    Ok(())
}

fn squares(t: &Tensor) -> Result<f64> {
    Ok(t.slice::<f32>()?.iter().map(|&x| f64::from(x) * f64::from(x)).sum())
}

/// A = √Σ·Vᵀ `[rank, cols]` and B = U·√Σ `[rows, rank]`, with zeros up to the rank.
fn factors(svd: &Svd, rank: usize) -> Result<[Tensor; 2]> {
    let (rows, cols) = (svd.u.rows(), svd.vt.cols());
    let (mut a, mut b) = (vec![0f32; rank * cols], vec![0f32; rows * rank]);
    let roots: Vec<f64> = svd.s.iter().map(|&s| f64::from(s).sqrt()).collect();
    let times = |to: &mut f32, x: f32, root: f64| *to = (f64::from(x) * root) as f32;
    let vt = svd.vt.slice::<f32>()?.chunks_exact(cols);
    for ((to, from), &root) in a.chunks_exact_mut(cols).zip(vt).zip(&roots) {
        to.iter_mut().zip(from).for_each(|(to, &x)| times(to, x, root));
    }
    let u = svd.u.slice::<f32>()?.chunks_exact(roots.len());
    for (to, from) in b.chunks_exact_mut(rank).zip(u) {
        to.iter_mut().zip(from).zip(&roots).for_each(|((to, &x), &root)| times(to, x, root));
    }
    Ok([Tensor::from_vec(a, &[rank, cols])?, Tensor::from_vec(b, &[rows, rank])?])
}
