//! Templates with special tokens of their own.

use super::Piece::{Bos, Eos, Text as T, Token};
use super::{BASE, NamedTemplate, Reasoning, ToolFormat};

const BAILING: NamedTemplate = NamedTemplate {
    name: "bailing",
    system: &[T("<role>SYSTEM</role>{{content}}")],
    user: &[T("<role>HUMAN</role>{{content}}<role>ASSISTANT</role>")],
    assistant: &[T("{{content}}")],
    observation: Some(&[T("<role>OBSERVATION</role>{{content}}<role>ASSISTANT</role>")]),
    stop_words: &["<|endoftext|>"],
    efficient_eos: true,
    ..BASE
};
const GEMMA: NamedTemplate = NamedTemplate {
    name: "gemma",
    prefix: &[Bos],
    system: &[T("{{content}}\n\n")],
    user: &[T("<start_of_turn>user\n{{content}}<end_of_turn>\n<start_of_turn>model\n")],
    assistant: &[T("{{content}}<end_of_turn>\n")],
    observation: Some(&[T("<start_of_turn>tool\n{{content}}<end_of_turn>\n<start_of_turn>model\n")]),
    stop_words: &["<end_of_turn>"],
    replace_eos: true,
    system_in_user: true,
    ..BASE
};
const GLM4: NamedTemplate = NamedTemplate {
    name: "glm4",
    prefix: &[T("[gMASK]<sop>")],
    system: &[T("<|system|>\n{{content}}")],
    user: &[T("<|user|>\n{{content}}<|assistant|>")],
    assistant: &[T("\n{{content}}")],
    observation: Some(&[T("<|observation|>\n{{content}}<|assistant|>")]),
    function: Some(&[T("{{content}}")]),
    tools: ToolFormat::Glm4,
    stop_words: &["<|user|>", "<|observation|>"],
    efficient_eos: true,
    ..BASE
};
const GRANITE3: NamedTemplate = NamedTemplate {
    name: "granite3",
    system: &[T("<|start_of_role|>system<|end_of_role|>{{content}}<|end_of_text|>\n")],
    user: &[T(
        "<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    )],
    assistant: &[T("{{content}}<|end_of_text|>\n")],
    ..BASE
};
const LLAMA2: NamedTemplate = NamedTemplate {
    name: "llama2",
    system: &[T("<<SYS>>\n{{content}}\n<</SYS>>\n\n")],
    user: &[Bos, T("[INST] {{content}} [/INST]")],
    system_in_user: true,
    ..BASE
};
const MINISTRAL: NamedTemplate = NamedTemplate {
    name: "ministral",
    prefix: &[Bos],
    system: &[T("{{content}}\n\n")],
    user: &[T("[INST]{{content}}[/INST]")],
    observation: Some(&[T("[TOOL_RESULTS]{\"content\": {{content}}}[/TOOL_RESULTS]")]),
    function: Some(&[T("[TOOL_CALLS]{{content}}"), Eos]),
    tools: ToolFormat::Mistral,
    system_in_user: true,
    ..BASE
};
const PHI: NamedTemplate = NamedTemplate {
    name: "phi",
    system: &[T("<|system|>\n{{content}}<|end|>\n")],
    user: &[T("<|user|>\n{{content}}<|end|>\n<|assistant|>\n")],
    assistant: &[T("{{content}}<|end|>\n")],
    stop_words: &["<|end|>"],
    replace_eos: true,
    ..BASE
};

/// All of them.
pub(super) const TEMPLATES: &[NamedTemplate] = &[
    BAILING,
    NamedTemplate {
        name: "bailing_v2",
        system: &[T("<role>SYSTEM</role>{{content}}<|role_end|>")],
        user: &[T("<role>HUMAN</role>{{content}}<|role_end|><role>ASSISTANT</role>")],
        assistant: &[T("{{content}}<|role_end|>")],
        observation: Some(&[T(
            "<role>OBSERVATION</role>\n<tool_response>\n{{content}}\n</tool_response><|role_end|><role>ASSISTANT</role>",
        )]),
        tools: ToolFormat::Ling,
        ..BAILING
    },
    NamedTemplate {
        name: "breeze",
        prefix: &[Bos],
        user: &[T("[INST] {{content}} [/INST] ")],
        assistant: &[T("{{content}}")],
        efficient_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "chatglm3",
        prefix: &[Token("[gMASK]"), Token("sop")],
        system: &[Token("<|system|>"), T("\n"), T("{{content}}")],
        user: &[Token("<|user|>"), T("\n"), T("{{content}}"), Token("<|assistant|>")],
        assistant: &[T("\n"), T("{{content}}")],
        observation: Some(&[Token("<|observation|>"), T("\n"), T("{{content}}"), Token("<|assistant|>")]),
        function: Some(&[T("{{content}}")]),
        tools: ToolFormat::Glm4,
        stop_words: &["<|user|>", "<|observation|>"],
        efficient_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "cohere",
        prefix: &[Bos],
        system: &[T("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>")],
        user: &[T(
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        )],
        ..BASE
    },
    NamedTemplate {
        name: "deepseekcoder",
        prefix: &[Bos],
        user: &[T("### Instruction:\n{{content}}\n### Response:")],
        assistant: &[T("\n{{content}}\n<|EOT|>\n")],
        default_system: "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeek Company, and you only answer questions related to computer science. For politically sensitive questions, security and privacy issues, and other non-computer science questions, you will refuse to answer.\n",
        ..BASE
    },
    NamedTemplate {
        name: "ernie",
        system: &[T("<|im_start|>system\n{{content}}<|im_end|>\n\n")],
        user: &[T("<|im_start|>user\n{{content}}<|im_end|>\n\n<|im_start|>assistant\n")],
        assistant: &[T("{{content}}<|im_end|>\n\n")],
        observation: Some(&[T("<|im_start|>tool\n{{content}}<|im_end|>\n\n<|im_start|>assistant\n")]),
        default_system: "<global_setting>\nthink_mode=True\n</global_setting>",
        stop_words: &["<|im_end|>"],
        ..BASE
    },
    NamedTemplate {
        name: "ernie_nothink",
        prefix: &[T("<|begin_of_sentence|>")],
        system: &[T("{{content}}\n")],
        user: &[T("User: {{content}}\nAssistant: ")],
        assistant: &[T("{{content}}<|end_of_sentence|>")],
        stop_words: &["<|end_of_sentence|>"],
        ..BASE
    },
    GEMMA,
    NamedTemplate {
        name: "gemma2",
        stop_words: &["<eos>", "<end_of_turn>"],
        efficient_eos: true,
        replace_eos: false,
        ..GEMMA
    },
    NamedTemplate { name: "gemma3", ..GEMMA },
    NamedTemplate { name: "gemma3n", ..GEMMA },
    GLM4,
    NamedTemplate {
        name: "aeva",
        tools: ToolFormat::Glm4Moe,
        default_system: "You are an AI assistant named Aeva created by Zongzhi Lou. Your answer should be friendly, unbiased, faithful, informative and detailed.",
        thought: ("<think>", "</think>"),
        reasoning: Reasoning::Closing,
        ..GLM4
    },
    NamedTemplate {
        name: "glm4_7",
        tools: ToolFormat::Glm4Moe,
        thought: ("<think>", "</think>"),
        reasoning: Reasoning::Closing,
        ..GLM4
    },
    NamedTemplate { name: "glm4_moe", tools: ToolFormat::Glm4Moe, reasoning: Reasoning::Pair, ..GLM4 },
    NamedTemplate { name: "glmz1", reasoning: Reasoning::Pair, ..GLM4 },
    NamedTemplate {
        name: "gpt_oss",
        system: &[T("<|start|>system<|message|>{{content}}<|end|>")],
        user: &[T("<|start|>user<|message|>{{content}}<|end|><|start|>assistant")],
        assistant: &[T("{{content}}")],
        default_system: "You are ChatGPT, a large language model trained by OpenAI.",
        thought: ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        efficient_eos: true,
        reasoning: Reasoning::Pair,
        ..BASE
    },
    GRANITE3,
    NamedTemplate {
        name: "granite4",
        observation: Some(&[T(
            "<|start_of_role|>tool<|end_of_role|>{{content}}<|end_of_text|>\n<|start_of_role|>assistant\n",
        )]),
        default_system: "You are Granite, developed by IBM. You are a helpful AI assistant.",
        stop_words: &["<|end_of_text|>"],
        ..GRANITE3
    },
    NamedTemplate {
        name: "hunyuan",
        prefix: &[T("<|startoftext|>")],
        system: &[T("{{content}}<|extra_4|>")],
        user: &[T("{{content}}<|extra_0|>")],
        assistant: &[T("{{content}}<|eos|>")],
        stop_words: &["<|eos|>"],
        ..BASE
    },
    NamedTemplate {
        name: "index",
        system: &[T("<unk>{{content}}")],
        user: &[T("reserved_0{{content}}reserved_1")],
        assistant: &[T("{{content}}")],
        efficient_eos: true,
        ..BASE
    },
    LLAMA2,
    NamedTemplate {
        name: "llama2_zh",
        default_system: "You are a helpful assistant. 你是一个乐于助人的助手。",
        ..LLAMA2
    },
    NamedTemplate {
        name: "llama3",
        prefix: &[Bos],
        system: &[T("<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>")],
        user: &[T(
            "<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        )],
        assistant: &[T("{{content}}<|eot_id|>")],
        observation: Some(&[T(
            "<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        )]),
        tools: ToolFormat::Llama3,
        stop_words: &["<|eot_id|>", "<|eom_id|>"],
        replace_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "llama4",
        prefix: &[Bos],
        system: &[T("<|header_start|>system<|header_end|>\n\n{{content}}<|eot|>")],
        user: &[T(
            "<|header_start|>user<|header_end|>\n\n{{content}}<|eot|><|header_start|>assistant<|header_end|>\n\n",
        )],
        assistant: &[T("{{content}}<|eot|>")],
        observation: Some(&[T(
            "<|header_start|>ipython<|header_end|>\n\n{{content}}<|eot|><|header_start|>assistant<|header_end|>\n\n",
        )]),
        tools: ToolFormat::Llama3,
        stop_words: &["<|eot|>", "<|eom|>"],
        replace_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "minimax1",
        system: &[T("<beginning_of_sentence>system ai_setting=assistant\n{{content}}<end_of_sentence>\n")],
        user: &[T(
            "<beginning_of_sentence>user name=user\n{{content}}<end_of_sentence>\n<beginning_of_sentence>ai name=assistant\n",
        )],
        assistant: &[T("{{content}}<end_of_sentence>\n")],
        observation: Some(&[T(
            "<beginning_of_sentence>tool name=tools\n{{content}}<end_of_sentence>\n<beginning_of_sentence>ai name=assistant\n",
        )]),
        tools: ToolFormat::Minimax1,
        default_system: "You are a helpful assistant.",
        stop_words: &["<end_of_sentence>"],
        ..BASE
    },
    NamedTemplate {
        name: "minimax2",
        system: &[T("]~!b[]~b]system\n{{content}}[e~[\n")],
        user: &[T("]~b]user\n{{content}}[e~[\n]~b]ai\n")],
        assistant: &[T("{{content}}[e~[\n")],
        observation: Some(&[T("]~b]tool\n<response>{{content}}</response>[e~[\n]~b]ai\n")]),
        tools: ToolFormat::Minimax2,
        default_system: "You are a helpful assistant. Your name is MiniMax-M2.1 and is built by MiniMax.",
        stop_words: &["[e~["],
        reasoning: Reasoning::Pair,
        ..BASE
    },
    MINISTRAL,
    NamedTemplate { name: "ministral3", ..MINISTRAL },
    NamedTemplate {
        name: "mistral",
        user: &[T("[INST] {{content}}[/INST]")],
        assistant: &[T(" {{content}}"), Eos],
        observation: Some(&[T("[TOOL_RESULTS] {\"content\": {{content}}}[/TOOL_RESULTS]")]),
        function: Some(&[T("[TOOL_CALLS] {{content}}"), Eos]),
        ..MINISTRAL
    },
    NamedTemplate {
        name: "mistral_small",
        system: &[T("[SYSTEM_PROMPT]{{content}}[/SYSTEM_PROMPT]")],
        system_in_user: false,
        ..MINISTRAL
    },
    NamedTemplate {
        name: "moonlight",
        system: &[T("<|im_system|>system<|im_middle|>{{content}}<|im_end|>")],
        user: &[T("<|im_user|>user<|im_middle|>{{content}}<|im_end|><|im_assistant|>assistant<|im_middle|>")],
        assistant: &[T("{{content}}<|im_end|>")],
        default_system: "You are a helpful assistant provided by Moonshot-AI.",
        stop_words: &["<|im_end|>"],
        replace_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "olmo",
        prefix: &[Eos],
        user: &[T("<|user|>\n{{content}}<|assistant|>\n")],
        ..BASE
    },
    NamedTemplate {
        name: "openchat-3.6",
        prefix: &[Bos],
        user: &[T(
            "<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n{{content}}<|eot_id|><|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
        )],
        stop_words: &["<|eot_id|>"],
        ..BASE
    },
    PHI,
    // LLaMA-Factory means to begin with <|endoftext|> here, but writes nothing.
    NamedTemplate { name: "phi_small", ..PHI },
    NamedTemplate {
        name: "starchat",
        user: &[T("<|user|>\n{{content}}<|end|>\n<|assistant|>")],
        replace_eos: false,
        ..PHI
    },
    NamedTemplate {
        name: "phi4",
        system: &[T("<|im_start|>system<|im_sep|>{{content}}<|im_end|>")],
        user: &[T("<|im_start|>user<|im_sep|>{{content}}<|im_end|><|im_start|>assistant<|im_sep|>")],
        assistant: &[T("{{content}}<|im_end|>")],
        stop_words: &["<|im_end|>"],
        replace_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "phi4_mini",
        system: &[T("<|system|>{{content}}<|end|>")],
        user: &[T("<|user|>{{content}}<|end|><|assistant|>")],
        assistant: &[T("{{content}}<|end|>")],
        tools: ToolFormat::Phi4Mini,
        stop_words: &["<|end|>"],
        replace_eos: true,
        ..BASE
    },
    NamedTemplate {
        name: "sailor",
        system: &[T("<|im_start|>system\n{{content}}<|im_end|>\n")],
        user: &[T("<|im_start|>question\n{{content}}<|im_end|>\n<|im_start|>answer\n")],
        assistant: &[T("{{content}}<|im_end|>\n")],
        default_system: "You are an AI assistant named Sailor created by Sea AI Lab. Your answer should be friendly, unbiased, faithful, informative and detailed.",
        stop_words: &["<|im_end|>"],
        ..BASE
    },
    NamedTemplate {
        name: "telechat2",
        system: &[T("<_system>{{content}}")],
        user: &[T("<_user>{{content}}<_bot>")],
        default_system: "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司和中国电信人工智能研究院（TeleAI）研发的人工智能助手。",
        ..BASE
    },
    NamedTemplate {
        name: "youtu",
        prefix: &[Bos],
        user: &[T("<|User|>{{content}}<|Assistant|>")],
        assistant: &[T("{{content}}<|end_of_text|>")],
        observation: Some(&[T("<tool_response>\n{{content}}\n</tool_response><|Assistant|>")]),
        function: Some(&[T("{{content}}")]),
        stop_words: &["<|end_of_text|>"],
        replace_eos: true,
        reasoning: Reasoning::Pair,
        ..BASE
    },
    NamedTemplate {
        name: "yuan",
        user: &[T("{{content}}"), Token("<sep>")],
        assistant: &[T("{{content}}<eod>\n")],
        stop_words: &["<eod>"],
        ..BASE
    },
    NamedTemplate {
        name: "zephyr",
        system: &[T("<|system|>\n{{content}}"), Eos],
        user: &[T("<|user|>\n{{content}}"), Eos, T("<|assistant|>\n")],
        default_system: "You are Zephyr, a helpful assistant.",
        ..BASE
    },
];
