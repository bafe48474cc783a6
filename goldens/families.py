"""A tiny model of every family as transformers saves it, with logits and gradients; then LoRA and DoRA on it by PEFT.

Writes crates/model/tests/goldens/families/<case>/ and refused/, and crates/train/tests/goldens/families/. The cases are
in family_cases.py, the runs in family_runs.py, the GGUF files in family_gguf.py; README.md beside this file says what
each holds and defines the families.

Usage: python goldens/families.py [case ...]
"""

import copy
import json
import shutil
import sys
import warnings

from common import deterministic, generator, versions, write_json, write_tensors
from corpus import conversations
from family_cases import BOS, CASES, EOS, FAMILY_GOLDENS, LONG, PAD, SHORT, VOCAB, Case

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
SPECIAL = ["<pad>", "<s>", "</s>"]
MERGES = [("t", "h"), ("h", "e"), ("i", "n"), ("a", "n")]
TEMPLATE = "{% for m in messages %}{{ '<s>' + m['content'] + '</s>' }}{% endfor %}"
OLD_VERSIONS = {"mistral": "4.34.0", "gemma": "4.38.0", "gemma3_text": "4.50.0", "qwen2": "4.40.1", "smollm3": "4.53.0"}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over 41 characters: small enough to lie in every folder."""
    alphabet = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789") + ["Ġ", ".", ",", "?", "="]
    tokens = SPECIAL + alphabet + ["".join(pair) for pair in MERGES]
    assert len(tokens) == VOCAB
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, chat_template=TEMPLATE,
        model_max_length=128, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def sentence(index: int) -> str:
    """A question and its answer in the tokenizer's alphabet."""
    ((question, answer),) = conversations(1, index)
    text = f"{question} {answer}".lower().replace("ö", "o").replace("ë", "e").replace("+", ",")
    return "".join(c for c in text if c.isascii() and (c.isalnum() or c in " .,?="))


# --- models ---------------------------------------------------------------------------------------


def scale_of(name: str, case: Case) -> tuple[float, float]:
    """Mean and deviation of a weight: norms far from 1, biases far from 0, everything able to move the logits."""
    if name.endswith("norm.weight"):
        return (0.0 if case.model_type.startswith("gemma") else 1.0), 0.3
    return 0.0, 0.5 if "embed" in name else 0.3


def random_model(case: Case):
    random = generator(sum(case.name.encode()))
    config = CONFIG_MAPPING[case.model_type](**copy.deepcopy(case.config))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, deviation = scale_of(name, case)
            parameter.copy_(mean + deviation * torch.randn(parameter.shape, generator=random))
    return model


def model_of(config: dict, state: dict):
    """The weights under another configuration, read from the words of a config.json."""
    config = copy.deepcopy(config)
    config = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


# --- config.json ----------------------------------------------------------------------------------


def old_config(case: Case, new: dict) -> dict:
    """config.json as the released checkpoints spell it (transformers 4.x)."""
    config = {key: value for key, value in new.items() if key not in case.dropped}
    given = dict(case.old)
    rope = dict(config.pop("rope_parameters"))
    if "rope_theta" in rope:  # Gemma 3 has two of them, and its old fields are in case.old
        config["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        if "partial_rotary_factor" in rope:
            factor = rope.pop("partial_rotary_factor")
            if factor != 1.0:
                config["partial_rotary_factor"] = factor
        if case.model_type == "phi3":
            rope.pop("original_max_position_embeddings", None)
        key = "rope_type" if kind == "llama3" else "type"
        kind = given.pop("rope_type", kind)
        config["rope_scaling"] = None if kind == "default" else rope | {key: kind}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = OLD_VERSIONS.get(case.model_type, "4.43.0")
    return dict(sorted((config | given).items()))


def write_configs(case: Case) -> dict:
    """Both spellings; returns the new one."""
    path = case.folder / "config.json"
    new = json.loads(path.read_text())
    old = old_config(case, new)
    first, other, name = (old, new, "v5") if case.old_first else (new, old, "v4")
    for path, value in [(path, first), (case.folder / f"config.{name}.json", other)]:
        path.write_text(json.dumps(value, indent=1) + "\n")
    return new


# --- goldens --------------------------------------------------------------------------------------


def documents(case: Case, words: PreTrainedTokenizerFast) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A long and a short document; the long one's first five tokens are not trained."""
    long = [BOS] + words.encode(sentence(402) + " " + sentence(404))[: LONG - 1]
    short = [BOS] + words.encode(sentence(405))[: SHORT - 2] + [EOS]
    assert len(long) == LONG and len(short) == SHORT
    if case.pad_in_text:
        long[9] = long[20] = short[-1] = PAD
    return [
        (torch.tensor(long), torch.tensor([IGNORED] * 5 + long[5:])),
        (torch.tensor(short), torch.tensor(short)),
    ]


@torch.no_grad()
def logits_of(model, docs) -> list[torch.Tensor]:
    return [model(ids[None]).logits[0] for ids, _ in docs]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def expected(case: Case, docs) -> dict[str, torch.Tensor]:
    """As in llama.py: `loss` = `loss_sum` / `trained_tokens` over both documents, `grad.{weight}` are its gradients."""
    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32, attn_implementation="eager").eval()
    tensors, total, trained = {}, torch.zeros(()), 0
    for index, (ids, labels) in enumerate(docs):
        logits = model(ids[None]).logits[0]
        total = total + F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum")
        trained += int((labels[1:] != IGNORED).sum())
        tensors |= {f"doc{index}.input_ids": ids, f"doc{index}.labels": labels, f"doc{index}.logits": logits}
    loss = total / trained
    tensors |= {"loss": loss, "loss_sum": total, "trained_tokens": torch.tensor(trained)}
    assert 2.0 < loss < 12.0 and 0.3 < logits.std() < 8.0, (case.name, loss, logits.std())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, (case.name, name)
        tensors[f"grad.{name}"] = parameter.grad
    print(f"{case.name}: loss {loss.item():.3f}, logits' std {logits.std().item():.2f}")
    return tensors


# --- checks ---------------------------------------------------------------------------------------


def check_spellings(case: Case, model, docs) -> None:
    """transformers must compute the same from both config.json files."""
    reference = logits_of(model, docs)
    for path in sorted(case.folder.glob("config*.json")):
        read = model_of(json.loads(path.read_text()), model.state_dict())
        apart = [distance(a, b) for a, b in zip(logits_of(read, docs), reference, strict=True)]
        assert max(apart) == 0.0, f"{path}: logits off by {apart}"


def check_visible(case: Case, config: dict, model, docs) -> None:
    """Each feature, changed, moves the logits of exactly the documents that it concerns."""
    reference = logits_of(model, docs)
    for name, change, which in case.visible:
        try:
            other = model_of(config | change, model.state_dict())
        except KeyError as error:
            raise AssertionError(f"{case.name}: {name}: {error}") from error
        apart = [distance(a, b) for a, b in zip(logits_of(other, docs), reference, strict=True)]
        print(f"    without {name}: {', '.join(f'{d:.3f}' for d in apart)}")
        for index, d in enumerate(apart):
            if index in which:
                assert d > 1e-3, f"{case.name}: {name} moves document {index} by {d}"
            else:
                assert d == 0.0, f"{case.name}: {name} moves document {index} by {d}"


def check_padding(case: Case, tensors: dict) -> None:
    """torch gives the embedding's row of the padding token no gradient, even where the token stands in the text."""
    if case.pad_in_text and not case.config.get("tie_word_embeddings"):
        assert tensors["grad.model.embed_tokens.weight"][PAD].abs().max() == 0.0
        assert tensors["grad.model.embed_tokens.weight"][BOS].abs().max() > 0.0


def check_dynamic_state(case: Case, docs) -> None:
    """Dynamic scaling remembers the longest sequence so far; a document alone must be what is written here."""
    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32, attn_implementation="eager").eval()
    between = docs[0][0][:30]  # beyond the limit of 24, shorter than the long document
    fresh = model(between[None]).logits
    long = logits_of(model, docs[:1])[0]
    after = model(between[None]).logits
    print(f"    dynamic: 30 tokens after 36 differ from 30 tokens alone by {distance(fresh, after):.3f}")
    assert distance(fresh, after) > 1e-3
    assert distance(logits_of(model, docs)[0], long) == 0.0


# --- folders --------------------------------------------------------------------------------------


def write_case(case: Case) -> None:
    shutil.rmtree(case.folder, ignore_errors=True)
    model, words = random_model(case), tokenizer()
    model.save_pretrained(case.folder)
    (case.folder / "generation_config.json").unlink(missing_ok=True)
    words.save_pretrained(case.folder, save_jinja_files=False)
    path = case.folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False) + "\n")
    config = write_configs(case)
    docs = documents(case, words)
    tensors = expected(case, docs)
    write_tensors(case.folder / "expected.safetensors", tensors)
    check_spellings(case, model, docs)
    check_visible(case, config, model, docs)
    check_padding(case, tensors)
    if case.name == "llama-dynamic":
        check_dynamic_state(case, docs)
    for path in case.folder.iterdir():
        path.chmod(0o644)


REFUSED = ["mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "phimoe", "gpt_oss", "olmoe", "gemma3"]


def write_refused() -> None:
    """config.json files, without weights, of what is to be refused by name: mixtures of experts, text with images."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in REFUSED:
        folder = FAMILY_GOLDENS / "refused" / name
        shutil.rmtree(folder, ignore_errors=True)
        config = AutoConfig.for_model(name)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]]
        if name == "gemma3":
            config.architectures = ["Gemma3ForConditionalGeneration"]
        config.save_pretrained(folder)


def main() -> None:
    from family_configs import write_configs, write_generated
    from family_gguf import write_gguf
    from family_runs import write_rows_file, write_runs

    deterministic()
    warnings.simplefilter("ignore")
    names = sys.argv[1:]
    chosen = [case for case in CASES if not names or case.name in names]
    for case in chosen:
        write_case(case)
        if case.gguf:
            write_gguf(case)
    if not names:
        write_refused()
        write_configs()
        write_generated()
        write_json(FAMILY_GOLDENS / "versions.json", versions("torch", "transformers", "tokenizers", "peft", "gguf"))
    write_rows_file(tokenizer())
    for case in chosen:
        if case.run:
            write_runs(case)


if __name__ == "__main__":
    main()
