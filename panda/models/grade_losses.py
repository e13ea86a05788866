"""Losses over the labels of whole slides."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Ties = Literal["breslow", "efron"]
"""How events at the same time are compared."""


class CumulativeLoss(nn.Module):
    """Cross-entropy of the questions "is the grade above k?", averaged over k. Near misses cost less.

    This is the loss of CORAL (Cao, Mirjalili, Raschka 2020) for ordered classes. P(grade > k) is the sum of the classes
    above k, so the loss trains the `softmax` head as well as the `ordinal` one.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the scalar float32 loss of logits (B, C), C at least 2, and true classes (B,), 0 to C - 1."""
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f"logits are (B, C) of ordered classes with C at least 2, not {(*logits.shape,)}")
        logits = logits.float()
        classes = logits.shape[1]
        below = torch.stack([logits[:, : k + 1].logsumexp(dim=1) for k in range(classes - 1)], dim=1)
        above = torch.stack([logits[:, k + 1 :].logsumexp(dim=1) for k in range(classes - 1)], dim=1)
        passed = (label[:, None] > torch.arange(classes - 1, device=label.device)).float()
        return functional.binary_cross_entropy_with_logits(above - below, passed)


class CoxLoss(nn.Module):
    """Negative log partial likelihood of Cox's model, averaged over the events.

    Each event is compared with the slides of the batch that are still at risk at its time (Cox 1972). A risk set of a
    batch estimates that of all slides (Kvamme, Borgan, Scheel 2019, section 3), so larger batches give a better
    gradient. A batch without an event has a loss of 0.

    Args:
        ties: How events at the same time are compared. `breslow`: each with all at risk (Breslow 1974). `efron`: the
            number l of d events, from 0, with all at risk less l / d of these events (Efron 1977). It is closer to an
            unknown order of many events.

    Raises:
        ValueError: If `ties` is neither.
    """

    def __init__(self, ties: Ties = "breslow") -> None:
        super().__init__()
        if ties not in get_args(Ties):
            raise ValueError(f"ties is {ties!r}; give {' or '.join(get_args(Ties))}")
        self.ties = ties

    def forward(self, risk: Tensor, label: Tensor) -> Tensor:
        """Compute the scalar float32 loss of log relative hazards (B,) and labels (B, 2): time, and event 1 or 0."""
        if risk.ndim != 1 or label.shape != (len(risk), 2):
            raise ValueError(
                f"risk is (B,) and label (B, 2) of time and event, not {(*risk.shape,)} and {(*label.shape,)}"
            )
        risk = risk.float()
        time, event = label.unbind(dim=1)
        later = time[None, :] >= time[:, None]
        at_risk = risk[None, :].masked_fill(~later, -torch.inf).logsumexp(dim=1)
        if self.ties == "efron":
            tied = (time[None, :] == time[:, None]) & (event[None, :] > 0) & (event[:, None] > 0)
            before = tied.tril(diagonal=-1).sum(dim=1) / tied.sum(dim=1).clamp(min=1)
            hazards = (risk[None, :] - at_risk[:, None]).masked_fill(~tied, -torch.inf).exp().sum(dim=1)
            at_risk = at_risk + torch.log1p(-before * hazards)
        return ((at_risk - risk) * event).sum() / event.sum().clamp(min=1)
