"""What transformers makes of config.json files that are odd, and what its generate() makes of prompts.

Writes configs.json and generated.json into crates/model/tests/goldens/families/ (called by families.py).
"""

import copy
import json
import warnings

from common import write_tensors
from family_cases import CASES, FAMILY_GOLDENS

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CLASSES = [
    "llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "smollm3", "olmo2", "granite",
]  # fmt: skip
# Above every class's default ids.
SIZES = dict(
    vocab_size=130_000, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
# Enough for one layer of Gemma 3 without a window.
SIZES_OF = {kind: SIZES | ({"num_hidden_layers": 7} if kind == "gemma3_text" else {}) for kind in CLASSES}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 100.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.2, 2.0, 3.5, 6.0]}
FULL = {"full_attention": {"rope_theta": 700.0, "rope_type": "default"}}
LOCAL = {"sliding_attention": {"rope_theta": 30.0, "rope_type": "linear", "factor": 3.0}}


def yarn(**more) -> dict:
    return {"rope_scaling": {"rope_type": "yarn"} | YARN | more}


# Name, model_type, fields; what a reader that refuses what transformers loses or ignores must name in its refusal.
ODD = [
    ("pad null", "gemma", {"pad_token_id": None}, None),
    ("pad -1", "llama", {"pad_token_id": -1}, None),
    ("pad -3", "phi3", {"pad_token_id": -3}, None),
    ("theta inside and outside", "llama", {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 9.0}}, None),
    ("theta outside, scaling inside", "llama",
     {"rope_theta": 50.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, None),
    ("scaling over parameters, theta at the top", "qwen3",
     {"rope_theta": 9.0, "rope_parameters": {"rope_theta": 9.0, "rope_type": "default"},
      "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
    ("scaling over parameters, theta in them", "qwen3",
     {"rope_parameters": {"rope_theta": 9.0, "rope_type": "default"},
      "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters"),
    ("empty scaling beside parameters", "llama",
     {"rope_scaling": {}, "rope_parameters": {"rope_theta": 9.0, "rope_type": "linear", "factor": 2.0}}, None),
    ("kinds of layers in a class without", "llama", {"rope_parameters": FULL}, "full_attention"),
    ("kinds of layers", "gemma3_text", {"rope_parameters": FULL | LOCAL}, None),
    ("one kind, the other at the top", "gemma3_text",
     {"rope_parameters": FULL, "rope_theta": 3.0, "rope_local_base_freq": 40.0}, None),
    ("scaling over one kind", "gemma3_text",
     {"rope_parameters": FULL, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, None),
    ("parameters without kinds", "gemma3_text",
     {"rope_parameters": {"rope_theta": 77.0, "rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
    ("scaling with kinds", "gemma3_text",
     {"rope_scaling": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "full_attention"),
    ("scaling named by type", "gemma3_text", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("part of a head in Gemma 3", "gemma3_text", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("part of a head for one kind", "gemma3_text",
     {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("all of a head in Gemma 3", "gemma3_text", {"partial_rotary_factor": 1.0}, None),
    ("mscale 0", "llama", yarn(mscale=0, mscale_all_dim=0.5), None),
    ("mscale_all_dim 0", "llama", yarn(mscale=0.7, mscale_all_dim=0), None),
    ("betas 0", "llama", yarn(beta_fast=0, beta_slow=0), None),
    ("truncate null", "llama", yarn(truncate=None), None),
    ("factor null", "llama", yarn(factor=None), None),
    ("yarn in Phi-3", "phi3", {"rope_scaling": {"type": "yarn"} | FACTORS}, None),
    ("linear in Phi-3", "phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("longrope in Llama", "llama", {"rope_scaling": {"type": "longrope", "factor": 2.0} | FACTORS}, None),
    ("yarn with longrope's factors", "llama", yarn(**FACTORS), "rope_scaling"),
    ("su in Llama", "llama", {"rope_scaling": {"type": "su"} | FACTORS}, "rope_scaling"),
    ("no causality", "llama", {"is_causal": False}, "is_causal"),
    ("both directions", "gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("pattern with an underscore", "gemma3_text", {"_sliding_window_pattern": 2}, None),
    ("pattern", "gemma3_text", {"sliding_window_pattern": 2}, None),
    ("layer types in Mistral", "mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("layer types in Phi-3", "phi3",
     {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("activation twice", "gemma", {"hidden_act": "gelu", "hidden_activation": "silu"}, "hidden_activation"),
]  # fmt: skip


def cases() -> list[tuple]:
    """Also every class with nothing said, and with biases that it may not have."""
    out = [(f"nothing said by {kind}", kind, {}, None) for kind in CLASSES]
    for kind in CLASSES:
        for field in ["attention_bias", "mlp_bias"]:
            out.append((f"{field} in {kind}", kind, {field: True}, field))
    return out + ODD


def windows_of(model) -> list[int | None]:
    """By layer: what the masks do, so far as the classes differ."""
    config = model.config
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if config.model_type in ("mistral", "phi3"):
        return [window] * layers
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in types]


def facts(kind: str, fields: dict) -> dict:
    config = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(SIZES_OF[kind] | fields))
    model = AutoModelForCausalLM.from_config(config)
    rope = model.model.rotary_emb
    names = ["inv_freq"] if hasattr(rope, "inv_freq") else ["full_attention_inv_freq", "sliding_attention_inv_freq"]
    return {
        "padding": model.model.embed_tokens.padding_idx,
        "frequencies": [getattr(rope, name).tolist() for name in names],
        "scaling": getattr(rope, "attention_scaling", 1.0),
        "biases": sorted(name for name, _ in model.named_parameters() if name.endswith(".bias")),
        "windows": windows_of(model),
    }


def write_configs() -> None:
    out = []
    for name, kind, fields, refused in cases():
        config = SIZES_OF[kind] | fields | {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]], "model_type": kind}
        try:
            made = facts(kind, fields)
        except Exception as error:  # noqa: BLE001 - whatever transformers says
            made = {"error": type(error).__name__}
            assert refused, (name, error)
        if refused and refused.endswith("_bias") and "error" not in made:
            # Not by a class that has the biases, or has q's, k's and v's whatever the field says.
            ignored = made["biases"] == facts(kind, {})["biases"]
            ignored &= (kind, refused) != ("qwen2", "attention_bias")
            refused = refused if ignored else None
        out.append({"name": name, "config": config, "refused": refused, "transformers": made})
    (FAMILY_GOLDENS / "configs.json").write_text("[\n" + ",\n".join(map(json.dumps, out)) + "\n]\n")


# --- generation -----------------------------------------------------------------------------------

PROMPTS = [[5, 9, 4], list(range(10, 30))]
LONGER = {"max_position_embeddings": 512}
# Case, changed fields, new tokens: far beyond the windows, and across the border where frequencies change.
GENERATED = [
    ("mistral-window", LONGER, 300),
    ("gemma2", LONGER, 300),
    ("gemma3", LONGER, 300),
    ("qwen2-window", LONGER, 300),
    ("phi3", LONGER, 300),
    ("phi3-longrope", {}, 60),
    ("phi4-mini", {}, 60),
    ("llama-dynamic", {}, 26),
]  # fmt: skip
# Tokens follow one another as they are told to: left to themselves tiny models say the same again and again.
SAID = [3 + (7 * i * i + 11 * i) % 43 for i in range(300)]


class Say(LogitsProcessor):
    def __init__(self, start: int):
        self.start = start

    def __call__(self, ids, scores):
        scores = torch.full_like(scores, -torch.inf)
        scores[:, SAID[ids.shape[1] - self.start]] = 0.0
        return scores


@torch.no_grad()
def generate(case, fields: dict, prompt: list[int], **more):
    """A prompt by itself in a fresh model: dynamic scaling would remember earlier ones."""
    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32, attn_implementation="eager")
    assert all(hasattr(model.config, key) for key in fields)
    model.generation_config.eos_token_id = None
    return model.eval().generate(
        torch.tensor([prompt]), do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        **more,
    )  # fmt: skip


def greedy(case, fields: dict, new: int) -> list[list[int]] | None:
    """What it says by itself, if each token is the best by far and there are several."""
    out = []
    for prompt in PROMPTS:
        made = generate(case, fields, prompt, max_new_tokens=new)
        best, second = torch.cat(made.logits).topk(2).values.T
        tokens = made.sequences[0, len(prompt) :].tolist()
        if (best - second).min() < 1e-4 or len(set(tokens)) < 3:
            return None
        out.append(tokens)
    return out


def write_generated() -> None:
    known = {case.name: case for case in CASES}
    out, tensors = [], {}
    for name, fields, new in GENERATED:
        tokens = greedy(known[name], fields, new)
        # All steps around the border, some beyond the windows.
        steps = list(range(new)) if new < 100 else [0, 5, 6, 7, *range(10, new, 29), new - 1]
        for i, prompt in enumerate(PROMPTS):
            processors = LogitsProcessorList([Say(len(prompt))])
            made = generate(known[name], fields, prompt, max_new_tokens=new, logits_processor=processors)
            assert made.sequences[0, len(prompt) :].tolist() == SAID[:new]
            tensors[f"{name}.{i}"] = torch.cat([made.logits[step] for step in steps])
        print(f"{name}: {tokens and [len(set(t)) for t in tokens]} different tokens of {new}")
        out.append({"case": name, "config": fields, "new": new, "steps": steps, "tokens": tokens})
    assert sum(case["tokens"] is not None for case in out) >= 4
    (FAMILY_GOLDENS / "generated.json").write_text(json.dumps({"prompts": PROMPTS, "said": SAID, "cases": out}) + "\n")
    write_tensors(FAMILY_GOLDENS / "generated.safetensors", tensors)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    write_configs()
    write_generated()
