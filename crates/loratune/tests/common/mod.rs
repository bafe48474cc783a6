//! Running the binary, and a folder to run it in.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Every file below a folder that holds a text.
pub fn holding(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|w| w == text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

/// A run of the binary that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        let text = |b: Vec<u8>| String::from_utf8(b).expect("output is UTF-8");
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Checks that it went well.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Checks that it failed with this exit code and one message that holds all of `parts`.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> Ran {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        let told = self.err.lines().filter(|l| l.starts_with("error:")).count();
        assert_eq!(told, 1, "one error is told once:\n{}", self.err);
        assert!(!self.err.contains("panicked") && !self.err.contains("backtrace"), "{}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not in:\n{}", self.err);
        }
        self
    }

    /// The objects of `--json` output.
    pub fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().map(|l| serde_json::from_str(l).expect("each line is JSON")).collect()
    }
}

/// A folder that goes away, in which commands run.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect("the test can write");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The binary, in this folder, cut off from the terminal and from the environment's wishes.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loratune"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        // Nor are names looked up in anybody's cache, or on the network.
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.path(".hf"));
        command.env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN").env_remove("HF_ENDPOINT");
        command.env_remove("RUST_LOG").env_remove("RAYON_NUM_THREADS").env_remove("COLUMNS");
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the binary starts"))
    }

    /// As [`Place::run`], with text on standard input.
    pub fn run_with(&self, args: &[&str], input: &str) -> Ran {
        use std::io::Write;
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        Ran::of(child.wait_with_output().expect("it ends"))
    }

    /// Puts the model that comes with loratune here, as `quickstart` does.
    pub fn embedded_model(&self, to: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/quickstart/model");
        std::fs::create_dir_all(self.path(to)).expect("the test can write");
        for file in std::fs::read_dir(from).expect("the model is there").flatten() {
            std::fs::copy(file.path(), self.path(to).join(file.file_name())).expect("the test can write");
        }
    }

    /// Copies one of the tiny models here, to be damaged.
    pub fn copy_model(&self, name: &str, to: &str) {
        let from = model(name);
        std::fs::create_dir_all(self.path(to)).expect("the test can write");
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(Path::new(&from).join(file), self.path(to).join(file)).expect("the model is whole");
        }
    }

    /// No file or folder that was being written is left anywhere below.
    #[track_caller]
    pub fn assert_nothing_unfinished(&self) {
        let mut folders = vec![self.dir.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("readable").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let unfinished = name.contains("loratune-tmp") || name.contains("loratune-old");
                assert!(!unfinished && !name.ends_with(".tmp"), "left behind: {}", entry.path().display());
                if entry.path().is_dir() {
                    folders.push(entry.path());
                }
            }
        }
    }
}

fn goldens(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("crates").join(path).display().to_string()
}

/// A tiny model.
pub fn model(name: &str) -> String {
    goldens(&format!("model/tests/goldens/llama/{name}"))
}

/// An adapter for `gqa-untied` (or `tied-bf16`, where the name says tied) that PEFT trained for ten steps.
pub fn peft_adapter(case: &str) -> String {
    goldens(&format!("train/tests/goldens/methods/{case}/final_adapter"))
}

/// PiSSA and OLoRA before training, after it, and converted by PEFT.
pub fn converted_by_peft(name: &str) -> String {
    goldens(&format!("model/tests/goldens/convert/{name}"))
}

/// Tokenised rows for the tiny models: `train` or `eval`.
pub fn rows(name: &str) -> String {
    goldens(&format!("train/tests/goldens/runs/{name}.jsonl"))
}
