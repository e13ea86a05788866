"""Codes of a canvas: convert them to probabilities, merge those of several classes, choose the class of a px.

0 means "not scored", a value v of 1..65535 means the probability `(v - 1) / 65534`. One step is 1.5e-5, far below the
agreement of two runs of a network, and takes half the bytes of float32. 0.5 is exactly one of the steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.wsi.classes import ClassSet

STEPS = 65534
"""Quantization steps between probability 0 and 1."""


def dequantize(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert codes of a canvas to float32 probabilities; 0 for a pixel that was not scored."""
    return np.asarray((np.maximum(codes, 1) - 1) / np.float32(STEPS), np.float32)


def merge_codes(codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the codes of the probability of cancer, (h, w), from those of each class of cancer, (k, h, w).

    The steps of the classes are added, so the order of the classes changes nothing. The sum is cut at probability 1,
    which it can exceed by half a step for each class.
    """
    if len(codes) == 1:
        return np.asarray(codes[0])
    above = codes.sum(axis=0, dtype=np.int32) - (len(codes) - 1)  # a px is scored in all classes or in none
    return np.asarray(np.clip(above, 0, STEPS + 1), np.uint16)


def choose_classes(values: NDArray[Any], classes: ClassSet) -> NDArray[np.uint8]:
    """Return the number of the class of cancer with the highest value in each px; a tie has the highest pattern.

    Args:
        values: (k, h, w) probabilities or codes of the classes of cancer, in the order of `classes.cancer_names`.
        classes: The classes.

    Returns:
        (h, w) uint8, numbers of `classes.names` from 1 on.
    """
    first, *others = classes.by_pattern
    highest = values[first - 1]
    chosen = np.full(highest.shape, first, np.uint8)
    for number in others:
        own = values[number - 1]
        np.copyto(chosen, np.uint8(number), where=own > highest)
        highest = np.maximum(highest, own)
    return chosen
