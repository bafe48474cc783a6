"""The models of families.py as llama.cpp's converter lays them out: one GGUF for each group of architectures, F32.

README.md beside this file ("GGUF of the families") says which keys and tensors each has and what is done to weights.
"""

import json
import math

from common import write_tensors
from family_cases import Case
from llama import interleave

import gguf
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3",
    "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
# Gemma 2 and 3 have four norms, and their post_attention_layernorm stands elsewhere.
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def tensor_name(name: str, four_norms: bool) -> str:
    module, kind = name.rsplit(".", 1)
    if module in TOP:
        return f"{TOP[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{(BLOCK | FOUR_NORMS if four_norms else BLOCK)[rest]}.{kind}"


def add_sizes(writer: gguf.GGUFWriter, config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_head_size(writer: gguf.GGUFWriter, config) -> None:
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def llama3_factors(config) -> torch.Tensor:
    """By what each frequency is divided."""
    rope, dim = config.rope_parameters, config.head_dim
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim):
        length = 2 * math.pi / frequency
        if length < high:
            factors.append(1.0)
        elif length > low:
            factors.append(rope["factor"])
        else:
            span = rope["high_freq_factor"] - rope["low_freq_factor"]
            smooth = (rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]) / span
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def add_family(writer: gguf.GGUFWriter, config) -> dict[str, torch.Tensor]:
    """The keys of one architecture; returns its tensors that are no weights."""
    kind, rope = config.model_type, config.rope_parameters
    if ARCHITECTURES[kind] == "llama":
        add_head_size(writer, config)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        return {"rope_freqs.weight": llama3_factors(config)} if rope["rope_type"] == "llama3" else {}
    if kind == "qwen2":
        writer.add_rope_freq_base(rope["rope_theta"])
    elif kind == "qwen3":
        add_head_size(writer, config)
        writer.add_rope_freq_base(rope["rope_theta"])
    elif kind == "gemma":
        add_head_size(writer, config)
    elif kind == "gemma2":
        # Neither the rotary base nor query_pre_attn_scalar is written: readers take 10000 and the head size.
        add_head_size(writer, config)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
    elif kind == "gemma3_text":
        add_head_size(writer, config)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
        # The converter leaves this out and readers take 6; a model of three layers needs it to have a global one.
        writer.add_sliding_window_pattern(config.layer_types.index("full_attention") + 1)
    elif kind == "phi3":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        turned = int(rope["partial_rotary_factor"] * config.hidden_size)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_dimension_count(turned // config.num_attention_heads)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_sliding_window(config.sliding_window or 0)
        if rope["rope_type"] == "default":
            return {}
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        return {
            "rope_factors_long.weight": torch.tensor(rope["long_factor"]),
            "rope_factors_short.weight": torch.tensor(rope["short_factor"]),
        }
    return {}


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [token for token, _ in sorted(data["model"]["vocab"].items(), key=lambda item: item[1])]
    special = {tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token}
    types = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    unused = rows - len(tokens)  # rows of the embedding without a token
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{len(tokens) + i}]" for i in range(unused)])
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * unused)
    writer.add_token_merges([" ".join(merge) for merge in data["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def write_gguf(case: Case) -> None:
    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)
    config, gemma = model.config, case.model_type.startswith("gemma")
    four_norms = case.model_type in ("gemma2", "gemma3_text")
    path = case.folder / "model.gguf"
    writer = gguf.GGUFWriter(str(path), ARCHITECTURES[case.model_type])
    writer.add_name(case.name)
    add_sizes(writer, config)
    extra = add_family(writer, config)
    add_tokenizer(writer, PreTrainedTokenizerFast.from_pretrained(case.folder), config.vocab_size)
    for name, tensor in extra.items():
        writer.add_tensor(name, tensor.numpy())
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ARCHITECTURES[case.model_type] == "llama" and name.split(".")[-2] in heads:
            tensor = interleave(tensor, heads[name.split(".")[-2]])
        if gemma and name.endswith("norm.weight"):
            tensor = tensor + 1
        writer.add_tensor(tensor_name(name, four_norms), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.chmod(0o644)
    write_expected(case, model)


def write_expected(case: Case, model) -> None:
    """Logits of what a reader can know where that is not the folder: Gemma's query_pre_attn_scalar is not in the file.

    transformers' own reader must find the folder's weights, where it reads the architecture into the class at all.
    """
    from families import documents, logits_of, model_of, tokenizer

    config = model.config.to_dict()
    if case.model_type not in ("gemma", "mistral"):
        read = AutoModelForCausalLM.from_pretrained(
            case.folder, gguf_file="model.gguf", config=model.config, dtype=torch.float32
        )
        for name, tensor in read.state_dict().items():
            apart = (tensor - model.state_dict()[name]).abs().max().item()
            assert apart < 1e-6, f"{case.name}: {name} is off by {apart}"
    if "query_pre_attn_scalar" not in config:
        return
    config["query_pre_attn_scalar"] = config["head_dim"]
    docs = documents(case, tokenizer())
    logits = logits_of(model_of(config, model.state_dict()), docs)
    write_tensors(case.folder / "gguf.safetensors", {f"doc{i}.logits": value for i, value in enumerate(logits)})
