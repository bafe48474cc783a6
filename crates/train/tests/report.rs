//! What a run leaves behind: trainer_state.json, event files, plots, logs, results, the model card.

use std::collections::BTreeMap;
use std::path::Path;

use loratune_train::report::card::{Card, Kind};
use loratune_train::report::history::History;
use loratune_train::report::state::{EarlyStopping, TrainerState};
use loratune_train::report::tensorboard::EventWriter;
use loratune_train::report::{EvalMetrics, LogEntry, plot, results};

fn eval(step: u64, epoch: f64, loss: f64, metrics: &[(&str, f64)]) -> LogEntry {
    let metrics: BTreeMap<String, f64> = metrics.iter().map(|(k, v)| (k.to_string(), *v)).collect();
    LogEntry::eval(step, epoch, EvalMetrics { loss, metrics })
}

/// The state that goldens/make_state.py writes through transformers.
fn golden_state() -> TrainerState {
    TrainerState {
        epoch: 1.5,
        global_step: 30,
        max_steps: 60,
        logging_steps: 10,
        eval_steps: 20,
        save_steps: 20,
        train_batch_size: 4,
        num_train_epochs: 3,
        num_input_tokens_seen: 123_456,
        total_flos: 1.25e17,
        log_history: vec![
            LogEntry::train(10, 0.5, 2.3456789012345, 1e16, 5e-5),
            LogEntry::train(20, 1.0, f64::NAN, f64::INFINITY, 0.0001),
            eval(20, 1.0, 1.75, &[("accuracy", 0.5), ("perplexity", f64::NEG_INFINITY)]),
            LogEntry::train(30, 1.5, 0.1 + 0.2, 1e-7, 0.0),
            LogEntry::summary(30, 1.5, 2.0),
        ],
        best_metric: Some(1.75),
        best_global_step: Some(20),
        best_model_checkpoint: Some("läufe/checkpoint-20".into()),
        should_training_stop: false,
        early_stopping: Some(EarlyStopping { patience: 3, counter: 1 }),
    }
}

#[test]
fn trainer_state_has_the_bytes_that_transformers_writes() {
    assert_eq!(golden_state().to_json(), include_str!("goldens/trainer_state.json"));
}

#[test]
fn trainer_state_is_read_back_with_its_non_finite_values() {
    let text = golden_state().to_json();
    let read = TrainerState::from_json(&text).unwrap();
    // NaN is not equal to itself, so compare what is written again.
    assert_eq!(read.to_json(), text);
    assert_eq!(read.early_stopping, Some(EarlyStopping { patience: 3, counter: 1 }));
    assert!(text.contains("\"loss\": NaN"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer_state.json");
    golden_state().save(&path).unwrap();
    assert_eq!(TrainerState::load(&path).unwrap().to_json(), text);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
}

#[test]
fn a_damaged_state_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer_state.json");
    for (text, want) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("[]", "expected a JSON object"),
        ("{\"global_step\": 3}", "log_history is missing"),
        ("{\"log_history\": [{\"loss\": \"x\"}]}", "global_step is missing"),
        (
            "{\"global_step\": 3, \"log_history\": [{\"loss\": \"x\", \"step\": 1}]}",
            "loss is x, not a number",
        ),
        ("{\"global_step\": -3, \"log_history\": []}", "global_step is -3, not a whole number"),
        (
            "{\"log_history\": [], \"global_step\": 1, \"a\": \"\\",
            "EOF while parsing a string at line 1 column 45",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = TrainerState::load(&path).unwrap_err().to_string();
        let tail = "; it is damaged or was written by another program";
        assert_eq!(error, format!("{}: {want}{tail}", path.display()), "{text}");
    }
    let missing = TrainerState::load(&folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("none: cannot read: "), "{missing}");
}

#[test]
fn log_entries_survive_strict_json() {
    for entry in &golden_state().log_history {
        let text = serde_json::to_string(entry).unwrap();
        let read: LogEntry = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(format!("{read:?}"), format!("{entry:?}"));
    }
    let text = serde_json::to_string(&LogEntry::train(1, 0.5, f64::NAN, 1.0, 0.1)).unwrap();
    assert_eq!(
        text,
        r#"{"step":1,"epoch":0.5,"kind":"train","loss":"NaN","grad_norm":1.0,"learning_rate":0.1}"#
    );
}

/// Length, masked CRC, bytes, masked CRC: the records of an event file, without judging the CRCs.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        out.push(rest[12..12 + len].to_vec());
        rest = &rest[16 + len..];
    }
    out
}

#[test]
fn event_files_begin_with_the_version_and_hold_every_value() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs/a");
    let mut writer = EventWriter::create(&runs, None).unwrap();
    writer.log(&LogEntry::train(10, 0.5, 2.25, 1.0, 5e-5)).unwrap();
    writer.log(&eval(20, 1.0, f64::NAN, &[("accuracy", 0.5)])).unwrap();
    writer.text("config", 0, "lora_rank: 8").unwrap();
    let second = EventWriter::create(&runs, Some(20)).unwrap();
    assert_ne!(writer.path(), second.path());
    let first = records(&std::fs::read(writer.path()).unwrap());
    assert!(first[0].ends_with(b"\x1a\x0dbrain.Event:2"));
    let tags =
        ["train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "eval/loss", "eval/accuracy"];
    let has = |tag: &str| first.iter().any(|r| r.windows(tag.len()).any(|w| w == tag.as_bytes()));
    assert!(tags.iter().all(|tag| has(tag)) && has("lora_rank: 8"));
    assert_eq!(first.len(), 1 + 4 + 3 + 1);
    // The resumed file voids steps from 21 on: step 21, session_log { status: START }.
    assert!(records(&std::fs::read(second.path()).unwrap())[1].ends_with(&[0x10, 21, 0x3a, 2, 8, 1]));
}

#[test]
fn tensorboard_reads_the_events() {
    let Some(python) = std::env::var_os("LORATUNE_TENSORBOARD_PYTHON") else {
        eprintln!("skipped: LORATUNE_TENSORBOARD_PYTHON is not set (a Python with tensorboard)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(folder.path(), None).unwrap();
    writer.log(&LogEntry::train(10, 0.5, 2.25, 1.0, 5e-5)).unwrap();
    writer.log(&LogEntry::train(20, 1.0, 1.75, 1.0, 4e-5)).unwrap();
    writer.log(&eval(20, 1.0, 1.5, &[("accuracy", 0.5), ("rouge-1", 31.25)])).unwrap();
    writer.text("config", 0, "lora_rank: 8").unwrap();
    let script = "import json, sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1]).Reload()\n\
        tags = events.Tags()\n\
        print(json.dumps({t: [[e.step, e.value] for e in events.Scalars(t)] for t in tags['scalars']} | {'text': tags['tensors']}))";
    let output = std::process::Command::new(python).args(["-c", script]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read["train/loss"], serde_json::json!([[10, 2.25], [20, 1.75]]), "{read}");
    assert_eq!(read["eval/rouge-1"], serde_json::json!([[20, 31.25]]), "{read}");
    assert_eq!(read["text"].as_array().unwrap().len(), 1, "{read}");
}

#[test]
fn the_first_record_is_framed_with_known_checksums() {
    // The 12-byte header of a 24-byte record, from tensorboard 2.21.
    let folder = tempfile::tempdir().unwrap();
    let writer = EventWriter::create(folder.path(), None).unwrap();
    let bytes = std::fs::read(writer.path()).unwrap();
    assert_eq!(bytes[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
}

#[test]
fn the_log_file_has_llama_factorys_lines_and_forgets_repeated_steps() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = History::open(folder.path(), None).unwrap();
    log.log(&LogEntry::train(10, 0.123456, 2.5, 1.0, 5e-5), 60, 65.9).unwrap();
    log.log(&eval(20, 0.25, f64::NAN, &[]), 60, 90_000.0).unwrap();
    log.log(&LogEntry::train(30, 0.375, 2.0, 1.0, 4e-5), 60, 10.0).unwrap();
    let read = || std::fs::read_to_string(folder.path().join("trainer_log.jsonl")).unwrap();
    let want = [
        r#"{"current_steps": 10, "total_steps": 60, "loss": 2.5, "lr": 5e-05, "epoch": 0.123456, "percentage": 16.67, "elapsed_time": "0:01:05", "remaining_time": "0:05:29"}"#,
        r#"{"current_steps": 20, "total_steps": 60, "eval_loss": "NaN", "epoch": 0.25, "percentage": 33.33, "elapsed_time": "1 day, 1:00:00", "remaining_time": "2 days, 2:00:00"}"#,
        r#"{"current_steps": 30, "total_steps": 60, "loss": 2.0, "lr": 4e-05, "epoch": 0.375, "percentage": 50.0, "elapsed_time": "0:00:10", "remaining_time": "0:00:10"}"#,
    ];
    assert_eq!(read().lines().collect::<Vec<_>>(), want);
    let mut cut =
        std::fs::OpenOptions::new().append(true).open(folder.path().join("trainer_log.jsonl")).unwrap();
    std::io::Write::write_all(&mut cut, b"{\"current_st").unwrap();
    drop(History::open(folder.path(), Some(20)).unwrap());
    assert_eq!(read().lines().collect::<Vec<_>>(), want[..2]);
    drop(History::open(folder.path(), None).unwrap());
    assert_eq!(read(), "");
}

#[test]
fn results_are_kept_by_split_and_together() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    results::save(folder.path(), "train", &vec![("train_loss".into(), 2.0), ("epoch".into(), 3.0)]).unwrap();
    let mut eval = vec![("epoch".into(), 3.0), ("eval_loss".into(), f64::NAN)];
    eval.extend(results::speed("eval", 2.0, 7, 1, 1000));
    results::save(folder.path(), "eval", &eval).unwrap();
    assert_eq!(read("train_results.json"), "{\n    \"epoch\": 3.0,\n    \"train_loss\": 2.0\n}");
    assert_eq!(
        read("all_results.json"),
        "{\n    \"epoch\": 3.0,\n    \"eval_loss\": NaN,\n    \"eval_runtime\": 2.0,\n    \
         \"eval_samples_per_second\": 3.5,\n    \"eval_steps_per_second\": 0.5,\n    \
         \"eval_tokens_per_second\": 500.0,\n    \"train_loss\": 2.0\n}"
    );
}

fn log_of(losses: impl IntoIterator<Item = f64>) -> Vec<LogEntry> {
    losses.into_iter().enumerate().map(|(i, x)| LogEntry::train(i as u64 + 1, 0.0, x, 1.0, 1e-4)).collect()
}

#[test]
fn smoothing_follows_llama_factorys_formula() {
    // scripts: ploting.smooth([4, 2, 1, 3]); weight 1.8·(1/(1+e^-0.2) − 0.5) = 0.0897012...
    let w = 1.8 * (1.0 / (1.0 + (-0.2f64).exp()) - 0.5);
    let s1 = w * 4.0 + (1.0 - w) * 2.0;
    let s2 = w * s1 + (1.0 - w) * 1.0;
    assert_eq!(plot::smooth(&[4.0, 2.0, 1.0, 3.0]), [4.0, s1, s2, w * s2 + (1.0 - w) * 3.0]);
    let gap = plot::smooth(&[1.0, f64::NAN, 1.0]);
    assert!(gap[0] == 1.0 && gap[1].is_nan() && gap[2] == 1.0);
}

#[test]
fn plots_are_drawn_for_every_kind_of_log() {
    let many =
        log_of((0..100_000).map(|i| 1.0 + 5.0 * (-f64::from(i) / 9e3).exp() + f64::from(i % 97) / 97.0));
    for (name, log) in [
        ("one point", log_of([2.5])),
        ("constant", log_of([2.5; 40])),
        ("zero", log_of([0.0; 3])),
        ("gaps", log_of([3.0, f64::NAN, 2.0, f64::INFINITY, 1.0, 1.5])),
        ("only non-finite", log_of([f64::NAN; 3])),
        ("huge", log_of([1e308, -1e308, 1e-308])),
        ("evaluation only", vec![eval(0, 0.0, 2.0, &[]), eval(5, 0.0, 1.0, &[])]),
        ("many", many),
    ] {
        let svg = plot::to_svg(&log, "a <model> & data").unwrap();
        assert!(svg.contains("a &lt;model&gt; &amp; data"), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}: {svg}");
        assert!(svg.len() < 600_000, "{name}: {} bytes", svg.len());
        assert_eq!(svg.contains("not finite"), ["gaps", "only non-finite"].contains(&name), "{name}");
        let png = plot::to_png(&log, "title").unwrap();
        assert_eq!((&png[1..4], &png[16..24]), (&b"PNG"[..], &[0, 0, 4, 0xb0, 0, 0, 2, 0xbc][..]), "{name}");
    }
    assert!(plot::to_svg(&[LogEntry::summary(1, 1.0, 2.0)], "t").is_none());
}

#[test]
fn thinning_out_keeps_a_single_spike() {
    let mut losses = vec![1.0; 100_000];
    losses[54_321] = 9.0;
    let svg = plot::to_svg(&log_of(losses), "t").unwrap();
    // The spike is the axis' top but for its margin of 6 %: 104 + 514 · 0.48/8.96.
    assert!(svg.contains(",131.5"), "the spike is lost");
}

#[test]
fn both_plot_files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let paths = plot::save(folder.path(), &log_of([3.0, 2.0]), "t").unwrap();
    let names: Vec<_> = paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["training_loss.svg", "training_loss.png"]);
    assert!(paths.iter().all(|p| p.is_file()));
    // With evaluations, LLaMA-Factory's pictures of these as well.
    let mut log = log_of((0..40).map(|i| 1.0 + 3.0 / f64::from(i + 1)));
    for step in [10, 20, 30, 40] {
        log.push(eval(step, 0.0, 1.5 + 10.0 / step as f64, &[("accuracy", step as f64 / 50.0)]));
    }
    let paths = plot::save(folder.path(), &log, "t").unwrap();
    let names: Vec<_> = paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    let all =
        ["training_loss.svg", "training_loss.png", "training_eval_loss.png", "training_eval_accuracy.png"];
    assert_eq!(names, all);
    let error = plot::save(Path::new("/nonexistent/folder"), &log_of([3.0]), "t").unwrap_err().to_string();
    assert!(error.starts_with("cannot write /nonexistent/folder/training_loss.svg"), "{error}");
}

#[test]
fn the_card_of_an_adapter() {
    let card = Card {
        name: "first run".into(),
        base_model: "HuggingFaceTB/SmolLM2-135M".into(),
        base_is_on_hub: true,
        datasets: vec!["data/gsm8k train.jsonl".into(), "openai/gsm8k".into()],
        hub_datasets: vec!["openai/gsm8k".into()],
        hyperparameters: vec![
            ("lora_rank".into(), "8".into()),
            ("lora_target".into(), ".*(q|v)_proj".into()),
        ],
        steps: 675,
        epochs: 3.0,
        train_loss: Some(1.5),
        eval_loss: Some(1.25),
        versions: vec![("loratune".into(), "0.1.0".into())],
        has_plot: true,
        ..Card::default()
    };
    let folder = tempfile::tempdir().unwrap();
    card.save(folder.path()).unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.path().join("README.md")).unwrap(),
        include_str!("goldens/card.md")
    );
}

#[test]
fn the_card_of_a_local_base_names_no_hub_model() {
    let card = Card { base_model: "my models/base".into(), ..Card::default() }.to_markdown();
    assert!(!card.contains("base_model:"), "{card}");
    assert!(card.contains("loratune merge --model 'my models/base' --adapter"), "{card}");
    let full = Card { kind: Kind::Whole, base_model: "b".into(), ..Card::default() }.to_markdown();
    assert!(full.contains("library_name: transformers") && !full.contains("PeftModel"), "{full}");
}

#[test]
fn the_card_of_an_adapter_with_new_rows_resizes_the_base_for_peft() {
    let of = |kind, rows| Card { kind, rows, base_model: "b".into(), ..Card::default() }.to_markdown();
    let resizes = "from_pretrained(\"b\")\nbase.resize_token_embeddings(320, mean_resizing=False)\nmodel = ";
    assert!(of(Kind::Adapter, Some(320)).contains(resizes));
    for card in [of(Kind::Adapter, None), of(Kind::RawAdapter, Some(320)), of(Kind::Whole, Some(320))] {
        assert!(!card.contains("resize_token_embeddings"), "{card}");
    }
}

#[test]
fn the_card_shows_tokens_that_look_like_tags() {
    let tokens = ("add_special_tokens".to_string(), "<think>, <a|b>".to_string());
    let card = Card { hyperparameters: vec![tokens], ..Card::default() }.to_markdown();
    assert!(card.contains("| add_special_tokens | &lt;think>, &lt;a\\|b> |"), "{card}");
}

#[test]
fn the_card_says_what_was_trained() {
    let of = |kind| Card { kind, base_model: "b".into(), ..Card::default() }.to_markdown();
    let part = of(Kind::Part);
    assert!(part.contains("`b`, some of whose weights were fine-tuned, for 0 steps"), "{part}");
    assert!(part.contains("library_name: transformers") && part.contains("- partial\n"), "{part}");
    assert!(!part.contains("PeftModel") && !part.contains("--adapter"), "{part}");
    let raw = of(Kind::RawAdapter);
    let base = "path/to/this/folder/residual_model";
    assert!(raw.contains(&format!("AutoModelForCausalLM.from_pretrained(\"{base}\")")), "{raw}");
    assert_eq!(raw.matches(&format!("--model {base} --adapter")).count(), 2, "{raw}");
    assert!(raw.contains("--initial path/to/this/folder/initial_adapter --output plain"), "{raw}");
    assert!(!of(Kind::Adapter).contains("--initial"));
}
