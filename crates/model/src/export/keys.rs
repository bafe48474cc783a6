//! A decoder's description in the keys of a GGUF file.

use crate::families::Family;
use crate::files::gguf::{Entry, Gguf};
use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::DecoderSpec;

/// Metadata, in the order of the file.
pub(super) type Keys = Vec<(String, Entry)>;

/// Tensors of a few f32 numbers that belong to the description.
pub(super) type Small = Vec<(String, Vec<f32>)>;

/// Counts are u32 in a file; the sizes that are believed are far below its end.
fn count(n: usize) -> Entry {
    Entry::U32(u32::try_from(n).unwrap_or(u32::MAX))
}

/// The keys of an architecture, and the tensors that go with them.
pub(super) fn architecture(spec: &DecoderSpec, gguf: &Gguf) -> (Keys, Small) {
    let mut keys: Vec<(&str, Entry)> = vec![
        ("block_count", count(spec.num_layers())),
        ("context_length", count(spec.max_positions)),
        ("embedding_length", count(spec.hidden_size)),
        ("feed_forward_length", count(spec.intermediate_size)),
        ("attention.head_count", count(spec.num_heads)),
        ("attention.head_count_kv", count(spec.num_kv_heads)),
        ("attention.layer_norm_rms_epsilon", Entry::F32(spec.norm.eps as f32)),
        ("attention.key_length", count(spec.head_dim)),
        ("attention.value_length", count(spec.head_dim)),
        ("vocab_size", count(spec.vocab_size)),
    ];
    let mut small = Small::new();
    if let Some(rope) = spec.ropes.first() {
        keys.push(("rope.freq_base", Entry::F32(rope.theta as f32)));
        keys.push(("rope.dimension_count", count(rope.dim)));
        scaling(rope, &mut keys, &mut small);
    }
    keys.extend((gguf.write)(spec));
    (keys.into_iter().map(|(name, value)| (format!("{}.{name}", gguf.arch), value)).collect(), small)
}

/// How frequencies are scaled. What llama.cpp has no word for is left out, and found by reading the keys back.
fn scaling(rope: &RopeSpec, keys: &mut Vec<(&str, Entry)>, small: &mut Small) {
    let text = |t: &str| Entry::Text(t.to_owned());
    match &rope.scaling {
        RopeScaling::None | RopeScaling::Dynamic { .. } => {}
        RopeScaling::Linear { factor } => {
            keys.push(("rope.scaling.type", text("linear")));
            keys.push(("rope.scaling.factor", Entry::F32(*factor as f32)));
        }
        RopeScaling::Llama3 { .. } => small.push(("rope_freqs.weight".into(), divisors(rope))),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, attention_factor, .. } => {
            keys.push(("rope.scaling.type", text("yarn")));
            keys.push(("rope.scaling.factor", Entry::F32(*factor as f32)));
            keys.push(("rope.scaling.original_context_length", count(*original)));
            keys.push(("rope.scaling.yarn_beta_fast", Entry::F32(*beta_fast as f32)));
            keys.push(("rope.scaling.yarn_beta_slow", Entry::F32(*beta_slow as f32)));
            // llama.cpp multiplies by this what YaRN scales by anyway.
            let times = attention_factor / (0.1 * factor.max(1.0).ln() + 1.0);
            if (times - 1.0).abs() > 1e-6 {
                keys.push(("rope.scaling.attn_factor", Entry::F32(times as f32)));
            }
        }
        RopeScaling::LongRope { short, long, original, attention_factor } => {
            keys.push(("rope.scaling.type", text("longrope")));
            keys.push(("rope.scaling.original_context_length", count(*original)));
            keys.push(("rope.scaling.attn_factor", Entry::F32(*attention_factor as f32)));
            small.push(("rope_factors_long.weight".into(), long.clone()));
            small.push(("rope_factors_short.weight".into(), short.clone()));
        }
    }
}

/// By what Llama 3 divides each frequency.
fn divisors(rope: &RopeSpec) -> Vec<f32> {
    let (plain, _) = RopeSpec::plain(rope.dim, rope.theta).frequencies(1);
    let (scaled, _) = rope.frequencies(1);
    plain.iter().zip(&scaled).map(|(p, s)| p / s).collect()
}

/// The keys that every model has: what it is, its name and its size.
pub(super) fn general(family: &Family, gguf: &Gguf, name: &str, parameters: usize) -> Keys {
    let text = |t: &str| Entry::Text(t.to_owned());
    vec![
        ("general.architecture".into(), text(gguf.arch)),
        ("general.type".into(), text("model")),
        ("general.name".into(), text(name)),
        ("general.size_label".into(), Entry::Text(size_label(parameters))),
        ("general.tags".into(), Entry::Texts(vec!["text-generation".into(), family.model_type.into()])),
    ]
}

/// A count of parameters in two digits at least, as llama.cpp's converter labels models: 135M, 1.1B, 7.2B.
fn size_label(parameters: usize) -> String {
    let n = parameters as f64;
    let (scaled, suffix) = match n {
        n if n >= 1e12 => (n * 1e-12, "T"),
        n if n >= 1e9 => (n * 1e-9, "B"),
        n if n >= 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let whole = format!("{scaled:.0}");
    let decimals = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.decimals$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::size_label;

    #[test]
    fn sizes_are_said_as_llama_cpp_says_them() {
        for (n, label) in [
            (134_515_008, "135M"),
            (1_100_048_384, "1.1B"),
            (7_241_732_096, "7.2B"),
            (70_553_706_496, "71B"),
            (15_360, "15K"),
            (2_140, "2.1K"),
            (212, "0.21K"),
        ] {
            assert_eq!(size_label(n), label);
        }
    }
}
