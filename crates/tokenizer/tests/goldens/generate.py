"""Goldens for the tokenizer tests, from tokenizers 0.23 and transformers 5.23.

    python crates/tokenizer/tests/goldens/generate.py

- folder/: a small byte-level BPE tokenizer as transformers saves it, its configuration in the older, wordier form.
- folder.json: what transformers makes of the hard strings with it.
- gguf_gpt2.json, gguf_llama.json: the vocabulary as GGUF would hold it, and ids. Byte-level ids come from the
  tokenizers library with the pre-tokenizer of the models in question; SentencePiece ids from the direct
  implementation below of "join the neighbours whose union scores best", which is how llama.cpp does it.
"""
import json, os, shutil
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "How many clips did Natalia sell altogether in April and May? She sold 48/2 = 24 clips in May.",
    "The quick brown fox doesn't jump over the lazy dog; it's 1234567890 times slower. They're here.",
    "def f(x):\n    return x + 1\n\n\nprint(f(2))\t# tabs and newlines\r\n",
    "Größe, naïve café, 北京 is the capital of 中国, привет мир, こんにちは.",
] * 3
HARD = [
    "", " ", "  ", "   ", "a", " a", "  a", "a ", "a  ", "\n", "\n\n", " \n ", "\t", "\r\n", "a\n\nb", "a \n b",
    "Hello world", "hello  world   again", "123", "1234567", " 12 345", "  1", "3.14159", "x=10-2", "½ ² Ⅷ ٣",
    "it's they're I'LL don't", "Größe naïve café", "cafe\u0301", "北京中国", "привет, мир!", "こんにちは", "🙂", "👨‍👩‍👧",
    "🏳️‍🌈 flag", "\u200b zero", "\ufeffbom", "\u00a0nbsp", "<|im_start|>user\nHi<|im_end|>\n", "<|im_end|>",
    " <|im_end|> ", "a<|im_end|>b", "<|im_end", "<s>x</s>", "\x00\x7f", "!!!???...", "a_b-c/d\\e", "http://x.y/z?q=1&r=2",
    "def f(x):\n    return x + 1\n", "clips in May", "ab" * 40, "▁under ▁", "<0x41>", "\u2028line", "日本語123かな",
]


def dump(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, indent=0)
        f.write("\n")


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    return t


def write_folder(t):
    folder = os.path.join(HERE, "folder")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    t = Tokenizer.from_str(t.to_str())
    t.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A <|im_start|> $B", special_tokens=[("<|im_start|>", 1)])
    t.save(os.path.join(folder, "tokenizer.json"))
    token = lambda c: {"__type": "AddedToken", "content": c, "lstrip": False, "normalized": False, "rstrip": False,
                       "single_word": False, "special": True}
    config = {
        "bos_token": token("<|im_start|>"), "eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": None,
        "added_tokens_decoder": {"0": token("<|endoftext|>"), "1": token("<|im_start|>"), "2": token("<|im_end|>"),
                                 "420": token("<pad>")},
        "additional_special_tokens": ["<|endoftext|>"], "model_max_length": 2048,
        "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": [{"name": "default", "template": "{{ messages[0]['content'] }}"},
                          {"name": "tool_use", "template": "tools: {{ messages[0]['content'] }}"}],
    }
    dump("folder/tokenizer_config.json", config)
    hf = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in HARD:
        plain = hf(text, add_special_tokens=False)["input_ids"]
        rows.append({"text": text, "ids": plain, "with_special": hf(text)["input_ids"],
                     "decoded": hf.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False),
                     "skipped": hf.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)})
    dump("folder.json", {"rows": rows, "length": len(hf), "bos": hf.bos_token_id, "eos": hf.eos_token_id,
                         "pad": hf.pad_token_id})


def write_gpt2(t):
    model = json.loads(t.to_str())["model"]
    tokens = [None] * len(model["vocab"])
    for token, i in model["vocab"].items():
        tokens[i] = token
    ids = lambda pre: [reference(t, pre, text) for text in HARD]
    dump("gguf_gpt2.json", {
        "tokens": tokens, "token_types": [3 if i < 3 else 1 for i in range(len(tokens))],
        "merges": [" ".join(m) for m in model["merges"]], "bos_id": 1, "eos_id": 2, "texts": HARD,
        "ids": {name: ids(pre) for name, pre in PRE.items()},
    })


def split(*patterns):
    from tokenizers import Regex
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
                                   + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def transformers_split(name):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    return split(GGUF_PRE_TOKENIZER_SPLITS[name])


# The pre-tokenizers as the models' own tokenizer.json files (or transformers' table) have them.
PRE = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": transformers_split("llama-bpe"),
    "qwen2": transformers_split("qwen2"),
    "qwen35": transformers_split("qwen35"),
    "tekken": transformers_split("tekken"),
    "gpt-4o": transformers_split("gpt-4o"),
}


def reference(t, pre, text):
    t = Tokenizer.from_str(t.to_str())
    t.pre_tokenizer = pre
    return t.encode(text, add_special_tokens=False).ids


def sentencepiece_ids(text, vocab, scores, special, prefix):
    """Special tokens first (longest), then pieces of plain text; ▁ in front of each piece."""
    out, rest = [], [text]
    for token in sorted(special, key=len, reverse=True):
        nxt = []
        for part in rest:
            if isinstance(part, int):
                nxt.append(part)
                continue
            bits = part.split(token)
            for k, bit in enumerate(bits):
                if k:
                    nxt.append(vocab[token])
                if bit:
                    nxt.append(bit)
        rest = nxt
    after_special = True
    for part in rest:
        if isinstance(part, int):
            out.append(part)
            after_special = True
            continue
        symbols = list((" " if prefix and after_special else "") + part)
        after_special = False
        symbols = ["▁" if s == " " else s for s in symbols]
        while True:
            best = None
            for k in range(len(symbols) - 1):
                union = symbols[k] + symbols[k + 1]
                if union in vocab and (best is None or scores[vocab[union]] > scores[vocab[symbols[best] + symbols[best + 1]]]):
                    best = k
            if best is None:
                break
            symbols[best:best + 2] = [symbols[best] + symbols[best + 1]]
        for s in symbols:
            out += [vocab[s]] if s in vocab else [vocab[f"<0x{b:02X}>"] for b in s.encode()]
    return out


def write_llama():
    from tokenizers import normalizers
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    model = json.loads(t.to_str())["model"]
    learnt = ["".join(m) for m in model["merges"]]
    letters = sorted(set(model["vocab"]) - set(learnt))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(tokens)
    for piece in list(dict.fromkeys(learnt)) + letters:
        scores.append(-float(len(tokens) - 259))
        tokens.append(piece)
        types.append(1)
    tokens.append("<|im_end|>")
    types.append(4)
    scores.append(0.0)
    vocab = {t: i for i, t in enumerate(tokens)}
    special = ["<unk>", "<s>", "</s>", "<|im_end|>"]
    dump("gguf_llama.json", {
        "tokens": tokens, "token_types": types, "scores": scores, "bos_id": 1, "eos_id": 2, "unk_id": 0, "texts": HARD,
        "prefix": [sentencepiece_ids(x, vocab, scores, special, True) for x in HARD],
        "no_prefix": [sentencepiece_ids(x, vocab, scores, special, False) for x in HARD],
    })


if __name__ == "__main__":
    t = byte_level()
    write_folder(t)
    write_gpt2(t)
    write_llama()
