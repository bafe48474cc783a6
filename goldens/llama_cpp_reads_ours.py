"""Reads GGUF files with gguf-py and, where llama-cpp-python is installed, runs them: `python llama_cpp_reads_ours.py REQUEST.json`.

The request is a list of {"model", "lora" (or null), "ids"}; the answer, on stdout, a list of {"tensors", "logits" (or null)},
logits of all positions one after the other. Without `ids`, {"text", "tokens"} instead: the text's ids and greedy answers.
"""

import json
import sys

from gguf import GGUFReader

try:
    import llama_cpp
    from llama_cpp import Llama

    # Weights as they lie in the file: repacked for AMX, llama-cpp-python 0.3.36 dies of an illegal instruction on some processors,
    # of any quantised file, also those of others.
    DEFAULTS = llama_cpp.llama_cpp.llama_model_default_params

    def as_they_lie():
        params = DEFAULTS()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = as_they_lie
except ImportError:
    Llama = None


def read(path: str) -> int:
    reader = GGUFReader(path)
    assert reader.get_field("general.architecture") is not None, path
    for tensor in reader.tensors:
        assert tensor.data.size > 0, (path, tensor.name)
    return len(reader.tensors)


def run(request: dict) -> dict:
    answer = {"tensors": read(request["model"])}
    if request.get("lora"):
        answer["adapter_tensors"] = read(request["lora"])
    if Llama is None:
        return answer
    # Keys and values in f32, so that what is compared is the model.
    llama = Llama(
        request["model"], lora_path=request.get("lora"), n_ctx=512, logits_all=True, verbose=False, n_threads=1,
        type_k=0, type_v=0,
    )
    if "ids" in request:
        llama.eval(request["ids"])
        answer["logits"] = llama.scores[: len(request["ids"])].ravel().tolist()
        return answer
    ids = llama.tokenize(request["text"].encode(), add_bos=request.get("add_bos", False), special=True)
    answer["ids"] = list(ids)
    llama.eval(ids)
    answer["logits"] = llama.scores[len(ids) - 1].tolist()
    answer["tokens"] = []
    for _ in range(request["tokens"]):
        token = int(llama.scores[llama.n_tokens - 1].argmax())
        answer["tokens"].append(token)
        llama.eval([token])
    return answer


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(json.dumps([run(request) for request in json.load(file)]))
