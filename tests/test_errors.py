"""Wrong regions of planted size and place, against the score of the slide and a plain labelling; their pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from panda.data.manifest import SlideRecord
from panda.files import write_json
from panda.inference.canvas import Canvas
from panda.inference.canvas_metadata import CHUNK
from panda.inference.error_pictures import LABEL_COLOUR, SIDE, ErrorPainter, name_picture, write_errors
from panda.inference.error_regions import ERRORS_FILE, ErrorRegion, SlideErrors, find_errors
from panda.inference.evaluate import score_canvas
from panda.report.error_gallery import SHOWN, lay_out_errors
from panda.report.error_table import ERROR_TABLE, CollectedErrors
from panda.tables import read_output_table, write_table
from panda.wsi.classes import BINARY
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid
from tests.test_gleason_truth import write_canvas

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in level-0 px."""
FOUND, MISSED, OUTSIDE, SPECK = (64, 64, 464, 264), (200, 1960, 600, 2160), (1064, 400, 1264, 600), (800, 64, 808, 72)
ALARM = (64, 800, 164, 1200)
AREA = 4e-6  # mm² of a px of the map, which is 2 µm wide


def cut(box: Box) -> tuple[slice, slice]:
    return slice(box[1] // 4, box[3] // 4), slice(box[0] // 4, box[2] // 4)


@dataclass(frozen=True)
class Planted:
    """A slide of 1,280 x 2,560 px whose errors are known, and its map at a quarter of that."""

    slide: Slide
    mask: LabelMask
    canvas: Canvas
    tissue: TissueMap
    record: SlideRecord

    def find(self, smallest_px: float = 0) -> SlideErrors:
        found = find_errors(self.canvas, self.mask, self.tissue, 0.5, smallest_px=smallest_px)
        return SlideErrors.from_found(found, "s", self.record, 0.5, self.slide.mpp)

    @property
    def painter(self) -> ErrorPainter:
        return ErrorPainter(self.slide, self.canvas, self.mask, self.tissue, 0.5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """Return a slide with missed cancer in tissue, across two bands of the map, and outside it, and a false alarm."""
    folder = tmp_path_factory.mktemp("planted")
    image = np.full((2560, 1280, 3), 244, np.uint8)
    image[:, :1000] = (215, 120, 180)
    image[2040:2080, 380:420] = (20, 30, 120)  # in the middle of the missed region
    codes, prob = np.ones((2560, 1280), np.uint8), np.full((1, 640, 320), 0.125, np.float32)
    for x0, y0, x1, y1 in (FOUND, MISSED, OUTSIDE, SPECK):
        codes[y0:y1, x0:x1] = 2
    for box, value in ((FOUND, 0.75), (ALARM, 0.875), (OUTSIDE, 0.75), (MISSED, 0.25)):
        prob[0][cut(box)] = value
    slide = Slide.open(write_pyramid(folder / "s.tiff", image, mpp=0.5))
    resolution = slide.choose_resolution(level=1)
    tissue = np.ones((640, 320), np.bool_)
    tissue[:, 250:] = False
    path = write_pyramid(folder / "s_mask.tiff", codes)
    with slide, LabelMask.open(path, slide, "karolinska") as mask:
        yield Planted(
            slide,
            mask,
            write_canvas(folder / "c.zarr", prob, resolution, BINARY),
            TissueMap(tissue, resolution, "strict"),
            SlideRecord("s", "karolinska", 4, "4+4", slide.path, path, "s"),
        )


def place(region: ErrorRegion) -> Box:
    return region.x, region.y, region.x + region.width, region.y + region.height


def test_find_errors_planted_regions_have_place_and_area(planted: Planted) -> None:
    errors = planted.find(smallest_px=100)
    assert MISSED[1] // 4 < CHUNK < MISSED[3] // 4, "the region is in two bands"
    assert [(one.kind, one.number, place(one)) for one in errors.regions] == [
        ("missed", 1, MISSED), ("missed", 2, OUTSIDE), ("false_alarm", 1, ALARM),
    ]  # fmt: skip
    assert [one.area_mm2 for one in errors.regions] == pytest.approx([5000 * AREA, 2500 * AREA, 2500 * AREA])
    # the map is not 0 outside the tissue, and counts as 0 there
    assert [one.mean_probability for one in errors.regions] == pytest.approx([0.25, 0.0, 0.875], abs=1e-4)
    assert (errors.missed.regions, errors.missed.area_px) == (2, 7504)
    assert errors.missed.area_mm2 == pytest.approx(7504 * AREA)
    assert planted.find().missed.regions == 3
    everywhere = find_errors(planted.canvas, planted.mask, planted.tissue, 0.0)["missed"]
    assert everywhere.total.area_px == 2500, "only what is outside the tissue"
    none = find_errors(planted.canvas, planted.mask, planted.tissue, 1.0)["false_alarm"]
    assert (none.total.area_px, none.describe_regions("false_alarm")) == (0, [])


def test_find_errors_sums_are_those_of_the_score(planted: Planted) -> None:
    for ignore in (False, True):
        at = (planted.canvas, planted.slide, planted.mask, planted.tissue, planted.record)
        row = score_canvas(*at, ignore_background=ignore).compute_metrics(0.5)
        errors = planted.find()
        assert (errors.missed.area_px, errors.false_alarm.area_px) == (row.fn_px, row.fp_px)
        assert errors.false_alarm.area_mm2 == row.fp_mm2


def test_find_errors_noise_matches_plain_labelling(planted: Planted, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    prob = rng.random((1, 640, 320)).astype(np.float32)
    canvas = write_canvas(tmp_path / "noise.zarr", prob, planted.canvas.resolution, BINARY)
    size = planted.canvas.resolution.size
    truth = planted.mask.read_tumor(planted.canvas.resolution, (0, 0), size)
    called = (np.asarray(canvas) >= 0.5) & planted.tissue.mask
    found = find_errors(canvas, planted.mask, planted.tissue, 0.5)
    masks: dict[str, NDArray[np.bool_]] = {"missed": truth & ~called, "false_alarm": called & ~truth}
    for kind, errors in found.items():
        labels, count = ndimage.label(masks[kind], np.ones((3, 3)))
        areas = np.bincount(labels.ravel())[1:]
        mean = ndimage.mean(np.where(planted.tissue.mask, np.asarray(canvas), 0), labels, np.arange(1, count + 1))
        assert errors.total.regions == count
        assert errors.objects.area[1:].tolist() == sorted(areas, reverse=True)
        assert sorted(errors.mean[1:]) == pytest.approx(sorted(mean))


def test_error_painter_shows_region_with_both_outlines(planted: Planted, tmp_path: Path) -> None:
    [missed, *_] = planted.find().regions
    found = find_errors(planted.canvas, planted.mask, planted.tissue, 0.5)
    write_errors(tmp_path, found, planted.find(), planted.painter)
    with Image.open(tmp_path / name_picture("missed", 1)) as image:
        assert image.size == (SIDE, SIDE)
        pixels = np.asarray(image).astype(int)
    left, top, side = (
        SlideErrors.model_validate_json((tmp_path / ERRORS_FILE).read_bytes()).regions[0].picture or (0,) * 3
    )
    assert side == pytest.approx(1.4 * 400, abs=1)
    assert left == pytest.approx(missed.x + missed.width / 2 - side / 2, abs=1)
    scale = SIDE / side

    def at(x: float, y: float) -> list[int]:
        return [int(v) for v in pixels[round((y - top) * scale), round((x - left) * scale)]]

    assert at(400, 2060) == pytest.approx([20, 30, 120], abs=12)
    assert at(MISSED[0], 2100) == pytest.approx(LABEL_COLOUR, abs=40)
    assert at(MISSED[0] + 40, 2100) == pytest.approx([215, 120, 180], abs=12)
    assert at(MISSED[0] - 40, 2100) == pytest.approx([235, 188, 218], abs=12), "paler outside the region"
    [*_, alarm] = planted.find().regions
    shown = planted.painter.write(alarm, found["false_alarm"].select(1), tmp_path / "alarm.jpg")
    with Image.open(tmp_path / "alarm.jpg") as image:
        column = np.asarray(image).astype(int)[round((ALARM[1] - shown[1]) * SIDE / shown[2]) + 60]
    edge = round((ALARM[0] - shown[0]) * SIDE / shown[2])
    assert column[edge - 2 : edge + 3].sum(axis=1).min() < 200, "the outline of the prediction is dark"


def test_error_painter_large_region_is_shown_at_its_densest_part(planted: Planted, tmp_path: Path) -> None:
    found = find_errors(planted.canvas, planted.mask, planted.tissue, 0.5)["missed"]
    large = replace_box(planted.find().regions[0], 0, 0, 1280, 2560)
    left, top, side = planted.painter.write(large, found.select(1), tmp_path / "x.jpg")
    assert side == 4 * SIDE
    assert left < MISSED[0] < left + side
    assert top < MISSED[1] < MISSED[3] < top + side


def replace_box(region: ErrorRegion, x: int, y: int, width: int, height: int) -> ErrorRegion:
    return region.model_copy(update={"x": x, "y": y, "width": width, "height": height})


def test_error_gallery_has_largest_of_all_slides(planted: Planted, tmp_path: Path) -> None:
    errors = planted.find(smallest_px=100)
    names = [f"s{number:02}" for number in range(20)]
    for number, name in enumerate(names):
        grown = [
            one.model_copy(update={"area_px": one.area_px + number, "picture": (0, 0, 1024)}) for one in errors.regions
        ]
        area = [one.model_copy(update={"area_mm2": one.area_px * AREA}) for one in grown]
        provider = "radboud" if number % 2 else "karolinska"
        own = errors.model_copy(update={"slide_id": name, "provider": provider, "regions": tuple(area)})
        write_json(tmp_path / name / ERRORS_FILE, own.model_dump(mode="json"))
    (tmp_path / "other").mkdir()  # a slide without labels
    table = tmp_path / "slides.csv"
    write_table(table, [{"slide_id": name} for name in [*names, "other", "absent"]])
    CollectedErrors.read(table, tmp_path).write(tmp_path / ERROR_TABLE)
    rows = read_output_table(tmp_path / ERROR_TABLE)
    assert [row["kind"] for row in rows] == ["missed"] * 40 + ["false_alarm"] * 20
    assert [rows[0][key] for key in ("slide_id", "x", "y", "width", "height", "provider", "isup_grade")] == [
        "s19", "200", "1960", "400", "200", "radboud", "4",
    ]  # fmt: skip
    assert float(rows[0]["area_mm2"]) == pytest.approx(5019 * AREA)
    assert (float(rows[0]["centre_x_um"]), float(rows[0]["centre_y_um"])) == (200.0, 1030.0)
    section = lay_out_errors(tmp_path, table)
    assert section is not None
    (_, missed), (_, alarms) = section.parts
    assert [figure.slide_id for figure in missed] == names[::-1][:SHOWN]
    assert len(alarms) == SHOWN
    groups = {row[0].text: [cell.text for cell in row[2:]] for row in section.groups.rows}
    assert groups["radboud"] == ["10", "20", f"{10 * 7504 * AREA:.2f}", "10", "0.100"]
    (tmp_path / "s19" / ERRORS_FILE).write_text("{}")
    damaged = lay_out_errors(tmp_path, table)
    assert damaged is not None
    assert "s19" in damaged.notes[0]
