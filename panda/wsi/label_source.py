"""The base of all sources of label codes: images of masks, and annotations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution

OnSlide = tuple[slice, slice]
"""The rows and columns of a window that are on the slide."""


class LabelSource(ABC):
    """A file that gives the label codes of one slide in the slide's coordinates.

    A source can be pickled, is safe from several threads, and is opened again in each process.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def read(
        self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], OnSlide]:
        """Read the codes of a window, whose colours `Slide.read` reads with the same arguments.

        Args:
            resolution: The working resolution of the slide.
            location: Top-left corner (x, y), level-0 px of the slide; may be negative.
            size: (width, height), working px, both at least 1.

        Returns:
            (height, width) uint8 codes of the label map, 0 past the edge, and the rows and columns on the slide.

        Raises:
            MaskError: If the file cannot be read there.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
