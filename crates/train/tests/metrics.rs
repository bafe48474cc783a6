//! Scores of generated answers against LLaMA-Factory's libraries and lm-evaluation-harness's patterns (`goldens/metrics.py`).

use loratune_train::metrics::{Scores, bleu_4, gsm8k_flexible, gsm8k_strict, rouge};
use serde_json::Value;

fn goldens(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("goldens/metrics.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn pair(case: &Value) -> (&str, &str) {
    (case["predict"].as_str().unwrap(), case["label"].as_str().unwrap())
}

#[test]
fn rouge_and_bleu_are_llama_factorys() {
    let cases = goldens("similarity");
    assert!(cases.len() > 100);
    let mut apart = Vec::new();
    for case in &cases {
        let (predicted, label) = pair(case);
        let r = rouge(predicted, label);
        let ours = [r.one, r.two, r.longest, bleu_4(predicted, label)];
        let theirs: Vec<f64> =
            case["scores"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let far = |i: usize| (ours[i] - theirs[i]).abs() > 1e-9;
        assert!(!far(3), "BLEU has no words to cut: {case}\nours: {ours:?}");
        if (0..3).any(far) {
            apart.push(format!("{case}\nours: {ours:?}"));
        }
    }
    assert!(apart.is_empty(), "{} of {}:\n{}", apart.len(), cases.len(), apart.join("\n"));
}

#[test]
fn answers_of_gsm8k_are_lm_evaluation_harnesss() {
    for case in &goldens("gsm8k") {
        let (predicted, label) = pair(case);
        let ours = [gsm8k_strict(predicted, label), gsm8k_flexible(predicted, label)];
        assert_eq!(ours.map(Value::Bool).to_vec(), *case["right"].as_array().unwrap(), "{case}");
    }
}

#[test]
fn scores_are_means_over_rows() {
    let scores = Scores::of([("#### 7", "#### 7"), ("8", "#### 9")]);
    assert_eq!((scores.rows, scores.gsm8k_strict, scores.exact_match), (2, 0.5, 0.5));
    assert!((scores.rouge_1 - 50.0).abs() < 1e-3, "{scores:?}");
    assert_eq!(scores.values().len(), 7);
}
