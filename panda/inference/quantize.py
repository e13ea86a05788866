"""Quantize probabilities on the device; a process that only reads canvases needs no torch for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panda.inference.codes import STEPS

_HALF = 2**15


def quantize(mean: Tensor, codes: Tensor) -> Tensor:
    """Convert probabilities to codes of a canvas; see `read_quantized`. The probabilities are overwritten.

    Args:
        mean: (h, w) float32, cut at 0 and 1; NaN for px that were not scored.
        codes: Gets the codes less 32768, (h, w) int16, because not all devices know uint16.

    Returns:
        `codes`.
    """
    return codes.copy_(mean.clamp_(0, 1).mul_(STEPS).round_().add_(1 - _HALF).nan_to_num_(-_HALF))


def read_quantized(codes: NDArray[np.int16]) -> NDArray[np.uint16]:
    """Return the codes of `quantize`, in place."""
    shifted = codes.view(np.uint16)
    return np.bitwise_xor(shifted, _HALF, out=shifted)
