//! The kernels' sources, and their machine code: compiled once for a card and kept on disk.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use rayon::prelude::*;

use super::nvrtc::nvrtc;
use crate::ops::KERNELS;

/// A file of CUDA C++ and the macros that it can be compiled with.
pub(crate) struct Source {
    pub name: &'static str,
    pub text: &'static str,
    /// What VARIANT can be: sizes of heads, of which the tests compile these, or numbers of tiles; 0 alone where it has none.
    pub variants: &'static [u32],
    /// Only for Hopper, with what is Hopper's own.
    pub hopper: bool,
}

/// The architecture of Hopper.
pub(super) const HOPPER: i32 = 90;

/// What all sources begin with.
const COMMON: &str = include_str!("common.cuh");
const OF_HOPPER: &str = include_str!("hopper.cuh");

/// A folder whose files, named `sums.cu` and so on, are compiled in place of the sources of these names: for working on kernels
/// without building anew.
const SOURCES: &str = "LORATUNE_CUDA_SOURCES";

/// The text that is compiled.
fn whole(source: &Source) -> String {
    let more = if source.hopper { OF_HOPPER } else { "" };
    let folder = std::env::var_os(SOURCES).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let other = folder.and_then(|f| std::fs::read_to_string(f.join(format!("{}.cu", source.name))).ok());
    let text = other.as_deref().unwrap_or(source.text);
    format!("{COMMON}\n{more}\n#line 1 \"{}.cu\"\n{text}", source.name)
}

/// What NVRTC calls the architecture that a source is compiled for.
fn target(source: &Source, arch: i32) -> String {
    format!("{arch}{}", if source.hopper { "a" } else { "" })
}

/// Machine code of a source for an architecture, from the disk if it has been compiled before.
pub(super) fn machine_code(source: &Source, arch: i32, defines: &[String]) -> Result<Vec<u8>, String> {
    let nvrtc = nvrtc()?;
    let (text, arch) = (whole(source), &target(source, arch));
    let cached = cache_file(source.name, &text, arch, defines, nvrtc.release());
    if let Some(code) = cached.as_ref().and_then(|path| std::fs::read(path).ok()).filter(|c| is_whole(c)) {
        return Ok(code[8..].to_vec());
    }
    let code = nvrtc.cubin(source.name, &text, arch, defines)?;
    if let Some(path) = cached {
        // A cache that can't be written only costs time.
        let _ = keep(&path, &code);
    }
    Ok(code)
}

/// The macros of a source's variant.
pub(super) fn defines(variant: u32) -> Vec<String> {
    if variant == 0 { Vec::new() } else { vec![format!("VARIANT={variant}")] }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Whether a cached file is what was written: its digest, then the code.
fn is_whole(file: &[u8]) -> bool {
    file.split_first_chunk::<8>().is_some_and(|(sum, code)| u64::from_le_bytes(*sum) == digest(code))
}

fn keep(path: &std::path::Path, code: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir)?;
    // Renamed into place, so that another process never reads half a file.
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&aside, [&digest(code).to_le_bytes()[..], code].concat())?;
    std::fs::rename(&aside, path)
}

fn cache_file(
    name: &str,
    text: &str,
    arch: &str,
    defines: &[String],
    release: (i32, i32),
) -> Option<PathBuf> {
    let dir = match std::env::var_os("XDG_CACHE_HOME").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    let mut hasher = DefaultHasher::new();
    (text, arch, defines, release).hash(&mut hasher);
    let file = format!("{name}-sm_{arch}-{:016x}.cubin", hasher.finish());
    Some(dir.join("loratune").join("kernels").join(file))
}

/// One source in one variant, compiled for one architecture.
#[derive(Debug)]
pub struct Compiled {
    pub source: &'static str,
    pub variant: String,
    pub arch: i32,
    /// The size of the machine code, or the compiler's messages.
    pub result: Result<usize, String>,
}

/// Compiles every kernel for these architectures (90 for sm_90), for tests on machines without a card.
///
/// # Errors
/// Why there is no compiler.
pub fn compile_all(archs: &[i32]) -> Result<Vec<Compiled>, String> {
    let nvrtc = nvrtc()?;
    let variants =
        KERNELS.iter().flat_map(|&source| source.variants.iter().map(move |&variant| (source, variant)));
    let known: Vec<i32> = archs.iter().copied().filter(|&arch| nvrtc.knows(arch)).collect();
    let tasks: Vec<(&Source, u32, i32)> = variants
        .flat_map(|(source, variant)| known.iter().map(move |&arch| (source, variant, arch)))
        .filter(|&(source, _, arch)| !source.hopper || arch == HOPPER)
        .collect();
    Ok(tasks
        .into_par_iter()
        .map(|(source, variant, arch)| {
            let defines = defines(variant);
            let result = nvrtc
                .cubin(source.name, &whole(source), &target(source, arch), &defines)
                .map(|code| code.len());
            Compiled { source: source.name, variant: defines.join(" "), arch, result }
        })
        .collect())
}
