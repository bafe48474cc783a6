"""Ten steps of every fine-tuning method by peft + transformers + torch, on the tiny models of llama.py.

Writes crates/train/tests/goldens/methods/<case>/: config.yaml, init_adapter/ (where the start is random),
final_adapter/ (or final_model/), expected.json and logits.safetensors. README.md beside this file says what each
holds. Rows are those of runs.py. Dropout and noise are drawn by philox.py, which is loratune's own generator.

Usage: python goldens/methods.py [--check] [case ...]
  --check writes nothing: it repeats the runs by transformers' Trainer where nothing is random, and all of them row
  by row; dropout and noise are compared with PEFT's and transformers' own under torch's generator.
"""

import copy
import json
import re
import shutil
import sys
import warnings

from common import deterministic, versions, write_json, write_tensors
from method_cases import ALL, CASES, PROJECTIONS, Case
from philox import Key, self_check
from runs import RUN_GOLDENS, chunks, load_base, loss_sum, read_rows, save_adapter, trained_tokens

import torch
import torch.nn.functional as F
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

MODELS_FROM_CASE = "../../../../../model/tests/goldens/llama"
STEPS = 10
ADAM = dict(betas=(0.9, 0.999), eps=1e-8)


# --- randomness -----------------------------------------------------------------------------------


class Randomness:
    """The draws of a forward pass: each site that needs some takes the pass's key with its own number, from 1.

    Elements are counted over the tokens of the micro-batch without padding, one row after another.
    """

    def __init__(self, draws: str):
        self.draws = draws  # "philox", or "torch" for torch's generator and shape (padded)

    def begin(self, key: Key, rows: list[dict], first: int, longest: int) -> None:
        self.key, self.sites = key, []
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.first, self.longest = first, longest

    def site(self, name: str, shape: torch.Size, draw) -> torch.Tensor:
        """`draw(key, first element, count)` as `[rows, longest, features]`, 0 in the padding."""
        self.sites.append(name)
        key, (_, _, features) = self.key.with_(len(self.sites)), shape
        assert shape[0] == len(self.lengths) and shape[1] == max(self.lengths)
        values = torch.from_numpy(draw(key, self.first * features, sum(self.lengths) * features))
        padded = torch.zeros(shape)
        for row, part in zip(padded, values.reshape(-1, features).split(self.lengths), strict=True):
            row[: len(part)] = part
        return padded

    def finish(self) -> None:
        """Sites must come as loratune counts them: noise, then the projections, layer by layer."""

        def place(name):
            _, layer, _, projection = name.rsplit(".", 3) if name != "noise" else ("", "-1", "", PROJECTIONS[0])
            return int(layer), PROJECTIONS.index(projection)

        assert self.sites == sorted(self.sites, key=place), self.sites


class SiteDropout(nn.Module):
    def __init__(self, randomness: Randomness, name: str, p: float):
        super().__init__()
        self.randomness, self.name, self.p = randomness, name, p

    def forward(self, x):
        if not self.training:
            return x
        if self.randomness.draws == "torch":
            return x * F.dropout(torch.ones_like(x), self.p)
        return x * self.randomness.site(self.name, x.shape, lambda key, *place: key.dropout(self.p, *place))


def noise_hook(case: Case, randomness: Randomness):
    def hook(module, _inputs, output):
        if not module.training:
            return output
        _, longest, hidden = output.shape
        lengths = torch.tensor(randomness.lengths if case.neftune_scale == "per_sequence" else [randomness.longest])
        magnitude = (case.neftune / torch.sqrt(lengths * hidden)).reshape(-1, 1, 1)
        if randomness.draws == "torch":
            return output + torch.zeros_like(output).uniform_(-magnitude.item(), magnitude.item())
        return output + magnitude * randomness.site(
            "noise", output.shape, lambda key, *place: 2.0 * key.uniform(*place) - 1.0
        )

    return hook


def install(case: Case, model, draws: str) -> Randomness:
    """Puts loratune's draws where PEFT and transformers have theirs."""
    randomness = Randomness(draws)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and isinstance(module.lora_dropout["default"], nn.Dropout):
            module.lora_dropout["default"] = SiteDropout(randomness, name, module.lora_dropout["default"].p)
    if case.neftune > 0:
        embedding = model.get_input_embeddings()
        embedding.register_forward_hook(noise_hook(case, randomness))
    return randomness


# --- start ----------------------------------------------------------------------------------------


def lora_config(case: Case) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **case.lora)


def base_of(case: Case, untied: bool = False):
    model = load_base(case)
    if untied:
        model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return model


def write_initial_adapter(case: Case) -> None:
    torch.manual_seed(case.seed)
    model = get_peft_model(base_of(case), lora_config(case))
    if case.random_b:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        for module in model.modules():
            if isinstance(module, LoraLayer) and case.lora.get("use_dora"):
                # Magnitudes are the norms at the start.
                module.lora_variant["default"].init(module, "default")
    save_adapter(model, case.folder / "init_adapter", case.model)


def load_for_training(case: Case):
    if case.lora is None:
        model = base_of(case).requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(re.search(pattern, name) for pattern in case.unfrozen))
    elif case.computed_start:
        model = get_peft_model(base_of(case), lora_config(case))
    else:
        model = PeftModel.from_pretrained(base_of(case), case.folder / "init_adapter", is_trainable=True)
        if case.dropout:
            assert model.peft_config["default"].lora_dropout == case.dropout
    return model.train()


def optimizer_of(case: Case, model) -> torch.optim.Optimizer:
    if case.plus_ratio is not None:
        embedding = {} if case.plus_embedding is None else dict(loraplus_lr_embedding=case.plus_embedding)
        return create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=case.lr, loraplus_lr_ratio=case.plus_ratio,
            loraplus_weight_decay=case.weight_decay, **embedding, **ADAM,
        )  # fmt: skip
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": case.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=case.lr, **ADAM)


# --- the loop -------------------------------------------------------------------------------------


def train(case: Case, rows: list[dict], draws: str = "philox", row_by_row: bool = False):
    """The run as its config.yaml says; `draws="peft"` leaves PEFT's dropout and transformers' noise in place."""
    model = load_for_training(case)
    if draws == "peft":
        randomness, noise = Randomness("torch"), case.neftune and activate_neftune(model, case.neftune)
    else:
        randomness, noise = install(case, model, draws), None
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(case, model)
    scheduler = get_scheduler(case.schedule, optimizer, num_warmup_steps=case.warmup, num_training_steps=STEPS)
    epoch = chunks(chunks(rows, case.batch), case.accumulation)
    torch.manual_seed(case.seed)
    steps = []
    for step in range(STEPS):
        window = epoch[step % len(epoch)]
        trained = sum(trained_tokens(batch) for batch in window)
        lr, loss = scheduler.get_last_lr()[0], torch.zeros(())
        for micro, batch in enumerate(window):
            key = Key(case.seed).named("train").with_(step).with_(micro)
            longest, first = max(len(row["input_ids"]) for row in batch), 0
            for part in [[row] for row in batch] if row_by_row else [batch]:
                randomness.begin(key, part, first, longest)
                share = loss_sum(model, part) / trained
                randomness.finish()
                share.backward()
                loss += share.detach()
                first += sum(len(row["input_ids"]) for row in part)
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, missing
        norm = torch.nn.utils.clip_grad_norm_(parameters, case.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        steps.append(
            {
                "step": step + 1,
                "trained_tokens": trained,
                "loss": loss.item(),
                "grad_norm": norm.item(),
                "learning_rate": lr,
            }
        )
    if noise:
        deactivate_neftune(model, noise)
    return model.eval(), steps


# --- files ----------------------------------------------------------------------------------------


def method_keys(case: Case) -> dict:
    if case.lora is None:
        return {"finetuning_type": "full", "unfrozen_parameters": list(case.unfrozen)}
    given = dict(case.lora)
    targets = given.pop("target_modules")
    keys = {"finetuning_type": "lora"}
    if not case.computed_start:
        keys["adapter_name_or_path"] = "init_adapter"
    keys["lora_rank"], keys["lora_alpha"] = given.pop("r"), given.pop("lora_alpha")
    keys["lora_target"] = "all" if targets == ALL else ",".join(targets)
    if "exclude_modules" in given:
        given["exclude_modules"] = ",".join(given["exclude_modules"])
    given.pop("ensure_weight_tying", None)  # no key of a run: the adapter's configuration has it
    keys |= given
    if case.plus_ratio is not None:
        keys["loraplus_lr_ratio"] = case.plus_ratio
    if case.plus_embedding is not None:
        keys["loraplus_lr_embedding"] = case.plus_embedding
    return keys


def write_config(case: Case) -> None:
    config = {"model_name_or_path": f"{MODELS_FROM_CASE}/{case.model}"} | method_keys(case)
    if case.neftune > 0:
        config |= {"neftune_noise_alpha": case.neftune, "neftune_scale": case.neftune_scale}
    config |= {
        "dataset": "../../runs/train.jsonl",
        "cutoff_len": 64,
        "packing": False,
        "disable_shuffling": True,
        "per_device_train_batch_size": case.batch,
        "gradient_accumulation_steps": case.accumulation,
        "learning_rate": case.lr,
        "lr_scheduler_type": case.schedule,
        "warmup_steps": case.warmup,
        "weight_decay": case.weight_decay,
        "max_grad_norm": case.max_grad_norm,
        "max_steps": STEPS,
        "logging_steps": 1,
        "bf16": False,
        "seed": case.seed,
    }
    (case.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, width=200))


def converted(state: dict, start: dict, config: LoraConfig) -> tuple[dict, LoraConfig]:
    """An adapter of a base that lost B0·A0 as one of the untouched base: s·(B·A - B0·A0) = s·[B, -B0]·[A; A0].

    The rank doubles and s stays; everything else in the adapter belongs to the base as it was all the same.
    """
    tensors = {}
    for name, tensor in state.items():
        if "lora_A" in name:
            tensor = torch.cat([tensor, start[name]], dim=0)
        elif "lora_B" in name:
            tensor = torch.cat([tensor, -start[name]], dim=1)
        tensors[name] = tensor
    config, factor = copy.copy(config), 2**0.5 if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}
    config.init_lora_weights, config.inference_mode = True, True
    return tensors, config


def save_converted(case: Case, model, start: dict) -> None:
    folder = case.folder / "final_adapter"
    tensors, config = converted(
        get_peft_model_state_dict(model, save_embedding_layers=False), start, model.peft_config["default"]
    )
    config.base_model_name_or_path, config.target_modules = case.model, sorted(config.target_modules)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")
    write_tensors(folder / "adapter_model.safetensors", tensors)


def documents() -> list[torch.Tensor]:
    rows = sorted(read_rows(RUN_GOLDENS / "eval.jsonl"), key=lambda row: len(row["input_ids"]))
    return [torch.tensor(rows[-1]["input_ids"][:6]), torch.tensor(rows[0]["input_ids"][:4])]


@torch.no_grad()
def logits_of(model) -> list[torch.Tensor]:
    return [model.eval()(ids[None]).logits[0] for ids in documents()]


def furthest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def merged_logits(case: Case, model) -> list[torch.Tensor]:
    """Logits after merging what was saved, which must be those of the trained model."""
    trained = logits_of(model)
    if case.lora is None:
        return trained
    if case.breaks_tie and case.shares_rows:
        # An untied base would not share them, and on the tied one merging changes the embedding too.
        saved = PeftModel.from_pretrained(base_of(case), case.folder / "final_adapter")
        assert furthest(trained, logits_of(saved)) < 2e-5, f"{case.name}: the saved adapter is another one"
        return trained
    saved = PeftModel.from_pretrained(base_of(case, case.breaks_tie), case.folder / "final_adapter")
    assert furthest(trained, logits_of(saved)) < 2e-5, f"{case.name}: the saved adapter is another one"
    merged_model = saved.merge_and_unload()
    merged = logits_of(merged_model)
    assert furthest(trained, merged) < 2e-5, f"{case.name}: {furthest(trained, merged)}"
    both = merged_model.get_input_embeddings().weight, merged_model.get_output_embeddings().weight
    tied = both[0].data_ptr() == both[1].data_ptr()
    assert tied == merged_model.config.tie_word_embeddings
    if case.breaks_tie:
        theirs = logits_of(PeftModel.from_pretrained(base_of(case), case.folder / "final_adapter").merge_and_unload())
        print(f"  {case.name}: PEFT merges the tied model to logits off by {furthest(trained, theirs):.1e}")
    elif case.model == "tied-bf16":
        assert tied == case.shares_rows, case.name
    return merged


@torch.no_grad()
def first_loss(case: Case, rows: list[dict], model) -> float:
    """Over the rows of the first step, without dropout and noise."""
    window = chunks(rows, case.batch)[: case.accumulation]
    return sum(loss_sum(model.eval(), batch).item() for batch in window) / sum(map(trained_tokens, window))


def sane(case: Case, rows: list[dict], fresh, model) -> None:
    """Exactly the trained parameters moved, and the rows of the first step are now better predicted."""
    least, before = 1.0, dict(fresh.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moved = (parameter - before[name]).abs().max().item()
            least = min(least, moved)
            assert moved > 1e-3, f"{case.name}: {name} moved by {moved}"
        else:
            assert torch.equal(parameter, before[name]), f"{case.name}: {name} is frozen, but moved"
    first, last = first_loss(case, rows, fresh), first_loss(case, rows, model)
    print(f"{case.name}: loss {first:.3f} -> {last:.3f}, moved {least:.4f}")
    assert last < 0.98 * first, case.name


def write_case(case: Case, rows: list[dict]) -> None:
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir(parents=True)
    write_config(case)
    if case.lora is not None and not case.computed_start:
        write_initial_adapter(case)
    fresh = load_for_training(case)
    model, steps = train(case, rows)
    sane(case, rows, fresh, model)
    if case.lora is None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        write_tensors(case.folder / "final_model/model.safetensors", trained)
    elif case.computed_start:
        save_converted(case, model, get_peft_model_state_dict(fresh, save_embedding_layers=False))
    else:
        save_adapter(model, case.folder / "final_adapter", case.model)
    write_json(case.folder / "expected.json", {"versions": versions("torch", "transformers", "peft"), "steps": steps})
    tensors = {}
    for index, (ids, logits) in enumerate(zip(documents(), merged_logits(case, model), strict=True)):
        tensors |= {f"doc{index}.input_ids": ids, f"doc{index}.logits": logits}
    write_tensors(case.folder / "logits.safetensors", tensors)


def main() -> None:
    deterministic()
    self_check()
    warnings.simplefilter("ignore")  # PEFT's about tied weights; what they warn of is what some cases are about
    names = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    rows, act = read_rows(RUN_GOLDENS / "train.jsonl"), write_case
    if "--check" in sys.argv:
        from check_methods import check as act
    for case in CASES:
        if not names or case.name in names:
            act(case, rows)


if __name__ == "__main__":
    main()
