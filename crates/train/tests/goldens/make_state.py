"""Writes trainer_state.json through transformers' TrainerState. Run: python make_state.py (transformers 5.23.0)."""

import pathlib

from transformers.trainer_callback import EarlyStoppingCallback, TrainerControl, TrainerState

INF, NAN = float("inf"), float("nan")
stopping = EarlyStoppingCallback(early_stopping_patience=3)
stopping.early_stopping_patience_counter = 1
state = TrainerState(
    epoch=1.5, global_step=30, max_steps=60, logging_steps=10, eval_steps=20, save_steps=20, train_batch_size=4,
    num_train_epochs=3, num_input_tokens_seen=123456, total_flos=1.25e17, best_metric=1.75, best_global_step=20,
    best_model_checkpoint="läufe/checkpoint-20",
    log_history=[
        {"loss": 2.3456789012345, "grad_norm": 1e16, "learning_rate": 5e-5, "epoch": 0.5, "step": 10},
        {"loss": NAN, "grad_norm": INF, "learning_rate": 0.0001, "epoch": 1.0, "step": 20},
        {"eval_loss": 1.75, "eval_accuracy": 0.5, "eval_perplexity": -INF, "epoch": 1.0, "step": 20},
        {"loss": 0.1 + 0.2, "grad_norm": 1e-7, "learning_rate": 0.0, "epoch": 1.5, "step": 30},
        {"train_loss": 2.0, "epoch": 1.5, "step": 30},
    ],
    stateful_callbacks=[stopping, TrainerControl(should_save=True)],
)
path = pathlib.Path(__file__).with_name("trainer_state.json")
state.save_to_json(path)
assert TrainerState.load_from_json(path).log_history[0]["loss"] == 2.3456789012345
