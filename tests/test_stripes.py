"""The parts of a mask, found stripe by stripe, are those that OpenCV finds at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.wsi import stripes as module
from panda.wsi.stripes import MaskComponents, add_halo, keep_large, stripes


def spiral(side: int) -> NDArray[np.bool_]:
    """One line, a px wide, that crosses each stripe again and again."""
    mask = np.zeros((side, side), np.uint8)
    for ring in range(0, side // 2, 2):
        cv2.rectangle(mask, (ring, ring), (side - 1 - ring, side - 1 - ring), 1)
        mask[ring + 1, ring] = 0
        mask[ring + 2, ring : ring + 2] = 1
    return mask > 0


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    share=st.sampled_from([0.0, 0.1, 0.35, 0.6, 1.0]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=st.integers(1, 45),
    kept=st.booleans(),
)
def test_mask_components_random_mask_matches_opencv(
    seed: int, share: float, size: tuple[int, int], rows: int, kept: bool
) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KEPT_PX", 10**9 if kept else 0)
        check(mask, rows)


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_mask_components_spiral_is_one_component(rows: int) -> None:
    mask = spiral(37)
    assert cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] == 2
    check(mask, rows)


def check(mask: NDArray[np.bool_], rows: int) -> None:
    count, right, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    pieces = MaskComponents(mask, rows, boxes=True)
    found = np.zeros(mask.shape, np.int64)
    for own, numbers in pieces.labels():
        found[own] = numbers
    pairs = np.unique(np.stack([right.ravel(), found.ravel()]), axis=1).T
    assert len(pairs) == count - (not (~mask).any()), "one number a part, and no other"
    for part, number in pairs[pairs[:, 0] > 0].tolist():
        assert number > 0
        assert pieces.area[number] == stats[part, cv2.CC_STAT_AREA]
        assert pieces.sides[number].tolist() == stats[part, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].tolist()
    large = mask.copy()
    keep_large(large, 4, rows)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    assert (large == (areas >= 4)[right]).all()


@given(height=st.integers(1, 50), rows=st.integers(1, 60), halo=st.integers(0, 20))
def test_stripes_tile_picture(height: int, rows: int, halo: int) -> None:
    lines = np.arange(height)
    seen = []
    for own, wide, within in stripes(height, rows, halo):
        assert (wide, within) == add_halo(own, height, halo)
        assert (lines[wide][within] == lines[own]).all()
        assert (lines[wide][0], lines[wide][-1]) == (
            max(own.start - halo, 0),
            min(own.stop + halo, height) - 1,
        )
        seen += lines[own].tolist()
    assert seen == lines.tolist()
