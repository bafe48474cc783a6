//! Combining adapters into one with weights, without the base model: PEFT's `add_weighted_adapter` (0.21,
//! `peft/tuners/lora/model.py` and `peft/utils/merge_utils.py`). All kinds that draw no random numbers give PEFT's numbers.
//!
//! Every module of the result has the same rank, with rows and columns of zeros where fewer are needed, and α = r, so its
//! scaling is 1 and its configuration needs no patterns. Modules that only some adapters have are combined from those.

mod arithmetic;
mod gather;
mod options;

use std::collections::BTreeMap;

use loratune_engine::Tensor;
use loratune_engine::rng::Key;
use rayon::prelude::*;

use self::gather::{Factors, Module};
pub use self::options::{Combination, CombineOptions, Error, MajoritySign};
use crate::files::RawTensor;
use crate::files::peft::AdapterConfig;
use crate::linalg::{self, Svd};

/// Results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An adapter as [`read_adapter`](crate::files::peft::read_adapter) reads it.
#[derive(Debug, Clone)]
pub struct SavedAdapter {
    /// For messages, such as its path.
    pub name: String,
    /// Its configuration.
    pub config: AdapterConfig,
    /// Its tensors under PEFT's names.
    pub tensors: BTreeMap<String, RawTensor<'static>>,
}

/// Modules worked on at once: updates are as large as the base's weights, and many threads would hold many of them.
const AT_ONCE: usize = 8;

/// The largest rank that PEFT files are read with.
const MAX_RANK: usize = 1 << 20;

/// Combines adapters with their weights (any finite numbers; negative ones subtract). Returns the new configuration and the
/// tensors under PEFT's names, sorted: A and B in f32, and what else all adapters hold alike.
///
/// One adapter is combined by `linear`, whatever the kind, as PEFT does; a kind or an option that would prune or cut it
/// is refused.
///
/// # Errors
/// If an option is missing, out of range or without effect; if an adapter is not plain LoRA on an unchanged base (DoRA,
/// PiSSA, OLoRA …) or its tensors don't fit its configuration; if adapters are for different bases, have different ranks
/// where these must be equal, or hold other trained tensors that differ.
pub fn combine(
    adapters: &[(SavedAdapter, f64)],
    options: &CombineOptions,
) -> Result<(AdapterConfig, Vec<(String, Tensor)>)> {
    let (saved, weights): (Vec<&SavedAdapter>, Vec<f64>) = adapters.iter().map(|(a, w)| (a, *w)).unzip();
    options.check()?;
    let options = &for_number_of(&saved, options)?;
    for (adapter, weight) in adapters {
        if !weight.is_finite() {
            let what = format!("its weight is {weight}; it must be a finite number");
            return Err(Error::Adapter { adapter: adapter.name.clone(), what });
        }
        gather::check_adapter(adapter)?;
    }
    let modules = gather::modules(&saved)?;
    let rank = result_rank(&saved, &modules, options)?;
    let config = gather::config(&saved, &modules, rank)?;
    let mut tensors = gather::kept(&saved)?;
    for modules in modules.chunks(AT_ONCE) {
        let combined: Vec<[(String, Tensor); 2]> = modules
            .par_iter()
            .map(|module| {
                let [a, b] = combine_module(module, &weights, rank, options)?;
                if !(a.is_finite() && b.is_finite()) {
                    return Err(Error::Overflow { module: module.path.clone() });
                }
                let [name_a, name_b] = module.names();
                Ok([(name_a, pad(a, 0, rank)?), (name_b, pad(b, 1, rank)?)])
            })
            .collect::<Result<_>>()?;
        tensors.extend(combined.into_iter().flatten());
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok((config, tensors))
}

/// The options that are in force: one adapter is combined linearly.
fn for_number_of(adapters: &[&SavedAdapter], options: &CombineOptions) -> Result<CombineOptions> {
    match adapters {
        [] => Err(Error::NoAdapter),
        [_] => {
            let kind = options.combination;
            if kind.needs_density() || options.svd_rank.is_some() || options.svd_clamp.is_some() {
                let what = format!(
                    "'{kind}' with these options would have no effect: there is one adapter only, and PEFT scales it \
                     linearly; choose linear, or give a second adapter"
                );
                return Err(Error::option("combination", what));
            }
            Ok(CombineOptions { combination: Combination::Linear, ..options.clone() })
        }
        _ => Ok(options.clone()),
    }
}

/// The result's rank: the sum of the adapters' largest ranks for `cat`, `svd_rank` or the largest one for the `svd` kinds,
/// their common one for the others.
fn result_rank(adapters: &[&SavedAdapter], modules: &[Module], options: &CombineOptions) -> Result<usize> {
    let mut ranks = vec![0usize; adapters.len()];
    for factors in modules.iter().flat_map(|m| &m.factors) {
        let rank = &mut ranks[factors.adapter];
        *rank = factors.rank().max(*rank);
    }
    let kind = options.combination;
    let largest = ranks.iter().copied().max().unwrap_or_default();
    let unequal = |first: usize, second: usize, r: usize, s: usize, place: &str| Error::Pair {
        first: adapters[first].name.clone(),
        second: adapters[second].name.clone(),
        what: format!(
            "'{kind}' adds A to A and B to B and so needs equal ranks, but they have {r} and {s}{place}; choose cat or an \
             svd kind"
        ),
    };
    if kind.needs_equal_ranks() {
        if let Some(i) = ranks.iter().position(|&r| r != ranks[0]) {
            return Err(unequal(0, i, ranks[0], ranks[i], ""));
        }
        for module in modules {
            let mut factors = module.factors.iter();
            let Some(first) = factors.next() else { continue };
            if let Some(other) = factors.find(|f| f.rank() != first.rank()) {
                let place = format!(" at '{}'", module.path);
                return Err(unequal(first.adapter, other.adapter, first.rank(), other.rank(), &place));
            }
        }
    }
    let rank = match kind {
        Combination::Cat => ranks.iter().sum(),
        _ if kind.is_svd() => options.svd_rank.unwrap_or(largest),
        _ => largest,
    };
    if rank > MAX_RANK {
        return Err(Error::option("combination", format!("'{kind}' would have the rank {rank}, above 2^20")));
    }
    Ok(rank)
}

/// A `[k, in]` and B `[out, k]` of the result at one module, k ≤ `rank`.
fn combine_module(
    module: &Module,
    weights: &[f64],
    rank: usize,
    options: &CombineOptions,
) -> Result<[Tensor; 2]> {
    let weights: Vec<f64> = module.factors.iter().map(|f| weights[f.adapter]).collect();
    match options.combination {
        Combination::Cat => concatenated(&module.factors, |f, i, x| {
            // PEFT's two roundings.
            x * weights[i] as f32 * f.scaling as f32
        }),
        kind if kind.is_svd() => by_svd(module, &weights, rank, options),
        _ => factorwise(module, &weights, options),
    }
}

/// A's below each other, their elements passed through `scale`, and B's beside each other.
fn concatenated<E: loratune_engine::Element>(
    factors: &[Factors],
    scale: impl Fn(&Factors, usize, f32) -> E,
) -> Result<[Tensor; 2]> {
    let rank: usize = factors.iter().map(Factors::rank).sum();
    let (rows, cols) = factors.first().map_or((0, 0), |f| (f.b.rows(), f.a.cols()));
    let (mut a, mut b) = (Vec::with_capacity(rank * cols), Vec::with_capacity(rows * rank));
    for (i, f) in factors.iter().enumerate() {
        a.extend(f.a.slice::<f32>()?.iter().map(|&x| scale(f, i, x)));
    }
    let bs = factors.iter().map(|f| f.b.slice::<f32>()).collect::<Result<Vec<_>, _>>()?;
    for row in 0..rows {
        for (f, data) in factors.iter().zip(&bs) {
            b.extend_from_slice(&data[row * f.rank()..][..f.rank()]);
        }
    }
    Ok([Tensor::from_vec(a, &[rank, cols])?, Tensor::from_vec(b, &[rows, rank])?])
}

/// DARE's key of one adapter's tensor: by position, so that the bytes don't depend on where adapters lie.
fn dare_key(seed: u64, factors: &Factors, tensor: &str) -> Key {
    Key::new(seed).named("combine").with(factors.adapter as u64).named(tensor)
}

/// A' from all A, B' from all B.
fn factorwise(module: &Module, weights: &[f64], options: &CombineOptions) -> Result<[Tensor; 2]> {
    let weighted: Vec<f64> = module.factors.iter().zip(weights).map(|(f, w)| w * f.scaling).collect();
    let for_b: Vec<f32> = weighted.iter().map(|w| w.abs().sqrt() as f32).collect();
    // The sign goes to one side only: on both it would cancel.
    let for_a: Vec<f32> = for_b.iter().zip(&weighted).map(|(&x, &w)| if w >= 0.0 { x } else { -x }).collect();
    let one = |tensor: fn(&Factors) -> &Tensor, weights: &[f32], name: &str| {
        let tensors = module.factors.iter().map(|f| tensor(f).clone()).collect();
        let keys: Vec<Key> = module.factors.iter().map(|f| dare_key(options.seed, f, name)).collect();
        arithmetic::combine(tensors, weights, &keys, options)
    };
    let [name_a, name_b] = module.names();
    Ok([one(|f| &f.a, &for_a, &name_a)?, one(|f| &f.b, &for_b, &name_b)?])
}

/// The combined update, cut to the rank: B' = UΣ, A' = Vᵀ.
fn by_svd(module: &Module, weights: &[f64], rank: usize, options: &CombineOptions) -> Result<[Tensor; 2]> {
    let failed = |source| Error::Decomposition { module: module.path.clone(), source };
    let Svd { u, s, vt } = if options.combination == Combination::Svd {
        // Σ wᵢsᵢBᵢAᵢ is a product of thin matrices; the wide one is never made.
        let [a, b] = concatenated(&module.factors, |f, i, x| x as f64 * weights[i] * f.scaling)?;
        let b = b.to_dtype(loratune_engine::DType::F64);
        linalg::svd_of_product(&b, &a, rank.min(a.rows()).min(a.cols()).min(b.rows())).map_err(failed)?
    } else {
        let update = |f: &Factors| f.b.matmul(&f.a, f.scaling);
        let updates = module.factors.iter().map(update).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<Key> = module.factors.iter().map(|f| dare_key(options.seed, f, &module.path)).collect();
        let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
        let combined = arithmetic::combine(updates, &weights, &keys, options)?;
        linalg::svd(&combined, rank.min(combined.rows()).min(combined.cols())).map_err(failed)?
    };
    let (mut a, mut b) = (vt, u);
    for row in b.slice_mut::<f32>()?.chunks_mut(s.len()) {
        row.iter_mut().zip(&s).for_each(|(x, s)| *x *= s);
    }
    if let Some(quantile) = options.svd_clamp {
        arithmetic::clamp_to_quantile(b.slice_mut::<f32>()?, a.slice_mut::<f32>()?, quantile);
    }
    Ok([a, b])
}

/// A matrix with zeros added below (dimension 0) or to the right (1) up to `size`.
fn pad(x: Tensor, dimension: usize, size: usize) -> Result<Tensor> {
    let (rows, cols) = (x.rows(), x.cols());
    if x.shape().get(dimension) == Some(&size) {
        return Ok(x);
    }
    let data = x.slice::<f32>()?;
    Ok(if dimension == 0 {
        let mut out = data.to_vec();
        out.resize(size * cols, 0.0);
        Tensor::from_vec(out, &[size, cols])?
    } else {
        let mut out = Vec::with_capacity(rows * size);
        for row in data.chunks(cols.max(1)) {
            out.extend_from_slice(row);
            out.resize(out.len() + size - cols, 0.0);
        }
        Tensor::from_vec(out, &[rows, size])?
    })
}
