"""Optimisers step by step: torch, transformers and bitsandbytes (on the processor) on fixed parameters and gradients.

Needs torch, transformers and bitsandbytes 0.50; writes crates/train/tests/goldens/optimizers.json. Parameters: a matrix of 80 × 60 (4,800
numbers: above bitsandbytes' least for 8 bits), one of 3 × 5, a vector of 7. They and the gradients are made from sines, so that the test
makes the same numbers. Of the results every 37th number is kept.
"""

import json
from pathlib import Path

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.cpu import ops as bnb_cpu
from transformers.optimization import Adafactor

SHAPES = [(80, 60), (3, 5), (7,)]
STEPS = 12
LR = 1e-2


def numbers(shape, seed):
    n = int(torch.tensor(shape).prod())
    i = torch.arange(n, dtype=torch.float64)
    return (torch.sin(i * 0.37 + seed * 1.7) * torch.cos(i * 0.011 + seed)).float().reshape(shape)


def to_nearest(values, code, scales, codes, block):
    """Each number to its nearest code, as bitsandbytes' CUDA kernels round. Its processor library looks codes up in a coarse
    table instead, and takes the neighbour of the nearest one for some 3 in 100 numbers."""
    bounds = (code[:-1] + code[1:]) / 2
    for b, part in enumerate(values.flatten().split(block)):
        scales[b] = part.abs().max()
        codes.view(-1)[b * block : b * block + len(part)] = torch.bucketize(part / scales[b].clamp(min=1e-38), bounds)


bnb_cpu._quant_blockwise_fp32_direct = to_nearest

CASES = {
    "adamw_torch": (torch.optim.AdamW, dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)),
    "adamw_bnb_8bit": (bnb.optim.AdamW, dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, optim_bits=8)),
    "adafactor": (Adafactor, dict(scale_parameter=False, relative_step=False, weight_decay=0.1)),
    "sgd": (torch.optim.SGD, dict(weight_decay=0.1)),
    "sgd_momentum": (torch.optim.SGD, dict(momentum=0.9, dampening=0.3, weight_decay=0.1)),
    "sgd_nesterov": (torch.optim.SGD, dict(momentum=0.9, nesterov=True)),
    "lion_32bit": (bnb.optim.Lion, dict(betas=(0.9, 0.999), weight_decay=0.1)),
    "lion_8bit": (bnb.optim.Lion, dict(betas=(0.9, 0.999), weight_decay=0.1, optim_bits=8)),
}


def run(make, arguments):
    params = [torch.nn.Parameter(numbers(shape, i)) for i, shape in enumerate(SHAPES)]
    optimizer = make(params, lr=LR, **arguments)
    trace = []
    for step in range(STEPS):
        for i, p in enumerate(params):
            # Gradients whose sizes differ by blocks and shrink, so that 8-bit scales are used.
            p.grad = numbers(p.shape, 100 + 7 * step + i) * 0.1 / (1 + step)
        optimizer.step()
        trace.append([p.detach().flatten()[::37].tolist() for p in params])
    return trace


out = {name: run(*case) for name, case in CASES.items()}
path = Path(__file__).parent.parent / "crates/train/tests/goldens/optimizers.json"
path.write_text(json.dumps({k: [v[0], v[1], v[-1]] for k, v in out.items()}) + "\n")
print(path, path.stat().st_size)
