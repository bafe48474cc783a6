"""Writes schedules.json: every factor of transformers' schedules. Run: python make_schedules.py (transformers 5.23.0)."""

import json
import pathlib

import torch
import transformers
from transformers import get_scheduler

CASES = [
    ("linear", 60, 7, 5e-5, {}),
    ("linear", 10, 0, 1e-3, {}),
    ("linear", 5, 5, 1e-3, {}),
    ("cosine", 61, 6, 5e-5, {}),
    ("cosine", 40, 3, 5e-5, {"num_cycles": 1.5}),
    ("cosine_with_restarts", 50, 5, 5e-5, {"num_cycles": 3}),
    ("cosine_with_restarts", 20, 0, 5e-5, {}),
    ("polynomial", 33, 4, 5e-5, {"lr_end": 1e-6, "power": 2.0}),
    ("polynomial", 20, 0, 5e-5, {}),
    ("constant", 8, 3, 5e-5, {}),
    ("constant_with_warmup", 12, 5, 5e-5, {}),
    ("inverse_sqrt", 30, 6, 5e-5, {}),
    ("inverse_sqrt", 30, 0, 5e-5, {}),
    ("inverse_sqrt", 30, 4, 5e-5, {"timescale": 9}),
    ("cosine_with_min_lr", 41, 5, 5e-5, {"min_lr": 5e-6}),
    ("cosine_with_min_lr", 41, 0, 5e-5, {"min_lr_rate": 0.25, "num_cycles": 0.75}),
    ("cosine_warmup_with_min_lr", 40, 6, 5e-5, {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", 40, 6, 5e-5, {"min_lr": 5e-6, "warmup_lr_rate": 0.2}),
    ("warmup_stable_decay", 50, 5, 5e-5, {"num_decay_steps": 15}),
    ("warmup_stable_decay", 50, 6, 5e-5, {"num_decay_steps": 10, "num_stable_steps": 20, "min_lr_ratio": 0.1,
                                          "warmup_type": "cosine", "decay_type": "linear"}),
    ("warmup_stable_decay", 30, 4, 5e-5, {"num_decay_steps": 12, "warmup_type": "1-sqrt", "decay_type": "1-sqrt"}),
]


def factors(name, total, warmup, lr, kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=dict(kwargs))
    # A few steps past the end too: a resumed or rounded run may ask for them.
    return [float(scheduler.lr_lambdas[0](step)) for step in range(total + 3)]


cases = [
    {"name": n, "total": t, "warmup": w, "learning_rate": lr, "kwargs": k, "factors": factors(n, t, w, lr, k)}
    for n, t, w, lr, k in CASES
]
out = pathlib.Path(__file__).with_name("schedules.json")
lines = ",\n".join(json.dumps(c) for c in cases)
out.write_text(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n')
