//! The base model's folder without its weights: configuration and tokenizer.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

const VOCAB: usize = 1024;
const POSITIONS: usize = 512;
const PAD: &str = "<|endoftext|>";
const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

/// The chat format: each message between `<|im_start|>role` and `<|im_end|>`.
const CHAT_TEMPLATE: &str = "{%- for message in messages %}\
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{%- endfor %}\
{%- if add_generation_prompt %}\
{{- '<|im_start|>assistant\\n' }}\
{%- endif %}";

/// Trains the tokenizer on the texts and writes the folder.
pub fn write(folder: &Path, texts: impl Iterator<Item = String> + Send) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let tokenizer = train_tokenizer(texts)?;
    let id = |token: &str| tokenizer.token_to_id(token).with_context(|| format!("{token} has no id"));
    let (pad, end) = (id(PAD)?, id(END)?);
    anyhow::ensure!(tokenizer.get_vocab_size(true) == VOCAB, "the corpus is too small for {VOCAB} tokens");
    let save = |name: &str, value: &Value| {
        let path = folder.join(name);
        let text = serde_json::to_string_pretty(value)? + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    let text = tokenizer.to_string(false).map_err(|e| anyhow!("the tokenizer: {e}"))?;
    save("tokenizer.json", &serde_json::from_str(&text)?)?;
    save("tokenizer_config.json", &tokenizer_config())?;
    save("config.json", &config(pad, end))?;
    save("generation_config.json", &json!({"eos_token_id": end, "pad_token_id": pad, "do_sample": false}))
}

/// Byte-level BPE; every digit is a token of its own, so that numbers are copied digit by digit.
fn train_tokenizer(texts: impl Iterator<Item = String> + Send) -> Result<Tokenizer> {
    let special = [PAD, START, END].map(|t| AddedToken::from(t, true));
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(VOCAB)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ])));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut trainer, texts).map_err(|e| anyhow!("training the tokenizer: {e}"))?;
    Ok(tokenizer)
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": null,
        "add_bos_token": false,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": POSITIONS,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// 1 778 720 parameters, 3.6 MB in bfloat16. Six narrow layers learn to look things up in a story sooner than four wide
/// ones of the same size.
fn config(pad: u32, end: u32) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 160,
        "intermediate_size": 432,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "initializer_range": 0.05,
        "use_cache": true,
        "bos_token_id": null,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    })
}
