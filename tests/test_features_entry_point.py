"""`features.py`: files, tables and notes of its folder; what is encoded again, what is refused."""

import csv
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from panda.app.entry_point import SomeSlidesFailed
from panda.app.feature_tables import collect_features
from panda.app.features import check, extract_features
from panda.data.feature_files import (
    FeatureFormat,
    find_feature_files,
    read_feature_file,
    write_feature_file,
)
from panda.data.shard import Shard
from panda.errors import ConfigError
from panda.inference import feature_extraction
from panda.inference.compute import EngineSettings
from panda.inference.feature_output import read_summary
from panda.inference.features import TileBag, TileEncoder, encode_tiles
from panda.models.mil import MILNet
from panda.tables import OutputTable
from panda.wsi.grid import tissue_grid
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.pyramids import write_pyramid
from tests.test_config_check import compose_config

Extract = Callable[..., list[dict[str, str]]]
"""Runs the command, and returns the rows of features.csv, if there is one."""
ENGINE = ("engine.device=cpu", "engine.batch_size=16")
OWN = ("encoder=test_resnet", "encoder_weights=null", "tile_size=64", "mpp=0.5")


def draw(path: Path, mpp: float | None = 0.5, red: int = 215) -> Path:
    image = np.full((384, 384, 3), 244, np.uint8)
    image[60:260, 60:320] = (red, 120, 180)
    image[90:190:9, 80:300] = (120, 60, 140)
    return write_pyramid(path, image, mpp=mpp)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        draw(tmp_path / "slides" / f"{name}.tiff")
    return tmp_path


@pytest.fixture
def extract(home: Path) -> Extract:
    def call(*overrides: str) -> list[dict[str, str]]:
        given = ("slides=slides", *OWN, *ENGINE, *overrides)
        extract_features(compose_config(*given, "run_dir=out", entry_point="features"))
        table = home / "out" / "features.csv"
        return read_rows(table) if table.exists() else []

    return call


def find_faults(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose_config("slides=slides", *overrides, "run_dir=out", entry_point="features"))
    return str(caught.value)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_features_files_hold_what_the_encoder_gives(home: Path, extract: Extract) -> None:
    assert [row["slide_id"] for row in extract("overlap=0.5")] == ["a", "b", "c"]
    torch.manual_seed(0)
    network = MILNet("test_resnet", pooling="mean", freeze_encoder=True)
    encoder = TileEncoder(network, EngineSettings(device="cpu", precision="fp32"))
    with Slide.open(home / "slides" / "b.tiff") as slide:
        view = slide.choose_resolution(mpp=0.5)
        grid = tissue_grid(view, find_tissue(slide), 64, 32, min_tissue=0.25)
        expected = encode_tiles(encoder, slide, TileBag(slide.path, grid.level0, view, 64))
    found = read_feature_file(home / "out" / "b.h5")
    assert found.coords is not None
    np.testing.assert_array_equal(found.coords, grid.level0)
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found.features.mean(axis=1), 0, atol=1e-3)  # no layer normalization
    origin = found.origin
    assert (origin.encoder, origin.tile_size, origin.mpp, origin.tile_um) == ("test_resnet", 64, 0.5, 32)
    assert (origin.overlap, origin.precision, origin.pooling) == (32, "fp32", "own")
    assert read_rows(home / "out" / "failures.csv") == []
    rows = read_rows(home / "out" / "features.csv")
    assert [(row["slide_id"], row["file"], int(row["tiles"])) for row in rows] == [
        (name, f"{name}.h5", len(grid)) for name in ("a", "b", "c")
    ]
    page = (home / "out" / "report.html").read_text()
    assert "features.csv" in page
    assert "tissue rules version" in page
    assert "its features know nothing of tissue" in page


def test_features_same_command_opens_no_slide_again(
    home: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch, panda_log: pytest.LogCaptureFixture
) -> None:
    extract("slides=slides/a.tiff")
    (home / "b.csv").write_text("path\nslides/b.tiff\n")
    before = (home / "out" / "a.h5").stat()
    opened: list[str] = []
    find = find_tissue

    def note(slide: Slide) -> object:
        opened.append(slide.slide_id)
        return find(slide)

    monkeypatch.setattr(feature_extraction, "find_tissue", note)
    assert len(extract()) == 3
    assert sorted(opened) == ["b", "c"]
    assert (home / "out" / "a.h5").stat() == before
    # a slide that was replaced is encoded again, and one whose features are gone
    draw(home / "slides" / "a.tiff", red=200)
    (home / "out" / "c.h5").unlink()
    opened.clear()
    assert len(extract()) == 3
    again, other = (read_feature_file(home / "out" / f"{name}.h5").features for name in ("a", "c"))
    assert again.shape == other.shape
    assert not np.allclose(again, other, rtol=1e-3)
    assert sorted(opened) == ["a", "c"]
    assert any("a.tiff has changed since its tiles were encoded" in r.getMessage() for r in panda_log.records)
    # a slide that was away, and a folder of an older version
    opened.clear()
    (home / "slides" / "b.tiff").rename(home / "b.tiff")
    with pytest.raises(SomeSlidesFailed, match="1 of 1 slides failed"):
        extract("slides=b.csv")
    (home / "b.tiff").rename(home / "slides" / "b.tiff")
    assert len(extract()) == 3
    shutil.rmtree(home / "out" / ".records")
    assert len(extract()) == 3
    assert read_rows(home / "out" / "failures.csv") == []
    assert opened == []


def test_features_collect_writes_long_tables_as_parquet(
    home: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract()
    monkeypatch.setattr("panda.tables.MOST_CSV_ROWS", 2)
    monkeypatch.setattr("panda.report.agreement.MOST_SHOWN", 2)
    collect_features(OmegaConf.create({"collect": "out", "debug": False, "run_dir": "out"}))
    assert [row["slide_id"] for row in OutputTable(home / "out" / "features.csv")] == ["a", "b", "c"]
    assert not (home / "out" / "features.csv").exists()
    page = (home / "out" / "report.html").read_text()
    assert "A random sample of 2 of 3 slides; the table of all is features.parquet." in page


def test_features_leftovers_of_killed_processes_are_removed(home: Path, extract: Extract) -> None:
    out = home / "out"
    (out / "slides").mkdir(parents=True)
    (out / "pt_files").mkdir()
    names = ("slides/a.json", "slides/a.jpg", "pt_files/a.pt", "slides/other.json")
    left = [(out / name).with_name(f".0123456789ab.partial.{Path(name).name}") for name in names]
    for path in left:
        path.touch()
    extract("slides=slides/a.tiff", "format=clam")
    assert [path.exists() for path in left] == [False, False, False, True]


def test_features_collect_names_slides_without_features(home: Path, extract: Extract) -> None:
    extract()
    for name in "bc":
        (home / "out" / f"{name}.h5").unlink()
    extract("shard=3/3")  # c, and b is that of another shard
    with pytest.raises(SomeSlidesFailed, match=r"1 slides have no result yet \(b\): run their command again"):
        collect_features(OmegaConf.create({"collect": "out", "debug": False, "run_dir": "out"}))
    assert [row["slide_id"] for row in read_rows(home / "out" / "features.csv")] == ["a", "c"]
    notes = read_summary(home / "out").notes
    assert notes[-1] == "Slides without a result yet: 1, b."
    assert len(extract()) == 3
    assert read_summary(home / "out").notes == notes[:-1]


def test_features_other_settings_are_refused_and_change_nothing(home: Path, extract: Extract) -> None:
    extract()
    before = {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*")}
    for override, said in {
        "tile_size=32": "tile_size=64 (now 32)",
        "normalize=macenko": "normalize=null (now macenko)",
        "encoder=resnet10t": "encoder=test_resnet (now resnet10t)",
        "min_tissue=0.5": "min_tissue=0.25 (now 0.5)",
        "engine.precision=bf16": "precision=fp32 (now bf16)",
    }.items():
        with pytest.raises(ConfigError, match="remove the folder out, or give an output of its own") as caught:
            extract(override)
        assert said in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*")} == before


def test_features_bad_slides_are_failures_with_remedy(home: Path, extract: Extract) -> None:
    (home / "slides" / "b.tiff").write_bytes(b"no slide")
    write_pyramid(home / "slides" / "glass.tiff", np.full((512, 640, 3), 244, np.uint8), mpp=0.5)
    draw(home / "slides" / "scale.tiff", mpp=None)
    with pytest.raises(SomeSlidesFailed, match="3 of 5 slides failed: see out/failures"):
        extract()
    failed = {row["slide_id"]: row["message"] for row in read_rows(home / "out" / "failures.csv")}
    assert failed.keys() == {"b", "glass", "scale"}
    assert "no tissue found" in failed["glass"]
    assert "give data.mpp_override (infer.py, features.py: mpp_override)" in failed["scale"]
    assert [row["slide_id"] for row in read_rows(home / "out" / "features.csv")] == ["a", "c"]
    # failures stay until the slide succeeds
    draw(home / "slides" / "b.tiff")
    assert len(extract("slides=slides/b.tiff")) == 3
    assert {row["slide_id"] for row in read_rows(home / "out" / "failures.csv")} == {"glass", "scale"}
    extract("slides=slides/scale.tiff", "mpp_override=0.5")
    rows = {row["slide_id"]: row for row in read_rows(home / "out" / "features.csv")}
    assert (rows["scale"]["mpp"], rows["scale"]["tile_px0"]) == ("0.5", "64.0")


def test_features_shards_write_the_tables_of_one_run(home: Path, extract: Extract) -> None:
    (home / "slides" / "c.tiff").write_bytes(b"no slide")
    assert [name for name in "abc" if Shard(3, 3).holds(name)] == ["c"]
    assert [name for name in "abc" if Shard(2, 3).holds(name)] == ["a", "b"]
    assert extract("shard=1/3") == []
    with pytest.raises(SomeSlidesFailed, match="1 of 1 slides failed"):
        extract("shard=3/3")
    assert not (home / "out" / "features.csv").exists()
    with pytest.raises(SomeSlidesFailed, match="1 slides failed: see out/failures"):
        extract("shard=2/3")
    assert [row["slide_id"] for row in read_rows(home / "out" / "features.csv")] == ["a", "b"]
    assert [row["slide_id"] for row in read_rows(home / "out" / "failures.csv")] == ["c"]
    assert "features.csv" in (home / "out" / "report.html").read_text()
    # the file that was damaged comes back, and is encoded without another change
    draw(home / "slides" / "c.tiff")
    assert [row["slide_id"] for row in extract("shard=3/3")] == ["a", "b", "c"]
    assert read_rows(home / "out" / "failures.csv") == []


def test_features_slide_without_enough_tissue_fails(home: Path, extract: Extract) -> None:
    with pytest.raises(SomeSlidesFailed):
        extract("slides=slides/a.tiff", "tile_size=256", "min_tissue=0.9")
    (failure,) = read_rows(home / "out" / "failures.csv")
    assert "no tile of 256 px at 0.5 µm/px holds at least 90% tissue; lower min_tissue" in failure["message"]
    assert read_rows(home / "out" / "features.csv") == []


def test_features_unknown_scale_is_read_at_level_if_allowed(home: Path, extract: Extract) -> None:
    draw(home / "slides" / "scale.tiff", mpp=None)
    level = ("slides=slides/scale.tiff", "mpp=null", "level=0")
    with pytest.raises(SomeSlidesFailed):
        extract(*level)
    (failure,) = read_rows(home / "out" / "failures.csv")
    assert "or give allow_unknown_mpp=true to read its level 0 as it is" in failure["message"]
    (row,) = extract(*level, "allow_unknown_mpp=true")
    assert (row["mpp"], row["tile_um"], row["tile_px0"]) == ("", "", "64.0")


def test_features_damaged_tile_fails_its_slide_only(
    home: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Slide.read

    def fail(slide: Slide, *given: object, **options: object) -> object:
        if slide.slide_id == "b" and given[2] == (64, 64):
            raise OSError("the disk lost a block")
        return read(slide, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Slide, "read", fail)
    with pytest.raises(SomeSlidesFailed):
        extract()
    assert [row["slide_id"] for row in read_rows(home / "out" / "failures.csv")] == ["b"]
    assert {path.stem for path in (home / "out").glob("*.h5")} == {"a", "c"}


def test_features_full_disk_ends_the_command_and_keeps_files(
    home: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_feature_file

    def fail(path: Path, *given: object) -> None:
        if path.stem == "b":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(feature_extraction, "write_feature_file", fail)
    with pytest.raises(OSError, match="No space left"):
        extract()
    assert (home / "out" / "a.h5").exists()
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert len(extract()) == 3


@pytest.mark.parametrize("change", [lambda text: text[:-9], lambda text: text.replace('"tiles"', '"tilse"')])
def test_features_edited_record_is_made_again(
    home: Path, extract: Extract, change: Callable[[str], str], panda_log: pytest.LogCaptureFixture
) -> None:
    extract("slides=slides/a.tiff")
    record = home / "out" / "slides" / "a.json"
    before = record.read_text()
    record.write_text(change(before))
    extract("slides=slides/a.tiff")
    assert json.loads(record.read_text())["tiles"] == json.loads(before)["tiles"]
    assert any("a.json: " in r.getMessage() and "encoded again" in r.getMessage() for r in panda_log.records)


def test_features_edited_settings_are_refused(home: Path, extract: Extract) -> None:
    extract("slides=slides/a.tiff")
    (home / "out" / "features.json").write_text("{}")
    with pytest.raises(ConfigError, match="remove the folder out, or give an output of its own"):
        extract("slides=slides/a.tiff")


def test_features_output_that_is_a_file_is_refused(home: Path) -> None:
    (home / "out").write_text("mine")
    assert "output=out is a file; give a folder" in find_faults(*OWN, "output=out")
    assert (home / "out").read_text() == "mine"


def test_features_pictures_are_on_the_page(home: Path, extract: Extract) -> None:
    extract("pictures=true", "slides=slides/a.tiff")
    assert (home / "out" / "slides" / "a.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert "slides/a.jpg" in (home / "out" / "report.html").read_text()


def test_features_normalized_slides_are_recorded(home: Path, extract: Extract) -> None:
    extract("normalize=macenko", "slides=slides/a.tiff")
    assert json.loads((home / "out" / "features.json").read_text())["plan"]["normalize"] == "macenko"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("encoder=uni2_h",), "encoder_weights=cached: the local cache of the hub"),
        (("encoder=uni2_h",), "or give encoder_weights=download"),
        (("encoder=uni3", "encoder_weights=null"), "encoder=uni3: timm has no such model"),
        (("encoder=kaiko_s16", "encoder_weights=null", "level=1"), "level=1: a level has other µm/px on other slides"),
        (
            ("encoder=kaiko_s16", "encoder_weights=null", "mpp=0.6"),
            "encoder=kaiko_s16: tiles of 256 px at 0.6 µm/px, but the encoder was trained at 0.25 or 0.5 or 1 or 2 µm "
            "for px of 256 px tiles; give mpp=0.5 tile_size=256",
        ),
        ((*OWN, "level=1"), "level=1 and mpp=0.5: give at most one of them"),
        ((*OWN, "allow_unknown_mpp=true"), "allow_unknown_mpp=true: a slide of unknown µm/px"),
        ((*OWN, "encoder_weights=none.pt"), "encoder_weights=none.pt: no such file; give null"),
        (("encoder=vit_tiny_patch16_224", "encoder_weights=null"), "tile_size=256: vit_tiny_patch16_224 does"),
        ((*OWN, "overlap=1"), "overlap=1 must be from 0 to 0.9"),
        ((*OWN, "slides=nowhere"), "slides=nowhere: no slide found"),
    ],
)  # fmt: skip
def test_features_configuration_fault_names_key_and_remedy(home: Path, overrides: tuple[str, ...], said: str) -> None:
    faults = find_faults(*overrides)
    assert said in faults
    assert "model.encoder" not in faults
    assert not (home / "out").exists()


def test_features_defaults_are_those_of_the_card(home: Path) -> None:
    given = ("slides=slides", "encoder=lunit_s8", "encoder_weights=null", "run_dir=out")
    config = check(compose_config(*given, entry_point="features"))
    plan = config.plan
    assert (plan.tile_size, plan.mpp, plan.level, plan.stride) == (224, 0.5, None, 224)
    assert config.card.revision is not None
    assert config.describe(config.network).origin.revision is None  # which is that of the published weights


def test_features_random_weights_are_the_same_each_time(home: Path) -> None:
    cfg = compose_config("slides=slides", *OWN, "run_dir=out", entry_point="features")
    before = torch.get_rng_state()
    first, second = (check(cfg).network.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(before, torch.get_rng_state())


def test_features_log_names_what_was_passed_over(
    home: Path, extract: Extract, panda_log: pytest.LogCaptureFixture
) -> None:
    panda_log.set_level(logging.INFO)
    (home / "slides" / "notes.txt").touch()
    extract()
    said = "\n".join(record.getMessage() for record in panda_log.records)
    assert "3 slides; passed over: 1 files that are no slides (1 .txt)" in said
    extract()
    assert "3 of them have their features already" in "\n".join(record.getMessage() for record in panda_log.records)


@pytest.mark.parametrize("format", get_args(FeatureFormat))
def test_features_of_each_format_are_the_same(home: Path, extract: Extract, format: FeatureFormat) -> None:
    extract("slides=slides/b.tiff")
    (home / "out").rename(home / "own")
    extract("slides=slides/b.tiff", f"format={format}")
    own, found = read_feature_file(home / "own/b.h5"), read_feature_file(find_feature_files(home / "out")["b"])
    np.testing.assert_array_equal(found.features, own.features)
    assert found.coords is not None
    np.testing.assert_array_equal(found.coords, own.coords)
    assert own.origin.describe_difference(found.origin) == []
    assert (found.origin.weights, found.origin.tile_um) == (own.origin.weights, own.origin.tile_um)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: os.truncate(path, 10)])
@pytest.mark.parametrize(
    ("format", "lost"), [("clam", "pt_files/b.pt"), ("slideflow", "b.index.npz"), ("panda", "slides/b.jpg")]
)
def test_features_damaged_second_file_is_made_again(
    home: Path, extract: Extract, format: str, lost: str, change: Callable[[Path], None]
) -> None:
    extract("slides=slides/b.tiff", f"format={format}", "pictures=true")
    size = (home / "out" / lost).stat().st_size
    change(home / "out" / lost)
    extract("slides=slides/b.tiff", f"format={format}", "pictures=true")
    assert (home / "out" / lost).stat().st_size == size
