"""Runs with added tokens and a resized vocabulary, by peft + transformers + torch, on the tiny models of llama.py.

Writes crates/train/tests/goldens/vocabulary/: train.jsonl (the rows of runs.py with added tokens in them), start.safetensors
(new rows by LLaMA-Factory's formulas, under loratune's random numbers), and for each case config.yaml, expected.json,
logits.safetensors, init_adapter/ (where the start is PEFT's own) and final_adapter/ or final_model/.

Adapters are written with PEFT's `save_embedding_layers="auto"`, which saves embedding and head along when the
vocabulary was resized.

Usage: python goldens/vocabulary.py [case ...]
"""

import json
import math
import shutil
import sys
import warnings
from dataclasses import dataclass

import methods
from common import ROOT, deterministic, versions, write_json, write_tensors
from method_cases import Case, lora
from philox import Key, self_check
from runs import LLAMA_GOLDENS, RUN_GOLDENS, load_base, read_rows

import torch
import yaml
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict

FOLDER = ROOT / "crates/train/tests/goldens/vocabulary"
# What the runs add, in the order of the ids: the tiny models have 301 tokens and as many rows.
ORDINARY, SPECIAL = ["<plus>", "carry"], ["<|think|>"]
OLD, ROWS, SEED = 301, 320, 42
STEPS = 8


@dataclass
class Resized(Case):
    saved_by_peft: bool = False  # goes on from an adapter that PEFT wrote after resizing

    @property
    def folder(self):
        return FOLDER / self.name

    @property
    def computed_start(self) -> bool:
        return self.lora is not None and not self.saved_by_peft


QV, BOTH = ["q_proj", "v_proj"], ["embed_tokens", "lm_head"]
TIED = dict(model="tied-bf16")
CASES = [
    Resized("full-untied", unfrozen=("",), lr=2e-3),
    Resized("full-tied", unfrozen=("",), lr=2e-3, **TIED),
    # A deterministic start, so that a run of one's own can be compared; what is trained follows from resize_vocab.
    Resized("olora-untied", lora(QV, modules_to_save=BOTH, init_lora_weights="olora"), lr=3e-3),
    Resized("olora-tied", lora(QV, modules_to_save=BOTH, init_lora_weights="olora"), lr=3e-3, **TIED),
    Resized("saved-tables", lora(QV, modules_to_save=BOTH), saved_by_peft=True, lr=3e-3),
    Resized("frozen-tables-tied", lora(QV), saved_by_peft=True, random_b=True, **TIED),
    Resized("adapted-tables", lora([*BOTH, "q_proj"]), saved_by_peft=True, random_b=True),
]


# --- new rows -------------------------------------------------------------------------------------


def new_rows(name: str, table: torch.Tensor, rows: int, embedding: torch.Tensor, described: dict, noise: bool):
    """LLaMA-Factory's `_noisy_mean_initialization` and `_description_based_initialization` in float64."""
    old, hidden = table.shape
    key = Key(SEED).named("vocabulary").named(name)
    out = []
    for row in range(old, rows):
        z = torch.from_numpy(key.normal(row * hidden, hidden)) / math.sqrt(hidden)
        valid = [i for i in described.get(row, []) if i < old]
        start = embedding[valid].double().mean(0) if valid else table.double().mean(0)
        out.append(start + z if noise or row not in described else start)
    return torch.stack(out)


def base(case: Resized):
    """The base with new rows, rounded to the type of its files."""
    model = load_base(case)
    stored = torch.bfloat16 if "bf16" in case.model else torch.float32
    tables = {"model.embed_tokens.weight": model.get_input_embeddings().weight.detach().clone()}
    if not model.config.tie_word_embeddings:
        tables["lm_head.weight"] = model.get_output_embeddings().weight.detach().clone()
    model.resize_token_embeddings(OLD + len(ORDINARY) + len(SPECIAL), pad_to_multiple_of=64, mean_resizing=False)
    assert model.config.vocab_size == ROWS
    state = model.state_dict()
    for name, table in tables.items():
        assert torch.equal(state[name][:OLD], table)
        fresh = new_rows(name, table, ROWS, tables["model.embed_tokens.weight"], {}, True)
        state[name][OLD:] = fresh.to(stored).float()
    tied = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert tied == model.config.tie_word_embeddings
    return model


# --- files ----------------------------------------------------------------------------------------


def write_rows() -> None:
    """Every third row gets an added token in the prompt, every second one in the response, every fifth another."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "train.jsonl", "w") as out:
        for number, row in enumerate(read_rows(RUN_GOLDENS / "train.jsonl")):
            ids, labels = row["input_ids"], row["labels"]
            if number % 3 == 0:
                ids, labels = ids[:1] + [OLD] + ids[1:], labels[:1] + [-100] + labels[1:]
            if number % 2 == 0:
                ids, labels = ids[:-1] + [OLD + 1] + ids[-1:], labels[:-1] + [OLD + 1] + labels[-1:]
            if number % 5 == 0:
                ids, labels = ids[:-2] + [OLD + 2] + ids[-2:], labels[:-2] + [OLD + 2] + labels[-2:]
            out.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")


def write_start() -> None:
    """New rows of the untied model by every method; token 302 is described by itself and so has no description left."""
    model = load_base(Case("start"))
    embedding, head = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    described = {301: [5, 6, 7, 7, 302], 302: [302]}
    tensors = {}
    for method, given, noise in [("noise_init", {}, True), ("desc_init", described, False),
                                 ("desc_init_w_noise", described, True)]:
        for name, table in [("model.embed_tokens.weight", embedding), ("lm_head.weight", head)]:
            tensors[f"{method}.{name}"] = new_rows(name, table, ROWS, embedding, given, noise).float()
    write_tensors(FOLDER / "start.safetensors", tensors)


def save_adapter(model: PeftModel, case: Resized, folder) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # "auto" compares with the base's own configuration.
    model.peft_config["default"].base_model_name_or_path = str(LLAMA_GOLDENS / case.model)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = case.model
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


def load_for_training(case: Resized):
    model = base(case)
    if case.lora is None:
        return model.requires_grad_(True).train()
    if case.saved_by_peft:
        return PeftModel.from_pretrained(model, case.folder / "init_adapter", is_trainable=True).train()
    return get_peft_model(model, methods.lora_config(case)).train()


def write_initial(case: Resized) -> None:
    torch.manual_seed(case.seed)
    model = get_peft_model(base(case), methods.lora_config(case))
    if case.random_b:
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, case, case.folder / "init_adapter")


def write_config(case: Resized) -> None:
    config = {
        "model_name_or_path": f"{methods.MODELS_FROM_CASE}/{case.model}",
        "add_tokens": ", ".join(ORDINARY),
        "add_special_tokens": SPECIAL,
        "finetuning_type": "full" if case.lora is None else "lora",
    }
    if case.saved_by_peft:
        config["adapter_name_or_path"] = "init_adapter"
    else:
        config["resize_vocab"] = True
    if case.lora is not None and not case.saved_by_peft:
        config |= {"lora_rank": case.lora["r"], "lora_alpha": case.lora["lora_alpha"],
                   "lora_target": ",".join(case.lora["target_modules"]), "init_lora_weights": "olora"}
    config |= {
        "dataset": "../train.jsonl", "cutoff_len": 64, "disable_shuffling": True,
        "per_device_train_batch_size": case.batch, "gradient_accumulation_steps": case.accumulation,
        "learning_rate": case.lr, "lr_scheduler_type": case.schedule, "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "max_steps": STEPS, "logging_steps": 1, "seed": SEED,
    }
    (case.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, width=200, allow_unicode=True))


def write_case(case: Resized, rows: list[dict]) -> None:
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir(parents=True)
    write_config(case)
    if case.saved_by_peft:
        write_initial(case)
    fresh = load_for_training(case)
    first = get_peft_model_state_dict(fresh, save_embedding_layers=False) if case.computed_start else None
    model, steps = methods.train(case, rows)
    methods.sane(case, rows, load_for_training(case), model)
    assert steps[-1]["loss"] < steps[0]["loss"]
    if case.lora is None:
        write_tensors(case.folder / "final_model/model.safetensors", dict(model.named_parameters()))
    elif case.computed_start:
        methods.save_converted(case, model, first)
    else:
        save_adapter(model, case, case.folder / "final_adapter")
    write_json(case.folder / "expected.json", {"versions": versions("torch", "transformers", "peft"), "steps": steps})
    ids = [torch.tensor(rows[0]["input_ids"][:9]), torch.tensor(rows[10]["input_ids"][-6:])]
    assert any(OLD <= i < ROWS for doc in ids for i in doc.tolist())
    tensors = {}
    with torch.no_grad():
        for index, doc in enumerate(ids):
            tensors |= {f"doc{index}.input_ids": doc, f"doc{index}.logits": model.eval()(doc[None]).logits[0]}
    write_tensors(case.folder / "logits.safetensors", tensors)


def main() -> None:
    deterministic()
    self_check()
    warnings.simplefilter("ignore")
    methods.STEPS, methods.load_for_training = STEPS, load_for_training
    write_rows()
    write_start()
    rows = read_rows(FOLDER / "train.jsonl")
    for case in CASES:
        if len(sys.argv) == 1 or case.name in sys.argv[1:]:
            write_case(case, rows)


if __name__ == "__main__":
    main()
