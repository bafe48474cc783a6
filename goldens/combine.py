"""PEFT's `add_weighted_adapter` on a tiny Llama, and decompositions of small matrices.

Writes crates/model/tests/goldens/combine/: the input adapters {name}/ as PEFT saves them, cases.json (how each case
combines which of them), expected.safetensors ("{case}/{tensor}") and linalg.safetensors. Only kinds that draw no
random numbers are here. Singular vectors get the sign that makes the largest entry of each left one positive.

Usage: python goldens/combine.py
"""

import json
import shutil

from common import LLAMA_GOLDENS, ROOT, deterministic, generator, versions, write_json, write_tensors

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

FOLDER = ROOT / "crates/model/tests/goldens/combine"
BASE = LLAMA_GOLDENS / "mha-f16"

# Modules that overlap in part, scalings that differ everywhere, an embedding, a pattern, a regular expression.
ADAPTERS = {
    "a": dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "embed_tokens"]),
    "b": dict(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "embed_tokens"], use_rslora=True),
    "c": dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], alpha_pattern={"q_proj": 10}),
    "wide": dict(r=7, lora_alpha=5, target_modules=["q_proj", "down_proj"], rank_pattern={r"mlp\..*": 3}),
    "regex": dict(r=2, lora_alpha=4, target_modules=r".*layers\.0\.(self_attn\.(q|o)_proj|mlp\.up_proj)"),
}

PAIR = dict(adapters=["a", "b"], weights=[0.7, -1.3])
TRIPLE = dict(adapters=["a", "b", "c"], weights=[0.7, -1.3, 0.4])
UNEQUAL = dict(adapters=["a", "wide"], weights=[1.5, -0.25])
CASES = {
    "one": dict(adapters=["b"], weights=[-0.6], combination_type="linear"),
    "cat": PAIR | dict(combination_type="cat"),
    "cat-unequal": UNEQUAL | dict(combination_type="cat"),
    "cat-regex": dict(adapters=["regex", "regex2"], weights=[1.0, 2.0], combination_type="cat"),
    "linear": PAIR | dict(combination_type="linear"),
    "linear-3": TRIPLE | dict(combination_type="linear"),
    "svd": PAIR | dict(combination_type="svd"),
    "svd-unequal": UNEQUAL | dict(combination_type="svd"),
    "svd-5": UNEQUAL | dict(combination_type="svd", svd_rank=5),
    "svd-clamped": PAIR | dict(combination_type="svd", svd_clamp=0.93),
    "ties-half": PAIR | dict(combination_type="ties", density=0.5),
    "ties-frequency": TRIPLE | dict(combination_type="ties", density=0.7, majority_sign_method="frequency"),
    "ties-total": TRIPLE | dict(combination_type="ties", density=0.7, majority_sign_method="total"),
    "ties-all": TRIPLE | dict(combination_type="ties", density=1.0),
    "ties_svd": TRIPLE | dict(combination_type="ties_svd", density=0.6, svd_rank=6),
    "ties_svd-frequency": TRIPLE | dict(combination_type="ties_svd", density=0.8, majority_sign_method="frequency"),
    "ties_svd-unequal": UNEQUAL | dict(combination_type="ties_svd", density=0.9),
    "magnitude_prune": PAIR | dict(combination_type="magnitude_prune", density=0.3),
    "magnitude_prune-none": PAIR | dict(combination_type="magnitude_prune", density=0.0),
    "magnitude_prune_svd": UNEQUAL | dict(combination_type="magnitude_prune_svd", density=0.37),
    "magnitude_prune_svd-clamped": PAIR | dict(combination_type="magnitude_prune_svd", density=0.5, svd_clamp=0.8),
}  # fmt: skip


def signed(u: torch.Tensor, vt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    columns = u[:, : vt.shape[0]]
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True))[0]
    signs = torch.where(largest < 0, -1.0, 1.0)
    return columns * signs, vt[: len(signs)] * signs[:, None]


LAPACK_SVD = torch.linalg.svd


def svd_with_signs(matrix: torch.Tensor, full_matrices: bool = False, driver=None):
    """LAPACK's factors in f64 with signs that don't depend on its algorithm."""
    u, s, vt = LAPACK_SVD(matrix.double(), full_matrices=False)
    u, vt = signed(u, vt)
    return u.to(matrix.dtype), s.to(matrix.dtype), vt.to(matrix.dtype)


def load_base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def write_adapters() -> None:
    for index, (name, config) in enumerate(ADAPTERS.items()):
        model = get_peft_model(load_base(), LoraConfig(task_type="CAUSAL_LM", **config))
        random = generator(70 + index)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
        # The base's embedding, which PEFT would save along, says nothing here.
        model.save_pretrained(FOLDER / name, save_embedding_layers=False)
        if name == "regex":
            # A second adapter by another expression; q_proj is in both.
            model.peft_config["default"].target_modules = r".*\.(q|o|up)_proj"
            model.save_pretrained(FOLDER / "regex2", save_embedding_layers=False)
    for readme in FOLDER.glob("*/README.md"):
        readme.unlink()
    for path in FOLDER.glob("*/adapter_config.json"):
        # The base's path on the generating machine is nobody's business.
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = "mha-f16"
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()  # PEFT writes a set, in any order
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        path.chmod(0o644)
        (path.parent / "adapter_model.safetensors").chmod(0o644)


def combine(case: dict) -> tuple[dict[str, torch.Tensor], dict]:
    case = dict(case)
    names, weights = case.pop("adapters"), case.pop("weights")
    model = PeftModel.from_pretrained(load_base(), FOLDER / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(FOLDER / name, adapter_name=name)
    model.add_weighted_adapter(names, weights, "combined", **case)
    tensors = get_peft_model_state_dict(model, adapter_name="combined", save_embedding_layers=False)
    config = model.peft_config["combined"]
    targets = config.target_modules
    return tensors, {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }


def linalg() -> dict[str, torch.Tensor]:
    """Decompositions by LAPACK in f64, of matrices with f32's numbers."""
    random, tensors = generator(90), {}
    for name, (m, n) in {"wide": (5, 9), "tall": (11, 4), "square": (6, 6), "row": (1, 7), "column": (7, 1)}.items():
        matrix = torch.randn(m, n, generator=random)
        u, s, vt = svd_with_signs(matrix.double())
        q, r = torch.linalg.qr(matrix.double())
        parts = {"w": matrix, "u": u, "s": s, "vt": vt, "q": q, "r": r}
        tensors |= {f"{name}/{key}": value.float() for key, value in parts.items()}
    return tensors


def main() -> None:
    deterministic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.linalg.svd = svd_with_signs
    write_adapters()
    expected, cases = {}, {}
    for name, case in CASES.items():
        tensors, config = combine(case)
        assert all(t.isfinite().all() for t in tensors.values()), name
        # PEFT's padding is random numbers times zero; adding zero makes the negative zeros positive.
        expected |= {f"{name}/{key}": tensor + 0.0 for key, tensor in tensors.items()}
        cases[name] = case | {"config": config}
        print(f"{name}: {len(tensors)} tensors, rank {config['r']}")
    write_tensors(FOLDER / "expected.safetensors", expected)
    write_tensors(FOLDER / "linalg.safetensors", linalg())
    write_json(FOLDER / "cases.json", cases)
    write_json(FOLDER / "versions.json", versions("torch", "peft", "transformers"))


if __name__ == "__main__":
    main()
