"""CLAM with a single attention branch (Lu et al. 2021). See `bag_pooling` for shapes."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from panda.errors import OptionError
from panda.models.bag_pooling import BagPooling, GatedAttentionPooling
from panda.stored import Plain

_MARGIN = 1.0


class ClamOptions(Plain, frozen=True):
    """Options of `ClamPooling`.

    Attributes:
        instance_weight: Share of the instance loss in the training loss; the loss of the bags has the rest.
        instance_tiles: Number of tiles with the most attention, and of those with the least, that it labels.
        subtyping: Whether the classes exclude each other, so that the most attended tiles show no other class.
        dropout: Of the projected tiles and inside of the attention.
    """

    instance_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3
    instance_tiles: PositiveInt = 8
    subtyping: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25


class ClamPooling(BagPooling):
    """Project the tiles to twice the hidden width, and average them with gated attention.

    In training, each class has a classifier of tiles (Lu et al. 2021, "Data-efficient and weakly supervised
    computational pathology on whole-slide images", Methods, instance-level clustering). For the class of the bag, the
    tiles with the most attention are positive and those with the least are negative. With `subtyping` the tiles with
    the most attention are negative for all other classes, and the loss is the mean over the classes.

    The loss of a tile is their smooth support vector machine. With two classes and a temperature of 1 it is
    log(1 + exp(1 - s)) for the score s of the right class minus that of the wrong one (Berrada et al. 2018). At most
    half of the tiles of a bag count as positive, because the authors' program fails for bags of fewer tiles.

    Raises:
        OptionError: If tiles shall be labelled though the output is no class but a number.
    """

    Options = ClamOptions

    def __init__(self, features: int, hidden: int, classes: int, options: ClamOptions) -> None:
        super().__init__(features, hidden, classes, options)
        if classes == 1 and options.instance_weight:
            raise OptionError(
                f"pooling_options.instance_weight={options.instance_weight}: tiles are labelled by the class of their "
                "slide, which has none here; give 0"
            )
        self.features = 2 * hidden
        self.options = options
        self.project = nn.Sequential(nn.Linear(features, self.features), nn.ReLU(), nn.Dropout(options.dropout))
        self.gated = GatedAttentionPooling(self.features, hidden, classes, Plain(), options.dropout)
        self.instances = nn.Linear(self.features, 2 * classes) if options.instance_weight else None

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`."""
        found: tuple[Tensor, Tensor] = self.gated(self.project(feats), mask)
        return found

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`."""
        return self.gated.pool_without_each(self.project(feats))

    def add_auxiliary_loss(self, loss: Tensor, feats: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        """See `BagPooling.add_auxiliary_loss`."""
        if self.instances is None:
            return loss
        tiles = self.project(feats)
        attention = self.gated.attention(tiles, mask)
        bags = zip(tiles, attention, mask, label, strict=True)
        terms = [self._compute_instance_loss(bag[real], weights[real], own) for bag, weights, real, own in bags]
        share = self.options.instance_weight
        return (1 - share) * loss + share * torch.stack(terms).mean()

    def _compute_instance_loss(self, tiles: Tensor, attention: Tensor, label: Tensor) -> Tensor:
        """Compute the loss of the tiles of one bag, (K, `features`), whose class is `label`."""
        assert self.instances is not None
        count = max(1, min(self.options.instance_tiles, len(tiles) // 2))
        order = attention.argsort(descending=True)
        scores = self.instances(tiles[torch.cat([order[:count], order[-count:]])]).float()
        most, least = scores.reshape(2, count, -1, 2).diff(dim=-1).squeeze(-1)  # (count, C): positive minus negative
        loss = nn.functional.softplus
        inside = (loss(_MARGIN - most) + loss(_MARGIN + least)).mean(0) / 2
        if not self.options.subtyping:
            return inside[label]
        own = torch.arange(len(inside), device=label.device) == label
        return torch.where(own, inside, loss(_MARGIN + most).mean(0)).mean()
