"""What the encoders of all networks share: names, normalisation, weights from a file, patch sizes taken."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from panda.errors import OptionError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB in [0, 1] over ImageNet, which nearly all pretrained encoders expect to be subtracted."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of RGB in [0, 1] over ImageNet."""

USUAL_SIZES = (32, 64, 96, 128, 192, 224, 256, 384, 448, 512, 768, 1024)


class Normalize(nn.Module):
    """Take each colour channel's mean away and divide by its standard deviation.

    The two are not part of the state dict: they belong to how the network was built, and are kept with that.

    Args:
        mean: Of R, G and B, for pixels in [0, 1].
        std: The same, above 0.

    Raises:
        OptionError: Not three numbers each, or a standard deviation of 0 or less.
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
        """Normalise.

        Args:
            image: (..., 3, h, w) floating point, in [0, 1].

        Returns:
            The same shape, about zero mean and unit variance.

        Raises:
            TypeError: Integer pixels: they run to 255 and would pass for very bright ones.
        """
        if not image.is_floating_point():
            raise TypeError(f"pixels are {image.dtype}: give floating point in [0, 1]")
        return (image - self.mean) / self.std


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a local file without running code from it.

    Args:
        path: A `.safetensors` file, or one written by `torch.save`. A dict under the single key `state_dict`
            (as in a Lightning checkpoint) is unwrapped.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        OptionError: The file is missing, is not such a file, or holds something else than named tensors.
    """
    key = f"encoder_weights={path}"
    if not path.is_file():
        raise OptionError(f"{key}: no such file; give null, a known name, or a state dict's path")
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
        raise OptionError(f"{key}: holds {type(state).__name__}, not a dict of named tensors")
    return dict(state)


def load_weights(module: nn.Module, path: Path, ignored: Collection[str] = ()) -> None:
    """Load a file of weights into a module, every one of them.

    Args:
        module: What takes the weights.
        path: See `read_weights`.
        ignored: Names of submodules (such as a classifier) which the file may have and the module has not.

    Raises:
        OptionError: The file cannot be read, or keys or shapes differ; the first of each are named.
    """
    prefixes = tuple(f"{name}." for name in ignored)
    own = module.state_dict()
    state = {name: value for name, value in read_weights(path).items() if name in own or not name.startswith(prefixes)}
    try:
        module.load_state_dict(dict(state))  # a copy: some encoders of smp take keys out of it
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


def size_fault(module: nn.Module, size: int, *, confirm: bool = True) -> str | None:
    """Say why a module cannot take square images of a size.

    Only shapes are followed (torch's `meta` device): it takes no memory for pixels and next to no time. As
    a module may hold tensors which this does not reach, a refusal can be confirmed on real zeros.

    Args:
        module: Takes (1, 3, size, size).
        size: In pixels.
        confirm: Whether a refusal is put to the real network, which for a large size takes a second.

    Returns:
        The network's own words, or None where it takes them.
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
        return str(error) or type(error).__name__
    finally:
        for part, mode in modes.items():
            part.training = mode
    return None


def require_size(module: nn.Module, name: str, size: int, multiple: int, key: str = "patch_size") -> None:
    """Refuse a patch size that a module does not take.

    Args:
        module: Takes (1, 3, size, size).
        name: Of the network, for the message.
        size: Side of a patch in working pixels.
        multiple: What the side must be a multiple of, as far as known.
        key: What the size is called in the message.

    Raises:
        OptionError: With the size, the multiple and the nearest sizes that are taken.
    """
    fault = size_fault(module, size) if size > 0 else "it must be above 0"
    if fault is None:
        return
    below = size // multiple * multiple
    candidates = {below, below + multiple, *USUAL_SIZES} - {size}
    valid: list[int] = []
    for candidate in sorted(candidates, key=lambda other: (abs(other - size), other)):
        if len(valid) < 2 and candidate > 0 and size_fault(module, candidate, confirm=False) is None:
            valid.append(candidate)
    needed = f" (a multiple of {multiple} is needed)" if multiple > 1 else ""
    remedy = f"the nearest that are taken: {', '.join(map(str, sorted(valid)))}" if valid else "none is taken"
    raise OptionError(f"{key}={size}: {name} does not take it{needed}; {remedy}. The network says: {fault}")
