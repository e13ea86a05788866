"""Pictures, GeoJSON and OME-TIFF of a map of known content."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image

from panda.inference import ome_tiff
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.geojson import write_geojson
from panda.inference.legends import JET, Scale, round_length
from panda.inference.ome_tiff import write_ome_tiff
from panda.inference.outline_drawing import draw_outlines
from panda.inference.picture_file import find_image
from panda.inference.polygons import trace
from panda.inference.quantify import Quantification, QuantifySettings, slide_quantification
from panda.inference.slide_images import UNSCORED, Overview, shrink, write_heatmap, write_overlay, write_view
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid

WIDTH, HEIGHT = 5202, 3404  # level 1 is 1300 x 851, level 0 px per px not quite 4
PINK = (200, 140, 180)


def make_slide(folder: Path, mpp: float | None) -> Slide:
    image = np.full((HEIGHT, WIDTH, 3), PINK, np.uint8)
    return Slide.open(write_pyramid(folder / "a1b2.tiff", image, mpp=mpp))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return make_slide(tmp_path_factory.mktemp("slide"), 0.5)


@pytest.fixture(scope="module")
def slide_without_mpp(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return make_slide(tmp_path_factory.mktemp("bare"), None)


def truth(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Two tumours, one with a hole and one of boxes that touch at a corner, on a slope of low probability."""
    prob = np.broadcast_to(np.linspace(0, 0.3, shape[1], dtype=np.float32), shape).copy()
    prob[100:400, 200:600] = 0.9
    prob[200:300, 300:400] = 0.2
    prob[600:700, 700:800] = 0.75
    prob[700:760, 800:850] = 0.7
    return prob


def make_canvas(slide: Slide, path: Path) -> Canvas:
    """Write the map at level 1 in tiles of 100 px; px right of 1200 are not scored."""
    resolution = slide.choose_resolution(level=1)
    prob = np.pad(truth((resolution.height, resolution.width)), ((0, 100), (0, 100)))
    with CanvasWriter(path, resolution, 100, "f", {"slide_id": slide.slide_id}) as writer:
        for y in range(0, resolution.height, 100):
            tiles = [prob[y : y + 100, x : x + 100] for x in range(0, 1200, 100)]
            writer.add(np.stack(tiles), [[x, y] for x in range(0, 1200, 100)])
        return writer.close()


@pytest.fixture(scope="module")
def canvas(slide: Slide, tmp_path_factory: pytest.TempPathFactory) -> Canvas:
    return make_canvas(slide, tmp_path_factory.mktemp("canvas") / "c.zarr")


def make_full_tissue(slide: Slide) -> TissueMap:
    resolution = slide.choose_resolution(level=1)
    return TissueMap(np.ones((resolution.height, resolution.width), np.bool_), resolution, "strict")


def quantify(canvas: Canvas, slide: Slide, **limits: Any) -> Quantification:
    return slide_quantification(
        canvas,
        slide,
        canvas.resolution,
        0.5,
        settings=QuantifySettings(min_region_um2=0, min_hole_um2=0, min_region_px=0, min_hole_px=0, **limits),
        tissue=make_full_tissue(slide),
    )


def read_pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


def is_near(image: NDArray[np.uint8], colour: tuple[int, ...] | NDArray[np.uint8], by: int = 3) -> NDArray[np.bool_]:
    return np.asarray((np.abs(image.astype(int) - np.asarray(colour, int)) <= by).all(axis=-1))


@pytest.mark.parametrize("factor", [1, 2, 3, 7, 600])
def test_shrink_averages_scored_pixels(canvas: Canvas, factor: int) -> None:
    height, width = canvas.shape
    prob, scored = np.asarray(canvas).astype(np.float64), (canvas.read_codes(0, 0, width, height) > 0)
    [mean], share = shrink(canvas, factor)
    assert mean.shape == share.shape == (-(-height // factor), -(-width // factor))
    for row, column in ((0, 0), (len(mean) // 2, mean.shape[1] // 2), (len(mean) - 1, mean.shape[1] - 1)):
        block = np.s_[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert share[row, column] == pytest.approx(scored[block].mean())
        want = prob[block][scored[block]].mean() if scored[block].any() else 0
        assert mean[row, column] == pytest.approx(want, abs=1e-5)


def test_write_heatmap_uses_jet_colors(canvas: Canvas, tmp_path: Path) -> None:
    nothing = trace(np.zeros(canvas.shape, np.bool_))
    write_heatmap(canvas, nothing, 0.5, tmp_path / "heat.png")
    image = read_pixels(tmp_path / "heat.png")
    height, width = canvas.shape
    assert image.shape[0] > height
    assert image.shape[1] > width
    assert is_near(image, JET[round(0.9 * 255)], 0).sum() >= 300 * 400 - 100 * 100
    assert is_near(image, UNSCORED, 0).sum() >= height * (width - 1200)
    write_heatmap(canvas, nothing, 0.5, tmp_path / "heat.png", max_side=500)
    small = read_pixels(tmp_path / "heat.png")
    assert is_near(small, JET[round(0.9 * 255)], 0).sum() == pytest.approx((300 * 400 - 100 * 100) / 9, rel=0.1)
    assert list(tmp_path.iterdir()) == [tmp_path / "heat.png"]


def test_write_overlay_colors_and_outlines_tumor_only(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    found = quantify(canvas, slide)
    seen = Overview.from_canvas(slide, canvas, make_full_tissue(slide))
    write_overlay(seen, found.outlines, 0.5, tmp_path / "over.png")
    image = read_pixels(tmp_path / "over.png")
    overview, view = slide.overview()
    top, left = np.argwhere(is_near(image, overview[0, 0], 4))[0]  # the picture's first px
    scale = canvas.resolution.downsample / view.downsample

    def at(x: float, y: float) -> NDArray[np.uint8]:
        row, column = top + round(y * scale), left + round(x * scale)
        around = image[row - 2 : row + 3, column - 2 : column + 3]
        return np.asarray(np.median(around, axis=(0, 1)), np.uint8)

    assert is_near(at(30, 500), PINK, 4)  # low probability: the tissue as it is
    assert is_near(at(1250, 500), PINK, 4)  # not scored
    mixed = 0.6 * np.array(PINK) + 0.4 * JET[round(0.9 * 255)]
    assert is_near(at(500, 250), mixed.astype(np.uint8), 4)
    for x in (200, 600):  # the outline runs along the edge of the tumour, and around the hole
        row, column = top + round(250 * scale), left + round(x * scale)
        assert image[row, column - 3 : column + 4].max(axis=-1).min() < 100
    row, column = top + round(250 * scale), left + round(300 * scale)
    assert image[row, column - 3 : column + 4].max(axis=-1).min() < 100
    nothing = TissueMap(np.zeros((10, 10), np.bool_), make_full_tissue(slide).resolution, "strict")
    empty = trace(np.zeros(canvas.shape, np.bool_))
    write_overlay(Overview.from_canvas(slide, canvas, nothing), empty, 0.5, tmp_path / "over.png")
    assert is_near(read_pixels(tmp_path / "over.png"), mixed.astype(np.uint8), 4).sum() == 0


def test_write_heatmap_shows_glass_as_unscored(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    tissue = make_full_tissue(slide)
    tissue.mask[:, :150] = False
    nothing = trace(np.zeros(canvas.shape, np.bool_))
    for side, factor in ((2048, 1), (500, 3)):
        write_heatmap(canvas, nothing, 0.5, tmp_path / "heat.png", tissue=tissue, max_side=side)
        left, top, right, bottom = find_image(tmp_path / "heat.png") or (0, 0, 0, 0)
        image = read_pixels(tmp_path / "heat.png")[top:bottom, left:right]
        assert image.shape == (-(-canvas.shape[0] // factor), -(-canvas.shape[1] // factor), 3)
        unscored = is_near(image, UNSCORED, 0)
        assert unscored[:, : 150 // factor].all()
        assert unscored[:, 1200 // factor :].all()
        assert not unscored[:, 150 // factor + 1 : 1200 // factor - 1].any()


def test_draw_outlines_joins_specks_but_keeps_lone_ones() -> None:
    mask = np.zeros((4000, 6000), np.bool_)
    mask[500:3000, 500:3000] = True
    mask[520:2980:40, 520:2980:40] = False  # single px
    mask[600:2900:60, 600:2900] = False  # narrow gaps that part the tumour
    mask[1500:2100, 1500:2100] = False
    mask[3500:3520, 5000:5020] = True
    image = np.full((1000, 1500, 3), 200, np.uint8)
    draw_outlines(image, trace(mask), 0.25)
    dark = image.max(axis=2) < 120
    assert not dark[130:370, 130:370].any()
    assert dark[425, 370:380].any()  # the left edge of the hole of 150 px
    assert dark[300, 123:127].any()
    assert dark[300, 748:752].any()
    assert dark[870:885, 1245:1260].any()
    assert dark.sum() < 2 * (4 * 625 + 4 * 150 + 100)


def test_pictures_without_resolution_are_written(slide_without_mpp: Slide, tmp_path: Path) -> None:
    canvas = make_canvas(slide_without_mpp, tmp_path / "c.zarr")
    outlines = trace(np.asarray(canvas) > 0.5)
    write_heatmap(canvas, outlines, 0.123456, tmp_path / "heat.png", max_side=200)
    seen = Overview.from_canvas(slide_without_mpp, canvas, max_side=300)
    write_overlay(seen, outlines, 0.123456, tmp_path / "over.png")
    assert read_pixels(tmp_path / "heat.png").shape[1] > 200
    assert read_pixels(tmp_path / "over.png").shape[1] > 300


def test_write_view_aligns_map_tissue_and_label_with_slide(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    seen = Overview.from_canvas(slide, canvas, make_full_tissue(slide), max_side=700)
    label = np.zeros(seen.image.shape[:2], np.bool_)
    label[:40, :30] = True
    write_view(seen, tmp_path, label)
    planes = read_pixels(tmp_path / "map.png")
    with Image.open(tmp_path / "slide.jpg") as image:
        assert image.size == planes.shape[1::-1] == seen.resolution.size
        # The last px may reach past the level that is read, and JPEG spreads their white over 16 px.
        assert is_near(np.asarray(image), PINK, 4)[:-16, :-16].all()
    width, height = seen.resolution.size
    whole, scored = np.asarray(canvas), (canvas.read_codes(0, 0, *canvas.shape[::-1]) > 0)
    scale = seen.resolution.downsample / canvas.resolution.downsample
    for x, y in ((0.1, 0.5), (0.3, 0.2), (0.45, 0.3), (0.98, 0.5)):
        column, row = int(x * width), int(y * height)
        under = int((row + 0.5) * scale), int((column + 0.5) * scale)
        assert abs(int(planes[row, column, 0]) - 255 * whole[under]) <= 1
        assert (planes[row, column, 1] == 255) == scored[under]
    assert (planes[..., 2] == 255 * label).all()


@pytest.mark.parametrize(
    ("longest", "length"), [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (5, 5), (9.9, 5), (0.3, 0.2), (740, 500), (2600, 2000)]
)
def test_round_length_gives_round_scale_bars(longest: float, length: float) -> None:
    assert round_length(longest) == pytest.approx(length)


def test_scale_bar_states_length() -> None:
    assert Scale(4, 2.0).fit_bar(1000) == (250, "500 µm")
    assert Scale(16, 8.0).fit_bar(2048) == (250, "2 mm")
    assert Scale(4, None).fit_bar(1000) == (250, "1000 px at level 0 (µm/px unknown)")
    assert Scale(1, 0.25).fit_bar(3) == (1, "0.1 µm")


@pytest.mark.parametrize("connectivity", [4, 8])
def test_write_geojson_is_readable_by_qupath(slide: Slide, canvas: Canvas, tmp_path: Path, connectivity: int) -> None:
    found = quantify(canvas, slide, connectivity=connectivity)
    write_geojson(found, slide, canvas.resolution, tmp_path / "r.geojson")
    collection = json.loads((tmp_path / "r.geojson").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    assert len(features) == found.num_regions == (2 if connectivity == 8 else 3)
    assert features[0]["geometry"]["type"] == "Polygon"
    assert features[1]["geometry"]["type"] == ("MultiPolygon" if connectivity == 8 else "Polygon")
    for feature, region in zip(features, found.regions, strict=True):
        assert region.area_mm2 is not None
        assert feature["type"] == "Feature"
        assert uuid.UUID(feature["id"])
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["name"] == f"Tumor {region.id}"
        assert properties["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
        assert properties["measurements"]["Area µm^2"] == pytest.approx(region.area_mm2 * 1e6)
        assert properties["measurements"]["Max tumor probability"] == region.max_probability
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == pytest.approx(region.area_px * canvas.resolution.downsample**2, rel=1e-4)
        assert shape.area * 0.25 == pytest.approx(region.area_mm2 * 1e6, rel=1e-3)
        assert shape.bounds == pytest.approx(region.bbox, abs=0.51)
        assert [shape.centroid.x, shape.centroid.y] == pytest.approx(region.centroid, abs=0.01)
    assert len(shapely.geometry.shape(features[0]["geometry"]).interiors) == 1
    ring = features[0]["geometry"]["coordinates"][0]
    scale, corners = canvas.resolution.downsample, found.outlines.regions[found.regions[0].start_px][0][0].tolist()
    assert ring == [[round(x * scale, 3), round(y * scale, 3)] for x, y in [corners[0], *corners[::-1]]]


def test_write_geojson_rings_turn_as_rfc_7946_asks(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    """Exterior rings are anticlockwise in the axes as written, by which Shapely and GeoPandas judge too."""
    write_geojson(quantify(canvas, slide), slide, canvas.resolution, tmp_path / "r.geojson")
    features = json.loads((tmp_path / "r.geojson").read_text(encoding="utf-8"))["features"]
    rings = []
    for feature in features:
        for polygon in shapely.get_parts(shapely.geometry.shape(feature["geometry"])):
            rings += [(True, polygon.exterior), *((False, ring) for ring in polygon.interiors)]
    assert [ring.is_ccw for _, ring in rings] == [outer for outer, _ in rings]
    assert sum(outer for outer, _ in rings) == 3
    assert len(rings) == 4
    x, y = np.array(features[0]["geometry"]["coordinates"][0]).T
    assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0


def test_write_geojson_pieces_are_polygons_counted_once(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    found = quantify(canvas, slide)
    write_geojson(found, slide, canvas.resolution, tmp_path / "r.geojson", "pieces")
    features = json.loads((tmp_path / "r.geojson").read_text(encoding="utf-8"))["features"]
    assert [feature["geometry"]["type"] for feature in features] == ["Polygon"] * 3
    assert len({feature["id"] for feature in features}) == 3
    measured = [feature["properties"]["measurements"] for feature in features]
    assert [part["Region"] for part in measured] == [1, 2, 2]
    assert [part["Area working px"] for part in measured] == [110000, 10000, 3000]
    assert sum(part["Area µm^2"] for part in measured) == pytest.approx((found.tumor_mm2 or 0) * 1e6)
    assert [part["% of region"] for part in measured[1:]] == pytest.approx([100 * 10 / 13, 100 * 3 / 13])
    for feature, part in zip(features, measured, strict=True):
        area = shapely.geometry.shape(feature["geometry"]).area
        assert area == pytest.approx(part["Area working px"] * canvas.resolution.downsample**2, rel=1e-4)


def test_write_geojson_no_tumor_or_unknown_area(slide_without_mpp: Slide, tmp_path: Path) -> None:
    canvas = make_canvas(slide_without_mpp, tmp_path / "c.zarr")
    found = quantify(canvas, slide_without_mpp)
    write_geojson(found, slide_without_mpp, canvas.resolution, tmp_path / "r.geojson")
    features = json.loads((tmp_path / "r.geojson").read_text())["features"]
    assert "Area µm^2" not in features[0]["properties"]["measurements"]
    none = slide_quantification(
        np.zeros(canvas.shape), slide_without_mpp, canvas.resolution, 0.5, tissue=make_full_tissue(slide_without_mpp)
    )
    write_geojson(none, slide_without_mpp, canvas.resolution, tmp_path / "r.geojson")
    assert json.loads((tmp_path / "r.geojson").read_text())["features"] == []


def test_write_ome_tiff_is_pyramid_with_pixel_size(slide: Slide, canvas: Canvas, tmp_path: Path) -> None:
    path = tmp_path / "p.ome.tiff"
    write_ome_tiff(canvas, slide, path)
    want = np.rint(np.asarray(canvas) * 255).astype(np.uint8)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        [series] = tif.series
        assert [level.shape for level in series.levels] == [(851, 1300), (426, 650), (213, 325)]
        assert series.axes == "YX"
        np.testing.assert_array_equal(series.levels[0].asarray(), want)
        half = series.levels[1].asarray()
        mean = want[:850].reshape(425, 2, 650, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(half[:425], mean, atol=0.5)
        assert series.levels[2].asarray().mean() == pytest.approx(want.mean(), abs=1)
        assert all(level.keyframe.is_tiled for level in series.levels)
        metadata = tifffile.xml2dict(tif.ome_metadata or "")["OME"]["Image"]
        across, down = canvas.resolution.mpp or (0, 0)
        assert metadata["Pixels"]["PhysicalSizeX"] == pytest.approx(across)
        assert metadata["Pixels"]["PhysicalSizeY"] == pytest.approx(down)
        assert metadata["Pixels"]["PhysicalSizeXUnit"] == "µm"
        assert metadata["Name"].startswith("a1b2")
    with openslide.OpenSlide(path) as opened:
        assert opened.dimensions == (1300, 851)
        grey = np.asarray(opened.read_region((190, 90), 0, (50, 40)).convert("RGB"))
        np.testing.assert_array_equal(grey, want[90:130, 190:240, None].repeat(3, axis=2))
    reopened = Slide.open(path)
    assert reopened.mpp == pytest.approx((across, down), rel=1e-3)


def test_write_ome_tiff_is_classic_if_certainly_small(
    slide: Slide, canvas: Canvas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.ome.tiff"
    write_ome_tiff(canvas, slide, path)
    with tifffile.TiffFile(path) as tif:
        assert not tif.is_bigtiff
        classic = tif.asarray()
    with Image.open(path) as image:
        assert [child.size for child in image.get_child_images()] == [(650, 426), (325, 213)]
    monkeypatch.setattr(ome_tiff, "_CLASSIC_BYTES", 2**20)
    write_ome_tiff(canvas, slide, path)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff
        np.testing.assert_array_equal(tif.asarray(), classic)


def test_write_ome_tiff_size_of_noise_is_below_its_bound(slide: Slide, tmp_path: Path) -> None:
    resolution = slide.choose_resolution(level=1)
    noise = np.random.default_rng(0).random((1, 1300, 1300), np.float32)
    with CanvasWriter(tmp_path / "c", resolution, 1300, "f", {}) as writer:
        writer.add(noise, [[0, 0]])
    write_ome_tiff(Canvas.open(tmp_path / "c"), slide, tmp_path / "p.ome.tiff")
    size = (tmp_path / "p.ome.tiff").stat().st_size
    assert 1300 * 851 < size < ome_tiff._find_bound(1, [(851, 1300), (426, 650), (213, 325)])
    assert ome_tiff._find_bound(1, [(46000, 46000)]) > 46000**2


def test_write_ome_tiff_small_map_without_resolution_has_one_level(slide_without_mpp: Slide, tmp_path: Path) -> None:
    resolution = slide_without_mpp.choose_resolution(level=2)
    with CanvasWriter(tmp_path / "c", resolution, 64, "f", {}) as writer:
        writer.add(np.ones((1, 64, 64)), [[0, 0]])
    write_ome_tiff(Canvas.open(tmp_path / "c"), slide_without_mpp, tmp_path / "p.ome.tiff")
    with tifffile.TiffFile(tmp_path / "p.ome.tiff") as tif:
        assert len(tif.series[0].levels) == 1
        assert "PhysicalSize" not in (tif.ome_metadata or "PhysicalSize")
        image = tif.asarray()
    assert image[:64, :64].min() == 255
    assert image[64:].max() == 0
