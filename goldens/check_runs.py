"""`python goldens/runs.py --check`: the loop of runs.py against transformers' Trainer, and its noise."""

import json
import tempfile

import torch
from transformers import Trainer, TrainingArguments

import runs


def relative(actual: list[float], expected: list[float]) -> float:
    return max(abs(a - e) / max(abs(e), 1e-12) for a, e in zip(actual, expected, strict=True))


def trainer_result(run, train_rows, eval_rows):
    """The same run by Trainer, from the same initial adapter and in the same order."""
    model = runs.load_for_training(run)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=run.batch,
            per_device_eval_batch_size=run.batch,
            gradient_accumulation_steps=run.accumulation,
            learning_rate=run.lr,
            lr_scheduler_type=run.schedule,
            warmup_steps=run.warmup,
            weight_decay=run.weight_decay,
            max_grad_norm=run.max_grad_norm,
            label_smoothing_factor=run.label_smoothing,
            max_steps=runs.MAX_STEPS,
            logging_steps=1,
            eval_strategy="steps" if run.evaluate else "no",
            eval_steps=runs.EVAL_STEPS,
            save_strategy="no",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            optim="adamw_torch",
            report_to="none",
            use_cpu=True,
            seed=run.seed,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=runs.collate,
            train_dataset=train_rows,
            eval_dataset=eval_rows if run.evaluate else None,
        )
        trainer.train()
    return model, trainer.state.log_history


def largest_difference(model, other) -> float:
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return max((p - q).abs().max().item() for (_, p), (_, q) in pairs if p.requires_grad)


def check(run, train_rows, eval_rows) -> None:
    expected = json.loads((run.folder / "expected.json").read_text())
    loop, again = runs.train(run, train_rows, eval_rows)
    assert again["steps"] == expected["steps"], f"{run.name}: the loop does not repeat the committed losses"
    assert again["evaluations"] == expected["evaluations"], run.name
    print(run.name)

    model, history = trainer_result(run, train_rows, eval_rows)
    logged = [entry for entry in history if "loss" in entry]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    print(f"  Trainer against the loop: weights {largest_difference(model, loop):.1e}")
    for key in ("loss", "grad_norm", "learning_rate", "epoch"):
        print(f"    {key}: {relative([e[key] for e in logged], [s[key] for s in expected['steps']]):.1e} relative")
    if evaluated:
        theirs = [e["eval_loss"] for e in evaluated]
        print(f"    eval_loss_trainer: {relative(theirs, [e['eval_loss_trainer'] for e in expected['evaluations']]):.1e}")

    noisy, result = runs.train(run, train_rows, eval_rows, attention="sdpa", row_by_row=True)
    losses = relative([s["loss"] for s in result["steps"]], [s["loss"] for s in expected["steps"]])
    norms = relative([s["grad_norm"] for s in result["steps"]], [s["grad_norm"] for s in expected["steps"]])
    print(f"  unpadded rows and SDPA: losses {losses:.1e}, grad_norms {norms:.1e}, weights {largest_difference(noisy, loop):.1e}")
