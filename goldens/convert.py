"""PEFT's conversion of adapters that changed their base (PiSSA, OLoRA) to plain LoRA, on a tiny Llama.

Writes crates/model/tests/goldens/convert/{case}/: initial/ (before training), trained/ (as PEFT saves it unasked) and
converted/ (with path_initial_model_for_weight_conversion). Training is a seeded push of every factor.

Usage: python goldens/convert.py
"""

import shutil

from common import LLAMA_GOLDENS, ROOT, deterministic, generator, versions, write_json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

FOLDER = ROOT / "crates/model/tests/goldens/convert"
BASE = LLAMA_GOLDENS / "gqa-untied"
PATTERNS = dict(rank_pattern={"v_proj": 1}, alpha_pattern={"v_proj": 5})

CASES = {
    "pissa": dict(init_lora_weights="pissa", **PATTERNS),
    "pissa_niter_4": dict(init_lora_weights="pissa_niter_4", **PATTERNS),
    "olora": dict(init_lora_weights="olora", **PATTERNS),
    # PEFT refuses patterns here.
    "pissa-rslora": dict(init_lora_weights="pissa", use_rslora=True),
}


def save(model, folder, **how) -> None:
    model.save_pretrained(str(folder), **how)
    (folder / "README.md").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)


def case(name: str, options: dict) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"], **options
    )
    model = get_peft_model(base, config)
    active = model.peft_config["default"]
    active.base_model_name_or_path = BASE.name
    init, active.init_lora_weights = active.init_lora_weights, True
    save(model, FOLDER / name / "initial")
    active.init_lora_weights = init
    noise = generator(1)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.add_(0.05 * torch.randn(p.shape, generator=noise))
    save(model, FOLDER / name / "trained")
    save(model, FOLDER / name / "converted", path_initial_model_for_weight_conversion=str(FOLDER / name / "initial"))


def main() -> None:
    deterministic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, options in CASES.items():
        case(name, options)
    write_json(FOLDER / "versions.json", versions("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
