"""What every generator shares: paths, seeds, versions and small writers."""

import json
import os
from importlib.metadata import version
from pathlib import Path

# Must be set before transformers and peft are imported: nothing here may look anything up on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ENGINE_GOLDENS = ROOT / "crates/engine/tests/goldens"
LLAMA_GOLDENS = ROOT / "crates/model/tests/goldens/llama"
RUN_GOLDENS = ROOT / "crates/train/tests/goldens/runs"


def deterministic() -> None:
    """One thread and deterministic kernels, so that a second run writes the same bytes."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def versions(*names: str) -> dict[str, str]:
    # "+cu130" or "+cpu" names a build, not a version: the CPU kernels are the same.
    return {name: version(name).split("+")[0] for name in names}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, str(path))
    path.chmod(0o644)  # safetensors creates its files for their owner only


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
