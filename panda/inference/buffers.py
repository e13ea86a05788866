"""Memory for large tensors that outlive a batch.

Torch aligns what it takes from the heap. In glibc such memory, once freed, often does not fit the next tensor of the
same size. With tensors that live for one batch beside others that live longer, a process grew by one to two GiB.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panda.memory import POOL


class Buffers:
    """Tensors whose memory is used again when nothing refers to it any more.

    On a GPU, and for page-locked memory, torch does this itself.

    Args:
        device: Where the tensors are.
        pinned: Whether they are page-locked memory of the host.
    """

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device = device
        self._pinned = pinned

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with any values."""
        if self._pinned or self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device, pin_memory=self._pinned)
        return torch.from_numpy(POOL.empty((math.prod(shape) * dtype.itemsize,))).view(dtype).view(shape)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of float32 zeros."""
        return self.empty(shape, torch.float32).zero_()
