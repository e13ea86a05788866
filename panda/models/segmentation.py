"""A binary segmentation network: any decoder over any encoder of segmentation-models-pytorch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch import Tensor, nn

from panda.errors import OptionError, suggest
from panda.models.encoders import IMAGENET_MEAN, IMAGENET_STD, Normalize, load_weights, require_size

ARCHITECTURES: Mapping[str, type[nn.Module]] = dict(smp.MODEL_ARCHITECTURES_MAPPING)
"""Lower-case name to class: all that segmentation-models-pytorch has."""

# Set by Segmenter: other values would break its contract of one channel of logits.
_FIXED = frozenset(
    {
        "self",
        "kwargs",
        "encoder_name",
        "encoder_weights",
        "in_channels",
        "classes",
        "activation",
        "aux_params",
    }
)


class Segmenter(nn.Module):
    """Cancer or not, for each pixel.

    Normalisation is part of the network, so training and inference cannot differ in it. In training mode
    DeepLabV3, DeepLabV3Plus and PSPNet pool the whole image before batch normalisation and so need at least
    two images in a batch.

    Args:
        architecture: A class name of segmentation-models-pytorch in any case: Unet, UnetPlusPlus, MAnet,
            Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus, PAN, UPerNet, Segformer, DPT.
        encoder_name: One of its encoders, or `tu-` and the name of a timm model.
        encoder_weights: None for random ones; "imagenet" or another set the encoder has, which is
            downloaded; or the path of a local state dict of this encoder.
        mean: Of red, green and blue for pixels in [0, 1], taken away first.
        std: What is then divided by.
        **options: Further arguments of the architecture's class, such as `decoder_channels`.

    Raises:
        OptionError: An architecture, encoder or option that does not exist (near names are given), options
            that do not go together, or weights that cannot be had.

    Attributes:
        options: Plain data that rebuilds the architecture: `Segmenter(**options)` downloads no weights.
    """

    def __init__(
        self,
        architecture: str = "Unet",
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **options: Any,
    ) -> None:
        super().__init__()
        options = {key: _plain(key, value) for key, value in options.items()}
        faults = [*_architecture_faults(architecture, options), *_encoder_faults(encoder_name)]
        if faults:
            raise OptionError(faults)
        kind = ARCHITECTURES[architecture.lower()]
        self.options: dict[str, Any] = {
            "architecture": kind.__name__,
            "encoder_name": encoder_name,
            "encoder_weights": None,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            **options,
        }
        self.normalize = Normalize(mean, std)
        self.network = _build(kind, encoder_name, options)
        if encoder_weights is not None:
            self._load_encoder(kind, encoder_weights, options)

    def _load_encoder(self, kind: type[nn.Module], weights: str, options: Mapping[str, Any]) -> None:
        name = self.options["encoder_name"]
        encoder = self.encoder
        named = weight_names(name)
        if weights not in named:
            if not Path(weights).exists() and Path(weights).suffix == "":
                raise OptionError(
                    f"encoder_weights={weights}: neither a file nor a set of weights of {name}"
                    f"{suggest(weights, named)}; null starts from random weights"
                )
            load_weights(encoder, Path(weights), ignored=("fc", "classifier", "head"))
            return
        try:
            # The network itself was built without weights, so that what fails here is the download.
            given = kind(encoder_name=name, encoder_weights=True if name.startswith("tu-") else weights, **options)
        except Exception as error:  # the hub's client, its transport and timm each have their own
            raise OptionError(
                f"encoder_weights={weights}: the weights of {name} could not be had "
                f"({type(error).__name__}: {str(error)[:200]}); where there is no network give "
                "model.encoder_weights=null or the path of a local state dict"
            ) from error
        encoder.load_state_dict(given.encoder.state_dict())  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        """Score each pixel.

        Args:
            image: (N, 3, h, w) floating point RGB in [0, 1]; h and w multiples of `output_stride`.

        Returns:
            (N, 1, h, w) logits; their sigmoid is the probability of cancer.

        Raises:
            TypeError: Integer pixels.
            RuntimeError: A size that the network does not take; see `check_patch_size`.
            ValueError: Options (`upsampling`, `encoder_depth`) under which the output is of another size.
        """
        logits: Tensor = self.network(self.normalize(image))
        if logits.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"{self.options['architecture']} gives {tuple(logits.shape[-2:])} for an image of "
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
    def output_stride(self) -> int:
        """What a patch's side must be a multiple of, in px; 1 where the decoder takes any size (Unet)."""
        if not getattr(self.network, "requires_divisible_input_shape", True):
            return 1
        return int(self.encoder.output_stride)  # type: ignore[arg-type]

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch of one image where the network's batch normalisation pools the whole image first.

        Args:
            batch_size: Patches a batch.

        Raises:
            OptionError: One patch a batch is too few for this architecture.
        """
        if batch_size < 2 and self.options["architecture"] in ("DeepLabV3", "DeepLabV3Plus", "PSPNet"):
            raise OptionError(
                f"batch_size={batch_size}: {self.options['architecture']} normalizes over a pooled image and needs "
                "at least 2"
            )

    def check_patch_size(self, patch_size: int) -> None:
        """Refuse a patch size that the network does not take, before anything slow begins.

        Args:
            patch_size: Side of the square patch in working px.

        Raises:
            OptionError: With the size, the stride and the nearest sizes that are taken.
        """
        name = f"{self.options['architecture']} over {self.options['encoder_name']}"
        require_size(self, name, patch_size, self.output_stride)

    @staticmethod
    def wrapped_options(options: Mapping[str, Any]) -> list[str]:
        """Return the names of the options that the architecture's class takes.

        Args:
            options: Arguments of this class. If they name no known architecture, their own names are returned, because
                the constructor refuses them.
        """
        kind = ARCHITECTURES.get(str(options.get("architecture", "Unet")).lower())
        return list(options) if kind is None else _option_names(kind)


def weight_names(encoder_name: str) -> list[str]:
    """Name the sets of pretrained weights that can be downloaded for an encoder.

    Args:
        encoder_name: As for `Segmenter`.

    Returns:
        Names for `encoder_weights`; "imagenet" nearly always. For `tu-` encoders it means timm's default set.
    """
    if encoder_name in smp_encoders:
        return list(smp_encoders[encoder_name]["pretrained_settings"])
    return ["imagenet"]


def _build(kind: type[nn.Module], encoder_name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return kind(encoder_name=encoder_name, encoder_weights=None, **options)
    except Exception as error:  # smp and timm raise five classes for options that do not go together
        raise OptionError(
            f"architecture={kind.__name__} with encoder_name={encoder_name} and options {dict(options)} "
            f"cannot be built ({type(error).__name__}: {error}); take another encoder (resnet34 and efficientnet-b3 "
            "go with every decoder but DPT) or change the option"
        ) from error


def _architecture_faults(architecture: str, options: Mapping[str, Any]) -> list[str]:
    kind = ARCHITECTURES.get(architecture.lower())
    if kind is None:
        names = [known.__name__ for known in ARCHITECTURES.values()]
        return [f"architecture={architecture}: there is none of this name{suggest(architecture, names)}"]
    known = _option_names(kind)
    return [
        f"{key}={options[key]}: {kind.__name__} has no such option{suggest(key, known)}"
        for key in options
        if key not in known
    ]


def _option_names(kind: type[nn.Module]) -> list[str]:
    # smp passes unknown names to a timm encoder and drops them for its own encoders, so that only named ones count.
    return [key for key in inspect.signature(kind.__init__).parameters if key not in _FIXED]


def _encoder_faults(encoder_name: str) -> list[str]:
    if encoder_name.startswith("tu-"):
        if timm.is_model(encoder_name.removeprefix("tu-")):
            return []
        known = [f"tu-{name}" for name in timm.list_models()]
    else:
        if encoder_name in smp_encoders:
            return []
        known = list(smp_encoders)
    return [
        f"encoder_name={encoder_name}: there is no such encoder{suggest(encoder_name, known)}; models of timm "
        "are asked for as tu-NAME"
    ]


def _plain(key: str, value: Any) -> Any:
    """Turn lists and dicts of any class (those of a configuration too) into Python's own."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(key, item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(key, item) for item in value]
    raise OptionError(f"{key}={value!r}: give text, numbers, lists or null, not {type(value).__name__}")
