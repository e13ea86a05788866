"""Frames, rounding and the fit of a mask."""

import csv
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from panda.errors import MaskError
from panda.wsi.geometry import Frame, Resolution, axis_scales, ceil_px, cut_blocks, level_scale, mask_frame, round_px
from panda.wsi.slide import Slide
from tests.pyramids import Rounding, level_size

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def test_round_px_rounds_halves_up_for_numbers_and_arrays() -> None:
    values = [-1.5, -0.5, -0.2, 0.49, 0.5, 1.5, 2.5, 99_999.5]
    assert [round_px(v) for v in values] == [-1, 0, 0, 0, 1, 2, 3, 100_000]
    rounded = round_px(np.array(values))
    assert rounded.dtype == np.int64
    assert rounded.tolist() == [round_px(v) for v in values]


@given(st.integers(-(10**6), 10**6), st.floats(0.9, 64))
def test_round_px_working_px_survives_round_trip_to_level_0(px: int, downsample: float) -> None:
    assert abs(round_px(round_px(px * downsample) / downsample) - px) <= (downsample < 1)


def test_ceil_px_ignores_error_of_division() -> None:
    assert ceil_px(19919 / (19919 / 4979)) == 4979
    assert ceil_px(3.0000000001) == 3
    assert ceil_px(3.01) == 4


def test_frame_maps_arrays_like_numbers() -> None:
    frame = Frame(4.0, 2.0)
    x, y = frame.to_level0(np.array([1, 2]), np.array([3, 4]))
    assert x.tolist() == [4.0, 8.0]
    assert y.tolist() == [6.0, 8.0]
    assert frame.to_level0(1, 3) == (4.0, 6.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_frame_scale_without_inverse_raises(scale: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Frame(scale, 1.0)


@given(st.integers(16, 60_000), st.integers(16, 60_000), st.sampled_from([2, 4, 8, 16]))
def test_level_scale_far_corner_is_within_one_px(width: int, height: int, step: int) -> None:
    level = max(1, width // step), max(1, height // step)
    downsample, deviation = level_scale((width, height), level)
    assert max(abs(width / downsample - level[0]), abs(height / downsample - level[1])) <= 1
    assert deviation <= 1


def test_level_scale_long_thin_slide_follows_long_side() -> None:
    downsample, deviation = level_scale((19919, 300), (1240, 18))
    assert downsample == 19919 / 1240
    assert deviation < 1


@given(
    st.integers(1, 60_000), st.integers(1, 60_000), st.sampled_from([1, 2, 3, 4, 8, 10, 16, 32]),
    st.sampled_from(get_args(Rounding)), st.sampled_from(get_args(Rounding)),
)  # fmt: skip
def test_axis_scales_any_rounding_gives_whole_number(
    width: int, height: int, step: int, across: Rounding, down: Rounding
) -> None:
    size = (width, height)
    scales = axis_scales(size, (level_size(size, step, across)[0], level_size(size, step, down)[1]))
    # At a level of less px than the number, further numbers give the same sides.
    limits = [(full / (full // step + 2), full / max(full // step - 1, 1e-9)) for full in size]
    assert scales[0] == scales[1] == int(scales[0])
    assert scales == (step, step) or max(size) < step * step + step
    assert all(low < scales[0] < high for low, high in limits)


@pytest.mark.parametrize("level", [(4979, 7085), (4980, 7086), (4980, 7085), (1244, 1771), (1245, 1772)])
def test_axis_scales_karolinska_size_is_whole_number(level: tuple[int, int]) -> None:
    assert axis_scales((19919, 28342), level) == ((4, 4) if level[0] > 4000 else (16, 16))


def test_axis_scales_without_whole_number_span_each_axis() -> None:
    assert axis_scales((1000, 800), (300, 240)) == (1000 / 300, 800 / 240)
    assert axis_scales((1000, 800), (500, 266)) == (2, 800 / 266)
    assert axis_scales((1000, 800), (2000, 1600)) == (0.5, 0.5)
    assert axis_scales((1005, 803), (62, 50)) == (16, 16)
    assert axis_scales((100, 90), (7, 6)) == (16, 16)  # 13 to 15 give these sides too


@given(st.integers(1, 900), st.integers(1, 900), st.floats(0.5, 600))
def test_blocks_tile_output_and_stay_small(width: int, height: int, factor: float) -> None:
    area = 0
    for x, y, w, h in cut_blocks(width, height, side=8192, factor=factor):
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
        assert max(w, h) * factor <= 8192 * (1 + 1e-9)
        area += w * h
    assert area == width * height


def test_mask_frame_spans_slide() -> None:
    assert mask_frame((19919, 28342), (9000, 12806)).to_level0(9000, 12806) == pytest.approx((19919, 28342))
    assert mask_frame((19919, 28342), (9959, 14171)) == Frame(2, 2)


@pytest.mark.parametrize("mask", [(1000, 2000), (1000, 1030), (500, 480)])
def test_mask_frame_other_shape_raises_with_both_sizes(mask: tuple[int, int]) -> None:
    with pytest.raises(MaskError, match=f"{mask[0]} x {mask[1]} px, slide is 1000 x 1000 px"):
        mask_frame((1000, 1000), mask)


shrunk = st.floats(0.01, 1)
sides = st.integers(16, 60_000)


@given(sides, sides, shrunk, st.sampled_from(get_args(Rounding)))
def test_mask_frame_shrunken_mask_is_accepted_for_any_rounding(
    width: int, height: int, scale: float, rounding: Rounding
) -> None:
    mask = level_size((width, height), 1 / scale, rounding)
    frame = mask_frame((width, height), mask)
    assert abs(width - mask[0] * frame.sx) <= frame.sx
    assert abs(height - mask[1] * frame.sy) <= frame.sy


@given(sides, sides, shrunk, st.floats(1.1, 4), st.booleans())
def test_mask_frame_tenth_longer_raises_with_both_sizes(
    width: int, height: int, scale: float, stretch: float, upright: bool
) -> None:
    mask = max(20, round(width * scale)), max(20, round(height * scale))
    slide = mask[0] * 7, mask[1] * 7
    mask = (mask[0], math.ceil(mask[1] * stretch)) if upright else (math.ceil(mask[0] * stretch), mask[1])
    with pytest.raises(MaskError, match=f"{mask[0]} x {mask[1]} px, slide is {slide[0]} x {slide[1]} px"):
        mask_frame(slide, mask)


def test_mask_frame_within_one_px_is_accepted() -> None:
    assert mask_frame((1000, 1000), (1000, 1001)).sy == pytest.approx(1000 / 1001)
    assert mask_frame((10_000, 290), (100, 2)).sy == 100  # a mask px is worth 100 slide px here
    assert mask_frame((1000, 801), (2001, 1602)) == Frame(0.5, 0.5)


@given(st.integers(3_000, 60_000), st.integers(3_000, 60_000), st.sampled_from([256, 512, 1024]), st.integers(0, 3))
def test_mask_frame_padded_to_tiles_raises(width: int, height: int, tile: int, halvings: int) -> None:
    padded = -(-width // tile) * tile, -(-height // tile) * tile
    mask = padded[0] >> halvings, padded[1] >> halvings
    # the shift of the far corner at one scale, px of the mask
    off = max(abs(mask[0] * height - mask[1] * width) / max(width, height), 1e-9)
    if off > 2 or (not halvings and max(padded[0] - width, padded[1] - height) > 1):
        with pytest.raises(MaskError, match="padded"):
            mask_frame((width, height), mask)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real slides are not at {REAL}")
def test_mask_frame_of_panda_sizes_padded_to_tiles_raises() -> None:
    with (REAL / "panda/level1_sizes.csv").open() as file:
        sizes = [(int(row["level1_width"]), int(row["level1_height"])) for row in csv.DictReader(file)]
    assert len(sizes) > 10_000
    for size in sizes:
        assert mask_frame(size, size) == Frame(1, 1)
        padded = -(-size[0] // 512) * 512, -(-size[1] // 512) * 512
        if max(padded[0] - size[0], padded[1] - size[1]) > 1:
            with pytest.raises(MaskError, match="padded"):
                mask_frame(size, padded)


def test_mask_frame_empty_mask_raises() -> None:
    with pytest.raises(MaskError, match="empty"):
        mask_frame((10, 10), (0, 10))


def test_resolution_gives_pixel_area_and_frame() -> None:
    resolution = Resolution(4.0, 100, 50, 1, 4.0, (2.0, 1.5))
    assert resolution.pixel_area_um2 == 3.0
    assert resolution.size == (100, 50)
    assert not resolution.is_resampled
    assert resolution.frame.to_level0(10, 5) == (40.0, 20.0)
    unknown = Resolution(5.0, 80, 40, 1, 4.0, None)
    assert unknown.pixel_area_um2 is None
    assert unknown.is_resampled


def test_resolution_level_padded_by_one_px_is_stored(tmp_path: Path) -> None:
    image = np.full((500, 1000, 3), 240, np.uint8)
    level = np.full((201, 400, 3), 240, np.uint8)  # 200 rows and one of padding
    with tifffile.TiffWriter(tmp_path / "a.tiff") as file:
        for number, pixels in enumerate((image, level)):
            file.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=int(number > 0), metadata=None)
    with Slide.open(tmp_path / "a.tiff") as slide:
        resolution = slide.choose_resolution(level=1)
    assert list(resolution.part) == [1, 0]
    stored = TypeAdapter(Resolution)
    assert stored.validate_json(stored.dump_json(resolution)) == resolution
