"""Matrix products of torch on the CPU, beside `loratune bench ops --shape llama2-7b --rows 1024`.

    pip install torch==2.15.*
    python benches/products.py [--threads 2]

1024 rows by a 4096 × 4096 weight, the best of 10.
"""

import argparse
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=2)
torch.set_num_threads(parser.parse_args().threads)

for dtype in (torch.bfloat16, torch.float32):
    x, w = torch.randn(1024, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    for name, product in (("x·Wᵀ", lambda: torch.nn.functional.linear(x, w)), ("dy·W", lambda: x @ w)):
        product()
        best = float("inf")
        for _ in range(10):
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
        print(f"{dtype} {name}: {2 * 1024 * 4096 * 4096 / best / 1e9:.0f} GFLOP/s")
