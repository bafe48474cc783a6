//! Steps of small models on an NVIDIA card beside the CPU's. Skipped, and says so, where there is no card.

use loratune_engine::bench::card;
use loratune_engine::{DType, Device};
use loratune_model::adapter::{AdapterSpec, Init, Targets};
use loratune_model::bench::{StepBench, spec};
use loratune_model::decoder::Dtypes;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 131, "tie_word_embeddings": true, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 512,
    })
}

/// Heads that are normalised and biased, windows, soft caps, other norms: what Llama has not.
fn others() -> Vec<Value> {
    let mut qwen = llama();
    let more = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4,
    });
    let mut gemma = llama();
    let gemma_more = json!({
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 32, "hidden_size": 64,
        "num_attention_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32,
        "sliding_window": 24, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "num_hidden_layers": 2,
    });
    for (config, more) in [(&mut qwen, more), (&mut gemma, gemma_more)] {
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
    }
    gemma.as_object_mut().unwrap().remove("hidden_act");
    vec![qwen, gemma]
}

fn adapter(use_dora: bool, dropout: f64) -> AdapterSpec {
    AdapterSpec { r: 4, alpha: 8.0, targets: Targets::AllLinear, use_dora, dropout, ..AdapterSpec::default() }
}

/// Losses of 20 steps, and the adapter's numbers after them.
fn steps(config: &Value, adapter: &AdapterSpec, dtype: DType, device: Device) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut bench =
        StepBench::new(&spec(config).unwrap(), Dtypes::both(dtype), adapter, 3, 70, 2, device).unwrap();
    let losses = (0..20).map(|_| bench.step().unwrap()).collect();
    let params = bench.params();
    (losses, params.ids().map(|id| params.value(id).to_f64_vec()).collect())
}

#[test]
fn losses_of_twenty_steps_equal_the_cpus() {
    let Some(device) = card() else { return };
    let mut wrong = Vec::new();
    let configs: Vec<Value> = std::iter::once(llama()).chain(others()).collect();
    for (number, config) in configs.iter().enumerate() {
        for (use_dora, dropout) in [(false, 0.0), (true, 0.0), (false, 0.1), (true, 0.1)] {
            for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 1e-2)] {
                let adapter = adapter(use_dora, dropout);
                let (theirs, _) = steps(config, &adapter, dtype, Device::Cpu);
                let (ours, _) = steps(config, &adapter, dtype, device);
                let errors = ours.iter().zip(&theirs).map(|(a, b)| ((a - b) / b).abs());
                // Not by `f64::max`, which forgets NaN.
                let worst = errors.fold(0.0f64, |m, e| if m.is_nan() || e <= m { m } else { e });
                let model = &config["model_type"];
                println!(
                    "{model}, dora {use_dora}, dropout {dropout}, {dtype}: {worst:.1e}, {:.4} to {:.4}",
                    ours[0], ours[19]
                );
                assert!(theirs[19] < theirs[0], "model {number} learns nothing");
                if worst.is_nan() || worst >= tolerance {
                    wrong.push(format!(
                        "{model} dora {use_dora} dropout {dropout} {dtype}: {worst:e}\n{ours:?}\n{theirs:?}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn two_runs_give_the_same_bytes() {
    let Some(device) = card() else { return };
    for use_dora in [false, true] {
        for dtype in [DType::F32, DType::BF16] {
            let run = || steps(&llama(), &adapter(use_dora, 0.1), dtype, device);
            assert!(run() == run(), "dora {use_dora}, {dtype}");
        }
    }
}

/// PiSSA's decomposition multiplies where W is; both find the same adapter, and the base without it.
#[test]
fn an_adapter_that_starts_from_the_weights_is_found_on_a_card() {
    let Some(device) = card() else { return };
    let adapter = AdapterSpec { init: Init::PissaNiter(8), ..adapter(false, 0.0) };
    let start = |device| {
        let spec = spec(&llama()).unwrap();
        let mut bench = StepBench::new(&spec, Dtypes::both(DType::F32), &adapter, 3, 70, 1, device).unwrap();
        let params = bench.params();
        let numbers: Vec<f64> = params.ids().flat_map(|id| params.value(id).to_f64_vec()).collect();
        (numbers, bench.step().unwrap())
    };
    let ((there, loss_there), (here, loss_here)) = (start(device), start(Device::Cpu));
    let largest = here.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (a, b) in there.iter().zip(&here) {
        // Random weights have no gap in their spectrum: the last directions turn easily.
        assert!((a - b).abs() < 0.02 * largest, "{a} {b}");
    }
    assert!((loss_there / loss_here - 1.0).abs() < 1e-4, "{loss_there} {loss_here}");
}
