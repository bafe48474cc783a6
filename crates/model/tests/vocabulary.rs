//! Models with the vocabulary that an adapter was made with, and adapters that cannot be given one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loratune_engine::{DType, Params};
use loratune_model::decoder::{Decoder, Dtypes, Trained};
use loratune_model::files::peft::{AdapterConfig, TokenIndices, read_adapter};
use loratune_model::files::{FileDType, ModelFiles, RawTensor};
use loratune_model::vocabulary::{NewRows, fitted, resized, rows_for, with_rows};
use loratune_model::{Batch, load};

type Tensors = BTreeMap<String, RawTensor<'static>>;

fn base(name: &str) -> ModelFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama");
    ModelFiles::open(&folder.join(name)).unwrap()
}

/// An adapter that PEFT wrote after resizing to 320 rows.
fn adapter(case: &str) -> (AdapterConfig, Tensors) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../train/tests/goldens/vocabulary");
    read_adapter(&folder.join(case).join("final_adapter")).unwrap()
}

fn decoder(files: &ModelFiles) -> Decoder {
    let dtypes = Dtypes::both(DType::F32);
    load::decoder(files, dtypes, &mut Params::new(), &Trained::Nothing).unwrap()
}

#[track_caller]
fn refused(files: &ModelFiles, config: &AdapterConfig, tensors: &Tensors, parts: &[&str]) {
    let message = fitted(files, config, tensors).map(|_| ()).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn rows_come_in_multiples_of_64() {
    assert_eq!([1, 63, 64, 65, 320, 321].map(rows_for), [64, 64, 64, 128, 320, 384]);
}

#[test]
fn a_model_gets_the_rows_of_an_adapter() {
    for (case, name) in [("saved-tables", "gqa-untied"), ("frozen-tables-tied", "tied-bf16")] {
        let (config, tensors) = adapter(case);
        let files = fitted(&base(name), &config, &tensors).unwrap().expect("it has other rows");
        assert_eq!((files.config.spec.vocab_size, files.resized_from), (320, Some(301)), "{case}");
        assert_eq!(files.raw_config["vocab_size"], 320, "{case}");
        // And nothing is left to be done.
        assert!(fitted(&files, &config, &tensors).unwrap().is_none(), "{case}");
    }
    // The head of a tied model is the embedding.
    let (config, mut tensors) = adapter("frozen-tables-tied");
    tensors.remove("base_model.model.lm_head.weight").unwrap();
    assert!(fitted(&base("tied-bf16"), &config, &tensors).unwrap().is_some());
}

#[test]
fn an_adapter_without_the_rows_that_it_needs_is_refused() {
    let files = base("gqa-untied");
    let (config, all) = adapter("saved-tables");
    for (missing, kept) in [("lm_head", "embed_tokens"), ("embed_tokens", "lm_head")] {
        let mut tensors = all.clone();
        tensors.retain(|k, _| !k.contains(missing));
        assert!(tensors.keys().any(|k| k.contains(kept)));
        refused(&files, &config, &tensors, &["320 rows", "has 301", missing, "save_embedding_layers=True"]);
    }
    // Factors tell the number of rows, but not the rows.
    let (config, mut tensors) = adapter("adapted-tables");
    tensors.remove("base_model.model.lm_head.base_layer.weight").unwrap();
    refused(&files, &config, &tensors, &["320 rows", "lm_head"]);
}

#[test]
fn an_adapter_with_rows_of_tokens_beyond_the_model_is_refused() {
    let files = base("gqa-untied");
    let (mut config, mut tensors) = adapter("saved-tables");
    tensors.retain(|k, _| !k.contains("embed_tokens") && !k.contains("lm_head"));
    let by_module = BTreeMap::from([("lm_head".to_owned(), vec![5]), ("embed_tokens".to_owned(), vec![301])]);
    for indices in [TokenIndices::OfEmbedding(vec![5, 301]), TokenIndices::ByModule(by_module)] {
        config.trainable_token_indices = Some(indices);
        let whole = "has 301 rows, and the adapter's file does not hold the others: save it with PEFT's";
        refused(&files, &config, &tensors, &["token 301", whole, "save_embedding_layers=True"]);
    }
    config.trainable_token_indices = Some(TokenIndices::OfEmbedding(vec![5, 300]));
    assert!(fitted(&files, &config, &tensors).unwrap().is_none());
}

#[test]
fn tables_that_contradict_each_other_or_the_model_are_refused() {
    let files = base("gqa-untied");
    let (config, tensors) = adapter("adapted-tables");
    let cut = |key: &str, rows: usize| {
        let mut tensors = tensors.clone();
        let raw = tensors.get_mut(key).unwrap();
        raw.shape[0] = rows;
        let bytes = raw.dtype.bytes_of(&raw.shape).unwrap();
        raw.bytes.to_mut().truncate(bytes);
        tensors
    };
    let damaged = cut("base_model.model.lm_head.lora_B.weight", 310);
    refused(&files, &config, &damaged, &["damaged", "lm_head.lora_B.weight", "310", "320"]);
    let mut damaged = cut("base_model.model.lm_head.lora_B.weight", 310);
    let head = "base_model.model.lm_head.base_layer.weight";
    damaged.insert(head.into(), cut(head, 310)[head].clone());
    refused(&files, &config, &damaged, &["damaged", "320", "310"]);
    let (config, tensors) = adapter("frozen-tables-tied");
    refused(&files, &config, &tensors, &["[320, 24]", "32 numbers", "another model"]);
}

#[test]
fn a_smaller_vocabulary_leaves_the_last_rows_out() {
    let files = base("gqa-untied");
    let table = |name: &str| {
        let mut raw = files.tensors.read(name).unwrap().into_owned();
        raw.shape[0] = 290;
        raw.bytes.to_mut().truncate(290 * 32 * 4);
        assert_eq!(raw.dtype, FileDType::F32);
        (format!("base_model.model.{name}"), raw)
    };
    let (config, mut tensors) = adapter("adapted-tables");
    tensors.retain(|k, _| k.contains("layers."));
    tensors.extend([table("model.embed_tokens.weight"), table("lm_head.weight")]);
    let smaller = fitted(&files, &config, &tensors).unwrap().expect("it has other rows");
    assert_eq!((smaller.config.spec.vocab_size, smaller.resized_from), (290, Some(301)));
    let logits = |files: &ModelFiles| {
        let batch = Batch::from_ids([&[1u32, 17, 289, 4][..]]);
        decoder(files).logits(&Params::new(), &batch).unwrap().to_f64_vec()
    };
    let (all, some) = (logits(&files), logits(&smaller));
    for (all, some) in all.chunks(301).zip(some.chunks(290)) {
        assert!(all.iter().zip(some).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn old_rows_stay_as_they_are_in_every_format_and_new_ones_do_not_depend_on_how_many() {
    let name = "model.embed_tokens.weight";
    for model in ["gqa-untied", "gqa-untied.gguf", "mha-f16", "tied-bf16"] {
        let files = base(model);
        let [old, hidden] = [files.config.spec.vocab_size, files.config.spec.hidden_size];
        let read = |rows: usize| {
            let files = resized(&files, rows, &NewRows::noisy_mean(3)).unwrap();
            let raw = files.tensors.read(name).unwrap();
            assert_eq!(raw.shape, [rows, hidden], "{model}");
            assert_eq!(files.tensors.info(name).unwrap().shape, [rows, hidden], "{model}");
            raw.to_f32()
        };
        let (some, more) = (read(old + 3), read(old + 20));
        assert_eq!(some[..old * hidden], files.tensors.read(name).unwrap().to_f32(), "{model}");
        assert_eq!(some, more[..some.len()], "{model}");
        // Fewer rows are the first ones.
        assert_eq!(read(old - 5), some[..(old - 5) * hidden], "{model}");
    }
    let wrong = with_rows(&base("gqa-untied"), 320, |_| Ok(vec![0.0; 5])).unwrap_err().to_string();
    assert!(wrong.contains("5 numbers") && wrong.contains("need 608"), "{wrong}");
}
