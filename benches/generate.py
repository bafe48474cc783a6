"""Greedy generation with transformers on the CPU, beside `loratune generate`: SmolLM2-135M's shape, random weights.

    pip install torch==2.15.* transformers==5.23.*
    python benches/generate.py bfloat16|float32 [--threads 2]

A prompt of 16 tokens, 64 new ones with the cache, after a short first call.
"""

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("dtype", choices=["bfloat16", "float32"])
parser.add_argument("--threads", type=int, default=2)
given = parser.parse_args()

torch.set_num_threads(given.threads)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
model = LlamaForCausalLM(config).to(getattr(torch, given.dtype)).eval()
prompt = torch.randint(3, 49000, (1, 16))
with torch.inference_mode():
    model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    start = time.time()
    out = model.generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
    seconds = time.time() - start
print(f"{given.dtype}: {(out.shape[1] - prompt.shape[1]) / seconds:.1f} tokens/s")
