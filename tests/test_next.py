"""The fields to correct next are those of planted differences, and come back as masks with the same px."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.data import corrections
from panda.data.slide_entry import FileIdentity
from panda.errors import PandaError
from panda.inference.canvas import CanvasWriter
from panda.inference.field_grid import CELLS, FieldGrid
from panda.inference.geojson import write_geojson
from panda.inference.quantify import QuantifySettings, slide_quantification
from panda.report.next import Request, choose_next, main
from panda.tables import read_user_table
from panda.wsi.geometry import Resolution, cut_blocks
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid
from tests.test_report_pages import check_page

WIDTH, HEIGHT = 300, 200  # px of the maps, of 2 µm: level 1 of 1200 x 800 px
BACKGROUND = 0.3
Box = tuple[int, int, int, int, float]
"""Left, top, right and bottom in px of the map, and a probability."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for name, red in (("a", 190), ("b", 191)):
        image = np.full((4 * HEIGHT, 4 * WIDTH, 3), (red, 120, 170), np.uint8)
        write_pyramid(folder / f"{name}.tiff", image, mpp=0.5)
    return folder


def paint(*boxes: Box) -> NDArray[np.float32]:
    prob = np.full((HEIGHT, WIDTH), BACKGROUND, np.float32)
    for left, top, right, bottom, value in boxes:
        prob[top:bottom, left:right] = value
    return prob


def write_map(slides: Path, folder: Path, *boxes: Box, level: int = 1, **changes: Any) -> Path:
    """Write the map of a slide, its regions and the parts of `quantification.json` that count."""
    slide = Slide.open(slides / f"{folder.name}.tiff")
    resolution, prob = slide.choose_resolution(level=level), paint(*boxes)
    prob = prob[: resolution.height, : resolution.width]
    with CanvasWriter(folder / "canvas.zarr", resolution, 50, "f", {}) as writer:
        for left, top, _, _ in cut_blocks(*resolution.size, side=50):
            tile = np.zeros((50, 50), np.float32)
            part = prob[top : top + 50, left : left + 50]
            tile[: part.shape[0], : part.shape[1]] = part
            writer.add(tile[None], [(left, top)])
        canvas = writer.close()
    tissue = TissueMap(np.ones((resolution.height, resolution.width), np.bool_), resolution, "strict")
    limits = QuantifySettings(min_region_um2=0, min_hole_um2=0)
    found = slide_quantification(canvas, slide, resolution, 0.5, settings=limits, tissue=tissue)
    write_geojson(found, slide, resolution, folder / "regions.geojson")
    result = {
        "file": FileIdentity.read(slide.path).model_dump(),
        "downsample": resolution.downsample,
        "threshold": 0.5,
        "tumor_px": found.tumor_px,
        "made_with": {"checkpoint": "best.ckpt", "fingerprint": "abc", "reader": "auto", "mpp_override": None},
    }
    (folder / "quantification.json").write_text(json.dumps(result | changes))
    return folder.parent


@pytest.fixture(scope="module")
def folds(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write maps of two folds: a square of 20 px differs on slide b, one of 10 px on slide a; all else is equal."""
    out, same = tmp_path_factory.mktemp("out"), (20, 20, 60, 120, 0.9)
    for fold, value in (("fold0", 0.8), ("fold1", 0.2)):
        write_map(slides, out / fold / "b", same, (200, 90, 220, 110, value), (95, 5, 99, 9, 0.45))
        write_map(slides, out / fold / "a", same, (120, 150, 130, 160, value))
    return out / "fold0", out / "fold1"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(CELLS, 60), st.integers(7, 64), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_field_grid_chooses_best_fields_without_overlap(
    width: int, height: int, side: int, block: int, seed: int
) -> None:
    grid = FieldGrid.lay(Resolution(1, width, height, 0, 1, (1.0, 1.0)), side)
    values = np.random.default_rng(seed).integers(0, 3, (height, width))
    sums = np.zeros(grid.shape, np.int64)
    for window in cut_blocks(width, height, side=block):
        x, y, w, h = window
        grid.add(sums, values[y : y + h, x : x + w], window)
    assert sums.sum() == values.sum()
    fields = grid.choose(sums, np.full(grid.shape, side**2), 5)
    taken = np.zeros_like(values)
    for field in fields:
        assert (field.width, field.height) == grid.size == (min(side, width), min(side, height))
        own = taken[field.y : field.y + field.height, field.x : field.x + field.width]
        assert own.shape == grid.size[::-1]
        own += 1
    assert taken.max(initial=0) <= 1
    best = max(
        (sums[y : y + CELLS, x : x + CELLS].sum() for y in range(grid.shape[0] - 7) for x in range(grid.shape[1] - 7)),
    )
    if fields:
        x, y, w, h = fields[0]
        assert values[y : y + h, x : x + w].sum() >= best > 0


def test_next_fields_have_planted_difference_first(
    slides: Path, folds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "next"
    assert main([*map(str, folds), "--slides", str(slides), "--output", str(output), "--side", "100"]) == 0
    assert capsys.readouterr().out == f"fields: {output / 'fields.html'}\n"
    first, second = read_rows(output / "fields.csv")
    assert (first["slide_id"], first["reason"], second["slide_id"]) == ("b", "disagreement", "a")
    # A px is 4 µm²; a field of 100 µm has 50 px of 4 level-0 px.
    assert [float(row["score_mm2"]) for row in (first, second)] == pytest.approx([400 * 4e-6, 100 * 4e-6])
    assert (first["width"], first["height"], first["missed_mm2"]) == ("200", "200", "")
    assert float(first["area_mm2"]) == pytest.approx(0.01)
    for row, centre in ((first, (210, 100)), (second, (125, 155))):
        at = (int(row["x"]) / 4 + 25, int(row["y"]) / 4 + 25)
        assert np.abs(np.subtract(at, centre)).max() <= 50 / CELLS
    ranked = read_rows(output / "slides.csv")
    assert [(row["slide_id"], row["fields"]) for row in ranked] == [("b", "1"), ("a", "1")]
    assert float(ranked[0]["score_percent_of_tissue"]) == pytest.approx(100 * 400 / (WIDTH * HEIGHT))
    page = check_page(output / "fields.html")
    assert "2 fields hold 0.002 mm² of tissue on which two maps differ" in page
    again, _ = choose_next(Request(folds, slides, side_um=100), tmp_path / "again")
    for path in output.rglob("*"):
        if path.is_file() and path.name != "fields.html":
            assert (again.parent / path.relative_to(output)).read_bytes() == path.read_bytes()


def test_next_reads_jobs_that_share_a_map(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [tmp_path / "out" / f"threshold={t}" for t in (0.5, 0.7)]
    for job, threshold in zip(jobs, (0.5, 0.7), strict=True):
        write_map(slides, job / "a", (100, 50, 140, 90, 0.6), canvas="f", threshold=threshold)
    shutil.rmtree(jobs[0] / "a" / "canvas.zarr")
    (tmp_path / "out" / "a").mkdir()
    (jobs[1] / "a" / "canvas.zarr").rename(tmp_path / "out" / "a" / "canvas.zarr")
    choose_next(Request(tuple(jobs), slides, side_um=100, count=1), tmp_path / "next")
    (row,) = read_rows(tmp_path / "next" / "fields.csv")
    assert float(row["disagreement_mm2"]) == pytest.approx(1600 * 4e-6)
    result = json.loads((jobs[1] / "a" / "quantification.json").read_text()) | {"canvas": "g"}
    (jobs[1] / "a" / "quantification.json").write_text(json.dumps(result))
    assert main([*map(str, jobs), "--slides", str(slides), "--output", str(tmp_path / "none")]) == 1
    assert "canvas.zarr: the map is not the one of the result in " in capsys.readouterr().err


def test_next_fields_of_three_maps_have_mean_over_pairs(slides: Path, folds: tuple[Path, Path], tmp_path: Path) -> None:
    third = write_map(slides, tmp_path / "fold2" / "b", (20, 20, 60, 120, 0.9))
    folders = []
    for fold in (*folds, third):
        (tmp_path / "one" / fold.name).mkdir(parents=True)
        (tmp_path / "one" / fold.name / "b").symlink_to(fold / "b")
        folders.append(tmp_path / "one" / fold.name)
    choose_next(Request(tuple(folders), slides, side_um=100), tmp_path / "next")
    (row,) = read_rows(tmp_path / "next" / "fields.csv")
    assert float(row["score_mm2"]) == pytest.approx(400 * 4e-6 * 2 / 3)


def test_next_fields_by_confidence_are_near_threshold(slides: Path, folds: tuple[Path, Path], tmp_path: Path) -> None:
    choose_next(Request(folds[:1], slides, side_um=100), tmp_path / "next")
    (row,) = read_rows(tmp_path / "next" / "fields.csv")
    assert (row["slide_id"], row["reason"], row["disagreement_mm2"]) == ("b", "confidence", "")
    assert float(row["score_mm2"]) == float(row["uncertain_mm2"]) == pytest.approx(16 * 4e-6)
    with pytest.raises(PandaError, match=r"no field to correct, .* on 2 slides: no probability is that near"):
        choose_next(Request(folds[:1], slides, side_um=100, near=0.04), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_next_fields_by_errors_count_missed_and_false_alarms(
    slides: Path, folds: tuple[Path, Path], tmp_path: Path
) -> None:
    codes = np.ones((HEIGHT, WIDTH), np.uint8)
    codes[20:120, 20:60] = 2
    codes[20:30, 150:170] = 2  # missed
    codes[90:95, 200:220] = 0  # a false alarm that nobody labelled
    tifffile.imwrite(tmp_path / "mask.tiff", codes, tile=(256, 256))
    table = tmp_path / "labels.csv"
    table.write_text(f"path,mask,provider\n{slides / 'b.tiff'},mask.tiff,annotations\n")
    choose_next(Request(folds, slides, labels=table, side_um=100), tmp_path / "next")
    alarm, missed = read_rows(tmp_path / "next" / "fields.csv")
    assert alarm["reason"] == "errors"
    figures = ("missed_mm2", "false_alarm_mm2", "disagreement_mm2")
    assert [float(alarm[key]) for key in figures] == pytest.approx([0, 300 * 4e-6, 400 * 4e-6])
    assert [float(missed[key]) for key in figures] == pytest.approx([200 * 4e-6, 0, 0])
    assert [row["missed_mm2"] == "" for row in read_rows(tmp_path / "next" / "slides.csv")] == [False, True]


@pytest.mark.parametrize("lost", ["canvas.zarr", "regions.geojson"])
def test_next_leaves_out_a_slide_that_cannot_be_read(
    slides: Path, folds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(folds[0], folder)
    (folder / "a" / lost).rename(tmp_path / lost)
    output = tmp_path / "next"
    assert main([str(folder), "--slides", str(slides), "--output", str(output), "--side", "100", "--near", "0.21"]) == 1
    assert "a is left out: " in (said := capsys.readouterr().err)
    assert lost in said
    assert {row["slide_id"] for row in read_rows(output / "fields.csv")} == {"b"}
    assert [row["slide_id"] for row in read_rows(output / "slides.csv")] == ["b"]
    assert "a is left out: " in check_page(output / "fields.html")


def test_next_reads_labels_by_the_map_of_the_checkpoint(slides: Path, tmp_path: Path) -> None:
    own = {"names": {0: "glass", 7: "benign", 9: "tumour"}, "cancer": [9], "unlabelled": [0]}
    folder = write_map(slides, tmp_path / "out" / "a", label_maps={"mylab": own})
    codes = np.full((HEIGHT, WIDTH), 7, np.uint8)
    codes[20:30, 150:170] = 9
    tifffile.imwrite(tmp_path / "mask.tiff", codes, tile=(256, 256))
    (tmp_path / "labels.csv").write_text(f"path,mask\n{slides / 'a.tiff'},mask.tiff\n")
    choose_next(Request((folder,), slides, labels=tmp_path / "labels.csv", side_um=100), tmp_path / "next")
    (row,) = read_rows(tmp_path / "next" / "fields.csv")
    assert row["reason"] == "errors"
    assert float(row["missed_mm2"]) == pytest.approx(200 * 4e-6)


def test_corrected_field_becomes_mask_of_its_px(
    slides: Path, folds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_next(Request(folds, slides, side_um=100, count=1), tmp_path / "next")
    (row,) = read_rows(tmp_path / "next" / "fields.csv")
    x, y = int(row["x"]) // 4, int(row["y"]) // 4
    exported = tmp_path / "next" / "b" / "fields.geojson"
    content = json.loads(exported.read_text())
    field, *regions = content["features"]
    assert field["properties"] | {"classification": ""} == {
        "objectType": "annotation",
        "name": "field 1",
        "classification": "",
        "isLocked": True,
    }
    assert [found["properties"]["classification"]["name"] for found in regions] == ["Tumor"]
    assert shapely.is_ccw(shapely.LinearRing(regions[0]["geometry"]["coordinates"][0]))
    to = ["--slides", str(slides), "--output", str(tmp_path / "new")]
    assert corrections.main([str(exported), *to]) == 1
    assert "give the class 'Corrected' to each field" in capsys.readouterr().err
    # As in QuPath: the region gets smaller, another one is drawn past the edge of the field, the field is corrected.
    right = 4 * (x + 50)
    regions[0]["geometry"]["coordinates"] = [[[800, 360], [860, 360], [860, 440], [800, 440], [800, 360]]]
    drawn = [[right - 20, 4 * y], [right + 80, 4 * y], [right + 80, 4 * y + 40], [right - 20, 4 * y + 40]]
    other = json.loads(json.dumps(regions[0]))
    other["geometry"]["coordinates"] = [[*drawn, drawn[0]]]
    field["properties"]["classification"] = {"name": "Corrected"}
    corrected = exported.with_name("corrected.geojson")
    corrected.write_text(json.dumps({"type": "FeatureCollection", "features": [field, *regions, other]}))
    assert corrections.main([str(corrected), *to]) == 0
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[y : y + 50, x : x + 50] = 1
    expected[90:110, 200:215] = 2
    expected[y : y + 10, x + 45 : x + 50] = 2
    ((_, row),) = read_user_table(tmp_path / "new" / "corrections.csv", ("image_id",))
    assert (row["image_id"], row["provider"], row["tool"]) == ("b", "annotations", "QuPath")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "new" / row["mask"]), expected)


def test_unedited_field_gives_predicted_px(slides: Path, tmp_path: Path) -> None:
    """A region with a hole that the edge of a field cuts into pieces keeps its px."""
    boxes = ((100, 60, 170, 110, 0.9), (104, 64, 166, 90, 0.1), (120, 85, 125, 115, 0.45), (110, 70, 114, 74, 0.8))
    folder = write_map(slides, tmp_path / "out" / "a", *boxes)
    choose_next(Request((folder,), slides, side_um=37, per_slide=9), tmp_path / "next")
    exported = tmp_path / "next" / "a" / "fields.geojson"
    exported.write_text(exported.read_text().replace("To correct", "Corrected"))
    found = corrections.read_correction(exported, slides)
    resolution = found.resolution
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row in read_rows(tmp_path / "next" / "fields.csv"):
        x, y, w, h = (int(row[key]) // 4 for key in ("x", "y", "width", "height"))
        expected[y : y + h, x : x + w] = 1 + (paint(*boxes)[y : y + h, x : x + w] >= 0.5)
    assert {*np.unique(expected)} == {0, 1, 2}
    np.testing.assert_array_equal(found.source.read_window(resolution, (0, 0, *resolution.size)), expected)


def test_next_refuses_folders_that_do_not_fit(
    slides: Path, folds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = write_map(slides, tmp_path / "coarse" / "b", level=2)
    other = write_map(slides, tmp_path / "other" / "b", file={"name": "x.tiff", "bytes": 1, "mtime_ns": 0})
    lost = write_map(slides, tmp_path / "lost" / "b")
    (lost / "b" / "canvas.zarr").rename(lost / "canvas")
    empty = tmp_path / "empty"
    empty.mkdir()
    fold = str(folds[0])

    def refuse(*arguments: str | Path) -> str:
        assert main([*map(str, arguments), "--slides", str(slides), "--output", str(tmp_path / "next")]) == 1
        assert not (tmp_path / "next").exists()
        return capsys.readouterr().err

    assert f"a: in {fold}, not in {coarse}; give folders of the same slides" in refuse(fold, coarse)
    assert "resolution of the map is 75 x 50 px of 16 level-0 px, of " in refuse(keep_slide_b(folds), coarse)
    assert "file of the map is x.tiff of 1 bytes, of " in refuse(keep_slide_b(folds), other)
    assert "canvas.zarr: there is no such map; run the slide again" in refuse(lost)
    assert "has no quantification.json in any sub-folder" in refuse(empty)
    assert "absent is not a folder" in refuse(tmp_path / "absent")
    said = refuse(fold, "--by", "disagreement", "--near", "0")
    assert "--by disagreement: there is one folder" in said
    assert "--near=0: give a finite number above 0" in said
    assert "--side=inf: give a finite number above 0" in refuse(fold, "--side", "inf")
    assert "--side=15: a field has fewer than 8 px of the map; give at least 16 µm" in refuse(fold, "--side", "15")
    assert "--by errors: there are no labels" in refuse(fold, "--by", "errors")
    assert "a folder is given twice" in refuse(fold, fold)
    table = tmp_path / "labels.csv"
    for name in ("c.tiff", "c_mask.tiff"):
        shutil.copy(slides / "a.tiff", tmp_path / name)
    table.write_text("path,mask,provider\nc.tiff,c_mask.tiff,binary\n")
    assert f"--labels={table}: none of the 2 slides has a mask there" in refuse(fold, "--labels", table)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "corrected.geojson").touch()
    with pytest.raises(PandaError, match="used exists and is not empty; it may hold corrections"):
        choose_next(Request(folds, slides), tmp_path / "used")


def keep_slide_b(folds: tuple[Path, Path]) -> Path:
    """Return a folder with slide b alone."""
    folder = folds[0].parent / "only_b"
    if not folder.exists():
        folder.mkdir()
        (folder / "b").symlink_to(folds[0] / "b")
    return folder
