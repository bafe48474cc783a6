//! Putting adapters on a decoder: fresh, from files, or from a checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use loratune_engine::cuda::PlannedDevice;
use loratune_engine::ops::{Dora, Dropout, Lora, RowNorm};
use loratune_engine::{DType, Device, FrozenWeight, Params, Tensor, Weight};
use rayon::prelude::*;

use super::init::{self, StartingPoint};
use super::plan::Site;
use super::saved::{self, SavedTensors};
use super::{AdapterSpec, Init, tokens};
use crate::decoder::{Decoder, Matrix, WeightSource};
use crate::error::{Error, Result};
use crate::files::RawTensor;
use crate::spec::{EMBEDDING, HEAD, MatrixKind};

/// Where A, B and magnitudes come from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// The initialiser, drawn from a seed.
    Fresh { seed: u64 },
    /// An adapter's files, as PEFT means them.
    Saved(&'a BTreeMap<String, RawTensor<'static>>),
    /// A checkpoint of a run with this spec, in [`Form::Plain`](super::Form).
    Resumed(&'a BTreeMap<String, RawTensor<'static>>),
    /// Shapes alone, on a device that is planned with.
    Planned(&'a PlannedDevice),
}

/// What was attached.
#[derive(Clone, Debug)]
pub struct Attached {
    pub spec: AdapterSpec,
    /// Last path components of the adapted modules, sorted: what PEFT's `target_modules` lists.
    pub targets: Vec<String>,
    pub modules: usize,
    /// The first A and B, which were taken out of the base weight, by module path.
    pub(crate) taken: BTreeMap<String, [Tensor; 2]>,
    /// Base weights that the adapter's files bring along, by tensor name.
    pub(crate) replaced: BTreeMap<String, Tensor>,
}

/// One site's tensors.
struct SiteStart {
    a: Tensor,
    b: Tensor,
    /// DoRA's, if the files hold it.
    magnitude: Option<Tensor>,
    taken: Option<[Tensor; 2]>,
    residual: Option<Tensor>,
}

impl SiteStart {
    fn plain(a: Tensor, b: Tensor) -> SiteStart {
        SiteStart { a, b, magnitude: None, taken: None, residual: None }
    }
}

impl From<StartingPoint> for SiteStart {
    fn from(start: StartingPoint) -> SiteStart {
        let taken = start.residual.is_some().then(|| [start.a.clone(), start.b.clone()]);
        SiteStart { taken, residual: start.residual, ..SiteStart::plain(start.a, start.b) }
    }
}

/// Attaches `spec`'s adapters to a decoder that was built with [`AdapterSpec::trained`]'s tensors as parameters, and with
/// nothing else trained. `source` gives the base's weights, for initialisers that look at them.
///
/// # Errors
/// If the spec does not fit the model; if a tensor of the files is missing, left over, of the wrong shape, or not
/// finite: an adapter is loaded whole or not at all.
pub fn attach(
    decoder: &mut Decoder,
    params: &mut Params,
    spec: &AdapterSpec,
    start: Start<'_>,
    source: &dyn WeightSource,
) -> Result<Attached> {
    let sites = spec.sites(decoder.spec())?;
    let names: BTreeSet<&str> = sites.iter().filter_map(|s| s.matrix.path.rsplit('.').next()).collect();
    let mut attached = Attached {
        spec: spec.clone(),
        targets: names.into_iter().map(str::to_string).collect(),
        modules: sites.len(),
        taken: BTreeMap::new(),
        replaced: BTreeMap::new(),
    };
    tokens::put(decoder, params, &spec.token_rows(decoder.spec())?)?;
    if let Start::Saved(tensors) | Start::Resumed(tensors) = start {
        let saved = SavedTensors::new(tensors, &sites, decoder, params, spec.use_dora);
        saved.check_names()?;
        saved.read_trained(params)?;
        attached.replaced = saved.base_weights(decoder)?;
        replace_base(decoder, &attached.replaced);
    }
    let storage = decoder.storage();
    let is_planned = matches!(start, Start::Planned(_));
    let tied = decoder.spec().tied_head;
    for sites in portions(&sites) {
        // Weights that are on a card are worked on there.
        let on_card = on_card(decoder, sites);
        let weight = |site: &Site| match on_card.get(&site.matrix.path) {
            Some(w) if !attached.replaced.contains_key(&site.weight()) => Ok(w.to_dtype(DType::F32)),
            _ => base_weight(site, tied, &attached.replaced, source),
        };
        let starts = sites
            .par_iter()
            .map(|site| {
                let mut start: SiteStart = match start {
                    Start::Fresh { seed } => init::start(site, spec.init, seed, || weight(site))?.into(),
                    // A base weight that comes along lacks what the initialiser took out of it already.
                    Start::Saved(tensors) if attached.replaced.contains_key(&site.weight()) => from_saved(
                        site,
                        &AdapterSpec { init: Init::Kaiming, ..spec.clone() },
                        tensors,
                        || weight(site),
                    )?,
                    Start::Saved(tensors) => from_saved(site, spec, tensors, || weight(site))?,
                    Start::Resumed(tensors) => from_checkpoint(site, spec, tensors, || weight(site))?,
                    Start::Planned(device) => planned(site, spec, device)?,
                };
                start.residual = start.residual.map(|w| w.to_dtype(storage));
                Ok(start)
            })
            .collect::<Result<Vec<SiteStart>>>()?;
        for (site, mut start) in sites.iter().zip(starts) {
            if let Some(taken) = start.taken.take() {
                attached.taken.insert(site.matrix.path.clone(), taken);
            }
            put(decoder, params, spec, site, start, is_planned)?;
        }
    }
    Ok(attached)
}

/// The frozen weights of these sites that are on a card, by path.
fn on_card(decoder: &Decoder, sites: &[Site]) -> BTreeMap<String, Tensor> {
    let paths: BTreeSet<&str> = sites.iter().map(|site| site.matrix.path.as_str()).collect();
    let matrices = decoder.matrices().filter(|m| paths.contains(m.path.as_str()));
    let there = matrices.filter_map(|m| match &m.weight {
        Weight::Frozen(w) if w.device() != Device::Cpu => {
            let FrozenWeight::Dense(tensor) = &**w;
            Some((m.path.clone(), tensor.clone()))
        }
        _ => None,
    });
    there.collect()
}

/// Sites that are worked on at a time: initialisers hold copies of W in f32 and f64.
fn portions(sites: &[Site]) -> Vec<&[Site]> {
    const BYTES: usize = 2 << 30;
    let (mut portions, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, site) in sites.iter().enumerate() {
        let [rows, cols] = site.matrix.shape;
        let bytes = rows.saturating_mul(cols).saturating_mul(32);
        if i > start && (held + bytes > BYTES || i - start >= 4 * rayon::current_num_threads()) {
            portions.push(&sites[start..i]);
            (start, held) = (i, 0);
        }
        held += bytes;
    }
    portions.push(&sites[start..]);
    portions
}

/// The tensor of the files that a module's weight is in: a head that shares the embedding's has none of its own.
pub(crate) fn stored_name(tensor: &str, tied: bool) -> String {
    let head = tied && tensor.strip_suffix(".weight") == Some(HEAD);
    if head { format!("{EMBEDDING}.weight") } else { tensor.to_string() }
}

/// The base's W in f32.
pub(super) fn base_weight(
    site: &Site,
    tied: bool,
    replaced: &BTreeMap<String, Tensor>,
    source: &dyn WeightSource,
) -> Result<Tensor> {
    let (own, stored) = (site.weight(), stored_name(&site.weight(), tied));
    match replaced.get(&own).or(replaced.get(&stored)) {
        Some(tensor) => Ok(tensor.clone()),
        None => source.tensor(&stored, &site.matrix.shape, DType::F32),
    }
}

fn from_saved(
    site: &Site,
    spec: &AdapterSpec,
    tensors: &BTreeMap<String, RawTensor<'static>>,
    weight: impl FnOnce() -> Result<Tensor>,
) -> Result<SiteStart> {
    let (a, b) = saved::factors(site, tensors, site.r)?;
    let mut start = SiteStart::plain(a, b);
    // An unconverted PiSSA or OLoRA adapter: what its start took out of the base is taken out again.
    if spec.init.changes_base() && site.matrix.kind != MatrixKind::Embedding {
        let first = init::start(site, spec.init, 0, weight)?;
        (start.residual, start.taken) = (first.residual, Some([first.a, first.b]));
    }
    if spec.use_dora {
        start.magnitude = Some(saved::magnitude(site, tensors)?);
    }
    Ok(start)
}

fn from_checkpoint(
    site: &Site,
    spec: &AdapterSpec,
    tensors: &BTreeMap<String, RawTensor<'static>>,
    weight: impl FnOnce() -> Result<Tensor>,
) -> Result<SiteStart> {
    if !spec.init.changes_base() {
        return from_saved(site, spec, tensors, weight);
    }
    let (a, b) = saved::factors(site, tensors, 2 * site.r)?;
    let ([a, first_a], [b, mut first_b]) = (saved::split_rows(&a)?, saved::split_cols(&b)?);
    let mut start = SiteStart::plain(a, b);
    if site.matrix.kind != MatrixKind::Embedding {
        first_b.scale_assign(-1.0);
        start.residual = Some(init::residual(&weight()?, &first_a, &first_b, site.scaling)?);
        start.taken = Some([first_a, first_b]);
    }
    if spec.use_dora {
        start.magnitude = Some(saved::magnitude(site, tensors)?);
    }
    Ok(start)
}

fn planned(site: &Site, spec: &AdapterSpec, device: &PlannedDevice) -> Result<SiteStart> {
    let [rows, cols] = site.matrix.shape;
    let [out, input] = if site.matrix.kind == MatrixKind::Embedding { [cols, rows] } else { [rows, cols] };
    let tensor = |shape: &[usize]| device.tensor(DType::F32, shape);
    let start = SiteStart::plain(tensor(&[site.r, input])?, tensor(&[out, site.r])?);
    Ok(SiteStart { magnitude: spec.use_dora.then(|| tensor(&[out])).transpose()?, ..start })
}

fn matrix_mut<'d>(decoder: &'d mut Decoder, path: &str) -> Result<&'d mut Matrix> {
    decoder
        .matrices_mut()
        .find(|m| m.path == path)
        .ok_or_else(|| Error::Invalid(format!("the decoder has no module '{path}'")))
}

/// Puts one adapter in place.
fn put(
    decoder: &mut Decoder,
    params: &mut Params,
    spec: &AdapterSpec,
    site: &Site,
    start: SiteStart,
    is_planned: bool,
) -> Result<()> {
    let dtype = decoder.dtype().compute();
    let matrix = matrix_mut(decoder, &site.matrix.path)?;
    let embedding = matrix.kind == MatrixKind::Embedding;
    if let Some(residual) = start.residual {
        matrix.weight = Weight::dense(residual);
    }
    let [a, b, m] = saved::names(&site.matrix.path, site.matrix.kind);
    let mut lora = Lora {
        a: params.add(a, start.a.to_dtype(dtype))?,
        b: params.add(b, start.b.to_dtype(dtype))?,
        scaling: site.scaling,
        // PEFT's adapters on embeddings have no dropout: there is no input to drop.
        dropout: match spec.dropout {
            p if p > 0.0 && !embedding => Dropout::Random(p),
            _ => Dropout::None,
        },
        dora: None,
    };
    if spec.use_dora {
        // Norms are taken in the host's memory, of what is there now: an initialiser may have changed it.
        let resolved = matrix.weight.resolve(params);
        let FrozenWeight::Dense(weight) = &*resolved;
        let there = match weight.device() {
            Device::Cuda(_) if !is_planned => {
                &Matrix { weight: Weight::dense(weight.to_device(Device::Cpu)?), ..matrix.clone() }
            }
            _ => &*matrix,
        };
        let weight = there.weight.resolve(params);
        let squares = match &start.magnitude {
            // Of a weight that is not there.
            Some(magnitude) if is_planned => vec![0.0; magnitude.numel()],
            _ if embedding => weight.column_squares(),
            _ => weight.row_squares(),
        };
        let magnitude = match start.magnitude {
            Some(m) => m.to_dtype(dtype),
            None => {
                let norms = there.adapted_norms(params, &lora)?;
                let n = norms.len();
                Tensor::from_vec(norms, &[n])?.to_dtype(dtype)
            }
        };
        let magnitude = params.add(m, magnitude)?;
        lora.dora = Some(Dora { magnitude, norm: RowNorm::Recomputed { squares: squares.into() } });
    }
    matrix.adapter = Some(lora);
    Ok(())
}

/// Puts base weights from an adapter's files in place; a head that shares the embedding's goes with it.
fn replace_base(decoder: &mut Decoder, replaced: &BTreeMap<String, Tensor>) {
    let tied = decoder.spec().tied_head;
    let embedding = replaced.get(&format!("{EMBEDDING}.weight"));
    for matrix in decoder.matrices_mut() {
        let own = replaced.get(&format!("{}.weight", matrix.path));
        let shared = embedding.filter(|_| tied && matrix.path == HEAD);
        if let (Some(tensor), Weight::Frozen(old)) = (own.or(shared), &matrix.weight) {
            let FrozenWeight::Dense(old) = &**old;
            matrix.weight = Weight::dense(tensor.to_dtype(old.dtype()));
        }
    }
}
