"""Annotations of QuPath, ASAP, ImageScope and HALO become label codes of their slide."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.data.extraction import extract_store
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.settings import PatchSettings, StoreKind
from panda.errors import MaskError
from panda.wsi.annotations.raster import Raster
from panda.wsi.annotations.source import AnnotationSource, read_annotations
from panda.wsi.label_maps import LabelMap, find_label_map
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from tests.drawings import Corners, box, feature, write_asap, write_halo, write_imagescope, write_json
from tests.panda_folder import make_folder
from tests.pyramids import drop_tiles, write_pyramid

WIDTH, HEIGHT = 401, 299
MAP = find_label_map("annotations")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    blank = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    return Slide.open(write_pyramid(tmp_path_factory.mktemp("s") / "s.tiff", blank, (1, 4), mpp=0.5))


def draw(path: Path, slide: Slide, label_map: LabelMap = MAP) -> NDArray[np.uint8]:
    """Return the codes of a file at level 0."""
    level0 = slide.choose_resolution(level=0)
    return AnnotationSource.open(path, slide, label_map).read(level0, (0, 0), level0.size)[0]


def paint(*areas: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """Return codes with boxes, each x0, y0, x1, y1 and its code."""
    codes = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x0, y0, x1, y1, code in areas:
        codes[y0:y1, x0:x1] = code
    return codes


star = st.lists(st.tuples(st.integers(0, 628), st.integers(20, 100)), min_size=3, max_size=12, unique_by=lambda p: p[0])
place = st.tuples(st.floats(-5, 35), st.floats(-5, 35), st.floats(1, 30))


def make_star(corners: list[tuple[int, int]], at: tuple[float, float, float]) -> shapely.Geometry:
    x, y, radius = at[0], at[1], at[2] / 100
    ring = [
        (x + radius * r * np.cos(angle / 100), y + radius * r * np.sin(angle / 100)) for angle, r in sorted(corners)
    ]
    return shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)


@given(st.lists(st.tuples(star, place), max_size=5), st.floats(0.3, 3), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_raster_agrees_with_shapely_at_px_centres(
    drawn: list[tuple[list[tuple[int, int]], tuple[float, float, float]]], downsample: float, side: int
) -> None:
    areas = [area for area in (make_star(*one) for one in drawn) if area.area > 0]
    x, y = (np.arange(side) + 0.5) * downsample, (np.arange(20) + 0.5) * downsample
    grid = np.meshgrid(x, y)
    expected, unsure = np.full((20, side), 9, np.uint8), np.zeros((20, side), bool)
    for code, area in enumerate(areas):
        expected[shapely.contains_xy(area, *grid)] = code
        unsure |= shapely.distance(area.boundary, shapely.points(*grid)) < 1e-9
    got = Raster(areas, range(len(areas))).draw(x, y, 9)
    np.testing.assert_array_equal(got[~unsure], expected[~unsure])


def test_raster_px_on_common_edge_belongs_to_one_area() -> None:
    areas = [shapely.box(x, y, x + 1.5, y + 1.5) for y in (0.5, 2) for x in (0.5, 2)]
    centres = np.arange(4) + 0.5
    got = Raster(areas, [1, 2, 3, 4]).draw(centres, centres)
    assert got.tolist() == [[1, 1, 2, 0], [1, 1, 2, 0], [3, 3, 4, 0], [0, 0, 0, 0]]


def test_raster_covered_areas_in_batches_keep_the_upper_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.wsi.annotations.raster._BATCH_PX", 7)
    areas = [shapely.box(0, 0, 20 - n, 20 - n) for n in range(10)]
    got = Raster(areas, range(10)).draw(np.arange(20) + 0.5, np.arange(20) + 0.5)
    rows, columns = np.mgrid[:20, :20]
    np.testing.assert_array_equal(got, np.minimum(19 - np.maximum(rows, columns), 9))


TISSUE_BOX = box(64, 64, 640, 448)
LISTED = [feature("Tumor", box(10, 20, 60, 80), box(30, 40, 40, 50)), feature("BENIGN", box(50, 20, 90, 40))]


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: {"type": "FeatureCollection", "features": f}])
def test_parse_geojson_lists_and_collections(tmp_path: Path, slide: Slide, wrap: Callable[[object], object]) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(wrap(LISTED)), encoding="utf-8-sig")
    expected = paint((10, 20, 60, 80, 2), (30, 40, 40, 50, 0), (50, 20, 90, 40, 1))
    np.testing.assert_array_equal(draw(path, slide), expected)
    path.write_text(json.dumps(LISTED[1]))
    np.testing.assert_array_equal(draw(path, slide), paint((50, 20, 90, 40, 1)))


def test_parse_geojson_smaller_area_is_above_larger_one(tmp_path: Path, slide: Slide) -> None:
    small, large = feature("G4", box(20, 20, 30, 30)), feature("G3", box(0, 0, 50, 50))
    for order in ([small, large], [large, small]):
        codes = draw(write_json(tmp_path / "a.json", order), slide)
        np.testing.assert_array_equal(codes, paint((0, 0, 50, 50, 3), (20, 20, 30, 30, 4)))


def test_parse_geojson_several_polygons_locked_and_nested(tmp_path: Path, slide: Slide) -> None:
    several = feature("Tumor", box(0, 0, 9, 9))
    several["geometry"] = {
        "type": "MultiPolygon",
        "coordinates": [[[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]], [[[20, 0], [29, 0], [29, 9], [20, 9], [20, 0]]]],
    }
    inner = feature("Gleason 5", box(2, 2, 4, 4), isLocked=True)
    several["properties"] |= {"isLocked": True, "childObjects": [inner], "measurements": {"a": 1}}
    old = feature(
        None, box(40, 0, 50, 9), classification={"name": "benign", "colorRGB": -3670016}, objectType="Annotation"
    )
    derived = feature(None, box(60, 0, 70, 9), classification={"names": ["Tumor", "G4"]})
    own = MAP.model_copy(update={"aliases": MAP.aliases | {"tumor: g4": 4}})
    codes = draw(write_json(tmp_path / "a.geojson", [several, old, derived]), slide, own)
    boxes = (0, 0, 9, 9, 2), (20, 0, 29, 9, 2), (2, 2, 4, 4, 5), (40, 0, 50, 9, 1), (60, 0, 70, 9, 4)
    np.testing.assert_array_equal(codes, paint(*boxes))


def test_parse_geojson_objects_that_are_no_labels_are_ignored(tmp_path: Path, slide: Slide) -> None:
    point, legacy = feature("Tumor", box(0, 0, 1, 1)), feature("Tumor", box(0, 0, 9, 9))
    point["geometry"] = {"type": "Point", "coordinates": [3, 3]}
    legacy["id"] = "PathCellObject"
    del legacy["properties"]["objectType"]
    others = [feature(None, box(0, 0, 99, 99)), feature("Tumor", box(0, 0, 9, 9), objectType="detection")]
    path = write_json(tmp_path / "a.geojson", [point, legacy, *others, LISTED[1]])
    np.testing.assert_array_equal(draw(path, slide), paint((50, 20, 90, 40, 1)))
    (note,) = AnnotationSource.open(path, slide, MAP).notes
    assert "1 points or lines" in note
    assert "1 of type cell" in note
    assert "1 without a class" in note
    assert "1 of type detection" in note


def test_parse_asap_groups_are_drawn_in_their_order(tmp_path: Path, slide: Slide) -> None:
    annotations: list[tuple[str, str, Corners]] = [
        ("Rectangle", "benign", box(20, 20, 30, 30)),
        ("Polygon", "tumor", box(0, 0, 50, 50)),
        ("Spline", "tumor", box(60, 0, 70, 9)),
        ("Dot", "tumor", [(3, 3)]),
        ("Polygon", "None", box(0, 0, 99, 99)),
    ]
    path = write_asap(tmp_path / "a.xml", ["tumor", "benign"], annotations)
    expected = paint((0, 0, 50, 50, 2), (60, 0, 70, 9, 2), (20, 20, 30, 30, 1))
    np.testing.assert_array_equal(draw(path, slide), expected)
    path = write_asap(tmp_path / "b.xml", ["benign", "tumor"], annotations)
    np.testing.assert_array_equal(draw(path, slide), paint((0, 0, 50, 50, 2), (60, 0, 70, 9, 2)))
    path = write_asap(tmp_path / "c.xml", ["tumor"], annotations[:2])
    with pytest.raises(MaskError, match="PartOfGroup 'benign' is not among the groups"):
        draw(path, slide)


def test_parse_asap_decimal_comma_is_read_and_noted(tmp_path: Path, slide: Slide) -> None:
    path = write_asap(tmp_path / "a.xml", ["tumor"], [("Polygon", "tumor", box(10, 10, 20, 20))])
    path.write_text(path.read_text().replace('X="10"', 'X="10,25"'))
    np.testing.assert_array_equal(draw(path, slide), paint((10, 10, 20, 20, 2)))
    assert "decimal comma" in AnnotationSource.open(path, slide, MAP).notes[0]


def test_parse_halo_holes_are_cut_out_of_their_layer(tmp_path: Path, slide: Slide) -> None:
    layers: list[tuple[str, list[tuple[str, bool, Corners]]]] = [
        ("Benign", [("Polygon", False, box(0, 0, 100, 100))]),
        ("Tumor", [("Rectangle", False, [(20, 20), (60, 60)]), ("Polygon", True, box(30, 30, 40, 40))]),
        ("G3", [("Ellipse", False, [(200, 100), (220, 140)]), ("Ruler", False, [(0, 0), (5, 5)])]),
    ]
    codes = draw(write_halo(tmp_path / "a.annotations", layers), slide)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = paint((0, 0, 100, 100, 1), (20, 20, 60, 60, 2), (30, 30, 40, 40, 1))
    expected[((x - 210) / 10) ** 2 + ((y - 120) / 20) ** 2 < 1] = 3
    np.testing.assert_array_equal(codes, expected)


def test_parse_imagescope_class_is_in_the_description(tmp_path: Path, slide: Slide) -> None:
    regions = [(0, False, box(0, 0, 50, 50)), (0, True, box(10, 10, 20, 20)), (1, False, box(60, 0, 70, 10))]
    path = write_imagescope(tmp_path / "a.xml", "Tumor", regions, mpp=0.5)
    expected = paint((0, 0, 50, 50, 2), (10, 10, 20, 20, 0), (60, 0, 70, 10, 2))
    np.testing.assert_array_equal(draw(path, slide), expected)
    write_imagescope(path, "Tumor", regions, mpp=0.25)
    with pytest.raises(MaskError, match=r"states 0\.25 µm/px, the slide has 0\.5: .*another slide"):
        draw(path, slide)


def test_parse_xml_with_doctype_is_refused(tmp_path: Path) -> None:
    path = write_asap(tmp_path / "a.xml", [], [])
    path.write_text(path.read_text().replace("<ASAP_A", "<!DOCTYPE ASAP_Annotations>\n<ASAP_A", 1))
    with pytest.raises(MaskError, match=r"a\.xml: declares a DOCTYPE"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.geojson", "[1,", "is no JSON"),
        ("a.geojson", '{"type": "Polygon"}', r"no list of features \(its type is 'Polygon'\)"),
        ("a.geojson", "3", "no list of features"),
        ("a.geojson", "[" * 100_000, "is no JSON"),
        ("a.xml", "<Annotations><Annotation>", "is no XML"),
        ("a.xml", "", "is no XML"),
        ("a.xml", "<kml/>", "its root is 'kml'"),
    ],
)
def test_read_annotations_other_content_names_the_file(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MaskError, match=rf"{name}: .*{message}"):
        read_annotations(tmp_path / name)


def test_annotation_source_lists_all_faults_of_a_file(tmp_path: Path, slide: Slide) -> None:
    word = feature("Tumor", [("a", 2), (3, 4), (5, 6)], name="one")  # type: ignore[list-item]
    endless = feature("Tumor", [(1, 2), (float("nan"), 4), (5, 6)])
    thin = feature("Tumor", [(1, 2), (3, 4)])
    odd = feature("Tumor", box(0, 0, 9, 9))
    odd["geometry"]["type"] = "GeometryCollection"
    features = [word, endless, thin, odd, feature("Cancre", box(0, 0, 9, 9)), feature("Tumor", box(450, 0, 460, 9))]
    with pytest.raises(MaskError) as caught:
        draw(write_json(tmp_path / "a.geojson", [*features[:5], feature("Tumor", box(402, 0, 410, 9))]), slide)
    text = str(caught.value)
    assert "a.geojson: 6 faults in the annotations:" in text
    for part in (
        "features[0] 'one': corner 0 is ['a', 2]: give two finite numbers",
        "features[1]: corner 1 is [nan, 4]",
        "features[2]: a ring has fewer than 3 corners",
        "features[3]: its geometry is GeometryCollection",
        "class 'Cancre' of 1 annotation (features[4]) is none of 'not annotated', 'benign'",
        "features[5]: is outside the slide (its box is 402, 0, 410, 9, the slide is 401 x 299 px)",
    ):
        assert part in text
    with pytest.raises(MaskError, match=r"reach from \(10, 0\) to \(460, 80\).*annotations of another slide"):
        draw(write_json(tmp_path / "a.geojson", features[5:] + LISTED), slide)


def test_annotation_source_repairs_are_noted(tmp_path: Path, slide: Slide) -> None:
    bow = feature("Tumor", [(10, 10), (30, 30), (30, 10), (10, 30)])
    past = feature("G3", box(390, 0, 420, 10))
    path = write_json(tmp_path / "a.geojson", [bow, past])
    codes = draw(path, slide)
    assert codes[:10, 390:].min() == 3
    assert (codes == 2).sum() == pytest.approx(200, abs=20)
    notes = " ".join(AnnotationSource.open(path, slide, MAP).notes)
    assert "features[0]: Self-intersection[20 20]; repaired, its area is 200 px" in notes
    assert "1 areas reach past the slide's edge (features[1])" in notes


def test_annotation_source_empty_file_means_benign_only_if_said(tmp_path: Path, slide: Slide) -> None:
    path = write_json(tmp_path / "a.geojson", [])
    with pytest.raises(MaskError, match=r"holds no annotation: .*data\.empty_means_benign=true"):
        draw(path, slide)
    benign = MAP.model_copy(update={"empty_means_benign": True})
    assert set(np.unique(draw(path, slide, benign))) == {1}
    write_json(path, [feature(None, box(0, 0, 9, 9))])
    with pytest.raises(MaskError, match="no annotation with a class, only 1 without a class"):
        draw(path, slide, benign)


def test_annotation_source_ambiguous_or_missing_codes(tmp_path: Path, slide: Slide) -> None:
    own = LabelMap(names={1: "tumor", 2: "Tumor"}, cancer=(1, 2), unlabelled=())
    with pytest.raises(MaskError) as caught:
        draw(write_json(tmp_path / "a.geojson", [LISTED[0]]), slide, own)
    assert "is the name of codes [1, 2]" in str(caught.value)
    assert "no code 0" in str(caught.value)


@pytest.mark.parametrize("pick", [{"level": 0}, {"level": 1}, {"mpp": 1.3}, {"downsample": 0.95}])
def test_annotation_source_windows_agree_with_the_whole(tmp_path: Path, slide: Slide, pick: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    ring = np.stack([200 + 150 * np.cos(a := np.sort(rng.uniform(0, 6.28, 40))), 150 + 140 * np.sin(a)], axis=1)
    path = write_json(
        tmp_path / "a.geojson", [feature("Tumor", [tuple(c) for c in ring.tolist()], box(150, 100, 210, 160))]
    )
    mask = pickle.loads(pickle.dumps(LabelMask.open(path, slide, "annotations")))
    resolution = slide.choose_resolution(**pick)  # type: ignore[arg-type]
    whole = mask.overview(resolution)
    assert (whole == 2).any()
    d = resolution.downsample
    for column, row in ((0, 0), (10, 5), (resolution.width - 20, resolution.height - 20)):
        if resolution.is_resampled and d * column != round(d * column):
            continue
        window = mask.read(resolution, (round(column * d), round(row * d)), (40, 30))
        inside = whole[row : row + 30, column : column + 40]
        np.testing.assert_array_equal(window[: inside.shape[0], : inside.shape[1]], inside)
        assert not window[inside.shape[0] :].any()
    target = mask.read_target(resolution, (-20, -20), (10, 10), ignore_background=False)
    assert not target.any()


@pytest.mark.parametrize("tool", ["qupath", "asap"])
def test_annotation_source_frame_of_a_slide_with_bounds(tmp_path: Path, tool: str) -> None:
    blank = np.full((1500, 1800, 3), 200, np.uint8)
    path = drop_tiles(write_pyramid(tmp_path / "s.tiff", blank, (1, 4), mpp=0.5), (256, 512, 1536, 1280))
    slide = Slide.open(path)
    assert slide.bounds is not None
    x, y = slide.bounds[:2]
    if tool == "asap":
        drawn = write_asap(tmp_path / "a.xml", ["tumor"], [("Polygon", "tumor", box(x + 40, y + 20, x + 80, y + 60))])
    else:
        drawn = write_json(tmp_path / "a.geojson", [feature("tumor", box(40, 20, 80, 60))])
    codes = draw(drawn, slide)
    expected = np.zeros_like(codes)
    expected[20:60, 40:80] = 2
    np.testing.assert_array_equal(codes, expected)


def test_parse_imagescope_open_stroke_is_noted(tmp_path: Path, slide: Slide) -> None:
    angle = np.linspace(0, np.pi, 60)
    arc = [(200 + 90 * float(np.cos(a)), 100 + 90 * float(np.sin(a))) for a in angle]
    around = [(x, y) for x, y in [*arc, *((x, 200 - y) for x, y in arc[::-1])]]
    path = write_imagescope(tmp_path / "a.xml", "Tumor", [(0, False, arc), (0, False, around)], mpp=0.5)
    (note,) = AnnotationSource.open(path, slide, MAP).notes
    assert "Region 0: its ends are 180 px apart; closed by a straight line" in note


def test_annotation_source_saved_arrays_draw_the_same(tmp_path: Path, slide: Slide) -> None:
    path = write_json(tmp_path / "a.geojson", LISTED)
    AnnotationSource.open(path, slide, MAP).save(tmp_path / "a.npz")
    loaded = AnnotationSource.load(path, tmp_path / "a.npz")
    assert loaded is not None
    level0 = slide.choose_resolution(level=0)
    np.testing.assert_array_equal(loaded.read(level0, (0, 0), level0.size)[0], draw(path, slide))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert AnnotationSource.load(path, tmp_path / "a.npz") is None
    assert AnnotationSource.load(path, tmp_path / "absent.npz") is None
    benign = MAP.model_copy(update={"empty_means_benign": True})
    AnnotationSource.open(write_json(path, []), slide, benign).save(tmp_path / "b.npz")
    loaded = AnnotationSource.load(path, tmp_path / "b.npz")
    assert loaded is not None
    assert loaded.read(level0, (0, 0), level0.size)[0].min() == 1


def test_stores_of_all_kinds_hold_the_same_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = make_folder(tmp_path / "small", 1)
    path = write_json(tmp_path / "a.geojson", [feature("G4", box(131, 127, 383, 320)), feature("benign", TISSUE_BOX)])
    record = dataclasses.replace(record, mask_path=path, provider="annotations")
    sets = []
    for kind in get_args(StoreKind):
        settings_of_kind = PatchSettings(level=1, patch_size=64, ignore_background=True, store=kind)
        result = extract_store([record], settings_of_kind, tmp_path / "stores", "small", progress=False)
        assert not result.failures
        sets.append(PatchSet(write_patch_manifests(result, {record.slide_id: "train"})["train"]))
    monkeypatch.setattr("panda.wsi.annotations.source.read_annotations", lambda path: pytest.fail("was parsed again"))
    values: set[float] = set()
    for number in range(len(sets[0])):
        masks = [patches[number][1] for patches in sets]
        assert all(torch.equal(masks[0], mask) for mask in masks[1:])
        values |= set(masks[0].flatten().tolist())
    assert values == {-1.0, 0.0, 1.0}


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["Tumor", "Polygon", "1", ""])
keys = st.sampled_from(
    ["type", "features", "geometry", "coordinates", "properties", "classification", "name", "names", "childObjects"]
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)


@given(trees, trees, st.sampled_from(["Polygon", "MultiPolygon", "Feature"]))
@settings(max_examples=300, deadline=None)
def test_parse_geojson_any_content_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: object, inner: object, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.geojson"
    drawn = {
        "geometry": {"type": kind, "coordinates": inner},
        "properties": {"classification": inner, "children": tree},
    }
    for content in (tree, {"type": "FeatureCollection", "features": [drawn, tree]}):
        path.write_text(json.dumps(content))
        try:
            file = read_annotations(path)
        except MaskError:
            continue
        assert all(found.polygon.is_valid and found.polygon.area > 0 for found in file.annotations)


@pytest.mark.parametrize(
    ("ring", "message"),
    [
        ([], "corner 0 is missing"),
        ([["1", "2"], ["3", "4"], ["5", "1"]], "corner 0 is ['1', '2']"),
        ([[1, 2], [3], [4, 5]], "corner 1 is [3]"),
        ([[1, 2], None, [4, 5]], "corner 1 is None"),
        ([[1, 2], [1e400, 2], [4, 5]], "corner 1 is [inf, 2]"),
        ([[1, 2], [True, False], [4, 5]], None),
    ],
)
def test_parse_geojson_odd_corners(tmp_path: Path, ring: list[object], message: str | None) -> None:
    odd = feature("Tumor", box(0, 0, 9, 9))
    odd["geometry"]["coordinates"] = [ring]
    file = read_annotations(write_json(tmp_path / "a.geojson", [odd]))
    assert [message in fault for fault in file.faults] == [True] if message else not file.faults


@pytest.mark.parametrize("geometry", ["Polygon", ["Polygon"], 3, None, {}, {"type": ["Polygon"]}, {"type": None}])
def test_parse_geojson_geometry_of_another_kind_is_a_fault(tmp_path: Path, geometry: object) -> None:
    odd = {"type": "Feature", "geometry": geometry, "properties": {}}
    (fault,) = read_annotations(write_json(tmp_path / "a.geojson", [odd])).faults
    assert fault.endswith("give a Polygon or a MultiPolygon, or delete it")
    (given,) = [geometry["type"]] if isinstance(geometry, dict) and geometry.get("type") else [geometry]
    assert f"features[0]: its geometry is {given}:" in fault


def test_parse_geojson_corners_may_have_a_height(tmp_path: Path, slide: Slide) -> None:
    high = feature("Tumor", box(10, 10, 20, 20))
    high["geometry"]["coordinates"][0][1] = [20, 10, 5]
    np.testing.assert_array_equal(draw(write_json(tmp_path / "a.json", [high]), slide), paint((10, 10, 20, 20, 2)))
