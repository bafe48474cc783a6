//! Templates whose turns begin with words or with the tokenizer's own begin and end tokens.

use super::Piece::{Bos, Eos, Text as T};
use super::{BASE, NamedTemplate, Reasoning, ToolFormat};

const DEEPSEEK3: NamedTemplate = NamedTemplate {
    name: "deepseek3",
    prefix: &[Bos],
    user: &[T("<｜User｜>{{content}}<｜Assistant｜>")],
    ..BASE
};
const SEED_CODER: NamedTemplate = NamedTemplate {
    name: "seed_coder",
    system: &[Bos, T("system\n{{content}}"), Eos],
    user: &[Bos, T("user\n{{content}}"), Eos, Bos, T("assistant\n")],
    default_system: "You are an AI programming assistant, utilizing the Seed-Coder model, developed by ByteDance Seed, and you only answer questions related to computer science. For politically sensitive questions, security and privacy issues, and other non-computer science questions, you will refuse to answer.\n\n",
    ..BASE
};

/// All of them.
pub(super) const TEMPLATES: &[NamedTemplate] = &[
    NamedTemplate {
        name: "alpaca",
        user: &[T("### Instruction:\n{{content}}\n\n### Response:\n")],
        assistant: &[T("{{content}}"), Eos, T("\n\n")],
        default_system: "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
        ..BASE
    },
    NamedTemplate {
        name: "deepseek",
        prefix: &[Bos],
        system: &[T("{{content}}\n\n")],
        user: &[T("User: {{content}}\n\nAssistant:")],
        ..BASE
    },
    DEEPSEEK3,
    NamedTemplate { name: "deepseekr1", reasoning: Reasoning::Pair, ..DEEPSEEK3 },
    NamedTemplate {
        name: "default",
        system: &[T("System: {{content}}"), Eos, T("\n")],
        user: &[T("Human: {{content}}"), Eos, T("\nAssistant:")],
        assistant: &[T("{{content}}"), Eos, T("\n")],
        ..BASE
    },
    // LLaMA-Factory 0.6 and 0.7's template of the name.
    NamedTemplate {
        name: "default@0.7",
        system: &[T("{{content}}\n")],
        user: &[T("Human: {{content}}\nAssistant: ")],
        separator: &[T("\n")],
        tools: ToolFormat::Action07,
        ..BASE
    },
    NamedTemplate { name: "empty", assistant: &[T("{{content}}")], ..BASE },
    NamedTemplate {
        name: "exaone",
        system: &[T("[|system|]{{content}}[|endofturn|]\n")],
        user: &[T("[|user|]{{content}}\n[|assistant|]")],
        assistant: &[T("{{content}}"), Eos, T("\n")],
        ..BASE
    },
    NamedTemplate {
        name: "falcon",
        user: &[T("User: {{content}}\nFalcon:")],
        assistant: &[T("{{content}}\n")],
        efficient_eos: true,
        ..BASE
    },
    NamedTemplate { name: "fewshot", assistant: &[T("{{content}}\n\n")], efficient_eos: true, ..BASE },
    NamedTemplate {
        name: "hunyuan_small",
        prefix: &[T("<｜hy_begin▁of▁sentence｜>")],
        system: &[T("{{content}}<｜hy_place▁holder▁no▁3｜>")],
        user: &[T("<｜hy_User｜>{{content}}<｜hy_place▁holder▁no▁8｜>")],
        assistant: &[T("{{content}}<｜hy_place▁holder▁no▁2｜>")],
        stop_words: &["<｜hy_place▁holder▁no▁2｜>"],
        ..BASE
    },
    NamedTemplate {
        name: "hy3",
        prefix: &[Bos],
        user: &[T("<｜hy_User｜>{{content}}<｜hy_Assistant｜>")],
        assistant: &[T("{{content}}<｜hy_eos｜>")],
        stop_words: &["<｜hy_eos｜>"],
        thought: ("<think>", "</think>"),
        replace_eos: true,
        reasoning: Reasoning::Pair,
        ..BASE
    },
    NamedTemplate {
        name: "openchat",
        prefix: &[Bos],
        user: &[T("GPT4 Correct User: {{content}}"), Eos, T("GPT4 Correct Assistant:")],
        ..BASE
    },
    SEED_CODER,
    NamedTemplate {
        name: "seed_oss",
        function: Some(&[Bos, T("\n{{content}}"), Eos]),
        tools: ToolFormat::Seed,
        default_system: "",
        thought: ("<seed:think>", "</seed:think>"),
        reasoning: Reasoning::Pair,
        ..SEED_CODER
    },
    NamedTemplate {
        name: "solar",
        system: &[T("### System:\n{{content}}\n\n")],
        user: &[T("### User:\n{{content}}\n\n### Assistant:\n")],
        assistant: &[T("{{content}}")],
        efficient_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "vicuna",
        user: &[T("USER: {{content}} ASSISTANT:")],
        default_system: "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.",
        ..BASE
    },
    NamedTemplate {
        name: "xuanyuan",
        user: &[T("Human: {{content}} Assistant:")],
        default_system: "以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，会对人类提出的问题给出有帮助、高质量、详细和礼貌的回答，并且总是拒绝参与与不道德、不安全、有争议、政治敏感等相关的话题、问题和指示。\n",
        ..BASE
    },
];
