"""The file of a label mask, read in the frame of its slide."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.errors import MaskError
from panda.wsi.geometry import Resolution, axis_scales, ceil_px, cut_blocks, floor_px, level_scale, mask_frame, round_px
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_source import LabelSource, OnSlide
from panda.wsi.mask_image import CodeImage, open_codes
from panda.wsi.slide import SNAP, Slide
from panda.wsi.tiff.conversions import suggest_vips_codes


class MaskFile(LabelSource):
    """The codes of a mask image, opened with `MaskFile.open`.

    The mask spans its slide at any size of its own (see `panda.wsi.geometry.mask_frame`). If the slide is a part of its
    file (`Slide.bounds`), the mask spans this part or the whole file, which its shape decides. Codes are never
    interpolated: each working px gets the code of the mask px under its centre.

    Attributes:
        path: The file.
        level_dimensions: (width, height) of each mask level in px of that level, mask level 0 first.
        frame: The frame of mask level-0 px; its origin is that of the file if the mask spans the whole file.
    """

    def __init__(self, path: Path, slide: Slide, image: CodeImage) -> None:
        super().__init__(path)
        self.level_dimensions = image.level_dimensions
        self._spans_file = _spans_file(slide, image.level_dimensions[0])
        # Sizes of what the mask spans, and positions of the slide's corner in it, in px of each level of the slide.
        self._spans = slide.file_level_dimensions if self._spans_file else slide.level_dimensions
        self._origins = slide.level_origins if self._spans_file else ((0, 0),) * len(self._spans)
        self._slide_size = slide.dimensions
        self.frame = frame = mask_frame(self._spans[0], image.level_dimensions[0])
        # Level-0 px of the slide per px of each mask level, along x and y.
        scales = [axis_scales(image.level_dimensions[0], size) for size in image.level_dimensions]
        self._steps = [(frame.sx * x, frame.sy * y) for x, y in scales]
        self._image = image

    @classmethod
    def open(cls, path: Path, slide: Slide, label_map: LabelMap) -> MaskFile:
        """Open the mask of a slide, see `panda.wsi.label_mask.LabelMask.open`."""
        try:
            image = open_codes(path, label_map)
        except (OSError, ValueError) as exc:
            raise MaskError(f"{path}: the mask cannot be opened: {exc}") from exc
        try:
            return cls(path, slide, image)
        except MaskError as exc:
            raise MaskError(f"{path}: {exc}{_advise_crop(path, slide, image.level_dimensions[0])}") from exc

    def read(
        self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], OnSlide]:
        """Read codes, see `LabelSource.read`.

        The mask level is the coarsest one that is not over 1 % coarser than the working resolution. It is read in
        blocks, which bounds the memory.
        """
        level = self._choose_level(resolution)
        columns, x = self._find_px_under_centres(resolution, 0, location[0], size[0], level)
        rows, y = self._find_px_under_centres(resolution, 1, location[1], size[1], level)
        out, on_slide = np.zeros((size[1], size[0]), np.uint8), (rows, columns)
        if x.size and y.size:
            inside = out[on_slide]
            for bx, by, bw, bh in cut_blocks(x.size, y.size, factor=resolution.downsample / min(self._steps[level])):
                inside[by : by + bh, bx : bx + bw] = self._gather(level, x[bx : bx + bw], y[by : by + bh])
        return out, on_slide

    def _find_px_under_centres(
        self, resolution: Resolution, axis: int, start: int, count: int, level: int
    ) -> tuple[slice, NDArray[np.int64]]:
        """Return which of `count` working px are on the slide, and the px of the mask level under their centres.

        The working px begin at `start`, level-0 px of the slide.
        If the sides of the mask level were rounded down, its last px go on up to the edge of the slide.
        """
        first = start / resolution.downsample
        if not resolution.is_resampled:
            first = round_px(first)
        on_slide = slice(*(min(max(ceil_px(edge - first), 0), count) for edge in (-0.5, resolution.extent[axis])))
        centres = first + np.arange(on_slide.start, on_slide.stop) + 0.5
        if resolution.is_resampled or not self._spans_file:
            at = self._origins[0][axis] + centres * resolution.downsample
        else:
            # By the level's own scale, so that px of a slide and a mask level of one size match exactly, even along
            # the axis whose rounded length deviates from the common downsample.
            scale = axis_scales(self._spans[0], self._spans[resolution.level])[axis]
            at = (centres + self._origins[resolution.level][axis]) * scale
        step = self._steps[level][axis]
        end = ceil_px((self._origins[0][axis] + self._slide_size[axis]) / step)
        return on_slide, np.minimum(floor_px(at / step), min(end, self.level_dimensions[level][axis]) - 1)

    def _gather(self, level: int, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the codes at the ascending columns x and rows y of a mask level."""
        x0, y0 = int(x[0]), int(y[0])
        width, height = int(x[-1]) - x0 + 1, int(y[-1]) - y0 + 1
        try:
            window = self._image.read(level, x0, y0, width, height)
        except (OSError, ValueError) as exc:
            raise MaskError(
                f"{self.path}: cannot read {width} x {height} px at ({x0}, {y0}) of mask level {level}: "
                f"{exc}; the file is damaged there, fetch it again or leave the slide out"
            ) from exc
        return window if (width, height) == (x.size, y.size) else window[np.ix_(y - y0, x - x0)]

    def _choose_level(self, resolution: Resolution) -> int:
        """Return the coarsest mask level that is not coarser than the working resolution."""
        largest = resolution.downsample * (1 + SNAP) / max(self.frame.sx, self.frame.sy)
        scales = [level_scale(self.level_dimensions[0], size)[0] for size in self.level_dimensions]
        return max((level for level, downsample in enumerate(scales) if downsample <= largest), default=0)

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self._image.close()


def _advise_crop(path: Path, slide: Slide, mask_size: tuple[int, int]) -> str:
    """Return the command that crops a mask that was padded to whole tiles, as the end of a message."""
    width, height = slide.dimensions
    if mask_size[0] < width or mask_size[1] < height:
        return ""
    return f"; if it was padded on the right and below: {suggest_vips_codes('crop', path, f'0 0 {width} {height}')}"


def _spans_file(slide: Slide, mask_size: tuple[int, int]) -> bool:
    """Return whether a mask of a size (W, H) spans the whole file of a slide, and not only the bounds of the file.

    Raises:
        MaskError: If its shape fits both, and it has the size of neither.
    """
    file_size = slide.file_level_dimensions[0]
    if slide.bounds is None or mask_size == file_size:
        return True
    if mask_size == slide.dimensions:
        return False
    fits = []
    for size in (file_size, slide.dimensions):
        with contextlib.suppress(MaskError):
            mask_frame(size, mask_size)
            fits.append(size)
    if len(fits) == 2:
        (file_w, file_h), (slide_w, slide_h) = fits
        raise MaskError(
            f"mask is {mask_size[0]} x {mask_size[1]} px, which fits the whole file and its bounds; store the mask at "
            f"{file_w} x {file_h} px for the file or {slide_w} x {slide_h} px for the bounds"
        )
    return fits != [slide.dimensions]
