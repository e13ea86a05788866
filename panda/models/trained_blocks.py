"""Which part of an encoder learns: all of it, nothing, or its last blocks."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from panda.errors import OptionError


def train_last_blocks(encoder: nn.Module, train_blocks: int) -> None:
    """Let only the last blocks of an encoder learn, with the final normalization.

    A block is a transformer block, or a stage of a convolutional network. No gradient is computed before the first
    one that learns. So the memory of a training step follows the blocks that learn.

    Args:
        encoder: A timm model.
        train_blocks: Number of blocks that learn.

    Raises:
        OptionError: If the encoder has fewer blocks.
    """
    _, *blocks = _list_blocks(encoder)
    if not 0 < train_blocks <= len(blocks):
        raise OptionError(
            f"train_blocks={train_blocks}: the encoder has {len(blocks)} blocks; give 1 to {len(blocks)}, "
            "null to train all of it, or freeze_encoder=true to train none"
        )
    encoder.requires_grad_(False)
    parameters = dict(encoder.named_parameters())
    for name in (name for block in blocks[-train_blocks:] for name in block):
        parameters[name].requires_grad_(True)


def hold_frozen(module: nn.Module) -> None:
    """Set the parts of a module that do not learn to evaluation mode, so that their batch statistics stay."""
    learns = [parameter.requires_grad for parameter in module.parameters()]
    if learns and not any(learns):
        module.eval()
        return
    for child in module.children():
        hold_frozen(child)


def _list_blocks(encoder: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of the stem and of each block, from input to output."""
    parameters = dict(encoder.named_parameters())
    found: list[list[str]] = []
    for names in group_parameters(encoder, encoder.group_matcher(coarse=True)).values():  # type: ignore[operator]
        if found and all(parameters[name].ndim < 2 for name in names):
            found[-1] += names  # a final normalization is no block
        else:
            found.append(list(names))
    return found
