//! The file of the lengths that merging DoRA replaces: safetensors, `{module path}.norm` in f64 by output feature.

use std::path::Path;

use anyhow::{Result, ensure};
use loratune_model::adapter::Norms;
use loratune_model::files::{FileDType, SafetensorsSource, TensorSource, write_safetensors};

use super::folder::real;
use crate::output::Usage;

const SUFFIX: &str = ".norm";

/// Whether the file may be written.
///
/// # Errors
/// How the command line has to change.
pub fn check(path: &Path, overwrite: bool, output: &Path, sources: &[&Path]) -> Result<()> {
    let usage = |what: &str| Err(Usage(format!("{}: {what}", path.display())).into());
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.starts_with(output) || real(parent).starts_with(real(output)) {
        return usage("--norms lies in the output folder; name a file beside it");
    }
    let within = |s: &&Path| real(path).starts_with(real(s)) || real(parent).starts_with(real(s));
    if sources.iter().any(within) {
        return usage("--norms lies in the model or the adapter that is read; name another file");
    }
    if path.is_dir() || !parent.is_dir() {
        return usage("--norms has to be a file in a folder that exists");
    }
    match path.exists() && !overwrite {
        true => usage("--norms exists: name another file, or add --overwrite to replace it"),
        false => Ok(()),
    }
}

/// # Errors
/// What the disk refuses.
pub fn write(path: &Path, norms: &Norms) -> Result<()> {
    let bytes = |n: &Vec<f64>| n.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let all: Vec<(String, [usize; 1], Vec<u8>)> =
        norms.iter().map(|(path, n)| (format!("{path}{SUFFIX}"), [n.len()], bytes(n))).collect();
    let views: Vec<_> = all
        .iter()
        .map(|(name, shape, b)| (name.as_str(), FileDType::F64, &shape[..], b.as_slice()))
        .collect();
    Ok(write_safetensors(path, &views)?)
}

/// # Errors
/// If the file is damaged, or another.
pub fn read(path: &Path) -> Result<Norms> {
    let source = SafetensorsSource::open_file(path)?;
    let mut norms = Norms::new();
    for name in source.names() {
        let values = source.read(name)?.to_f64();
        let module = name.strip_suffix(SUFFIX);
        let good = module.is_some() && values.iter().all(|n| n.is_finite() && *n > 0.0);
        ensure!(
            good,
            "{}: holds the tensor '{name}'; this is no file of norms of `loratune merge`",
            path.display()
        );
        norms.insert(module.unwrap_or(name).to_string(), values);
    }
    Ok(norms)
}
