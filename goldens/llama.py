"""Tiny Llama folders as transformers saves them, with their logits and gradients.

Writes crates/model/tests/goldens/llama/{gqa-untied,tied-bf16,mha-f16}/ and gqa-untied.gguf.
The same tokenizer is in every folder; the three differ in how its chat template is stored.

Usage: python goldens/llama.py
"""

import json
import shutil
from pathlib import Path

from common import LLAMA_GOLDENS, deterministic, generator, versions, write_json, write_tensors
from corpus import conversations

import gguf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 301
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IGNORED = -100

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The same text, with the assistant's part marked so that masks can come from the template itself.
CHATML_GENERATION = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level_bpe(template: str) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE: 3 special tokens, 256 bytes, the rest merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = [part for pair in conversations(200) for part in pair] + ["user\nassistant\nsystem\n"] * 20
    tokenizer.train_from_iterator(text, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=IM_START,
        eos_token=IM_END,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        chat_template=template,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def random_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Weights large enough that every one of them moves the logits; norms near one, biases small."""
    random = generator(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.1 * noise)
            else:
                parameter.copy_((0.1 if name.endswith("bias") else 0.2) * noise)
    return model


def base_config(**changes) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **changes,
    )


def rope(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


MODELS = {
    # Four heads of 12 although the hidden size is 32; biases on q, k, v and o; several shards.
    "gqa-untied": dict(
        config=base_config(
            hidden_size=32, intermediate_size=52, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=12, attention_bias=True, rms_norm_eps=1e-5, rope_parameters=rope(5000.0), tie_word_embeddings=False,
        ),
        seed=11, dtype=torch.float32, shard="100KB", template=CHATML, template_file=True,
    ),
    "tied-bf16": dict(
        config=base_config(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
            rms_norm_eps=1e-6, rope_parameters=rope(10000.0), tie_word_embeddings=True,
        ),
        seed=12, dtype=torch.bfloat16, shard="5GB", template=CHATML_GENERATION, template_file=True,
    ),
    # Its config.json is rewritten as older versions of transformers wrote it.
    "mha-f16": dict(
        config=base_config(
            hidden_size=20, intermediate_size=28, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            mlp_bias=True, rms_norm_eps=1e-5, rope_parameters=rope(20000.0), tie_word_embeddings=False,
        ),
        seed=13, dtype=torch.float16, shard="5GB", template=CHATML, template_file=False,
    ),
}  # fmt: skip


def make_files_old(folder: Path) -> None:
    """Top-level rope_theta, torch_dtype, neither head_dim nor num_key_value_heads; merges as "a b"."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    del config["head_dim"], config["num_key_value_heads"]
    config["transformers_version"] = "4.44.0"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["backend"]
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def documents(tokenizer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two documents of different length: (input_ids, labels); the first one's prompt is not trained."""
    (question, answer), (other, reply) = conversations(2, start=402)
    prompt = tokenizer.encode(f"{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n")
    first = prompt + tokenizer.encode(f"{answer}{IM_END}")
    second = tokenizer.encode(f"{other} {reply}{IM_END}")
    assert len(first) != len(second)
    first_labels = [IGNORED] * len(prompt) + first[len(prompt) :]
    return [(torch.tensor(first), torch.tensor(first_labels)), (torch.tensor(second), torch.tensor(second))]


def expected(folder: Path, tokenizer, with_gradients: bool) -> dict[str, torch.Tensor]:
    """Logits and loss of the saved files with their weights upcast to f32.

    The loss is the sum over both documents of -log p(labels[t+1] | ids[..t]) divided by the number of
    labels t+1 >= 1 that are not -100; `grad.{weight}` are its gradients.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tensors, total, trained = {}, torch.zeros(()), 0
    for index, (ids, labels) in enumerate(documents(tokenizer)):
        logits = model(ids[None]).logits[0]
        total = total + F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum")
        trained += int((labels[1:] != IGNORED).sum())
        tensors[f"doc{index}.input_ids"], tensors[f"doc{index}.labels"] = ids, labels
        tensors[f"doc{index}.logits"] = logits
    loss = total / trained
    tensors["loss"], tensors["loss_sum"], tensors["trained_tokens"] = loss, total, torch.tensor(trained)
    assert 2.0 < loss < 12.0 and 0.3 < logits.std() < 5.0, (loss, logits.std())
    if with_gradients:
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7, name
            tensors[f"grad.{name}"] = parameter.grad
    print(f"{folder.name}: loss {loss.item():.4f}, logits' std {logits.std().item():.2f}, {trained} trained tokens")
    return tensors


def write_folder(name: str, spec: dict) -> None:
    folder = LLAMA_GOLDENS / name
    shutil.rmtree(folder, ignore_errors=True)
    model = random_model(spec["config"], spec["seed"]).to(spec["dtype"])
    model.save_pretrained(folder, max_shard_size=spec["shard"])
    tokenizer = byte_level_bpe(spec["template"])
    tokenizer.save_pretrained(folder, save_jinja_files=spec["template_file"])
    if not spec["template_file"]:
        make_files_old(folder)
        old, text = AutoTokenizer.from_pretrained(folder), "".join(q + a for q, a in conversations(9))
        assert old.encode(text) == tokenizer.encode(text)
    write_tensors(folder / "expected.safetensors", expected(folder, tokenizer, with_gradients=name == "gqa-untied"))
    for path in folder.iterdir():
        path.chmod(0o644)
    if name == "gqa-untied":
        write_gguf(folder, LLAMA_GOLDENS / f"{name}.gguf")


# --- GGUF -----------------------------------------------------------------------------------------


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring pairs, transformers pairs i with i + head_dim/2: reorder the rows
    of each head from [first halves, second halves] to [pair 0, pair 1, ...]."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def write_gguf(folder: Path, path: Path) -> None:
    """The folder as llama.cpp's converter lays it out: F32, q and k (and their biases) interleaved."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, tokenizer = model.config, PreTrainedTokenizerFast.from_pretrained(folder)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)

    data = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in data["added_tokens"]}
    tokens = [token for token, _ in sorted(data["model"]["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in data["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)

    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        projection = name.split(".")[-2]
        if projection in heads:
            tensor = interleave(tensor, heads[projection])
        writer.add_tensor(gguf_name(name), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_gguf(path, model, tokenizer)


def check_gguf(path: Path, model: LlamaForCausalLM, tokenizer) -> None:
    """transformers' own GGUF reader, which undoes the converter's layout, must find the same tensors."""
    # transformers derives no attention_bias from a GGUF's metadata, hence the configuration.
    read = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=model.config, dtype=torch.float32
    )
    weights = dict(read.state_dict())
    for name, tensor in model.state_dict().items():
        assert name in weights, f"{name} is missing from {path.name}"
        assert torch.equal(weights[name], tensor), name
    ids = documents(tokenizer)[0][0][None]
    error = (read(ids).logits - model(ids).logits).abs().max().item()
    assert error < 1e-5, error
    from_gguf = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = "\n".join(part for pair in conversations(40) for part in pair)
    assert from_gguf.encode(text) == tokenizer.encode(text)


def main() -> None:
    deterministic()
    for name, spec in MODELS.items():
        write_folder(name, spec)
    write_json(LLAMA_GOLDENS / "versions.json", versions("torch", "transformers", "tokenizers", "gguf", "safetensors"))


if __name__ == "__main__":
    main()
