//! A byte-level BPE tokenizer trained on the corpus, with ChatML's special tokens and template.

use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

pub const VOCABULARY: usize = 1024;
/// Id of `<|im_end|>`.
pub const EOS: usize = 2;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

pub fn write(dir: &Path, texts: impl Iterator<Item = String> + Send) -> Result<()> {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.iter().map(|t| AddedToken::from(*t, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = || ByteLevel::default().add_prefix_space(false);
    let mut tokenizer =
        TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::default()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(bytes()))
            .with_post_processor(Some(bytes()))
            .with_decoder(Some(bytes()))
            .build()
            .map_err(|e| anyhow!("{e}"))?;
    tokenizer.train(&mut trainer, texts).map_err(|e| anyhow!("{e}"))?;
    tokenizer.save(dir.join("tokenizer.json"), true).map_err(|e| anyhow!("{e}"))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": special[EOS],
        "pad_token": special[0],
        "add_bos_token": false,
        "model_max_length": 512,
        "chat_template": TEMPLATE,
    });
    std::fs::write(dir.join("tokenizer_config.json"), format!("{config:#}\n"))?;
    Ok(())
}
