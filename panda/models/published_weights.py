"""Fill an encoder with the weights that its user names."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import nn

from panda.errors import OptionError
from panda.models.encoder_cards import PUBLISHED, EncoderCard
from panda.models.weights import explain_failed_download, find_published, load_weights, offline_if_unreachable


def fill_encoder(encoder: nn.Module, card: EncoderCard, weights: str) -> list[str]:
    """Load the weights of an encoder, a file or published ones; return what was used of a file, in sentences.

    Args:
        encoder: Built by the card.
        card: Its card.
        weights: `cached`, `download`, `imagenet`, or the path of a file.

    Raises:
        OptionError: If the card has no such weights, they are not there, or they do not fit.
    """
    if fault := card.describe_weights_fault(weights):
        raise OptionError(fault)
    name = card.architecture
    if weights == "imagenet":
        try:
            with offline_if_unreachable():
                pretrained: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # hub, transport and timm have their own classes
            raise OptionError(explain_failed_download(weights, name, error)) from error
        encoder.load_state_dict(pretrained.state_dict())
        return []
    path = Path(weights)
    if weights in PUBLISHED:
        assert card.hub is not None
        path = find_published(card.hub, card.revision, gated=card.gated, download=weights == "download")
    classifier = getattr(encoder, "pretrained_cfg", {}).get("classifier") or ()
    return [load_weights(encoder, path, [classifier] if isinstance(classifier, str) else classifier)]
