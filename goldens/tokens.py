"""Adapters with trained rows (`trainable_token_indices`) on a resized vocabulary, as PEFT saves them.

Writes crates/model/tests/goldens/tokens/{untied,tied}/: adapter_config.json, adapter_model.safetensors (with the resized
tables, and on the tied model the head's copy of the rows) and logits.safetensors (`logits` of IDS with the adapter).

Usage: python goldens/tokens.py
"""

import shutil
import warnings

from common import LLAMA_GOLDENS, ROOT, deterministic, write_tensors
from runs import save_adapter

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FOLDER = ROOT / "crates/model/tests/goldens/tokens"
ROWS = 304
TOKENS = [302, 5, 0]
IDS = [1, 302, 5, 40, 17, 0, 301, 9]


def resized(model: str):
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(LLAMA_GOLDENS / model, dtype=torch.float32, attn_implementation="eager")
    base.resize_token_embeddings(ROWS)
    return base


@torch.no_grad()
def write(name: str, model: str) -> None:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], trainable_token_indices=TOKENS
    )
    peft = get_peft_model(resized(model), config).eval()
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.tensor(IDS)
    logits = peft(ids[None]).logits[0]
    # As `save_embedding_layers="auto"` decides where the vocabulary is not that of the base's files.
    save_adapter(peft, folder, model, save_embedding_layers=True)
    again = PeftModel.from_pretrained(resized(model), folder).eval()
    assert torch.equal(again(ids[None]).logits[0], logits)
    untrained = resized(model)(ids[None]).logits[0]
    assert (untrained - logits).abs().max() > 0.1
    print(name, *sorted(k for k in load_file(folder / "adapter_model.safetensors") if "layers" not in k))
    write_tensors(folder / "logits.safetensors", {"logits": logits})


if __name__ == "__main__":
    deterministic()
    warnings.simplefilter("ignore")
    write("untied", "gqa-untied")
    write("tied", "tied-bf16")
