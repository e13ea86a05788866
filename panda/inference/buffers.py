"""Memory for large tensors that outlive a batch, apart from the heap of the process.

Torch aligns what it takes from the heap. In glibc such memory, once freed, often does not fit the next tensor of the
same size. With tensors that live for one batch beside others that live longer, a process grew by one to two GiB.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


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
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with any values, to be called by one thread."""
        if self._pinned or self._device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self._device, pin_memory=self._pinned)
        size = math.prod(shape) * dtype.itemsize
        free = self._free[size]
        memory = free.pop() if free else mmap.mmap(-1, size)
        lease = np.frombuffer(memory, np.uint8)  # the storage of the tensor and of all its views refers to it
        weakref.finalize(lease, free.append, memory).atexit = False
        return torch.from_numpy(lease).view(dtype).view(shape)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of float32 zeros, to be called by one thread."""
        return self.empty(shape, torch.float32).zero_()
