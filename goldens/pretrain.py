"""Goldens of `stage: pt`: what LLaMA-Factory makes of plain texts.

    pip download --no-deps -d WHEELS llamafactory==0.9.5
    python goldens/pretrain.py WHEELS     # transformers 5.23.0, tokenizers 0.23.3

Runs LLaMA-Factory's own PretrainDatasetProcessor out of its wheel and writes crates/data/tests/goldens/pretrain.json:
`documents`, and cases of `{tokenizer, add_bos, packing, cutoff_len, template, input_ids}`.
"""

import json
import pathlib
import sys
import tempfile
import types
import zipfile

from templates import pretty
from turns import HERE, peer, sources, tokenizer

DOCUMENTS = [
    "The shop opens at nine.", "Grüße 你好 🙂 and the rest of it", "a", "Two lines\nof text, and\n\nthree more  ",
    "<|im_start|>user\nmarks in a text<|im_end|>", " leading space", "The quick brown fox jumps over the lazy dog. " * 3,
]


def main(wheels):
    folder = pathlib.Path(tempfile.mkdtemp())
    with zipfile.ZipFile(next(wheels.glob("llamafactory-0.9.5-*.whl"))) as wheel:
        wheel.extractall(folder)
    pretrain = peer(folder)("llamafactory.data.processor.pretrain")
    source = sources(["<|end_of_text|>"])
    cases = []
    for name in ["tokenizer", "metaspace"]:
        for add_bos in [False, True]:
            for packing, cutoff_len, template in [(True, 16, "default"), (True, 7, "default"), (True, 1000, "default"),
                                                  (False, 16, "default"), (False, 1000, "default"), (True, 16, "llama3")]:
                t = tokenizer(source[name])
                t.add_bos_token = add_bos
                given = types.SimpleNamespace(packing=packing, cutoff_len=cutoff_len, template=template)
                processor = pretrain.PretrainDatasetProcessor(template=None, tokenizer=t, processor=None, data_args=given)
                batch = {"_prompt": [[{"role": "user", "content": text}] for text in DOCUMENTS]}
                ids = processor.preprocess_dataset(batch)["input_ids"]
                cases.append({"tokenizer": name, "add_bos": add_bos, "packing": packing, "cutoff_len": cutoff_len,
                              "template": template, "input_ids": ids})
    (HERE / "pretrain.json").write_text(pretty({"documents": DOCUMENTS, "cases": cases}, 0) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
