"""`python goldens/methods.py --check`: its runs against transformers' Trainer and PEFT's own randomness, and their noise."""

import json
import tempfile
from pathlib import Path

from method_cases import Case
from methods import STEPS, converted, load_for_training, optimizer_of, train
from runs import collate

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, Trainer, TrainingArguments


def apart(a, b) -> str:
    """How far two runs are from each other: (model, steps)."""

    def relative(key):
        return max(abs(x[key] - y[key]) / abs(y[key]) for x, y in zip(a[1], b[1], strict=True))

    pairs = zip(a[0].named_parameters(), b[0].named_parameters(), strict=True)
    weights = max((p - q).abs().max().item() for (_, p), (_, q) in pairs if p.requires_grad)
    return f"losses {relative('loss'):.1e}, grad_norms {relative('grad_norm'):.1e}, weights {weights:.1e}"


def by_trainer(case: Case, rows: list[dict]):
    model = load_for_training(case)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=case.batch, max_steps=STEPS,
            gradient_accumulation_steps=case.accumulation, learning_rate=case.lr, lr_scheduler_type=case.schedule,
            warmup_steps=case.warmup, weight_decay=case.weight_decay, max_grad_norm=case.max_grad_norm,
            logging_steps=1, save_strategy="no", train_sampling_strategy="sequential", remove_unused_columns=False,
            optim="adamw_torch", report_to="none", use_cpu=True, seed=case.seed, disable_tqdm=True,
        )  # fmt: skip
        optimizer = optimizer_of(case, model) if case.plus_ratio is not None else None
        trainer = Trainer(
            model=model, args=arguments, data_collator=collate, train_dataset=rows, optimizers=(optimizer, None)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model, [entry for entry in trainer.state.log_history if "loss" in entry]


def check_conversion(case: Case, rows: list[dict]) -> None:
    """PEFT's own conversion must give the tensors of `converted`, as far as it gives any."""
    fresh, (model, _) = load_for_training(case), train(case, rows)
    start = get_peft_model_state_dict(fresh, save_embedding_layers=False)
    ours, config = converted(get_peft_model_state_dict(model), start, model.peft_config["default"])
    with tempfile.TemporaryDirectory() as folder:
        fresh.peft_config["default"].init_lora_weights = True
        fresh.save_pretrained(f"{folder}/start")
        model.save_pretrained(f"{folder}/end", path_initial_model_for_weight_conversion=f"{folder}/start")
        state = load_file(Path(folder) / "end/adapter_model.safetensors")
        theirs = LoraConfig.from_pretrained(f"{folder}/end")
        difference = max((ours[name] - state[name]).abs().max().item() for name in state)
        assert (config.r, config.lora_alpha) == (theirs.r, theirs.lora_alpha) and difference < 1e-6, difference
        lost = sorted({name.split(".", 6)[-1] for name in ours.keys() - state.keys()})
    print(f"  PEFT's own conversion: {difference:.1e}, and lacks {lost or 'nothing'}")


def check(case: Case, rows: list[dict]) -> None:
    expected = json.loads((case.folder / "expected.json").read_text())
    loop = train(case, rows)
    assert loop[1] == expected["steps"], f"{case.name}: the loop does not repeat the committed numbers"
    print(case.name)
    print(f"  row by row: {apart(train(case, rows, row_by_row=True), loop)}")
    if not case.random:
        print(f"  Trainer: {apart(by_trainer(case, rows), loop)}")
    elif case.neftune_scale == "per_batch":
        print(f"  PEFT's dropout, transformers' noise: {apart(train(case, rows, 'torch'), train(case, rows, 'peft'))}")
    if case.name in ("pissa", "olora", "dora-pissa"):
        check_conversion(case, rows)


