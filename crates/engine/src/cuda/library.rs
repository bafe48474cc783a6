//! Finding and opening shared libraries: by the system's search path, and in the folders where NVIDIA's Python wheels and
//! toolkits put them.

use std::path::{Path, PathBuf};

use libloading::Library;

/// Folders to look into first, separated as in PATH.
const VARIABLE: &str = "LORATUNE_CUDA_LIBS";

/// A library of this name, such as `nvrtc`, in one of the versions that are known to work, newest first.
pub fn open(name: &str, versions: &[&str]) -> Result<Library, String> {
    let mut wrong = None;
    let mut attempt = |file: &Path| {
        // SAFETY: NVIDIA's libraries do nothing on being loaded that could break this process.
        match unsafe { Library::new(file) } {
            Ok(library) => Some(library),
            Err(e) => {
                if file.is_absolute() {
                    wrong.get_or_insert(format!("{}: {e}", file.display()));
                }
                None
            }
        }
    };
    let set = std::env::var_os(VARIABLE);
    let own: Vec<PathBuf> = set.iter().flat_map(std::env::split_paths).collect();
    let names: Vec<String> = versions.iter().map(|v| format!("lib{name}.so.{v}")).collect();
    for file in own.iter().flat_map(|dir| names.iter().map(move |n| dir.join(n))).filter(|f| f.exists()) {
        if let Some(library) = attempt(&file) {
            return Ok(library);
        }
    }
    for file in &names {
        if let Some(library) = attempt(Path::new(file)) {
            return Ok(library);
        }
    }
    let folders = folders();
    for file in folders.iter().flat_map(|dir| names.iter().map(move |n| dir.join(n))).filter(|f| f.exists()) {
        if let Some(library) = attempt(&file) {
            return Ok(library);
        }
    }
    Err(wrong.unwrap_or_else(|| {
        format!(
            "{} was not found: neither by the system nor in a CUDA toolkit or a Python environment",
            names[0]
        )
    }))
}

/// Folders of toolkits and of the wheels in the Python environments that this process would see.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        if let Some(root) = std::env::var_os(variable) {
            folders.push(Path::new(&root).join("lib64"));
        }
    }
    let mut toolkits = entries(Path::new("/usr/local"), "cuda");
    toolkits.reverse();
    folders.extend(toolkits.into_iter().map(|root| root.join("lib64")));
    folders.push("/usr/local/nvidia/lib64".into());

    let mut roots: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for bin in std::env::split_paths(&path).filter(|dir| dir.join("python3").exists()) {
        roots.extend(bin.parent().map(Path::to_path_buf));
    }
    if let Some(home) = std::env::var_os("HOME") {
        roots.push(Path::new(&home).join(".local"));
    }
    for root in roots {
        for python in ["lib", "lib64"].iter().flat_map(|lib| entries(&root.join(lib), "python3")) {
            for packages in ["site-packages", "dist-packages"] {
                let wheels = entries(&python.join(packages).join("nvidia"), "");
                folders.extend(wheels.into_iter().map(|wheel| wheel.join("lib")));
            }
        }
    }
    folders
}

/// Entries of a folder whose name begins so, sorted.
fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(read) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = read
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found
}

/// A struct of a library's functions, all found when it is loaded.
macro_rules! functions {
    ($(#[$doc:meta])* pub struct $name:ident { $(fn $f:ident($($arg:ty),*) -> $ret:ty = $symbol:literal;)* }) => {
        $(#[$doc])*
        #[allow(clippy::type_complexity)]
        pub struct $name {
            $(pub $f: unsafe extern "C" fn($($arg),*) -> $ret,)*
            _library: Option<libloading::Library>,
        }

        impl $name {
            pub fn of(library: libloading::Library) -> Result<$name, String> {
                // SAFETY: the signatures are those of the library's documentation, and the pointers live as long as the
                // library that is kept beside them.
                unsafe {
                    Ok($name {
                        $($f: *library
                            .get(concat!($symbol, "\0").as_bytes())
                            .map_err(|_| format!("the library has no function {}", $symbol))?,)*
                        _library: Some(library),
                    })
                }
            }

            /// Functions that do nothing and succeed: a library that is not there.
            #[allow(dead_code)]
            pub fn idle() -> $name {
                $(unsafe extern "C" fn $f($(_: $arg),*) -> $ret { 0 })*
                $name { $($f,)* _library: None }
            }
        }
    };
}
pub(super) use functions;
