"""Five LoRA and five DoRA steps on the models of families.py by peft + transformers + torch.

Writes crates/train/tests/goldens/families/: train.jsonl and <case>-lora/, <case>-dora/ with config.yaml, init_adapter/,
final_adapter/ and expected.json, as runs.py and methods.py do; their semantics hold (README.md, "Runs").
"""

import shutil
from pathlib import Path

from common import ROOT, versions, write_json
from family_cases import BOS, EOS, LONG, Case
from runs import chunks, loss_sum, read_rows, save_adapter, trained_tokens, write_rows

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler

FAMILY_RUNS = ROOT / "crates/train/tests/goldens/families"
MODELS_FROM_RUN = "../../../../../model/tests/goldens/families"
STEPS, BATCH, ACCUMULATION = 5, 2, 2
RANK, ALPHA, LR, DECAY, CLIP, SEED = 2, 3, 2e-2, 0.1, 1.0, 42
METHODS = {"lora": {}, "dora": {"use_dora": True}}


def write_rows_file(tokenizer) -> None:
    """20 rows of 7 to 36 tokens; in each micro-batch a short one and a long one (beyond windows and limits)."""
    from families import IGNORED, sentence

    rows = []
    for index in range(STEPS * BATCH * ACCUMULATION):
        ids = tokenizer.encode(sentence(40 + index) + " " + sentence(80 + index))
        size = LONG - index % 5 if index % 2 else 7 + index % 6
        ids = [BOS] + ids[: size - 2] + [EOS]
        prompt = 3 + index % 4
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    write_rows(FAMILY_RUNS / "train.jsonl", rows)


def load_base(case: Case):
    return AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32, attn_implementation="eager")


def write_initial_adapter(case: Case, method: str, folder: Path) -> None:
    torch.manual_seed(SEED)
    targets = case.targets or "all-linear"
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=targets, **METHODS[method])
    model = get_peft_model(load_base(case), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder / "init_adapter", case.name)


def write_config(case: Case, method: str, folder: Path) -> None:
    config = {
        "model_name_or_path": f"{MODELS_FROM_RUN}/{case.name}",
        "finetuning_type": "lora",
        "adapter_name_or_path": "init_adapter",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": ",".join(case.targets) if case.targets else "all",
        **METHODS[method],
        "dataset": "../train.jsonl",
        "cutoff_len": 64,
        "packing": False,
        "disable_shuffling": True,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": LR,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "max_steps": STEPS,
        "logging_steps": 1,
        "bf16": False,
        "seed": SEED,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, width=200))


@torch.no_grad()
def mean_loss(model, rows: list[dict]) -> float:
    batches = chunks(rows, BATCH)
    return sum(loss_sum(model, batch).item() for batch in batches) / trained_tokens(rows)


def train(model, rows: list[dict]) -> list[dict]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A, B and magnitudes are all decayed: their names have neither "bias" nor "norm".
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=STEPS)
    windows, steps = chunks(chunks(rows, BATCH), ACCUMULATION), []
    for step, window in enumerate(windows):
        trained = sum(trained_tokens(batch) for batch in window)
        lr, loss = scheduler.get_last_lr()[0], torch.zeros(())
        for batch in window:
            part = loss_sum(model, batch) / trained
            part.backward()
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        values = {"trained_tokens": trained, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": lr}
        steps.append({"step": step + 1} | values)
    assert len(steps) == STEPS
    return steps


def write_run(case: Case, method: str, rows: list[dict]) -> None:
    folder = FAMILY_RUNS / f"{case.name}-{method}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(case, method, folder)
    write_initial_adapter(case, method, folder)
    model = PeftModel.from_pretrained(load_base(case), folder / "init_adapter", is_trainable=True).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = mean_loss(model, rows)
    steps = train(model, rows)
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).abs().max().item()
        assert moved > 1e-3 if parameter.requires_grad else moved == 0.0, f"{folder.name}: {name} moved by {moved}"
    last = mean_loss(model, rows)
    print(f"{folder.name}: loss {first:.3f} -> {last:.3f}")
    assert last < first, folder.name
    save_adapter(model, folder / "final_adapter", case.name)
    write_json(folder / "expected.json", {"versions": versions("torch", "transformers", "peft"), "steps": steps})


def write_runs(case: Case) -> None:
    rows = read_rows(FAMILY_RUNS / "train.jsonl")
    for method in METHODS:
        write_run(case, method, rows)
