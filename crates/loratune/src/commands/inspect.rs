//! `loratune inspect`.

use std::collections::BTreeMap;
use std::io;

use anyhow::Result;
use loratune_data::read::is_data_file;
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, load_examples};
use loratune_engine::DType;
use loratune_model::files::peft::{self, AdapterConfig, ModuleNames, TokenIndices};
use loratune_model::files::{FileDType, ModelFiles};
use loratune_tokenizer::{SpecialToken, TokenizerBundle};
use serde_json::{Value, json};

use crate::cli::InspectArgs;
use crate::hub;
use crate::load::{LoadedModel, model_files};
use crate::output::{self, Usage, bytes, field, thousands};

pub fn run(args: &InspectArgs) -> Result<()> {
    let args = &InspectArgs { path: hub::model_or_adapter(&args.path)?, ..args.clone() };
    let path = &args.path;
    let has = |name: &str| path.join(name).is_file();
    if has("adapter_config.json") {
        return adapter(args);
    }
    let data_folder = || {
        let mut entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        // A folder of several splits holds no file of rows itself.
        has("dataset_dict.json") || entries.any(|e| is_data_file(&e.path()))
    };
    if !has("config.json") && ((path.is_file() && is_data_file(path)) || (path.is_dir() && data_folder())) {
        return dataset(args);
    }
    // Also where there is nothing: opening a model says so, with near names.
    model(args)
}

fn model(args: &InspectArgs) -> Result<()> {
    let files = ModelFiles::open(&args.path)?;
    let tokenizer = files.tokenizer();
    let spec = &files.config.spec;
    let mut types: BTreeMap<FileDType, (usize, u64)> = BTreeMap::new();
    for info in files.tensors.names().into_iter().filter_map(|n| files.tensors.info(n)) {
        let entry = types.entry(info.dtype).or_default();
        entry.0 += 1;
        entry.1 += info.dtype.bytes_of(&info.shape).unwrap_or(0) as u64;
    }
    let stored: u64 = types.values().map(|t| t.1).sum();
    let parameters = spec.parameters();
    let kind = if files.is_gguf() { "GGUF file" } else { "Hugging Face folder" };
    if args.json {
        let types: serde_json::Map<String, Value> = types
            .iter()
            .map(|(t, (n, b))| (t.name().to_string(), json!({"tensors": n, "bytes": b})))
            .collect();
        output::json(&json!({
            "kind": "model", "path": files.path.display().to_string(), "format": kind,
            "architecture": files.config.family.class, "parameters": parameters, "config": files.raw_config,
            "stored": types, "memory_bytes": {"f32": parameters * 4, "bf16": parameters * 2},
            "context": spec.max_positions,
            "tokenizer": tokenizer.as_ref().map_or_else(|e| json!({"error": e.to_string()}), tokenizer_json),
        }))?;
        return Ok(());
    }
    let stored_as: Vec<String> = types
        .iter()
        .map(|(t, (n, _))| format!("{} ({n} tensor{})", t.name(), if *n == 1 { "" } else { "s" }))
        .collect();
    let tied = if spec.tied_head { ", head tied to the embedding" } else { "" };
    let mut out = field("model", format!("{}, {kind}", files.path.display()));
    out += &field("architecture", files.config.family.class);
    out += &field(
        "sizes",
        format!(
            "{} layers, hidden {}, feed-forward {}",
            spec.num_layers(),
            spec.hidden_size,
            spec.intermediate_size
        ),
    );
    out += &field(
        "attention",
        format!("{} heads of {}, {} for keys and values", spec.num_heads, spec.head_dim, spec.num_kv_heads),
    );
    out += &field("vocabulary", format!("{}{tied}", thousands(spec.vocab_size as u64)));
    out += &field("context", format!("{} tokens", thousands(spec.max_positions as u64)));
    out += &field("parameters", thousands(parameters as u64));
    out += &field("stored as", format!("{}, {}", stored_as.join(", "), bytes(stored)));
    let memory = |size: usize| bytes((parameters * size) as u64);
    out += &field("memory", format!("{} in f32, {} in bf16", memory(4), memory(2)));
    match &tokenizer {
        Ok(t) => tokenizer_lines(t, &mut out),
        Err(e) => out += &field("tokenizer", format!("none: {e}")),
    }
    output::print(&out)?;
    Ok(())
}

fn tokenizer_json(t: &TokenizerBundle) -> Value {
    let token = |t: &Option<SpecialToken>| t.as_ref().map(|t| json!({"id": t.id, "content": t.content}));
    json!({
        "vocab_size": t.vocab_size(), "bos": token(&t.bos), "eos": token(&t.eos), "pad": token(&t.pad),
        "unk": token(&t.unk), "add_bos": t.add_bos, "add_eos": t.add_eos, "chat_template": t.chat_template,
    })
}

fn tokenizer_lines(t: &TokenizerBundle, out: &mut String) {
    let roles = [("BOS", &t.bos), ("EOS", &t.eos), ("padding", &t.pad), ("unknown", &t.unk)];
    let named: Vec<String> = roles
        .iter()
        .filter_map(|(role, token)| token.as_ref().map(|t| format!("{role} {} ({})", t.content, t.id)))
        .collect();
    let adds = match (t.add_bos, t.add_eos) {
        (true, true) => "; adds BOS and EOS",
        (true, false) => "; adds BOS",
        (false, true) => "; adds EOS",
        (false, false) => "",
    };
    *out += &field("tokenizer", format!("{} tokens{adds}", thousands(t.vocab_size() as u64)));
    *out += &field("special", if named.is_empty() { "none".to_string() } else { named.join(", ") });
    let template = match &t.chat_template {
        Some(text) => format!("yes, {} characters", thousands(text.chars().count() as u64)),
        None => "none (name one with `template`)".to_string(),
    };
    *out += &field("chat", format!("template: {template}"));
}

fn adapter(args: &InspectArgs) -> Result<()> {
    let (config, tensors) = peft::read_adapter(&args.path)?;
    if let Some(model) = &args.model {
        LoadedModel::from_paths(model, Some(&args.path), DType::F32)?;
    }
    let parameters: usize = tensors.values().map(|t| t.len()).sum();
    let size: u64 = tensors.values().map(|t| t.bytes.len() as u64).sum();
    let modules = tensors.keys().filter(|k| k.contains(".lora_A.")).count();
    if args.json {
        output::json(&json!({
            "kind": "adapter", "path": args.path.display().to_string(), "config": config, "modules": modules,
            "parameters": parameters, "bytes": size, "fits_model": args.model.as_ref().map(|_| true),
        }))?;
        return Ok(());
    }
    let mut out = field("adapter", args.path.display().to_string());
    out += &field("method", method(&config));
    let patterns = config.rank_pattern.len() + config.alpha_pattern.len();
    let exceptions =
        if patterns > 0 { format!(", {patterns} modules differ by pattern") } else { String::new() };
    out += &field("rank", format!("{}, alpha {}{exceptions}", config.r, config.lora_alpha));
    out += &field("dropout", config.lora_dropout.to_string());
    let targets = match &config.target_modules {
        Some(ModuleNames::List(names)) => names.join(", "),
        Some(ModuleNames::Pattern(p)) => p.clone(),
        None => "PEFT's default".to_string(),
    };
    out += &field("targets", format!("{targets} ({modules} modules)"));
    if let Some(rows) = &config.trainable_token_indices {
        out += &field("rows", trained_rows(rows));
    }
    out += &field("parameters", format!("{}, {}", thousands(parameters as u64), bytes(size)));
    out += &field("base", config.base_model_name_or_path.as_deref().unwrap_or("not named"));
    if let Some(model) = &args.model {
        out += &field("fits", model.display().to_string());
    }
    output::print(&out)?;
    Ok(())
}

/// Tokens whose rows are trained, the first of them by id.
fn trained_rows(indices: &TokenIndices) -> String {
    const SHOWN: usize = 8;
    let list = |ids: &[i64]| {
        let shown: Vec<String> = ids.iter().take(SHOWN).map(i64::to_string).collect();
        let more = if ids.len() > SHOWN { format!(" … ({} tokens)", ids.len()) } else { String::new() };
        format!("{}{more}", shown.join(", "))
    };
    match indices {
        TokenIndices::OfEmbedding(ids) => format!("{} of the embedding", list(ids)),
        TokenIndices::ByModule(modules) => {
            let each: Vec<String> =
                modules.iter().map(|(name, ids)| format!("{} of {name}", list(ids))).collect();
            each.join("; ")
        }
    }
}

fn method(config: &AdapterConfig) -> &'static str {
    match (config.use_dora, config.use_rslora) {
        (false, false) => "LoRA",
        (false, true) => "LoRA, scaled by alpha / √rank (rsLoRA)",
        (true, false) => "DoRA",
        (true, true) => "DoRA, scaled by alpha / √rank (rsLoRA)",
    }
}

fn dataset(args: &InspectArgs) -> Result<()> {
    let Some(model) = &args.model else {
        let what = "is a dataset: add --model PATH, whose tokenizer and chat template render it";
        return Err(Usage(format!("{} {what}", args.path.display())).into());
    };
    let files = model_files(model)?;
    let tokenizer = files.tokenizer()?;
    let spec = DatasetSpec { train: vec![DatasetSource::new(args.path.clone())], ..DatasetSpec::default() };
    let options = EncodeOptions {
        template: args.template.clone(),
        cutoff_len: Some(args.cutoff_len),
        train_on_prompt: args.train_on_prompt,
        mask_history: args.mask_history,
        sample_row: args.row,
        ..EncodeOptions::default()
    };
    let data = load_examples(&spec, &tokenizer, &options)?;
    if args.json {
        output::json(&json!({
            "kind": "dataset", "path": args.path.display().to_string(), "report": data.report,
        }))?;
    } else {
        output::print(&data.report.render(output::colors(&io::stdout())))?;
    }
    Ok(())
}
