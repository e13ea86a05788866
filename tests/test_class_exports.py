"""GeoJSON, OME-TIFF and pictures of a map of several classes of cancer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image

from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.class_areas import describe_class_area
from panda.inference.class_colours import PATTERN_COLOURS
from panda.inference.geojson import write_geojson
from panda.inference.ome_tiff import write_ome_tiff
from panda.inference.quantify import Quantification, QuantifySettings, slide_quantification
from panda.inference.slide_images import Overview, shrink, write_heatmap, write_overlay, write_view
from panda.wsi.annotations.source import AnnotationSource
from panda.wsi.classes import find_classes
from panda.wsi.label_maps import get_label_maps
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid

GLEASON = find_classes("gleason")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    image = np.full((3404, 5202, 3), (200, 140, 180), np.uint8)  # level 1 is 1300 x 851
    return Slide.open(write_pyramid(tmp_path_factory.mktemp("slide") / "a1b2.tiff", image, mpp=0.5))


@pytest.fixture(scope="module")
def canvas(slide: Slide, tmp_path_factory: pytest.TempPathFactory) -> Canvas:
    resolution = slide.choose_resolution(level=1)
    prob = np.zeros((3, 900, 1300), np.float32)
    prob[0, 100:400, 200:600] = 0.9
    prob[:, 200:300, 300:400] = [[[0.1]], [[0.7]], [[0.1]]]  # G4 inside G3
    prob[0, 150:160, 450:460] = 0
    prob[2, 400:450, 600:700] = 0.8  # touches the first one at a corner
    prob[1, 600:700, 700:800] = 0.75
    with CanvasWriter(
        tmp_path_factory.mktemp("canvas") / "c", resolution, 100, "f", {"slide_id": "a1b2"}, classes=GLEASON
    ) as writer:
        for y in range(0, 900, 100):
            corners = [(x, y) for x in range(0, 1300, 100)]
            writer.add(np.stack([prob[:, y : y + 100, x : x + 100] for x, _ in corners]), corners)
        return writer.close()


def quantify(canvas: Canvas, slide: Slide, connectivity: Literal[4, 8] = 8) -> Quantification:
    level = slide.choose_resolution(level=1)
    tissue = TissueMap(np.ones((level.height, level.width), np.bool_), level, "strict")
    limits = QuantifySettings(min_region_um2=0, min_hole_um2=0, connectivity=connectivity)
    return slide_quantification(canvas, slide, canvas.resolution, 0.5, settings=limits, tissue=tissue)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_write_geojson_of_classes_parts_the_tumor(
    slide: Slide, canvas: Canvas, tmp_path: Path, connectivity: Literal[4, 8]
) -> None:
    found = quantify(canvas, slide, connectivity)
    write_geojson(found, slide, canvas.resolution, tmp_path / "r.geojson")
    features = json.loads((tmp_path / "r.geojson").read_text(encoding="utf-8"))["features"]
    assert len({feature["id"] for feature in features}) == len(features)
    names = [feature["properties"]["name"] for feature in features]
    assert names == (["G3 1", "G4 1", "G5 1", "G4 2"] if connectivity == 8 else ["G3 1", "G4 1", "G4 2", "G5 3"])
    px = canvas.resolution.downsample**2
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert all(shape.is_valid for shape in shapes)
    for held in found.classes:
        own = [
            (shape, feature["properties"])
            for shape, feature in zip(shapes, features, strict=True)
            if feature["properties"]["classification"]["name"] == held.name
        ]
        assert sum(shape.area for shape, _ in own) == pytest.approx(held.area_px * px, rel=1e-4)
        assert sum(part["measurements"]["Area working px"] for _, part in own) == held.area_px
        assert sum(part["measurements"]["Area µm^2"] for _, part in own) == pytest.approx((held.area_mm2 or 0) * 1e6)
        assert {tuple(part["classification"]["color"]) for _, part in own} == {PATTERN_COLOURS[held.patterns[-1]]}
        assert {part["objectType"] for _, part in own} == {"annotation"}
    union = shapely.union_all([shape.buffer(0) for shape in shapes])
    assert union.area == pytest.approx(sum(shape.area for shape in shapes), rel=1e-9)  # no px is in two classes
    assert features[0]["properties"]["measurements"]["Region"] == 1
    assert len(shapes[0].interiors) == 2  # the hole, and G4
    if connectivity == 8:
        share = features[1]["properties"]["measurements"]["% of region"]
        assert share == pytest.approx(100 * 100**2 / found.regions[0].area_px)


def test_write_ome_tiff_of_classes_has_a_channel_for_each(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    path = tmp_path / "p.ome.tiff"
    write_ome_tiff(canvas, slide, path)

    def convert(prob: NDArray[np.float32]) -> NDArray[np.uint8]:
        return np.rint(prob * 255).astype(np.uint8)

    want = convert(np.stack([np.asarray(canvas), *canvas.read_classes(0, 0, 1300, 851)]))
    with tifffile.TiffFile(path) as tif:
        [series] = tif.series
        assert series.axes == "CYX"
        assert [level.shape for level in series.levels] == [(4, 851, 1300), (4, 426, 650), (4, 213, 325)]
        np.testing.assert_array_equal(series.levels[0].asarray(), want)
        mean = want[:, :850].reshape(4, 425, 2, 650, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(series.levels[1].asarray()[:, :425], mean, atol=0.5)
        pixels = tifffile.xml2dict(tif.ome_metadata or "")["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in pixels["Channel"]] == [
        f"{name} probability x 255" for name in ("tumour", "G3", "G4", "G5")
    ]
    colours = [int(channel["Color"]) & 0xFFFFFFFF for channel in pixels["Channel"]]
    assert [colour >> 8 for colour in colours[1:]] == [
        int.from_bytes(bytes(PATTERN_COLOURS[pattern])) for pattern in (3, 4, 5)
    ]
    assert pixels["PhysicalSizeX"] == pytest.approx((canvas.resolution.mpp or (0, 0))[0])


def count_px(path: Path, colour: NDArray[np.uint8] | tuple[int, ...], by: int = 1) -> int:
    with Image.open(path) as image:
        return int((np.abs(np.asarray(image).astype(int) - np.asarray(colour, int)) <= by).all(axis=-1).sum())


def test_shrink_of_classes_averages_each(canvas: Canvas) -> None:
    by_class, share = shrink(canvas, 10)
    assert by_class.shape == (3, 86, 130)
    assert by_class[:, 25, 35] == pytest.approx([0.1, 0.7, 0.1], abs=1e-4)
    assert by_class[:, 15, 45] == pytest.approx([0, 0, 0])
    assert share.min() == 1


def test_write_heatmap_of_classes_has_their_colours(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    found = quantify(canvas, slide)
    write_heatmap(canvas, found.outlines, 0.5, tmp_path / "heat.png", areas=found.classes)
    for pattern, prob, area in ((3, 0.9, 400 * 300 - 10100), (4, 0.75, 10000), (5, 0.8, 5000)):
        faded = np.rint(
            (1 - round(prob * 255) / 255) * 255 + round(prob * 255) / 255 * np.array(PATTERN_COLOURS[pattern])
        )
        assert count_px(tmp_path / "heat.png", faded) > 0.8 * area  # the rest is under the outline


def test_write_overlay_of_classes_tints_with_their_colours(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    found = quantify(canvas, slide)
    seen = Overview.from_canvas(slide, canvas)
    write_overlay(seen, found.outlines, 0.5, tmp_path / "over.png", areas=found.classes)
    for pattern in (3, 4, 5):
        tinted = 0.6 * seen.image[0, 0] + 0.4 * np.array(PATTERN_COLOURS[pattern])
        assert count_px(tmp_path / "over.png", tinted, 3) > 2000
        assert count_px(tmp_path / "over.png", PATTERN_COLOURS[pattern], 0) > 100  # in the legend


def test_write_view_of_classes_numbers_them(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    seen = Overview.from_canvas(slide, canvas, max_side=1300)
    write_view(seen, tmp_path)
    with Image.open(tmp_path / "map.png") as image:
        planes = np.asarray(image)
    scale = canvas.resolution.downsample / seen.resolution.downsample
    for x, y, number, prob in ((250, 150, 1, 0.9), (350, 250, 2, 0.9), (650, 420, 3, 0.8)):
        red, green, blue = planes[round(y * scale), round(x * scale)].tolist()
        assert (256 - green, blue) == (number, 0)
        assert red == pytest.approx(255 * prob, abs=1)


def test_class_area_of_legend_states_area_and_share(slide: Slide, canvas: Canvas) -> None:
    part = quantify(canvas, slide).classes[1]
    area = part.area_px * (canvas.resolution.pixel_area_um2 or 0) / 1e6
    assert describe_class_area(part) == f"G4: {area:.3f} mm², {part.percent_of_tumor:.1f} % of the tumour"
    bare = part.model_copy(update={"area_mm2": None, "percent_of_tumor": None})
    assert describe_class_area(bare) == "G4: 20,000 px"


def test_geojson_of_classes_reads_back_as_the_class_map(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    """An unchanged file of QuPath labels each px with the pattern of its class."""
    found = quantify(canvas, slide)
    path = tmp_path / "r.geojson"
    write_geojson(found, slide, canvas.resolution, path)
    source = AnnotationSource.open(path, slide, get_label_maps()["annotations"])
    codes, on_slide = source.read(canvas.resolution, (0, 0), canvas.resolution.size)
    np.testing.assert_array_equal(codes[on_slide], np.array([0, 3, 4, 5])[found.class_map][on_slide])
