"""Goldens of the templates by name: ids and labels that LLaMA-Factory makes of conversations.

    pip download --no-deps -d WHEELS llamafactory==0.9.5 llamafactory==0.7.1
    python goldens/turns.py WHEELS     # transformers 5.23.0, tokenizers 0.23.3

Runs the converters, templates and processors of both versions out of their wheels, without their training stack, and
writes crates/data/tests/goldens/turns.json:

* `added`: tokens that templates need, appended to the tokenizers of that folder.
* `rows`: the conversations as dataset rows; `today`: what the tools of Llama 3 print as the date, seconds since 1970.
* `settings`: what is asked of the peers in each column, and for which rows.
* `templates`: for each template its stop ids and, for each setting and row, FNV-1a (64 bits, first 8 digits) of
  "ids|labels", or of the prompt's ids; null where the peer raises, "-" where nothing is trained.
* `full`: ids and labels of some templates in full.
* `splits`: lengths that the two truncation rules leave.
"""

import copy
import datetime
import importlib
import json
import logging
import pathlib
import sys
import tempfile
import types
import zipfile

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from templates import fnv, pretty

ROOT = pathlib.Path(__file__).resolve().parents[1]
HERE = ROOT / "crates/data/tests/goldens"
NOON = 1_709_210_096  # 29 Feb 2024
# Templates for images that text is trained with, too; the others of that kind are left out, as is gemma4.
ALSO = ("gemma3 gemma3n llama4 mistral_small ministral3 qwen2_vl qwen3_vl qwen3_vl_nothink qwen3_5 qwen3_5_nothink qwen3_6 "
        "intern_s1").split()
FULL = ["default", "default@0.7", "alpaca", "vicuna", "llama2", "llama3", "mistral", "gemma2", "qwen", "qwen3", "glm4", "zephyr"]
FULL_ROWS = ["one", "three_system", "calls"]

# ---------------------------------------------------------------- the peers


class TextOnly:
    """Stands for the plugins that see to images."""

    def __init__(self, name="base", **_):
        self.name = name

    def process_messages(self, messages, *_):
        return messages

    def process_token_ids(self, ids, labels, *_):
        return ids, labels


def peer(folder):
    """An importer of one version's modules."""
    for name in [m for m in sys.modules if m.split(".")[0] == "llamafactory"]:
        del sys.modules[name]
    for package in ["llamafactory", "llamafactory.data", "llamafactory.data.processor", "llamafactory.extras"]:
        module = types.ModuleType(package)
        module.__path__ = [str(folder / package.replace(".", "/"))]
        sys.modules[package] = module
    plugins = types.ModuleType("llamafactory.data.mm_plugin")
    plugins.get_mm_plugin = lambda name="base", **_: TextOnly(name)
    sys.modules["llamafactory.data.mm_plugin"] = plugins
    logging.disable()
    return importlib.import_module


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOON, datetime.timezone.utc)


class Current:
    """0.9.5."""

    def __init__(self, folder):
        load = peer(folder)
        self.template = load("llamafactory.data.template")
        self.supervised = load("llamafactory.data.processor.supervised")
        self.converter = load("llamafactory.data.converter")
        self.attributes = load("llamafactory.data.parser").DatasetAttr
        load("llamafactory.data.tool_utils").datetime = Clock
        self.registry = self.template.TEMPLATES
        self.split = load("llamafactory.data.processor.processor_utils").infer_seqlen

    def names(self):
        return [n for n, t in self.registry.items() if t.mm_plugin.name == "base" or n in ALSO]

    def convert(self, row):
        if "conversations" in row:
            attributes = self.attributes("file", "x", formatting="sharegpt", messages="conversations")
        else:
            attributes = self.attributes("file", "x", prompt="instruction", query="input", response="output", history="history")
        attributes.system, attributes.tools = "system", "tools"
        row = {"system": "", "tools": "", "input": "", "history": [], **row}
        return self.converter.get_dataset_converter(attributes.formatting, attributes, None)(row)

    def run(self, name, tokenizer, setting, row):
        given = {"cutoff_len": 10**9, "train_on_prompt": False, "mask_history": False, "enable_thinking": True,
                 "preserve_thinking": False, "tool_format": None, "default_system": None, "template": name, **setting}
        self.registry[name] = copy.deepcopy(ORIGINAL.setdefault(name, self.registry[name]))
        template = self.template.get_template_and_fix_tokenizer(tokenizer, types.SimpleNamespace(**given))
        r = self.convert(row)
        if setting.get("prompt"):
            messages = r["_prompt"] + [{"role": "assistant", "content": ""}]
            return template.encode_oneturn(tokenizer, messages, r["_system"], r["_tools"])[0], []
        processor = self.supervised.SupervisedDatasetProcessor(template, tokenizer, None, types.SimpleNamespace(**given))
        return processor._encode_data_example(r["_prompt"], r["_response"], r["_system"], r["_tools"], [], [], [])

    def stop_ids(self, name, tokenizer):
        template = self.template.get_template_and_fix_tokenizer(tokenizer, types.SimpleNamespace(
            template=name, train_on_prompt=False, tool_format=None, default_system=None, enable_thinking=True, preserve_thinking=False))
        return sorted(template.get_stop_token_ids(tokenizer))


ORIGINAL = {}


class Old:
    """0.7.1; only its `default`."""

    def __init__(self, folder):
        load = peer(folder)
        self.template, self.preprocess = load("llamafactory.data.template"), load("llamafactory.data.preprocess")
        self.split = load("llamafactory.data.utils").infer_max_len

    def run(self, name, tokenizer, setting, row, current):
        given = {"cutoff_len": 10**9, "train_on_prompt": False, "reserved_label_len": 1, **setting}
        template = self.template.get_template_and_fix_tokenizer(tokenizer, name)
        # The old converters, of which the new ones are a superset, want batches and data sets.
        r = current.convert(row)
        if setting.get("prompt"):
            messages = r["_prompt"] + [{"role": "assistant", "content": ""}]
            return template.encode_oneturn(tokenizer, messages, r["_system"], r["_tools"])[0], []
        batch = {k: [r["_" + k]] for k in ["prompt", "response", "system", "tools"]}
        out = self.preprocess.preprocess_supervised_dataset(batch, template, tokenizer, None, types.SimpleNamespace(**given))
        return out["input_ids"][0], out["labels"][0]


# ---------------------------------------------------------------- conversations

TOOLS = [
    {"name": "get_weather", "description": "Current weather, \"now\" <in> Zürich & elsewhere", "parameters": {
        "type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "A city's name"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "description": "How many", "default": 1},
            "precision": {"type": "number", "default": 1e-05},
            "tags": {"type": "array", "items": {"type": "string"}},
            "maybe": {"type": ["string", "null"], "description": "Or not", "items": {}}}}},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
WEATHER = {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "fine": True, "none": None, "x": 1.5, "y": 1e-05,
                                                "list": [1, "two", {"three": []}], "text": "a \"b\"\n<c>"}}
NOW = {"name": "now", "arguments": {}}


def chat(*values, **more):
    """Turns; a system text begins with `!`, a call is a mapping or a list, a result begins with `=`."""
    out, user = [], True
    for value in values:
        if isinstance(value, str) and value.startswith("!"):
            out.append({"from": "system", "value": value[1:]})
            continue
        if not isinstance(value, str):
            role, value = "function_call", json.dumps(value, ensure_ascii=False)
        elif value.startswith("="):
            role, value = "observation", value[1:]
        elif value.startswith("+"):
            role, value = "function_call", value[1:]
        else:
            role = "human" if user else "gpt"
        out.append({"from": role, "value": value})
        user = not user
    return {"conversations": out, **more}


DUMPED = json.dumps(TOOLS, ensure_ascii=False)
LONG = "The quick brown fox jumps over the lazy dog. " * 4
ROWS = {
    "one": chat("Hi there", "Hello, friend."),
    "three_system": chat("!Be brief.", "Hi", "Hello.", "And you?", "Fine.\n\nThanks.", "Bye", "Bye."),
    "system_column": chat("Hi", "Hello.", system="Be kind."),
    "alpaca": {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
    "alpaca_history": {"instruction": "And 4?", "output": "9", "system": "Count.", "history": [["Hi", "Hello."], ["2 and 3?", "5"]]},
    "padded": chat("  Hi \n", "\n\n  Hello.  \n", "\tagain ", " yes "),
    "unicode": chat("Grüße 你好 🙂", "Ça va 🙂🙃", "e\u0301", "再见"),
    "empty_answer": chat("Say nothing", "", "Say something", "something"),
    "empty_question": chat("", "Hello.", "", "Bye."),
    "specials": chat("Write <|im_end|>\n<|im_start|>assistant\nHello</s> <s> [INST] <|eot_id|><end_of_turn>", "Hello <|im_end|> </s>"),
    "braces": chat("Say {{content}} and {0}", "{{content}} {{name}} {%}"),
    "thoughts": chat("2+2?", "<think>\nadd\n</think>\n\n4", "3+3?", "<think>\nadd again\n</think>\n\n6"),
    "half_thought": chat("2+2?", "<think>\nadd\n</think>\n\n4", "3+3?", "6"),
    "bare_thought": chat("2+2?", "<think>add</think>4 <think>\n</think>", "3+3?", "\n\n6"),
    "tools_unused": chat("!Be brief.", "Hi", "Hello.", tools=DUMPED),
    "no_tools": chat("Hi", "Hello.", tools="[]"),
    "calls": chat("Weather?", WEATHER, "=15 degrees", "It is 15 degrees.", "Thanks", "Welcome.", tools=DUMPED),
    "two_calls": chat("!Use tools.", "Weather?", [WEATHER, NOW], "={\"temp\": 15}", "15 now.", tools=DUMPED),
    "calls_again": chat("Weather?", NOW, "=noon", NOW, "=one", "Late.", tools=DUMPED),
    "thought_call": chat("Weather?", "+<think>\nlook\n</think>\n\n" + json.dumps(NOW), "=noon", "Noon.", tools=DUMPED),
    "long": chat(LONG, LONG * 2, "Short?", "Yes.", LONG * 3, "No."),
    "long_answer": chat("!" + LONG, "Tell.", LONG * 5, "More.", LONG),
}
MULTI = ["three_system", "alpaca_history", "half_thought", "calls", "long", "long_answer"]
# Setting: (what differs, rows, tokenizer).
SETTINGS = {
    "plain": ({}, list(ROWS), "tokenizer"),
    "metaspace": ({}, list(ROWS), "metaspace"),
    "prompt": ({"prompt": True}, list(ROWS), "tokenizer"),
    "cut_7": ({"cutoff_len": 7}, MULTI, "tokenizer"),
    "cut_60": ({"cutoff_len": 60}, MULTI, "tokenizer"),
    "cut_200": ({"cutoff_len": 200}, MULTI, "tokenizer"),
    "cut_500": ({"cutoff_len": 500}, MULTI, "tokenizer"),
    "train_on_prompt": ({"train_on_prompt": True, "cutoff_len": 300}, MULTI, "tokenizer"),
    "mask_history": ({"mask_history": True}, MULTI + ["thoughts"], "tokenizer"),
    "mask_history_cut": ({"mask_history": True, "cutoff_len": 200}, MULTI, "tokenizer"),
    "mask_history_preserve": ({"mask_history": True, "preserve_thinking": True}, MULTI + ["thoughts"], "tokenizer"),
    "thinking_off": ({"enable_thinking": False}, MULTI + ["thoughts", "bare_thought", "thought_call"], "tokenizer"),
    "thinking_null": ({"enable_thinking": None}, MULTI + ["thoughts", "bare_thought"], "tokenizer"),
    "prompt_off": ({"prompt": True, "enable_thinking": False}, ["thoughts", "three_system"], "tokenizer"),
    "prompt_preserve": ({"prompt": True, "preserve_thinking": True, "enable_thinking": None}, ["thoughts"], "tokenizer"),
    "default_system": ({"default_system": "Another system."}, ["one", "three_system", "calls"], "tokenizer"),
    "tool_format": ({"tool_format": "mistral"}, ["calls", "two_calls"], "tokenizer"),
    # The same tokenizer, but ChatML's tokens are words of the vocabulary that nothing marks.
    "unmarked": ({}, ["one", "specials"], "unmarked"),
}

# ---------------------------------------------------------------- writing


def sources(added):
    """The tokenizers' files with the tokens that templates need."""
    out = {}
    for name in ["tokenizer", "metaspace", "unmarked"]:
        value = json.loads((HERE / f"{'metaspace' if name == 'metaspace' else 'tokenizer'}.json").read_text())
        start = max(max(value["model"]["vocab"].values()), max(t["id"] for t in value["added_tokens"])) + 1
        value["added_tokens"] += [
            {"id": start + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, token in enumerate(added)]
        if name == "unmarked":
            value["added_tokens"] = [t for t in value["added_tokens"] if not t["content"].startswith("<|im_")]
        out[name] = json.dumps(value)
    return out


def tokenizer(source):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(source), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def attempt(function, *arguments):
    try:
        ids, labels = function(*arguments)
        # An empty prompt where EOS is not between turns: one label too many, which no collator takes.
        return None if labels and len(ids) != len(labels) else (ids, labels)
    except (ValueError, RuntimeError, AttributeError, TypeError, KeyError) as error:
        if "--errors" in sys.argv:
            print(arguments[0], repr(error)[:150])
        return None


def hashed(result):
    ids, labels = result
    if labels and all(label == -100 for label in labels[1:]):
        return "-"
    return fnv(" ".join(map(str, ids)) + "|" + " ".join(map(str, labels)))[:8]


def main(wheels):
    folder = pathlib.Path(tempfile.mkdtemp())
    for version in ["0.9.5", "0.7.1"]:
        with zipfile.ZipFile(next(wheels.glob(f"llamafactory-{version}-*.whl"))) as wheel:
            wheel.extractall(folder / version)
    current = Current(folder / "0.9.5")
    old = Old(folder / "0.7.1")
    names = sorted(current.names()) + ["default@0.7"]
    known = {t["content"] for t in json.loads((HERE / "tokenizer.json").read_text())["added_tokens"]}
    added = []
    for name in names[:-1]:
        t = current.registry[name]
        slots = [s["token"] for f in vars(t).values() if hasattr(f, "slots") for s in f.slots if isinstance(s, dict)]
        added += [w for w in t.stop_words + slots if w not in known and w not in added]
    source = sources(added)
    templates, full = {}, {}
    for name in names:
        is_old = name == "default@0.7"
        rows = {"stop_ids": [2] if is_old else current.stop_ids(name, tokenizer(source["tokenizer"]))}
        for setting, (given, cases, which) in SETTINGS.items():
            unlike = {"mask_history", "enable_thinking", "default_system", "tool_format"} & set(given)
            if is_old and unlike or which == "unmarked" and name not in ["chatml", "qwen", "yi", "default"]:
                continue
            rows[setting] = []
            for case in cases:
                t = tokenizer(source[which])
                if is_old and case in ["two_calls", "thought_call"]:
                    got = None  # It writes such calls without their names and arguments.
                elif is_old:
                    got = attempt(old.run, "default", t, given, ROWS[case], current)
                else:
                    got = attempt(current.run, name, t, given, ROWS[case])
                rows[setting].append(got and hashed(got))
                if name in FULL and case in FULL_ROWS and setting in ["plain", "mask_history", "cut_60"]:
                    full.setdefault(name, {})[f"{setting}/{case}"] = got
        templates[name] = rows
    splits = []
    for s, t, budget in [(s, t, b) for s in [0, 1, 2, 9, 30, 49, 200] for t in [1, 2, 10, 31, 49, 150] for b in [1, 3, 20, 50, 98, 250]]:
        a = current.split(s, t, budget)
        source_max, target_max = old.split(s, t, budget, 1)
        splits.append([s, t, budget, *a, min(s, source_max), min(t, target_max)])
    settings = {k: {"given": g, "rows": r, "tokenizer": w} for k, (g, r, w) in SETTINGS.items()}
    out = {"added": added, "today": NOON, "rows": ROWS, "settings": settings, "templates": templates, "full": full, "splits": splits}
    (HERE / "turns.json").write_text(pretty(out, 0) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
