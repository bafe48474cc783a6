"""What PyPI's mistral-common makes of texts and conversations with the tokenizers that it ships, printed as JSON.

    python goldens/mistral.py          # mistral-common 1.13.1 with sentencepiece

crates/data/tests/mistral.rs runs this with the Python of LORATUNE_MISTRAL_PYTHON and compares. Strings are those of
templates.py. Conversations keep away from where Mistral's templates in Jinja are something else than mistral-common, under
transformers too: quotes in a tool's description and results that are no JSON (not escaped there), a system prompt of a
conversation that ends with an answer (left out there), spaces at an answer's end (cut off by mistral-common).

A conversation that ends with an answer is encoded as for fine-tuning, any other as a prompt; what mistral-common refuses
(tools in v1) is left out.
"""

import copy
import json
import sys
import warnings

from templates import EVERYTHING, NOW, STRINGS, TOOLS, WEATHER, a, result, s, u


def tools():
    """Without quotes in descriptions, and without `return`, which templates leave out, too."""
    functions = [{k: v for k, v in t["function"].items() if k != "return"} for t in copy.deepcopy(TOOLS)]
    for function in functions:
        function["description"] = function["description"].replace('"', "")
    return [{"type": "function", "function": f} for f in functions]


ASKED = [u("Weather?"), a("", WEATHER), result("15", 1, "get_weather")]
# Name: (messages, whether tools are given).
CHATS = {
    "one": ([u("Hi there"), a("Hello, friend.")], False),
    "three": ([u("Hi"), a("Hello."), u("And you?"), a("Fine.\n\nThanks."), u("Bye"), a("Bye.")], False),
    "unicode": ([u("Grüße 你好 🙂"), a("Ça va 🙂🙃"), u("e\u0301"), a("再见")], False),
    "spaces": ([u("  two, and a tab\t\there"), a("def f(x):\n    return  x")], False),
    "prompt": ([u("Hi"), a("Hello."), u("More")], False),
    "system": ([s("Be brief."), u("Hi")], False),
    "system_prompt": ([s("Be brief."), u("Hi"), a("Hello."), u("More")], False),
    "tools": ([u("Weather?")], True),
    "tools_system": ([s("Be brief."), u("Hi"), a("Hello."), u("Weather?")], True),
    "called": (ASKED[:2], True),
    "called_types": ([u("Weather?"), a("", EVERYTHING)], True),
    "result": (ASKED, True),
    "result_json": (ASKED[:2] + [result('{"temp": 15, "in": "Zürich"}', 1, "get_weather")], True),
    "answered": ([*ASKED, a("It is 15 degrees.")], True),
    "two": ([u("Weather?"), a("", WEATHER, NOW), result("15", 1, "get_weather"), result("12", 3, "now"), a("15 at 12.")], True),
    "steps": ([u("Weather?"), a("", NOW), result("12", 3, "now"), *ASKED[1:], a("15."), u("Sure?")], True),
}


def openai(messages):
    """With arguments as text, as requests have them."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return messages


def main():
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    folder, out = MistralTokenizer._data_path(), {}
    files = {
        "v1": "tokenizer.model.v1",
        "v2": "mistral_instruct_tokenizer_240216.model.v2",
        "v3": "mistral_instruct_tokenizer_240323.model.v3",
        "v7": "mistral_instruct_tokenizer_241114.model.v7",
        "nemo": "tekken_240718.json",
    }
    for name, file in files.items():
        load = lambda mode: MistralTokenizer.from_file(str(folder / file), mode=mode)
        prompts, rows = load(ValidationMode.test), load(ValidationMode.finetuning)
        words = prompts.instruct_tokenizer.tokenizer
        chats = {}
        for case, (messages, with_tools) in CHATS.items():
            try:
                request = ChatCompletionRequest.from_openai(messages=openai(messages), tools=tools() if with_tools else None)
                encoder = rows if messages[-1]["role"] == "assistant" else prompts
                chats[case] = encoder.encode_chat_completion(request).tokens
            except Exception as refused:
                print(f"{name}, {case}: {str(refused)[:100]}", file=sys.stderr)
        texts = [words.encode(text, bos=False, eos=False) for text in STRINGS]
        out[name] = {"file": str(folder / file), "texts": texts, "chats": chats}
    conversations = {name: {"messages": m, "tools": t, "variables": {}} for name, (m, t) in CHATS.items()}
    print(json.dumps({"strings": STRINGS, "conversations": conversations, "tools": tools(), "tokenizers": out}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
