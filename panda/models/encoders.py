"""What all networks share: input normalization and accepted image sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panda.errors import OptionError, raise_exhaustion

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB in [0, 1] over ImageNet, which most pretrained encoders expect to be subtracted."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of RGB in [0, 1] over ImageNet."""

USUAL_SIZES = (32, 64, 96, 128, 192, 224, 256, 384, 448, 512, 768, 1024)
"""Image sizes in px that an error proposes."""


class Normalize(nn.Module):
    """Subtract the mean of each colour channel and divide by its standard deviation, for pixels in [0, 1].

    Both are options of the network, so they are not in the state dict.

    Raises:
        OptionError: If there are not three numbers each, or a standard deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        faults = [
            f"{key}={list(value)}: give three numbers, for red, green and blue"
            for key, value in (("mean", mean), ("std", std))
            if len(value) != 3
        ]
        if any(value <= 0 for value in std):
            faults.append(f"std={list(std)}: each number must be above 0")
        if faults:
            raise OptionError(faults)
        self.register_buffer("mean", torch.tensor([float(v) for v in mean]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([float(v) for v in std]).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalize RGB images in [0, 1], (..., 3, h, w), floating point.

        Raises:
            TypeError: If pixels are integers, because their range of 0 to 255 would be mistaken for very bright ones.
        """
        if not image.is_floating_point():
            raise TypeError(f"pixels are {image.dtype}: give floating point in [0, 1]")
        return (image - self.mean) / self.std


def find_size_fault(module: nn.Module, size: int, *, confirm: bool = True) -> str | None:
    """Return the error of a module for square images, (1, 3, size, size) px, or None if it accepts the size.

    Only shapes are computed (on torch's `meta` device), which needs next to no memory or time. A module may hold
    tensors that this does not reach. So `confirm` repeats a refusal with real zeros, which may take a second.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    modes = {part: part.training for part in module.modules()}
    module.eval()  # batch statistics need more than one image
    try:
        with torch.no_grad():
            try:
                shapes = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
                torch.func.functional_call(module, shapes, (torch.empty(1, 3, size, size, device="meta"),))
            except Exception:  # each library has its own class for a wrong size
                if not confirm:
                    raise
                device = next(module.parameters()).device
                module(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:
        raise_exhaustion(error)  # says nothing about the size
        return str(error) or type(error).__name__
    finally:
        for part, mode in modes.items():
            part.training = mode
    return None


def check_size(module: nn.Module, name: str, size: int, multiple: int, key: str = "patch_size") -> None:
    """Check that a module accepts square images of a side in working px.

    Args:
        module: Takes images (1, 3, size, size).
        name: Name of the network for the message.
        size: Side of a patch, working px.
        multiple: Known divisor of all accepted sizes.
        key: Name of the size in the message.

    Raises:
        OptionError: If it does not; with the size, the multiple and the nearest accepted sizes.
    """
    fault = find_size_fault(module, size) if size > 0 else "it must be above 0"
    if fault is None:
        return
    below = size // multiple * multiple
    candidates = {below, below + multiple, *USUAL_SIZES} - {size}
    valid: list[int] = []
    for candidate in sorted(candidates, key=lambda other: (abs(other - size), other)):
        if len(valid) < 2 and candidate > 0 and find_size_fault(module, candidate, confirm=False) is None:
            valid.append(candidate)
    needed = f" (a multiple of {multiple} is needed)" if multiple > 1 else ""
    remedy = f"nearest accepted sizes: {', '.join(map(str, sorted(valid)))}" if valid else "no size is accepted"
    raise OptionError(f"{key}={size}: {name} does not accept it{needed}; {remedy}. The network says: {fault}")
