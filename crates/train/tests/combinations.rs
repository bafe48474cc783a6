//! What methods promise one another: each may be combined with any other, is off when it should be, and what makes no
//! sense is refused before anything is written.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;

use loratune_model::adapter::combine::SavedAdapter;
use loratune_model::adapter::convert::subtract_initial;
use loratune_model::files::{ModelFiles, peft};
use loratune_model::load;
use loratune_train::Error;
use loratune_train::config::RunConfig;
use loratune_train::run::prepare;
use tiny::{bytes, config, goldens, run};

fn losses(settings: &[&str]) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, seen) = run(config(dir.path(), settings));
    outcome.unwrap_or_else(|e| panic!("{settings:?}: {e}"));
    seen.steps.iter().map(|s| s.loss).collect()
}

#[test]
fn every_combination_of_methods_runs_and_learns() {
    let inits = ["true", "gaussian", "orthogonal", "pissa", "pissa_niter_2", "olora"];
    for (i, init) in inits.iter().enumerate() {
        for mask in 0..32u32 {
            // Half of all, every pair of switches among them.
            if (mask.count_ones() as usize + i) % 2 == 1 {
                continue;
            }
            let switches = [
                "use_dora=true",
                "use_rslora=true",
                "loraplus_lr_ratio=4",
                "neftune_noise_alpha=1",
                "lora_dropout=0.05",
            ];
            let init = format!("init_lora_weights={init}");
            // All rows in every step, so that losses compare.
            let mut settings =
                vec![init.as_str(), "max_steps=4", "per_device_train_batch_size=48", "learning_rate=0.002"];
            settings.extend(switches.iter().enumerate().filter(|(k, _)| mask >> k & 1 == 1).map(|(_, s)| *s));
            if mask & 4 == 0 {
                settings.push("modules_to_save=norm");
            }
            if mask & 8 == 0 {
                settings.push("bias=lora_only");
            }
            if mask % 3 == 0 {
                settings.push("lora_target=q_proj,up_proj,embed_tokens,lm_head");
            } else if mask & 16 == 0 {
                settings.push("trainable_token_indices={embed_tokens: [261, 2], lm_head: [2, 16]}");
            }
            let losses = losses(&settings);
            assert!(losses.iter().all(|l| l.is_finite()), "{settings:?}: {losses:?}");
            let [first, last] = [losses[0], losses[3]];
            assert!(last < first, "{settings:?}: {losses:?}");
        }
    }
}

#[test]
fn lora_plus_with_ratio_1_is_lora_bit_for_bit() {
    for base in
        [vec!["weight_decay=0.1"], vec!["use_dora=true", "bias=all", "lora_target=q_proj,embed_tokens"]]
    {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (dir, ratio) in dirs.iter().zip(["", "loraplus_lr_ratio=1", "loraplus_lr_ratio=0"]) {
            let mut settings = base.clone();
            settings.extend((!ratio.is_empty()).then_some(ratio));
            run(config(dir.path(), &settings)).0.unwrap();
        }
        let adapter = |i: usize| bytes(dirs[i].path(), "adapter_model.safetensors");
        assert!(adapter(0) == adapter(1) && adapter(0) == adapter(2), "{base:?}");
    }
    assert_ne!(losses(&["loraplus_lr_ratio=8"]), losses(&[]));
}

#[test]
fn lora_plus_means_nothing_without_adapters() {
    for method in ["finetuning_type=full", "finetuning_type=freeze"] {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (dir, plus) in dirs.iter().zip([&[][..], &["loraplus_lr_ratio=8", "loraplus_lr_embedding=1e-3"]])
        {
            run(config(dir.path(), &[&[method, "weight_decay=0.1"][..], plus].concat())).0.unwrap();
        }
        let [a, b] = dirs.each_ref().map(|d| bytes(d.path(), "model.safetensors"));
        assert!(a == b, "{method}");
    }
}

#[test]
fn a_given_adapter_keeps_its_dropout_unless_the_run_sets_one() {
    let first = tempfile::tempdir().unwrap();
    run(config(first.path(), &["lora_dropout=0.5"])).0.unwrap();
    let on = |extra: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let given = format!("adapter_name_or_path={}", first.path().display());
        run(config(dir.path(), &[&[given.as_str()][..], extra].concat())).0.unwrap();
        let written: serde_json::Value =
            serde_json::from_slice(&bytes(dir.path(), "adapter_config.json")).unwrap();
        (written["lora_dropout"].as_f64().unwrap(), bytes(dir.path(), "adapter_model.safetensors"))
    };
    let (own, same, none) = (on(&[]), on(&["lora_dropout=0.5"]), on(&["lora_dropout=0"]));
    assert_eq!((own.0, same.0, none.0), (0.5, 0.5, 0.0));
    assert!(own.1 == same.1, "the adapter's own dropout is what it was trained with");
    assert!(own.1 != none.1, "a dropout of the run's own, 0 too, replaces it");
}

#[test]
fn noise_is_in_training_only_and_by_the_seed() {
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    let common = [
        &eval,
        "eval_strategy=steps",
        "eval_steps=1",
        "eval_on_start=true",
        "learning_rate=0",
        "max_steps=2",
    ];
    let both =
        [vec![], vec!["neftune_noise_alpha=15"], vec!["neftune_noise_alpha=15", "seed=7"]].map(|extra| {
            let dir = tempfile::tempdir().unwrap();
            let seen = run(config(dir.path(), &[&common[..], &extra].concat())).1;
            (seen.steps.iter().map(|s| s.loss).collect::<Vec<_>>(), seen.evaluations)
        });
    assert_eq!(both[0].1, both[1].1, "evaluation has no noise");
    assert_ne!(both[0].0, both[1].0);
    assert_ne!(both[1].0, both[2].0);
}

/// With a learning rate of 0 the loss of the first step shows the noise alone.
fn noisy_loss(extra: &[&str]) -> f64 {
    let settings = ["neftune_noise_alpha=40", "learning_rate=0", "max_steps=1", "disable_shuffling=true"];
    losses(&[&settings[..], extra].concat())[0]
}

#[test]
fn noise_by_sequence_does_not_depend_on_the_longest_row_of_the_batch() {
    // A row that is alone is the longest, so both scales agree there, and only there.
    for (rows, equal) in [("per_device_train_batch_size=1", true), ("per_device_train_batch_size=4", false)] {
        let [sequence, batch] =
            ["per_sequence", "per_batch"].map(|scale| noisy_loss(&[rows, &format!("neftune_scale={scale}")]));
        assert_eq!(sequence == batch, equal, "{rows}: {sequence} by sequence, {batch} by batch");
    }
}

#[test]
fn noise_by_sequence_does_not_depend_on_what_a_row_is_packed_with() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let rows = ["a few words of text", "and a longer row of them than the first one is"];
    std::fs::write(&file, rows.map(|text| serde_json::json!({ "text": text }).to_string()).join("\n"))
        .unwrap();
    let data = format!("dataset={}", file.display());
    let packed = [data.as_str(), "packing=true", "per_device_train_batch_size=1"];
    let apart = [data.as_str(), "per_device_train_batch_size=2"];
    let rows = |settings: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        prepare(config(out.path(), settings)).unwrap().feed.rows_per_epoch()
    };
    assert_eq!((rows(&packed), rows(&apart)), (1, 2), "one pack of two rows");
    let loss = |settings: &[&str; 3], scale: &str| noisy_loss(&[&settings[..], &[scale]].concat());
    let apart = [apart[0], apart[1], "packing=false"];
    let scale = "neftune_scale=per_sequence";
    assert_eq!(loss(&packed, scale), loss(&apart, scale));
    let scale = "neftune_scale=per_batch";
    assert_ne!(loss(&packed, scale), loss(&apart, scale), "Hugging Face's depends on the pack");
}

#[test]
fn raw_factors_are_written_with_the_model_they_belong_on() {
    let (plain, raw) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = ["init_lora_weights=pissa", "use_dora=true"];
    run(config(plain.path(), &settings)).0.unwrap();
    let not_converted = [&settings[..], &["pissa_convert=false"]].concat();
    run(config(raw.path(), &not_converted)).0.unwrap();
    let eval = |dir: &Path, model: Option<&Path>| {
        let out = tempfile::tempdir().unwrap();
        let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
        let adapter = format!("adapter_name_or_path={}", dir.display());
        let settings =
            [&eval, &adapter, "eval_strategy=steps", "eval_steps=1", "eval_on_start=true", "max_steps=1"];
        let mut config: RunConfig = config(out.path(), &settings);
        if let Some(model) = model {
            config.model_name_or_path = model.display().to_string();
        }
        run(config).1.evaluations[0]
    };
    let (a, b) = (eval(plain.path(), None), eval(raw.path(), Some(&raw.path().join("residual_model"))));
    assert!((a / b - 1.0).abs() < 1e-5, "{a} as plain LoRA, {b} from the raw factors");
    // With the adapter before training the factors lead back to the plain form, bit for bit.
    let read = |dir: &Path| {
        let (config, tensors) = peft::read_adapter(dir).unwrap();
        SavedAdapter { name: dir.display().to_string(), config, tensors }
    };
    let (config_back, back) =
        subtract_initial(&read(raw.path()), &read(&raw.path().join("initial_adapter"))).unwrap();
    let expected = read(plain.path());
    assert_eq!((config_back.r, config_back.lora_alpha), (expected.config.r, expected.config.lora_alpha));
    assert_eq!(back.len(), expected.tensors.len());
    for (key, tensor) in &back {
        assert_eq!(tensor.slice::<f32>().unwrap(), expected.tensors[key].to_f32(), "{key}");
    }
    let card = |dir: &Path| String::from_utf8(bytes(dir, "README.md")).unwrap();
    let base = format!("{:?}", config(plain.path(), &[]).model_name_or_path);
    assert!(card(plain.path()).contains(&format!("from_pretrained({base})")));
    assert!(card(raw.path()).contains("from_pretrained(\"path/to/this/folder/residual_model\")"));
    assert!(!card(raw.path()).contains(&format!("from_pretrained({base})")));
    // Overwriting removes all of it; the second run here has none.
    run(config(raw.path(), &[&settings[..], &["overwrite_output_dir=true"]].concat())).0.unwrap();
    assert!(!raw.path().join("residual_model").exists() && !raw.path().join("initial_adapter").exists());
}

fn refused(settings: &[&str], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let error: Error =
        prepare(config(&output, settings)).err().unwrap_or_else(|| panic!("accepted: {settings:?}"));
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{settings:?}: {text}");
    }
    assert!(!output.exists(), "{settings:?} left something behind");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    refused(&["init_lora_weights=orthogonal", "lora_rank=3"], &["orthogonal", "even", "not 3"]);
    refused(&["init_lora_weights=pissa", "lora_rank=64"], &["pissa", "at most rank", "not 64", "q_proj"]);
    refused(&["init_lora_weights=olora", "rank_pattern={up_proj: 33}"], &["olora", "up_proj", "not 33"]);
    refused(&["modules_to_save=lm_haed"], &["modules_to_save", "did you mean 'lm_head'?"]);
    refused(&["modules_to_save=lm_head", "lora_target=lm_head,q_proj"], &["both adapted", "keep one"]);
    refused(&["lora_target=down_proj", "bias=lora_only"], &["bias: lora_only", "none"]);
    refused(&["lora_target=embed_token"], &["did you mean 'embed_tokens'?"]);
    refused(&["finetuning_type=full", "unfrozen_parameters=lm_haed"], &["lm_haed", "matches no parameter"]);
    refused(&["exclude_modules=q_porj"], &["exclude_modules", "did you mean 'q_proj'?"]);
    refused(&["rank_pattern={q_porj: 8}"], &["rank_pattern", "did you mean 'q_proj'?"]);
    refused(&["lora_target=q_proj", "alpha_pattern={up_proj: 8}"], &["alpha_pattern", "not put there"]);
    refused(&["layers_to_transform=[0, 99]"], &["layers_to_transform", "no layer 99; it has 3"]);
    let range = "unfrozen_parameters=[lm_head.weight$[:32000]]";
    refused(
        &["finetuning_type=full", &range.replace("=[", "=['").replace("]]", "]']")],
        &["row ranges are not supported"],
    );
    refused(&["trainable_token_indices=[5, 301]"], &["trainable_token_indices", "301", "from 0 to 300"]);
    refused(&["trainable_token_indices=[5, -1]"], &["trainable_token_indices", "-1"]);
    refused(&["trainable_token_indices=[5, 5]"], &["trainable_token_indices", "twice"]);
    refused(&["trainable_token_indices={q_proj: [5]}"], &["trainable_token_indices", "q_proj", "lm_head"]);
    refused(
        &["trainable_token_indices=['<think>']"],
        &["trainable_token_indices", "`<think>`", "add_tokens"],
    );
    refused(
        &["trainable_token_indices=[5]", "modules_to_save=embed_tokens"],
        &["trainable_token_indices", "modules_to_save", "keep one"],
    );
    refused(
        &["trainable_token_indices=[5]", "lora_target=embed_tokens,q_proj"],
        &["trainable_token_indices", "target_modules", "keep one"],
    );
    refused(&["finetuning_type=full", "unfrozen_parameters=("], &["not a regular expression"]);
    refused(&["finetuning_type=freeze", "freeze_trainable_layers=9"], &["9", "3 layers"]);
    refused(&["finetuning_type=freeze", "freeze_trainable_modules=mpl"], &["mpl", "it has", "mlp"]);
    refused(&["finetuning_type=freeze", "freeze_extra_modules=mlp"], &["mlp", "it has", "embed_tokens"]);
}

#[test]
fn tokens_may_be_written_out_and_added_ones_too() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["add_special_tokens=<think>", "resize_vocab=true", "max_steps=2"];
    let rows = "trainable_token_indices=['<think>', '<|im_end|>', 5]";
    let mut written = config(&dir.path().join("names"), &[&settings[..], &[rows]].concat());
    written.save_steps = loratune_train::config::Steps::Count(1);
    run(written).0.unwrap();
    let adapter: serde_json::Value =
        serde_json::from_slice(&bytes(&dir.path().join("names"), "adapter_config.json")).unwrap();
    assert_eq!(adapter["trainable_token_indices"], serde_json::json!([301, 2, 5]));
    assert!(adapter["modules_to_save"].is_null(), "resizing trains no table where rows are named");
    run(config(&dir.path().join("ids"), &[&settings[..], &["trainable_token_indices=[301, 2, 5]"]].concat()))
        .0
        .unwrap();
    let weights = |name: &str| bytes(&dir.path().join(name), "adapter_model.safetensors");
    assert!(weights("names") == weights("ids"));
    // The rows go on from the files, tables of the new size and all.
    let given = format!("adapter_name_or_path={}", dir.path().join("names").display());
    let prepared = prepare(config(&dir.path().join("more"), &[&given])).unwrap();
    assert_eq!(prepared.model.decoder.spec().vocab_size, 320);
    let rows = prepared.model.decoder.matrices().next().unwrap().rows.as_ref().unwrap().ids().to_vec();
    assert_eq!(rows, [301, 2, 5]);
}

#[test]
fn added_tokens_whose_rows_are_not_among_the_trained_ones_are_named() {
    let notes = |settings: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let added = ["add_special_tokens=<a>,<b>", "resize_vocab=true"];
        prepare(config(dir.path(), &[&added[..], settings].concat())).unwrap().vocabulary.notes.join("\n")
    };
    assert_eq!(notes(&["trainable_token_indices=['<a>', '<b>']"]), "");
    let one = notes(&["trainable_token_indices=['<a>']"]);
    assert!(one.contains("`<b>`") && one.contains("not trained") && !one.contains("<a>"), "{one}");
    let none = notes(&["trainable_token_indices=[5]"]);
    assert!(none.contains("rows of the added tokens are not trained"), "{none}");
}

#[test]
fn attention_dropout_of_the_models_configuration_is_left_out_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let plain = config(&dir.path().join("plain"), &["max_steps=2"]);
    let base = Path::new(&plain.model_name_or_path).to_owned();
    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(&base).unwrap().flatten().filter(|f| f.path().is_file()) {
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let text = std::fs::read_to_string(base.join("config.json")).unwrap();
    let dropping = text.replace("\"attention_dropout\": 0.0", "\"attention_dropout\": 0.1");
    assert_ne!(text, dropping);
    std::fs::write(folder.join("config.json"), dropping).unwrap();
    let mut given = config(&dir.path().join("dropping"), &["max_steps=2"]);
    given.model_name_or_path = folder.display().to_string();
    let notes = prepare(given.clone()).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("attention_dropout 0.1"), "{notes:?}");
    assert!(prepare(plain.clone()).unwrap().notes.is_empty());
    let losses = |config| run(config).1.steps.iter().map(|s| s.loss).collect::<Vec<_>>();
    let (ours, expected) = (losses(given), losses(plain));
    assert!(expected.len() == 2 && ours == expected, "{ours:?}, without {expected:?}");
}

#[test]
fn freezing_trains_the_layers_and_modules_that_are_named() {
    let trained = |settings: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let model = prepare(config(dir.path(), settings)).unwrap().model;
        model.params.ids().map(|id| model.params.name(id).to_string()).collect::<Vec<_>>()
    };
    let last = trained(&["finetuning_type=freeze", "freeze_trainable_layers=1"]);
    assert!(last.len() == 13 && last.iter().all(|n| n.starts_with("model.layers.2.")), "{last:?}");
    let first =
        trained(&["finetuning_type=freeze", "freeze_trainable_layers=-2", "freeze_trainable_modules=mlp"]);
    assert!(
        first.len() == 6 && first.iter().all(|n| n.contains(".mlp.") && !n.contains("layers.2.")),
        "{first:?}"
    );
    let extra = trained(&[
        "finetuning_type=freeze",
        "freeze_trainable_layers=1",
        "freeze_extra_modules=lm_head,norm",
    ]);
    assert_eq!(extra.len(), 15);
    let some = trained(&["finetuning_type=full", "unfrozen_parameters=.*norm,lm_head"]);
    assert!(some.len() == 8 && some.iter().all(|n| n.contains("norm") || n == "lm_head.weight"), "{some:?}");
}

/// `full-some` in `methods.rs` is a golden of the second spelling; so it's one of freezing too.
#[test]
fn freezing_is_full_fine_tuning_of_the_same_parameters_and_its_result_is_a_model() {
    let (frozen, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    let common = [eval.as_str(), "eval_strategy=steps", "eval_steps=8", "save_steps=4", "weight_decay=0.1"];
    let freeze = [
        "finetuning_type=freeze",
        "freeze_trainable_layers=1",
        "freeze_trainable_modules=self_attn,mlp",
        "freeze_extra_modules=norm",
    ];
    let (outcome, seen) = run(config(frozen.path(), &[&common[..], &freeze].concat()));
    outcome.unwrap();
    let same = [
        "finetuning_type=full",
        r"unfrozen_parameters=['model\.layers\.2\.(self_attn|mlp)\.', 'model\.norm\.']",
    ];
    run(config(full.path(), &[&common[..], &same].concat())).0.unwrap();
    for file in ["model.safetensors", "checkpoint-4/model.safetensors", "checkpoint-4/optimizer.safetensors"]
    {
        assert!(bytes(frozen.path(), file) == bytes(full.path(), file), "{file}");
    }
    // What was not named is the base's, bit for bit.
    let base = config(frozen.path(), &[]).model_name_or_path;
    let [before, after] = [Path::new(&base), frozen.path()].map(|dir| ModelFiles::open(dir).unwrap());
    for name in after.tensors.names() {
        let trained = name.starts_with("model.norm")
            || name.starts_with("model.layers.2.") && !name.contains("layernorm");
        let [before, after] = [&before, &after].map(|files| load::read_f32(files, name).unwrap());
        let equal = before.slice::<f32>().unwrap() == after.slice::<f32>().unwrap();
        assert_eq!(equal, !trained, "{name}");
    }
    let card = String::from_utf8(bytes(frozen.path(), "README.md")).unwrap();
    assert!(card.contains("some of whose weights were fine-tuned") && !card.contains("LoRA"), "{card}");
    // Read as any model is, it has the loss that the run ended with.
    let again = tempfile::tempdir().unwrap();
    let mut on = config(again.path(), &[&common[..], &["eval_on_start=true", "max_steps=1"]].concat());
    on.model_name_or_path = frozen.path().display().to_string();
    let loaded = run(on).1.evaluations[0];
    let ended = *seen.evaluations.last().unwrap();
    assert!((loaded / ended - 1.0).abs() < 1e-6, "{loaded} read back, {ended} at the end of the run");
}
