"""What the label masks mean, and reading them in the frame of their slide.

PANDA's codes (its data page on Kaggle): both providers use 0 for background or unknown. Radboud labels
1 stroma, 2 benign epithelium, 3, 4 and 5 the Gleason patterns; Karolinska labels 1 benign tissue, 2 cancer.
They sit in the red channel of a three-channel pyramidal TIFF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.errors import MaskError
from panda.wsi.geometry import Resolution, blocks, level_scale, mask_frame, round_px
from panda.wsi.slide import SNAP, Slide
from panda.wsi.tiff.pyramid import TiffPyramid


@dataclass(frozen=True)
class ProviderLabels:
    """The codes of one provider.

    Attributes:
        names: What each known code means.
        cancer: The codes that are cancer.
    """

    names: Mapping[int, str]
    cancer: frozenset[int]


PROVIDERS: Mapping[str, ProviderLabels] = MappingProxyType(
    {
        "radboud": ProviderLabels(
            names=MappingProxyType(
                {
                    0: "background or unknown",
                    1: "stroma",
                    2: "benign epithelium",
                    3: "Gleason pattern 3",
                    4: "Gleason pattern 4",
                    5: "Gleason pattern 5",
                }
            ),
            cancer=frozenset({3, 4, 5}),
        ),
        "karolinska": ProviderLabels(
            names=MappingProxyType({0: "background or unknown", 1: "benign tissue", 2: "cancer"}),
            cancer=frozenset({2}),
        ),
    }
)
"""Label codes of PANDA's two providers."""

_UNKNOWN = 2

OTHER, CANCER, IGNORED = 0, 1, 2
"""What a pixel is to a network that learns: see `LabelMask.read_target`."""


def _kinds(labels: ProviderLabels) -> NDArray[np.uint8]:
    """Whether each code is cancer (1), something else (0) or unknown."""
    kinds = np.full(256, _UNKNOWN, np.uint8)
    kinds[list(labels.names)] = 0
    kinds[list(labels.cancer)] = 1
    return kinds


_KINDS = {provider: _kinds(labels) for provider, labels in PROVIDERS.items()}


def provider_labels(provider: str) -> ProviderLabels:
    """Look up the codes of a provider.

    Raises:
        MaskError: The provider is not known.
    """
    if provider not in PROVIDERS:
        raise MaskError(f"provider {provider!r} has no label codes; known are {', '.join(sorted(PROVIDERS))}")
    return PROVIDERS[provider]


def tumor_bool_from_gray(mask_gray: NDArray[np.uint8], provider: str) -> NDArray[np.bool_]:
    """Turn label codes into cancer or not.

    Args:
        mask_gray: (H, W) uint8 label codes, the red channel of a mask.
        provider: `"radboud"` (cancer is 3, 4, 5) or `"karolinska"` (cancer is 2).

    Returns:
        (H, W) bool, True where the code is cancer.

    Raises:
        MaskError: The provider is unknown, the array is not a two-dimensional one of uint8, or it holds a
            code that the provider does not use (all such codes are named, with their counts).
    """
    labels = provider_labels(provider)
    if mask_gray.ndim != 2 or mask_gray.dtype != np.uint8:
        raise MaskError(
            f"label codes come as (H, W) uint8, not {mask_gray.shape} {mask_gray.dtype}; "
            "pass the red channel of the mask"
        )
    kinds = np.asarray(cv2.LUT(mask_gray, _KINDS[provider]), np.uint8) if mask_gray.size else mask_gray.copy()
    if kinds.max(initial=0) == _UNKNOWN:
        codes, counts = np.unique(mask_gray[kinds == _UNKNOWN], return_counts=True)
        found = ", ".join(f"{code} ({count} px)" for code, count in zip(codes, counts, strict=True))
        raise MaskError(
            f"label codes {found} are not among {provider}'s {sorted(labels.names)}; "
            "is the provider right, and the mask stored without loss?"
        )
    return kinds.view(np.bool_)


def class_names(target: str, count: int) -> list[str]:
    """Name the classes of a grading target: `isup` by grade, `cancer` by word."""
    if target == "cancer" or count == 2:
        return ["no cancer", "cancer"]
    return ["benign (0)" if k == 0 else f"ISUP {k}" for k in range(count)]


class LabelMask:
    """The label mask of one slide, opened with `LabelMask.open` and read in the slide's coordinates.

    The mask spans its slide whatever its own size (see `panda.wsi.geometry.mask_frame`). Codes are never
    interpolated: each working px gets the code of the mask px that its centre falls on. Picklable, safe from
    several threads, opened again in each process.

    Attributes:
        path: The file.
        provider: Whose codes it holds.
        level_dimensions: (width, height) of each mask level in px of that level, mask level 0 first.
        frame: The frame of mask level-0 px.
    """

    def __init__(self, path: Path, slide: Slide, provider: str, tiff: TiffPyramid) -> None:
        self.path = path
        self.provider = provider
        self.level_dimensions = tiff.level_dimensions
        self.frame = mask_frame(slide.dimensions, tiff.level_dimensions[0])
        self._slide_size = slide.dimensions
        self._tiff = tiff

    @classmethod
    def open(cls, path: str | Path, slide: Slide, provider: str) -> LabelMask:
        """Open the mask of a slide.

        Args:
            path: A TIFF of uint8 codes, tiled or in strips, with or without a pyramid.
            slide: The slide it labels.
            provider: Whose codes it holds.

        Raises:
            MaskError: The file is missing or cannot be opened, its shape differs from the slide's by more
                than 2 %, or the provider is unknown.
        """
        path = Path(path)
        provider_labels(provider)
        if not path.is_file():
            what = "is a folder, not a mask" if path.is_dir() else "there is no such mask"
            raise MaskError(f"{path}: {what}; a slide without one is left out of training and scoring")
        try:
            tiff = TiffPyramid(path, red_only=True)
        except (OSError, ValueError) as exc:
            raise MaskError(f"{path}: the mask cannot be opened: {exc}") from exc
        try:
            return cls(path, slide, provider, tiff)
        except MaskError as exc:
            raise MaskError(f"{path}: {exc}") from exc

    def read(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read label codes where `Slide.read` with the same arguments reads colours.

        The coarsest mask level that is not coarser than the working resolution is read (one within 1 % of it
        counts as equal), in blocks, so that memory stays bounded by the output.

        Args:
            resolution: Of the slide.
            location: (x, y) of the top-left corner in level-0 px of the slide; may be negative.
            size: (width, height) in working px.

        Returns:
            (height, width) uint8 codes, 0 past the edge.

        Raises:
            MaskError: The size is not positive, or the file cannot be read there.
        """
        if min(size) <= 0:
            raise MaskError(f"{self.path}: asked for {size[0]} x {size[1]} px; both must be at least 1")
        level = self._level_for(resolution)
        width, height = self.level_dimensions[level]
        x = self._under(resolution, 0, location[0], size[0], width)
        y = self._under(resolution, 1, location[1], size[1], height)
        out = np.zeros((size[1], size[0]), np.uint8)
        columns_in, rows_in = _inside(x, width), _inside(y, height)
        x, y = x[columns_in], y[rows_in]
        if x.size == 0 or y.size == 0:
            return out
        inside = out[rows_in, columns_in]
        factor = resolution.downsample * max(width / self._slide_size[0], height / self._slide_size[1])
        for bx, by, bw, bh in blocks(x.size, y.size, factor):
            inside[by : by + bh, bx : bx + bw] = self._gather(level, x[bx : bx + bw], y[by : by + bh])
        return out

    def _under(self, resolution: Resolution, axis: int, start: int, count: int, mask_length: int) -> NDArray[np.int64]:
        """Mask level px under the centres of `count` working px from `start` (slide level-0 px) on."""
        centres = np.arange(count) + 0.5
        if resolution.resampled:
            extent = self._slide_size[axis] / resolution.downsample
            first = start / resolution.downsample
        else:
            # The level's own length: where slide and mask have levels of one size, px meets px exactly, even
            # along the axis whose rounded length deviates from the common downsample.
            extent = resolution.size[axis]
            first = round_px(start / resolution.downsample)
        under: NDArray[np.int64] = np.floor((first + centres) * (mask_length / extent)).astype(np.int64)
        return under

    def _gather(self, level: int, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes at the ascending columns x and rows y of a mask level."""
        x0, y0 = int(x[0]), int(y[0])
        width, height = int(x[-1]) - x0 + 1, int(y[-1]) - y0 + 1
        try:
            window = self._tiff.read(level, x0, y0, width, height)
        except (OSError, ValueError) as exc:
            raise MaskError(
                f"{self.path}: cannot read {width} x {height} px at ({x0}, {y0}) of mask level {level}: "
                f"{exc}; the file is damaged there, fetch it anew or leave the slide out"
            ) from exc
        return window if (width, height) == (x.size, y.size) else window[np.ix_(y - y0, x - x0)]

    def _level_for(self, resolution: Resolution) -> int:
        """The coarsest mask level that is not coarser than the working resolution."""
        finest_scale = max(self.frame.sx, self.frame.sy)  # slide level-0 px per mask level-0 px
        chosen = 0
        for level, level_size in enumerate(self.level_dimensions):
            downsample, _ = level_scale(self.level_dimensions[0], level_size)
            if downsample * finest_scale <= resolution.downsample * (1 + SNAP):
                chosen = level
        return chosen

    def read_tumor(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Read cancer or not; arguments and frame as in `read`.

        Returns:
            (height, width) bool, False past the edge.

        Raises:
            MaskError: As `read`, or the mask holds a code its provider does not use.
        """
        return self._tumor(self.read(resolution, location, size))

    def read_target(
        self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int], *, ignore_background: bool
    ) -> NDArray[np.uint8]:
        """Read what a network is to learn; arguments and frame as in `read`.

        Args:
            resolution: Of the slide.
            location: (x, y) of the top-left corner in level-0 px of the slide.
            size: (width, height) in working px.
            ignore_background: Code 0, which both providers use for background and for unknown, and what lies past the
                edge of the slide is `IGNORED`; else it is `OTHER`.

        Returns:
            (height, width) uint8: `OTHER`, `CANCER` or `IGNORED`.

        Raises:
            MaskError: As `read_tumor`.
        """
        codes = self.read(resolution, location, size)
        target = self._tumor(codes).view(np.uint8)
        if ignore_background:
            target[codes == 0] = IGNORED
        return target

    def _tumor(self, codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Cancer or not; an unknown code is named together with the file."""
        try:
            return tumor_bool_from_gray(codes, self.provider)
        except MaskError as exc:
            raise MaskError(f"{self.path}: {exc}") from exc

    def overview(self, resolution: Resolution) -> NDArray[np.uint8]:
        """Read the codes of the whole slide at a working resolution, (height, width) uint8."""
        return self.read(resolution, (0, 0), resolution.size)

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self._tiff.close()

    def __enter__(self) -> LabelMask:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _inside(index: NDArray[np.int64], length: int) -> slice:
    """The part of ascending indices that lies within `[0, length)`."""
    return slice(int(np.searchsorted(index, 0)), int(np.searchsorted(index, length)))
