"""Exact geometry over random pyramids: a landmark is read at the place it was painted, for levels of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution, round_px
from panda.wsi.grid import Edge, tissue_grid
from panda.wsi.label_mask import LabelMask
from panda.wsi.mask_file import MaskFile
from panda.wsi.readers import ReaderName
from panda.wsi.slide import FINEST, SNAP, Slide, SlideOptions
from tests.pyramids import Rounding, area_means, level_size, sample_centers, write_levels

exactly = settings(derandomize=True, deadline=None, max_examples=40, phases=[Phase.generate, Phase.shrink])
readers = pytest.mark.parametrize("reader", get_args(ReaderName))

LARGEST = 17.0
"""Largest downsample of a level or a request; landmarks span three px of it, where the slide is that large."""
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in px of level 0."""


@dataclass(frozen=True)
class Pyramid:
    """How a picture is shrunk and stored.

    Attributes:
        size: (width, height) of level 0.
        downsamples: Of each level; its sides are those of level 0 over it, rounded.
        rounding: Of the sides of a level.
        spans: Whether a level shows all of level 0 on its rounded sides, if no whole number gives these. Writers that
            do not step by the downsample, and so leave a strip out at the far edges or add an incomplete px there.
        tile: Side of a tile in px.
    """

    size: tuple[int, int]
    downsamples: tuple[float, ...]
    rounding: Rounding
    spans: bool
    tile: int

    def levels(self, image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Shrink (H, W, 3) colours by exact area means, or (H, W) codes by the px under each centre."""
        for downsample in self.downsamples:
            size = level_size(self.size, downsample, self.rounding)
            step_x, step_y = find_steps(self.size, size) if self.spans else (downsample, downsample)
            if image.ndim == 2:
                yield sample_centers(image, size, (step_x, step_y))
            else:
                x, y = np.arange(size[0] + 1) * step_x, np.arange(size[1] + 1) * step_y
                means = area_means(image, np.minimum(x, self.size[0]), np.minimum(y, self.size[1]))
                yield np.floor(means + 0.5).astype(np.uint8)


def find_steps(size: tuple[int, int], level: tuple[int, int]) -> tuple[float, float]:
    """Return level-0 px per level px: a whole number if one gives both sides, else their ratios."""
    whole = [
        step
        for step in range(1, 32)
        if all(short in {full // step, -(-full // step)} for full, short in zip(size, level, strict=True))
    ]
    if whole:
        return (float(max(whole, key=lambda step: step & -step)),) * 2
    return size[0] / level[0], size[1] / level[1]


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Slides of any parity, a third of them long and thin."""
    if draw(st.integers(0, 2)):
        return draw(st.integers(140, 420)), draw(st.integers(140, 420))
    long, thin = draw(st.integers(500, 1100)), draw(st.integers(17, 60))
    return (long, thin) if draw(st.booleans()) else (thin, long)


def accumulate_levels(steps: Sequence[float]) -> tuple[float, ...]:
    return tuple(downsample for downsample in np.cumprod([1.0, *steps]).tolist() if downsample <= LARGEST)


@st.composite
def pyramids(draw: st.DrawFn, size: st.SearchStrategy[tuple[int, int]], *, spans: bool | None = None) -> Pyramid:
    usual = st.sampled_from([(1, 4.0004, 16.0084), (1, 3.97, 15.8), (1, 2, 4, 8, 16), (1,), (1, 4, 16)])
    odd = st.lists(st.floats(1.3, 5), min_size=1, max_size=3).map(accumulate_levels)
    return Pyramid(
        draw(size),
        draw(usual | odd),
        draw(st.sampled_from(get_args(Rounding))),
        draw(st.booleans()) if spans is None else spans,
        16 * draw(st.integers(1, 16)),
    )


@st.composite
def draw_masks(draw: st.DrawFn, slide: Pyramid) -> Pyramid:
    """Draw a mask of the slide's size, or of another size with its sides rounded at random."""
    ratio = draw(st.sampled_from([1.0, 2.0]) | st.floats(0.35, 1.0))
    size = level_size(slide.size, 1 / ratio, draw(st.sampled_from(get_args(Rounding))))
    return draw(pyramids(st.just(size), spans=True))


@st.composite
def landmarks(draw: st.DrawFn, size: tuple[int, int]) -> list[Box]:
    """Three boxes: one anywhere, one at the far corner, one at any corner."""
    width, height = (min(side, math.ceil(3 * LARGEST)) for side in size)
    far = size[0] - width, size[1] - height
    anywhere = draw(st.integers(0, far[0])), draw(st.integers(0, far[1]))
    corner = draw(st.sampled_from([(0, 0), (far[0], 0), (0, far[1]), far]))
    return [(x, y, x + width, y + height) for x, y in (anywhere, far, corner)]


def find_mask_box(box: Box, slide: tuple[int, int], mask: tuple[int, int]) -> Box:
    """Return the whole mask px nearest to a box of the slide, at least one."""
    scale = mask[0] / slide[0], mask[1] / slide[1]
    x0, y0, x1, y1 = (round_px(side * scale[number % 2]) for number, side in enumerate(box))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def paint_boxes(size: tuple[int, int], boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """White with box `n` black in channel `n`."""
    image = np.full((size[1], size[0], 3), 255, np.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1, channel] = 0
    return image


def paint_codes(size: tuple[int, int], boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """Codes in which box `n` is bit `n`, so that boxes may overlap."""
    codes = np.zeros((size[1], size[0]), np.uint8)
    for bit, (x0, y0, x1, y1) in enumerate(boxes):
        codes[y0:y1, x0:x1] |= 1 << bit
    return codes


@contextmanager
def open_slide(levels: Iterable[NDArray[np.uint8]], tile: int, reader: ReaderName, mpp: float = 0.5) -> Iterator[Slide]:
    """Open a slide of these levels; small tiles become strips if OpenSlide may read them, as it takes none."""
    stored_in = None if reader == "auto" and tile <= 64 else tile
    tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with TemporaryDirectory() as folder:
        levels = list(levels)
        path = write_levels(Path(folder) / "slide.tiff", levels, stored_in, [tags] * len(levels))
        with SlideOptions(reader=reader).open(path) as slide:
            yield slide


def centre(mass: NDArray[Any]) -> NDArray[np.float64]:
    """(x, y) of the centre of mass in px of the window."""
    along = [np.arange(length) + 0.5 for length in mass.shape]
    moments = float(mass.sum(0) @ along[1]), float(mass.sum(1) @ along[0])
    return np.array(moments, np.float64) / float(mass.sum())


def places(data: st.DataObject, view: Resolution, box: Box) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Level-0 locations and sizes of windows that hold a box: the slide, one of a grid, one anywhere."""
    yield (0, 0), view.size
    margin = data.draw(st.tuples(*[st.integers(1, 9)] * 4))
    size = tuple(math.ceil((box[axis + 2] - box[axis]) / view.downsample) + margin[axis] + 10 for axis in (0, 1))
    corner = [math.floor(box[axis] / view.downsample) - margin[axis] for axis in (0, 1)]
    yield (round_px(corner[0] * view.downsample), round_px(corner[1] * view.downsample)), (size[0], size[1])
    yield (box[0] - margin[2], box[1] - margin[3]), (size[0], size[1])


def sample_codes(
    codes: NDArray[np.uint8], slide: Slide, view: Resolution, location: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the code under the centre of each px of a window, from level 0 of the mask alone."""
    on_level = find_steps(slide.dimensions, view.size)
    of_mask = find_steps(slide.dimensions, codes.shape[::-1])
    under = []
    for axis in (0, 1):
        start = location[axis] / view.downsample
        first = (start if view.is_resampled else round_px(start)) + np.arange(size[axis])
        level0 = (first + 0.5) * (view.downsample if view.is_resampled else on_level[axis])
        px = np.minimum(np.floor(level0 / of_mask[axis]).astype(np.int64), codes.shape[1 - axis] - 1)
        under.append(np.where((level0 < 0) | (first >= view.extent[axis]), codes.shape[1 - axis], px))
    return np.pad(codes, (0, 1))[np.ix_(under[1], under[0])]


@readers
@exactly
@given(data=st.data())
def test_readers_landmarks_are_read_at_painted_place(reader: ReaderName, data: st.DataObject) -> None:
    pyramid = data.draw(pyramids(sizes()))
    as_mask = data.draw(draw_masks(pyramid))
    boxes = data.draw(landmarks(pyramid.size))
    codes = paint_codes(as_mask.size, [find_mask_box(box, pyramid.size, as_mask.size) for box in boxes])
    requests = data.draw(st.lists(st.floats(FINEST, LARGEST), min_size=2, max_size=2))
    with open_slide(pyramid.levels(paint_boxes(pyramid.size, boxes)), pyramid.tile, reader) as slide:
        path = write_levels(slide.path.with_name("mask.tiff"), list(as_mask.levels(codes)), as_mask.tile)
        with LabelMask.open(path, slide, "radboud") as mask:
            assert isinstance(mask.source, MaskFile)
            assert (len(mask.source.level_dimensions), len(slide.usable_levels)) == (
                len(as_mask.downsamples),
                len(pyramid.downsamples),
            )
            levels = [slide.choose_resolution(level=level) for level in slide.usable_levels]
            for view in [*levels, *(slide.choose_resolution(mpp=0.5 * request) for request in requests)]:
                # Resampling begins at a whole px of a level, half a px off at most. That counts only where
                # the writer has moved the far corner by up to a px already, and a little more for landmarks near it.
                limit = 1.0 if pyramid.spans else 1.6 if view.is_resampled else 1.1
                for number, box in enumerate(boxes):
                    for location, size in places(data, view, box):
                        # Where a level is read as it is, a location is rounded to a whole px of it.
                        start = np.array(location) / view.downsample
                        first = start if view.is_resampled else round_px(start)
                        dark = 255.0 - slide.read(view, location, size)[..., number]
                        true = np.array([box[0] + box[2], box[1] + box[3]]) / 2 / view.downsample
                        assert np.abs(first + centre(dark) - true).max() <= limit
                        found, there = (
                            (labels >> number) & 1
                            for labels in (
                                mask.read(view, location, size),
                                sample_codes(codes, slide, view, location, size),
                            )
                        )
                        assert np.abs(centre(found) - centre(there)).max() <= 1


@pytest.mark.parametrize("rounding", get_args(Rounding))
@pytest.mark.parametrize("mask_levels", [(1,), (1, 2), (1, 4, 16), (4,)])
def test_labels_and_colours_are_of_same_px(tmp_path: Path, rounding: Rounding, mask_levels: tuple[int, ...]) -> None:
    size = 1999, 2843  # a tenth of a Karolinska slide: 4 and 16 are no divisors
    blocks = np.random.default_rng(0).integers(0, 6, (-(-size[1] // 16), -(-size[0] // 16)), dtype=np.uint8)
    codes = np.kron(blocks, np.ones((16, 16), np.uint8))[: size[1], : size[0]]

    def cut(step: int) -> NDArray[np.uint8]:
        width, height = level_size(size, step, rounding)
        return np.ascontiguousarray(codes[::step, ::step][:height, :width])

    levels = [np.repeat(40 * cut(step)[..., None], 3, axis=2) for step in (1, 4, 16)]
    slide = Slide.open(write_levels(tmp_path / "s.tiff", levels, 64))
    mask = LabelMask.open(write_levels(tmp_path / "m.tiff", [cut(step) for step in mask_levels], 64), slide, "radboud")
    assert list(slide.level_downsamples) == [1, 4, 16]
    for level in (1, 2):
        view = slide.choose_resolution(level=level)
        assert (40 * mask.read(view, (0, 0), view.size) == slide.read(view, (0, 0), view.size)[..., 0]).all()


def wave(count: int) -> NDArray[np.uint8]:
    """Grey values that rise and fall by 8 from px to px."""
    return np.asarray(np.abs(8 * np.arange(count) % 496 - 248), np.uint8)


@readers
@exactly
@given(pyramid=pyramids(sizes()), edge=st.sampled_from(get_args(Edge)), patch=st.integers(16, 90), data=st.data())
def test_tissue_grid_tiles_show_their_own_place(
    reader: ReaderName, pyramid: Pyramid, edge: Edge, patch: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(max(1, patch // 3), patch))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    levels, codes = [], []
    for number, downsample in enumerate(pyramid.downsamples):
        width, height = level_size(pyramid.size, downsample, pyramid.rounding)
        level = np.full((height, width, 3), 30 * number, np.uint8)
        level[..., 0], level[..., 1] = wave(width)[None, :], wave(height)[:, None]
        levels.append(level)
        codes.append(rng.integers(0, 6, (height, width), dtype=np.uint8))
    with open_slide(levels, pyramid.tile, reader) as slide:
        mask = LabelMask.open(write_levels(slide.path.with_name("mask.tiff"), codes, 64), slide, "radboud")
        for number, (level, labels) in enumerate(zip(levels, codes, strict=True)):
            view = slide.choose_resolution(level=number)
            around = ((0, patch), (0, patch))
            labels_around = np.pad(labels, around)
            level_around = np.pad(level, (*around, (0, 0)), constant_values=255)
            inside = np.zeros(labels_around.shape, np.bool_)
            inside[1 : view.height - 1, 1 : view.width - 1] = True
            outside = np.ones(labels_around.shape, np.bool_)
            outside[: view.height, : view.width] = False
            # OpenSlide takes level-0 px, so it reads up to half of one beside the px that is asked for, and it
            # rounds where its tiles meet. A px of the level beside would be 8 off.
            limit = 0 if number == 0 else 8 * 0.5 / view.downsample + 3
            grid = tissue_grid(view, None, patch, stride, edge=edge)
            for tile in {0, len(grid) - 1, *rng.integers(0, len(grid), 6).tolist()}:
                x, y = grid.working[tile]
                here = np.s_[y : y + patch, x : x + patch]
                location = (int(grid.level0[tile, 0]), int(grid.level0[tile, 1]))
                read = slide.read(view, location, (patch, patch))
                off = np.abs(read.astype(np.int16) - level_around[here])
                assert off[inside[here]].max(initial=0) <= limit
                assert (read[outside[here]] == 255).all()
                assert (mask.read(view, location, (patch, patch)) == labels_around[here]).all()
        mask.close()


@readers
@exactly
@given(pyramid=pyramids(sizes(), spans=True), scan=st.floats(0.2, 1.0), request=st.floats(FINEST + 0.01, LARGEST))
def test_read_at_spacing_equals_area_mean(reader: ReaderName, pyramid: Pyramid, scan: float, request: float) -> None:
    width, height = pyramid.size
    image = np.full((height, width, 3), 128, np.uint8)
    image[..., 0], image[..., 1] = np.linspace(0, 250, width)[None, :], np.linspace(250, 0, height)[:, None]
    with open_slide(pyramid.levels(image), pyramid.tile, reader, mpp=scan) as slide:
        view = slide.choose_resolution(mpp=request * scan)
        read = slide.read(view, (0, 0), view.size).astype(np.float64)
        level_size = slide.level_dimensions[view.level]
    assert view.mpp == pytest.approx((view.downsample * scan,) * 2, rel=1e-4)
    assert view.downsample == pytest.approx(request, rel=1e-4 if view.is_resampled else SNAP + 1e-4)
    steps = [view.downsample] * 2
    if view.is_resampled:
        assert view.size == tuple(math.ceil(side / view.downsample - 1e-6) for side in pyramid.size)
    else:
        assert view.size == level_size
        steps = list(find_steps(pyramid.size, level_size))
    x, y = (np.arange(count + 1, dtype=np.float64) * step for count, step in zip(view.size, steps, strict=True))
    whole = np.pad(image, ((0, math.ceil(y[-1]) - height), (0, math.ceil(x[-1]) - width), (0, 0)), "edge")
    # The last two px may show glass beside the slide: a window ends at a whole px of the level that is read.
    off = read[:-2, :-2] - area_means(whole, x, y)[:-2, :-2]
    if off.size:
        for channel, axis in ((0, 0), (1, 1)):
            of_level_px = 250 / (pyramid.size[axis] - 1) * pyramid.size[axis] / level_size[axis]
            assert np.abs(off[..., channel]).max() <= 0.7 * of_level_px + 1
            assert abs(off[..., channel].mean()) <= 0.25 * of_level_px + 1
        assert not off[..., 2].any()
