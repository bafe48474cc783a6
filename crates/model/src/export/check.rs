//! Whether a GGUF file says what the model computes: the header is read back as llama.cpp would understand it, before a weight is
//! written.

use crate::rope::RopeSpec;
use crate::spec::DecoderSpec;

/// What a file cannot say of a model.
#[derive(Default)]
pub(super) struct Differences {
    /// What would be computed otherwise at once.
    pub wrong: Vec<String>,
    /// What matters beyond some length only.
    pub notes: Vec<String>,
}

/// Compares a model with what its GGUF header says.
pub(super) fn compare(model: &DecoderSpec, read: &DecoderSpec, arch: &str) -> Differences {
    let mut out = Differences::default();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            out.wrong.push(format!("{what} is {a}, and llama.cpp's `{arch}` takes {b}"));
        }
    };
    let same = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    let mut number = |what: &str, a: f64, b: f64| {
        if !same(a, b) {
            differ(what, a.to_string(), b.to_string());
        }
    };
    number("the scale of attention scores", model.attention.scale, read.attention.scale);
    number("the scale of embeddings", model.embedding_scale, read.embedding_scale);
    number("residual_multiplier", model.residual_multiplier, read.residual_multiplier);
    number("the scale of logits", model.logits.scale, read.logits.scale);
    number("the norms' epsilon", model.norm.eps, read.norm.eps);
    number("the norms' offset", model.norm.offset, read.norm.offset);
    let cap = |cap: Option<f64>| cap.unwrap_or(0.0);
    number("the cap of attention scores", cap(model.attention.softcap), cap(read.attention.softcap));
    number("the cap of logits", cap(model.logits.softcap), cap(read.logits.softcap));
    differ("the activation", format!("{:?}", model.activation), format!("{:?}", read.activation));
    differ("the place of norms", format!("{:?}", model.norms), format!("{:?}", read.norms));
    differ("the norm of q and k", format!("{:?}", model.qk_norm), format!("{:?}", read.qk_norm));
    let sizes = |s: &DecoderSpec| {
        let layers = s.num_layers();
        [s.vocab_size, s.hidden_size, s.intermediate_size, s.num_heads, s.num_kv_heads, s.head_dim, layers]
    };
    differ("the list of sizes", format!("{:?}", sizes(model)), format!("{:?}", sizes(read)));
    for (i, (a, b)) in model.layers.iter().zip(&read.layers).enumerate() {
        let rope = |spec: &DecoderSpec, rope: Option<usize>| rope.and_then(|r| spec.ropes.get(r)).cloned();
        let (ours, theirs) = (rope(model, a.rope), rope(read, b.rope));
        let context = model.max_positions;
        let (equal, equal_when_short) = (same_rope(&ours, &theirs, context), same_rope(&ours, &theirs, 1));
        if !equal_when_short {
            out.wrong.push(format!(
                "the rotary embedding of layer {i} is another than llama.cpp's `{arch}` takes"
            ));
            break;
        }
        if !equal {
            out.notes.push(format!(
                "llama.cpp's `{arch}` does not know this model's scaling of rotary embeddings: beyond the original context \
                 its answers differ"
            ));
            break;
        }
    }
    let windows = |s: &DecoderSpec| s.layers.iter().map(|l| l.window).collect::<Vec<_>>();
    let (ours, theirs) = (windows(model), windows(read));
    if ours != theirs {
        let shortest = ours.iter().chain(&theirs).flatten().min().copied().unwrap_or(0);
        out.notes.push(format!(
            "llama.cpp's `{arch}` does not know this model's windows of attention: beyond {shortest} tokens its answers differ"
        ));
    }
    out
}

fn same_rope(a: &Option<RopeSpec>, b: &Option<RopeSpec>, longest: usize) -> bool {
    let (a, b) = match (a, b) {
        (None, None) => return true,
        (Some(a), Some(b)) => (a, b),
        _ => return false,
    };
    let ((fa, sa), (fb, sb)) = (a.frequencies(longest), b.frequencies(longest));
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs().max(b.abs());
    a.dim == b.dim
        && fa.len() == fb.len()
        && close(sa, sb)
        && fa.iter().zip(&fb).all(|(&x, &y)| close(f64::from(x), f64::from(y)))
}
