"""Areas of the classes of cancer in the clean mask, on maps of known truth."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.codes import STEPS
from panda.inference.quantify import THRESHOLDS, Measurements, Quantification, QuantifySettings, slide_quantification
from panda.wsi.classes import ClassSet, find_classes
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid

GLEASON = find_classes("gleason")
WIDTH, HEIGHT = 1200, 800  # level 0; level 1 is 300 x 200
NO_LIMITS = QuantifySettings(min_region_um2=0, min_hole_um2=0, min_region_px=0, min_hole_px=0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    image = np.full((HEIGHT, WIDTH, 3), (190, 120, 170), np.uint8)
    return Slide.open(write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tiff", image, mpp=0.5))


def make_canvas(path: Path, prob: NDArray[np.float32], slide: Slide, classes: ClassSet = GLEASON) -> Canvas:
    """Write (k, 200, 300) probabilities as they are."""
    resolution = slide.choose_resolution(level=1)
    with CanvasWriter(path, resolution, 100, "f", {}, classes=classes) as writer:
        for y in range(0, resolution.height, 100):
            corners = [(x, y) for x in range(0, resolution.width, 100)]
            writer.add(np.stack([prob[:, y : y + 100, x : x + 100] for x, _ in corners]), corners)
        return writer.close()


def quantify(
    canvas: Canvas | NDArray[np.float32],
    slide: Slide,
    threshold: float = 0.5,
    limits: QuantifySettings = NO_LIMITS,
    block: int = 512,
) -> Quantification:
    level = slide.choose_resolution(level=1)
    tissue = TissueMap(np.ones((level.height, level.width), np.bool_), level, "strict")
    return slide_quantification(canvas, slide, level, threshold, settings=limits, tissue=tissue, block=block)


def paint(*boxes: tuple[int, int, int, int, int, float]) -> NDArray[np.float32]:
    """Paint boxes (left, top, right, bottom, class from 0, probability) on maps of 300 x 200 px."""
    prob = np.zeros((3, 200, 300), np.float32)
    for x0, y0, x1, y1, number, value in boxes:
        prob[:, y0:y1, x0:x1] = 0
        prob[number, y0:y1, x0:x1] = value
    return prob


def test_quantification_by_class_has_the_drawn_areas(slide: Slide, tmp_path: Path) -> None:
    # A working px is 2 µm: 4 µm². Two tumours: one of G3 and G4, and one of G5.
    prob = paint((10, 10, 60, 50, 0, 0.9), (60, 10, 80, 50, 1, 0.8), (200, 100, 230, 110, 2, 0.7))
    found = quantify(make_canvas(tmp_path / "c", prob, slide), slide)
    assert [(part.name, part.patterns, part.area_px) for part in found.classes] == [
        ("G3", (3,), 2000),
        ("G4", (4,), 800),
        ("G5", (5,), 300),
    ]
    assert [part.area_mm2 for part in found.classes] == pytest.approx([0.008, 0.0032, 0.0012])
    assert [part.percent_of_tumor for part in found.classes] == pytest.approx(
        [100 * n / 3100 for n in (2000, 800, 300)]
    )
    assert [part.percent_of_tissue for part in found.classes] == pytest.approx([n / 600 for n in (2000, 800, 300)])
    assert [region.class_px for region in found.regions] == [(2000, 800, 0), (0, 0, 300)]
    assert found.tumor_px == 3100
    np.testing.assert_array_equal(found.class_map, np.where(prob.sum(0) >= 0.5, 1 + prob.argmax(0), 0))
    at_75 = int(np.searchsorted(THRESHOLDS, 0.75))
    assert [part.px_at_threshold[at_75] for part in found.classes] == [2000, 800, 0]


def test_quantification_without_mpp_has_no_class_area(tmp_path: Path) -> None:
    image = np.full((HEIGHT, WIDTH, 3), (190, 120, 170), np.uint8)
    with Slide.open(write_pyramid(tmp_path / "bare.tiff", image)) as bare:
        canvas = make_canvas(tmp_path / "c", paint((10, 10, 60, 50, 1, 0.9)), bare)
        found = quantify(canvas, bare)
    assert [part.area_px for part in found.classes] == [0, 2000, 0]
    assert [part.area_mm2 for part in found.classes] == [None, None, None]
    assert [part.percent_of_tumor for part in found.classes] == [0, 100, 0]


def test_quantification_without_tumor_has_no_share_of_it(slide: Slide, tmp_path: Path) -> None:
    found = quantify(make_canvas(tmp_path / "c", paint(), slide), slide)
    assert [(part.area_px, part.percent_of_tumor, part.percent_of_tissue) for part in found.classes] == [
        (0, None, 0)
    ] * 3
    assert found.class_map.max() == 0


def test_quantification_filled_hole_has_the_class_of_its_region(slide: Slide, tmp_path: Path) -> None:
    """The network is sure that the hole is benign: no class has a probability there, and none is highest."""
    prob = paint((10, 10, 60, 50, 0, 0.9), (60, 10, 70, 50, 1, 0.9))
    prob[:, 20:24, 20:25] = 0
    canvas = make_canvas(tmp_path / "c", prob, slide)
    limits = NO_LIMITS.model_copy(update={"min_hole_um2": 100.0})
    found = quantify(canvas, slide, limits=limits)
    assert [part.area_px for part in found.classes] == [2000, 400, 0]
    assert (found.class_map[20:24, 20:25] == 1).all()
    assert [part.area_px for part in quantify(canvas, slide).classes] == [1980, 400, 0]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), threshold=st.floats(0.2, 0.8), scale=st.integers(1, 6))
def test_quantification_of_classes_adds_up_in_any_order(slide: Slide, seed: int, threshold: float, scale: int) -> None:
    rng = np.random.default_rng(seed)
    raw = np.exp(2 * rng.standard_normal((4, 34, 50)))
    prob = np.asarray((raw / raw.sum(axis=0))[1:], np.float32)
    prob = prob.repeat(scale, axis=1).repeat(scale, axis=2)
    prob = np.pad(prob, ((0, 0), (0, 200), (0, 300)))[:, :200, :300]
    limits = QuantifySettings(min_region_um2=4.0 * scale**2, min_hole_um2=4.0 * scale**2)
    with TemporaryDirectory() as folder:
        canvas = make_canvas(Path(folder) / "c", prob, slide)
        found = quantify(canvas, slide, threshold, limits)
        binary = quantify(np.asarray(canvas), slide, threshold, limits)
        np.testing.assert_array_equal(found.mask_clean, binary.mask_clean)
        assert (found.tumor_px, found.num_regions) == (binary.tumor_px, binary.num_regions)
        assert found.px_at_threshold == binary.px_at_threshold
        assert sum(part.area_px for part in found.classes) == found.tumor_px
        np.testing.assert_array_equal(found.class_map > 0, found.mask_clean)
        areas = {part.name: np.count_nonzero(found.class_map == n) for n, part in enumerate(found.classes, start=1)}
        assert {part.name: part.area_px for part in found.classes} == areas
        assert [region.area_px for region in found.regions] == [sum(region.class_px) for region in found.regions]
        assert quantify(canvas, slide, threshold, limits, block=64).model_dump() == found.model_dump()
        order = list(permutations(range(3)))[1 + seed % 5]
        names = [GLEASON.cancer_names[place] for place in order]
        classes = ClassSet(names=("benign", *names), patterns=GLEASON.patterns)
        other = quantify(make_canvas(Path(folder) / "d", prob[list(order)], slide, classes), slide, threshold, limits)
    assert {part.name: part for part in other.classes} == {part.name: part for part in found.classes}
    np.testing.assert_array_equal(np.array([0, *(1 + np.array(order))])[other.class_map], found.class_map)


def test_quantification_of_one_class_is_all_of_the_tumor(slide: Slide, tmp_path: Path) -> None:
    prob = np.random.default_rng(0).random((200, 300)).astype(np.float32)
    found = quantify(make_canvas(tmp_path / "c", np.stack([0 * prob, prob, 0 * prob]), slide), slide)
    assert [part.percent_of_tumor for part in found.classes] == [0, 100, 0]
    assert found.classes[1].area_px == found.tumor_px


def test_quantification_of_classes_counts_parts_at_the_edge(tmp_path: Path) -> None:
    """1,203 x 803 level-0 px at a downsample of 4: the last column and row are on the slide by three quarters."""
    image = np.full((803, 1203, 3), (190, 120, 170), np.uint8)
    with Slide.open(write_pyramid(tmp_path / "odd.tiff", image, mpp=0.5, downsamples=(1,))) as odd:
        resolution = odd.choose_resolution(downsample=4)
        prob = np.zeros((3, 300, 400), np.float32)
        prob[0, :201, :150], prob[2, :201, 150:301] = 0.9, 0.8
        with CanvasWriter(tmp_path / "c", resolution, 100, "f", {}, classes=GLEASON) as writer:
            corners = [(x, y) for y in (0, 100, 200) for x in (0, 100, 200, 300)]
            writer.add(np.stack([prob[:, y : y + 100, x : x + 100] for x, y in corners]), corners)
            canvas = writer.close()
        tissue = TissueMap(np.ones((resolution.height, resolution.width), np.bool_), resolution, "strict")
        found = slide_quantification(canvas, odd, resolution, 0.5, settings=NO_LIMITS, tissue=tissue)
    assert resolution.part == (0.75, 0.75)
    assert [part.area_px for part in found.classes] == [150 * 200.75, 0, 150.75 * 200.75]
    assert sum(part.area_px for part in found.classes) == pytest.approx(found.tumor_px, abs=1e-9)


def test_quantification_of_classes_is_read_back_and_checked(slide: Slide, tmp_path: Path) -> None:
    canvas = make_canvas(tmp_path / "c", paint((10, 10, 60, 50, 0, 0.9)), slide)
    plain = quantify(canvas, slide).model_dump(mode="json")
    assert Measurements.model_validate_json(json.dumps(plain)).model_dump(mode="json") == plain
    first = plain["classes"][0]
    for classes in (
        [first | {"area_px": 1999}, *plain["classes"][1:]],
        [first | {"px_at_threshold": first["px_at_threshold"][:-1]}, *plain["classes"][1:]],
        [first | {"px_at_threshold": [2001, *first["px_at_threshold"][1:]]}, *plain["classes"][1:]],
        plain["classes"][:-1],
    ):
        with pytest.raises(ValidationError, match=r"classes|class_px"):
            Measurements.model_validate_json(json.dumps(plain | {"classes": classes}))
    regions = [plain["regions"][0] | {"class_px": [2000, 0]}]
    with pytest.raises(ValidationError, match="class_px of a region"):
        Measurements.model_validate_json(json.dumps(plain | {"regions": regions}))
    binary = quantify(np.asarray(canvas), slide).model_dump(mode="json")
    assert "classes" not in binary
    assert "class_px" not in binary["regions"][0]


def test_canvas_class_map_is_that_of_the_quantification(slide: Slide, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    raw = np.exp(rng.standard_normal((4, 200, 300)))
    canvas = make_canvas(tmp_path / "c", np.asarray((raw / raw.sum(0))[1:], np.float32), slide)
    threshold = 1 + round(0.6 * STEPS)
    found = quantify(canvas, slide, (threshold - 1) / STEPS)
    np.testing.assert_array_equal(canvas.read_class_map(0, 0, 300, 200, (threshold - 1) / STEPS), found.class_map)
