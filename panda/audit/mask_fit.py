"""Compare the labels of a mask with the tissue of its slide: as they are, upside down, mirrored and turned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TURNS: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "upside down": np.flipud,
    "mirrored left to right": np.fliplr,
    "turned by 180°": lambda mask: mask[::-1, ::-1],
    "turned by 90°": np.rot90,
    "turned by 270°": lambda mask: np.rot90(mask, 3),
}
_GAIN, _GAIN_OF_FEW = 0.03, 0.2
"""Least gain in the share of labels on tissue, if labels cover half of the tissue or more, and if they cover less."""


def find_turn(labelled: NDArray[np.bool_], tissue: NDArray[np.bool_]) -> str | None:
    """Say how a mask that is turned or mirrored would fit its slide better; None if it fits best as it is.

    Another way is better if at most half as many labels are off the tissue and the share on tissue gains enough.

    Args:
        labelled: Px with a label, (h, w) bool with at least one.
        tissue: Px of tissue in the same frame, (h, w) bool.
    """
    own = float(tissue[labelled].mean())
    shares = {}
    for name, turn in _TURNS.items():
        turned = turn(labelled)
        if turned.shape == tissue.shape:
            shares[name] = float(tissue[turned].mean())
    name = max(shares, key=lambda one: shares[one])
    gain = _GAIN if labelled.sum() >= tissue.sum() / 2 else _GAIN_OF_FEW
    if shares[name] < own + gain or 1 - shares[name] > (1 - own) / 2:
        return None
    return f"{own:.1%} of the labelled px are on tissue, but {shares[name]:.1%} if the mask is {name}"
