"""Slides with annotations go all the way: audit, training, inference, correction, and training again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from panda.data import corrections
from panda.data.manifest import find_one_tumor_example
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from tests.drawings import box, feature, write_asap, write_halo, write_imagescope, write_json
from tests.integration.entry_points import run_entry_point, table
from tests.panda_folder import picture
from tests.pyramids import write_pyramid

pytestmark = pytest.mark.slow

TINY = (
    "data.level=2",
    "data.patch_size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.encoder_name=resnet18",
    "model.decoder_channels=[16,16,8,8,8]",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "task.panels=0",
    "task.views_every=0",
)
TISSUE, CANCER = box(64, 64, 704, 448), box(128, 128, 384, 320)


def _annotate(folder: Path, number: int, classes: dict[str, list[tuple[float, float]]]) -> Path:
    """Write classes and their corners as a file of one of four programs."""
    areas = list(classes.items())
    if number % 4 == 0:
        return write_json(folder / f"s{number}.geojson", [feature(name, corners) for name, corners in areas])
    if number % 4 == 1:
        return write_asap(folder / f"s{number}.xml", list(classes), [("Polygon", name, at) for name, at in areas])
    if number % 4 == 2:
        return write_halo(folder / f"s{number}.annotations", [(name, [("Polygon", False, at)]) for name, at in areas])
    return write_imagescope(folder / f"s{number}.xml", areas[-1][0], [(0, False, areas[-1][1])], mpp=2.0)


def _draw(folder: Path) -> None:
    lines = ["image_id;path;annotation;provider;patient"]
    for number in range(8):
        write_pyramid(folder / f"s{number}.tiff", picture(number), (1, 2, 4), mpp=2.0)
        areas = {"Benign": TISSUE} | ({"Tumor": CANCER} if number >= 3 else {})
        if number == 3:
            areas = {"Tumor": CANCER}
        path = _annotate(folder, number, areas)
        lines.append(f"s{number};s{number}.tiff;{path.name};annotations;p{number}")
    (folder / "my.csv").write_text("\r\n".join(lines) + "\r\n")


def test_annotations_train_are_scored_and_corrected(tmp_path: Path) -> None:
    _draw(tmp_path)
    assert find_one_tumor_example(tmp_path / "my.csv").slide_id == "s3"

    done = run_entry_point("audit", tmp_path, "data=table", "data.table=my.csv")
    assert done.returncode == 0, done.stderr[-3000:]
    found = {(row["slide_id"], row["finding"]) for row in table(tmp_path / "audit" / "findings.csv")}
    assert not {finding for _, finding in found} & {"faulty_annotations", "mask_geometry", "unopenable_mask"}

    data = ("data=table", "data.table=my.csv", *TINY)
    done = run_entry_point("train", tmp_path, *data, "name=own", "data.ignore_background=true")
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "runs" / "segmentation" / "own" / "checkpoints" / "best.ckpt"
    assert set(read_checkpoint(checkpoint, SegmentationMetadata).metadata.label_maps) == {"annotations"}
    fractions = [
        patch["tumor_fraction"]
        for path in sorted(tmp_path.glob("patches/*/s*/slide.json"))
        for patch in json.loads(path.read_text())["patches"]
    ]
    assert 0 < np.mean(fractions) < 1

    given = ("slides=my.csv", "labels=my.csv", f"checkpoint={checkpoint}", "output=out", "threshold=0.01")
    done = run_entry_point("infer", tmp_path, *given)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["slide_id"]: row for row in table(tmp_path / "out" / "quantification.csv")}
    for number in range(3, 8):
        assert float(rows[f"s{number}"]["true_tumor_mm2"]) == pytest.approx(256 * 192 * 4e-6, rel=0.05)

    regions = [str(path) for path in sorted(tmp_path.glob("out/s*/regions.geojson"))]
    assert len(regions) == 8
    assert corrections.main([*regions, "--slides", str(tmp_path), "--output", str(tmp_path / "new")]) == 0
    data = ("data=table", "data.table=new/corrections.csv", *TINY)
    done = run_entry_point("train", tmp_path, *data, "name=again")
    assert done.returncode == 0, done.stderr[-3000:]


def test_annotations_of_benign_slides_may_be_empty_if_said(tmp_path: Path) -> None:
    _draw(tmp_path)
    write_json(tmp_path / "s0.geojson", [])
    data = ("data=table", "data.table=my.csv", *TINY, "data.ignore_background=true", "data.store=png")
    done = run_entry_point("train", tmp_path, *data, "name=own", "data.empty_means_benign=true")
    assert done.returncode == 0, done.stderr[-3000:]
    runs = tmp_path / "runs" / "segmentation"
    assert not table(runs / "own" / "failures.csv")
    checkpoint = tmp_path / "runs" / "segmentation" / "own" / "checkpoints" / "best.ckpt"
    label_maps = read_checkpoint(checkpoint, SegmentationMetadata).metadata.label_maps
    assert label_maps["annotations"].empty_means_benign
    done = run_entry_point("train", tmp_path, *data, "name=refused")
    (row,) = table(runs / "refused" / "failures.csv")
    assert row["slide_id"] == "s0"
    assert "s0.geojson" in row["message"]
    assert "data.empty_means_benign=true" in row["message"]
