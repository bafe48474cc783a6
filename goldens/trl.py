"""Goldens of the data path of TRL's SFTTrainer: its own `_prepare_dataset` on rows of each kind.

    pip install --no-deps trl==1.16.0; pip install datasets==5.2.0
    python goldens/trl.py            # transformers 5.23.0, tokenizers 0.23.3

Writes crates/data/tests/goldens/trl.json: for each case its rows, its template (a file of crates/data/tests/templates),
and the ids and labels of each row under both tokenizers of that folder; rows without a template also with BOS before a
text. (With a template TRL never adds BOS, while loratune does where the tokenizer asks for it.)
"""

import json
import pathlib
import sys
import types

# This file has the library's name.
sys.path = [p for p in sys.path if pathlib.Path(p or ".").resolve() != pathlib.Path(__file__).resolve().parent]

from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, processors  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ROOT / "crates/data/tests"


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


CHAT = [
    [u("Hi there"), a("Hello, friend.")],
    [{"role": "system", "content": "Be brief."}, u("Hi"), a("Hello."), u("And you?"), a("Fine.\n\nThanks.")],
    [u("Grüße 你好 🙂"), a("Ça va 🙂🙃"), u("ok"), a(" yes ")],
]
CASES = {
    "text": ({}, None, [{"text": t} for t in ["Once upon a time.", " Ends itself.</s>", "Grüße 你好\n\n🙂 ", "x"]]),
    "strings": ({}, None, [{"prompt": p, "completion": c} for p, c in [
        ("2 + 2 =", " 4"), ("Question: who?\nAnswer:", " Nobody.</s>"), ("Say ", "hello there"), ("Hel", "lo world"),
        ("Grüße ", "你好 🙂"), ("Two\n", "\nlines\n")]]),
    **{f"assistant_{t}": ({"assistant_only_loss": True}, t, [{"messages": m} for m in CHAT])
       for t in ["marked/chatml", "qwen25", "qwen3", "llama3_base", "smollm2", "gemma", "mistral"]},
    **{f"completion_{t}": ({"assistant_only_loss": True}, t, [{"prompt": m[:-1], "completion": m[-1:]} for m in CHAT])
       for t in ["marked/chatml", "qwen25", "llama3_base", "mistral"]},
}


def tokenizer(name, bos):
    raw = Tokenizer.from_file(str(TESTS / f"goldens/{name}.json"))
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def prepared(t, options, template, rows):
    if template:
        t.chat_template = (TESTS / f"templates/{template}.jinja").read_text()
    args = SFTConfig(output_dir="unused", report_to=[], use_cpu=True, bf16=False, max_length=None, **options)
    trainer = types.SimpleNamespace(_tokenizer=t, chat_template=None, completion_only_loss="prompt" in rows[0], _is_vlm=False)
    out = SFTTrainer._prepare_dataset(trainer, Dataset.from_list(rows), t, args, False, None, "train")
    return [[row["input_ids"], row["labels"]] for row in out]


def main():
    out = {}
    for name, (options, template, rows) in CASES.items():
        got = {f"{which}{'+bos' if bos else ''}": prepared(tokenizer(which, bos), options, template, rows)
               for which in ["tokenizer", "metaspace"] for bos in ([False] if template else [False, True])}
        out[name] = {"template": template, "rows": rows, "encoded": got}
    lines = [f"{json.dumps(k)}:{json.dumps(v, ensure_ascii=False, separators=(',', ':'))}" for k, v in out.items()]
    (TESTS / "goldens/trl.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
