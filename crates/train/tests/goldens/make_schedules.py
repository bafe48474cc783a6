"""Writes schedules.json: every factor of transformers' schedules. Run: python make_schedules.py (transformers 5.23.0)."""

import json
import math
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


# Schedules that follow a metric: two parameter groups (LoRA+ with a ratio of 16), and a sequence of metrics.
def falling(n):
    return [2.0 * 0.9**i for i in range(n)]


def waves(n):
    return [1.0 + 0.5 * math.sin(i * 0.7) / (1 + i // 10) for i in range(n)]


METRIC_CASES = [
    ("reduce_lr_on_plateau", 5e-5, {}, [1.0] * 30),
    ("reduce_lr_on_plateau", 5e-5, {"factor": 0.5, "patience": 2, "min_lr": 2e-5}, waves(40)),
    ("reduce_lr_on_plateau", 5e-5, {"factor": 0.3, "patience": 1, "cooldown": 3, "threshold": 0.01,
                                    "threshold_mode": "abs"}, falling(10) + waves(30)),
    ("reduce_lr_on_plateau", 1e-3, {"mode": "max", "patience": 0, "factor": 0.5}, falling(8) + [3.0, 3.0, 2.9, 4.0, 4.1]),
    ("greedy", 5e-5, {}, falling(40)),
    ("greedy", 0.01, {"patience": 2, "factor": 0.8}, falling(20) + [1.0] * 40),
    ("greedy", 0.01, {"patience": 1, "factor": 0.5, "min_lr": 1e-3, "max_lr": 0.02, "cooldown": 1, "warmup": 2,
                      "reset_start": 3}, falling(12) + [1.0] * 60 + falling(12)),
    ("greedy", 0.01, {"patience": 1, "factor": 0.7, "smooth": True, "window_size": 4, "threshold_mode": "rel",
                      "threshold": 0.001}, waves(50)),
    ("greedy", 0.01, {"mode": "max", "patience": 0, "factor": 0.9}, [-x for x in falling(15)] + [0.1] * 15),
]


def rates(name, lr, kwargs, metrics):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * factor} for factor in (1.0, 16.0)]
    optimizer = torch.optim.SGD(groups, lr=lr)
    scheduler = get_scheduler(name, optimizer, scheduler_specific_kwargs=dict(kwargs))
    out = []
    for metric in metrics:
        scheduler.step(metric)
        out.append([group["lr"] for group in optimizer.param_groups])
    return out


metric_cases = [
    {"name": n, "learning_rate": lr, "kwargs": k, "metrics": m, "rates": rates(n, lr, k, m)} for n, lr, k, m in METRIC_CASES
]
cases = [
    {"name": n, "total": t, "warmup": w, "learning_rate": lr, "kwargs": k, "factors": factors(n, t, w, lr, k)}
    for n, t, w, lr, k in CASES
]
out = pathlib.Path(__file__).with_name("schedules.json")
lines, more = (",\n".join(json.dumps(c) for c in group) for group in (cases, metric_cases))
out.write_text(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n],\n"metric_cases": [\n{more}\n]}}\n')
