"""Optimizer and learning-rate schedule of both tasks, as plain settings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from panda.errors import ConfigError


@dataclass(frozen=True)
class Optim:
    """Builds the optimizer and its schedule for a number of steps.

    Args:
        name: `adamw` or `sgd` (Nesterov).
        lr: Highest learning rate.
        weight_decay: Decoupled for AdamW, L2 for SGD.
        momentum: Of SGD; AdamW has its betas.
        schedule: `onecycle` (warm-up over the first 10 % of the steps, cosine down), `cosine`, or `none`.

    Raises:
        ConfigError: If a number is out of range.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Literal["onecycle", "cosine", "none"] = "onecycle"

    def __post_init__(self) -> None:
        faults = []
        if self.lr <= 0:
            faults.append(f"optim.lr={self.lr} must be above 0, for example 0.001")
        if self.weight_decay < 0:
            faults.append(f"optim.weight_decay={self.weight_decay} must not be negative")
        if not 0 <= self.momentum < 1:
            faults.append(f"optim.momentum={self.momentum} must lie in [0, 1)")
        if faults:
            raise ConfigError(faults)

    def build(self, parameters: Iterable[nn.Parameter], steps: int) -> OptimizerLRSchedulerConfig:
        """The optimizer and schedule in Lightning's form.

        Args:
            parameters: What is trained; frozen parameters are left out.
            steps: Optimizer steps of the whole run.

        Returns:
            The mapping that `configure_optimizers` returns; the schedule moves every step.
        """
        trained = [p for p in parameters if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.name == "adamw":
            optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                trained, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum, nesterov=self.momentum > 0
            )
        if self.schedule == "none":
            return {"optimizer": optimizer}
        scheduler: OneCycleLR | CosineAnnealingLR
        if self.schedule == "onecycle":
            # Two more than the run takes: the schedule may then be stepped after the last optimizer step.
            scheduler = OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps + 2, pct_start=0.1)
        else:
            scheduler = CosineAnnealingLR(optimizer, T_max=steps)
        config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}
