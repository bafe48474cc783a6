"""Numbers and what gguf-py's quantisers make of them, which are ggml's reference bit for bit.

Writes crates/model/tests/goldens/quantise.safetensors: `values` f32, and for q8_0, q4_0, bf16 the bytes and `NAME.values`, what
they are read as.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import save_file

OUT = Path(__file__).parent.parent / "crates/model/tests/goldens/quantise.safetensors"


def values() -> np.ndarray:
    rng = np.random.default_rng(11)
    rows = [rng.normal(0, 10.0**e, 256) for e in range(-6, 5)]
    rows.append(np.zeros(32))
    rows.append(np.full(32, 0.5))
    rows.append(-np.arange(32.0))
    # Halves of a step, ties of the largest magnitude, numbers that f16 only holds as subnormals.
    rows.append(np.concatenate([[127.0, -127.0], np.arange(30) + 0.5]))
    rows.append(np.concatenate([[-8.0, 8.0], (np.arange(30) - 15) * 0.5]))
    rows.append(np.concatenate([[8.0, -8.0], (np.arange(30) - 15) * 0.5]))
    rows.append(rng.normal(0, 1e-7, 64))
    rows.append(rng.uniform(-1, 1, 4096))
    return np.concatenate(rows).astype(np.float32)


def main() -> None:
    x = values()
    tensors = {"values": x}
    kinds = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0, "bf16": GGMLQuantizationType.BF16}
    for name, kind in kinds.items():
        data = quants.quantize(x, kind)
        tensors[name] = np.ascontiguousarray(data).view(np.uint8).ravel()
        tensors[f"{name}.values"] = quants.dequantize(data, kind).astype(np.float32)
    save_file(tensors, OUT)


if __name__ == "__main__":
    main()
