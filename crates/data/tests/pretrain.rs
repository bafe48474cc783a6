//! `stage: pt`: texts in blocks, against LLaMA-Factory's own preprocessing (goldens/pretrain.py), and what blocks are.

mod common;

use common::golden;
use loratune_data::pretrain::{Pretrain, blocks};
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, Example, RowRef, load_examples};
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Value, json};

/// A tokenizer of the goldens with Llama 3's end token, as `sources` in turns.py makes it.
fn tokenizer(which: &str, add_bos: bool) -> TokenizerBundle {
    let text = std::fs::read_to_string(common::folder("goldens").join(format!("{which}.json"))).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let id = |v: &Value| v.as_u64().unwrap();
    let words = json["model"]["vocab"].as_object().unwrap().values().map(id).max().unwrap();
    let tokens = json["added_tokens"].as_array_mut().unwrap();
    let start = 1 + tokens.iter().map(|t| id(&t["id"])).max().unwrap().max(words);
    tokens.push(json!({"id": start, "content": "<|end_of_text|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}));
    let config =
        json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": add_bos});
    TokenizerBundle::from_parts(&json.to_string(), config).unwrap()
}

fn ids(case: &Value, documents: &Value) -> Vec<Vec<u32>> {
    let text = tokenizer(case["tokenizer"].as_str().unwrap(), case["add_bos"].as_bool().unwrap());
    let (packing, length) =
        (case["packing"].as_bool().unwrap(), case["cutoff_len"].as_u64().unwrap() as usize);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents.json");
    let rows: Vec<Value> = documents.as_array().unwrap().iter().map(|d| json!({"text": d})).collect();
    std::fs::write(&path, json!(rows).to_string()).unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(&path)], ..DatasetSpec::default() };
    let options = EncodeOptions {
        template: case["template"].as_str().map(str::to_string),
        pretrain: Some(Pretrain { eos: true, bos: !packing }),
        cutoff_len: (!packing).then_some(length),
        train_on_prompt: true,
        ..EncodeOptions::default()
    };
    let data = load_examples(&spec, &text, &options).unwrap();
    let examples = match packing {
        false => data.train.to_vec(),
        true => {
            let bos = text.bos.as_ref().filter(|_| text.add_bos).map(|b| b.id);
            blocks(data.train.iter(), length, bos).examples
        }
    };
    for example in &examples {
        let trained: Vec<i32> = example.input_ids.iter().map(|&id| id as i32).collect();
        let without_bos = |labels: &[i32]| labels[usize::from(!packing && text.add_bos)..].to_vec();
        assert_eq!(without_bos(&example.labels), without_bos(&trained), "every token is trained");
    }
    examples.into_iter().map(|e| e.input_ids).collect()
}

#[test]
fn documents_become_llama_factorys_ids() {
    let file = golden("pretrain.json");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let want: Vec<Vec<u32>> = serde_json::from_value(case["input_ids"].clone()).unwrap();
        let what = ["tokenizer", "add_bos", "packing", "cutoff_len", "template"].map(|k| case[k].to_string());
        assert_eq!(ids(case, &file["documents"]), want, "{}", what.join(" "));
    }
}

/// Documents of so many tokens, numbered on.
fn documents(lengths: &[usize]) -> impl Iterator<Item = Example> {
    let mut next = 0;
    let documents: Vec<Example> = lengths
        .iter()
        .enumerate()
        .map(|(row, &n)| {
            let input_ids: Vec<u32> = (next..next + n as u32).collect();
            next += n as u32;
            let source = RowRef { file: "rows".into(), row: row + 1, line: None };
            Example { labels: input_ids.iter().map(|&id| id as i32).collect(), input_ids, source }
        })
        .collect();
    documents.into_iter()
}

#[test]
fn blocks_run_over_the_borders_of_documents_and_leave_out_what_fills_none() {
    let cut = blocks(documents(&[3, 0, 6, 1]), 4, None);
    let ids: Vec<&[u32]> = cut.examples.iter().map(|e| e.input_ids.as_slice()).collect();
    assert_eq!(ids, [&[0, 1, 2, 3][..], &[4, 5, 6, 7]]);
    assert_eq!(cut.left_over, 2);
    // A block stands for the row in which it begins: the third, after an empty one.
    assert_eq!(cut.examples.iter().map(|e| e.source.row).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn bos_takes_the_place_of_a_blocks_first_token_and_is_trained() {
    let cut = blocks(documents(&[8]), 4, Some(99));
    let ids: Vec<&[u32]> = cut.examples.iter().map(|e| e.input_ids.as_slice()).collect();
    assert_eq!(ids, [&[99, 1, 2, 3][..], &[99, 5, 6, 7]]);
    assert_eq!(cut.examples[1].labels, [99, 5, 6, 7]);
}

#[test]
fn too_little_fills_no_block() {
    let cut = blocks(documents(&[2, 1]), 4, Some(99));
    assert!(cut.examples.is_empty());
    assert_eq!(cut.left_over, 3);
    assert_eq!(blocks(documents(&[]), 4, None).left_over, 0);
    assert_eq!(blocks(documents(&[4, 4]), 4, None).left_over, 0);
}
