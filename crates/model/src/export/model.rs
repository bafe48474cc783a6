//! A merged model as one GGUF file.

use std::path::Path;

use loratune_engine::Params;
use loratune_tokenizer::{GgufVocabulary, TokenizerBundle};

use super::check::compare;
use super::keys::{self, Keys};
use super::{GgufType, encoded, interleaved, written};
use crate::adapter::{Attached, Merged};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::files::gguf::{Change, Entry, Gguf, GgufFile, GgufHeader, HeadTensor, llama_cpp};
use crate::files::{FileDType, ModelConfig, ModelFiles, TensorPlan};
use crate::spec::{DecoderSpec, EMBEDDING, HEAD};

/// A tensor of the file: the model's name of it, and what is done to it.
struct Source {
    plan: TensorPlan,
    name: String,
    change: Change,
}

/// Writes a GGUF file of a model with its adapters folded in, as llama.cpp's converter lays it out: metadata, vocabulary, weights
/// (merged in f32 and rounded or quantised once, one at a time). What is written is first read back as llama.cpp will read it.
///
/// Returns what llama.cpp computes otherwise beyond some length, if anything.
///
/// # Errors
/// If llama.cpp does not know the model's class or could not compute what the model does; if the tokenizer is of a kind that it
/// does not know; if a weight does not fit the type; if something can't be read or written.
pub fn model_to_gguf(
    path: &Path,
    files: &ModelFiles,
    decoder: &Decoder,
    params: &Params,
    attached: Option<&Attached>,
    tokenizer: &TokenizerBundle,
    name: &str,
    kind: GgufType,
) -> Result<Vec<String>> {
    let (family, gguf) = written(files)?;
    let mut spec = files.config.spec.clone();
    spec.tied_head &= !decoder.is_untied();
    let sources = sources(files, &spec, gguf, kind)?;
    let (architecture, small) = keys::architecture(&spec, gguf);
    let mut metadata = keys::general(family, gguf, name, spec.parameters());
    metadata.extend(architecture);
    metadata.push(("general.file_type".into(), Entry::U32(kind.number())));
    metadata.push(("general.quantization_version".into(), Entry::U32(2)));
    metadata.extend(vocabulary(files, tokenizer, spec.vocab_size)?);
    // The small tensors come first: reading the header back needs them.
    let plan = |name: &str, n: usize| TensorPlan { name: name.into(), dtype: FileDType::F32, shape: vec![n] };
    let tensors = small.iter().map(|(name, x)| plan(name, x.len()));
    let tensors = tensors.chain(sources.iter().map(|s| s.plan.clone())).collect();
    let header = GgufHeader { metadata, tensors };
    let notes = read_back(path, &header, &small, &spec, gguf)?;
    let mut merged = Merged::new(files, decoder, params, attached);
    header.write(path, |plan| -> Result<Vec<u8>> {
        if let Some((name, values)) = small.iter().find(|(name, _)| *name == plan.name) {
            return encoded(path, name, values, FileDType::F32);
        }
        let source = sources.iter().find(|s| s.plan.name == plan.name).ok_or_else(|| missing(path, plan))?;
        let tensor = merged.tensor(&source.name)?;
        let values = tensor.slice::<f32>()?;
        let columns = plan.shape.get(1).copied().unwrap_or(1);
        let changed = match source.change {
            Change::Keep => None,
            Change::LessOne => Some(values.iter().map(|x| x + 1.0).collect()),
            Change::Queries | Change::Keys => Some(interleaved(values, columns, spec.head_dim)),
        };
        encoded(path, &source.name, changed.as_deref().unwrap_or(values), plan.dtype)
    })?;
    Ok(notes)
}

fn missing(path: &Path, plan: &TensorPlan) -> Error {
    Error::Invalid(format!("{}: no tensor was planned as {}", path.display(), plan.name))
}

/// The model's tensors under llama.cpp's names.
fn sources(files: &ModelFiles, spec: &DecoderSpec, gguf: &Gguf, kind: GgufType) -> Result<Vec<Source>> {
    let refuse = |what: String| Error::Invalid(format!("{}: {what}", files.path.display()));
    let mut out = Vec::new();
    for tensor in spec.tensors() {
        let Some((to, change)) = llama_cpp(&tensor.name, spec, gguf.interleaved) else {
            return Err(refuse(format!("llama.cpp has no place for the tensor {}", tensor.name)));
        };
        let bias = tensor.name.ends_with(".bias");
        let inputs = ["q_proj", "k_proj", "v_proj", "qkv_proj"];
        if bias && !gguf.biases && !inputs.iter().any(|p| tensor.name.ends_with(&format!("{p}.bias"))) {
            let what = format!("llama.cpp's `{}` has no biases such as {}", gguf.arch, tensor.name);
            return Err(refuse(what));
        }
        let is = |module: &str| tensor.name.strip_suffix(".weight") == Some(module);
        let dtype = match tensor.shape.as_slice() {
            [_, columns] => kind.of_matrix(*columns, is(HEAD) || (is(EMBEDDING) && spec.tied_head)),
            _ => FileDType::F32,
        };
        let plan = TensorPlan { name: to, dtype, shape: tensor.shape };
        out.push(Source { plan, name: tensor.name, change });
    }
    match (gguf.head, spec.tied_head) {
        (HeadTensor::Shared, false) => Err(refuse(format!(
            "llama.cpp's `{}` has no head apart from the embedding, and this model's is (merging an adapter of the embedding or \
             of the head makes them two)",
            gguf.arch
        ))),
        (HeadTensor::Own, true) => {
            let shape = vec![spec.vocab_size, spec.hidden_size];
            let plan = TensorPlan {
                name: "output.weight".into(),
                dtype: kind.of_matrix(spec.hidden_size, true),
                shape,
            };
            out.push(Source { plan, name: format!("{EMBEDDING}.weight"), change: Change::Keep });
            Ok(out)
        }
        _ => Ok(out),
    }
}

/// Reads the header as it will be read, and compares what it says with the model.
fn read_back(
    path: &Path,
    header: &GgufHeader,
    small: &[(String, Vec<f32>)],
    spec: &DecoderSpec,
    gguf: &Gguf,
) -> Result<Vec<String>> {
    let (mut bytes, placed) = header.lay_out(path)?;
    let start = bytes.len();
    let end = placed.last().map_or(0, |p| p.offset + p.size as u64);
    for (placed, (name, values)) in placed.iter().zip(small) {
        bytes.resize(start + placed.offset as usize, 0);
        bytes.extend(encoded(path, name, values, FileDType::F32)?);
    }
    let read = GgufFile::planned(path, bytes, start as u64 + end)?;
    let read = ModelConfig::from_value(&read.hf_config()?, path)?;
    let differences = compare(spec, &read.spec, gguf.arch);
    match differences.wrong.is_empty() {
        true => Ok(differences.notes),
        false => Err(Error::Invalid(format!(
            "{}: llama.cpp cannot compute this model: {}",
            path.display(),
            differences.wrong.join("; ")
        ))),
    }
}

/// The tokenizer's keys; roles that the tokenizer leaves open are the model's configuration's, as llama.cpp's converter has it.
fn vocabulary(files: &ModelFiles, tokenizer: &TokenizerBundle, rows: usize) -> Result<Keys> {
    let mut v: GgufVocabulary = tokenizer.to_gguf(rows).map_err(crate::files::Error::from)?;
    if let Some(pre) = files.pre_tokenizer().filter(|_| v.model == "gpt2") {
        v.pre = Some(pre);
    }
    let configured = |name: &str| {
        let value = files.raw_config.get(name)?;
        let id = value.as_array().and_then(|ids| ids.first()).unwrap_or(value).as_u64()?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < rows)
    };
    let roles = [
        ("bos_token_id", v.bos_id.or_else(|| configured("bos_token_id"))),
        ("eos_token_id", v.eos_id.or_else(|| configured("eos_token_id"))),
        ("padding_token_id", v.pad_id.or_else(|| configured("pad_token_id"))),
        ("unknown_token_id", v.unk_id),
    ];
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut keys: Keys = vec![(key("model"), Entry::Text(v.model))];
    keys.extend(v.pre.map(|pre| (key("pre"), Entry::Text(pre))));
    keys.push((key("tokens"), Entry::Texts(v.tokens)));
    keys.extend(v.scores.map(|scores| (key("scores"), Entry::F32s(scores))));
    keys.extend(v.token_types.map(|types| (key("token_type"), Entry::I32s(types))));
    keys.extend(v.merges.map(|merges| (key("merges"), Entry::Texts(merges))));
    keys.extend(roles.into_iter().filter_map(|(name, id)| Some((key(name), Entry::U32(id?)))));
    let flags = [
        ("add_bos_token", v.add_bos),
        ("add_eos_token", v.add_eos),
        ("add_space_prefix", v.add_space_prefix),
    ];
    keys.extend(flags.into_iter().filter_map(|(name, on)| Some((key(name), Entry::Bool(on?)))));
    keys.extend(v.chat_template.map(|t| ("tokenizer.chat_template".into(), Entry::Text(t))));
    Ok(keys)
}
