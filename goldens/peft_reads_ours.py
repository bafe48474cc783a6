"""Logits of an adapter (or of a whole model) as PEFT and transformers see it, in f32.

Usage: python goldens/peft_reads_ours.py ADAPTER_DIR MODEL_DIR IDS_JSON OUT
  ADAPTER_DIR  a PEFT adapter's folder; "-" for MODEL_DIR alone
  MODEL_DIR    the base model's folder, or one GGUF file
  IDS_JSON     a file with a list of documents, each a list of token ids
  OUT          a safetensors file; gets doc{i}.input_ids (I64, [n]) and doc{i}.logits (F32, [n, vocab])
"""

import json
import sys
from pathlib import Path

from common import deterministic, write_tensors

import torch
from gguf import GGUFReader
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM


def load_base(path: Path):
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if path.suffix == ".gguf":
        # transformers takes no attention_bias from a GGUF's metadata and would drop the biases in silence.
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        config.attention_bias = any(t.name.endswith("attn_q.bias") for t in GGUFReader(path).tensors)
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, **options)
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            sys.exit(f"{path}: {kind}: {sorted(info[kind])}")
    return model


def load(adapter: str, model: str):
    base = load_base(Path(model))
    if adapter == "-":
        return base.eval()
    base = PeftModel.from_pretrained(base, adapter)
    # PEFT warns about missing tensors and ignores those it does not know; here both are failures.
    with safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as file:
        found = set(file.keys())
    wanted = set(get_peft_model_state_dict(base, save_embedding_layers=False))
    if found != wanted:
        sys.exit(f"{adapter}: missing {sorted(wanted - found)}, unexpected {sorted(found - wanted)}")
    return base.eval()


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    adapter, model_path, ids_path, out = sys.argv[1:]
    deterministic()
    model = load(adapter, model_path)
    tensors = {}
    with torch.no_grad():
        for index, document in enumerate(json.loads(Path(ids_path).read_text())):
            ids = torch.tensor(document, dtype=torch.int64)
            tensors[f"doc{index}.input_ids"] = ids
            tensors[f"doc{index}.logits"] = model(ids[None]).logits[0]
    write_tensors(Path(out), tensors)
    print(f"{len(tensors) // 2} documents -> {out}")


if __name__ == "__main__":
    main()
