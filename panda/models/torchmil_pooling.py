"""Poolings of torchmil, an optional library. See `bag_pooling` for shapes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from panda.errors import OptionError, suggest
from panda.models.bag_pooling import GroupedPooling, scale_signed
from panda.stored import Plain

_CLASSIFIERS = MappingProxyType({"ABMIL": "classifier", "TransformerABMIL": "last_layer", "TransMIL": "classifier"})
"""Models that are built, and the name of the last layer of each."""
_ADJACENCY = "needs the adjacency of tiles, which bags do not have"
_GRAPHS = (
    *("SmABMIL", "SmTransformerABMIL", "ProbSmoothABMIL", "SmoothABMIL", "TransformerProbSmoothABMIL"),
    *("CAMIL", "DeepGraphSurv", "GTP", "PatchGCN"),
)
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_GRAPHS, _ADJACENCY),
        "SETMIL": "needs the coordinates of tiles, which the network does not get",
        "VAEABMIL": "needs an autoencoder of its own in place of features",
        "IIBMIL": "learns prototypes between the steps of training, outside of its loss",
        "CLAM_SB": "pairs, in its instance loss, each tile with the labels of all; give model=mil_clam_sb",
        "DSMIL": "learns its critical tile by a loss of its own, for two classes; give model=mil_dsmil",
        "DTFDMIL": "groups the tiles at random in inference too, so that the grade of a slide changes",
    }
)
_SET_HERE = ("in_shape", "feat_ext", "criterion")


class TorchmilOptions(Plain, frozen=True, extra="allow"):
    """Options of `TorchmilPooling`: name of a class of `torchmil.models`, and options of that class."""

    __pydantic_extra__: dict[str, bool | int | float | str]
    name: str = "ABMIL"


class TorchmilPooling(GroupedPooling):
    """Pool by a model of torchmil without its last layer, so that any head can follow.

    Each bag is pooled alone, because not every model of torchmil leaves out padding. Weights of tiles are the softmax
    of the model's attention. Those of its TransMIL are scaled by `scale_signed`. Its TransMIL differs from the authors'
    program, which has another first layer, and a convolution and an output layer in its attention; see
    `TransmilPooling`.

    Raises:
        OptionError: If torchmil is not installed, or the model is none that is built here, or refuses an option.
    """

    Options = TorchmilOptions
    uses_hidden = False

    def __init__(self, features: int, hidden: int, classes: int, options: TorchmilOptions) -> None:
        super().__init__(features, hidden, classes, options)
        self.signed = options.name == "TransMIL"
        self.model = _build(options.name, features, dict(options.model_extra or {}))
        last = getattr(self.model, _CLASSIFIERS[options.name])
        self.features = getattr(last, "module", last).in_features
        setattr(self.model, _CLASSIFIERS[options.name], nn.Identity())
        for part in self.model.modules():
            if getattr(part, "use_mlp", None) is False:
                part.norm2 = nn.Identity()  # normalizes for the absent perceptron: weights that never learn

    def pool_bag(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """See `GroupedPooling.pool_bag`."""
        # The inversion of a matrix in half precision diverges.
        with torch.autocast(tiles.device.type, enabled=False):
            bag, attention = self.model(tiles[None].float(), return_att=True)
        scores = attention.reshape(-1)
        return bag.reshape(-1), scale_signed(scores) if self.signed else scores.softmax(0)


def _build(name: str, features: int, options: dict[str, Any]) -> nn.Module:
    """Build a model of torchmil that takes tiles of so many features; its names alone are looked up."""
    if name in _REFUSED:
        raise OptionError(f"pooling_options.name={name}: this model of torchmil {_REFUSED[name]}")
    if name not in _CLASSIFIERS:
        raise OptionError(f"pooling_options.name={name}: give {' or '.join(_CLASSIFIERS)}{suggest(name, _CLASSIFIERS)}")
    try:
        with torch.device("cpu"):  # its first import computes numbers, which fails on the meta device of a reader
            kind: Any = getattr(importlib.import_module("torchmil.models"), name)
    except ImportError as error:
        raise OptionError(
            f"pooling_options.name={name}: torchmil is not installed; give pip install 'panda-wsi[mil]'"
        ) from error
    known = [key for key in inspect.signature(kind).parameters if key not in _SET_HERE]
    if unknown := [key for key in options if key not in known]:
        raise OptionError(
            [
                f"pooling_options.{key}={options[key]}: {name} of torchmil has no such option{suggest(key, known)}"
                for key in unknown
            ]
        )
    try:
        model: nn.Module = kind(in_shape=(features,), **options)
    except Exception as error:  # torchmil has no classes of its own
        raise OptionError(f"pooling_options: {name} of torchmil refuses its options: {error}") from error
    return model
