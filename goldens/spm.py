"""A tiny SentencePiece model, and what SentencePiece and transformers make of strings with it.

    python goldens/spm.py    # transformers 5.23.0, sentencepiece 0.2.3

Writes crates/tokenizer/tests/goldens/sentencepiece/: tokenizer.model; strings.json with, for each of templates.py's strings,
SentencePiece's ids and those of transformers' LlamaTokenizer from a folder that holds nothing else.
"""

import io
import json
import pathlib
import tempfile

import sentencepiece
from corpus import conversations
from templates import SPECIAL_STRINGS, STRINGS

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "crates/tokenizer/tests/goldens/sentencepiece"


def train():
    lines = [text for pair in conversations(200, 7) for text in pair]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1,
        allow_whitespace_only_pieces=True, user_defined_symbols=["[TOOL]"], control_symbols=["[INST]"], minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), model.getvalue()


def main():
    from transformers import LlamaTokenizer

    words, model = train()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "tokenizer.model").write_bytes(model)
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "tokenizer.model").write_bytes(model)
        llama = LlamaTokenizer.from_pretrained(folder)
        strings = STRINGS + ["[INST] Hi[/INST] [TOOL]x", *SPECIAL_STRINGS[:3]]
        rows = [[text, words.encode(text), llama.encode(text, add_special_tokens=False)] for text in strings]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    (FOLDER / "strings.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(len(model), "bytes; apart:", [text for text, a, b in rows if a != b])


if __name__ == "__main__":
    main()
