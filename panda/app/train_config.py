"""The configuration of a training: the settings of all nodes, and the rules between them that both tasks have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from panda.app.begun_job import holds_run, is_finished
from panda.app.build import build
from panda.app.hydra_job import AUTO, describe_subdir_fault, is_multirun, is_plain_name, is_unnamed
from panda.app.registry import Slot
from panda.app.tracking import TrackingSettings
from panda.app.trainer import TrainerSettings
from panda.data.augment import Augmentation
from panda.data.datamodule import DataSettings
from panda.files import advise_removal
from panda.inference.compute import EngineSettings
from panda.inference.legends import ColourMap
from panda.inference.quantify import QuantifySettings
from panda.settings import Count, Names, Seed, Settings, Text, accept, format_override, is_number, rule
from panda.tasks.bins import is_step
from panda.tasks.optim import Optim
from panda.tasks.threshold import CRITERIA

LOSSES = (
    "panda.models",
    "torch.nn",
    "segmentation_models_pytorch.losses",
    # Other parts of torchmetrics download or unpickle weights.
    "torchmetrics.classification",
    "torchmetrics.regression",
    "torchmetrics.segmentation",
)
"""Packages whose losses a configuration may build."""


def _is_threshold(value: Any) -> bool:
    return value == "auto" or (is_number(value) and 0 < value < 1 and is_step(value))


class TaskSettings(Settings):
    """Settings that each task has.

    Args:
        name: Name of the task.
        patience: Epochs without a better figure of validation after which training stops.
    """

    node: ClassVar[str] = "task"

    name: str
    patience: Count = 10


class TrainConfig(Settings):
    """Keys and nodes of `conf/train.yaml`. Model and loss are plain options, see `build`.

    Attributes:
        name: Folder of the run; a whole number is a name too.
        run_dir: Path of the folder.
    """

    node: ClassVar[str] = ""

    task: TaskSettings
    data: DataSettings
    model: dict[str, Any]
    loss: Annotated[dict[str, Any], Slot(nn.Module, LOSSES)]
    augment: Augmentation
    optim: Optim
    trainer: TrainerSettings
    logger: Annotated[TrackingSettings, Slot(TrackingSettings, ("panda.app.tracking",))]
    quantify: QuantifySettings
    engine: EngineSettings
    name: Annotated[str | int | None, accept("a plain name", is_plain_name)] = Field(
        description="it becomes a folder under runs/; quote a number with a point or an exponent"
    )
    seed: Seed
    threshold: Annotated[str | float, accept("auto or a probability between 0 and 1", _is_threshold)] = Field(
        description="a multiple of 0.001, the step of the search"
    )
    criterion: Annotated[str, accept(", ".join(CRITERIA), lambda name: name in [*CRITERIA])]
    cost_ratio: float | None
    threshold_per_provider: bool
    test_slides: bool
    colour_map: ColourMap
    resume: Text | None
    segmentation_checkpoint: Text | None
    allow_packages: Names
    debug: bool
    run_dir: Text

    @rule
    def _check_subdir(self) -> Iterator[str]:
        if fault := describe_subdir_fault():
            yield fault

    @rule
    def _check_folder(self) -> Iterator[str]:
        folder = Path(self.run_dir)
        if self.resume not in (None, AUTO) or is_unnamed(self) or not holds_run(folder):
            return
        always = is_multirun() or self.resume == AUTO
        if not (folder / "config.yaml").is_file() or (is_finished(folder) and not always):
            last = folder / "checkpoints" / "last.ckpt"
            resume = format_override(f"resume={last}")
            remedy = advise_removal(folder, "config.yaml", "take another name")
            yield (
                f"name={self.name}: {folder} holds a run already; {remedy}"
                + (f", or resume it with {resume}" if last.exists() else " (it has no checkpoint to resume from)")
            )

    def build(self, key: str, **extra: Any) -> Any:
        """Build model or loss. `extra` replaces options."""
        return build(type(self), {key: getattr(self, key), "allow_packages": self.allow_packages}, key, **extra)
