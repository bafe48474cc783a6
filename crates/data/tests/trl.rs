//! Rows without a named template against TRL's `SFTTrainer`; see `goldens/trl.py`.

mod common;

use common::{bundle, folder, golden};
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, load_examples};
use serde_json::{Value, json};

#[test]
fn ids_and_labels_equal_trl_s_sft_trainer() {
    let place = tempfile::tempdir().unwrap();
    let (mut compared, mut differ) = (0, Vec::new());
    for (case, golden) in golden("trl.json").as_object().unwrap() {
        let template = golden["template"].as_str().map(|t| folder("templates").join(format!("{t}.jinja")));
        for (which, expected) in golden["encoded"].as_object().unwrap() {
            let (name, bos) = which.split_once('+').map_or((which.as_str(), false), |(n, _)| (n, true));
            let text = bundle(name, json!({"add_bos_token": bos}));
            let options = EncodeOptions {
                template: template.as_ref().map(|t| t.display().to_string()),
                ..EncodeOptions::default()
            };
            for (row, expected) in golden["rows"].as_array().unwrap().iter().zip(expected.as_array().unwrap())
            {
                let file = place.path().join("row.jsonl");
                std::fs::write(&file, row.to_string()).unwrap();
                let spec = DatasetSpec { train: vec![DatasetSource::new(&file)], ..DatasetSpec::default() };
                let data = load_examples(&spec, &text, &options).unwrap();
                let at = format!("{case}, {which}, {row}");
                assert_eq!(json!(data.train.get(0).input_ids), expected[0], "{at}");
                // The first label is never a target; TRL does not mask BOS there.
                let labels: Vec<Value> = data.train.get(0).labels.iter().skip(1).map(|l| json!(l)).collect();
                if labels != expected[1].as_array().unwrap()[1..] {
                    differ.push(at);
                }
                compared += 1;
            }
        }
    }
    assert!(compared == 106, "{compared}");
    // The prompt `2 + 2 =` ends in one token where it stands alone, `▁=`, and in two before ` 4`: `▁` and `=▁`. TRL trains
    // from the first token that differs, here from the first that holds a byte of the completion.
    assert_eq!(differ.len(), 2, "{differ:?}");
    assert!(differ.iter().all(|at| at.starts_with("strings, metaspace") && at.contains("2 + 2 =")));
}
