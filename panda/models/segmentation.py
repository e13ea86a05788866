"""A segmentation network: any decoder over any encoder of segmentation-models-pytorch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from panda.errors import OptionError, suggest
from panda.models.encoders import IMAGENET_MEAN, IMAGENET_STD, Normalize, check_size
from panda.models.weights import explain_failed_download, load_weights, offline_if_unreachable

ARCHITECTURES: Mapping[str, type[nn.Module]] = dict(smp.MODEL_ARCHITECTURES_MAPPING)
"""Lower-case name to class, for all networks of segmentation-models-pytorch."""

_NORMALIZE_POOLED_IMAGE = frozenset({"DeepLabV3", "DeepLabV3Plus", "PSPNet"})
"""Architectures whose batch normalization needs two images, because it follows a pooling of the whole image."""

_TIMM_NAMES = {
    "xception": "legacy_xception",
    "inceptionv4": "inception_v4",
    "inceptionresnetv2": "inception_resnet_v2",
}
"""timm's names of encoders of smp that it calls otherwise. Both have the same published weights."""

# Segmenter sets these options: other values would break its contract of logits.
_FIXED = frozenset(
    {"self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
)


class Segmenter(nn.Module):
    """A network that scores each pixel for cancer, or for each of some classes.

    Input normalization is part of the network, so training and inference cannot differ in it.

    Args:
        architecture: A class of segmentation-models-pytorch, in upper or lower case, for example Unet or DeepLabV3.
        encoder_name: One of its encoders, or `tu-` and the name of a timm model.
        encoder_weights: None for random weights; "imagenet" or another set of the encoder, which is downloaded; or
            the path of a local state dict of the encoder.
        mean: Mean of R, G and B, for pixels in [0, 1]. None is the mean that the encoder was trained with, or that of
            ImageNet for random weights.
        std: Standard deviation of R, G and B; None as for `mean`.
        channels: Channels of the logits, see `panda.models.probabilities`.
        **options: Further arguments of the architecture's class, such as `decoder_channels`.

    Raises:
        OptionError: If an architecture, encoder, option or weights do not exist, or if options do not fit together.

    Attributes:
        options: Plain data that rebuilds the architecture: `Segmenter(**options)` downloads no weights.
        notes: What was used of a file of weights, in sentences.
    """

    def __init__(
        self,
        architecture: str = "Unet",
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        channels: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        options = {key: _to_plain(key, value) for key, value in options.items()}
        faults = [*_find_architecture_faults(architecture, options), *_find_encoder_faults(encoder_name)]
        if faults:
            raise OptionError(faults)
        kind = ARCHITECTURES[architecture.lower()]
        own_mean, own_std = find_normalization(encoder_name, encoder_weights)
        mean = own_mean if mean is None else mean
        std = own_std if std is None else std
        self.options: dict[str, Any] = {
            "architecture": kind.__name__,
            "encoder_name": encoder_name,
            "encoder_weights": None,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "channels": channels,
            **options,
        }
        self.notes: list[str] = []
        self.normalize = Normalize(mean, std)
        self.network = _build(kind, encoder_name, channels, options)
        if encoder_weights is not None:
            self._load_encoder(kind, encoder_weights, options)

    def _load_encoder(self, kind: type[nn.Module], weights: str, options: Mapping[str, Any]) -> None:
        name = self.options["encoder_name"]
        known = list_weights(name)
        if weights not in known:
            if not Path(weights).exists() and Path(weights).suffix == "":
                raise OptionError(
                    f"encoder_weights={weights}: neither a file nor a set of weights of {name}"
                    f"{suggest(weights, known)}; null starts from random weights"
                )
            self.notes.append(load_weights(self.encoder, Path(weights), ignored=_list_unneeded(name)))
            return
        try:
            # The network itself was built before, so a failure here is one of the download.
            with offline_if_unreachable():
                source = kind(encoder_name=name, encoder_weights=True if name.startswith("tu-") else weights, **options)
        except Exception as error:  # hub, transport and timm have their own classes
            raise OptionError(explain_failed_download(weights, name, error)) from error
        self.encoder.load_state_dict(source.encoder.state_dict())  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, (N, channels, h, w), of images.

        Args:
            image: RGB in [0, 1], (N, 3, h, w), floating point; h and w are multiples of `output_stride`.

        Raises:
            RuntimeError: If the network does not accept the size, see `check_patch_size`.
            ValueError: If options (`upsampling`, `encoder_depth`) give an output of another size.
        """
        logits: Tensor = self.network(self.normalize(image))
        if logits.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"{type(self.network).__name__} gives {tuple(logits.shape[-2:])} for an image of "
                f"{tuple(image.shape[-2:])}: let the options upsampling, encoder_depth and "
                "encoder_output_stride agree"
            )
        return logits

    @property
    def encoder(self) -> nn.Module:
        """The encoder, as segmentation-models-pytorch built it."""
        encoder: nn.Module = self.network.encoder  # type: ignore[assignment]
        return encoder

    @property
    def name(self) -> str:
        """Name of the network for messages."""
        return f"{self.options['architecture']} over {self.encoder_name}"

    @property
    def encoder_name(self) -> str:
        """Name of the encoder in its library."""
        return str(self.options["encoder_name"])

    @property
    def output_stride(self) -> int:
        """Divisor of all accepted patch sizes, px; 1 if the decoder accepts any size (Unet)."""
        if not getattr(self.network, "requires_divisible_input_shape", True):
            return 1
        return int(self.encoder.output_stride)  # type: ignore[arg-type]

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch of one patch if the architecture normalizes over a pooled image."""
        name = type(self.network).__name__
        if batch_size < 2 and name in _NORMALIZE_POOLED_IMAGE:
            raise OptionError(f"batch_size={batch_size}: {name} normalizes over a pooled image and needs at least 2")

    def check_patch_size(self, patch_size: int) -> None:
        """Check that the network accepts square patches of a side in working px, see `check_size`."""
        check_size(self, self.name, patch_size, self.output_stride)

    @staticmethod
    def list_wrapped_options(options: Mapping[str, Any]) -> list[str]:
        """Return the options of the architecture's class; the given names if there is no such class."""
        kind = ARCHITECTURES.get(str(options.get("architecture", "Unet")).lower())
        return list(options) if kind is None else _list_options(kind)


def list_weights(encoder_name: str) -> list[str]:
    """Return the names of an encoder's pretrained weights; for `tu-` encoders `imagenet` means timm's default ones."""
    return list(smp_encoders[encoder_name]["pretrained_settings"]) if encoder_name in smp_encoders else ["imagenet"]


def find_normalization(encoder_name: str, weights: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of RGB in [0, 1] that an encoder was trained with; ImageNet's if unknown.

    Args:
        encoder_name: One of smp's encoders, or `tu-` and the name of a timm model.
        weights: A set of weights or a file, which is taken as one of the usual set; None for random weights.
    """
    if weights == "advprop":  # of EfficientNet
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    name = _TIMM_NAMES.get(encoder_name, encoder_name.removeprefix("tu-").removeprefix("timm-"))
    if weights is None or not timm.is_model(name):
        return IMAGENET_MEAN, IMAGENET_STD
    config: Any = timm.get_pretrained_cfg(name)
    return config.mean, config.std


def _list_unneeded(encoder_name: str) -> list[str]:
    """Return the names of weights, or of submodules, that a file of an encoder has and the encoder has not."""
    if not encoder_name.startswith("tu-"):
        return ["fc", "classifier", "head", "classif", "pre_logits"]
    name = encoder_name.removeprefix("tu-")
    try:
        with torch.device("meta"):
            whole = timm.create_model(name)
    except Exception:  # some compute numbers from their tensors
        whole = timm.create_model(name)
    return list(whole.state_dict())


def _build(kind: type[nn.Module], encoder_name: str, channels: int, options: Mapping[str, Any]) -> nn.Module:
    try:
        return kind(encoder_name=encoder_name, encoder_weights=None, classes=channels, **options)
    except Exception as error:  # smp and timm raise five classes for options that do not fit together
        raise OptionError(
            f"architecture={kind.__name__} with encoder_name={encoder_name} and options {dict(options)} "
            f"cannot be built ({type(error).__name__}: {error}); take another encoder (resnet34 and efficientnet-b3 "
            "work with every decoder except DPT) or change the option"
        ) from error


def _find_architecture_faults(architecture: str, options: Mapping[str, Any]) -> list[str]:
    kind = ARCHITECTURES.get(architecture.lower())
    if kind is None:
        names = [known.__name__ for known in ARCHITECTURES.values()]
        return [f"architecture={architecture}: there is no such architecture{suggest(architecture, names)}"]
    known = _list_options(kind)
    return [
        f"{key}={options[key]}: {kind.__name__} has no such option{suggest(key, known)}"
        for key in options
        if key not in known
    ]


def _list_options(kind: type[nn.Module]) -> list[str]:
    # smp passes unknown names to a timm encoder and drops them for its own encoders, so only named ones count.
    return [key for key in inspect.signature(kind.__init__).parameters if key not in _FIXED]


def _find_encoder_faults(encoder_name: str) -> list[str]:
    if encoder_name.startswith("tu-"):
        if timm.is_model(encoder_name.removeprefix("tu-")):
            return []
        known = [f"tu-{name}" for name in timm.list_models()]
    else:
        if encoder_name in smp_encoders:
            return []
        known = list(smp_encoders)
    return [
        f"encoder_name={encoder_name}: there is no such encoder{suggest(encoder_name, known)}; for a timm model give "
        "tu-NAME"
    ]


def _to_plain(key: str, value: Any) -> Any:
    """Turn lists and dicts of any class, for example of a configuration, into Python's own."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _to_plain(key, item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_to_plain(key, item) for item in value]
    raise OptionError(f"{key}={value!r}: give text, numbers, lists or null, not {type(value).__name__}")
