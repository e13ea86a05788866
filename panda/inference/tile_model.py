"""Run a network over batches of tiles on a device, in the memory that there is."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from panda.errors import ExhaustedError

log = logging.getLogger(__name__)


class TileModel(ABC):
    """A network in evaluation mode that takes tiles in batches.

    If the memory of the GPU is exhausted, the batches are halved once, with a warning.

    Args:
        network: The network; it is moved to the device.
        device: Where it runs.
        batch_size: Most tiles that go through the network at once; None if it is not known yet.

    Attributes:
        notes: What a reader of the results should know, in sentences.
    """

    def __init__(self, network: nn.Module, device: torch.device, batch_size: int | None) -> None:
        self.network = network.eval().to(device)
        self.device = device
        self.batch_size = batch_size
        self.notes: list[str] = []
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """Return the result of one batch as `__call__` does, without a limit to its size."""

    def __call__(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Return the results of images (n, h, w, 3) uint8, or float32 in [0, 1], on the device: (n, …) float32.

        A GPU may still compute them when the call returns.

        Raises:
            ExhaustedError: If the memory of the GPU does not suffice for half of the batch either.
        """
        tiles = torch.as_tensor(images)
        while True:
            try:
                parts = [self.run(part) for part in torch.split(tiles, self.batch_size or len(tiles))]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                self._halve_batches(self.batch_size or len(tiles), error)

    def upload(self, images: Tensor) -> Tensor:
        """Copy images to the device; to a GPU beside the work that is queued there."""
        if self._uploads is None:
            return images.to(self.device)
        with torch.cuda.stream(self._uploads):
            uploaded = images.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._uploads)
        uploaded.record_stream(current)
        return uploaded

    def _halve_batches(self, size: int, error: torch.OutOfMemoryError) -> None:
        """Use half of a batch size from here on, or raise if that was done before."""
        half = size // 2
        if self.notes or not half:
            remedy = f"give engine.batch_size={half}, or " if half else ""
            raise ExhaustedError(
                f"the memory of the GPU is exhausted with batches of {size} tiles, and half of it is not enough: "
                f"{remedy}free the GPU of other programs; finished work is kept"
            ) from error
        self.batch_size = half
        note = (
            f"The memory of the GPU was too small for batches of {size} tiles; batches of {half} are used. "
            f"engine.batch_size={half} uses them from the start."
        )
        self.notes.append(note)
        log.warning("%s", note)
