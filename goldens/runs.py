"""Training runs of peft + transformers + torch on the tiny models of llama.py.

Writes crates/train/tests/goldens/runs/: train.jsonl, eval.jsonl and one folder for each run with
config.yaml, init_adapter/, final_adapter/ (or final_model/), expected.json and logits.safetensors.
README.md beside this file says what each holds and which semantics they assume.

Usage: python goldens/runs.py [--check]
  --check also repeats every run with transformers' Trainer, and once more row by row without padding,
  writes nothing, and prints how far the results are from those of the loop here.
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import LLAMA_GOLDENS, RUN_GOLDENS, deterministic, versions, write_json, write_tensors
from corpus import conversations

import torch
import torch.nn.functional as F
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, get_scheduler
from transformers.trainer_pt_utils import LabelSmoother

IGNORED = -100
MODELS_FROM_RUN = "../../../../../model/tests/goldens/llama"
MAX_STEPS = 20
EVAL_STEPS = 5


@dataclass
class Run:
    name: str
    model: str
    lora: dict | None = None  # LoraConfig's arguments; None trains every weight
    random_b: bool = False  # B starts random, not zero
    batch: int = 4
    accumulation: int = 1
    lr: float = 5e-3
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    evaluate: bool = False
    seed: int = 42
    extra_keys: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return RUN_GOLDENS / self.name


RUNS = [
    Run(
        "lora-all-linear", "gqa-untied", dict(r=4, lora_alpha=8, target_modules="all-linear"),
        lr=1e-2, warmup=3, evaluate=True, extra_keys={"lora_target": "all"},
    ),
    Run(
        "lora-qv-cosine-accum", "tied-bf16", dict(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"]),
        random_b=True, batch=2, accumulation=4, lr=2e-2, schedule="cosine", warmup=2, weight_decay=0.1,
        max_grad_norm=0.3, extra_keys={"lora_target": "q_proj,v_proj"},
    ),
    Run(
        "lora-regex", "gqa-untied",
        dict(
            r=4, lora_alpha=6, use_rslora=True,
            target_modules=r".*\.layers\.[12]\.(self_attn\.(q|k|o)_proj|mlp\.down_proj)",
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5}, alpha_pattern={"k_proj": 3, "down_proj": 10},
        ),
        random_b=True, batch=5, accumulation=4, lr=1e-2, schedule="constant", max_grad_norm=0.0,
        extra_keys={"use_rslora": True},
    ),
    Run(
        "lora-smoothed", "tied-bf16", dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
        batch=3, accumulation=2, lr=1e-2, label_smoothing=0.2, evaluate=True,
        extra_keys={"lora_target": "q_proj,down_proj"},
    ),
    Run("full", "gqa-untied", lr=3e-3, warmup=2, weight_decay=0.05),
    Run("full-tied", "tied-bf16", batch=3, accumulation=2, lr=5e-3, schedule="cosine", weight_decay=0.01),
]  # fmt: skip


# --- data -----------------------------------------------------------------------------------------


def make_rows(tokenizer, count: int, start: int) -> list[dict]:
    """Tokenised rows of 5 to 40 tokens with untrained prompts.

    Every sixth has no prompt, so that its labels[0] is a label; every fifth has two turns, where they fit.
    """
    rows, pairs = [], conversations(count * 2, start)
    for index in range(len(pairs)):
        row = {"input_ids": [], "labels": []}
        for question, answer in [pairs[index], *pairs[:index][-1:]] if index % 5 == 1 else [pairs[index]]:
            prompt = [] if index % 6 == 5 else tokenizer.encode(f"<|im_start|>{question}<|im_end|>")
            reply = tokenizer.encode(f"{answer}<|im_end|>")
            row["input_ids"] += prompt + reply
            row["labels"] += [IGNORED] * len(prompt) + reply
        if 5 <= len(row["input_ids"]) <= 40:
            rows.append(row)
    assert len(rows) >= count
    return rows[:count]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Right padding to the longest row; padded places are masked out and not trained."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values, filler):
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
    }


def chunks(items: list, size: int) -> list[list]:
    """The last chunk may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def trained_tokens(rows: list[dict]) -> int:
    """Labels that are predicted by some position: label 0 never is."""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


# --- model ----------------------------------------------------------------------------------------


def load_base(run: Run, attention: str = "eager"):
    return AutoModelForCausalLM.from_pretrained(
        LLAMA_GOLDENS / run.model, dtype=torch.float32, attn_implementation=attention
    )


def save_adapter(model: PeftModel, folder: Path, base: str, save_embedding_layers: bool = False) -> None:
    """PEFT's own files; only what depends on this machine or on hash order is made stable."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


def write_initial_adapter(run: Run) -> None:
    torch.manual_seed(run.seed)
    model = get_peft_model(load_base(run), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **run.lora))
    if run.random_b:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, run.folder / "init_adapter", run.model)


def load_for_training(run: Run, attention: str = "eager"):
    model = load_base(run, attention)
    if run.lora is not None:
        model = PeftModel.from_pretrained(model, run.folder / "init_adapter", is_trainable=True)
    return model.train()


# --- the loop -------------------------------------------------------------------------------------


def loss_sum(model, rows: list[dict], smoothing: float) -> torch.Tensor:
    batch = collate(rows)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if smoothing > 0:
        smoother = LabelSmoother(epsilon=smoothing)
        return smoother({"logits": logits}, batch["labels"], shift_labels=True, num_items_in_batch=1)
    labels = batch["labels"][:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def parameter_groups(model, weight_decay: float) -> list[dict]:
    """As transformers' Trainer: no decay for biases and for the weights of norms (by name)."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def exempt(name):
        return "bias" in name or "norm" in name

    return [
        {"params": [p for name, p in trainable if not exempt(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if exempt(name)], "weight_decay": 0.0},
    ]


@torch.no_grad()
def evaluate(model, run: Run, rows: list[dict]) -> dict:
    model.eval()
    batches = chunks(rows, run.batch)
    sums = [(loss_sum(model, batch, run.label_smoothing).item(), trained_tokens(batch), len(batch)) for batch in batches]
    model.train()
    return {
        # Every trained token weighs the same.
        "eval_loss": sum(s for s, _, _ in sums) / sum(t for _, t, _ in sums),
        # Trainer's figure: the mean of each batch, weighted by its rows.
        "eval_loss_trainer": sum(n * s / t for s, t, n in sums) / sum(n for _, _, n in sums),
    }


def train(run: Run, train_rows, eval_rows, attention="eager", row_by_row=False):
    """The run as its config.yaml says; returns the model and the values for expected.json."""
    model = load_for_training(run, attention)
    groups = parameter_groups(model, run.weight_decay)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.999), eps=1e-8)
    scheduler = get_scheduler(run.schedule, optimizer, num_warmup_steps=run.warmup, num_training_steps=MAX_STEPS)
    # An epoch's batches are cut into windows; both its last batch and its last window may be smaller.
    epoch = chunks(chunks(train_rows, run.batch), run.accumulation)
    steps, evaluations = [], []
    for step in range(MAX_STEPS):
        window = epoch[step % len(epoch)]
        trained = sum(trained_tokens(batch) for batch in window)
        lr, loss = scheduler.get_last_lr()[0], torch.zeros(())
        for batch in window:
            for rows in [[row] for row in batch] if row_by_row else [batch]:
                part = loss_sum(model, rows, run.label_smoothing) / trained
                part.backward()
                loss += part.detach()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, missing
        limit = run.max_grad_norm if run.max_grad_norm > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        batches_done = sum(len(w) for w in epoch[: step % len(epoch) + 1])
        steps.append(
            {
                "step": step + 1,
                "epoch": step // len(epoch) + batches_done / sum(len(w) for w in epoch),
                "rows": sum(len(batch) for batch in window),
                "trained_tokens": trained,
                "loss": loss.item(),
                "grad_norm": norm.item(),
                "learning_rate": lr,
            }
        )
        if run.evaluate and (step + 1) % EVAL_STEPS == 0:
            evaluations.append({"step": step + 1, **evaluate(model, run, eval_rows)})
    return model.eval(), {"steps": steps, "evaluations": evaluations}


# --- files ----------------------------------------------------------------------------------------


def write_config(run: Run) -> None:
    config = {"model_name_or_path": f"{MODELS_FROM_RUN}/{run.model}"}
    if run.lora is None:
        config |= {"finetuning_type": "full"}
    else:
        config |= {
            "finetuning_type": "lora",
            "adapter_name_or_path": "init_adapter",
            "lora_rank": run.lora["r"],
            "lora_alpha": run.lora["lora_alpha"],
            "lora_dropout": 0.0,
            "lora_target": run.lora["target_modules"],
        }
    config |= {"dataset": "../train.jsonl"}
    if run.evaluate:
        config |= {
            "eval_dataset": "../eval.jsonl",
            "eval_strategy": "steps",
            "eval_steps": EVAL_STEPS,
            "per_device_eval_batch_size": run.batch,
        }
    config |= {
        "cutoff_len": 64,
        "packing": False,
        "disable_shuffling": True,
        "per_device_train_batch_size": run.batch,
        "gradient_accumulation_steps": run.accumulation,
        "learning_rate": run.lr,
        "lr_scheduler_type": run.schedule,
        "warmup_steps": run.warmup,
        "weight_decay": run.weight_decay,
        "max_grad_norm": run.max_grad_norm,
        "max_steps": MAX_STEPS,
        "logging_steps": 1,
        "bf16": False,
        "seed": run.seed,
    }
    if run.label_smoothing > 0:
        config |= {"label_smoothing_factor": run.label_smoothing}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config | run.extra_keys, sort_keys=False, width=200))


@torch.no_grad()
def final_logits(model, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Logits of the longest and of the shortest evaluation row."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    tensors = {}
    for index, row in enumerate([ordered[-1], ordered[0]]):
        ids = torch.tensor(row["input_ids"])
        tensors[f"doc{index}.input_ids"] = ids
        tensors[f"doc{index}.logits"] = model(ids[None]).logits[0]
    return tensors


def sane(run: Run, before: dict[str, torch.Tensor], model, result: dict) -> None:
    """Every parameter moved, and the losses fell."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (parameter - before[name]).abs().max() > 1e-4, f"{run.name}: {name} did not move"
    losses = [step["loss"] for step in result["steps"]]
    assert sum(losses[-3:]) / 3 < 0.95 * sum(losses[:3]) / 3, f"{run.name}: {losses}"
    print(f"{run.name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, grad_norm {result['steps'][0]['grad_norm']:.3f}")


def write_run(run: Run, train_rows, eval_rows) -> None:
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    write_config(run)
    if run.lora is not None:
        write_initial_adapter(run)
    before = {name: p.detach().clone() for name, p in load_for_training(run).named_parameters()}
    model, result = train(run, train_rows, eval_rows)
    sane(run, before, model, result)
    if run.lora is not None:
        save_adapter(model, run.folder / "final_adapter", run.model)
    else:
        model.save_pretrained(run.folder / "final_model")
        (run.folder / "final_model/generation_config.json").unlink()
        (run.folder / "final_model/model.safetensors").chmod(0o644)
    write_json(run.folder / "expected.json", {"versions": versions("torch", "transformers", "peft")} | result)
    write_tensors(run.folder / "logits.safetensors", final_logits(model, eval_rows))


def main() -> None:
    deterministic()
    if "--check" in sys.argv:
        from check_runs import check

        for run in RUNS:
            check(run, read_rows(RUN_GOLDENS / "train.jsonl"), read_rows(RUN_GOLDENS / "eval.jsonl"))
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(LLAMA_GOLDENS / "gqa-untied")
    train_rows, eval_rows = make_rows(tokenizer, 48, 0), make_rows(tokenizer, 9, 1000)
    write_rows(RUN_GOLDENS / "train.jsonl", train_rows)
    write_rows(RUN_GOLDENS / "eval.jsonl", eval_rows)
    lengths = [len(row["input_ids"]) for row in train_rows]
    print(f"{len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, {trained_tokens(train_rows)} trained")
    for run in RUNS:
        write_run(run, train_rows, eval_rows)


if __name__ == "__main__":
    main()
