"""The labels of a slide, read in its frame; `panda.wsi.label_maps` has the meaning of their codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.errors import MaskError
from panda.wsi.annotations.source import AnnotationSource, is_annotation_file
from panda.wsi.classes import BINARY, IGNORED, OTHER, ClassSet
from panda.wsi.geometry import Resolution
from panda.wsi.label_maps import LabelMap, find_label_map, look_up_codes
from panda.wsi.label_source import LabelSource, OnSlide
from panda.wsi.mask_file import MaskFile
from panda.wsi.slide import Slide


def open_source(path: Path, slide: Slide, label_map: LabelMap) -> LabelSource:
    """Open the label file of a slide, annotations or a mask; arguments and errors as in `LabelMask.open`."""
    return (AnnotationSource if is_annotation_file(path) else MaskFile).open(path, slide, label_map)


class LabelMask:
    """The labels of one slide, opened with `LabelMask.open` and read in the slide's coordinates.

    It can be pickled, is safe from several threads, and is opened again in each process.

    Attributes:
        path: The file.
        source: What gives the codes.
        provider: The provider, whose codes it holds.
        label_maps: The meaning of the codes by provider; without the provider if it is not known.
    """

    def __init__(self, source: LabelSource, provider: str, label_maps: Mapping[str, LabelMap]) -> None:
        self.path = source.path
        self.source = source
        self.provider = provider
        self.label_maps = label_maps

    @classmethod
    def open(
        cls, path: str | Path, slide: Slide, provider: str, label_maps: Mapping[str, LabelMap] | None = None
    ) -> LabelMask:
        """Open the mask of a slide.

        Args:
            path: A TIFF of uint8 codes, tiled or in strips, with or without a pyramid.
            slide: The slide it labels.
            provider: The provider, whose codes it holds.
            label_maps: Maps that take precedence over the known ones, see `panda.wsi.label_maps.find_label_map`.

        Raises:
            MaskError: If the file is missing or cannot be opened, its shape differs from the slide's by more than
                2 %, or the provider is unknown.
            ConfigError: If a known label map is faulty.
        """
        path = Path(path)
        label_maps = {provider: find_label_map(provider, label_maps)}
        if not path.is_file():
            what = "is a folder, not a mask" if path.is_dir() else "there is no such mask"
            raise MaskError(f"{path}: {what}; a slide without one is left out of training and scoring")
        return cls(open_source(path, slide, label_maps[provider]), provider, label_maps)

    def read(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read the label codes of the window whose colours `Slide.read` reads with the same arguments.

        Args:
            resolution: The working resolution of the slide.
            location: Top-left corner (x, y), level-0 px of the slide; may be negative.
            size: (width, height), working px.

        Returns:
            (height, width) uint8 codes, 0 past the edge.

        Raises:
            MaskError: If the size is not positive, or the file cannot be read there.
        """
        return self._read(resolution, location, size)[0]

    def _read(
        self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], OnSlide]:
        """Read codes as `read` does, and return also which rows and columns are on the slide."""
        if min(size) <= 0:
            raise MaskError(f"{self.path}: asked for {size[0]} x {size[1]} px; both must be at least 1")
        return self.source.read(resolution, location, size)

    def read_tumor(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which px are cancer, (height, width) bool, False past the edge; arguments and frame as in `read`.

        Raises:
            MaskError: As `read`, or if the mask holds a code that its provider does not use.
        """
        return self.read_target(resolution, location, size, ignore_background=False).view(np.bool_)

    def read_target(
        self,
        resolution: Resolution,
        location: tuple[int, int],
        size: tuple[int, int],
        *,
        ignore_background: bool,
        classes: ClassSet = BINARY,
    ) -> NDArray[np.uint8]:
        """Read the target that a network learns; arguments and frame as in `read`.

        Args:
            resolution: The working resolution of the slide.
            location: Top-left corner (x, y), level-0 px of the slide.
            size: (width, height), working px.
            ignore_background: Mark px with an unlabelled code and px past the edge as `IGNORED`, else as `OTHER`.
            classes: The classes of the target.

        Returns:
            (height, width) uint8, see `panda.wsi.classes`.

        Raises:
            MaskError: As `read_tumor`, or if none of the classes has the Gleason pattern of a code.
        """
        codes, on_slide = self._read(resolution, location, size)
        target = np.full((size[1], size[0]), IGNORED if ignore_background else OTHER, np.uint8)
        try:
            table = classes.make_table(self.label_maps[self.provider], ignore_unlabelled=ignore_background)
            target[on_slide] = look_up_codes(codes[on_slide], table, self.provider)
        except MaskError as exc:
            raise MaskError(f"{self.path}: {exc}") from exc
        return target

    def overview(self, resolution: Resolution) -> NDArray[np.uint8]:
        """Return the codes of the whole slide at a working resolution, (height, width) uint8."""
        return self.read(resolution, (0, 0), resolution.size)

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self.source.close()

    def __enter__(self) -> LabelMask:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
