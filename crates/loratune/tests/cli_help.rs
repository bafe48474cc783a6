//! Help, version, and the configuration as it is printed.

mod common;

use common::{Place, model, rows};

const COMMANDS: [&str; 14] = [
    "export",
    "quickstart",
    "train",
    "llm",
    "merge",
    "unmerge",
    "convert",
    "combine",
    "generate",
    "chat",
    "eval",
    "inspect",
    "bench",
    "estimate",
];

/// Compares with a file in `snapshots/`; LORATUNE_UPDATE_SNAPSHOTS=1 writes it instead.
#[track_caller]
fn assert_snapshot(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("LORATUNE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == text,
        "{name} is not what it was; if it should not be, set LORATUNE_UPDATE_SNAPSHOTS=1 and look at the difference.\n\
         expected:\n{expected}\nfound:\n{text}"
    );
}

#[test]
fn help_of_every_command_is_as_recorded() {
    let place = Place::new();
    assert_snapshot("help.txt", &place.run(&["--help"]).ok().out);
    for command in COMMANDS {
        assert_snapshot(&format!("help_{command}.txt"), &place.run(&[command, "--help"]).ok().out);
    }
}

#[test]
fn every_option_is_documented_and_every_command_has_an_example() {
    let place = Place::new();
    for command in COMMANDS {
        let help = place.run(&[command, "-h"]).ok().out;
        assert!(help.contains(&format!(": loratune {command} ")), "{help}");
        let options = help.split("\nExample").next().unwrap();
        for line in options.lines().filter(|l| l.trim_start().starts_with('-')) {
            // The description stands two spaces or more behind the option, or on the next line.
            let option = line.trim_start();
            let next = help.lines().skip_while(|l| *l != line).nth(1).unwrap_or_default();
            assert!(option.contains("  ") || next.starts_with("          "), "no description: {option}");
        }
    }
}

#[test]
fn the_short_help_of_train_leaves_the_keys_to_the_long_one() {
    let place = Place::new();
    let (short, long) = (place.run(&["train", "-h"]).ok().out, place.run(&["train", "--help"]).ok().out);
    assert!(!short.contains("lora_rank") && long.contains("    lora_rank: 8\n"), "{short}");
}

#[test]
fn help_answers_in_under_50_milliseconds() {
    let place = Place::new();
    let time = || {
        let clock = std::time::Instant::now();
        place.run(&["--help"]).ok();
        clock.elapsed().as_millis()
    };
    // The best of several: the machine may be busy with other tests.
    let best = (0..10).map(|_| time()).min().unwrap();
    assert!(best < 50, "{best} ms");
}

#[test]
fn the_version_is_the_package_s() {
    let expected = format!("loratune {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(Place::new().run(&["--version"]).ok().out, expected);
}

#[test]
fn print_config_shows_every_value_and_where_it_comes_from() {
    let place = Place::new();
    place.write("run.yaml", "model_name_or_path: m\ndataset: d.jsonl\noutput_dir: out\nlora_rank: 4\n");
    let out =
        place.run(&["train", "run.yaml", "learning_rate=1e-3", "--print-config", "--threads", "2"]).ok().out;
    for (line, origin) in [
        ("lora_rank: 4", "run.yaml:4"),
        ("learning_rate: 0.001", "override learning_rate=1e-3"),
        ("threads: 2", "override threads=2"),
        ("lora_alpha: 8", "2 × lora_rank"),
        ("weight_decay: 0", "default"),
    ] {
        let found = out.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("{line}:\n{out}"));
        assert!(found.ends_with(&format!("# {origin}")), "{found}");
    }
    assert!(!place.path("out").exists());
}

#[test]
fn a_dry_run_reports_the_data_and_the_plan_and_writes_nothing() {
    let place = Place::new();
    let (m, d) = (format!("model_name_or_path={}", model("tied-bf16")), format!("dataset={}", rows("train")));
    let out = place.run(&["train", &m, &d, "output_dir=out", "num_train_epochs=2", "--dry-run"]).ok().out;
    for part in
        ["rows       48", "560 trained", "steps      12 (6 an epoch", "trained    5632 of 21 808", "memory "]
    {
        assert!(out.contains(part), "{part}:\n{out}");
    }
    assert!(!place.path("out").exists());
}
