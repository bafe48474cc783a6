//! Blocks that are computed again in the backward pass: the same numbers as without, for less memory.

use std::sync::{Mutex, PoisonError};

use loratune_engine::bench::card;
use loratune_engine::profile::{self, Pass};
use loratune_engine::{Checkpointing, DType, Device};
use loratune_model::adapter::{AdapterSpec, Targets};
use loratune_model::bench::{StepBench, spec};
use loratune_model::decoder::Dtypes;
use serde_json::json;

/// The profile is the whole process's.
static PROFILE: Mutex<()> = Mutex::new(());

/// What three steps did.
struct Steps {
    losses: Vec<f64>,
    /// The adapter after them, as bits.
    adapter: Vec<Vec<u64>>,
    /// Forward passes of linear layers.
    passes: u64,
}

fn steps(
    checkpointing: Checkpointing,
    targets: &Targets,
    use_dora: bool,
    dtype: DType,
    device: Device,
) -> Steps {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 67, "tie_word_embeddings": true, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 128,
    });
    let adapter = AdapterSpec {
        r: 4,
        alpha: 8.0,
        targets: targets.clone(),
        use_dora,
        dropout: 0.2,
        ..AdapterSpec::default()
    };
    let model = spec(&config).unwrap();
    let mut bench = StepBench::new(&model, Dtypes::both(dtype), &adapter, 2, 21, 2, device).unwrap();
    bench.set_checkpointing(checkpointing);
    let alone = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    profile::start();
    let losses = (0..3).map(|_| bench.step().unwrap()).collect();
    let counted = profile::stop();
    drop(alone);
    let linear = counted.iter().find(|entry| (entry.0, entry.1) == ("linear", Pass::Forward));
    let params = bench.params();
    let bits = |id| params.value(id).to_f64_vec().iter().map(|x: &f64| x.to_bits()).collect();
    Steps { losses, adapter: params.ids().map(bits).collect(), passes: linear.unwrap().2.calls }
}

fn same(device: Device) {
    // Layers before the first adapter have no gradient to bring.
    let last = Targets::Names(vec!["layers.2.self_attn.q_proj".into(), "layers.1.mlp.up_proj".into()]);
    for (targets, use_dora) in [(&Targets::AllLinear, false), (&Targets::AllLinear, true), (&last, false)] {
        for dtype in [DType::F32, DType::BF16] {
            let kept = steps(Checkpointing::None, targets, use_dora, dtype, device);
            for checkpointing in [Checkpointing::Block, Checkpointing::Offload] {
                let again = steps(checkpointing, targets, use_dora, dtype, device);
                let case = format!("{checkpointing:?}, dora {use_dora} in {dtype} on {device}");
                assert!(kept.losses == again.losses, "{case}: {:?} {:?}", kept.losses, again.losses);
                assert!(kept.adapter == again.adapter, "{case}: another adapter");
                assert!(kept.losses[2] < kept.losses[0], "{case}: {:?}", kept.losses);
                // All blocks again, or the last two of three.
                let blocks = if matches!(targets, Targets::AllLinear) { 3 } else { 2 };
                assert_eq!(
                    again.passes,
                    kept.passes + kept.passes * blocks / 3,
                    "{case}: of {}",
                    kept.passes
                );
            }
        }
    }
}

#[test]
fn blocks_that_are_computed_again_give_the_same_bytes() {
    same(Device::Cpu);
}

#[test]
fn and_on_a_card() {
    if let Some(device) = card() {
        same(device);
    }
}
