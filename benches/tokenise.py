"""Tokenising and packing with `datasets.map` and TRL, beside loratune's crates/data/examples/tokenise.rs.

    pip install datasets==5.2.0 transformers==5.23.0 trl==1.16.0
    python benches/tokenise.py ROWS.jsonl TOKENIZER_FOLDER TEMPLATE.jinja [--rows N] [--batched]

Every row is rendered by the chat template, with the generation prompt and with the answer, as TRL's SFTTrainer does for prompts
with completions; labels are those of the answer. By row, each text is tokenised by itself, as TRL does; with --batched,
a thousand texts at once. Then `trl.pack_dataset` packs, best fit decreasing, 2048 tokens a pack.
"""

import argparse
import os
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as with every map of several processes
import datasets
from transformers import AutoTokenizer
from trl.data_utils import pack_dataset

parser = argparse.ArgumentParser()
parser.add_argument("rows")
parser.add_argument("tokenizer")
parser.add_argument("template")
parser.add_argument("--rows", dest="limit", type=int)
parser.add_argument("--batched", action="store_true")
given = parser.parse_args()

datasets.disable_caching()
datasets.disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
tokenizer.chat_template = open(given.template).read()
data = datasets.load_dataset("json", data_files=given.rows, split="train")
if given.limit:
    data = data.select(range(given.limit))


def texts(instruction, output):
    prompt = [{"role": "user", "content": instruction}]
    return (tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True),
            tokenizer.apply_chat_template(prompt + [{"role": "assistant", "content": output}], tokenize=False))


def by_row(row):
    prompt, whole = texts(row["instruction"], row["output"])
    prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt):]}


def by_batch(rows):
    pairs = [texts(*p) for p in zip(rows["instruction"], rows["output"])]
    prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
    ids = tokenizer([w for _, w in pairs], add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "labels": [[-100] * len(p) + i[len(p):] for p, i in zip(prompts, ids)]}


start = time.time()
function = by_batch if given.batched else by_row
out = data.map(function, batched=given.batched, num_proc=2, remove_columns=data.column_names)
tokenised = time.time() - start
packed = pack_dataset(out, seq_length=2048, strategy="bfd", map_kwargs={"num_proc": 2})
both = time.time() - start
tokens = sum(len(i) for batch in out.select_columns(["input_ids"]).iter(10_000) for i in batch["input_ids"])
print(f"{len(out)} rows, {tokens} tokens, {len(packed)} packs of 2048")
print(f"tokenised in {tokenised:.2f} s, packed in {both - tokenised:.2f} s, together {both:.2f} s; {len(out) / both:.0f} rows/s")
