"""Corrected regions become training masks; unchanged ones give the predicted tumour."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.data.corrections import MASKS, TABLE, main, read_correction, write_corrections
from panda.data.mapped_slide import RESULT_FILE
from panda.data.slide_entry import FileIdentity
from panda.errors import ManifestError, MaskError
from panda.inference.geojson import write_geojson
from panda.inference.quantify import QuantifySettings, slide_quantification
from panda.tables import read_user_table
from panda.wsi.annotations.source import AnnotationSource
from panda.wsi.geometry import Resolution
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.drawings import box, feature, write_json
from tests.pyramids import drop_tiles, write_pyramid

SIZES = {"plain": (404, 300), "odd": (405, 299)}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Slide]:
    folder = tmp_path_factory.mktemp("slides")
    drawn = {
        name: write_pyramid(folder / f"{name}.tiff", np.full((h, w, 3), 200, np.uint8), (1, 4), mpp=0.5)
        for name, (w, h) in SIZES.items()
    }
    whole = write_pyramid(folder / "bounds.tiff", np.full((768, 1024, 3), 200, np.uint8), (1, 4), mpp=0.5)
    drawn["bounds"] = drop_tiles(whole, (256, 256, 768, 512))
    return {name: Slide.open(path) for name, path in drawn.items()}


def map_slide(slide: Slide, resolution: Resolution, mask: NDArray[np.bool_], folder: Path, **changes: Any) -> Path:
    """Write regions and the parts of `quantification.json` that count, and return the regions."""
    folder.mkdir(parents=True, exist_ok=True)
    tissue = TissueMap(np.ones(mask.shape, np.bool_), resolution, "strict")
    limits = QuantifySettings(min_region_um2=0, min_hole_um2=0)
    found = slide_quantification(mask.astype(np.float64), slide, resolution, 0.5, settings=limits, tissue=tissue)
    np.testing.assert_array_equal(found.mask_clean, mask)
    write_geojson(found, slide, resolution, folder / "regions.geojson")
    result = {
        "file": FileIdentity.read(slide.path).model_dump(),
        "downsample": resolution.downsample,
        "threshold": 0.5,
        "tumor_px": found.tumor_px,
        "made_with": {"checkpoint": "best.ckpt", "fingerprint": "abc", "reader": "auto", "mpp_override": None},
    }
    (folder / RESULT_FILE).write_text(json.dumps(result | changes))
    return folder / "regions.geojson"


@pytest.mark.parametrize("name", ["plain", "odd", "bounds"])
@pytest.mark.parametrize("pick", [{"level": 0}, {"level": 1}, {"mpp": 0.87}, {"mpp": 1.3}, {"mpp": 3.1}])
@given(seed=st.integers(0, 2**31), coarse=st.integers(1, 20))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_correction_of_unchanged_regions_is_the_clean_mask(
    slides: dict[str, Slide],
    tmp_path_factory: pytest.TempPathFactory,
    *,
    name: str,
    pick: dict[str, float],
    seed: int,
    coarse: int,
) -> None:
    slide, folder = slides[name], tmp_path_factory.mktemp("out")
    resolution = slide.choose_resolution(**pick)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    small = rng.random((resolution.height // coarse + 1, resolution.width // coarse + 1)) < 0.4
    mask = np.repeat(np.repeat(small, coarse, 0), coarse, 1)[: resolution.height, : resolution.width]
    regions = map_slide(slide, resolution, mask, folder / slide.slide_id)
    found = read_correction(regions, slide.path.parent, "binary", empty_means_benign=True)
    assert found.resolution == resolution
    assert found.cancer_px == pytest.approx(found.predicted_px)
    write_corrections([found], folder)
    with LabelMask.open(folder / MASKS / f"{slide.slide_id}_mask.tiff", slide, "binary") as label:
        np.testing.assert_array_equal(label.read_tumor(resolution, (0, 0), resolution.size), mask)
    if name != "bounds" and "level" in pick:
        np.testing.assert_array_equal(tifffile.imread(label.path), mask)


def test_correction_writes_table_row_with_provenance(
    slides: dict[str, Slide], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = slides["plain"]
    resolution = slide.choose_resolution(level=1)
    mask = np.zeros((resolution.height, resolution.width), np.bool_)
    mask[10:30, 20:50] = True
    regions = map_slide(slide, resolution, mask, tmp_path / "out" / "plain")
    collection = json.loads(regions.read_text())
    del collection["frame"]  # QuPath does not keep it
    collection["features"].append(feature("Tumor", box(240, 40, 280, 80)))
    regions.write_text(json.dumps(collection))
    arguments = [str(regions), "--slides", str(slide.path.parent), "--output", str(tmp_path / "new")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "plain: tumour of 700 px of the map, predicted were 600" in out
    assert f"data=table data.table={tmp_path / 'new' / TABLE}" in out
    ((_, row),) = read_user_table(tmp_path / "new" / TABLE, ("image_id",))
    expected = {"image_id": "plain", "path": str(slide.path), "mask": "masks/plain_mask.tiff", "provider": "binary"}
    assert expected.items() <= row.items()
    assert (row["tool"], row["checkpoint"], row["threshold"]) == ("QuPath", "best.ckpt", "0.5")
    with tifffile.TiffFile(tmp_path / "new" / row["mask"]) as tif:
        codes, described = tif.asarray(), json.loads(tif.pages.first.description)
    assert {key: str(value) for key, value in described.items()}.items() <= row.items()
    mask[10:20, 60:70] = True
    np.testing.assert_array_equal(codes, mask)
    table = tmp_path / "new" / TABLE
    text = table.read_text().splitlines()
    table.write_text(f"{text[0]},patient\n{text[1].replace('best.ckpt', 'old.ckpt')},p1\n")
    assert main(arguments) == 0
    ((_, again),) = read_user_table(table, ("image_id",))
    assert again == row | {"patient": "p1"}


def test_correction_takes_classes_of_patterns(slides: dict[str, Slide], tmp_path: Path) -> None:
    slide = slides["plain"]
    resolution = slide.choose_resolution(level=1)
    empty = np.zeros((resolution.height, resolution.width), np.bool_)
    regions = map_slide(slide, resolution, empty, tmp_path / "plain")
    write_json(regions, [feature("G3", box(0, 0, 80, 80)), feature("G5", box(40, 40, 60, 60))])
    with pytest.raises(
        MaskError, match=r"--labels=annotations: all outside .*code 0.* one of binary, binary_255, glea"
    ):
        read_correction(regions, slide.path, "annotations")
    with pytest.raises(MaskError, match=r"(?s)class 'G3' of 1 annotation .*--labels=binary; .* are .*gleason"):
        read_correction(regions, slide.path, "binary")
    write_corrections([read_correction(regions, slide.path, "gleason")], tmp_path)
    codes = tifffile.imread(tmp_path / MASKS / "plain_mask.tiff")
    expected = np.zeros_like(codes)
    cv2.rectangle(expected, (0, 0), (19, 19), 3, -1)
    cv2.rectangle(expected, (10, 10), (14, 14), 5, -1)
    np.testing.assert_array_equal(codes, expected)


def test_correction_refuses_all_faulty_files_and_writes_nothing(
    slides: dict[str, Slide], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = slides["plain"]
    resolution = slide.choose_resolution(level=1)
    mask = np.ones((resolution.height, resolution.width), np.bool_)
    good = map_slide(slide, resolution, mask, tmp_path / "good")
    none = map_slide(slide, resolution, ~mask, tmp_path / "none")
    other = map_slide(
        slide, resolution, mask, tmp_path / "other", file={"name": "plain.tiff", "bytes": 1, "mtime_ns": 0}
    )
    lost = write_json(tmp_path / "lost.geojson", [feature("Tumor", box(0, 0, 9, 9))])
    paths = [good, none, other, lost, tmp_path / "absent.geojson", good]
    slides_at = str(slide.path.parent)
    assert main([*map(str, paths), "--slides", slides_at, "--output", str(tmp_path / "new")]) == 1
    text = capsys.readouterr().err
    for part in (
        "it holds no annotation: ",
        "the map was made of plain.tiff of 1 bytes",
        f"{RESULT_FILE}: there is no such file: give regions that infer.py wrote",
        "absent.geojson: there is no such file; export",
        "two files are corrections of plain: give one",
    ):
        assert part in text
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    assert main([str(good), "--slides", slides_at, "--output", str(tmp_path / "file")]) == 1
    assert f"File exists: '{tmp_path / 'file'}'; check this file, or give another --output" in capsys.readouterr().err
    (tmp_path / "good" / RESULT_FILE).write_text("{}")
    with pytest.raises(ManifestError, match="file is missing"):
        read_correction(good, slide.path, "binary")


def test_correction_finds_slides_in_subfolders_by_name(slides: dict[str, Slide], tmp_path: Path) -> None:
    name = slides["plain"].path.name
    for folder in ("all/a", "all/b"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy2(slides["plain"].path, tmp_path / folder / name)
    resolution = slides["plain"].choose_resolution(level=1)
    mask = np.ones((resolution.height, resolution.width), np.bool_)
    regions = map_slide(slides["plain"], resolution, mask, tmp_path / "out")
    with pytest.raises(ManifestError, match=r"all has 2 files 'plain.tiff': .*a/plain.tiff.*; give the slide itself"):
        read_correction(regions, tmp_path / "all", "binary")
    with pytest.raises(ManifestError, match=r"out has 0 files 'plain.tiff'; give the slide itself with --slides"):
        read_correction(regions, tmp_path / "out", "binary")
    (tmp_path / "all" / "b" / name).rename(tmp_path / name)
    inner, outer = (read_correction(regions, tmp_path / place, "binary") for place in ("all", "."))
    table = write_corrections([inner], tmp_path / "new")
    before = table.read_bytes()
    with pytest.raises(ManifestError, match=r"plain is .*all/a/plain.tiff, not .*: give another --output"):
        write_corrections([outer], tmp_path / "new")
    assert table.read_bytes() == before


def test_correction_of_fields_labels_these_alone(
    slides: dict[str, Slide], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = slides["plain"]
    resolution = slide.choose_resolution(level=1)
    mask = np.zeros((resolution.height, resolution.width), np.bool_)
    regions = map_slide(slide, resolution, mask, tmp_path / "out" / "plain")
    areas = [feature("Tumor", box(20, 20, 120, 60)), feature("ignore*", box(40, 80, 60, 100))]
    fields = [feature("To correct", box(200, 40, 280, 120)), feature("to Correct", box(0, 40, 80, 120))]
    write_json(regions, areas + fields)
    arguments = [str(regions), "--slides", str(slide.path.parent), "--output", str(tmp_path / "new")]
    assert main(arguments) == 1
    assert "its 2 fields have the class 'To correct': give the class 'Corrected' to each" in capsys.readouterr().err
    fields[1]["properties"]["classification"] = {"name": "corrected"}
    write_json(regions, areas + fields)
    assert main([*arguments, "--labels", "binary"]) == 1
    assert "give a label map whose code 0 is unlabelled" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "tumour of 75 px of the map, in 1 corrected field; nothing outside it is labelled\n  1 of 2" in said
    assert said.endswith(" data.ignore_background=true\n")
    ((_, row),) = read_user_table(tmp_path / "new" / TABLE, ("image_id",))
    assert row["provider"] == "annotations"
    expected = np.zeros((75, 101), np.uint8)
    expected[10:30, :20] = 1
    expected[10:15, 5:20] = 2
    expected[20:25, 10:15] = 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "new" / row["mask"]), expected)
    source = read_correction(regions, slide.path).source
    source.save(tmp_path / "saved.npz")
    again = AnnotationSource.load(regions, tmp_path / "saved.npz")
    assert again is not None
    np.testing.assert_array_equal(again.read_window(resolution, (0, 0, *resolution.size)), expected)
