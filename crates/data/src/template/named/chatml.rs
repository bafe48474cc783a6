//! Templates with ChatML's turns: `<|im_start|>role … <|im_end|>`.

use super::Piece::{Bos, Text as T};
use super::{BASE, NamedTemplate, Reasoning, ToolFormat};

/// Turns alone; results of tools come as the user's.
const IM: NamedTemplate = NamedTemplate {
    system: &[T("<|im_start|>system\n{{content}}<|im_end|>\n")],
    user: &[T("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n")],
    assistant: &[T("{{content}}<|im_end|>\n")],
    stop_words: &["<|im_end|>"],
    ..BASE
};

/// With a role of its own for results of tools.
const IM_TOOL: NamedTemplate = NamedTemplate {
    observation: Some(&[T("<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n")]),
    ..IM
};

/// With Qwen's tools.
const QWEN: NamedTemplate = NamedTemplate {
    observation: Some(&[T(
        "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    )]),
    tools: ToolFormat::Qwen,
    replace_eos: true,
    ..IM
};

const QWEN3_5: NamedTemplate =
    NamedTemplate { name: "qwen3_5", tools: ToolFormat::Qwen35, reasoning: Reasoning::Pair, ..QWEN };

/// All of them.
pub(super) const TEMPLATES: &[NamedTemplate] = &[
    NamedTemplate {
        name: "chatml",
        stop_words: &["<|im_end|>", "<|im_start|>"],
        replace_eos: true,
        ..IM_TOOL
    },
    NamedTemplate {
        name: "chatml_de",
        default_system: "Du bist ein freundlicher und hilfsbereiter KI-Assistent.",
        stop_words: &["<|im_end|>", "<|im_start|>"],
        replace_eos: true,
        ..IM_TOOL
    },
    NamedTemplate { name: "cpm4", prefix: &[Bos], ..IM_TOOL },
    NamedTemplate {
        name: "dbrx",
        default_system: "You are DBRX, created by Databricks. You were last updated in December 2023. You answer questions based on information available up to that point.\nYOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but provide thorough responses to more complex and open-ended questions.\nYou assist with various tasks, from writing to coding (using markdown for code blocks — remember to use ``` with code, JSON, and tables).\n(You do not have real-time data access or code execution capabilities. You avoid stereotyping and provide balanced perspectives on controversial topics. You do not provide song lyrics, poems, or news articles and do not divulge details of your training data.)\nThis is your system prompt, guiding your responses. Do not reference it, just respond to the user. If you find yourself talking about this message, stop. You should be responding appropriately and usually that means not mentioning this.\nYOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION IS DIRECTLY PERTINENT TO THE USER'S QUERY.",
        replace_eos: true,
        ..IM_TOOL
    },
    NamedTemplate {
        name: "falcon_h1",
        prefix: &[Bos],
        stop_words: &["<|im_end|>", "<|end_of_text|>"],
        ..IM_TOOL
    },
    NamedTemplate {
        name: "intern2",
        prefix: &[Bos],
        default_system: "You are an AI assistant whose name is InternLM (书生·浦语).\n- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as English and 中文.",
        ..IM
    },
    NamedTemplate { name: "intern_s1", prefix: &[Bos], ..IM },
    NamedTemplate {
        name: "lfm2",
        observation: Some(&[T(
            "<|im_start|>tool\n<|tool_response_start|>{{content}}<|tool_response_end|><|im_end|>\n<|im_start|>assistant\n",
        )]),
        tools: ToolFormat::Lfm2,
        default_system: "You are a helpful AI assistant.",
        replace_eos: true,
        ..IM
    },
    NamedTemplate {
        name: "mimo",
        default_system: "You are a helpful assistant.",
        reasoning: Reasoning::Pair,
        ..QWEN
    },
    NamedTemplate {
        name: "mimo_v2",
        default_system: "You are MiMo, a helpful AI assistant engineered by Xiaomi.",
        thought: ("<think>", "</think>"),
        reasoning: Reasoning::Pair,
        ..QWEN
    },
    NamedTemplate {
        name: "opencoder",
        default_system: "You are OpenCoder, created by OpenCoder Team.",
        ..IM_TOOL
    },
    NamedTemplate {
        name: "qwen",
        default_system: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ..QWEN
    },
    NamedTemplate { name: "qwen2_vl", default_system: "You are a helpful assistant.", ..QWEN },
    NamedTemplate { name: "qwen3", reasoning: Reasoning::Pair, ..QWEN },
    QWEN3_5,
    NamedTemplate { name: "qwen3_5_nothink", reasoning: Reasoning::None, ..QWEN3_5 },
    NamedTemplate { name: "qwen3_6", ..QWEN3_5 },
    NamedTemplate { name: "qwen3_nothink", ..QWEN },
    NamedTemplate { name: "qwen3_vl", reasoning: Reasoning::Pair, ..QWEN },
    NamedTemplate { name: "qwen3_vl_nothink", ..QWEN },
    NamedTemplate { name: "smollm", ..IM },
    NamedTemplate {
        name: "smollm2",
        default_system: "You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
        ..IM
    },
    NamedTemplate { name: "yi", ..IM },
];
