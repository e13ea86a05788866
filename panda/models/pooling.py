"""The poolings of bags of tiles by name, and heads that classify the pooled features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from panda.errors import OptionError
from panda.models.bag_pooling import (
    AttentionPooling,
    BagPooling,
    GatedAttentionPooling,
    MaxPooling,
    MeanPooling,
)
from panda.models.clam_pooling import ClamPooling
from panda.models.dsmil_pooling import DsmilPooling
from panda.models.torchmil_pooling import TorchmilPooling
from panda.models.transformer_pooling import TransformerPooling
from panda.models.transmil_pooling import TransmilPooling
from panda.stored import Plain, list_faults

Pooling = Literal["gated", "attention", "mean", "max", "transformer", "clam_sb", "dsmil", "transmil", "torchmil"]
Head = Literal["softmax", "ordinal"]

_LEAST_STEP = 1e-4
"""Least distance of two thresholds of an ordinal head: without one, the class between has a probability of 0."""

POOLINGS: Mapping[Pooling, type[BagPooling]] = MappingProxyType(
    {
        "gated": GatedAttentionPooling,
        "attention": AttentionPooling,
        "mean": MeanPooling,
        "max": MaxPooling,
        "transformer": TransformerPooling,
        "clam_sb": ClamPooling,
        "dsmil": DsmilPooling,
        "transmil": TransmilPooling,
        "torchmil": TorchmilPooling,
    }
)
"""All poolings; `Pooling` lists the same names, which configuration checks read."""


def parse_options(pooling: Pooling, hidden: int, head: Head, data: Mapping[str, Any] | None) -> Plain:
    """Read the options of a pooling from plain data, and check that width and head fit it.

    Raises:
        OptionError: With all faults.
    """
    kind, faults = POOLINGS[pooling], []
    if hidden % kind.hidden_multiple:
        faults.append(f"hidden={hidden}: must be a multiple of {kind.hidden_multiple} for pooling={pooling}")
    if kind.classifies and head != "softmax":
        faults.append(f"head={head}: pooling={pooling} classifies itself; give head=softmax")
    try:
        options = kind.Options.model_validate(data or {})
    except ValidationError as error:
        faults += [f"pooling_options.{fault} for pooling={pooling}" for fault in list_faults(error)]
    if faults:
        raise OptionError(faults)
    return options


class OrdinalHead(nn.Module):
    """Classify by one score and ordered thresholds on it, which cannot cross. There are at least two classes.

    This is the cumulative logit model (McCullagh 1980): P(class > k) = sigm(wᵀz + bₖ) with b₀ > b₁ > …. CORAL (Cao,
    Mirjalili, Raschka 2020) uses it too, but keeps its thresholds in order only at the optimum. The output is the log
    probability of each class, which serves as logits.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)
        # All classes have the same probability at first.
        above = torch.logit(torch.arange(classes - 1, 0, -1) / classes)
        self.first = nn.Parameter(above[:1].clone())
        self.steps = nn.Parameter(torch.log(torch.expm1(above[:-1] - above[1:] - _LEAST_STEP)))

    def forward(self, bags: Tensor) -> Tensor:
        """Compute log probabilities (B, C), float32, of features (B, `features`)."""
        # The least step is added, because a clamped value has no gradient and two thresholds would stay together.
        steps = nn.functional.softplus(self.steps.float()) + _LEAST_STEP
        above = self.first.float() - nn.functional.pad(steps.cumsum(0), (1, 0))
        logits = self.score(bags).float() + above
        greater, less = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        # sigm(a) - sigm(b) = sigm(a) sigm(-b) (1 - exp(b - a))
        between = greater[:, :-1] + less[:, 1:] + torch.log(-torch.expm1(-steps))
        return torch.cat([less[:, :1], between, greater[:, -1:]], dim=1)


HEADS: Mapping[Head, Callable[[int, int], nn.Module]] = MappingProxyType({"softmax": nn.Linear, "ordinal": OrdinalHead})
"""All heads; each takes the number of features and of classes. `Head` lists the same names."""
