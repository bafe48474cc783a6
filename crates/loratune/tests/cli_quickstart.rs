//! The embedded default, as the README's first command runs it, with fewer steps.

mod common;

use common::Place;

/// The two numbers of a line of the table of results.
fn numbers(text: &str, name: &str) -> (f64, f64) {
    let line =
        text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no line '{name}' in:\n{text}"));
    let found: Vec<f64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    (found[0], found[1])
}

#[test]
fn quickstart_teaches_the_base_what_it_cannot_do() {
    let place = Place::new();
    let ran = place.run(&["quickstart", "--output", "q", "max_steps=200"]).ok();
    let (before, after) = numbers(&ran.out, "exact match");
    assert!(before == 0.0 && after > 20.0, "{}", ran.out);
    let (before, after) = numbers(&ran.out, "eval loss");
    assert!(after < 0.3 * before, "{}", ran.out);
    for file in [
        "adapter/adapter_model.safetensors",
        "adapter/training_loss.png",
        "model/config.json",
        "data/test.jsonl",
    ] {
        assert!(place.path("q").join(file).is_file(), "{file}");
    }

    // What it wrote is an ordinary run: its configuration works by itself, from its own folder.
    let mut command = place.command(&["train", "quickstart.yaml", "--dry-run"]);
    let refused = common::Ran::of(command.current_dir(place.path("q")).output().unwrap());
    refused.fails(2, &["adapter", "overwrite_output_dir=true"]);
    let mut command = place.command(&["train", "quickstart.yaml", "overwrite_output_dir=true", "--dry-run"]);
    common::Ran::of(command.current_dir(place.path("q")).output().unwrap()).ok();

    // It isn't done twice unasked, and never in a folder of somebody else's.
    place.run(&["quickstart", "--output", "q"]).fails(2, &["--overwrite"]);
    std::fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/notes.txt", "mine");
    place.run(&["quickstart", "--output", "mine", "--overwrite"]).fails(2, &["not a quickstart's folder"]);
    assert_eq!(place.read("mine/notes.txt"), b"mine");
    place.assert_nothing_unfinished();
}

#[cfg(unix)]
#[test]
fn an_interrupted_quickstart_prints_a_command_that_goes_on() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let place = Place::new();
    // A name that needs quoting, a setting of the user's own, and one that must not be repeated.
    let args = [
        "quickstart",
        "--output",
        "my first",
        "--threads",
        "1",
        "max_steps=40",
        "logging_steps=1",
        "overwrite_output_dir=true",
    ];
    let mut command = place.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|l| l.as_ref().unwrap().starts_with("step ")).unwrap().unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    lines.for_each(drop);
    let ran = common::Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let printed = ran.err.lines().skip_while(|l| *l != "to go on:").nth(1).unwrap().trim();
    let expected = "train 'my first/quickstart.yaml' 'model_name_or_path=my first/model' \
                    'dataset=my first/data/train.jsonl' 'eval_dataset=my first/data/test.jsonl' \
                    'output_dir=my first/adapter' threads=1 max_steps=40 logging_steps=1 resume_from_checkpoint=true";
    assert!(printed.ends_with(expected), "{printed}");
    let again = Command::new("sh").args(["-c", printed]).current_dir(place.path("")).output().unwrap();
    let again = common::Ran::of(again).ok();
    assert!(again.out.contains("finished"), "{}", again.out);
    assert!(place.path("my first/adapter/adapter_model.safetensors").is_file());
}
