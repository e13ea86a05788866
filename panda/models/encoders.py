"""What all networks share: input normalization, weights from files and downloads, accepted image sizes."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
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


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, or one under the key `state_dict`, onto the CPU without running code from the file."""
    key = f"encoder_weights={path}"
    if not path.is_file():
        raise OptionError(f"{key}: no such file; give null, a known name, or the path of a state dict")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise OptionError(
            f"{key}: cannot be read as weights ({type(error).__name__}: {str(error)[:200]}); give a file "
            "written by torch.save(module.state_dict(), path), or .safetensors"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise OptionError(f"{key}: holds {type(state).__name__}, not a dict of named tensors; give a state dict")
    return dict(state)


def load_weights(module: nn.Module, path: Path, ignored: Collection[str] = ()) -> None:
    """Load a file of weights into a module. Every weight of the module must be in the file.

    Args:
        module: Takes the weights.
        path: A state dict, `.safetensors` or written by `torch.save`.
        ignored: Submodules, such as a classifier, that the file may have and the module has not.

    Raises:
        OptionError: If the file cannot be read, or keys or shapes differ; the first of each are named.
    """
    prefixes = tuple(f"{name}." for name in ignored)
    own = module.state_dict()
    state = {name: value for name, value in _read_weights(path).items() if name in own or not name.startswith(prefixes)}
    try:
        module.load_state_dict(dict(state))  # a copy, because some encoders of smp remove keys from it
    except RuntimeError as error:
        groups = {
            "missing in the file": [name for name in own if name not in state],
            "not in the network": [name for name in state if name not in own],
            "of another shape": [
                f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
                for name, value in own.items()
                if name in state and state[name].shape != value.shape
            ],
        }
        report = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
            for what, names in groups.items()
            if names
        )
        raise OptionError(
            f"encoder_weights={path}: does not fit {type(module).__name__} ({report}); give the weights of "
            "the same encoder"
        ) from error


def explain_failed_download(weights: str, encoder: str, error: Exception) -> str:
    """Return the message for pretrained weights that could not be downloaded."""
    return (
        f"encoder_weights={weights}: the weights of {encoder} could not be downloaded "
        f"({type(error).__name__}: {str(error)[:200]}); without a network connection give "
        "model.encoder_weights=null or the path of a local state dict"
    )


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
