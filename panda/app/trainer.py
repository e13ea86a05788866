"""Settings of Lightning's trainer: the options that a user may choose."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pydantic import Field
from pytorch_lightning.callbacks import ModelCheckpoint

from panda.app.rank_environment import RankEnvironment, SpawnEnvironment
from panda.app.ranks import find_launch, is_joint
from panda.settings import Count, Settings, accept, is_number, rule
from panda.tasks.checkpoint import AtomicCheckpointIO

Batches = Annotated[
    int | float | None,
    accept(
        "a share above 0 and at most 1.0, or at least 1 batch",
        lambda value: value is None or (is_number(value) and value > 0 and (isinstance(value, int) or value <= 1)),
    ),
]

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]


class TrainerSettings(Settings):
    """Options of `pytorch_lightning.Trainer`, which documents them. A run sets the others itself.

    Attributes:
        precision: `auto` is bf16-mixed on a CUDA device that computes in it, with TF32 for what stays in fp32, and
            32-true elsewhere.
        ema: Decay of an exponential moving average of the weights, which is validated, stored and scored instead of
            the weights of the last step; None averages nothing.
    """

    node: ClassVar[str] = "trainer"

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    strategy: Literal[
        "auto",
        "ddp_spawn",
        "ddp_spawn_find_unused_parameters_true",
        "ddp_spawn_find_unused_parameters_false",
        "ddp",
        "ddp_find_unused_parameters_true",
        "ddp_find_unused_parameters_false",
    ] = Field(default="auto", description="auto is for one device, the others for several")
    devices: int = Field(default=1, ge=1, description="give a number, because training depends on it")
    num_nodes: int = Field(default=1, ge=1, description="machines, each with as many devices")
    precision: Precision | Literal["auto"] = "32-true"
    ema: float | None = Field(default=None, gt=0, lt=1, description="null averages nothing")
    max_epochs: Count | None = None
    min_epochs: Count | None = None
    max_steps: Literal[-1] = Field(
        default=-1,
        description="Lightning cannot resume a run that counts steps; give trainer.max_epochs, and "
        "trainer.limit_train_batches for short epochs",
    )
    max_time: str | None = None
    limit_train_batches: Batches = None
    limit_val_batches: Batches = None
    val_check_interval: Batches = None
    check_val_every_n_epoch: Count = 1
    log_every_n_steps: int | None = Field(default=None, ge=0)
    accumulate_grad_batches: Count = 1
    gradient_clip_val: float | None = Field(default=None, ge=0, description="null clips nothing")
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    sync_batchnorm: bool = False
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced"] | None = None
    enable_progress_bar: bool = True

    @rule
    def _check_validation(self) -> Iterator[str]:
        if self.max_epochs is not None and self.check_val_every_n_epoch > self.max_epochs:
            yield (
                f"{self.setting('check_val_every_n_epoch')} must be from 1 to max_epochs: validation picks the epoch"
            )

    @rule
    def _check_average(self) -> Iterator[str]:
        if self.ema is not None and self.precision not in ("auto", "32-true", "bf16-mixed", "16-mixed"):
            yield (
                f"{self.setting('ema')} averages weights in fp32, and {self.setting('precision')} has none: give "
                "trainer.precision=bf16-mixed or 32-true"
            )

    @rule
    def _check_devices(self) -> Iterator[str]:
        cores = os.cpu_count() or 1
        if self.devices > 1 and self.strategy == "auto":
            yield f"{self.setting('devices')} needs trainer=ddp, which starts one process per device"
        elif self.num_nodes > 1 and not is_joint(self.strategy):
            yield f"{self.setting('num_nodes')} needs trainer=ddp_slurm, whose processes srun or torchrun starts"
        elif self.accelerator == "cpu" and self.devices > cores:
            yield f"{self.setting('devices')}: this machine has {cores} cores; use at most as many processes"

    @rule
    def _check_machine(self) -> Iterator[str]:
        """Let Lightning refuse what this machine has not, for example a GPU, before the run has a folder."""
        try:
            self.build(logger=False, callbacks=[ModelCheckpoint()])
        except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
            yield f"trainer: Lightning refuses these options: {error}"

    @property
    def is_joint(self) -> bool:
        """Whether the processes are started by srun or torchrun."""
        return is_joint(self.strategy)

    @property
    def shows_bar(self) -> bool:
        """Whether the training has a progress bar, which a batch log does not get."""
        return self.enable_progress_bar and sys.stdout.isatty()

    @property
    def machine_precision(self) -> Precision:
        """The precision that `auto` means on this machine, otherwise the given one."""
        if self.precision != "auto":
            return self.precision
        cuda = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return "bf16-mixed" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"

    def build(self, **given: Any) -> pl.Trainer:
        """Build the trainer, with the options that a run sets itself."""
        options = {name: getattr(self, name) for name in type(self).model_fields if name != "ema"}
        options |= {"precision": self.machine_precision, "enable_progress_bar": self.shows_bar}
        environment = RankEnvironment(find_launch()) if is_joint(self.strategy) else SpawnEnvironment()
        environment.set_global_rank(environment.global_rank())
        return pl.Trainer(
            **options,
            plugins=[AtomicCheckpointIO(), environment],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders split an epoch themselves
            enable_model_summary=False,
            **given,
        )
