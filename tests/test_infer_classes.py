"""Inference with a network of Gleason patterns, from its command to its tables and pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.inference.canvas import Canvas
from panda.inference.class_colours import PATTERN_COLOURS
from panda.inference.compute import EngineSettings
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import THRESHOLDS, QuantifySettings
from panda.inference.slide_mapper import SlideMapper
from panda.inference.slide_result import SlideResult
from panda.report.slide_page import write_slide_page
from panda.report.viewer import read_viewer
from panda.tables import read_output_table
from panda.wsi.classes import BINARY, ClassSet, find_classes
from tests.checkpoints import segmentation_checkpoint
from tests.test_infer import CONF, draw

GLEASON = find_classes("gleason")
BINARY_COLUMNS = [
    *("slide_id", "tumor_percent_of_tissue", "tumor_mm2", "tissue_mm2", "tumor_px", "tissue_px", "unscored_tissue_px"),
    *("tissue_how", "num_regions", "threshold", "in_sample", "mpp_source", "mpp_x", "mpp_y"),
]


def run(folder: Path, classes: ClassSet, *overrides: str) -> SlideResult:
    checkpoint = segmentation_checkpoint(folder / "best.ckpt", classes)
    draw(folder / "slides" / "a.tiff")
    register_resolvers()
    given = [f"checkpoint={checkpoint}", f"slides={folder / 'slides'}", f"output={folder / 'out'}"]
    given += [f"run_dir={folder / 'out'}", "engine.device=cpu", "engine.post_workers=0", "threshold=0.6", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        infer(compose("infer", overrides=given))
    return SlideResult.read(folder / "out" / "a")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    run(folder, GLEASON)
    return folder / "out"


def test_infer_of_classes_writes_areas_that_add_up(out: Path) -> None:
    result = SlideResult.read(out / "a")
    assert [area.name for area in result.classes] == ["G3", "G4", "G5"]
    assert 0 < sum(area.area_px for area in result.classes) == result.tumor_px
    assert sum(area.area_mm2 or 0 for area in result.classes) == pytest.approx(result.tumor_mm2)
    assert sum(area.percent_of_tumor or 0 for area in result.classes) == pytest.approx(100)
    [row] = read_output_table(out / "quantification.csv")
    for area in result.classes:
        own = {key.removeprefix(f"class_{area.name}_"): value for key, value in row.items() if f"_{area.name}_" in key}
        assert float(own["px"]) == area.area_px
        assert float(own["mm2"]) == pytest.approx(area.area_mm2)
        assert float(own["percent_of_tumor"]) == pytest.approx(area.percent_of_tumor)
        assert float(own["percent_of_tissue"]) == pytest.approx(area.percent_of_tissue)
    features = json.loads((out / "a" / "regions.geojson").read_text())["features"]
    assert {feature["properties"]["classification"]["name"] for feature in features} <= {"G3", "G4", "G5"}
    assert Canvas.open(out / "a" / "canvas.zarr").classes == GLEASON


def test_infer_of_one_class_has_the_columns_as_before(tmp_path: Path) -> None:
    result = run(tmp_path, BINARY)
    [row] = read_output_table(tmp_path / "out" / "quantification.csv")
    assert list(row) == BINARY_COLUMNS
    assert result.classes == ()
    page = (tmp_path / "out" / "a" / "slide.html").read_text()
    assert "Tumour by pattern" not in page
    assert "by pattern" not in page
    plain: dict[str, Any] = json.loads((tmp_path / "out" / "a" / "quantification.json").read_text())
    assert "classes" not in plain
    assert "classes" not in plain["made_with"]["segmentation"]


def test_slide_page_of_classes_has_their_table_and_legend(out: Path) -> None:
    page = (out / "a" / "slide.html").read_text()
    assert "Tumour by pattern" in page
    for pattern in (3, 4, 5):
        assert page.count("background:#{:02x}{:02x}{:02x}".format(*PATTERN_COLOURS[pattern])) == 2
    assert "% of region" in page
    assert "G4" in (out / "report.html").read_text()


def test_viewer_of_classes_has_colours_counts_and_whole_regions(out: Path) -> None:
    result = SlideResult.read(out / "a")
    found = read_viewer(out / "a", result)
    assert found is not None
    view = found["view"]
    assert list(view["colours"]) == ["by pattern", "jet", "viridis"]
    assert [len(tables) for tables in view["colours"].values()] == [3, 1, 1]
    assert [own["name"] for own in view["classes"]] == ["G3", "G4", "G5"]
    sums = [sum(counts) for counts in zip(*(own["counts"] for own in view["classes"]), strict=True)]
    assert sums == list(view["counts"])
    assert len(sums) == len(THRESHOLDS)
    assert [region["id"] for region in view["regions"]] == [region.id for region in result.regions]


def test_slide_page_without_patterns_in_its_result_is_written(out: Path, tmp_path: Path) -> None:
    """An output of before, whose GeoJSON has a feature for each region."""
    folder = tmp_path / "a"
    folder.mkdir()
    for path in (out / "a").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    plain = json.loads((folder / "quantification.json").read_text())
    del plain["classes"]
    for region in plain["regions"]:
        del region["class_px"]
    (folder / "quantification.json").write_text(json.dumps(plain))
    assert "Tumour by pattern" not in write_slide_page(folder).read_text()


def test_slide_mapper_provenance_depends_on_the_classes(tmp_path: Path) -> None:
    names = ("benign", "P3", "P4", "P5")
    patterns = dict(zip(names[1:], GLEASON.patterns.values(), strict=True))
    made = set()
    for number, classes in enumerate((GLEASON, ClassSet(names=names, patterns=patterns))):
        path = segmentation_checkpoint(tmp_path / f"{number}.ckpt", classes)
        predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
        made.add(SlideMapper(predictor, 0.5, QuantifySettings()).provenance.fingerprint)
    assert len(made) == 2
