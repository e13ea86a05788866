"""Areas and outlines end at the edge of the slide, at any size and resolution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from panda.inference.geojson import write_geojson
from panda.inference.quantify import QuantifySettings, slide_quantification
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid

MPP = 0.5
ALL = QuantifySettings(min_region_um2=0, min_hole_um2=0)


def resolve(slide: Slide, mpp: float | None) -> Resolution:
    return slide.choose_resolution(level=1) if mpp is None else slide.choose_resolution(mpp=mpp)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    mpp=st.none() | st.floats(0.5, 9),
    tissue_mpp=st.none() | st.floats(0.5, 9),
    seed=st.integers(0, 99),
    block=st.integers(5, 90),
)
@example(size=(40, 41), mpp=None, tissue_mpp=None, seed=0, block=5)  # parts of px change the order of the regions
def test_areas_are_those_of_the_slide_at_any_size(
    tmp_path: Path, *, size: tuple[int, int], mpp: float | None, tissue_mpp: float | None, seed: int, block: int
) -> None:
    slide = Slide.open(write_pyramid(tmp_path / "s.tiff", np.zeros((*size[::-1], 3), np.uint8), (1, 4), mpp=MPP))
    resolution, seen = resolve(slide, mpp), resolve(slide, tissue_mpp)
    tissue = TissueMap(np.ones((seen.height, seen.width), np.bool_), seen, "whole")
    assert tissue.fraction == pytest.approx(1)
    # A level that is rounded down ends before the slide; every other resolution reaches its edge.
    shrink = resolution.downsample
    width, height = (min(count * shrink, side) for count, side in zip(resolution.size, size, strict=True))
    everywhere = np.ones((resolution.height, resolution.width))
    found = slide_quantification(everywhere, slide, resolution, 0.5, settings=ALL, tissue=tissue, block=block)
    assert found.tissue_mm2 == pytest.approx(width * height * MPP**2 / 1e6, rel=1e-5)
    assert found.tumor_percent_of_tissue == pytest.approx(100)
    assert (found.tumor_px, found.unscored_tissue_px) == (found.tissue_px, 0)
    assert found.regions[0].centroid == pytest.approx((width / 2, height / 2), rel=1e-4)
    assert found.regions[0].length_px == pytest.approx(np.hypot(width, height) / resolution.downsample, rel=1e-4)

    prob = np.random.default_rng(seed).random(everywhere.shape)
    found = slide_quantification(prob, slide, resolution, 0.6, settings=ALL, tissue=tissue, block=block)
    write_geojson(found, slide, resolution, tmp_path / "r.geojson")
    shapes = [
        shapely.geometry.shape(feature["geometry"])
        for feature in json.loads((tmp_path / "r.geojson").read_text())["features"]
    ]
    for shape, region in zip(shapes, found.regions, strict=True):
        assert shape.is_valid
        assert shape.area == pytest.approx(region.area_px * resolution.downsample**2, abs=0.01 * shape.length)
        assert (shape.bounds[2] <= size[0], shape.bounds[3] <= size[1]) == (True, True)
        if shape.area > 1:
            assert [shape.centroid.x, shape.centroid.y] == pytest.approx(region.centroid, abs=0.05)
    assert sum(region.area_px for region in found.regions) == pytest.approx(found.tumor_px)
    assert found.tumor_mm2 == pytest.approx(sum(shape.area for shape in shapes) * MPP**2 / 1e6, rel=1e-3)
