//! Parameter groups: what differs between parameters in learning rate and decay.

use loratune_engine::Params;

use crate::config::RunConfig;

/// What differs between parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Multiplies the schedule's learning rate.
    pub lr_factor: f64,
    pub weight_decay: f64,
}

/// Learning rate of adapters on embeddings with LoRA+, if none is set (PEFT's default).
const LORA_PLUS_EMBEDDING: f64 = 1e-6;

/// The group of a parameter. Biases and norms are not decayed, as in Hugging Face's `Trainer`.
///
/// With LoRA+ (Hayou et al., arXiv 2402.12354) in the groups of PEFT's `create_loraplus_optimizer`: adapters on embeddings have
/// a learning rate of their own; B and everything one-dimensional (biases, DoRA's magnitudes) learn `loraplus_lr_ratio` times
/// as fast; A, whole matrices and trained rows of tables as without LoRA+. The weight decay is the run's, as in the paper's code (PEFT has a key for it).
pub(super) fn group(name: &str, dimensions: usize, config: &RunConfig) -> Group {
    let lowercase = name.to_ascii_lowercase();
    // PEFT's LoRA+ decays trained norms, which Hugging Face's `Trainer` does not: its list of norm classes lacks RMSNorm.
    let norm = lowercase.contains("norm") && !config.lora_plus();
    let decayed = !(lowercase.contains("bias") || norm);
    let weight_decay = if decayed { config.weight_decay } else { 0.0 };
    let lr_factor = match config.loraplus_lr_ratio.filter(|_| config.lora_plus()) {
        Some(_) if name.contains("lora_embedding_") => {
            config.loraplus_lr_embedding.unwrap_or(LORA_PLUS_EMBEDDING) / config.learning_rate
        }
        Some(ratio) if name.contains("lora_B") || dimensions == 1 => ratio,
        _ => 1.0,
    };
    Group { lr_factor, weight_decay }
}

/// Parameters that learn at one rate and decay alike.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct GroupSize {
    /// At the schedule's peak.
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Name of the first tensor.
    pub first: String,
}

/// The groups of a run's parameters, in the order of their first.
pub fn group_sizes(params: &Params, config: &RunConfig) -> Vec<GroupSize> {
    let mut sizes: Vec<GroupSize> = Vec::new();
    for id in params.ids() {
        let (name, value) = (params.name(id), params.value(id));
        let Group { lr_factor, weight_decay } = group(name, value.shape().len(), config);
        let learning_rate = config.learning_rate * lr_factor;
        let same = |s: &&mut GroupSize| s.learning_rate == learning_rate && s.weight_decay == weight_decay;
        match sizes.iter_mut().find(same) {
            Some(size) => {
                (size.tensors, size.parameters) = (size.tensors + 1, size.parameters + value.numel())
            }
            None => {
                let (parameters, first) = (value.numel(), name.to_string());
                sizes.push(GroupSize { learning_rate, weight_decay, tensors: 1, parameters, first });
            }
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ratio: Option<f64>, embedding: Option<f64>) -> RunConfig {
        RunConfig {
            learning_rate: 2e-4,
            weight_decay: 0.1,
            loraplus_lr_ratio: ratio,
            loraplus_lr_embedding: embedding,
            ..RunConfig::default()
        }
    }

    const A: (&str, usize) = ("model.layers.0.self_attn.q_proj.lora_A.weight", 2);
    const B: (&str, usize) = ("model.layers.0.self_attn.q_proj.lora_B.weight", 2);
    const MAGNITUDE: (&str, usize) = ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 1);
    const BIAS: (&str, usize) = ("model.layers.0.self_attn.q_proj.bias", 1);
    const EMBEDDING_A: (&str, usize) = ("model.embed_tokens.lora_embedding_A", 2);
    const EMBEDDING_B: (&str, usize) = ("model.embed_tokens.lora_embedding_B", 2);
    const HEAD: (&str, usize) = ("lm_head.weight", 2);
    const ROWS: (&str, usize) = ("model.embed_tokens.token_adapter.trainable_tokens_delta", 2);

    #[test]
    fn lora_plus_has_pefts_groups() {
        let config = config(Some(16.0), None);
        let of = |(name, dimensions)| group(name, dimensions, &config);
        assert_eq!(of(A), Group { lr_factor: 1.0, weight_decay: 0.1 });
        assert_eq!(of(HEAD), Group { lr_factor: 1.0, weight_decay: 0.1 });
        assert_eq!(of(ROWS), Group { lr_factor: 1.0, weight_decay: 0.1 });
        assert_eq!(of(B), Group { lr_factor: 16.0, weight_decay: 0.1 });
        assert_eq!(of(MAGNITUDE), Group { lr_factor: 16.0, weight_decay: 0.1 });
        assert_eq!(of(BIAS), Group { lr_factor: 16.0, weight_decay: 0.0 });
        for embedding in [EMBEDDING_A, EMBEDDING_B] {
            let group = of(embedding);
            assert!((group.lr_factor * 2e-4 - 1e-6).abs() < 1e-18 && group.weight_decay == 0.1);
        }
    }

    #[test]
    fn lora_plus_is_off_without_a_ratio_and_at_0_and_changes_nothing_at_1() {
        for ratio in [None, Some(0.0), Some(1.0)] {
            for (name, dimensions) in [A, B, MAGNITUDE, BIAS, EMBEDDING_A, EMBEDDING_B, HEAD] {
                let plus = group(name, dimensions, &config(ratio, None));
                assert_eq!(plus, group(name, dimensions, &config(None, None)), "{ratio:?} {name}");
                assert_eq!(plus.lr_factor, 1.0);
            }
        }
        let with_embedding = group(EMBEDDING_A.0, 2, &config(Some(1.0), Some(4e-4)));
        assert_eq!(with_embedding.lr_factor, 2.0);
    }
}
