//! Runs that are killed or interrupted, and go on. Unix only: signals.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Ran, model, rows};

/// A run whose every source of randomness is used: dropout, shuffling, evaluation, the best checkpoint.
fn settings(place: &Place, steps: u32) {
    let yaml = format!(
        "model_name_or_path: {}\ndataset: {}\neval_dataset: {}\noutput_dir: out\nlora_dropout: 0.2\n\
         max_steps: {steps}\nsave_steps: 14\neval_strategy: steps\neval_steps: 7\nlogging_steps: 3\n\
         load_best_model_at_end: true\nsave_total_limit: 3\nlearning_rate: 0.002\nper_device_train_batch_size: 3\n\
         gradient_accumulation_steps: 2\nplot_loss: false\n",
        model("tied-bf16"),
        rows("train"),
        rows("eval"),
    );
    place.write("run.yaml", yaml);
}

/// What has to be equal in the end.
fn result(place: &Place) -> [Vec<u8>; 2] {
    ["out/adapter_model.safetensors", "out/trainer_state.json"].map(|f| place.read(f))
}

#[track_caller]
fn assert_same(a: &[Vec<u8>; 2], b: &[Vec<u8>; 2]) {
    assert!(a[1] == b[1], "{}\n{}", String::from_utf8_lossy(&a[1]), String::from_utf8_lossy(&b[1]));
    assert!(a[0] == b[0], "the adapters differ");
}

fn uninterrupted(steps: u32) -> [Vec<u8>; 2] {
    let place = Place::new();
    settings(&place, steps);
    place.run(&["train", "run.yaml", "-q"]).ok();
    result(&place)
}

fn start(place: &Place, more: &[&str]) -> Child {
    let mut command = place.command(&[&["train", "run.yaml"], more].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Kills with SIGKILL as soon as `now` says so; whether it was still running then.
fn kill_when(child: &mut Child, mut now: impl FnMut() -> bool) -> bool {
    while child.try_wait().unwrap().is_none() {
        if now() {
            child.kill().unwrap();
            return child.wait().unwrap().code().is_none();
        }
        std::thread::yield_now();
    }
    false
}

fn has_checkpoint(out: &Path) -> bool {
    let whole = |e: std::fs::DirEntry| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.starts_with("checkpoint-") && e.path().join("loratune_state.json").is_file()
    };
    std::fs::read_dir(out).into_iter().flatten().flatten().any(whole)
}

#[test]
fn a_run_killed_at_many_moments_ends_with_the_bytes_of_one_that_was_not() {
    let steps = 60;
    let expected = uninterrupted(steps);
    let place = Place::new();
    settings(&place, steps);
    let out = place.path("out");
    // While a checkpoint is being written, when one has just appeared, and at odd times in between.
    let unfinished = |n: u32| out.join(format!(".checkpoint-{n}.loratune-tmp")).exists();
    let written = |n: u32| out.join(format!("checkpoint-{n}")).exists();
    let mut clock = Instant::now();
    let mut killed = 0;
    for moment in 0..8 {
        let resume: &[&str] = match has_checkpoint(&out) {
            true => &["resume_from_checkpoint=true"],
            false => &["overwrite_output_dir=true"],
        };
        let mut child = start(&place, resume);
        clock = if moment % 2 == 1 { Instant::now() } else { clock };
        let was_running = kill_when(&mut child, || match moment {
            0 => unfinished(7),
            2 => written(14),
            4 => unfinished(28) || written(35),
            6 => out.join(".trainer_state.json.loratune-tmp").exists() || written(56),
            odd => clock.elapsed() > Duration::from_millis(20 + 15 * odd),
        });
        killed += u32::from(was_running);
    }
    assert!(killed >= 3, "only {killed} of the kills hit a running process: the moments need other times");
    let resume =
        if has_checkpoint(&out) { "resume_from_checkpoint=true" } else { "overwrite_output_dir=true" };
    place.run(&["train", "run.yaml", "-q", resume]).ok();
    assert_same(&result(&place), &expected);
    place.assert_nothing_unfinished();
}

/// Starts a run, sends it a signal after its first line about a step, and waits for its end.
fn interrupted(place: &Place, name: &str) -> Ran {
    let mut child = start(place, &["overwrite_output_dir=true"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|l| l.as_ref().unwrap().starts_with("step ")).unwrap().unwrap();
    signal(&child, name);
    let out = lines.map(|l| l.unwrap() + "\n").collect();
    let mut ran = Ran::of(child.wait_with_output().unwrap());
    ran.out = out;
    ran
}

#[test]
fn ctrl_c_and_sigterm_save_and_the_printed_command_goes_on_to_the_same_bytes() {
    let steps = 120;
    let expected = uninterrupted(steps);
    for name in ["-INT", "-TERM"] {
        let place = Place::new();
        settings(&place, steps);
        let ran = interrupted(&place, name);
        assert_eq!(ran.code, Some(130), "{ran:?}");
        assert!(ran.err.contains("stopped after step"), "{ran:?}");
        place.assert_nothing_unfinished();
        let command = ran.err.lines().skip_while(|l| *l != "to go on:").nth(1).unwrap().trim();
        assert!(command.ends_with("train run.yaml resume_from_checkpoint=true"), "{command}");
        let again = Command::new("sh").args(["-c", command]).current_dir(place.path("")).output().unwrap();
        Ran::of(again).ok();
        assert_same(&result(&place), &expected);
    }
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let place = Place::new();
    settings(&place, 10);
    // One step over all of this takes many seconds.
    place.write("long.jsonl", format!("{{\"input_ids\": [{}]}}\n", ["5"; 120].join(",")).repeat(5000));
    let more = ["dataset=long.jsonl", "per_device_train_batch_size=1", "gradient_accumulation_steps=5000"];
    let mut child = start(&place, &more);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut shown = BufReader::new(child.stdout.take().unwrap()).lines();
    shown.find(|l| l.as_ref().unwrap().starts_with("memory")).unwrap().unwrap();
    // Signals are handled from when the run begins, which it does by making its folder.
    while !place.path("out/run_config.yaml").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "-INT");
    said.find(|l| l.as_ref().unwrap().contains("press Ctrl-C again")).unwrap().unwrap();
    let clock = Instant::now();
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
    assert!(!has_checkpoint(&place.path("out")), "it did not wait for the step");
}

#[test]
fn an_output_folder_that_holds_something_is_left_alone() {
    let place = Place::new();
    settings(&place, 7);
    std::fs::create_dir(place.path("out")).unwrap();
    place.write("out/notes.txt", "mine");
    place
        .run(&["train", "run.yaml"])
        .fails(2, &["out: output_dir is not empty", "overwrite_output_dir=true"]);
    place.run(&["train", "run.yaml", "overwrite_output_dir=true"]).ok();
    assert_eq!(place.read("out/notes.txt"), b"mine", "only what a run wrote is replaced");
    place
        .run(&["train", "run.yaml"])
        .fails(2, &["out: output_dir holds a run", "resume_from_checkpoint=true"]);
    place
        .run(&["train", "run.yaml", "resume_from_checkpoint=true", "lora_rank=4"])
        .fails(1, &["lora_rank (8 there, 4 here)"]);
}

#[test]
fn merging_never_replaces_what_it_should_not() {
    let place = Place::new();
    place.copy_model("tied-bf16", "base");
    place.copy_model("tied-bf16", "old");
    std::fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/thesis.tex", "years of work");
    let merge = |more: &[&str]| place.run(&[&["merge", "--model", "base", "--output"], more].concat());
    merge(&["old"]).fails(2, &["--output is not empty", "--overwrite"]);
    merge(&["mine", "--overwrite"]).fails(2, &["not a model"]);
    merge(&["base", "--overwrite"]).fails(2, &["name another folder"]);
    merge(&["base/config.json"]).fails(2, &["is a file"]);
    for (file, named) in [
        ("checkpoint-5/trainer_state.json", "checkpoint-5"),
        ("adapter_model.safetensors", "adapter_model.safetensors"),
        ("notes.txt", "notes.txt"),
        ("additional_chat_templates/notes.txt", "additional_chat_templates/notes.txt"),
        ("model-00001-of-few.safetensors", "model-00001-of-few.safetensors"),
    ] {
        let path = place.path("old").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        place.write(&format!("old/{file}"), "mine");
        let told = format!("--output holds {named}, which this command does not write");
        merge(&["old", "--overwrite"]).fails(2, &[&told]);
        assert_eq!(place.read(&format!("old/{file}")), b"mine");
        std::fs::remove_file(&path).unwrap();
        if path.parent() != Some(&place.path("old")) {
            std::fs::remove_dir(path.parent().unwrap()).unwrap();
        }
    }
    merge(&["old", "--overwrite"]).ok();
    merge(&["old", "--overwrite"]).ok();
    assert_eq!(place.read("mine/thesis.tex"), b"years of work");
    place.assert_nothing_unfinished();
}
