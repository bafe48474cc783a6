"""Golden for added tokens, from tokenizers 0.23 and transformers 5.23: what `tokenizer.add_tokens` makes of hard strings.

    python crates/tokenizer/tests/goldens/added.py

Writes added.json: for each normaliser that is put into folder/tokenizer.json, the steps of adding (tokens, special),
the ids of what was asked for, the number of tokens, and what becomes of the strings.
"""
import json, os, shutil, tempfile
from transformers import AutoTokenizer
from generate import HARD, HERE, dump

NORMALIZERS = [
    None,
    {"type": "Lowercase"},
    {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}]},
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                         {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
]
# In order: new, special, known to the vocabulary, an added one that becomes special, a special one that is asked for
# as an ordinary one, empty, twice, with spaces around, one inside another, composed and not, upper case.
STEPS = [
    (["<tool>", "Natalia", "clips", "", "<tool>", " spaced ", "naïve", "TOKEN", "½"], False),
    (["<|tool_call|>", "<tool>", "<|tool", "Ⅷ"], True),
    (["<|im_end|>", "cafe\u0301"], False),
]
TEXTS = HARD + [
    "<tool>x</tool>", " <tool> x", "<TOOL>", "a spaced b", "aspaced b", " spaced ", "  spaced  ", "NATALIA natalia Natalia",
    "<|tool_call|>{}<|tool", "<|tool<|tool_call|>", "TOKENtoken TOKEN", "Natalia's clips", "café cafe\u0301", "½Ⅷ", "viii VIII",
    "naïve nai\u0308ve", "\n<tool>\n", "<|im_end|><tool><|im_end|>", "<|IM_END|>",
]


def case(normalizer):
    with tempfile.TemporaryDirectory() as folder:
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            shutil.copy(os.path.join(HERE, "folder", name), folder)
        path = os.path.join(folder, "tokenizer.json")
        value = json.load(open(path, encoding="utf-8"))
        value["normalizer"] = normalizer
        json.dump(value, open(path, "w", encoding="utf-8"))
        hf = AutoTokenizer.from_pretrained(folder)
    steps = []
    for tokens, special in STEPS:
        hf.add_tokens(tokens, special_tokens=special)
        ids = [hf.convert_tokens_to_ids(t) for t in tokens if t]
        steps.append({"tokens": tokens, "special": special, "ids": ids, "length": len(hf)})
    # What counts is what the saved files make of the texts; in memory, the library keeps something of an ordinary token
    # that became special.
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        saved = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert hf(text)["input_ids"] == saved(text)["input_ids"], text
    hf, rows = saved, []
    for text in TEXTS:
        ids = hf(text, add_special_tokens=False)["input_ids"]
        rows.append({"text": text, "ids": ids,
                     "decoded": hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
                     "skipped": hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)})
    return {"normalizer": normalizer, "steps": steps, "rows": rows}


if __name__ == "__main__":
    dump("added.json", [case(n) for n in NORMALIZERS])
