"""Check values of the right type that neither a type nor a constructor refuses in time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panda.app.command_line import quote
from panda.app.registry import SLOTS_OF_TASK

SET_BY_RUN = (
    "callbacks", "plugins", "logger", "default_root_dir", "num_sanity_val_steps", "use_distributed_sampler",
    "enable_model_summary",
)  # fmt: skip
"""Options of the trainer that `build_trainer` gives."""


def find_value_faults(plain: Mapping[str, Any], entry_point: str) -> list[str]:
    """Return the faults of threshold, task, seed, trainer, name and output, as sentences.

    Values of the wrong type are left to the check of types.
    """
    if entry_point == "audit":
        audit = plain.get("audit")
        return _find_output_faults("audit.output", audit.get("output") if isinstance(audit, Mapping) else None)
    if entry_point == "infer":
        return [
            *_find_threshold_faults(plain.get("threshold"), "checkpoint"),
            *_find_output_faults("output", plain.get("output")),
        ]
    threshold = plain.get("threshold")
    faults = _find_threshold_faults(threshold, "auto")
    if not faults and threshold != "auto" and round(float(str(threshold)) * 1000) / 1000 != threshold:
        faults = [f"threshold={threshold} must be a multiple of 0.001, the step of the histograms it is scored by"]
    trainer = plain.get("trainer")
    task = plain.get("task")
    name = task.get("name") if isinstance(task, Mapping) else task
    if str(name) not in SLOTS_OF_TASK:
        faults.append(f"task.name={name}: give {' or '.join(f'task={known}' for known in SLOTS_OF_TASK)}")
    seed = plain.get("seed")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        faults.append(f"seed={seed} must be from 0 to {2**32 - 1}")
    return [
        *faults,
        *_find_trainer_faults(trainer if isinstance(trainer, Mapping) else {}),
        *_find_name_faults(plain.get("name")),
    ]


def _find_threshold_faults(threshold: Any, word: str) -> list[str]:
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold == word or (number and 0 < float(threshold) < 1):
        return []
    return [f"threshold={threshold!r} must be {word} or a probability between 0 and 1"]


def _find_output_faults(key: str, output: Any) -> list[str]:
    if isinstance(output, str) and (Path(output) / "checkpoints").is_dir():
        return [f"{key}={output} is the folder of a training run: give a folder of its own"]
    return []


def _find_name_faults(name: Any) -> list[str]:
    if not isinstance(name, str | int | None) or isinstance(name, bool):
        return [f"name={name} was not read as text: quote it, {quote(f'name={name}')}"]
    if name is not None and (not str(name).strip() or Path(str(name)).name != str(name) or name == ".."):
        return [f"name={name!r} must be a plain name: it becomes a folder under runs/"]
    return []


def _find_trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    """Return the faults of values that Lightning accepts, but that train nothing, score nothing or never end."""

    def number(key: str, default: float) -> float:
        value = trainer.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else default

    faults = []
    epochs = number("max_epochs", 1000)
    if epochs < 1:
        faults.append(f"trainer.max_epochs={epochs} must be at least 1")
    for key in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        value = number(key, 1.0)
        if value <= 0 or (isinstance(value, float) and value > 1):
            faults.append(f"trainer.{key}={value} must be a share above 0 and at most 1.0, or at least 1 batch")
    every = number("check_val_every_n_epoch", 1)
    if every < 1 or every > epochs >= 1:
        faults.append(
            f"trainer.check_val_every_n_epoch={every} must be from 1 to max_epochs: validation picks the epoch"
        )
    if number("accumulate_grad_batches", 1) < 1:
        faults.append(f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']} must be at least 1")
    if number("gradient_clip_val", 0) < 0:
        faults.append(
            f"trainer.gradient_clip_val={trainer['gradient_clip_val']} must not be negative; null clips nothing"
        )
    for key in ("fast_dev_run", "overfit_batches", "barebones"):
        if trainer.get(key):
            faults.append(f"trainer.{key}={trainer[key]} leaves no checkpoint or no validation: remove it")
    if number("max_steps", -1) != -1:
        faults.append(
            f"trainer.max_steps={trainer['max_steps']}: Lightning cannot resume a run that counts steps; give "
            "trainer.max_epochs, and trainer.limit_train_batches for short epochs"
        )
    if trainer.get("reload_dataloaders_every_n_epochs"):
        faults.append(
            f"trainer.reload_dataloaders_every_n_epochs={trainer['reload_dataloaders_every_n_epochs']} would forget "
            "the losses of hard patches: remove it"
        )
    for key in SET_BY_RUN:
        if trainer.get(key) is not None:
            faults.append(f"trainer.{key}={trainer[key]} has no effect, because each run sets it: remove it")
    return faults
